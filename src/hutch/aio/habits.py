"""Refuse the blocking surface's syntax on asyncio objects: raise a TypeError that gives the right spelling."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from typing import Any, Generic, NoReturn, Self, TypeVar

T = TypeVar("T")

_IN_FULL = "{key: value async for key, value in namespace.items()}"


class Opened:
    """A base class that refuses `with` where `async with` is meant."""

    _spelling = "async with"

    def __enter__(self) -> NoReturn:
        raise TypeError(f"this is the asyncio surface of hutch; use `{self._spelling}`")

    def __exit__(self, *_: object) -> None:
        """Do nothing; without this method Python raises its own error before `__enter__` runs."""


class SyncHabits(Opened):
    """A base class that refuses every use of an aio Namespace as a mapping."""

    _spelling = "async with store.open(name) as namespace"

    def __contains__(self, key: object) -> NoReturn:
        raise _wrong("`key in namespace`", "`await namespace.contains(key)`")

    def __iter__(self) -> NoReturn:
        raise _wrong("iterating without `async`", f"`async for key in namespace`; for all of it `{_IN_FULL}`")

    def __reversed__(self) -> NoReturn:
        raise _wrong("`reversed(namespace)`", "`async for key, value in namespace.scan(reverse=True)`")

    def __len__(self) -> NoReturn:
        raise _wrong("`len(namespace)`", "`await namespace.len()`")

    def __bool__(self) -> NoReturn:
        raise _wrong(
            "the truth of a namespace", "`await namespace.len()` for whether it has keys, `is None` for whether it is"
        )

    def __setitem__(self, key: str, value: object) -> NoReturn:
        raise _wrong("`namespace[key] = value`", "`await namespace.set(key, value)`")

    def __delitem__(self, key: str) -> NoReturn:
        raise _wrong("`del namespace[key]`", "`await namespace.remove(key)`")

    def __or__(self, other: object) -> NoReturn:
        raise _wrong("`namespace | mapping`", f"`{_IN_FULL} | mapping`")

    __ror__ = __or__

    def __ior__(self, other: object) -> NoReturn:
        raise _wrong("`namespace |= mapping`", "`await namespace.update(mapping)`")

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Mapping):
            raise _wrong("`namespace == mapping`", f"`{_IN_FULL} == mapping`")
        return self is other

    __hash__ = object.__hash__

    def __copy__(self) -> NoReturn:
        raise _wrong("a copy of a namespace", f"`{_IN_FULL}`")

    def __deepcopy__(self, memo: object) -> NoReturn:
        self.__copy__()

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError(
            "an aio namespace cannot be pickled: its threads and tasks belong to this process; send the config and "
            "the name, and open it there with hutch.aio.connect(config) and store.open(name)"
        )


class StoreHabits(Opened):
    """A base class that refuses to copy or pickle an aio Store, or to use it as a container."""

    _spelling = "async with hutch.aio.connect(config) as store"

    def __contains__(self, name: object) -> NoReturn:
        raise _wrong("`name in store`", "`name in await store.namespaces()`")

    def __iter__(self) -> NoReturn:
        raise _wrong("iterating over a store", "`for name in await store.namespaces()`")

    def __len__(self) -> NoReturn:
        raise _wrong("`len(store)`", "`len(await store.namespaces())`")

    def __bool__(self) -> bool:
        return True

    def __setitem__(self, name: str, value: object) -> NoReturn:
        raise _wrong("`store[name] = value`", "`await namespace.update(mapping)` of `namespace = await store[name]`")

    def __delitem__(self, name: str) -> NoReturn:
        raise _wrong("`del store[name]`", "`await store.drop(name)`")

    def __copy__(self) -> NoReturn:
        raise _wrong("a copy of a store", "the store itself, from any task, or another `hutch.aio.connect(config)`")

    def __deepcopy__(self, memo: object) -> NoReturn:
        self.__copy__()

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError(
            "an aio store cannot be pickled: its threads and tasks belong to this process; send the config, and "
            "connect there with hutch.aio.connect(config)"
        )


class Iteration(AsyncIterator[T], Generic[T]):
    """The asynchronous iterator that `keys`, `items`, `values`, `scan` and `scan_keys` return."""

    __slots__ = ("_generator", "_spelling")

    def __init__(self, generator: AsyncGenerator[T, None], spelling: str) -> None:
        self._generator = generator
        self._spelling = spelling

    def __aiter__(self) -> AsyncIterator[T]:
        return self._generator

    async def __anext__(self) -> T:
        return await self._generator.__anext__()

    async def aclose(self) -> None:
        """End the iteration."""
        await self._generator.aclose()

    def _refuse(self, *_: object) -> NoReturn:
        raise TypeError(
            f"this is the asyncio surface of hutch; use `async for {self._spelling}`, or for a list "
            f"`[... async for {self._spelling}]`"
        )

    def __iter__(self) -> Iterator[Any]:
        # A generator, so that the first step refuses: dict() replaces a TypeError of __iter__ itself with its own.
        yield self._refuse()

    __len__ = __contains__ = __getitem__ = __reversed__ = __await__ = __enter__ = _refuse

    def __bool__(self) -> bool:
        return True

    async def __aenter__(self) -> Self:
        self._refuse()


class NotAwaitedError(TypeError, AttributeError):
    """The error for a verb used on the result of `connect` or `open`, which must be awaited first."""


def _wrong(used: str, right: str) -> TypeError:
    return TypeError(f"{used} is of the blocking surface of hutch, and this is the asyncio one; use {right}")
