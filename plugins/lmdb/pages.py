"""Read `data.mdb` as bytes, never through LMDB, so that damage can neither crash nor hang the process.

LMDB has no page checksums and trusts what it reads: a page of the wrong kind ends the process (an assertion), and so
does a length that leads past the end of the file (SIGBUS). LMDB can safely open a file that is sound here.

The format is that of LMDB 1.0 on a 64-bit machine, in this machine's byte order. py-lmdb's module lmdb.verify reads it
too; this one also reports whether a search from the root finds every key, whether a large value lies within the file,
and which keys a damaged page held, all of which hutch needs.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from struct import Struct, unpack_from
from typing import Any, Self

from hutch.filesystem import open_existing

HEADER = Struct("=QQHHHH")  # page, transaction, pad, flags, lower, upper (a large value: pages in place of both)
NODE = Struct("=HHHH")  # low and high part of a size (in a branch, with the flags: of the child), flags, key's size
LARGE = Struct("=QQQ")  # where a large value lies: first page, transaction, pages
META = Struct("=IIQQ")  # magic, version, address, size of the map
TREE = Struct("=IHHQQQQQ")  # pad, flags, depth, branches, leaves, pages of large values, entries, root
TAIL = Struct("=QQ")  # last page, transaction
HEADER_BYTES = HEADER.size
HEAD_BYTES = HEADER_BYTES + META.size + 2 * TREE.size + TAIL.size

MAGIC, VERSION = 0xBEEFC0DE, 3
BRANCH, LEAF, OVERFLOW, IS_META = 1, 2, 4, 8
IS_LARGE = 1
HEADERS = 2
NO_ROOT = (1 << 64) - 1
DEEPEST = 32
PAGE_SIZES = {1 << power for power in range(9, 17)}
# A damaged header may claim any number of pages; at most this many beyond the end of the file are accepted.
_LARGEST_TAIL = 1 << 20
NUMBERS = 0x08  # the keys of the tree are numbers
_MOST_DAMAGE = 100


class UnreadableFileError(Exception):
    """A file without valid LMDB headers, of which nothing can be read."""


@dataclass(frozen=True, slots=True)
class Damage:
    """One damage: a description, and the keys affected, ``first <= key < after``, if known."""

    text: str
    first: bytes | None = None
    after: bytes | None = None


@dataclass(frozen=True, slots=True)
class Large:
    """A large value, stored on pages of its own."""

    page: int
    size: int


@dataclass(frozen=True, slots=True)
class _Tree:
    name: str
    depth: int
    branches: int
    leaves: int
    large: int
    entries: int
    root: int


_Node = tuple[bytes, int, int, int, int]  # key, low, high, flags, where its data begins


class DataFile:
    """One state of the file: as of transaction `txn_id`, or the latest.

    If other processes may write, the caller must hold a read transaction and pass its id: until it ends, LMDB writes to
    no page of that state.
    """

    def __init__(self, path: Path, txn_id: int | None = None) -> None:
        """Open the file and choose a header. Raises UnreadableFileError, OSError."""
        self.damage: list[Damage] = []
        self._file = open_existing(path)
        try:
            self.size = os.fstat(self._file.fileno()).st_size
            self._choose_header(txn_id)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def is_truncated(self) -> bool:
        """Return whether a page in use may lie beyond the end of the file.

        A page taken and freed within one transaction is never written, so a file that ends before its last page is
        complete if all pages beyond its end are free.
        """
        self.damage = []
        return self.size < self.pages * self.page_bytes and (
            0 in self._free_pages()[self.size // self.page_bytes :] or bool(self.damage)
        )

    def verify(self) -> list[Damage]:
        """Return the damage in the structure. If none, LMDB can read and write it safely and find every key."""
        self.damage = []
        uses = self._free_pages()
        for tree in (self._free, self._main):
            used = bytearray(self.pages)
            for _ in self._walk(tree, used):
                pass
            uses = bytearray(map(sum, zip(uses, used, strict=True)))
        # Unused pages are known only if both trees could be walked to the end.
        if not self.damage:
            for text, wrong in (("neither in use nor free", 0), ("used twice", 2)):
                if count := uses.count(wrong, HEADERS):
                    page = uses.index(wrong, HEADERS)
                    self.damage.append(Damage(f"{count:,} pages are {text}, the first of them page {page}"))
        return self.damage

    def items(self) -> Iterator[tuple[bytes, bytes | Large]]:
        """Yield the reachable items of the main tree, in key order; add the rest to `damage`."""
        return self._walk(self._main, bytearray(self.pages))

    def value(self, value: bytes | Large) -> bytes:
        """Return the bytes of a value that `items` yielded."""
        if isinstance(value, bytes):
            return value
        return self._read(value.page * self.page_bytes + HEADER_BYTES, value.size)

    # --- the two headers ---

    def _choose_header(self, txn_id: int | None) -> None:
        self.page_bytes = 0
        first = self._header(0)
        self.page_bytes = first[0]
        second = self._header(1)
        if second[0] != self.page_bytes:
            raise UnreadableFileError("its two headers disagree about the size of a page")
        # Even transactions write the first header, odd ones the second.
        if first[2] % 2 or (second[2] and not second[2] % 2):
            raise UnreadableFileError("its headers are damaged: their transactions are not possible")
        if txn_id is None:
            txn_id = max(first[2], second[2])
        for header in (first, second):
            if header[2] == txn_id:
                _, self.pages, self._txn_id, self._free, self._main = header
                break
        else:
            raise UnreadableFileError(f"it has no header of transaction {txn_id}")
        if not HEADERS <= self.pages <= self.size // self.page_bytes + _LARGEST_TAIL:
            raise UnreadableFileError(f"its header says that it has {self.pages:,} pages; it has {self.size:,} bytes")

    def _header(self, number: int) -> tuple[int, int, int, _Tree, _Tree]:
        """Return page size, number of pages, transaction id, the tree of free pages and the main tree."""
        data = self._read(number * self.page_bytes, HEAD_BYTES)
        if len(data) < HEAD_BYTES:
            raise UnreadableFileError(f"it has {self.size:,} bytes, too few for its headers")
        page, _, _, flags, _, _ = HEADER.unpack_from(data)
        magic, version, _, _ = META.unpack_from(data, HEADER_BYTES)
        at = HEADER_BYTES + META.size
        free, main = TREE.unpack_from(data, at), TREE.unpack_from(data, at + TREE.size)
        last_page, txn_id = TAIL.unpack_from(data, at + 2 * TREE.size)
        if (magic, version, page, flags) != (MAGIC, VERSION, number, IS_META):
            raise UnreadableFileError(f"its header {number} is damaged, or not that of an LMDB 1.0 file")
        # In the free tree, `pad` is the page size, and the flags say that its keys are numbers.
        if free[0] not in PAGE_SIZES or free[1] != NUMBERS or main[:2] != (0, 0):
            raise UnreadableFileError(f"its header {number} is damaged")
        return free[0], last_page + 1, txn_id, _Tree("free", *free[2:]), _Tree("main", *main[2:])

    # --- its two trees ---

    def _free_pages(self) -> bytearray:
        """Return, per page, how often it is listed as free, counted up to 2."""
        free = bytearray(self.pages)
        for key, value in self._walk(self._free, bytearray(self.pages)):
            txn_id, data = _number(key), self.value(value)
            count = _number(data[:8])
            if len(key) != 8 or not 1 <= txn_id <= self._txn_id or len(data) != 8 * count + 8:
                self.damage.append(Damage("a record of free pages is damaged"))
                continue
            listed = unpack_from(f"={count}Q", data, 8)
            if any(a <= b for a, b in pairwise((self.pages, *listed, HEADERS - 1))):
                self.damage.append(Damage("a record of free pages lists impossible pages"))
                continue
            for page in listed:
                free[page] = min(free[page] + 1, 2)
        return free

    def _walk(self, tree: _Tree, used: bytearray) -> Iterator[tuple[bytes, bytes | Large]]:
        """Yield the items of `tree` in key order, and mark its pages in `used`."""
        if tree.depth > DEEPEST or (tree.root == NO_ROOT) != (tree.depth == 0):
            self.damage.append(Damage(f"the depth of the {tree.name} tree is impossible"))
            return
        branches = leaves = large = entries = 0
        before = len(self.damage)
        ways: list[tuple[int, int, bytes | None, bytes | None]] = []
        if tree.depth:
            ways.append((tree.root, 1, None, None))
        while ways and len(self.damage) < _MOST_DAMAGE:
            number, depth, first, after = ways.pop()
            try:
                page = self._page(number, BRANCH if depth < tree.depth else LEAF, used)
                nodes = self._nodes(page, tree, depth < tree.depth, first, after)
                if depth < tree.depth:
                    branches += 1
                    # The first child begins where its parent does; its key has no meaning.
                    begins = [first, *(node[0] for node in nodes[1:])]
                    children = (low | high << 16 | flags << 32 for _, low, high, flags, _ in nodes)
                    below = zip(children, [depth + 1] * len(nodes), begins, [*begins[1:], after], strict=True)
                    ways += reversed(list(below))
                    continue
            except _DamagedPageError as damaged:
                self.damage.append(Damage(f"page {number} {damaged}", first, after))
                continue
            leaves += 1
            entries += len(nodes)
            for key, low, high, flags, at in nodes:
                size = low | high << 16
                if not flags:
                    yield key, page[at : at + size]
                    continue
                try:
                    start, pages = self._large(page, at, size, used)
                except _DamagedPageError as damaged:
                    self.damage.append(Damage(f"the place of a value in page {number} {damaged}", key, key + b"\0"))
                    continue
                large += pages
                yield key, Large(start, size)
        counted = (branches, leaves, large, entries)
        if len(self.damage) == before and counted != (tree.branches, tree.leaves, tree.large, tree.entries):
            self.damage.append(Damage(f"the header's counts of the {tree.name} tree do not fit the tree"))

    def _page(self, number: int, kind: int, used: bytearray, count: int = 1) -> bytes:
        """Return page `number`, the first of `count`. Raises _DamagedPageError if it is in use or not of `kind`."""
        if not HEADERS <= number <= number + count <= self.pages:
            raise _DamagedPageError("is out of range")
        if (number + count) * self.page_bytes > self.size:
            raise _DamagedPageError("lies beyond the end of the file")
        if any(used[number : number + count]):
            raise _DamagedPageError("is used twice")
        used[number : number + count] = b"\1" * count
        page = self._read(number * self.page_bytes, self.page_bytes)
        if len(page) < self.page_bytes:
            raise _DamagedPageError("lies beyond the end of the file")
        own, txn_id, _, flags, _, _ = HEADER.unpack_from(page)
        if own != number or flags != kind or txn_id > self._txn_id:
            raise _DamagedPageError("is not the page that belongs there")
        return page

    def _nodes(
        self, page: bytes, tree: _Tree, is_branch: bool, first: bytes | None, after: bytes | None
    ) -> list[_Node]:
        """Return the nodes of a branch or leaf; all keys must lie in ``first <= key < after``."""
        _, _, _, _, lower, upper = HEADER.unpack_from(page)
        # Offsets within a page are relative to the end of its header.
        room = self.page_bytes - HEADER_BYTES
        count = lower // 2
        fewest = 2 if is_branch and tree.name == "main" else 1
        if lower % 2 or not lower <= upper <= room or count < fewest:
            raise _DamagedPageError("has a damaged header")
        nodes: list[_Node] = []
        filled = 0
        for offset in unpack_from(f"={count}H", page, HEADER_BYTES):
            at = offset + HEADER_BYTES
            if not upper <= offset <= room - NODE.size:
                raise _DamagedPageError("has an item outside itself")
            low, high, flags, key_bytes = NODE.unpack_from(page, at)
            at += NODE.size
            begins = at + key_bytes
            if is_branch:
                ends = begins
            else:
                begins += key_bytes % 2
                if flags not in (0, IS_LARGE):
                    raise _DamagedPageError("has an item of an unknown kind")
                ends = begins + (LARGE.size if flags else low | high << 16)
            if ends > self.page_bytes:
                raise _DamagedPageError("has an item that is longer than itself")
            filled += (ends - at + NODE.size + 1) & ~1
            nodes.append((page[at : at + key_bytes], low, high, flags, begins))
        if filled != room - upper:
            raise _DamagedPageError("has items whose sizes do not fit it")
        keys: list[Any] = [node[0] for node in nodes[1 if is_branch else 0 :]]
        if tree.name == "free":
            keys = list(map(_number, keys))
            first, after = (None if bound is None else _number(bound) for bound in (first, after))  # type: ignore[assignment]
        if any(a >= b for a, b in pairwise(keys)):
            raise _DamagedPageError("has keys that are not in order")
        if (first is not None and keys[0] < first) or (after is not None and keys[-1] >= after):
            raise _DamagedPageError("has keys that belong elsewhere")
        return nodes

    def _large(self, page: bytes, at: int, size: int, used: bytearray) -> tuple[int, int]:
        """Return first page and number of pages of the large value that `page` refers to."""
        start, _, pages = LARGE.unpack_from(page, at)
        if pages != (HEADER_BYTES - 1 + size) // self.page_bytes + 1:
            raise _DamagedPageError("does not fit its size")
        head = self._page(start, OVERFLOW, used, pages)
        if unpack_from("=I", head, HEADER_BYTES - 4)[0] != pages:
            raise _DamagedPageError("is not where it belongs")
        return start, pages

    def _read(self, offset: int, size: int) -> bytes:
        # Not a memory map: if the file has become shorter, reading one is a SIGBUS. Not os.pread: Windows lacks it.
        self._file.seek(offset)
        data = self._file.read(size)
        while len(data) < size and (more := self._file.read(size - len(data))):
            data += more
        return data


class _DamagedPageError(Exception):
    """A damaged page. The message completes a sentence that begins with the page."""


def _number(data: bytes) -> int:
    return int.from_bytes(data, sys.byteorder)
