"""The asyncio `connect` and Store."""

from __future__ import annotations

import functools
import os
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Generator
from types import TracebackType
from typing import Any, Generic, NoReturn, Protocol, Self, TypeVar, overload

import hutch

from ..snapshots import Snapshot as BlockingSnapshot
from ..views import V
from ..workers import Calls, WorkerPool, patience_s
from .habits import NotAwaitedError, Opened, StoreHabits
from .namespace import Namespace
from .transactions import Transaction, transact

_THREADS = 8
_CLOSED = "this store is closed; connect again to use it"


class _Closable(Protocol):
    async def close(self) -> None: ...


C = TypeVar("C", bound=_Closable)
T = TypeVar("T")


class Opening(Opened, Generic[C]):
    """The result of `connect` and `Store.open`, for ``await`` or ``async with``, which closes what it opened."""

    def __init__(self, opening: Callable[[], Coroutine[Any, Any, C]], opens: type[C], call: str) -> None:
        self._opening = opening
        self._opens = opens
        self._call = call
        self._spelling = f"async with {call} as ..."
        self._opened: C | None = None

    def __repr__(self) -> str:
        return f"<{self._call}, not awaited>"

    def __getattr__(self, name: str) -> NoReturn:
        if not name.startswith("_") and hasattr(self._opens, name):
            self._refuse()
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}", name=name, obj=self)

    def _refuse(self, *_: object) -> NoReturn:
        raise NotAwaitedError(f"{self._call} was not awaited; use `await {self._call}` or `async with {self._call}`")

    __getitem__ = __setitem__ = __delitem__ = __contains__ = __iter__ = __len__ = __aiter__ = _refuse

    def __bool__(self) -> bool:
        return True

    def __await__(self) -> Generator[Any, None, C]:
        return self._opening().__await__()

    async def __aenter__(self) -> C:
        self._opened = await self._opening()
        return self._opened

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._opened is not None:
            await self._opened.close()


def connect(
    config: Any = None, *, app: str | None = None, threads: int = _THREADS, inline_reads: bool = False
) -> Opening[Store]:
    """Return the store for `config` and `app`, in any form that `hutch.connect` takes.

    At most `threads` calls run at once, 8 by default; more wait in a queue. With `inline_reads`, `get`, `[]` and
    `contains` run on the event loop itself, about 40 us faster per call. Use it only for data in memory (`memory://`,
    or an LMDB that fits): a read that waits for a disk stops everything on the event loop.

    Raises what `hutch.connect` raises, and ConfigError if `threads` is less than 1.
    """
    if threads < 1:
        raise hutch.ConfigError(f"threads must be at least 1, not {threads}")

    async def opening() -> Store:
        pool = WorkerPool(threads, "hutch.aio")
        calls = Calls(pool, _describe)
        try:
            store = await calls.write((), functools.partial(hutch.connect, config, app=app), undo=hutch.Store.close)
        except BaseException:
            pool.shut_down()
            raise
        calls.patience_s = patience_s(getattr(store.factory, "_storage_config", {}))
        return Store(store, calls, inline_reads)

    return Opening(opening, Store, "hutch.aio.connect(...)")


class Snapshot(Opened):
    """All namespaces at one moment: ``core = await snap["core"]``, then what `Namespace` has for reading."""

    _spelling = 'await snap["core"]'

    def __init__(self, snapshot: BlockingSnapshot, calls: Calls, inline_reads: bool) -> None:
        self._snapshot, self._calls, self._inline_reads = snapshot, calls, inline_reads

    def __getitem__(self, name: str) -> Opening[Namespace]:
        """Return the namespace `name` as it was: ``core = await snap["core"]``. The snapshot closes it."""

        async def opening() -> Namespace:
            handle = await self._calls.read(self._snapshot.__getitem__, name)
            return Namespace(handle, self._calls, self._inline_reads, is_shared=True)

        return Opening(opening, Namespace, "snap[...]")

    async def namespaces(self) -> list[str]:
        """Return the sorted names of the namespaces that held data."""
        return await self._calls.read(self._snapshot.namespaces)

    async def close(self) -> None:
        """Release the snapshot; does nothing if it is closed already."""
        await self._calls.read(self._snapshot.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class Store(StoreHabits):
    """A `hutch.Store` for asyncio, made by `connect`. Any task of any event loop may use it."""

    def __init__(self, store: hutch.Store, calls: Calls, inline_reads: bool) -> None:
        self._store = store
        self._calls = calls
        self._inline_reads = inline_reads
        self._shared: dict[str, Namespace[Any]] = {}
        # The threads of a store that is never closed end with it.
        weakref.finalize(calls, calls.pool.shut_down, join=False).atexit = False

    def __repr__(self) -> str:
        return f"<hutch.aio.{repr(self._store).removeprefix('<hutch.')}"

    @property
    def name(self) -> str:
        """The plugin's name, as in its descriptor."""
        return self._store.name

    @property
    def config(self) -> hutch.StoreConfig:
        """The validated config that the store was made from."""
        return self._store.config

    @property
    def location(self) -> str:
        """Where the data is, for people: a URL or a path, without a secret."""
        return self._store.location

    @property
    def capabilities(self) -> frozenset[str]:
        """The engine's promises beyond the six verbs."""
        return self._store.capabilities

    @overload
    def open(self, namespace: str) -> Opening[Namespace]: ...
    @overload
    def open(self, namespace: str, *, type: type[V], name: str | None = None) -> Opening[Namespace[V]]: ...
    @overload
    def open(self, namespace: str, *, type: Any, name: str | None = None) -> Opening[Namespace]: ...
    def open(self, namespace: str, *, type: Any = None, name: str | None = None) -> Opening[Namespace[Any]]:
        """Open `namespace`, which need not exist, as `hutch.Store.open`: ``async with store.open("core") as core``."""

        async def opening() -> Namespace:
            verb = functools.partial(self._store.open, namespace, type=type, name=name)
            handle = await self._calls.write((namespace,), verb, undo=hutch.Namespace.close)
            return Namespace(handle, self._calls, self._inline_reads)

        return Opening(opening, Namespace, "store.open(...)")

    def __getitem__(self, name: str) -> Opening[Namespace]:
        """Return the shared handle on the namespace `name`: ``core = await store["core"]``.

        It is opened once and the same for every task and event loop. Its `close` does nothing, nor does leaving its
        block: the store closes it. Meanwhile `open(name)` raises StoreAlreadyOpenError.
        """

        async def opening() -> Namespace:
            shared = self._shared.get(name)
            if shared is not None and shared.is_open_storage():
                return shared
            handle = await self._calls.write((name,), self._store.__getitem__, name)
            return self._shared.setdefault(
                str(handle.namespace), Namespace(handle, self._calls, self._inline_reads, is_shared=True)
            )

        return Opening(opening, Namespace, "store[...]")

    def transaction(self) -> Transaction:
        """Return a block that changes several namespaces, all or nothing: ``async with store.transaction() as tx``.

        ``tx[name]`` has `get`, `[]`, `set`, `remove`, `contains`, `touch` and `scan`, awaited. See
        `hutch.Store.transaction`; the tasks of the block may share it.
        """
        self._store._source()
        return Transaction(self._store._transaction_of, self._calls)

    async def transact(self, fn: Callable[[Transaction], Awaitable[T]]) -> T:
        """Return ``await fn(tx)``, called in a transaction and again after a conflict; see `hutch.Store.transact`."""
        return await transact(self.transaction, self._calls, fn)

    def snapshot(self) -> Opening[Snapshot]:
        """Return one unchanging view of all namespaces, for reading: ``async with store.snapshot() as snap``.

        See `hutch.Store.snapshot`. ``core = await snap["core"]`` is the namespace as it was.
        """

        async def opening() -> Snapshot:
            snapshot = await self._calls.write((), self._store.snapshot, undo=BlockingSnapshot.close)
            return Snapshot(snapshot, self._calls, self._inline_reads)

        return Opening(opening, Snapshot, "store.snapshot()")

    async def namespaces(self) -> list[str]:
        """Return the sorted names of namespaces that hold data. Raises CapabilityError if the engine cannot do it."""
        return await self._calls.read(self._store.namespaces)

    async def drop(self, namespace: str) -> None:
        """Remove `namespace` and all its data. Raises StoreAlreadyOpenError if it is open here."""
        await self._calls.write((namespace,), self._store.drop, namespace)

    async def stats(self) -> dict[str, object]:
        """Return the engine's figures, meant for people."""
        return await self._calls.read(self._store.stats)

    async def verify(
        self, *, repair: bool = False, salvage: str | os.PathLike[str] | None = None
    ) -> list[hutch.Finding]:
        """Read everything in the store and return each problem; see `hutch.verify`."""
        return await self._calls.read(lambda: list(self._store.verify(repair=repair, salvage=salvage)))

    async def backup(self, dest: str | os.PathLike[str]) -> None:
        """Write a copy of the whole store, as of one moment, to the new path `dest`; see `hutch.Store.backup`."""
        await self._calls.read(self._store.backup, dest)

    async def compact(self) -> tuple[int, int] | None:
        """Shrink the engine's files; return their bytes before and after. See `hutch.Store.compact`."""
        return await self._calls.read(self._store.compact)

    async def close(self) -> None:
        """Close the engine when all running calls are done; namespaces still open are closed with a ResourceWarning.

        The store is closed even if this raises or is cancelled. Waits at most one second for abandoned calls (their
        callers gave up); the engine is then closed once they are done. A second `close` does nothing.
        """
        try:
            await self._calls.close(self._store.close, _CLOSED)
        finally:
            self._calls.pool.shut_down()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


def _describe(namespace: str | None) -> str:
    return "the store" if namespace is None else f"namespace {namespace!r}"
