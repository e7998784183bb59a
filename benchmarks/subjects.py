"""Every operation on a store, as the store's documentation would do it: one loop per operation.

A subclass overrides what its store does differently. An operation that a store lacks is None, and left out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar

Items = list[tuple[str, Any]]


class Subject:
    """A dict-like store."""

    #: Operations that the store lacks.
    lacks: ClassVar[frozenset[str]] = frozenset({"get_many", "counter"})

    def __init__(self, native: Any) -> None:
        self.native = native

    @property
    def note(self) -> str:
        """Return what the table should say about this installation of the store."""
        return ""

    def get(self, keys: list[str]) -> None:
        native = self.native
        for key in keys:
            native[key]

    def has(self, keys: list[str]) -> None:
        native = self.native
        for key in keys:
            key in native  # noqa: B015

    def set(self, items: Items) -> None:
        native = self.native
        for key, value in items:
            native[key] = value

    def add_delete(self, items: Items) -> None:
        native = self.native
        for key, value in items:
            native[key] = value
            del native[key]

    def update(self, items: dict[str, Any]) -> None:
        self.native.update(items)

    def get_many(self, keys: list[str]) -> None:
        raise NotImplementedError

    def counter(self, times: int) -> None:
        """Add one, `times` times, to a number that other processes count too."""
        raise NotImplementedError

    def keys(self) -> int:
        return sum(1 for _ in self.native)

    def items(self) -> int:
        return sum(1 for _ in self.native.items())

    def len(self, times: int) -> None:
        native = self.native
        for _ in range(times):
            len(native)

    def close(self) -> None:
        self.native.close()


class AsyncSubject(Subject):
    """An asyncio store. `verbs` are its get, set, delete, set-many and get-many; a loop awaits them one at a time."""

    lacks: ClassVar[frozenset[str]] = frozenset({"has", "items", "keys", "len", "counter"})

    def __init__(
        self,
        opening: Awaitable[Any],
        verbs: Callable[[Any], tuple[Callable[..., Awaitable[Any]], ...]],
        closing: Callable[[Any], Awaitable[Any]],
    ) -> None:
        self._loop = asyncio.new_event_loop()
        super().__init__(self._loop.run_until_complete(_awaited(opening)))
        self._get, self._set, self._delete, self._set_many, self._get_many = verbs(self.native)
        self._closing = closing

    def get(self, keys: list[str]) -> None:
        async def run(get: Callable[..., Awaitable[Any]]) -> None:
            for key in keys:
                await get(key)

        self._loop.run_until_complete(run(self._get))

    def set(self, items: Items) -> None:
        async def run(set_: Callable[..., Awaitable[Any]]) -> None:
            for key, value in items:
                await set_(key, value)

        self._loop.run_until_complete(run(self._set))

    def add_delete(self, items: Items) -> None:
        async def run(set_: Callable[..., Awaitable[Any]], delete: Callable[..., Awaitable[Any]]) -> None:
            for key, value in items:
                await set_(key, value)
                await delete(key)

        self._loop.run_until_complete(run(self._set, self._delete))

    def update(self, items: dict[str, Any]) -> None:
        self._loop.run_until_complete(_awaited(self._set_many(items)))

    def get_many(self, keys: list[str]) -> None:
        self._loop.run_until_complete(_awaited(self._get_many(keys)))

    def close(self) -> None:
        self._loop.run_until_complete(_awaited(self._closing(self.native)))
        self._loop.close()


async def _awaited(awaitable: Awaitable[Any]) -> Any:
    return await awaitable
