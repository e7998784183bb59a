"""Translate errors of SQLite and the system into StoreErrors, and find the holder of a file's write lock."""

from __future__ import annotations

import errno
import os
import sqlite3
from pathlib import Path
from typing import TypeGuard

from hutch import CorruptValueError, StorageFullError, StorageTimeoutError, StorageUnavailableError, StoreError
from hutch.filesystem import error_of_new_file
from hutch.handlers import raised_by_handler

_BUSY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL}
_DAMAGED = {
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_NOTADB,
    sqlite3.SQLITE_ERROR,  # a table or a column is missing
    sqlite3.SQLITE_CONSTRAINT,
    sqlite3.SQLITE_MISMATCH,
    0,  # text that is not UTF-8: reported by Python, not by SQLite
}
# SQLite reports FULL only for ENOSPC. Quotas and file size limits (EDQUOT, EFBIG) end in these codes.
_REFUSED_WRITES = {sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_TRUNCATE, sqlite3.SQLITE_IOERR_SHMSIZE}
_NO_ROOM = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
# SQLite's write lock is a lock on this byte of the "-shm" file (WAL_WRITE_LOCK in its wal.c and os_unix.c).
_WRITE_LOCK_BYTE = 120


def is_from_sqlite(error: BaseException) -> TypeGuard[sqlite3.Error]:
    """Return whether SQLite raised `error`, rather than a signal handler that interrupted one of its calls."""
    return isinstance(error, sqlite3.Error) and not raised_by_handler(error)


def is_busy(error: sqlite3.Error) -> bool:
    """Return whether SQLite failed because another connection holds the file."""
    return _code(error) in _BUSY


def explain(error: sqlite3.Error, path: Path, wait_s: float) -> StoreError:
    """Return the StoreError for an error that SQLite raised about the database at `path`."""
    code = _code(error)
    # Python's own message for this would quote the value.
    said = "a text in it is not UTF-8" if str(error).startswith("Could not decode") else str(error)
    where = f"{path}: SQLite says {said!r}"
    if code in _BUSY:
        return StorageTimeoutError(
            f"{path} was kept busy by {_holder(path)} for {wait_s:g} s; nothing was written. Try again, or raise the "
            "option wait_s"
        )
    if code == sqlite3.SQLITE_FULL:
        return StorageFullError(f"{where}. Nothing was written, what was stored is intact; make room on the disk")
    if code in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN) and (reason := error_of_new_file(path.parent)):
        if reason.errno in _NO_ROOM:
            return StorageFullError(
                f"{where}, the system {reason.strerror!r}. Nothing was written, what was stored is intact; make "
                "room on the disk"
            )
        return StorageUnavailableError(
            f"{where}, the system {reason.strerror!r}. Nothing was written, what was stored is intact"
        )
    if getattr(error, "sqlite_errorcode", 0) in _REFUSED_WRITES:
        return StorageFullError(
            f"{where}. Nothing was written, what was stored is intact; the file has met a quota or a limit of file "
            "size, or else the disk is failing"
        )
    if code in _DAMAGED:
        return CorruptValueError(
            f"{where}. It is damaged, or not a database of hutch; nothing was changed. Restore it from a backup"
        )
    return StorageUnavailableError(
        f"{where}. This process must be able to write to the file and its folder, also in order to read"
    )


def storage_error(path: Path, what: str, error: OSError) -> StoreError:
    """Return the StoreError for an error that the system raised about `path`."""
    kind = StorageFullError if error.errno in _NO_ROOM else StorageUnavailableError
    return kind(f"{path}: {what}: {error.strerror or error}")


def _code(error: sqlite3.Error) -> int:
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


def _holder(path: Path) -> str:
    """Return a description of the process that holds the write lock, if the system reports it (Linux does)."""
    try:
        inode = os.stat(f"{path}-shm").st_ino  # noqa: PTH116
        locks = Path("/proc/locks").read_text().splitlines()
    except OSError as error:
        if raised_by_handler(error):
            raise
        return "other processes"
    # "7: POSIX  ADVISORY  WRITE 4711 fe:01:1234567 120 120"; a line with "->" is a process that waits for the lock.
    for _, *fields in map(str.split, locks):
        if len(fields) == 7 and fields[2] == "WRITE" and fields[4].endswith(f":{inode}"):
            pid, first, last = fields[3], fields[5], fields[6]
            if int(first) <= _WRITE_LOCK_BYTE and (last == "EOF" or int(last) >= _WRITE_LOCK_BYTE):
                return _described(pid)
    return "other processes"


def _described(pid: str) -> str:
    if pid == str(os.getpid()):
        return "another connection of this process"
    try:
        name, _, rest = Path(f"/proc/{pid}/stat").read_text().partition(" (")[2].rpartition(") ")
    except OSError as error:
        if raised_by_handler(error):
            raise
        return f"process {pid}"
    stopped = ", which is stopped," if rest[:1] in ("T", "t") else ""
    return f"process {pid} ({name!r}){stopped}"
