"""Test hutch.aio used as if it were blocking, under trio, or with async functions: an error at once, with advice."""

from __future__ import annotations

import asyncio
import copy
import inspect
import pickle
import subprocess
import sys
import textwrap
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

import hutch
import hutch.aio

Use = Callable[[Any], Any]


def loop_over(thing: Any) -> None:
    for _ in thing:
        pytest.fail("a step was made")


def block(thing: Any) -> None:
    with thing:
        pytest.fail("the block was run")


def set_it(thing: Any) -> None:
    thing["k"] = 2


def delete_it(thing: Any) -> None:
    del thing["k"]


def or_it(thing: Any) -> None:
    thing |= {"k": 2}


NAMESPACE: dict[str, tuple[Use, str]] = {
    "in": (lambda ns: "k" in ns, "await namespace.contains(key)"),
    "not in": (lambda ns: "nope" not in ns, "await namespace.contains(key)"),
    "for": (loop_over, "async for key in namespace"),
    "iter": (lambda ns: next(iter(ns)), "async for key in namespace"),
    "list": (list, "async for key in namespace"),
    "sorted": (sorted, "async for key in namespace"),
    "unpacked": (lambda ns: [*ns], "async for key in namespace"),
    "dict": (dict, "async for key in namespace"),
    "unpacked in a dict": (lambda ns: {**ns}, "async for key in namespace"),
    "dict.update": ({}.update, "async for key in namespace"),
    "reversed": (reversed, "namespace.scan(reverse=True)"),
    "len": (len, "await namespace.len()"),
    "if": (lambda ns: 1 if ns else 2, "await namespace.len()"),
    "not": (lambda ns: not ns, "await namespace.len()"),
    "with": (block, "async with store.open(name) as namespace"),
    "[]=": (set_it, "await namespace.set(key, value)"),
    "del": (delete_it, "await namespace.remove(key)"),
    "|": (lambda ns: ns | {}, "async for key, value in namespace.items()"),
    "| of a dict": (lambda ns: {} | ns, "async for key, value in namespace.items()"),
    "|=": (or_it, "await namespace.update(mapping)"),
    "==": (lambda ns: ns == {"k": 1}, "async for key, value in namespace.items()"),
    "!=": (lambda ns: ns != {"k": 1}, "async for key, value in namespace.items()"),
    "copy": (copy.copy, "async for key, value in namespace.items()"),
    "deepcopy": (copy.deepcopy, "async for key, value in namespace.items()"),
    "pickle": (pickle.dumps, "hutch.aio.connect(config)"),
    "for over keys": (lambda ns: loop_over(ns.keys()), "async for key in namespace.keys()"),
    "for over items": (lambda ns: loop_over(ns.items()), "async for key, value in namespace.items()"),
    "list of values": (lambda ns: list(ns.values()), "async for value in namespace.values()"),
    "list of scan": (lambda ns: list(ns.scan("k")), "async for key, value in namespace.scan()"),
    "in keys": (lambda ns: "k" in ns.keys(), "async for key in namespace.keys()"),  # noqa: SIM118 - the habit
    "len of scan_keys": (lambda ns: len(ns.scan_keys()), "async for key in namespace.scan_keys()"),
    "with mutable": (lambda ns: block(ns.mutable("k")), "async with namespace.mutable(key) as value"),
}

STORE: dict[str, tuple[Use, str]] = {
    "in": (lambda store: "core" in store, "name in await store.namespaces()"),
    "for": (loop_over, "for name in await store.namespaces()"),
    "len": (len, "len(await store.namespaces())"),
    "with": (block, "async with hutch.aio.connect(config) as store"),
    "[]=": (set_it, "await namespace.update(mapping)"),
    "del": (delete_it, "await store.drop(name)"),
    "copy": (copy.copy, "hutch.aio.connect(config)"),
    "deepcopy": (copy.deepcopy, "hutch.aio.connect(config)"),
    "pickle": (pickle.dumps, "hutch.aio.connect(config)"),
}

NOT_AWAITED: dict[str, tuple[Use, str]] = {
    "connect().open": (lambda _: hutch.aio.connect("memory://").open("core"), "await hutch.aio.connect(...)"),
    "with connect()": (lambda _: block(hutch.aio.connect("memory://")), "async with hutch.aio.connect(...)"),
    "open().get": (lambda store: store.open("other").get("k"), "await store.open(...)"),
    "open()[k]": (lambda store: store.open("other")["k"], "await store.open(...)"),
    "open()[k] = v": (lambda store: set_it(store.open("other")), "await store.open(...)"),
    "in open()": (lambda store: "k" in store.open("other"), "await store.open(...)"),
    "for over open()": (lambda store: loop_over(store.open("other")), "await store.open(...)"),
    "store[name].get": (lambda store: store["other"].get("k"), "await store[...]"),
    "store[name][k]": (lambda store: store["other"]["k"], "await store[...]"),
    "store[name][k] = v": (lambda store: set_it(store["other"]), "await store[...]"),
    "for over store[name]": (lambda store: loop_over(store["other"]), "await store[...]"),
    "with store[name]": (lambda store: block(store["other"]), "async with store[...]"),
    "with open()": (lambda store: block(store.open("other")), "async with store.open(...)"),
}


def refused(use: Use, thing: Any, right: str) -> None:
    with pytest.raises(TypeError) as caught:
        use(thing)
    assert right in str(caught.value)


async def check(use: Use, right: str, on_store: bool) -> None:
    async with hutch.aio.connect("memory://") as store, store.open("core") as ns:
        await ns.set("k", 1)
        refused(use, store if on_store else ns, right)
        assert await ns["k"] == 1
        assert await ns.len() == 1


@pytest.mark.parametrize("habit", NAMESPACE)
def test_a_blocking_habit_on_a_namespace_names_the_right_spelling(habit: str) -> None:
    asyncio.run(check(*NAMESPACE[habit], on_store=False))


@pytest.mark.parametrize("habit", STORE)
def test_a_blocking_habit_on_a_store_names_the_right_spelling(habit: str) -> None:
    asyncio.run(check(*STORE[habit], on_store=True))


@pytest.mark.parametrize("habit", NOT_AWAITED)
def test_what_must_be_awaited_first_says_so(habit: str) -> None:
    asyncio.run(check(*NOT_AWAITED[habit], on_store=True))


def test_awaiting_an_iteration_names_the_right_spelling() -> None:
    async def main() -> None:
        async with hutch.aio.connect("memory://") as store, store.open("core") as ns:
            with pytest.raises(TypeError, match="use `async for key in namespace"):
                await ns.keys()

    asyncio.run(main())


def test_stores_namespaces_and_openings_can_be_looked_at_hashed_and_compared() -> None:
    async def main() -> None:
        opening = hutch.aio.connect("memory://")
        assert not hasattr(opening, "open")
        assert not hasattr(opening, "nosuch")
        assert "not awaited" in repr(opening)
        async with opening as store, store.open("core") as ns:
            assert {store, ns} == {ns, store}
            assert ns == ns
            assert ns != store
            assert bool(store)

    asyncio.run(main())


def test_the_python_of_the_messages_is_right() -> None:
    async def main() -> None:
        async with hutch.aio.connect("memory://") as store, store.open("core") as namespace:
            key, value, mapping = "k", 1, {"a": 2}
            await namespace.set(key, value)
            await namespace.update(mapping)
            assert await namespace.contains(key)
            assert await namespace.len() == 2
            assert {key: value async for key, value in namespace.items()} == {"k": 1, "a": 2}
            assert [key async for key, value in namespace.scan(reverse=True)] == ["k", "a"]
            assert "core" in await store.namespaces()
            await namespace.remove(key)
            async with namespace.mutable("m", []) as changed:
                changed.append(1)
            assert [key async for key in namespace] == ["a", "m"]

    asyncio.run(main())


# --- async functions given to modify ---


async def double(value: int) -> int:
    return value * 2


class Awaitables:
    """Callables whose result must be awaited, which only calling them reveals."""

    @staticmethod
    def returns_a_coroutine(value: int) -> Any:
        return double(value)

    @staticmethod
    def returns_a_future(value: int) -> Any:
        future: Any = asyncio.Future(loop=asyncio.new_event_loop())
        future.get_loop().close()
        return future

    class Object:
        async def __call__(self, value: int) -> int:
            return value * 2


ASYNC: dict[str, Any] = {
    "async def": double,
    "a lambda that returns a coroutine": lambda value: double(value + 1),
    "a function that returns a coroutine": Awaitables.returns_a_coroutine,
    "a function that returns a future": Awaitables.returns_a_future,
    "an object whose call is async": Awaitables.Object(),
}


@pytest.mark.parametrize("fn", ASYNC)
@pytest.mark.parametrize("engine", ["memory", "lmdb", "sqlite"])
def test_an_async_function_given_to_modify_is_refused_and_nothing_is_written(
    fn: str, engine: str, tmp_path: Any, recwarn: pytest.WarningsRecorder
) -> None:
    url = "memory://" if engine == "memory" else f"{engine}://{tmp_path}/data"
    with hutch.connect(url) as store, store.open("core") as ns:
        ns["k"] = 1
        with pytest.raises(TypeError, match=r"modify.. of key 'k' .* async .*plain function"):
            ns.modify("k", ASYNC[fn])
        with pytest.raises(TypeError, match="async"):
            ns.modify("new", ASYNC[fn], default=1)
        assert dict(ns) == {"k": 1}

    async def main() -> None:
        async with hutch.aio.connect(url) as store, store.open("core") as ns:
            await ns.set("k", 1)
            with pytest.raises(TypeError, match=r"modify.. of key 'k' .* async .*plain function"):
                await ns.modify("k", ASYNC[fn])
            assert {key: value async for key, value in ns.items()} == {"k": 1}
            assert await ns.modify("k", lambda n: n + 1) == 2

    asyncio.run(main())
    assert [str(w.message) for w in recwarn if "never awaited" in str(w.message)] == []


# --- without asyncio ---

TRIO = """
import trio, hutch.aio

async def main():
    try:
        async with hutch.aio.connect("memory://") as store:
            print("connected")
    except Exception as error:
        print(type(error).__name__, error)

trio.run(main)
"""


def test_under_trio_the_error_says_that_asyncio_is_needed_and_what_to_do() -> None:
    pytest.importorskip("trio")
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(TRIO)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert "hutch.aio needs asyncio" in ended.stdout, ended.stderr
    assert "trio.to_thread.run_sync" in ended.stdout


def driven(awaitable: Awaitable[Any]) -> Any:
    """Run an awaitable in a way that no event loop does."""
    step = awaitable.__await__()
    try:
        next(step)
    finally:
        step.close()


def test_without_an_event_loop_the_error_says_that_asyncio_is_needed() -> None:
    async def begin() -> Any:
        store = await hutch.aio.connect("memory://")
        return store, await store.open("core")

    async def end(store: Any, ns: Any) -> None:
        await ns.close()
        await store.close()

    store, ns = asyncio.run(begin())
    uses: list[Callable[[], Any]] = [
        lambda: hutch.aio.connect("memory://"),
        lambda: store.open("other"),
        store.namespaces,
        lambda: ns.get("k"),
        lambda: ns.set("k", 1),
        lambda: ns.update({"k": 1}),
        lambda: ns.modify("k", lambda v: v),
        lambda: ns.mutable("k").__aenter__(),
        ns.close,
        store.close,
    ]
    for use in uses:
        with pytest.raises(RuntimeError, match=r"hutch\.aio needs asyncio, and no event loop runs here"):
            driven(use())
    with pytest.raises(RuntimeError, match=r"hutch\.aio needs asyncio"):
        driven(anext(aiter(ns)))
    asyncio.run(end(store, ns))


def test_every_verb_that_the_blocking_surface_spells_otherwise_is_refused_here() -> None:
    """Everything in a mapping is awaited, refused, or inherited from object."""
    given = {
        name for name in dir(hutch.Namespace) if name.startswith("__") and callable(getattr(hutch.Namespace, name))
    }
    plain = set(dir(object)) | {"__class_getitem__", "__subclasshook__", "__del__", "__getitem__", "__getattr__"}
    assert {name for name in given - plain if not hasattr(hutch.aio.Namespace, name)} == set()
    assert inspect.iscoroutinefunction(hutch.aio.Namespace.__getitem__)
