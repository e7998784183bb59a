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
import io
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from struct import Struct
from typing import TypeVar
from zlib import crc32

from hutch import ConflictError, CorruptValueError, StorageFullError, StorageUnavailableError
from hutch.handlers import raised_by_handler
from hutch.locks import FairLock

T = TypeVar("T")

_MAGIC = b"hutch-j1"
_ID_BYTES = 16
_NAME_AT = len(_MAGIC) + _ID_BYTES + 2
_record = Struct("<QII")
_entry = Struct("<Hq")
_REMOVED = -1
# With fewer bytes of replaced items, a file is not worth compacting.
_LEAST_WASTE_BYTES = 256 * 1024
# How long a thread waits for the others of its process.
_WAIT_S = 60.0
# One per file, whatever number of stores uses it. `setdefault` is one C call, so no signal handler makes a second.
_locks: dict[str, FairLock] = {}


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
    """One file, read and appended to by any number of threads and processes.

    Each call opens the file and locks it. Earlier reads are remembered; records that others appended since are read
    first. A signal handler or finalizer may run in the middle of a call, raise, and use the same file:

    - A lock or an open file is released by the first operation of a `finally`, or with its object.
    - A call takes the `Content` away and puts it back at its end. After an exception, and in a nested call or a forked
      child, it is read anew from the file.
    - A nested call does not wait for the lock on the file, which the interrupted call may hold: it is refused.
    """

    def __init__(self, path: Path, namespace: str) -> None:
        self.path = path  # the same for every user of the file, who share a lock by it
        self._name = namespace.encode()
        self._content: Content | None = None
        self._lock = _locks.setdefault(str(path), FairLock(str(path)))

    def read(self, work: Callable[[View], T]) -> T:
        """Return ``work(view)``, while no other thread or process writes."""
        return self._run(False, lambda file, content: work(View(file, content.places)))

    def change(self, decide: Callable[[View], Mapping[str, bytes | None]]) -> int:
        """Append ``decide(view)``, values by key or None to remove one, as a record; return how many keys.

        No other process writes between the two, and none sees a part of the record.
        """

        def work(file: int, content: Content) -> int:
            if not content.header:
                content.begin(file)
            changes = decide(View(file, content.places))
            if changes:
                content.add(file, changes)
                if content.end - content.live > max(_LEAST_WASTE_BYTES, content.live):
                    self._shorten(file, content)
            return len(changes)

        return self._run(True, work)

    def _run(self, writes: bool, work: Callable[[int, Content], T]) -> T:
        """Return ``work(descriptor, content)`` with the file locked; -1 is the descriptor of a missing file.

        Raises ConflictError in a nested call whose lock on the file is not free.
        """
        lock = fcntl.LOCK_EX if writes else fcntl.LOCK_SH
        if self._lock.is_mine():  # this thread is in the middle of another call
            lock |= fcntl.LOCK_NB
        result: T = self._lock.run(_WAIT_S, self._run_alone, writes, lock, work)
        return result

    def _run_alone(self, writes: bool, lock: int, work: Callable[[int, Content], T]) -> T:
        with errors_of(self.path):
            while True:
                file = self._opened(writes)
                if file is None:
                    return work(-1, Content(self.path, self._name))
                try:
                    self._wait_for(file, lock)
                    if self._is_in_place(file):  # otherwise a compacted file replaced it during the wait
                        return self._work_on(file.fileno(), work)
                finally:
                    try:
                        fcntl.flock(file, fcntl.LOCK_UN)  # closing does not unlock while a forked process has a copy
                    finally:
                        file.close()

    def _work_on(self, file: int, work: Callable[[int, Content], T]) -> T:
        content, self._content = self._content, None
        if content is None or not content.is_of(file):
            content = Content(self.path, self._name)
        content.catch_up(file)
        result = work(file, content)
        self._content = content
        return result

    def _opened(self, writes: bool) -> io.FileIO | None:
        """Open the file, created if it is to be written; None if it does not exist."""
        # FileIO opens in one C call, and closes itself if a handler raises before it is assigned to a variable.
        try:
            return io.FileIO(self.path, "r+" if writes else "r")
        except FileNotFoundError as error:
            if raised_by_handler(error):
                raise
        if not writes:
            return None
        self.path.parent.mkdir(parents=True, exist_ok=True)
        io.FileIO(self.path, "a").close()
        return io.FileIO(self.path, "r+")

    def _wait_for(self, file: io.FileIO, lock: int) -> None:
        try:
            fcntl.flock(file, lock)
        except BlockingIOError as error:
            if raised_by_handler(error):
                raise
            raise ConflictError(
                f"{self.path} is locked, by another process or by the call of this thread that a signal handler or a "
                "finalizer interrupted to use the same namespace; nothing was written. Use it when that call has "
                "returned"
            ) from error

    def _is_in_place(self, file: io.FileIO) -> bool:
        try:
            status = self.path.stat()
        except FileNotFoundError as error:
            if raised_by_handler(error):
                raise
            return False
        return os.path.samestat(os.fstat(file.fileno()), status)

    def _shorten(self, file: int, content: Content) -> None:
        """Replace the file by one with only the current items. If that fails, this file stays."""
        new = self.path.with_suffix(".new")
        try:
            with io.FileIO(new, "w+") as copy:
                shorter = Content(self.path, self._name)
                shorter.begin(copy.fileno())
                for key, place in content.places.items():
                    shorter.add(copy.fileno(), {key: _read(file, *place)})
                os.fsync(copy.fileno())
            new.replace(self.path)
        except BaseException as error:
            new.unlink(missing_ok=True)
            if not isinstance(error, OSError) or raised_by_handler(error):
                raise


class Content:
    """What a file contains: the places of its values. The caller has locked the file.

    After an exception it may differ from the file; read a new one.
    """

    def __init__(self, path: Path, name: bytes) -> None:
        self._path, self._name = path, name
        self.header = b""
        self.places: dict[str, tuple[int, int]] = {}  # of each key, the position and length of its value
        self.end = 0  # of the last complete record
        self.live = 0  # bytes of current keys and values

    # --- reading ---

    def is_of(self, file: int) -> bool:
        """Return whether this is what `file` contains, apart from new records."""
        return _read(file, 0, len(self.header)) == self.header

    def catch_up(self, file: int) -> None:
        """Read the new records."""
        size = os.fstat(file).st_size
        if not self.header:
            header = _read(file, 0, _NAME_AT + len(self._name))
            if len(header) < _NAME_AT + len(self._name):
                return  # its creator was killed
            if (header[: len(_MAGIC)], header[len(_MAGIC) + _ID_BYTES :]) != (_MAGIC, self._sized_name()):
                raise CorruptValueError(f"{self._path} is not the journal of namespace {self._name.decode()!r}")
            self.header, self.end = header, len(header)
        if size < self.end:
            raise self._damaged()
        while (rest := size - self.end) >= _record.size:
            head = _read(file, self.end, _record.size)
            length, head_crc, body_crc = _record.unpack(head)
            if crc32(head[:8]) != head_crc:
                if any(_read(file, self.end, rest)):
                    raise self._damaged()
                return  # zeros, as a power cut leaves them
            if length > rest - _record.size:
                return  # truncated
            start = self.end + _record.size
            body = _read(file, start, length)
            if crc32(body) != body_crc:
                raise self._damaged()
            self._take(body, start)
            self.end = start + length

    def _take(self, body: bytes, start: int) -> None:
        at = 0
        while at < len(body):
            key_length, length = _entry.unpack_from(body, at)
            at += _entry.size
            key = body[at : at + key_length].decode()
            at += key_length
            _, old_length = self.places.pop(key, (0, None))
            if old_length is not None:
                self.live -= key_length + old_length
            if length != _REMOVED:
                self.places[key] = start + at, length
                self.live += key_length + length
                at += length

    def _sized_name(self) -> bytes:
        return len(self._name).to_bytes(2, "little") + self._name

    def _damaged(self) -> CorruptValueError:
        return CorruptValueError(f"{self._path} is damaged at byte {self.end:,}; restore it from a backup")

    # --- writing ---

    def begin(self, file: int) -> None:
        """Make the file an empty journal."""
        self.header = _MAGIC + os.urandom(_ID_BYTES) + self._sized_name()
        os.ftruncate(file, 0)
        _write(file, self.header, 0)
        self.end = len(self.header)

    def add(self, file: int, changes: Mapping[str, bytes | None]) -> None:
        """Append a record with `changes`."""
        parts = []
        for key, value in changes.items():
            name = key.encode()
            parts += [_entry.pack(len(name), _REMOVED if value is None else len(value)), name, value or b""]
        body = b"".join(parts)
        length = len(body).to_bytes(8, "little")
        os.ftruncate(file, self.end)  # a truncated record
        try:
            _write(file, _record.pack(len(body), crc32(length), crc32(body)) + body, self.end)
        except BaseException:
            os.ftruncate(file, self.end)
            raise
        self._take(body, self.end + _record.size)
        self.end += _record.size + len(body)


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
        if raised_by_handler(error):
            raise
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
