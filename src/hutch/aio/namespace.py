"""Namespace, for asyncio."""

from __future__ import annotations

import asyncio
import functools
import itertools
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, Self, TypeVar

import hutch

from ..limits import check_key
from ..workers import Calls
from .habits import Iteration, SyncHabits
from .mutable import Mutable, modify

T = TypeVar("T")

# Iteration fetches chunks that grow up to this many items, or what can be had in this time.
_FIRST_CHUNK_ITEMS = 16
_CHUNK_ITEMS = 1024
_CHUNK_S = 0.005
# After this many reads that did not wait for anything, the loop gets a turn.
_INLINE_RUN = 64


class Namespace(SyncHabits):
    """An open namespace: what a `hutch.Namespace` does, awaited. Any task of any event loop may use it.

    A value is encoded in a thread while the loop goes on: leave it unchanged until its `set` is done.
    """

    def __init__(self, handle: hutch.Namespace, store_calls: Calls, inline_reads: bool) -> None:
        self._handle = handle
        self._calls = Calls(
            store_calls.pool,
            functools.partial(_describe_key, self.namespace),
            store_calls.patience_s,
            parent=store_calls,
        )
        self._inline_reads = inline_reads
        self._inline_run = 0

    def __repr__(self) -> str:
        return f"<hutch.aio.Namespace of {self._handle!r}>"

    @property
    def namespace(self) -> str:
        """Its name."""
        return str(self._handle.namespace)

    @property
    def capabilities(self) -> frozenset[str]:
        """What the engine promises beyond the six verbs. Raises StoreNotOpenError while closed."""
        self._calls.check_open()
        return self._handle.capabilities

    def is_open_storage(self) -> bool:
        """Whether it is open. An empty namespace is open."""
        return self._calls.is_open and self._handle.is_open_storage()

    async def close(self) -> None:
        """Close this handle when its calls under way are done. Closed even if it raises, or is cancelled.

        Calls that their callers gave up are waited for at most one second; then the engine's handle is closed when
        they are done. A second `close` does nothing.
        """
        name = self.namespace
        # Inline reads would go past the refusal, as long as the engine's handle is not closed yet.
        self._inline_reads = False
        await self._calls.close(
            self._close_handle, f"namespace {name!r} is closed; open it again to use it", keys=(name,)
        )

    def _close_handle(self) -> None:
        if self._handle.is_open_storage():
            self._handle.close()

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
        return await self._calls.read(self._handle.__len__)

    async def get_many(self, keys: Iterable[str]) -> dict[str, Any]:
        """The values of those `keys` that have one, in the order given; one read where the engine can."""
        return await self._calls.read(self._handle.get_many, keys)

    def keys(self) -> Iteration[str]:
        """Each live key once, not disturbed by changes. So is ``async for key in core``."""
        return self._iteration("key in namespace.keys()", self._handle.__iter__)

    def items(self) -> Iteration[tuple[str, Any]]:
        """Each live key once, with its value, read in chunks."""
        return self._iteration("key, value in namespace.items()", self._handle.items)

    def values(self) -> Iteration[Any]:
        """The values of `items`."""
        return self._iteration("value in namespace.values()", self._handle.values)

    def scan(
        self, prefix: str = "", start: str | None = None, stop: str | None = None, reverse: bool = False
    ) -> Iteration[tuple[str, Any]]:
        """Items in key order (by Unicode code point) that have `prefix` and ``start <= key < stop``."""
        return self._iteration(
            "key, value in namespace.scan()", lambda: self._handle.scan(prefix, start, stop, reverse)
        )

    def scan_keys(
        self, prefix: str = "", start: str | None = None, stop: str | None = None, reverse: bool = False
    ) -> Iteration[str]:
        """The keys that `scan` would give, without reading the values."""
        return self._iteration(
            "key in namespace.scan_keys()", lambda: self._handle.scan_keys(prefix, start, stop, reverse)
        )

    def __aiter__(self) -> AsyncIterator[str]:
        return aiter(self.keys())

    # --- writing ---

    async def set(self, key: str, value: Any) -> None:
        """Replace the value of `key` atomically."""
        await self._calls.write((key,), self._handle.__setitem__, key, value)

    async def remove(self, key: str) -> None:
        """Remove `key`. Raises KeyError when missing."""
        await self._calls.write((key,), self._handle.__delitem__, key)

    #: The same as `remove`.
    delete = remove

    async def update(self, other: Any = (), /, **more: Any) -> None:
        """Set many items as one batch: all or none where the engine declares `atomic-batch`."""
        keys = (*other, *more) if type(other) is dict else None
        await self._calls.write(keys, functools.partial(self._handle.update, other, **more))

    async def set_many(self, items: Mapping[str, Any]) -> None:
        """Set every item of `items`; `update` with one argument."""
        keys = tuple(items) if type(items) is dict else None
        await self._calls.write(keys, self._handle.set_many, items)

    async def remove_many(self, keys: Iterable[str]) -> int:
        """Remove those `keys` that are there, as one batch; how many that were."""
        return await self._calls.write(
            tuple(keys) if type(keys) in (list, tuple, set) else None, self._handle.remove_many, keys
        )

    async def clear(self) -> None:
        """Remove every key, in one step where the engine declares `atomic-batch`."""
        await self._calls.write(None, self._handle.clear)

    async def pop(self, key: str, default: Any = hutch.MISSING) -> Any:
        """Remove `key` and return its value; no other caller gets the same one. KeyError if there is no default."""
        return await self._calls.write((key,), self._handle.pop, key, default)

    async def popitem(self) -> tuple[str, Any]:
        """Remove an item, any, and return it. Raises KeyError when there is none."""
        return await self._calls.write(None, self._handle.popitem)

    async def setdefault(self, key: str, default: Any = None) -> Any:
        """The value of `key`, after setting it to `default` if it had none. Atomic as `modify` is."""
        return await self._calls.write((key,), self._handle.setdefault, key, default)

    async def compare_and_set(self, key: str, expected: Any, value: Any) -> bool:
        """Set `key` to `value` if it now equals `expected`; whether it did. `hutch.MISSING` stands for no value."""
        return await self._calls.write((key,), self._handle.compare_and_set, key, expected, value)

    async def modify(self, key: str, fn: Callable[[Any], Any], default: Any = hutch.MISSING) -> Any:
        """Replace the value of `key` by ``fn(value)``, atomically, and return the new value. As `Namespace.modify`.

        `fn` is a plain function and runs in a thread: it must not touch what belongs to the event loop. After a
        cancellation it is not called again.

        Raises ConflictError at once where the task would wait for itself, and StorageTimeoutError if other tasks held
        the key for too long (`wait_s` of the engine, else 60 s).
        """
        return await modify(self._handle, self._calls, check_key(key), fn, default)

    def mutable(self, key: str, default: Any = None) -> Mutable:
        """Read a value, let the block change it in place, write it back: ``async with core.mutable("k", {}) as v``.

        Other tasks' `mutable` and `modify` of the key wait. If anybody else wrote it meanwhile, a thread or another
        process too, ConflictError is raised and nothing is written. A block that raises, or is cancelled, writes
        nothing. A missing key starts from a copy of `default`. Raises what `modify` raises where tasks would wait for
        each other.
        """
        return Mutable(self._handle, self._calls, check_key(key), default)

    # --- inside ---

    async def _read(self, verb: Callable[..., T], *args: Any) -> T:
        if not self._inline_reads:
            return await self._calls.read(verb, *args)
        self._inline_run += 1
        if self._inline_run >= _INLINE_RUN:
            # A loop over such reads never waits, and would keep all other tasks from running.
            self._inline_run = 0
            await asyncio.sleep(0)
        return verb(*args)

    def _iteration(self, spelling: str, source: Callable[[], Iterable[T]]) -> Iteration[T]:
        return Iteration(self._iterate(source), spelling)

    async def _iterate(self, source: Callable[[], Iterable[T]]) -> AsyncGenerator[T, None]:
        iterator = _begun_later(source)
        chunk_items = _FIRST_CHUNK_ITEMS
        error: Exception | None = None
        more = True
        while more:
            items, error, more = await self._calls.read(_next_chunk, iterator, chunk_items)
            for item in items:
                if not self.is_open_storage():
                    raise hutch.StoreNotOpenError(
                        f"namespace {self.namespace!r} was closed during an iteration over it"
                    )
                yield item
            chunk_items = min(chunk_items * 4, _CHUNK_ITEMS)
        if error is not None:
            raise error


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


def _describe_key(namespace: str, key: str | None) -> str:
    return f"namespace {namespace!r}" if key is None else f"key {key!r} of namespace {namespace!r}"
