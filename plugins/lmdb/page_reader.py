"""Read a store without LMDB and without its lock file: for a reader that has no permission to write.

LMDB notes each reader in lock.mdb, so that a writer reuses no page that the reader still needs. A reader that cannot
write there reads the pages itself, and then looks whether anything was committed meanwhile. Nothing in a page of
transaction T is overwritten before T + 1 has been committed: the pages that T + 1 frees are reused only by later
transactions. So what was read is right if both headers of the file are still the same; otherwise it is read again.

LMDB itself cannot read that way: a page that changes under its hands can end the process. Here, such a page is at worst
an exception. Pages are read with `pread`, never through a map, which a truncated file would turn into a crash.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TypeVar, cast

from hutch import CorruptValueError, StorageTimeoutError, StorageUnavailableError, StoreNotOpenError
from hutch.filesystem import flush_folder, is_missing, open_existing
from hutch.handlers import raised_by_handler

from .files import FORMAT, library_version
from .pages import HEAD_BYTES, HEADER_BYTES, MAGIC, META, PAGE_SIZES, TREE, VERSION
from .snapshot import BadPageError, Snapshot

if TYPE_CHECKING:
    import io

    from .slot import Txn

T = TypeVar("T")

# How often unreadable pages are read again although no header has changed, before they count as damage.
_DAMAGED_READS = 10
_LONGEST_PAUSE_S = 0.002


class PageEnvironment:
    """The reading half of `Environment`, for one process without a lock. Thread-safe, and usable after a fork."""

    #: A short read is seldom overtaken by a commit.
    reads_large_chunks = False
    #: One per factory.
    is_shared = False

    def __init__(self, path: Path, durability: str, wait_s: float, reason: str) -> None:
        """Open the data file. Raises StorageUnavailableError, CorruptValueError."""
        self.path = Path(os.path.realpath(path))
        self.durability = durability
        self._wait_s = wait_s
        self._reason = reason
        self._data = self.path / "data.mdb"
        # The file in use, and those that were replaced at the path. All are closed by `close`.
        self._files: list[io.FileIO] = []
        self._identity = (0, 0)
        self._page_bytes = 0
        self.users: set[object] = set()
        self.expiring: set[bytes] = set()

    def begin(self) -> _Reader:
        return _Reader(self)

    def read(self, fn: Callable[[Txn], T], nothing: T) -> T:
        """Return ``fn(snapshot)`` of one state of the store, or `nothing` if it was never written to."""
        if is_missing(self._data):
            return nothing
        return self.validated(cast("Callable[[Snapshot], T]", fn))

    def validated(self, fn: Callable[[Snapshot], T]) -> T:
        """Return ``fn(snapshot)``, called again until no other process has committed meanwhile.

        Raises StorageTimeoutError after `wait_s` seconds, CorruptValueError, StorageUnavailableError.
        """
        deadline_s = time.monotonic() + self._wait_s
        damaged, pause_s = 0, 0.0
        while True:
            try:
                file = self._file()
                heads = self._heads(file)
                failure: Exception | None = None
                try:
                    result = fn(Snapshot(file.fileno(), heads, self._page_bytes))
                except (BadPageError, CorruptValueError) as error:
                    if raised_by_handler(error):
                        raise
                    failure = error
                is_unchanged = heads == self._heads(file)
            except OSError as error:
                if raised_by_handler(error):
                    raise
                raise StorageUnavailableError(f"lmdb {self.path}: reading failed: {error.strerror or error}") from error
            if is_unchanged and failure is None:
                return result
            if is_unchanged:
                damaged += 1
                if damaged >= _DAMAGED_READS:
                    self._raise_damage(failure)
            elif time.monotonic() > deadline_s:
                raise StorageTimeoutError(
                    f"lmdb {self.path}: other processes wrote too often for a reader without a lock for "
                    f"{self._wait_s:g} seconds ({self._reason}). Read less at a time, or permit this process to write "
                    "to lock.mdb and data.mdb"
                )
            time.sleep(pause_s * os.urandom(1)[0] / 255)  # not in step with the writer
            pause_s = min(pause_s * 2 or 0.00001, _LONGEST_PAUSE_S)

    def write(self, *_: object) -> NoReturn:
        raise StorageUnavailableError(
            f"lmdb {self.path}: it can only be read here: {self._reason}; nothing was written. Permit this process to "
            "write to the folder and its files, and connect again"
        )

    def compact(self) -> NoReturn:
        self.write()

    def copy_to(self, folder: Path) -> None:
        """Write a compact copy of the store to the new folder `folder`, as `Environment.copy_to` does."""
        from .copying import copy_to

        folder.mkdir(0o700)
        self.validated(lambda snapshot: copy_to(cast("Txn", snapshot), folder))
        (folder / "lock.mdb").unlink(missing_ok=True)
        flush_folder(folder)

    def last_txn_id(self) -> int:
        return self.validated(Snapshot.id)

    def figures(self) -> dict[str, object]:
        return {
            "path": str(self.path),
            "durability": self.durability,
            "bytes": self._data.stat().st_size,
            "version": library_version(FORMAT),
            "reads": "without a lock",
        }

    def close(self) -> None:
        for file in self._files:
            file.close()

    def _file(self) -> io.FileIO:
        """Return the open data file; open it anew if another file has replaced it, as a repair or compaction does."""
        status = os.stat(self._data)  # noqa: PTH116 - half the time of Path.stat
        if (status.st_dev, status.st_ino) != self._identity or not self._files:
            self._files.append(open_existing(self._data))
            opened = os.fstat(self._files[-1].fileno())
            self._identity = opened.st_dev, opened.st_ino
        file = self._files[-1]
        if file.closed:
            raise StoreNotOpenError(f"lmdb {self.path} is closed")
        return file

    def _heads(self, file: io.FileIO) -> bytes:
        """Return the bytes of both headers."""
        if not self._page_bytes:
            self._page_bytes = self._find_page_bytes(os.pread(file.fileno(), HEAD_BYTES, 0))
        return os.pread(file.fileno(), self._page_bytes + HEAD_BYTES, 0)

    def _find_page_bytes(self, head: bytes) -> int:
        if len(head) == HEAD_BYTES and META.unpack_from(head, HEADER_BYTES)[:2] == (MAGIC, VERSION):
            page_bytes = int(TREE.unpack_from(head, HEADER_BYTES + META.size)[0])
            if page_bytes in PAGE_SIZES:
                return page_bytes
        raise CorruptValueError(f"{self._data} is damaged, or is not an LMDB 1.0 file. Restore it from a copy")

    def _raise_damage(self, failure: Exception | None) -> NoReturn:
        if isinstance(failure, CorruptValueError):
            raise failure
        raise CorruptValueError(f"lmdb {self._data} is damaged: {failure}; see hutch check") from failure


class _Reader:
    """The transaction that `PageEnvironment.begin` returns: each of its calls reads the latest state."""

    __slots__ = ("_environment",)

    def __init__(self, environment: PageEnvironment) -> None:
        self._environment = environment

    def get(self, key: bytes) -> bytes | None:
        return self._environment.validated(lambda snapshot: snapshot.get(key))

    def id(self) -> int:
        return self._environment.last_txn_id()

    def cursor(self) -> _Reader:
        return self

    def set_key(self, key: bytes) -> bool:
        return self._environment.validated(lambda snapshot: snapshot.cursor().set_key(key))
