"""An application as its author types it. `make types` checks it with mypy and with pyright, against hutch as installed.

Nothing here runs. An error that is expected carries a comment for each checker, and both report a comment that is not
needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any, TypedDict, assert_type

import hutch
import hutch.aio
from hutch import Namespace, Store


class User:
    name: str = "ada"


def open_users(store: Store) -> Namespace[User]:
    return store.open("users")


def read(users: Namespace[User]) -> None:
    assert_type(users["ada"], User)
    assert_type(users.get("ada"), User | None)
    assert_type(users.get("ada", User()), User)
    assert_type(users.get("ada", 0), User | int)
    assert_type(users.get_many(["ada"]), dict[str, User])
    assert_type(users.scan(prefix="a"), Iterator[tuple[str, User]])
    assert_type(list(users.items()), list[tuple[str, User]])
    assert_type(list(users.values()), list[User])
    assert_type(list(users), list[str])
    assert_type(list(reversed(users)), list[str])
    assert_type(dict(users), dict[str, User])


def write(users: Namespace[User], counters: Namespace[int], lists: Namespace[list[int]]) -> None:
    users["ada"] = User()
    users |= {"bob": User()}
    users.update({"eve": User()}, joe=User())
    assert_type(users.pop("ada"), User)
    assert_type(users.pop("ada", None), User | None)
    assert_type(users.popitem(), tuple[str, User])
    assert_type(users.setdefault("ada", User()), User)
    assert_type(users.compare_and_set("ada", hutch.MISSING, User()), bool)
    assert_type(counters.modify("hits", lambda n: n + 1), int)
    assert_type(counters.modify("hits", lambda n: n + 1, default=0), int)
    counters.modify("hits", lambda n: hutch.MISSING if n > 9 else n + 1)
    assert_type(counters.modify("hits", lambda n: n or None, allow_none=True), int | None)
    assert_type(lists.mutable("new", default=[]), AbstractContextManager[list[int], None])
    with lists.mutable("known") as known:
        assert_type(known, list[int])


def mistakes(users: Namespace[User], counters: Namespace[int]) -> None:
    users["ada"] = 3  # type: ignore[assignment]  # pyright: ignore[reportArgumentType]
    print(users[3])  # type: ignore[index]  # pyright: ignore
    counters.modify("hits", str)  # type: ignore[arg-type]  # pyright: ignore
    print(users.get("ada").name)  # type: ignore[union-attr]  # pyright: ignore[reportOptionalMemberAccess]


class Movie(TypedDict):
    title: str


def typed(store: Store) -> None:
    with store.open("users", type=User) as users:
        assert_type(users, Namespace[User])
        assert_type(users["ada"], User)
        users["ada"] = "ada"  # type: ignore[assignment]  # pyright: ignore[reportArgumentType]
    with store.open("movies", type=Movie) as movies:
        assert_type(movies["m"], Movie)
    with store.open("scores", type=list[int]) as scores:
        assert_type(scores["s"], list[int])
    mixed: Namespace[int | str] = store.open("mixed", type=int | str)
    assert_type(mixed["m"], int | str)
    assert_type(store.open("counters", type=int).increment("n"), int)
    with store.open("users", type=User, name="shop.User") as named:
        assert_type(named["ada"], User)
    store.open("users", name="shop.User")  # type: ignore[call-overload]  # pyright: ignore


async def typed_async(store: hutch.aio.Store) -> None:
    async with store.open("users", type=User) as users:
        assert_type(await users["ada"], User)
    movies = await store.open("movies", type=Movie, name="shop.Movie")
    assert_type(await movies["m"], Movie)


def untyped(store: Store) -> None:
    with hutch.connect("memory://") as other, other.open("core") as core, store.open("core") as plain:
        assert_type(core, Namespace)
        assert_type(core, Namespace[Any])
        assert_type(core["k"], Any)
        core["k"] = 1
        plain["k"] = [core.get("k"), core.setdefault("n"), core.modify("k", lambda n: n + 1, default=0)]
        with core.mutable("k", {}) as value:
            value["n"] = 1


class Plugin(hutch.StoreMixin):
    """A host's class that mixes the mapping in, without a type of the values."""

    def count(self) -> int:
        self["count"] = self.get("count", 0) + 1
        return len(self)


async def open_users_async(store: hutch.aio.Store) -> hutch.aio.Namespace[User]:
    async with store.open("plain") as plain:
        assert_type(plain, hutch.aio.Namespace)
        assert_type(plain, hutch.aio.Namespace[Any])
        assert_type(await plain["k"], Any)
        await plain.set("k", 1)
    assert_type(await store["shared"], hutch.aio.Namespace[Any])
    return await store.open("users")


async def read_async(users: hutch.aio.Namespace[User]) -> None:
    assert_type(await users["ada"], User)
    assert_type(await users.get("ada"), User | None)
    assert_type(await users.get("ada", User()), User)
    assert_type(await users.get("ada", 0), User | int)
    assert_type(await users.get_many(["ada"]), dict[str, User])
    assert_type([item async for item in users.scan(prefix="a")], list[tuple[str, User]])
    assert_type([item async for item in users.items()], list[tuple[str, User]])
    assert_type([value async for value in users.values()], list[User])
    assert_type([key async for key in users], list[str])


async def write_async(users: hutch.aio.Namespace[User], counters: hutch.aio.Namespace[int]) -> None:
    await users.set("ada", User())
    await users.set_many({"bob": User()})
    await users.update({"eve": User()}, joe=User())
    assert_type(await users.pop("ada"), User)
    assert_type(await users.pop("ada", None), User | None)
    assert_type(await users.popitem(), tuple[str, User])
    assert_type(await users.setdefault("ada", User()), User)
    assert_type(await users.compare_and_set("ada", hutch.MISSING, User()), bool)
    assert_type(await counters.modify("hits", lambda n: n + 1, default=0), int)
    assert_type(await counters.modify("hits", lambda n: n or None, allow_none=True), int | None)
    async with users.mutable("ada") as user:
        assert_type(user, User)


async def mistakes_async(users: hutch.aio.Namespace[User], counters: hutch.aio.Namespace[int]) -> None:
    await users.set("ada", 3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await users.get(3)  # type: ignore[call-overload]  # pyright: ignore
    await counters.modify("hits", str)  # type: ignore[arg-type]  # pyright: ignore
    print((await users.get("ada")).name)  # type: ignore[union-attr]  # pyright: ignore[reportOptionalMemberAccess]
