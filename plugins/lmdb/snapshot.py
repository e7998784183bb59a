"""One state of data.mdb, with the methods of a read transaction of LMDB, read without LMDB.

The pages may be overwritten while they are read: see page_reader.py, which validates afterwards that they were not.
Whatever they contain, nothing here crashes, reads beyond the file or loops without end.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from struct import unpack_from
from typing import Any

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
    TAIL,
    TREE,
    VERSION,
)


class BadPageError(Exception):
    """A page that cannot be what it should be: overwritten meanwhile, or damaged."""


class _Page:
    """A branch or a leaf. Its items are examined only when they are needed."""

    __slots__ = ("_data", "_is_leaf", "_number", "_offsets", "_upper")

    def __init__(self, data: bytes, number: int, is_leaf: bool, bounds: tuple[int, int]) -> None:
        lower, self._upper = bounds
        if lower % 2 or not 0 < lower <= self._upper <= len(data) - HEADER_BYTES:
            raise BadPageError(f"page {number} has a damaged header")
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
            raise BadPageError(f"page {self._number} has an item of an unknown kind or size")
        return size, data, bool(flags)

    def find(self, key: bytes) -> int:
        """Return the index of `key` or the first greater key; in a branch, of the child that `key` belongs to."""
        # The first key of a branch has no meaning.
        low, high = (0, len(self)) if self._is_leaf else (1, len(self))
        while low < high:
            middle = (low + high) // 2
            middle_key = self.key(middle)
            if middle_key < key or (middle_key == key and not self._is_leaf):
                low = middle + 1
            else:
                high = middle
        return low if self._is_leaf else low - 1

    def _node(self, index: int) -> tuple[int, int, int, int, int]:
        """Return low, high and flags of an item, and where its key begins and ends."""
        offset = self._offsets[index]
        if not self._upper <= offset <= len(self._data) - HEADER_BYTES - NODE.size:
            raise BadPageError(f"page {self._number} has an item outside itself")
        low, high, flags, key_bytes = NODE.unpack_from(self._data, offset + HEADER_BYTES)
        begins = offset + HEADER_BYTES + NODE.size
        return low, high, flags, begins, begins + key_bytes


#: The pages from the root to a leaf, each with an index in it.
_Ways = list[tuple[_Page, int]]

_COUNTS = ("branch_pages", "leaf_pages", "overflow_pages", "entries")


class Snapshot:
    """One state of the file, with the methods of a read transaction of LMDB that hutch uses. Never crashes.

    Every method may raise BadPageError, or return something wrong, if the pages are overwritten meanwhile.
    """

    def __init__(self, descriptor: int, heads: bytes, page_bytes: int) -> None:
        self._descriptor, self._page_bytes = descriptor, page_bytes
        newest = max((_head(heads, number, page_bytes) for number in (0, 1)), key=lambda head: int(head[0]))
        self._txn_id, self._pages, (_, _, self._depth, *self._counts, self._root) = newest
        if self._depth > DEEPEST or (self._root == NO_ROOT) != (self._depth == 0):
            raise BadPageError("the depth of its tree is impossible")

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
        ways: _Ways = []
        for level in range(1, levels + 1):
            page = self._page(number, level == levels)
            index = choose(page)
            ways.append((page, index))
            if level < levels:
                number = page.child(index)
        return ways

    def value(self, page: _Page, index: int) -> bytes:
        size, data, is_large = page.value(index)
        if not is_large:
            return data
        start, _, pages = LARGE.unpack(data)
        if pages != (HEADER_BYTES - 1 + size) // self._page_bytes + 1 or not 2 <= start <= start + pages <= self._pages:
            raise BadPageError(f"the place of a value, page {start}, is impossible")
        stored = self._read(start, HEADER_BYTES + size)
        self._validate(stored, start, OVERFLOW)
        return stored[HEADER_BYTES:]

    def _read(self, number: int, size: int) -> bytes:
        data = os.pread(self._descriptor, size, number * self._page_bytes)
        while len(data) < size:
            more = os.pread(self._descriptor, size - len(data), number * self._page_bytes + len(data))
            if not more:
                raise BadPageError(f"page {number} lies beyond the end of the file")
            data += more
        return data

    def _validate(self, page: bytes, number: int, kind: int) -> tuple[int, int]:
        own, txn_id, _, flags, lower, upper = HEADER.unpack_from(page)
        if own != number or flags != kind or txn_id > self._txn_id:
            raise BadPageError(f"page {number} is not the page that belongs there")
        return lower, upper

    def _page(self, number: int, is_leaf: bool) -> _Page:
        if not 2 <= number < self._pages:
            raise BadPageError(f"page {number} is out of range")
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
        raise BadPageError("its headers are truncated")
    at = number * page_bytes
    page, _, _, flags, _, _ = HEADER.unpack_from(heads, at)
    magic, version, _, _ = META.unpack_from(heads, at + HEADER_BYTES)
    at += HEADER_BYTES + META.size
    free = TREE.unpack_from(heads, at)
    if (page, flags, magic, version, free[0], free[1]) != (number, IS_META, MAGIC, VERSION, page_bytes, NUMBERS):
        raise BadPageError(f"its header {number} is damaged")
    last_page, txn_id = TAIL.unpack_from(heads, at + 2 * TREE.size)
    return txn_id, last_page + 1, TREE.unpack_from(heads, at + TREE.size)
