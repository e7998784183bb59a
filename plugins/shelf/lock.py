"""The lock that excludes other processes from a namespace. The operating system releases it when the process ends."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from hutch import StoreLockedError
from hutch.filesystem import open_existing, open_or_create, validate_regular_file
from hutch.handlers import raised_by_handler, suppress_own

from .files import storage_error, storage_errors

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

_MAX_PID_DIGITS = 20


class ProcessLock:
    """The lock of the process that has a namespace open, held from the construction of this object."""

    #: Release the lock; in a forked child only the child's share, because closing does not unlock. A C function, so
    #: that to a signal handler it is atomic.
    release: Callable[[], None]

    def __init__(self, path: Path, namespace: str) -> None:
        """Take the lock without waiting. Raises StoreLockedError, which names the holder if known."""
        self._path = path
        with storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open_or_create(path)
        self.release = self._file.close
        try:
            _lock_now(self._file, path, namespace, to_read=False)
            with suppress_own(OSError):  # on a full disk; the process id is only information
                self._file.truncate(0)
                self._file.write(str(os.getpid()).encode())
        except BaseException:
            self.release()
            raise

    def is_in_place(self) -> bool:
        """Return whether other processes that open the namespace would encounter this lock."""
        try:
            return os.path.samestat(os.fstat(self._file.fileno()), self._path.lstat())
        except (OSError, ValueError) as error:  # ValueError: released meanwhile
            if raised_by_handler(error):
                raise
            return False


class ReaderLock:
    """A shared lock on the lock file, which excludes writers. A missing lock file is not created."""

    def __init__(self, path: Path, namespace: str) -> None:
        """Take the lock without waiting. Raises StoreLockedError, as `ProcessLock` does."""
        with storage_errors(path):
            self._file = open_existing(path) if validate_regular_file(path) is not None else None
        #: Whether there is a lock file.
        self.is_held = self._file is not None
        self.release: Callable[[], None] = (lambda: None) if self._file is None else self._file.close
        if self._file is not None:
            try:
                _lock_now(self._file, path, namespace, to_read=True)
            except BaseException:
                self.release()
                raise


@contextlib.contextmanager
def exclude_writers(path: Path, namespace: str) -> Iterator[None]:
    """Hold a `ReaderLock` on `path` during the block. Several processes may read at a time."""
    lock = ReaderLock(path, namespace)
    try:
        yield
    finally:
        lock.release()


def _lock_now(file: io.FileIO, path: Path, namespace: str, *, to_read: bool) -> None:
    try:
        _lock(file.fileno(), to_read)
    except OSError as error:
        if raised_by_handler(error):
            raise
        if error.errno not in (errno.EAGAIN, errno.EACCES, errno.EDEADLK):
            raise storage_error(error, path) from error
        raise StoreLockedError(
            f"namespace {namespace!r} in {path.parent.parent} is open in another process{_holder(file)} (lock {path}); "
            "the shelf engine serves one process at a time. Close it there, or choose lmdb or sqlite to share data"
        ) from error


def _holder(file: io.FileIO) -> str:
    digits = b""
    with suppress_own(OSError):
        file.seek(0)
        digits = file.read(_MAX_PID_DIGITS)
    return f", pid {int(digits)}" if digits.isdigit() else ""


if sys.platform == "win32":
    # Far beyond the process id, which others must be able to read.
    _LOCKED_BYTE = 1 << 20

    def _lock(descriptor: int, _to_read: bool) -> None:  # always exclusive on Windows
        os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        os.lseek(descriptor, 0, os.SEEK_SET)

else:

    def _lock(descriptor: int, to_read: bool) -> None:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if to_read else fcntl.LOCK_EX) | fcntl.LOCK_NB)
