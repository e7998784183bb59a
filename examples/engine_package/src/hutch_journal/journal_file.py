"""The file of a namespace, and how several processes share it.

    header:  b"hutch-j1" | 16 random bytes | length of the name (2) | name in UTF-8
    record:  length of the body (8) | CRC-32 of those 8 bytes (4) | CRC-32 of the body (4) | body
    body:    for each key: its length (2) | length of the value, or -1 if the key is removed (8) | key | value

All numbers are little endian. A record is one batch, and counts when it is complete: the next writer removes a record
that a killed process left truncated. A file that has become too long is replaced by a compacted one, with other random
bytes.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from struct import Struct
from typing import TypeVar
from zlib import crc32

from hutch import CorruptValueError, StorageFullError, StorageUnavailableError

T = TypeVar("T")

_MAGIC = b"hutch-j1"
_ID_BYTES = 16
_NAME_AT = len(_MAGIC) + _ID_BYTES + 2
_record = Struct("<QII")
_entry = Struct("<Hq")
_REMOVED = -1
# With fewer bytes of replaced items, a file is not worth compacting.
_LEAST_WASTE_BYTES = 256 * 1024


class View:
    """The content of a locked file: a collection of keys, whose values are read on demand."""

    def __init__(self, file: int, places: Mapping[str, tuple[int, int]]) -> None:
        self._file, self._places = file, places

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def value(self, key: str) -> bytes | None:
        """Return the value of `key`, or None."""
        if key not in self._places:
            return None
        return _read(self._file, *self._places[key])


class Journal:
    """One file, read and appended to.

    Each call opens the file and locks it, so threads share nothing but memory, and forked processes nothing. Earlier
    reads are remembered; records that others appended since are read first.
    """

    def __init__(self, path: Path, namespace: str) -> None:
        self.path = path
        self._name = namespace.encode()
        self.after_fork()
        _journals.add(self)

    def read(self, work: Callable[[View], T]) -> T:
        """Return ``work(view)``, while nobody writes."""
        with self._lock, errors_of(self.path), self._opened(os.O_RDONLY, fcntl.LOCK_SH) as file:
            self._catch_up(file)
            return work(View(file, self._places))

    def change(self, decide: Callable[[View], Mapping[str, bytes | None]]) -> int:
        """Append ``decide(view)``, values by key or None to remove one, as a record; return how many keys.

        No other process writes between the two, and none sees a part of the record.
        """
        with self._lock, errors_of(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self._opened(os.O_RDWR | os.O_CREAT, fcntl.LOCK_EX) as file:
                self._catch_up(file)
                if not self._header:
                    self._begin(file)
                changes = decide(View(file, self._places))
                if changes:
                    self._add(file, changes)
                    if self._end - self._live > max(_LEAST_WASTE_BYTES, self._live):
                        self._shorten(file)
                return len(changes)

    def after_fork(self) -> None:
        """Reset the state: another thread of the parent may have held the lock, or been changing it."""
        self._lock = threading.Lock()
        self._forget()

    def _forget(self) -> None:
        self._header = b""
        self._places: dict[str, tuple[int, int]] = {}  # of each key, the position and length of its value
        self._end = 0  # of the last complete record
        self._live = 0  # bytes of current keys and values

    @contextlib.contextmanager
    def _opened(self, flags: int, lock: int) -> Iterator[int]:
        """Open the file and lock it; yield its descriptor, or -1 if it does not exist."""
        while True:
            try:
                file = os.open(self.path, flags | os.O_CLOEXEC, 0o666)
            except FileNotFoundError:
                yield -1
                return
            try:
                fcntl.flock(file, lock)
                if self._is_in_place(file):  # otherwise a compacted file replaced it during the wait
                    yield file
                    return
            finally:
                fcntl.flock(file, fcntl.LOCK_UN)  # closing does not unlock while a forked process has a copy
                os.close(file)

    def _is_in_place(self, file: int) -> bool:
        try:
            return os.path.samestat(os.fstat(file), self.path.stat())
        except FileNotFoundError:
            return False

    # --- reading ---

    def _catch_up(self, file: int) -> None:
        """Read the new records."""
        size = os.fstat(file).st_size if file >= 0 else 0
        header = _read(file, 0, min(size, _NAME_AT + len(self._name)))
        if header != self._header:
            self._forget()
            if len(header) < _NAME_AT + len(self._name):
                return  # missing, or its creator was killed
            if (header[: len(_MAGIC)], header[len(_MAGIC) + _ID_BYTES :]) != (_MAGIC, self._sized_name()):
                raise CorruptValueError(f"{self.path} is not the journal of namespace {self._name.decode()!r}")
            self._header, self._end = header, len(header)
        if size < self._end:
            raise self._damaged()
        while (rest := size - self._end) >= _record.size:
            head = _read(file, self._end, _record.size)
            length, head_crc, body_crc = _record.unpack(head)
            if crc32(head[:8]) != head_crc:
                if any(_read(file, self._end, rest)):
                    raise self._damaged()
                return  # zeros, as a power cut leaves them
            if length > rest - _record.size:
                return  # truncated
            start = self._end + _record.size
            body = _read(file, start, length)
            if crc32(body) != body_crc:
                raise self._damaged()
            self._take(body, start)
            self._end = start + length

    def _take(self, body: bytes, start: int) -> None:
        at = 0
        while at < len(body):
            key_length, length = _entry.unpack_from(body, at)
            at += _entry.size
            key = body[at : at + key_length].decode()
            at += key_length
            _, old_length = self._places.pop(key, (0, None))
            if old_length is not None:
                self._live -= key_length + old_length
            if length != _REMOVED:
                self._places[key] = start + at, length
                self._live += key_length + length
                at += length

    def _sized_name(self) -> bytes:
        return len(self._name).to_bytes(2, "little") + self._name

    def _damaged(self) -> CorruptValueError:
        return CorruptValueError(f"{self.path} is damaged at byte {self._end:,}; restore it from a backup")

    # --- writing, with the lock for writing ---

    def _begin(self, file: int) -> None:
        self._header = _MAGIC + os.urandom(_ID_BYTES) + self._sized_name()
        os.ftruncate(file, 0)
        _write(file, self._header, 0)
        self._end = len(self._header)

    def _add(self, file: int, changes: Mapping[str, bytes | None]) -> None:
        parts = []
        for key, value in changes.items():
            name = key.encode()
            parts += [_entry.pack(len(name), _REMOVED if value is None else len(value)), name, value or b""]
        body = b"".join(parts)
        length = len(body).to_bytes(8, "little")
        os.ftruncate(file, self._end)  # a truncated record
        try:
            _write(file, _record.pack(len(body), crc32(length), crc32(body)) + body, self._end)
        except BaseException:
            os.ftruncate(file, self._end)
            raise
        self._take(body, self._end + _record.size)
        self._end += _record.size + len(body)

    def _shorten(self, file: int) -> None:
        """Replace the file by one with only the current items. If that fails, this file stays."""
        new = self.path.with_suffix(".new")
        shorter = Journal(new, self._name.decode())
        try:
            copy = os.open(new, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
            try:
                shorter._begin(copy)
                for key, place in self._places.items():
                    shorter._add(copy, {key: _read(file, *place)})
                os.fsync(copy)
            finally:
                os.close(copy)
            new.replace(self.path)
        except OSError:
            new.unlink(missing_ok=True)


def namespace_of(file: Path) -> str | None:
    """Return the namespace whose journal `file` is; None if it is still empty. Raises OSError, CorruptValueError."""
    with file.open("rb") as opened:
        header = opened.read(_NAME_AT)
        name = opened.read(int.from_bytes(header[-2:], "little"))
    if len(header) < _NAME_AT:
        return None
    if not header.startswith(_MAGIC):
        raise CorruptValueError(f"{file} is no journal; move it away, or restore it from a backup")
    return name.decode()


@contextlib.contextmanager
def errors_of(path: Path) -> Iterator[None]:
    """Raise an OSError of the block as the matching error of hutch."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise StorageFullError(f"no room to write {path}; what was stored before is intact") from error
        raise StorageUnavailableError(f"cannot use {path}: {error.strerror}") from error


def _read(file: int, position: int, length: int) -> bytes:
    parts = []
    while length and (part := os.pread(file, length, position)):
        parts.append(part)
        position, length = position + len(part), length - len(part)
    return b"".join(parts)


def _write(file: int, data: bytes, position: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(file, view, position)
        view, position = view[written:], position + written


_journals: weakref.WeakSet[Journal] = weakref.WeakSet()


def _after_fork() -> None:
    for journal in _journals:
        journal.after_fork()


os.register_at_fork(after_in_child=_after_fork)
