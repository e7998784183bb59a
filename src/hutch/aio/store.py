"""connect and Store, for asyncio."""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine, Generator
from types import TracebackType
from typing import Any, Generic, Protocol, Self, TypeVar

import hutch

from .namespace import Namespace
from .threads import Threads

_THREADS = 8


class _Closable(Protocol):
    async def close(self) -> None: ...


C = TypeVar("C", bound=_Closable)


class Opening(Generic[C]):
    """What `connect` and `Store.open` return: ``await`` it, or ``async with`` it, which closes what it opened."""

    def __init__(self, opening: Callable[[], Coroutine[Any, Any, C]]) -> None:
        self._opening = opening
        self._opened: C | None = None

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
        pool = Threads(threads)
        try:
            store = await pool.change(pool, functools.partial(hutch.connect, config), undo=hutch.Store.close)
        except BaseException:
            pool.shut_down()
            raise
        return Store(store, pool, inline_reads)

    return Opening(opening)


class Store:
    """A `hutch.Store` for asyncio. Any task may use it, one event loop at a time. Made by `connect`."""

    def __init__(self, store: hutch.Store, threads: Threads, inline_reads: bool) -> None:
        self._store = store
        self._threads = threads
        self._inline_reads = inline_reads

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
            handle = await self._threads.change(self, self._store.open, namespace, undo=hutch.Namespace.close)
            return Namespace(handle, self._threads, self._inline_reads)

        return Opening(opening)

    async def namespaces(self) -> list[str]:
        """The names of the namespaces that hold data, sorted. Raises CapabilityError if the engine cannot tell."""
        return await self._threads.read(self, self._store.namespaces)

    async def drop(self, namespace: str) -> None:
        """Remove `namespace` and all its data. Raises StoreAlreadyOpenError if it is open here."""
        await self._threads.change(self, self._store.drop, namespace)

    async def stats(self) -> dict[str, object]:
        """Figures of the engine, for people."""
        return await self._threads.read(self, self._store.stats)

    async def close(self) -> None:
        """Close the engine when all calls under way are done; namespaces still open are closed with a ResourceWarning.

        Raises StoreNotOpenError when closed already. Closed even if something raises, or if this is cancelled.
        """
        await self._threads.close(self._store.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
