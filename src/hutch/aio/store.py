"""connect and Store, for asyncio."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Coroutine, Generator
from types import TracebackType
from typing import Any, Generic, NoReturn, Protocol, Self, TypeVar

import hutch

from ..workers import Calls, WorkerPool, patience_s
from .habits import NotAwaitedError, Opened, StoreHabits
from .namespace import Namespace

_THREADS = 8
_CLOSED = "this store is closed; connect again to use it"


class _Closable(Protocol):
    async def close(self) -> None: ...


C = TypeVar("C", bound=_Closable)


class Opening(Opened, Generic[C]):
    """What `connect` and `Store.open` return: ``await`` it, or ``async with`` it, which closes what it opened."""

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


def connect(config: Any = None, *, threads: int = _THREADS, inline_reads: bool = False) -> Opening[Store]:
    """The store that `config` describes, which is anything that `hutch.connect` takes.

    `threads` is how many calls run at once, 8 unless given; more wait in line. With `inline_reads`, `get`, `[]` and
    `contains` run on the event loop itself, some 40 us faster each. That is for data in memory, `memory://` and an
    LMDB that fits in it: everything else that runs on the loop waits as long as such a read waits for a disk.

    Raises what `hutch.connect` raises, and ConfigError if `threads` is less than 1.
    """
    if threads < 1:
        raise hutch.ConfigError(f"threads must be at least 1, not {threads}")

    async def opening() -> Store:
        pool = WorkerPool(threads, "hutch.aio")
        calls = Calls(pool, _describe)
        try:
            store = await calls.write((), functools.partial(hutch.connect, config), undo=hutch.Store.close)
        except BaseException:
            pool.shut_down()
            raise
        calls.patience_s = patience_s(getattr(store._factory, "_storage_config", {}))
        return Store(store, calls, inline_reads)

    return Opening(opening, Store, "hutch.aio.connect(...)")


class Store(StoreHabits):
    """A `hutch.Store` for asyncio. Any task of any event loop may use it. Made by `connect`."""

    def __init__(self, store: hutch.Store, calls: Calls, inline_reads: bool) -> None:
        self._store = store
        self._calls = calls
        self._inline_reads = inline_reads
        # The threads of a store that nobody closes end with it.
        weakref.finalize(calls, calls.pool.shut_down, join=False).atexit = False

    def __repr__(self) -> str:
        return f"<hutch.aio.Store of {self._store!r}>"

    @property
    def name(self) -> str:
        """The plugin's name, as its descriptor has it."""
        return self._store.name

    @property
    def config(self) -> hutch.StoreConfig:
        """The config it was made from, checked."""
        return self._store.config

    @property
    def capabilities(self) -> frozenset[str]:
        """What the engine promises beyond the six verbs."""
        return self._store.capabilities

    def open(self, namespace: str) -> Opening[Namespace]:
        """Open `namespace`, which need not exist: ``async with store.open("core") as core``. As `hutch.Store.open`."""

        async def opening() -> Namespace:
            handle = await self._calls.write((namespace,), self._store.open, namespace, undo=hutch.Namespace.close)
            return Namespace(handle, self._calls, self._inline_reads)

        return Opening(opening, Namespace, "store.open(...)")

    async def namespaces(self) -> list[str]:
        """The names of the namespaces that hold data, sorted. Raises CapabilityError if the engine cannot tell."""
        return await self._calls.read(self._store.namespaces)

    async def drop(self, namespace: str) -> None:
        """Remove `namespace` and all its data. Raises StoreAlreadyOpenError if it is open here."""
        await self._calls.write((namespace,), self._store.drop, namespace)

    async def stats(self) -> dict[str, object]:
        """Figures of the engine, for people."""
        return await self._calls.read(self._store.stats)

    async def close(self) -> None:
        """Close the engine when all calls under way are done; namespaces still open are closed with a ResourceWarning.

        Closed even if something raises, or if this is cancelled. Calls that their callers gave up are waited for at
        most one second; then the engine is closed when they are done. A second `close` does nothing.
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
