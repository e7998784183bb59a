"""Simulate what a power cut may leave on a disk, from the shim's records.

Everything covered by a completed flush is on the disk. Of everything else, each sector of 512 bytes has one of its
contents since its last flush, chosen freely, because disks and systems write back in any order. The same holds for each
file's size, and for the names in each folder. A file's name is on the disk only when its *folder* was flushed: POSIX
promises no more, though most file systems do.

After a failed flush, its data counts as clean, as in Linux: a later successful flush does not make it durable, only
writing it again does.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from .shim import Record

SECTOR = 512
PAGE = 4096

#: The ways to choose: nothing that was not flushed is there; everything is, as after a killed process; everything up to
#: a moment, and a part of the write that comes next; only the last write of each file; any of the sectors, or pages.
MODES = ("none", "all", "prefix", "last", "sectors", "pages")


@dataclass
class Pending:
    """A change that no flush has covered yet."""

    seq: int
    #: Of a write: the first byte, and whole sectors. None: the size was set to `end`.
    start: int
    data: bytes | None
    #: The end of what was written, or the size that was set.
    end: int
    #: A flush has failed to write it.
    lost: bool = False


@dataclass
class File:
    cache: bytearray = field(default_factory=bytearray)
    disk: bytearray = field(default_factory=bytearray)
    pending: list[Pending] = field(default_factory=list)

    def write(self, seq: int, at: int, data: bytes) -> None:
        if not data:
            return
        end = at + len(data)
        _put(self.cache, at, data)
        # A page is written back as a whole if anything in it is: with what an earlier, failed flush has lost.
        unit = PAGE if any(change.lost for change in self.pending) else SECTOR
        start = at - at % unit
        stop = min(end + -end % unit, len(self.cache) + -len(self.cache) % SECTOR)
        piece = bytes(self.cache[start:stop])
        self.pending.append(Pending(seq, start, piece + bytes(-len(piece) % SECTOR), end))

    def resize(self, seq: int, size: int) -> None:
        _resize(self.cache, size, b"")
        self.pending.append(Pending(seq, 0, None, size))

    def flushed(self, covered: Callable[[Pending], bool]) -> None:
        """What is `covered`, and was not lost, is on the disk."""
        kept: list[Pending] = []
        for change in self.pending:
            if change.lost or not covered(change):
                kept.append(change)
                continue
            _apply(self.disk, change)
            if change.data is not None:
                # Older contents of these sectors cannot come back.
                kept = [piece for older in kept for piece in _without(older, change.start, len(change.data))]
        self.pending = kept

    def failed(self, covered: Callable[[Pending], bool]) -> None:
        """A flush of what is `covered` failed."""
        for change in self.pending:
            change.lost = change.lost or (covered(change) and change.data is not None)

    def image(self, mode: str, until: int, choose: random.Random) -> bytes:
        """A content that the file may have on the disk. `until`: where mode "prefix" stops."""
        disk = bytearray(self.disk)
        if mode == "none" or not self.pending:
            return bytes(disk)
        if mode in ("all", "last", "prefix"):
            for change in self.pending[-1:] if mode == "last" else self.pending:
                if mode != "prefix" or change.seq < until:
                    _apply(disk, change)
                elif change.data is not None:
                    torn = choose.randrange(len(change.data) // SECTOR + 1) * SECTOR
                    if torn:
                        end = min(change.end, change.start + torn)
                        _apply(disk, Pending(0, change.start, change.data[:torn], end))
                    break
            return bytes(disk)
        unit = PAGE if mode == "pages" else SECTOR
        likely = choose.choice((0.1, 0.5, 0.9))
        sized = choose.randrange(-1, len(self.pending))
        size = len(disk)
        # What is within the size and was not written is zero, or what the disk had there in another file's time.
        filler = choose.choice((b"", choose.randbytes(PAGE)))
        for number, change in enumerate(self.pending):
            if change.data is None:
                if number <= sized:
                    size = change.end
                    del disk[size:]
                continue
            if number <= sized:
                size = max(size, change.end)
            at = 0
            while at < len(change.data):
                step = unit - (change.start + at) % unit
                if choose.random() < likely:
                    piece = change.data[at : at + step]
                    if change.start + at > len(disk):
                        _resize(disk, change.start + at, filler)
                    disk[change.start + at : change.start + at + len(piece)] = piece
                at += step
        _resize(disk, size, filler)
        return bytes(disk)


@dataclass
class Named:
    """A name that came or went, and the flush of its folder has not covered it yet."""

    seq: int
    path: str
    #: Whose name it is; None: the name is gone.
    inode: int | None
    #: Of a name that came by rename: the name that it had.
    former: str | None = None


class Disk:
    """Fed with the records of one folder, it gives images of what a power cut would leave at that point."""

    def __init__(self, folder: Path) -> None:
        self._root = os.path.realpath(folder)
        self._seq = 0
        self._files: dict[int, File] = {}
        self._now: dict[str, int] = {self._root: 0}
        self._kept: dict[str, int] = {self._root: 0}
        self._names: list[Named] = []
        self._folders: set[int] = {0}
        self._paths: dict[int, str] = {0: self._root}
        self._begun: dict[int, int] = {}
        # Numbers of inodes are given out again; these are not.
        self._numbers: dict[int, int] = {}
        #: Names of files that were mapped for writing, which no record tells of.
        self.mapped: set[str] = set()
        #: Completed flushes, by the name of the file.
        self.flushes: list[str] = []

    def feed(self, record: Record) -> None:
        """One record further."""
        self._seq += 1
        if record.kind == "M" or (record.kind == "O" and record.a):
            self._numbers[record.inode] = self._seq
        elif record.kind == "O" and record.text == self._root:
            self._numbers[record.inode] = 0
        inode = self._numbers.get(record.inode, -1)
        match record.kind:
            case "O":
                if record.a:
                    self._files[inode] = File()
                    self._appear(record.text, inode)
            case "M":
                self._folders.add(inode)
                self._paths[inode] = record.text
                self._appear(record.text, inode)
            case "U":
                del self._now[record.text]
                self._names.append(Named(self._seq, record.text, None))
            case "R" | "L":
                assert record.a, "a file was moved into the folder, or out of it"
                target = os.fsdecode(record.data)
                inode = self._now[record.text]
                if record.kind == "R":
                    assert inode not in self._folders, "a folder was renamed: no store does that"
                    del self._now[record.text]
                self._now[target] = inode
                self._names.append(Named(self._seq, target, inode, record.text if record.kind == "R" else None))
            case "W":
                self._files[inode].write(self._seq, record.a, record.data)
            case "T":
                self._files[inode].resize(self._seq, record.a)
            case "B":
                self._begun[record.a] = self._seq
            case "E" | "F":
                self._flush(inode, self._begun.pop(record.a), done=record.kind == "E")
            case "D" | "X":
                change = next(c for c in reversed(self._files[inode].pending) if c.end == record.a + record.b)
                file = self._files[inode]
                (file.flushed if record.kind == "D" else file.failed)(lambda other: other is change)
                if record.kind == "D":
                    self.flushes.append(self._name(inode))
            case "P":
                self.mapped.add(self._name(inode))
            case other:
                assert other == "K", f"an unknown record {other!r}"

    def image(self, mode: str, choose: random.Random, target: Path) -> None:
        """Write into the new folder `target` what a power cut now may leave of the recorded folder."""
        moments = [change.seq for file in self._files.values() for change in file.pending]
        moments += [name.seq for name in self._names]
        until = choose.choice(moments) if moments else 0
        kept = dict(self._kept)
        for name in self._names:
            chosen = {"none": False, "all": True, "prefix": name.seq < until}.get(mode)
            if choose.random() < 0.7 if chosen is None else chosen:
                _rename(kept, name)
        target.mkdir()
        for path in sorted(kept, key=len):
            inode = kept[path]
            place = target / os.path.relpath(path, self._root)
            if path == self._root or not place.parent.is_dir():
                continue
            if inode in self._folders:
                place.mkdir()
            else:
                place.write_bytes(self._files[inode].image(mode, until, choose))

    # --- inside ---

    def _appear(self, path: str, inode: int) -> None:
        self._now[path] = inode
        self._names.append(Named(self._seq, path, inode))

    def _flush(self, inode: int, begun: int, *, done: bool) -> None:
        if inode in self._files:
            file = self._files[inode]
            (file.flushed if done else file.failed)(lambda change: change.seq < begun)
        elif done:
            folder = self._paths[inode]
            covered = [name for name in self._names if name.seq < begun and os.path.dirname(name.path) == folder]
            for name in covered:
                _rename(self._kept, name)
                self._names.remove(name)
        if done:
            self.flushes.append(self._name(inode))

    def _name(self, inode: int) -> str:
        path = self._paths.get(inode) or next((p for p, other in self._now.items() if other == inode), "gone")
        return os.path.relpath(path, self._root)


def _rename(names: dict[str, int], change: Named) -> None:
    if change.inode is None:
        names.pop(change.path, None)
    else:
        names[change.path] = change.inode
        if change.former is not None:
            names.pop(change.former, None)


def _put(content: bytearray, at: int, data: bytes) -> None:
    if at > len(content):
        content.extend(bytes(at - len(content)))
    content[at : at + len(data)] = data


def _resize(content: bytearray, size: int, filler: bytes) -> None:
    del content[size:]
    missing = size - len(content)
    if missing > 0:
        content.extend((filler * (missing // len(filler) + 1))[:missing] if filler else bytes(missing))


def _apply(content: bytearray, change: Pending) -> None:
    if change.data is None:
        _resize(content, change.end, b"")
        return
    size = max(len(content), change.end)
    _put(content, change.start, change.data)
    del content[size:]


def _without(change: Pending, start: int, length: int) -> Iterator[Pending]:
    """`change` without the sectors from `start`."""
    if change.data is None or change.start + len(change.data) <= start or start + length <= change.start:
        yield change
        return
    stop = start + length
    if change.start < start:
        piece = change.data[: start - change.start]
        yield Pending(change.seq, change.start, piece, min(change.end, start), change.lost)
    if stop < change.start + len(change.data):
        yield Pending(change.seq, stop, change.data[stop - change.start :], change.end, change.lost)
