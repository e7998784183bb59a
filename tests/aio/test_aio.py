"""Test hutch.aio: that it does what hutch.Store does, and what only asyncio can get wrong."""

# ruff: noqa: PT012, PT031 - `async with` cannot share a statement with `pytest.raises`
from __future__ import annotations

import asyncio
import contextvars
import gc
import inspect
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

import hutch
import hutch.aio
from hutch import keylocks

T = TypeVar("T")

ENGINE = """
import hutch

class GatedPlugin(hutch.StoragePluginBase):
    capabilities = frozenset({"atomic-modify", "atomic-modify:process"})

    def __init__(self, config=None):
        super().__init__(config)
        self.gate = self._storage_config["gate"]
        self.data = {}
        self.gate("connect")

    def open(self, namespace):
        self.gate("open")
        return GatedStorage(self, namespace)

    def close(self):
        self.gate("close store")

class GatedStorage(hutch.EncodedStorage):
    def __init__(self, plugin, namespace):
        super().__init__(plugin, namespace)
        self.gate, self.data = plugin.gate, plugin.data

    def read(self, key):
        self.gate("read " + key)
        return self.data.get(key)

    def write(self, key, data):
        self.gate("write " + key)
        self.data[key] = data

    def delete(self, key):
        return self.data.pop(key, None) is not None

    def len(self):
        return len(self.data)

    def keys(self):
        return list(self.data)

    def close(self):
        self.gate("close")
"""


class Gate:
    """Passed by every call of the engine. The calls in `shut` wait there until `let` is called."""

    def __init__(self) -> None:
        self.passed: list[str] = []
        self.threads: dict[str, str] = {}
        self.shut: set[str] = set()
        self._changed = threading.Condition()
        self.waiting: list[str] = []
        self.most_waiting = 0

    def __call__(self, what: str) -> None:
        with self._changed:
            self.waiting.append(what)
            self.most_waiting = max(self.most_waiting, len(self.waiting))
            self._changed.notify_all()
            assert self._changed.wait_for(lambda: what not in self.shut, 20), f"{what} was never let through"
            self.waiting.remove(what)
            self.passed.append(what)
            self.threads[what] = threading.current_thread().name

    def let(self, what: str) -> None:
        with self._changed:
            self.shut.discard(what)
            self._changed.notify_all()

    async def reached(self, what: str, times: int = 1) -> None:
        async with asyncio.timeout(20):
            while self.waiting.count(what) < times:
                await asyncio.sleep(0.001)


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    for what in list(gate.shut):
        gate.let(what)


@pytest.fixture
def gated(tmp_path: Path, gate: Gate) -> dict[str, Any]:
    (tmp_path / "gated.plug").write_text("[Core]\nName = gated\nModule = gated_storage\n")
    (tmp_path / "gated_storage.py").write_text(ENGINE)
    return {"STORAGE": "gated", "STORAGE_CONFIG": {"gate": gate}, "EXTRA_PLUGIN_DIRS": [str(tmp_path)]}


@pytest.fixture(params=["memory", "lmdb", "sqlite"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return {"memory": "memory://", "lmdb": f"lmdb://{tmp_path}/l", "sqlite": f"sqlite://{tmp_path}/s"}[request.param]


async def soon(awaitable: Awaitable[T], within_s: float = 20) -> T:
    async with asyncio.timeout(within_s):
        return await awaitable


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.001)


async def cancelled(task: asyncio.Task[Any]) -> None:
    with pytest.raises(asyncio.CancelledError):
        await soon(task)


# --- the same surface ---


def test_every_verb_of_a_handle_has_one_here() -> None:
    renamed = {"__setitem__": "set", "__delitem__": "remove", "__contains__": "contains", "__len__": "len"}
    sync = {name for name in dir(hutch.Namespace) if not name.startswith("_")} | set(renamed)
    # Opening and closing are Store.open and close; the aliases of Errbot's StoreMixin stay where they belong.
    sync -= {"open_storage", "close_storage"}
    assert {renamed.get(name, name) for name in sync} <= set(dir(hutch.aio.Namespace))
    stores = {name for name in dir(hutch.Store) if not name.startswith("_")}
    assert stores <= {*dir(hutch.aio.Store), "config", "factory"}


def test_arguments_and_defaults_are_those_of_a_handle() -> None:
    for name in ("get", "pop", "setdefault", "update", "get_many", "set_many", "remove_many", "scan", "scan_keys"):
        assert parameters(getattr(hutch.aio.Namespace, name)) == parameters(getattr(hutch.Namespace, name)), name
    for name in ("modify", "mutable", "compare_and_set", "popitem", "clear", "keys", "items", "values"):
        assert parameters(getattr(hutch.aio.Namespace, name)) == parameters(getattr(hutch.Namespace, name)), name
    for name in ("open", "drop", "namespaces", "stats", "close"):
        assert parameters(getattr(hutch.aio.Store, name)) == parameters(getattr(hutch.Store, name)), name


def parameters(function: Callable[..., Any]) -> list[tuple[str, Any, Any]]:
    return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]


Sync = Callable[[hutch.Namespace], Any]
Async = Callable[[hutch.aio.Namespace], Awaitable[Any]]


async def listed(iterator: Any) -> list[Any]:
    return [item async for item in iterator]


async def sorted_later(iterator: Any) -> list[Any]:
    return sorted(await listed(iterator), key=repr)


def double(value: Any) -> Any:
    return value * 2


# The same call both ways, one after the other on the same data: "b" and "a" to begin with.
CALLS: dict[str, tuple[Sync, Async]] = {
    "[]": (lambda ns: ns["a"], lambda ns: ns["a"]),
    "[] of a missing key": (lambda ns: ns["x"], lambda ns: ns["x"]),
    "[] of no key": (lambda ns: ns[1], lambda ns: ns[1]),  # type: ignore[index]
    "get": (lambda ns: ns.get("a"), lambda ns: ns.get("a")),
    "get with default": (lambda ns: ns.get("x", 5), lambda ns: ns.get("x", 5)),
    "get of an empty key": (lambda ns: ns.get(""), lambda ns: ns.get("")),
    "contains": (lambda ns: "a" in ns, lambda ns: ns.contains("a")),
    "contains not": (lambda ns: "x" in ns, lambda ns: ns.contains("x")),
    "contains no key": (lambda ns: ns.__contains__(1), lambda ns: ns.contains(1)),  # type: ignore[arg-type]
    "len": (len, lambda ns: ns.len()),
    "keys": (lambda ns: sorted(ns.keys()), lambda ns: sorted_later(ns.keys())),
    "iter": (sorted, sorted_later),
    "items": (lambda ns: sorted(ns.items(), key=repr), lambda ns: sorted_later(ns.items())),
    "values": (lambda ns: sorted(ns.values(), key=repr), lambda ns: sorted_later(ns.values())),
    "scan": (lambda ns: list(ns.scan("a")), lambda ns: listed(ns.scan("a"))),
    "scan a range": (
        lambda ns: list(ns.scan(start="a", stop="c", reverse=True)),
        lambda ns: listed(ns.scan(start="a", stop="c", reverse=True)),
    ),
    "scan_keys": (lambda ns: list(ns.scan_keys(reverse=True)), lambda ns: listed(ns.scan_keys(reverse=True))),
    "get_many": (lambda ns: ns.get_many(["b", "x", "a"]), lambda ns: ns.get_many(["b", "x", "a"])),
    "set": (lambda ns: ns.__setitem__("c", {1, 2}), lambda ns: ns.set("c", {1, 2})),
    "set what no codec takes": (lambda ns: ns.__setitem__("c", object()), lambda ns: ns.set("c", object())),
    "remove": (lambda ns: ns.__delitem__("a"), lambda ns: ns.remove("a")),
    "remove a missing key": (lambda ns: ns.__delitem__("x"), lambda ns: ns.remove("x")),
    "update": (lambda ns: ns.update({"c": 3}, d=4), lambda ns: ns.update({"c": 3}, d=4)),
    "update with pairs": (lambda ns: ns.update([("c", 3)]), lambda ns: ns.update([("c", 3)])),
    "set_many": (lambda ns: ns.set_many({"c": 3, "a": 9}), lambda ns: ns.set_many({"c": 3, "a": 9})),
    "remove_many": (lambda ns: ns.remove_many(["a", "x"]), lambda ns: ns.remove_many(["a", "x"])),
    "clear": (lambda ns: ns.clear(), lambda ns: ns.clear()),
    "pop": (lambda ns: ns.pop("a"), lambda ns: ns.pop("a")),
    "pop a missing key": (lambda ns: ns.pop("x"), lambda ns: ns.pop("x")),
    "pop with default": (lambda ns: ns.pop("x", None), lambda ns: ns.pop("x", None)),
    "popitem": (lambda ns: ns.popitem(), lambda ns: ns.popitem()),
    "setdefault": (lambda ns: ns.setdefault("a", 7), lambda ns: ns.setdefault("a", 7)),
    "setdefault of a missing key": (lambda ns: ns.setdefault("x", 7), lambda ns: ns.setdefault("x", 7)),
    "modify": (lambda ns: ns.modify("b", double), lambda ns: ns.modify("b", double)),
    "modify with default": (lambda ns: ns.modify("x", double, 4), lambda ns: ns.modify("x", double, 4)),
    "modify a missing key": (lambda ns: ns.modify("x", double), lambda ns: ns.modify("x", double)),
    "modify that raises": (lambda ns: ns.modify("a", lambda v: v / 0), lambda ns: ns.modify("a", lambda v: v / 0)),
    "modify no key": (lambda ns: ns.modify("", double), lambda ns: ns.modify("", double)),
    "compare_and_set": (lambda ns: ns.compare_and_set("b", 2, 3), lambda ns: ns.compare_and_set("b", 2, 3)),
    "compare_and_set of another": (lambda ns: ns.compare_and_set("b", 5, 3), lambda ns: ns.compare_and_set("b", 5, 3)),
}


def outcome(call: Callable[[], Any]) -> tuple[str, Any]:
    try:
        return "returned", call()
    except Exception as error:
        return type(error).__name__, str(error)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("inline_reads", [False, True])
def test_a_call_does_what_it_does_on_a_handle(call: str, inline_reads: bool) -> None:
    start = {"b": 2, "a": [1, (2, 3)]}
    with hutch.connect("memory://") as store, store.open("core") as ns:
        ns.update(start)
        expected = outcome(lambda: CALLS[call][0](ns)), dict(ns)

    async def main() -> Any:
        async with hutch.aio.connect("memory://", inline_reads=inline_reads) as store, store.open("core") as ns:
            await ns.update(start)
            try:
                found: tuple[str, Any] = "returned", await CALLS[call][1](ns)
            except Exception as error:
                found = type(error).__name__, str(error)
            return found, dict(await listed(ns.items()))

    assert asyncio.run(main()) == expected


def test_a_store_lists_drops_and_describes(url: str) -> None:
    async def main() -> None:
        async with hutch.aio.connect(url) as store:
            async with store.open("core") as core, store.open("other") as other:
                await core.set("k", 1)
                await other.set("k", 2)
                assert (core.namespace, core.is_open_storage(), "core" in repr(core)) == ("core", True, True)
                assert core.capabilities == store.capabilities
                with pytest.raises(hutch.StoreAlreadyOpenError):
                    await store.drop("core")
            assert await store.namespaces() == ["core", "other"]
            await store.drop("core")
            assert await store.namespaces() == ["other"]
            assert store.name in url
            assert store.name in repr(store)
            assert store.config.storage in url
            with hutch.connect(url) as sync:
                assert set(await store.stats()) == set(sync.stats())

    asyncio.run(main())


# --- opening and closing ---


def test_connect_and_open_can_be_awaited_and_closed_by_hand() -> None:
    async def main() -> None:
        store = await hutch.aio.connect("memory://")
        core = await store.open("core")
        await core.set("k", 1)
        assert await core["k"] == 1
        await core.close()
        async with store, await store.open("core") as core:
            assert await core["k"] == 1
        with pytest.raises(hutch.StoreNotOpenError):
            await store.namespaces()

    asyncio.run(main())


def test_a_block_that_raises_closes_and_keeps_what_was_set(tmp_path: Path) -> None:
    async def main() -> None:
        async with hutch.aio.connect(f"sqlite://{tmp_path}/kv.db") as store:
            with pytest.raises(LookupError):
                async with store.open("core") as core:
                    await core.set("k", 1)
                    raise LookupError
            assert not core.is_open_storage()
            async with store.open("core") as core:
                assert await core.get("k") == 1

    asyncio.run(main())


@pytest.mark.parametrize("call", CALLS)
def test_use_after_close_is_an_error(call: str) -> None:
    async def main() -> None:
        async with hutch.aio.connect("memory://") as store, store.open("core") as core:
            pass
        with pytest.raises((hutch.StoreNotOpenError, hutch.KeyTypeError, hutch.KeyLimitError)):
            await CALLS[call][1](core)

    asyncio.run(main())


def test_opening_twice_and_using_a_closed_one_are_errors_and_closing_twice_is_not() -> None:
    async def main() -> None:
        store = await hutch.aio.connect("memory://")
        core = await store.open("core")
        with pytest.raises(hutch.StoreAlreadyOpenError):
            await store.open("core")
        await core.close()
        await core.close()
        async with core:
            pass
        with pytest.raises(hutch.StoreNotOpenError, match="'core'"):
            await core.get("k")
        with pytest.raises(hutch.StoreNotOpenError, match="'core'"):
            async with core.mutable("k"):
                pytest.fail("the block was run")
        with pytest.raises(hutch.StoreNotOpenError):
            core.capabilities  # noqa: B018
        await store.close()
        await store.close()
        async with store:
            pass
        for use in (store.namespaces(), store.drop("core"), store.stats(), store.open("core")):
            with pytest.raises(hutch.StoreNotOpenError, match="store is closed"):
                await use

    asyncio.run(main())


def test_a_handle_left_open_is_closed_with_its_store_and_warned_about() -> None:
    async def main() -> None:
        store = await hutch.aio.connect("memory://")
        core = await store.open("core")
        with pytest.warns(ResourceWarning, match="still open"):
            await store.close()
        assert not core.is_open_storage()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("config", "error"),
    [
        ("nosuch://x", hutch.PluginNotFoundError),
        ({"STORAGE": "memory", "STORAG_CONFIG": {}}, hutch.ConfigError),
        ("sqlite:///dev/null/kv.db", hutch.StorageUnavailableError),
    ],
)
def test_what_cannot_be_opened_raises_what_hutch_connect_raises(config: Any, error: type[Exception]) -> None:
    async def main() -> None:
        with pytest.raises(error):
            async with hutch.aio.connect(config) as store, store.open("core") as core:
                await core.set("k", 1)
        with pytest.raises(hutch.NamespaceError):
            async with hutch.aio.connect("memory://") as store:
                await store.open("")

    asyncio.run(main())
    with pytest.raises(hutch.ConfigError, match="threads must be at least 1"):
        hutch.aio.connect("memory://", threads=0)


def test_a_store_serves_several_event_loops_one_after_the_other(url: str) -> None:
    async def begin() -> tuple[hutch.aio.Store, hutch.aio.Namespace]:
        store = await hutch.aio.connect(url)
        core = await store.open("core")
        await asyncio.gather(*[count(core) for _ in range(5)])
        return store, core

    async def count(core: hutch.aio.Namespace) -> None:
        async with core.mutable("n", default=[]) as n:
            n.append(1)

    async def go_on(core: hutch.aio.Namespace) -> int:
        await asyncio.gather(*[count(core) for _ in range(5)])
        return len(await core["n"])

    async def end(store: hutch.aio.Store, core: hutch.aio.Namespace) -> None:
        await core.close()
        await store.close()

    store, core = asyncio.run(begin())
    assert asyncio.run(go_on(core)) == 10
    assert asyncio.run(go_on(core)) == 15
    asyncio.run(end(store, core))


# --- the loop goes on ---


@pytest.mark.parametrize(
    ("what", "use"),
    [
        ("read k", lambda core: core.get("k")),
        ("write k", lambda core: core.set("k", 1)),
        ("read k", lambda core: core.modify("k", lambda v: 1)),
        ("read k", lambda core: listed(core.items())),
    ],
)
def test_the_event_loop_ticks_while_the_engine_is_slow(gated: Any, gate: Gate, what: str, use: Async) -> None:
    async def main() -> None:
        async with hutch.aio.connect(gated) as store, store.open("core") as core:
            await core.set("k", 1)
            gate.shut.add(what)
            task = asyncio.ensure_future(use(core))
            await gate.reached(what)
            for _ in range(50):
                await asyncio.sleep(0)
            await core.set("other", 2)
            assert not task.done()
            gate.let(what)
            await soon(task)

    asyncio.run(main())


def test_opening_and_closing_do_not_hold_up_the_loop_either(gated: Any, gate: Gate) -> None:
    async def held_up(what: str, use: Coroutine[Any, Any, T]) -> T:
        gate.shut.add(what)
        task = asyncio.create_task(use)
        await gate.reached(what)
        await asyncio.sleep(0)
        gate.let(what)
        return await soon(task)

    async def awaited(opening: Awaitable[T]) -> T:
        return await opening

    async def main() -> None:
        store = await held_up("connect", awaited(hutch.aio.connect(gated)))
        core = await held_up("open", awaited(store.open("core")))
        await held_up("close", core.close())
        await held_up("close store", store.close())

    asyncio.run(main())


def test_as_many_calls_run_at_once_as_there_are_threads_and_the_others_wait(gated: Any, gate: Gate) -> None:
    async def main() -> None:
        async with hutch.aio.connect(gated, threads=3) as store, store.open("core") as core:
            gate.shut.add("read k")
            gets = [asyncio.create_task(core.get("k", n)) for n in range(10)]
            await gate.reached("read k", times=3)
            await asyncio.sleep(0.02)
            assert gate.most_waiting == 3
            gate.let("read k")
            assert await soon(asyncio.gather(*gets)) == list(range(10))

    asyncio.run(main())


def test_inline_reads_run_on_the_loop_and_everything_else_does_not(gated: Any, gate: Gate) -> None:
    async def main(inline_reads: bool) -> None:
        async with hutch.aio.connect(gated, inline_reads=inline_reads) as store, store.open("core") as core:
            await core.set("a", 1)
            await core.modify("b", double, default=1)
            assert (await core.get("a"), await core["a"], await core.contains("a")) == (1, 1, True)
            assert await core.get_many(["b"]) == {"b": 2}
        assert gate.threads["read a"].startswith("MainThread" if inline_reads else "hutch.aio")
        for elsewhere in ("connect", "open", "write a", "read b", "write b", "close", "close store"):
            assert gate.threads[elsewhere].startswith("hutch.aio")

    asyncio.run(main(True))
    asyncio.run(main(False))


def test_a_loop_over_inline_reads_lets_other_tasks_run() -> None:
    async def main() -> None:
        async with hutch.aio.connect("memory://", inline_reads=True) as store, store.open("core") as core:
            ticks = 0

            async def tick() -> None:
                nonlocal ticks
                while True:
                    ticks += 1
                    await asyncio.sleep(0)

            ticking = asyncio.create_task(tick())
            for _ in range(1000):
                await core.get("k")
            assert ticks >= 10
            ticking.cancel()
            await cancelled(ticking)

    asyncio.run(main())


def test_many_tasks_at_once_lose_nothing(url: str) -> None:
    async def main() -> None:
        async with hutch.aio.connect(url) as store, store.open("core") as core:

            async def work(task: int) -> None:
                for n in range(10):
                    await core.set(f"{task}:{n}", [task, n])
                    assert await core[f"{task}:{n}"] == [task, n]
                    await core.modify("total", lambda total: total + 1, default=0)
                await core.remove(f"{task}:0")

            await asyncio.gather(*[work(task) for task in range(20)])
            assert (await core["total"], await core.len()) == (200, 181)

    asyncio.run(main())


# --- iteration ---


def test_iterations_give_everything_once_and_in_order_over_many_chunks(url: str) -> None:
    items = {f"k{n:05}": n for n in range(5000)}

    async def main() -> None:
        async with hutch.aio.connect(url) as store, store.open("core") as core:
            await core.update(items)
            assert await listed(core.scan()) == list(items.items())
            assert await listed(core.scan_keys(reverse=True)) == list(reversed(items))
            assert await sorted_later(core) == await sorted_later(core.keys()) == list(items)
            assert sorted(await listed(core.values())) == list(range(5000))
            async for key, value in core.scan(prefix="k01"):
                await core.remove(key)
                await core.set(f"z{key}", value)
            assert await core.len() == 5000

    asyncio.run(main())


def test_breaking_off_an_iteration_reads_no_further(gated: Any, gate: Gate) -> None:
    async def main() -> None:
        async with hutch.aio.connect(gated) as store, store.open("core") as core:
            await core.update({f"k{n:04}": n for n in range(1000)})
            gate.passed.clear()
            async for _ in core.scan():  # items() reads the first thousand at once
                break
            assert 0 < len(gate.passed) <= 16

    asyncio.run(main())


def test_an_iteration_ends_with_its_handle() -> None:
    async def main() -> None:
        async with hutch.aio.connect("memory://") as store:
            async with store.open("core") as core:
                await core.update({f"k{n:04}": n for n in range(100)})
                iterator = aiter(core.items())
                await anext(iterator)
            with pytest.raises(hutch.StoreNotOpenError, match="during an iteration"):
                await anext(iterator)

    asyncio.run(main())


def test_what_comes_before_a_damaged_value_is_given_out_before_the_error() -> None:
    async def main() -> list[str]:
        given = []
        async with hutch.aio.connect("memory://") as store, store.open("core") as core:
            await core.update({f"k{n}": n for n in range(9)})
            store._store._factory.open("core").write("k5", b"?")
            with pytest.raises(hutch.CorruptValueError, match="'k5'"):
                async for key, _ in core.scan():
                    given.append(key)
        return given

    assert asyncio.run(main()) == ["k0", "k1", "k2", "k3", "k4"]


# --- cancellation ---


def test_a_cancelled_read_returns_at_once_and_close_waits_for_its_end(gated: Any, gate: Gate) -> None:
    async def main() -> None:
        async with hutch.aio.connect(gated) as store:
            core = await store.open("core")
            gate.shut.add("read k")
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.02):
                    await core.get("k")
            closing = asyncio.create_task(core.close())
            await asyncio.sleep(0.02)
            assert not closing.done()
            assert "close" not in gate.waiting + gate.passed
            gate.let("read k")
            await soon(closing)
            assert gate.passed[-2:] == ["read k", "close"]

    asyncio.run(main())


def test_a_cancelled_started_write_returns_at_once_and_a_later_write_of_the_key_comes_after_it(
    gated: Any, gate: Gate
) -> None:
    async def main() -> None:
        async with hutch.aio.connect(gated) as store, store.open("core") as core:
            gate.shut.add("write k")
            writing = asyncio.create_task(core.set("k", "late"))
            await gate.reached("write k")
            writing.cancel()
            await cancelled(writing)
            assert "write k" not in gate.passed
            after = asyncio.create_task(core.set("k", "after"))
            await core.set("other", 1)
            assert not after.done()
            assert gate.waiting.count("write k") == 1
            gate.let("write k")
            await soon(after)
            assert await core["k"] == "after"

    asyncio.run(main())


def test_a_cancelled_write_that_fails_is_a_cancellation(gated: Any, gate: Gate) -> None:
    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, what: complaints.append(what))
        async with hutch.aio.connect(gated) as store, store.open("core") as core:
            gate.shut.add("read k")
            modifying = asyncio.create_task(core.modify("k", double))
            await gate.reached("read k")
            modifying.cancel()
            await asyncio.sleep(0.01)
            gate.let("read k")
            await cancelled(modifying)
            del modifying
            gc.collect()
            assert complaints == []

    complaints: list[object] = []
    asyncio.run(main())


def test_a_cancelled_write_that_had_not_started_does_not_happen(gated: Any, gate: Gate) -> None:
    async def main() -> None:
        async with hutch.aio.connect(gated, threads=1) as store, store.open("core") as core:
            gate.shut.add("write first")
            first = asyncio.create_task(core.set("first", 1))
            await gate.reached("write first")
            second = asyncio.create_task(core.set("second", 2))
            await asyncio.sleep(0.01)
            second.cancel()
            await cancelled(second)
            gate.let("write first")
            await soon(first)
            assert await listed(core) == ["first"]

    asyncio.run(main())


@pytest.mark.parametrize("threads", [1, 4])
def test_a_cancelled_open_leaves_nothing_open(gated: Any, gate: Gate, threads: int) -> None:
    async def awaited(opening: Awaitable[T]) -> T:
        return await opening

    async def main() -> None:
        gate.shut.add("connect")
        connecting = asyncio.create_task(awaited(hutch.aio.connect(gated, threads=threads)))
        await gate.reached("connect")
        connecting.cancel()
        await cancelled(connecting)
        assert gate.passed == []
        gate.let("connect")
        await until(lambda: gate.passed == ["connect", "close store"])
        async with hutch.aio.connect(gated, threads=threads) as store:
            gate.shut.add("open")
            opening = asyncio.create_task(awaited(store.open("core")))
            await gate.reached("open")
            opening.cancel()
            await cancelled(opening)
            again = asyncio.create_task(awaited(store.open("core")))
            await asyncio.sleep(0.01)
            gate.let("open")
            async with await soon(again) as core:
                assert gate.passed[-3:] == ["open", "close", "open"]
                await core.set("k", 1)

    asyncio.run(main())


def test_a_cancelled_close_closes(gated: Any, gate: Gate) -> None:
    async def main() -> None:
        store = await hutch.aio.connect(gated, threads=1)
        core = await store.open("core")
        gate.shut.add("write k")
        writing = asyncio.create_task(core.set("k", 1))
        await gate.reached("write k")
        closing = asyncio.create_task(core.close())
        await asyncio.sleep(0.01)
        closing.cancel()
        await cancelled(closing)
        assert not core.is_open_storage()
        assert not writing.done()
        gate.let("write k")
        await writing
        await until(lambda: gate.passed[-1] == "close")
        gate.shut.add("close store")
        closing = asyncio.create_task(store.close())
        await gate.reached("close store")
        closing.cancel()
        await cancelled(closing)
        with pytest.raises(hutch.StoreNotOpenError):
            await store.namespaces()
        await store.close()
        gate.let("close store")
        await until(lambda: gate.passed[-1] == "close store")

    asyncio.run(main())


def test_closing_a_store_waits_for_the_calls_of_other_tasks_and_refuses_new_ones(gated: Any, gate: Gate) -> None:
    async def main() -> None:
        store = await hutch.aio.connect(gated)
        core = await store.open("core")
        gate.shut.add("write k")
        writing = asyncio.create_task(core.set("k", 1))
        await gate.reached("write k")
        with pytest.warns(ResourceWarning, match="still open"):
            closing = asyncio.create_task(store.close())
            await asyncio.sleep(0.01)
            with pytest.raises(hutch.StoreNotOpenError):
                await core.set("k", 2)
            assert not closing.done()
            gate.let("write k")
            await soon(closing)
        await soon(writing)
        assert gate.passed[-3:] == ["write k", "close", "close store"]

    asyncio.run(main())


def test_an_open_that_is_cancelled_while_the_store_closes_leaves_nothing_open(gated: Any, gate: Gate) -> None:
    async def main() -> None:
        store = await hutch.aio.connect(gated)
        gate.shut.add("open")

        async def open_it() -> None:
            await store.open("core")

        opening = asyncio.create_task(open_it())
        await gate.reached("open")
        closing = asyncio.create_task(store.close())
        await asyncio.sleep(0.01)
        opening.cancel()
        await cancelled(opening)
        gate.let("open")
        await soon(closing)
        assert gate.passed[-2:] == ["close", "close store"]

    asyncio.run(main())


# --- read, change, write back ---


def test_mutable_blocks_of_many_tasks_run_one_after_another_and_lose_nothing(url: str) -> None:
    async def main() -> None:
        async with hutch.aio.connect(url, threads=4) as store, store.open("core") as core:

            async def count(task: int) -> None:
                for _ in range(5):
                    async with core.mutable("counters", default={}) as counters:
                        counters[task] = counters.get(task, 0) + 1
                        await asyncio.sleep(0)
                    await core.modify("counters", lambda c: {**c, "all": c.get("all", 0) + 1})

            await asyncio.gather(*[count(task) for task in range(10)])
            counted: dict[int | str, int] = {**dict.fromkeys(range(10), 5), "all": 50}
            assert await core["counters"] == counted
            assert keylocks.waiters() == 0

    asyncio.run(main())


def test_mutable_starts_from_a_copy_of_the_default_and_writes_nothing_when_its_block_raises() -> None:
    async def main() -> None:
        default: list[int] = []
        async with hutch.aio.connect("memory://") as store, store.open("core") as core:
            async with core.mutable("k", default) as value:
                value.append(1)
            assert (await core["k"], default) == ([1], [])
            for key in ("k", "new"):
                with pytest.raises(LookupError):
                    async with core.mutable(key, default) as value:
                        value.append(2)
                        raise LookupError

            async def endless() -> None:
                async with core.mutable("k") as value:
                    value.append(3)
                    entered.set()
                    await asyncio.Event().wait()

            entered = asyncio.Event()
            task = asyncio.create_task(endless())
            await soon(entered.wait())
            task.cancel()
            await cancelled(task)
            assert (dict(await listed(core.items())), default) == ({"k": [1]}, [])
            assert keylocks.waiters() == 0

    asyncio.run(main())


def test_mutable_reports_a_change_by_another_store_and_writes_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        url = f"lmdb://{tmp_path}/data"
        async with hutch.aio.connect(url) as store, store.open("core") as core:
            await core.set("k", [1])
            with hutch.connect(url) as other, other.open("core") as theirs:
                with pytest.raises(hutch.ConflictError, match="'k' of namespace 'core'"):
                    async with core.mutable("k") as value:
                        value.append(2)
                        theirs["k"] = ["other"]
                assert theirs["k"] == ["other"]
                async with core.mutable("k") as value:
                    value.append("mine")
                assert theirs["k"] == ["other", "mine"]

    asyncio.run(main())


def test_a_task_that_modifies_a_key_it_holds_gets_a_conflict_error_at_once() -> None:
    async def main() -> None:
        async with hutch.aio.connect("memory://") as store, store.open("core") as core:
            async with core.mutable("k", default=[]) as value:
                value.append(2)
                with pytest.raises(hutch.ConflictError, match=r"'k' is held by .* of the same task"):
                    await soon(core.modify("k", lambda v: [*v, 1], default=[]))
                with pytest.raises(hutch.ConflictError, match=r"'k' is held by .* of the same task"):
                    async with core.mutable("k"):
                        pytest.fail("the block was run")
            assert await core["k"] == [2]
            async with core.mutable("k") as value, core.mutable("l", default=[]) as other:
                other.extend(value)
            assert await core["l"] == [2]

    asyncio.run(main())


def test_mutable_refuses_to_write_through_a_handle_closed_meanwhile() -> None:
    async def main() -> None:
        async with hutch.aio.connect("memory://") as store:
            core = await store.open("core")
            with pytest.raises(hutch.StoreNotOpenError):
                async with core.mutable("k", default=[]) as value:
                    value.append(1)
                    await core.close()
            async with store.open("core") as core:
                assert await core.len() == 0

    asyncio.run(main())


@pytest.mark.parametrize("race", ["pop", "setdefault", "compare_and_set"])
def test_of_tasks_that_race_for_one_key_exactly_one_wins(url: str, race: str) -> None:
    async def main() -> None:
        async with hutch.aio.connect(url) as store, store.open("core") as core:
            racing: dict[str, Callable[[int], Awaitable[Any]]] = {
                "pop": lambda _: core.pop("k", None),
                "setdefault": lambda n: core.setdefault("new", n),
                "compare_and_set": lambda n: core.compare_and_set("k", "won", n),
            }
            await core.set("k", "won")
            results = await asyncio.gather(*[racing[race](n) for n in range(10)])
            if race == "pop":
                assert sorted(results, key=repr) == ["won", *[None] * 9]
            elif race == "setdefault":
                assert results == [await core["new"]] * 10
            else:
                assert results.count(True) == 1

    asyncio.run(main())


# --- threads and what crosses them ---


def test_a_function_that_raises_stop_iteration_does_not_hang_its_caller() -> None:
    def stop(value: Any) -> Any:
        raise StopIteration

    async def main() -> None:
        async with hutch.aio.connect("memory://") as store, store.open("core") as core:
            with pytest.raises(RuntimeError, match="raised StopIteration"):
                await soon(core.modify("k", stop, default=1))

    asyncio.run(main())


def test_context_variables_reach_the_function_given_to_modify() -> None:
    who = contextvars.ContextVar("who", default="nobody")

    async def main() -> None:
        async with hutch.aio.connect("memory://") as store, store.open("core") as core:
            who.set("me")
            assert await core.modify("k", lambda v: [*v, who.get()], default=[]) == ["me"]

    asyncio.run(main())


def test_the_threads_end_with_their_store() -> None:
    def threads() -> list[str]:
        return [thread.name for thread in threading.enumerate() if thread.name.startswith("hutch.aio")]

    async def main() -> None:
        store = await hutch.aio.connect("memory://", threads=2)
        core = await store.open("core")
        await asyncio.gather(*[core.set(f"k{n}", n) for n in range(20)])
        assert 1 <= len(threads()) <= 2
        await core.close()
        await store.close()
        assert threads() == []
        with pytest.raises(hutch.PluginNotFoundError):
            await hutch.aio.connect("nosuch://x")
        assert threads() == []

    asyncio.run(main())


@pytest.mark.usefixtures("unmeasured")
@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork on Windows")
def test_a_forked_child_uses_an_inherited_store_on_a_loop_of_its_own(tmp_path: Path) -> None:
    script = """
    import asyncio, os, sys, hutch.aio

    async def begin():
        store = await hutch.aio.connect("sqlite://" + sys.argv[1])
        core = await store.open("core")
        await core.set("k", 1)
        return store, core

    async def go_on(core):
        await core.modify("k", lambda n: n + 1)

    async def end(store, core):
        assert await core["k"] == 2
        await core.close()
        await store.close()

    store, core = asyncio.run(begin())
    child = os.fork()
    if child == 0:
        asyncio.run(asyncio.wait_for(go_on(core), 20))
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    asyncio.run(end(store, core))
    raise SystemExit(status)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path / "kv.db")]
    ended = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr


def test_a_program_that_never_closes_its_store_ends_all_the_same(tmp_path: Path) -> None:
    script = """
    import asyncio, sys, hutch.aio

    async def main():
        store = await hutch.aio.connect("lmdb://" + sys.argv[1])
        core = await store.open("core")
        await core.set("k", 1)

    asyncio.run(main())
    """
    began_s = time.monotonic()
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path / "data")]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    assert time.monotonic() - began_s < 30
    with hutch.connect(f"lmdb://{tmp_path / 'data'}") as store, store.open("core") as core:
        assert core["k"] == 1
