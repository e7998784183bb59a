"""Namespace, for asyncio."""

from __future__ import annotations

import asyncio
import copy
import functools
import itertools
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Self, TypeVar

import hutch

from ..limits import check_key
from .threads import Threads

T = TypeVar("T")

# Iteration fetches chunks that grow up to this many items, or what can be had in this time.
_FIRST_CHUNK_ITEMS = 16
_CHUNK_ITEMS = 1024
_CHUNK_S = 0.005
# After this many reads that did not wait for anything, the loop gets a turn.
_INLINE_RUN = 64


class Namespace:
    """An open namespace: what a `hutch.Namespace` does, awaited. Any task may use it.

    A value is encoded in a thread while the loop goes on: leave it unchanged until its `set` is done.
    """

    def __init__(self, handle: hutch.Namespace, threads: Threads, inline_reads: bool) -> None:
        self._handle = handle
        self._threads = threads
        self._inline_reads = inline_reads
        self._inline_run = 0
        self._turns: dict[str, _Turn] = {}

    def __repr__(self) -> str:
        return f"<hutch.aio.Namespace of {self._handle!r}>"

    @property
    def namespace(self) -> str:
        """Its name."""
        return str(self._handle.namespace)

    @property
    def capabilities(self) -> frozenset[str]:
        """What the engine promises beyond the six verbs. Raises StoreNotOpenError while closed."""
        return self._handle.capabilities

    def is_open_storage(self) -> bool:
        """Whether it is open. An empty namespace is open."""
        return self._handle.is_open_storage()

    async def close(self) -> None:
        """Close this handle when its calls under way are done. Closed even if it raises, or is cancelled."""
        await self._threads.close_owner(self, self._handle.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # --- reading ---

    async def __getitem__(self, key: str) -> Any:
        """``await core[key]``: the value, fresh. Raises KeyError when missing."""
        return await self._read(self._handle.__getitem__, key)

    async def get(self, key: str, default: Any = None) -> Any:
        """The value of `key`, fresh, or `default`."""
        return await self._read(self._handle.get, key, default)

    async def contains(self, key: str) -> bool:
        """Whether `key` has a value."""
        return await self._read(self._handle.__contains__, key)

    async def len(self) -> int:
        """The number of keys."""
        return await self._threads.read(self, self._handle.__len__)

    async def get_many(self, keys: Iterable[str]) -> dict[str, Any]:
        """The values of those `keys` that have one, in the order given; one read where the engine can."""
        return await self._threads.read(self, self._handle.get_many, keys)

    def keys(self) -> AsyncIterator[str]:
        """Each live key once, not disturbed by changes. So is ``async for key in core``."""
        return self._iterate(self._handle.__iter__)

    def items(self) -> AsyncIterator[tuple[str, Any]]:
        """Each live key once, with its value, read in chunks."""
        return self._iterate(self._handle.items)

    def values(self) -> AsyncIterator[Any]:
        """The values of `items`."""
        return self._iterate(self._handle.values)

    def scan(
        self, prefix: str = "", start: str | None = None, stop: str | None = None, reverse: bool = False
    ) -> AsyncIterator[tuple[str, Any]]:
        """Items in key order (by Unicode code point) that have `prefix` and ``start <= key < stop``."""
        return self._iterate(lambda: self._handle.scan(prefix, start, stop, reverse))

    def scan_keys(
        self, prefix: str = "", start: str | None = None, stop: str | None = None, reverse: bool = False
    ) -> AsyncIterator[str]:
        """The keys that `scan` would give, without reading the values."""
        return self._iterate(lambda: self._handle.scan_keys(prefix, start, stop, reverse))

    def __aiter__(self) -> AsyncIterator[str]:
        return self.keys()

    # --- writing ---

    async def set(self, key: str, value: Any) -> None:
        """Replace the value of `key` atomically."""
        await self._threads.change(self, self._handle.__setitem__, key, value)

    async def delete(self, key: str) -> None:
        """Remove `key`. Raises KeyError when missing."""
        await self._threads.change(self, self._handle.__delitem__, key)

    async def update(self, other: Any = (), /, **more: Any) -> None:
        """Set many items as one batch: all or none where the engine declares `atomic-batch`."""
        await self._threads.change(self, functools.partial(self._handle.update, other, **more))

    async def set_many(self, items: Mapping[str, Any]) -> None:
        """Set every item of `items`; `update` with one argument."""
        await self._threads.change(self, self._handle.set_many, items)

    async def remove_many(self, keys: Iterable[str]) -> int:
        """Remove those `keys` that are there, as one batch; how many that were."""
        return await self._threads.change(self, self._handle.remove_many, keys)

    async def clear(self) -> None:
        """Remove every key, in one step where the engine declares `atomic-batch`."""
        await self._threads.change(self, self._handle.clear)

    async def pop(self, key: str, default: Any = hutch.MISSING) -> Any:
        """Remove `key` and return its value; no other caller gets the same one. KeyError if there is no default."""
        return await self._threads.change(self, self._handle.pop, key, default)

    async def popitem(self) -> tuple[str, Any]:
        """Remove an item, any, and return it. Raises KeyError when there is none."""
        return await self._threads.change(self, self._handle.popitem)

    async def setdefault(self, key: str, default: Any = None) -> Any:
        """The value of `key`, after setting it to `default` if it had none. Atomic as `modify` is."""
        return await self._threads.change(self, self._handle.setdefault, key, default)

    async def compare_and_set(self, key: str, expected: Any, value: Any) -> bool:
        """Set `key` to `value` if it now equals `expected`; whether it did. `hutch.MISSING` stands for no value."""
        return await self._threads.change(self, self._handle.compare_and_set, key, expected, value)

    async def modify(self, key: str, fn: Callable[[Any], Any], default: Any = hutch.MISSING) -> Any:
        """Replace the value of `key` by ``fn(value)``, atomically, and return the new value. As `Namespace.modify`.

        `fn` is a plain function and runs in a thread: it must not touch what belongs to the event loop.
        """
        key = check_key(key)
        async with self._turn(key):
            return await self._threads.change(self, self._handle.modify, key, fn, default)

    @asynccontextmanager
    async def mutable(self, key: str, default: Any = None) -> AsyncIterator[Any]:
        """Read a value, let the block change it in place, write it back: ``async with core.mutable("k", {}) as v``.

        Other tasks' `mutable` and `modify` of the key on this handle wait. If anybody else wrote it meanwhile, a
        thread or another process too, ConflictError is raised and nothing is written. A block that raises, or is
        cancelled, writes nothing. A missing key starts from a copy of `default`.
        """
        key = check_key(key)
        async with self._turn(key):
            # No lock of a thread is held across the block: the thread that took it might not be the one to free it.
            storage = self._handle._store
            value, token = await self._threads.read(self, storage.get_for_update, key)
            if value is hutch.MISSING:
                value = copy.deepcopy(default)
            yield value
            if self._handle._store is not storage:
                raise hutch.StoreNotOpenError(f"namespace {self.namespace!r} was closed inside mutable({key!r})")
            if not await self._threads.change(self, storage.set_if_unchanged, key, token, value):
                raise hutch.ConflictError(
                    f"key {key!r} of namespace {self.namespace!r} was changed by someone else inside mutable(); "
                    "nothing was written. Run the block again"
                )

    # --- inside ---

    async def _read(self, verb: Callable[..., T], *args: Any) -> T:
        if not self._inline_reads:
            return await self._threads.read(self, verb, *args)
        self._inline_run += 1
        if self._inline_run >= _INLINE_RUN:
            # A loop over such reads never waits, and would keep all other tasks from running.
            self._inline_run = 0
            await asyncio.sleep(0)
        return verb(*args)

    async def _iterate(self, source: Callable[[], Iterable[T]]) -> AsyncIterator[T]:
        iterator = _begun_later(source)
        chunk_items = _FIRST_CHUNK_ITEMS
        error: Exception | None = None
        more = True
        while more:
            items, error, more = await self._threads.read(self, _next_chunk, iterator, chunk_items)
            for item in items:
                if not self._handle.is_open_storage():
                    raise hutch.StoreNotOpenError(
                        f"namespace {self.namespace!r} was closed during an iteration over it"
                    )
                yield item
            chunk_items = min(chunk_items * 4, _CHUNK_ITEMS)
        if error is not None:
            raise error

    @asynccontextmanager
    async def _turn(self, key: str) -> AsyncIterator[None]:
        """Hold `key` against the other tasks; a task may hold it twice."""
        task = asyncio.current_task()
        turn = self._turns.setdefault(key, _Turn())
        if turn.holder is task:
            yield
            return
        turn.tasks += 1
        try:
            async with turn.lock:
                turn.holder = task
                try:
                    yield
                finally:
                    turn.holder = None
        finally:
            turn.tasks -= 1
            if not turn.tasks:
                del self._turns[key]


class _Turn:
    """Of one key: who holds it, and how many hold it or wait for it."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.holder: asyncio.Task[Any] | None = None
        self.tasks = 0


def _begun_later(source: Callable[[], Iterable[T]]) -> Iterator[T]:
    yield from source()


def _next_chunk(iterator: Iterator[T], most: int) -> tuple[list[T], Exception | None, bool]:
    """Up to `most` items, the error that ended them, and whether there may be more."""
    items: list[T] = []
    until_s = time.monotonic() + _CHUNK_S
    try:
        for item in itertools.islice(iterator, most):
            items.append(item)
            if time.monotonic() > until_s:
                return items, None, True
    except Exception as error:
        # What came before it is given out first, as it would be without the chunks.
        return items, error, False
    return items, None, len(items) == most
