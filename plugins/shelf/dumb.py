"""The dialect dumb, written so that a process killed at any moment leaves whole files.

`dbm.dumb` itself overwrites values in place, and for a moment has no index. It can read what this module writes.
"""

from __future__ import annotations

import ast
import io
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from hutch import CorruptValueError, StorageFullError, StoreError
from hutch.filesystem import create_file, open_existing, write_all
from hutch.handlers import raised_by_handler, suppress_own

from .database import Database, replace_file
from .files import Place, storage_errors

_BLOCK_BYTES: Final = 512
# The index grows by one line per write; it is rewritten once it has this many more lines than keys.
_MAX_STALE_LINES: Final = 1000
# A line of the index: a string literal and two numbers.
_ENTRY: Final = re.compile(
    r"""\s*('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")\s*,\s*\(\s*([0-9]{1,18})\s*,\s*([0-9]{1,18})\s*\)\s*""", re.DOTALL
)


class DumbDatabase(Database):
    """The files of `dbm.dumb`: values in ``.dat``, an index of lines ``'key', (position, size)`` in ``.dir``.

    A value is never overwritten. A new value goes to free blocks, then a line is appended to the index; every version
    of `dbm.dumb` uses the last line of a key. Removing keys, or setting several atomically, replaces the index.
    """

    def __init__(self, place: Place, scratch: Path, *, to_read: bool = False) -> None:
        self._dat, self._dir, self._bak = (place.file(suffix) for suffix in (".dat", ".dir", ".bak"))
        self._scratch = scratch
        self._index: dict[bytes, tuple[int, int]] = {}
        self._lines = 0
        self._wrote = False
        with storage_errors(self._dat):
            self._file = open_existing(self._dat, "rb" if to_read else "r+b")
        self.release = self._file.close
        try:
            with storage_errors(self._dir):
                self._load()
            self._find_free()
        except BaseException:
            self.release()
            raise

    def get(self, key: bytes) -> bytes | None:
        place = self._index.get(key)
        if place is None:
            return None
        position, size = place
        with storage_errors(self._dat):
            data = self._read_all_at(position, size)
        if len(data) != size:
            raise self._truncated(position + size)
        return data

    def contains(self, key: bytes) -> bool:
        return key in self._index

    def __len__(self) -> int:
        return len(self._index)

    def keys(self) -> list[bytes]:
        return list(self._index)

    def write(self, changes: Mapping[bytes, bytes | None]) -> None:
        index = self._index
        try:
            placed = self._put_all(changes)
            removed = {key for key, value in changes.items() if value is None and key in index}
            if len(placed) == 1 and not removed and self._lines < 2 * len(index) + _MAX_STALE_LINES:
                self._add_line(*next(iter(placed.items())))
            elif placed or removed:
                index = {key: at for key, at in {**index, **placed}.items() if key not in removed}
                self._write_index(index)
        except StoreError:  # the old index is still in place
            self._find_free()
            raise
        if self._is_disjoint:
            freed = (self._index[key] for key in changes if key in self._index)
            self._free += [(position, _blocks(size)) for position, size in freed]
        index.update(placed)
        self._index = index

    def clear(self) -> None:
        self._write_index({})
        self._index = {}
        with storage_errors(self._dat):
            self._file.truncate(0)
        self._find_free()

    def compact(self) -> None:
        """Move values into free blocks before them, one atomic write each, and cut off what is free at the end."""
        for key, (position, size) in sorted(self._index.items(), key=lambda entry: -entry[1][0]):
            if any(start < position and blocks >= _blocks(size) for start, blocks in self._free):
                self.write({key: self.get(key)})
        self._write_index(self._index)
        self._find_free()
        with storage_errors(self._dat):
            if self._is_disjoint:
                self._file.truncate(min(self._end, os.fstat(self._file.fileno()).st_size))

    def abandon(self) -> None:
        self.release()

    def _read_all_at(self, position: int, size: int) -> bytes:
        data = self._read_at(position, size)
        while len(data) < size and (more := self._read_at(position + len(data), size - len(data))):
            data += more
        return data

    def _read_at(self, position: int, size: int) -> bytes:
        # Keep the file position, which an interrupted call may be using.
        if hasattr(os, "pread"):
            return os.pread(self._file.fileno(), size, position)
        with open_existing(self._dat) as file:
            file.seek(position)
            return file.read(size)

    def _load(self) -> None:
        with open_existing(self._dir) as raw, io.TextIOWrapper(io.BufferedReader(raw), encoding="latin-1") as file:
            self._ends_with_newline = True
            for number, line in enumerate(file, 1):
                entry = _ENTRY.fullmatch(line)
                if entry is None:
                    raise self._no_entry(number)
                try:
                    key = ast.literal_eval(entry[1]).encode("latin-1")
                except (ValueError, SyntaxError) as error:
                    if raised_by_handler(error):
                        raise
                    raise self._no_entry(number) from error
                self._index[key] = int(entry[2]), int(entry[3])
                self._lines = number
                self._ends_with_newline = line.endswith("\n")
        needed = max((position + size for position, size in self._index.values()), default=0)
        if os.fstat(self._file.fileno()).st_size < needed:
            raise self._truncated(needed)

    def _no_entry(self, number: int) -> CorruptValueError:
        return CorruptValueError(
            f"line {number} of {self._dir} is not an entry of a dbm.dumb index; the file is truncated or damaged. "
            "Restore it, or remove that line and with it one key"
        )

    def _truncated(self, needed: int) -> CorruptValueError:
        return CorruptValueError(
            f"{self._dat} is truncated: its index {self._dir.name} requires at least {needed:,} bytes, and it has "
            f"{os.fstat(self._file.fileno()).st_size:,}; restore it from a backup"
        )

    def _find_free(self) -> None:
        """Compute the runs of free blocks from the index."""
        self._free: list[tuple[int, int]] = []
        # dbm.dumb never lets two keys share blocks; if they do, blocks that one key frees may be in use by another.
        self._is_disjoint = True
        end = 0
        for position, size in sorted(self._index.values()):
            start = position - position % _BLOCK_BYTES
            if start > end:
                self._free.append((end, (start - end) // _BLOCK_BYTES))
            if start < end or start != position:
                self._is_disjoint = False
            end = max(end, start + _blocks(position - start + size) * _BLOCK_BYTES)
        self._end = end

    def _put_all(self, changes: Mapping[bytes, bytes | None]) -> dict[bytes, tuple[int, int]]:
        """Write each value to free blocks, and return their positions; the index does not list them yet."""
        end = self._end
        try:
            with storage_errors(self._dat):
                return {key: self._put(value) for key, value in changes.items() if value is not None}
        except StorageFullError:
            with suppress_own(OSError):
                if os.fstat(self._file.fileno()).st_size > end:
                    self._file.truncate(end)
            raise

    def _put(self, value: bytes) -> tuple[int, int]:
        """Write `value` to free blocks, and return its position and size."""
        wanted = _blocks(len(value))
        for i, (position, blocks) in enumerate(self._free):
            if blocks >= wanted:
                self._free[i : i + 1] = [(position + wanted * _BLOCK_BYTES, blocks - wanted)] if blocks > wanted else []
                break
        else:
            position = self._end
            self._end += wanted * _BLOCK_BYTES
        if not self._wrote:
            self._bak.unlink(missing_ok=True)  # it lists blocks that other keys use from now on
            self._wrote = True
        self._file.seek(position)
        write_all(self._file, value)
        return position, len(value)

    def _add_line(self, key: bytes, place: tuple[int, int]) -> None:
        line = _line(key, place) if self._ends_with_newline else f"\n{_line(key, place)}"
        with storage_errors(self._dir), open_existing(self._dir, "r+b") as file:
            end = file.seek(0, os.SEEK_END)
            try:
                write_all(file, line.encode("latin-1"))
            except BaseException:
                file.truncate(end)  # a partial line would be damage
                raise
        self._lines += 1
        self._ends_with_newline = True

    def _write_index(self, index: Mapping[bytes, tuple[int, int]]) -> None:
        with storage_errors(self._dir):
            self._bak.unlink(missing_ok=True)
            self._scratch.unlink(missing_ok=True)
            try:
                with io.BufferedRandom(create_file(self._scratch)) as file:
                    file.writelines(_line(key, place).encode("latin-1") for key, place in index.items())
                replace_file(self._scratch, self._dir)
            except BaseException:
                with suppress_own(OSError):
                    self._scratch.unlink(missing_ok=True)
                raise
        self._wrote = True
        self._lines = len(index)
        self._ends_with_newline = True


def _line(key: bytes, place: tuple[int, int]) -> str:
    return f"{key.decode('latin-1')!r}, {place!r}\n"


def _blocks(size: int) -> int:
    return max(1, -(-size // _BLOCK_BYTES))
