"""Copy an LMDB folder to a new, compact one, and replace data.mdb by such a copy.

LMDB's own copy is not used: it reads the map in C code without the interpreter's lock, while another thread may move
the map to grow it, or a fork may close it. A read transaction that loses its map ends with an error instead, and
`Environment.read` starts the copy again. It also ends on Ctrl-C, and never waits for the writer's mutex.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lmdb

from hutch import CapabilityError, CorruptValueError, StorageFullError, StorageUnavailableError, StoreLockedError
from hutch.filesystem import copy_permissions, flush_folder, open_existing
from hutch.handlers import raised_by_handler

from .files import FORMAT, MAX_READERS, lmdb_name
from .layout import validate_format
from .writer_gate import LOCK_EX, LOCK_NB, lockf

if TYPE_CHECKING:
    from .slot import Txn

# A chunk is one transaction of the copy.
_CHUNK_ITEMS, _CHUNK_BYTES = 4096, 8 << 20
_SPARE_BYTES = 64 << 20
# The folder of an unfinished copy inside the store, and the byte of lock.mdb that every process with an open
# environment locks.
_UNFINISHED = "compact-"
_IN_USE_BYTE = 0


def copy_to(txn: Txn, folder: Path) -> None:
    """Write everything that `txn` reads to a new data.mdb in `folder`, flushed; replace one left by an earlier try.

    Raises StoreError if the copy cannot be written, and lmdb.Error if `txn` cannot be read.
    """
    validate_format(txn)
    figures = txn.stat()
    used_bytes = figures["psize"] * (figures["branch_pages"] + figures["leaf_pages"] + figures["overflow_pages"])
    (folder / "data.mdb").unlink(missing_ok=True)
    with _Target(folder, 2 * used_bytes + _SPARE_BYTES) as target:
        count = _copy_items(txn, target)
        if count != figures["entries"]:
            raise CorruptValueError(
                f"{folder}: a walk over the store found {count:,} entries, its own count says "
                f"{figures['entries']:,}: it is damaged. Run: hutch check"
            )
        target.finish(count)


def _copy_items(txn: Txn, target: _Target) -> int:
    # A function of its own: CPython may raise at the end of a loop outside the `with` around the loop.
    count = 0
    items = iter(txn.cursor())
    # Read each chunk before writing it, so that an error says which side failed.
    while chunk := list(_chunk(items)):
        target.append(chunk)
        count += len(chunk)
    return count


def _chunk(items: Iterator[tuple[bytes, bytes]]) -> Iterator[tuple[bytes, bytes]]:
    size = 0
    for item in islice(items, _CHUNK_ITEMS):
        yield item
        size += len(item[1])
        if size >= _CHUNK_BYTES:
            return


class _Target:
    """A new environment that no other process knows."""

    def __init__(self, folder: Path, map_size_bytes: int) -> None:
        self._folder = folder
        self._map_size_bytes = map_size_bytes
        self._env: Any = None

    def __enter__(self) -> _Target:
        self._env = self._run(self._open)
        return self

    def __exit__(self, *_: object) -> None:
        self._env.close()

    def append(self, items: list[tuple[bytes, bytes]]) -> None:
        """Add `items`, which sort after all others."""
        self._run(self._append, items)

    def finish(self, count: int) -> None:
        """Flush the file, and verify by opening it anew that it holds `count` entries."""
        self._run(self._env.sync, True)
        self._env.close()
        self._env = self._run(self._open)
        if self._run(self._env.stat)["entries"] != count:
            raise StorageUnavailableError(f"{self._folder}: the copy lacks entries that were written to it")

    def _open(self) -> Any:
        flags: dict[str, Any] = {"sync": False, "metasync": False, "lock": False, "lib_version": FORMAT}
        return lmdb.open(lmdb_name(self._folder), map_size=self._map_size_bytes, mode=0o600, **flags)

    def _append(self, items: list[tuple[bytes, bytes]]) -> None:
        with self._env.begin(write=True) as txn, txn.cursor() as cursor:
            cursor.putmulti(items, append=True)

    def _run(self, fn: Any, *args: object) -> Any:
        try:
            return fn(*args)
        except (lmdb.Error, OverflowError) as error:
            if raised_by_handler(error):
                raise
            text = str(error)
            if os.strerror(errno.ENOSPC) in text or "SHORT_WRITE" in text or isinstance(error, lmdb.DiskError):
                raise StorageFullError(
                    f"{self._folder}: no room for the copy ({text}); make room on the disk"
                ) from error
            raise StorageUnavailableError(f"{self._folder}: the copy cannot be written: {text}") from error


def replace_by_compact_copy(folder: Path) -> tuple[int, int]:
    """Replace data.mdb by a compact copy, atomically; return its bytes before and after.

    Call it only while this process does not have the folder open. Raises StoreLockedError if another process has.
    """
    if sys.platform == "win32":
        raise CapabilityError("lmdb: on Windows a store cannot be compacted in place; back it up and use the backup")
    data = folder / "data.mdb"
    with open_existing(folder / "lock.mdb", "r+b") as lock:
        try:
            # LMDB locks this byte, shared, while an environment is open; a process that opens one now waits for it.
            lockf(lock.fileno(), LOCK_EX | LOCK_NB, 1, _IN_USE_BYTE)
        except (BlockingIOError, PermissionError) as error:
            if raised_by_handler(error):
                raise
            raise StoreLockedError(
                f"lmdb {folder}: another process has the store open, and its file can be replaced only while none has; "
                "nothing was changed. Stop the application first. A backup is compact too, and can be made at any time"
            ) from error
        _remove_unfinished(folder)
        status = data.stat()
        new = folder / f"{_UNFINISHED}{os.urandom(8).hex()}"
        try:
            new.mkdir(0o700)
            _copy_closed(folder, new)
            copy_permissions(status, new / "data.mdb")
            after = (new / "data.mdb").stat().st_size
            (new / "data.mdb").replace(data)
            # A process that waits to open the folder would read the former file's last transaction id in lock.mdb: LMDB
            # writes it there only when it opens a folder that is not in use.
            lmdb.open(lmdb_name(folder), max_readers=MAX_READERS).close()
            flush_folder(folder)
        finally:
            _remove_unfinished(folder)
        return status.st_size, after


def _copy_closed(folder: Path, new: Path) -> None:
    """Copy a folder that no process has open."""
    try:
        with lmdb.open(lmdb_name(folder), readonly=True, lock=False, create=False) as env, env.begin() as txn:
            copy_to(txn, new)
    except lmdb.Error as error:
        if raised_by_handler(error):
            raise
        raise CorruptValueError(f"{folder / 'data.mdb'} cannot be read: {error}; nothing was changed") from error


def _remove_unfinished(folder: Path) -> None:
    """Remove the copies of compactions that did not finish; only the holder of the lock makes and removes them."""
    for left in folder.glob(f"{_UNFINISHED}*"):
        for file in left.iterdir():
            file.unlink()
        left.rmdir()
