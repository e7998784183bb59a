"""The asyncio Namespace."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Literal, Self, TypeVar, overload

import hutch

from ..limits import validate_key
from ..namespace.ttl import require_ttl
from ..views import V
from ..workers import Calls
from .habits import Iteration, SyncHabits
from .iteration import iterate
from .mutable import Mutable, modify
from .transactions import NamespaceBlock

if TYPE_CHECKING:
    from ..contract import Missing

T = TypeVar("T")
D = TypeVar("D")

# After this many inline reads, which never wait, the event loop runs other tasks.
_INLINE_RUN = 64


class Namespace(SyncHabits, Generic[V]):
    """An open namespace: the verbs of `hutch.Namespace`, awaited. Any task of any event loop may use it.

    A value is encoded in a thread while the event loop runs: do not change it until its `set` has returned.
    """

    def __init__(
        self, handle: hutch.Namespace[V], store_calls: Calls, inline_reads: bool, *, is_shared: bool = False
    ) -> None:
        self._handle = handle
        #: Whether this is the handle `store[name]`, which its store closes.
        self._is_shared = is_shared
        self._calls = Calls(
            store_calls.pool,
            functools.partial(_describe_key, self.namespace),
            store_calls.patience_s,
            parent=store_calls,
        )
        self._inline_reads = inline_reads
        self._inline_run = 0

    def __repr__(self) -> str:
        return f"<hutch.aio.{repr(self._handle).removeprefix('<hutch.')}"

    @property
    def namespace(self) -> str:
        """The name of the namespace."""
        return str(self._handle.namespace)

    @property
    def capabilities(self) -> frozenset[str]:
        """The engine's promises beyond the six verbs. Raises StoreNotOpenError while closed."""
        self._calls.check_open()
        return self._handle.capabilities

    def is_open_storage(self) -> bool:
        """Return whether the namespace is open, which an empty one may be."""
        return self._calls.is_open and self._handle.is_open_storage()

    async def close(self) -> None:
        """Close this handle when its running calls are done; it is closed even if this raises or is cancelled.

        Waits at most one second for abandoned calls (their callers gave up); the engine's handle is then closed once
        they are done. A second `close` does nothing.
        """
        if self._is_shared:
            return
        name = self.namespace
        # Inline reads would bypass the refusal until the engine's handle is closed.
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

    async def __getitem__(self, key: str) -> V:
        """Return the current value of `key`: ``await core[key]``. Raises KeyError when missing."""
        return await self._read(self._handle.__getitem__, key)

    @overload
    async def get(self, key: str) -> V | None: ...
    @overload
    async def get(self, key: str, default: V | D) -> V | D: ...
    async def get(self, key: str, default: Any = None) -> Any:
        """Return the current value of `key`, or `default` when missing."""
        return await self._read(self._handle.get, key, default)

    async def contains(self, key: str) -> bool:
        """Return whether `key` has a value."""
        return await self._read(self._handle.__contains__, key)

    async def ttl_s(self, key: str) -> float | None:
        """Return how many seconds `key` has left, None if it never expires. Raises KeyError when missing."""
        return await self._read(self._handle.ttl_s, key)

    async def len(self) -> int:
        """Return the number of keys."""
        return await self._calls.read(self._handle.__len__)

    async def get_many(self, keys: Iterable[str]) -> dict[str, V]:
        """Return the present `keys` with their values, in the order given; a single read where the engine can."""
        return await self._calls.read(self._handle.get_many, keys)

    def keys(self) -> Iteration[str]:
        """Iterate over each live key once, undisturbed by changes; ``async for key in core`` does the same."""
        return self._iteration("key in namespace.keys()", self._handle.__iter__)

    def items(self) -> Iteration[tuple[str, V]]:
        """Iterate over each live key once, with its value, reading in chunks."""
        return self._iteration("key, value in namespace.items()", self._handle.items)

    def values(self) -> Iteration[V]:
        """Iterate over the values of `items`."""
        return self._iteration("value in namespace.values()", self._handle.values)

    def scan(
        self, prefix: str = "", start: str | None = None, stop: str | None = None, reverse: bool = False
    ) -> Iteration[tuple[str, V]]:
        """Iterate in key order (Unicode code points) over items with `prefix` and ``start <= key < stop``."""
        return self._iteration(
            "key, value in namespace.scan()", lambda: self._handle.scan(prefix, start, stop, reverse)
        )

    def scan_keys(
        self, prefix: str = "", start: str | None = None, stop: str | None = None, reverse: bool = False
    ) -> Iteration[str]:
        """Iterate over the keys that `scan` would yield, without reading values."""
        return self._iteration(
            "key in namespace.scan_keys()", lambda: self._handle.scan_keys(prefix, start, stop, reverse)
        )

    def __aiter__(self) -> AsyncIterator[str]:
        return aiter(self.keys())

    # --- writing ---

    async def set(self, key: str, value: V, *, ttl_s: float | None = None) -> None:
        """Replace the value of `key` atomically; it expires after `ttl_s` seconds, as in `hutch.Namespace.set`."""
        if ttl_s is None:
            await self._calls.write((key,), self._handle.__setitem__, key, value)
        else:
            await self._calls.write((key,), functools.partial(self._handle.set, key, value, ttl_s=ttl_s))

    async def remove(self, key: str) -> None:
        """Remove `key`. Raises KeyError when missing."""
        await self._calls.write((key,), self._handle.__delitem__, key)

    async def update(self, other: Any = (), /, **more: Any) -> None:
        """Set many items as one batch: all or none where the engine declares `atomic-batch`."""
        keys = (*other, *more) if type(other) is dict else None
        await self._calls.write(keys, functools.partial(self._handle.update, other, **more))

    async def set_many(self, items: Mapping[str, V] | Iterable[tuple[str, V]], *, ttl_s: float | None = None) -> None:
        """Set every item of `items`: the same as `update` with one argument. They expire after `ttl_s` seconds."""
        keys = tuple(items) if type(items) is dict else None
        await self._calls.write(keys, functools.partial(self._handle.set_many, items, ttl_s=ttl_s))

    async def touch(self, key: str, ttl_s: float) -> bool:
        """Change the deadline of `key` alone, to `ttl_s` seconds from now. Returns whether the key exists."""
        return await self._calls.write((key,), self._handle.touch, key, ttl_s)

    async def expire(self, limit: int | None = None) -> int:
        """Reclaim the space of expired keys, of at most `limit`. Returns of how many."""
        return await self._calls.write(None, self._handle.expire, limit)

    async def remove_many(self, keys: Iterable[str]) -> int:
        """Remove the `keys` that are present, as one batch. Returns how many were removed."""
        return await self._calls.write(
            tuple(keys) if type(keys) in (list, tuple, set) else None, self._handle.remove_many, keys
        )

    async def clear(self) -> None:
        """Remove every key, in one step where the engine declares `atomic-batch`."""
        await self._calls.write(None, self._handle.clear)

    @overload
    async def pop(self, key: str) -> V: ...
    @overload
    async def pop(self, key: str, default: V | D) -> V | D: ...
    async def pop(self, key: str, default: Any = hutch.MISSING) -> Any:
        """Remove `key` and return its value, which no other caller gets, or `default`. KeyError if both are missing."""
        return await self._calls.write((key,), self._handle.pop, key, default)

    async def popitem(self) -> tuple[str, V]:
        """Remove an arbitrary item and return it. Raises KeyError when the namespace is empty."""
        return await self._calls.write(None, self._handle.popitem)

    @overload
    async def setdefault(
        self: Namespace[T | None], key: str, default: None = None, *, ttl_s: float | None = ...
    ) -> T | None: ...
    @overload
    async def setdefault(self, key: str, default: V, *, ttl_s: float | None = ...) -> V: ...
    async def setdefault(self, key: str, default: Any = None, *, ttl_s: float | None = None) -> Any:
        """Set `key` to `default` if it has no value. Returns the value of `key`; as atomic as `modify`."""
        return await self._calls.write((key,), functools.partial(self._handle.setdefault, key, default, ttl_s=ttl_s))

    async def compare_and_set(self, key: str, expected: Any, value: Any, *, ttl_s: float | None = None) -> bool:
        """Set `key` to `value` if it now equals `expected` (`hutch.MISSING`: no value). Returns whether it did."""
        verb = functools.partial(self._handle.compare_and_set, key, expected, value, ttl_s=ttl_s)
        return await self._calls.write((key,), verb)

    @overload
    async def modify(
        self,
        key: str,
        fn: Callable[[V], V | Missing],
        default: V | Missing = ...,
        *,
        allow_none: Literal[False] = ...,
        ttl_s: float | None = ...,
    ) -> V: ...
    @overload
    async def modify(
        self,
        key: str,
        fn: Callable[[V], V | Missing | None],
        default: V | Missing = ...,
        *,
        allow_none: bool,
        ttl_s: float | None = ...,
    ) -> V | None: ...
    async def modify(
        self,
        key: str,
        fn: Callable[[Any], Any],
        default: Any = hutch.MISSING,
        *,
        allow_none: bool = False,
        ttl_s: float | None = None,
    ) -> Any:
        """Replace the value of `key` by ``fn(value)`` atomically and return the new value, as `hutch.Namespace.modify`.

        `fn` is a plain function and runs in a thread: it must not use objects of the event loop. It is not called
        again after a cancellation.

        Raises ConflictError at once where the task would wait for itself, and StorageTimeoutError if other tasks held
        the key for too long (`wait_s` of the engine, else 60 s).
        """
        return await modify(self._handle, self._calls, validate_key(key), fn, default, allow_none, ttl_s)

    async def increment(self, key: str, by: float = 1, default: float = 0, *, ttl_s: float | None = None) -> V:
        """Add `by` to the number of `key` atomically and return the sum, as `hutch.Namespace.increment`."""
        verb = functools.partial(self._handle.increment, key, by, default, ttl_s=ttl_s)
        return await self._calls.write((key,), verb)

    @overload
    def mutable(self, key: str, *, ttl_s: float | None = ...) -> Mutable[V]: ...
    @overload
    def mutable(self, key: str, default: V | D, *, ttl_s: float | None = ...) -> Mutable[V | D]: ...
    def mutable(self, key: str, default: Any = hutch.MISSING, *, ttl_s: float | None = None) -> Mutable[Any]:
        """Read a value, let the block change it in place, write it back: ``async with core.mutable("k", {}) as v``.

        Meanwhile `mutable` and `modify` of the key wait in other tasks. If a thread or process wrote the key in
        between, this raises ConflictError and writes nothing. A block that raises or is cancelled writes nothing. A
        missing key starts from a copy of `default`; without a default, KeyError is raised. Raises what `modify` raises
        where tasks would wait for each other.
        """
        options = () if ttl_s is None else require_ttl(self._handle._store, ttl_s)
        return Mutable(self._handle, self._calls, validate_key(key), default, options)

    # --- inside ---

    async def _read(self, verb: Callable[..., T], *args: Any) -> T:
        if not self._inline_reads:
            return await self._calls.read(verb, *args)
        self._inline_run += 1
        if self._inline_run >= _INLINE_RUN:
            # A loop over inline reads never waits and would keep all other tasks from running.
            self._inline_run = 0
            await asyncio.sleep(0)
        return verb(*args)

    def transaction(self) -> NamespaceBlock:
        """Return a block that changes this namespace, all or nothing: ``async with ns.transaction() as tx``.

        `tx` has `get`, `[]`, `set`, `remove`, `contains`, `touch` and `scan`, awaited; see
        `hutch.Namespace.transaction`.
        """
        self._calls.check_open()
        self._handle._transaction_of(None)  # raises CapabilityError
        return NamespaceBlock(self._handle._transaction_of, self._calls)

    def _iteration(self, spelling: str, source: Callable[[], Iterable[T]]) -> Iteration[T]:
        return Iteration(iterate(self._calls, source, self._must_be_open), spelling)

    def _must_be_open(self) -> None:
        if not self.is_open_storage():
            raise hutch.StoreNotOpenError(f"namespace {self.namespace!r} was closed during an iteration over it")


def _describe_key(namespace: str, key: str | None) -> str:
    return f"namespace {namespace!r}" if key is None else f"key {key!r} of namespace {namespace!r}"
