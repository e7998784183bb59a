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
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from struct import unpack_from
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, cast

from hutch import CorruptValueError, StorageTimeoutError, StorageUnavailableError, StoreNotOpenError
from hutch.filesystem import flush_folder, is_missing, open_existing, reason_not_writable
from hutch.handlers import raised_by_handler

from .pages import (
    BRANCH,
    DEEPEST,
    HEAD_BYTES,
    HEADER,
    HEADER_BYTES,
    IS_LARGE,
    IS_META,
    LARGE,
    LEAF,
    MAGIC,
    META,
    NO_ROOT,
    NODE,
    NUMBERS,
    OVERFLOW,
    PAGE_SIZES,
    TAIL,
    TREE,
    VERSION,
)

if TYPE_CHECKING:
    import io

    from .slot import Txn

T = TypeVar("T")

# How often unreadable pages are read again although no header has changed, before they count as damage.
_DAMAGED_READS = 10
_LONGEST_PAUSE_S = 0.002


class _BadPageError(Exception):
    """A page that cannot be what it should be: overwritten meanwhile, or damaged."""


def reason_to_read_pages(folder: Path, readonly: bool) -> str | None:
    """Return why LMDB cannot open `folder`, or None if it can, or if there is no store yet.

    It needs permission to write to both files. With `readonly`, a missing lock file is not created either.
    """
    data, lock = folder / "data.mdb", folder / "lock.mdb"
    if is_missing(data):
        return None
    if (reason := reason_not_writable(data)) is not None:
        return reason
    if not is_missing(lock):
        return reason_not_writable(lock)
    return f"{lock} does not exist" if readonly else reason_not_writable(folder)


class PageEnvironment:
    """The reading half of `Environment`, for one process without a lock. Thread-safe, and usable after a fork."""

    #: A short read is seldom overtaken by a commit.
    reads_large_chunks = False

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
                except (_BadPageError, CorruptValueError) as error:
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
            time.sleep(random.uniform(0, pause_s))  # noqa: S311 - not in step with the writer
            pause_s = min(pause_s * 2 or 0.00001, _LONGEST_PAUSE_S)

    def write(self, *_: object) -> NoReturn:
        raise StorageUnavailableError(
            f"lmdb {self.path}: it can only be read here: {self._reason}; nothing was written. Permit this process to "
            "write to the folder and its files, and connect again"
        )

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
        size = self._data.stat().st_size
        return {"path": str(self.path), "durability": self.durability, "file_bytes": size, "reads": "without a lock"}

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


class _Page:
    """A branch or a leaf. Its items are examined only when they are needed."""

    __slots__ = ("_data", "_is_leaf", "_number", "_offsets", "_upper")

    def __init__(self, data: bytes, number: int, is_leaf: bool, bounds: tuple[int, int]) -> None:
        lower, self._upper = bounds
        if lower % 2 or not 0 < lower <= self._upper <= len(data) - HEADER_BYTES:
            raise _BadPageError(f"page {number} has a damaged header")
        self._data, self._number, self._is_leaf = data, number, is_leaf
        # Relative to the end of the page's header.
        self._offsets = unpack_from(f"={lower // 2}H", data, HEADER_BYTES)

    def __len__(self) -> int:
        return len(self._offsets)

    def key(self, index: int) -> bytes:
        _, _, _, begins, ends = self._node(index)
        return self._data[begins:ends]

    def child(self, index: int) -> int:
        """Return the page that an item of a branch refers to."""
        low, high, flags, _, _ = self._node(index)
        return low | high << 16 | flags << 32

    def value(self, index: int) -> tuple[int, bytes, bool]:
        """Return size and data of an item of a leaf, and whether the data is the place of a large value."""
        low, high, flags, _, ends = self._node(index)
        size = low | high << 16
        begins = ends + (ends % 2)  # keys are padded, and pages begin at even positions
        stored = LARGE.size if flags else size
        data = self._data[begins : begins + stored]
        if flags not in (0, IS_LARGE) or len(data) != stored:
            raise _BadPageError(f"page {self._number} has an item of an unknown kind or size")
        return size, data, bool(flags)

    def find(self, key: bytes) -> int:
        """Return the index of `key` or the first greater key; in a branch, of the child that `key` belongs to."""
        # The first key of a branch has no meaning.
        low, high = (0, len(self)) if self._is_leaf else (1, len(self))
        while low < high:
            middle = (low + high) // 2
            found = self.key(middle)
            if found < key or (found == key and not self._is_leaf):
                low = middle + 1
            else:
                high = middle
        return low if self._is_leaf else low - 1

    def _node(self, index: int) -> tuple[int, int, int, int, int]:
        """Return low, high and flags of an item, and where its key begins and ends."""
        offset = self._offsets[index]
        if not self._upper <= offset <= len(self._data) - HEADER_BYTES - NODE.size:
            raise _BadPageError(f"page {self._number} has an item outside itself")
        low, high, flags, key_bytes = NODE.unpack_from(self._data, offset + HEADER_BYTES)
        begins = offset + HEADER_BYTES + NODE.size
        return low, high, flags, begins, begins + key_bytes


#: The pages from the root to a leaf, each with an index in it.
_Ways = list[tuple[_Page, int]]


_COUNTS = ("branch_pages", "leaf_pages", "overflow_pages", "entries")


class Snapshot:
    """One state of the file, with the methods of a read transaction of LMDB that hutch uses. Never crashes.

    Every method may raise _BadPageError, or return something wrong, if the pages are overwritten meanwhile.
    """

    def __init__(self, descriptor: int, heads: bytes, page_bytes: int) -> None:
        self._descriptor, self._page_bytes = descriptor, page_bytes
        found = max((_head(heads, number, page_bytes) for number in (0, 1)), key=lambda head: int(head[0]))
        self._txn_id, self._pages, (_, _, self._depth, *self._counts, self._root) = found
        if self._depth > DEEPEST or (self._root == NO_ROOT) != (self._depth == 0):
            raise _BadPageError("the depth of its tree is impossible")

    def id(self) -> int:
        return self._txn_id

    def stat(self) -> dict[str, int]:
        return {"psize": self._page_bytes, **dict(zip(_COUNTS, self._counts, strict=True))}

    def abort(self) -> None:
        pass

    def get(self, key: bytes) -> bytes | None:
        cursor = Cursor(self)
        return cursor.value() if cursor.set_key(key) else None

    def cursor(self) -> Cursor:
        return Cursor(self)

    def ways(self, key: bytes | None) -> _Ways:
        """Return the way from the root to the leaf of `key` (None: to the last leaf)."""
        return self.way_down(self._root, self._depth, lambda page: len(page) - 1 if key is None else page.find(key))

    def way_down(self, number: int, levels: int, choose: Callable[[_Page], int]) -> _Ways:
        """Return the way from page `number` down `levels`; `choose` returns the index to take in a page."""
        found: _Ways = []
        for level in range(1, levels + 1):
            page = self._page(number, level == levels)
            index = choose(page)
            found.append((page, index))
            if level < levels:
                number = page.child(index)
        return found

    def value(self, page: _Page, index: int) -> bytes:
        size, data, is_large = page.value(index)
        if not is_large:
            return data
        start, _, pages = LARGE.unpack(data)
        if pages != (HEADER_BYTES - 1 + size) // self._page_bytes + 1 or not 2 <= start <= start + pages <= self._pages:
            raise _BadPageError(f"the place of a value, page {start}, is impossible")
        stored = self._read(start, HEADER_BYTES + size)
        self._validate(stored, start, OVERFLOW)
        return stored[HEADER_BYTES:]

    def _read(self, number: int, size: int) -> bytes:
        data = os.pread(self._descriptor, size, number * self._page_bytes)
        while len(data) < size:
            more = os.pread(self._descriptor, size - len(data), number * self._page_bytes + len(data))
            if not more:
                raise _BadPageError(f"page {number} lies beyond the end of the file")
            data += more
        return data

    def _validate(self, page: bytes, number: int, kind: int) -> tuple[int, int]:
        own, txn_id, _, flags, lower, upper = HEADER.unpack_from(page)
        if own != number or flags != kind or txn_id > self._txn_id:
            raise _BadPageError(f"page {number} is not the page that belongs there")
        return lower, upper

    def _page(self, number: int, is_leaf: bool) -> _Page:
        if not 2 <= number < self._pages:
            raise _BadPageError(f"page {number} is out of range")
        data = self._read(number, self._page_bytes)
        return _Page(data, number, is_leaf, self._validate(data, number, LEAF if is_leaf else BRANCH))


class Cursor:
    """The methods of a cursor of LMDB that hutch uses."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        # Empty: not on a key.
        self._ways: _Ways = []

    def set_range(self, key: bytes) -> bool:
        """Move to the first key that is `key` or greater; return whether there is one."""
        self._ways = self._snapshot.ways(key)
        if self._ways and self._ways[-1][1] >= len(self._ways[-1][0]):
            return self._step(1)
        return bool(self._ways)

    def set_key(self, key: bytes) -> bool:
        return self.set_range(key) and self.key() == key

    def last(self) -> bool:
        self._ways = self._snapshot.ways(None)
        return bool(self._ways)

    def next(self) -> bool:
        return self._step(1)

    def prev(self) -> bool:
        return self._step(-1)

    def key(self) -> bytes:
        if not self._ways:
            return b""
        page, index = self._ways[-1]
        return page.key(index)

    def value(self) -> bytes:
        return self._snapshot.value(*self._ways[-1]) if self._ways else b""

    def __iter__(self) -> Iterator[tuple[bytes, bytes]]:
        self.set_range(b"")
        return self._iterate(1, True)

    def iternext(self, keys: bool = True, values: bool = True) -> Iterator[Any]:
        return self._iterate(1, values)

    def iterprev(self, keys: bool = True, values: bool = True) -> Iterator[Any]:
        return self._iterate(-1, values)

    def _iterate(self, step: int, values: bool) -> Iterator[Any]:
        while self._ways:
            yield (self.key(), self.value()) if values else self.key()
            self._step(step)

    def _step(self, step: int) -> bool:
        """Move to the next key, or to the one before; return whether there is one."""
        depth = len(self._ways)
        while self._ways:
            page, index = self._ways.pop()
            index += step
            if 0 <= index < len(page):
                self._ways.append((page, index))
                levels = depth - len(self._ways)
                if levels:
                    end = (lambda page: len(page) - 1) if step < 0 else (lambda page: 0)
                    self._ways += self._snapshot.way_down(page.child(index), levels, end)
                return True
        return False


def _head(heads: bytes, number: int, page_bytes: int) -> tuple[int, int, tuple[int, ...]]:
    """Return transaction id, number of pages and main tree of header `number`."""
    if len(heads) < page_bytes + HEAD_BYTES:
        raise _BadPageError("its headers are truncated")
    at = number * page_bytes
    page, _, _, flags, _, _ = HEADER.unpack_from(heads, at)
    magic, version, _, _ = META.unpack_from(heads, at + HEADER_BYTES)
    at += HEADER_BYTES + META.size
    free = TREE.unpack_from(heads, at)
    if (page, flags, magic, version, free[0], free[1]) != (number, IS_META, MAGIC, VERSION, page_bytes, NUMBERS):
        raise _BadPageError(f"its header {number} is damaged")
    last_page, txn_id = TAIL.unpack_from(heads, at + 2 * TREE.size)
    return txn_id, last_page + 1, TREE.unpack_from(heads, at + TREE.size)
