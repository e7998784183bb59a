"""Test the key locks of `modify` and `mutable`: refusals, waits, and signal handlers at every point."""

from __future__ import annotations

import contextlib
import itertools
import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import hutch
from hutch import keylocks
from hutch.testing.signal_points import Interrupt, points, raise_interrupt, run_at

# The tracer of coverage has a lock of its own, and sees signals between hutch's instructions.
pytestmark = pytest.mark.usefixtures("unmeasured")

needs_signals = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no timer that sends a signal")
#: The longest time that an immediate action may take on a slow machine.
AT_ONCE_S = 10.0


@pytest.fixture(params=["memory", "lmdb", "sqlite", "shelf"])
def ns(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[hutch.Namespace]:
    urls = {
        "memory": "memory://",
        "lmdb": f"lmdb://{tmp_path}/l?durability=relaxed",
        "sqlite": f"sqlite://{tmp_path}/k.db?durability=relaxed",
        "shelf": f"shelf://{tmp_path}/s",
    }
    with hutch.connect(urls[request.param]) as store, store.open("core") as handle:
        handle["a"], handle["b"] = [1], [2]
        yield handle


@pytest.fixture
def plain() -> Iterator[Plain]:
    handle = Plain()
    handle.open_storage(PlainPlugin(), "core")
    handle["a"], handle["b"] = [1], [2]
    with handle:
        yield handle


@pytest.fixture(name="memory")
def _memory() -> Iterator[hutch.Namespace]:
    with hutch.connect("memory://") as store, store.open("core") as handle:
        yield handle


@pytest.fixture(autouse=True)
def _none_is_left() -> Iterator[None]:
    yield
    assert keylocks.waiters() == 0
    assert not keylocks._waiting


class Plain(hutch.StoreMixin):
    """A mapping of the host's own."""


class PlainStorage(hutch.EncodedStorage):
    """The six verbs on a dict, with the base classes' defaults for the rest."""

    def __init__(self, plugin: PlainPlugin, namespace: str) -> None:
        super().__init__(plugin, namespace)
        self.data: dict[str, bytes] = {}

    def read(self, key: str) -> bytes | None:
        return self.data.get(key)

    def write(self, key: str, data: bytes) -> None:
        self.data[key] = data

    def delete(self, key: str) -> bool:
        return self.data.pop(key, None) is not None

    def len(self) -> int:
        return len(self.data)

    def keys(self) -> list[str]:
        return list(self.data)

    def close(self) -> None:
        pass


class PlainCodec(hutch.Codec):
    headers = b"\x80"

    def encode(self, value: object, /) -> tuple[int, bytes]:
        return 0x80, json.dumps(value).encode()

    def decode(self, header: int, body: bytes, /) -> Any:
        return json.loads(body)


class PlainPlugin(hutch.StoragePluginBase):
    """A factory with its own codec, so that no test depends on another part."""

    def codec_for(self, namespace: str) -> hutch.Codec:
        return PlainCodec()

    def open(self, namespace: str) -> PlainStorage:
        return PlainStorage(self, namespace)


def add(value: Any) -> Any:
    return [*value, 0]


def in_threads(*calls: Callable[[], object]) -> list[object]:
    """Call each in its own thread; return what each returned or raised."""
    results: list[object] = [None] * len(calls)

    def run(index: int) -> None:
        try:
            results[index] = calls[index]()
        except BaseException as error:
            results[index] = error

    threads = [
        threading.Thread(target=run, args=(index,), name=f"worker-{index}", daemon=True) for index in range(len(calls))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads), "a wait without an end"
    return results


# --- what can be known at once ---


def test_modify_inside_its_own_modify_is_refused_at_once(ns: hutch.Namespace) -> None:
    began_s = time.monotonic()
    refused = []

    def nested(value: Any) -> Any:
        with pytest.raises(hutch.ConflictError, match=r"key .a. is held by .* of the same thread already") as raised:
            ns.modify("a", add)
        refused.append(raised.value)
        return add(value)

    assert ns.modify("a", nested) == [1, 0]
    assert refused
    assert time.monotonic() - began_s < AT_ONCE_S


def test_a_modify_of_another_key_inside_modify_works(ns: hutch.Namespace) -> None:
    assert ns.modify("a", lambda value: [*value, *ns.modify("b", add)]) == [1, 2, 0]
    assert ns["b"] == [2, 0]


def test_mutable_inside_mutable_of_the_same_key_is_refused_and_the_outer_one_is_not_disturbed(
    ns: hutch.Namespace,
) -> None:
    with ns.mutable("a") as outer:
        outer.append("outer")
        with pytest.raises(hutch.ConflictError, match="key 'a'"), ns.mutable("a"):
            raise AssertionError("unreachable")
        with ns.mutable("b") as other:
            other.append("other")
    assert ns["a"] == [1, "outer"]
    assert ns["b"] == [2, "other"]


@pytest.mark.parametrize("many", [2, 3, 7])
def test_one_of_several_threads_that_wait_in_a_cycle_gets_an_error_at_once(memory: hutch.Namespace, many: int) -> None:
    met = threading.Barrier(many)

    def take(first: str, second: str) -> str:
        with memory.mutable(first, []) as one:
            met.wait(60)
            with memory.mutable(second, []) as two:
                two.append(first)
            one.append(second)
        return "done"

    began_s = time.monotonic()
    keys = [f"k{number}" for number in range(many)]
    results = in_threads(*[lambda pair=pair: take(*pair) for pair in itertools.pairwise([*keys, keys[0]])])
    took_s = time.monotonic() - began_s
    assert took_s < AT_ONCE_S
    errors = [result for result in results if result != "done"]
    assert len(errors) == 1
    assert isinstance(errors[0], hutch.ConflictError)
    at = results.index(errors[0])
    assert all(repr(key) in str(errors[0]) for key in keys)
    assert f"'worker-{(at + 1) % many}'" in str(errors[0])


def test_a_handler_that_modifies_the_key_that_it_interrupted_is_refused_and_another_key_works(plain: Plain) -> None:
    ns = plain
    outcomes: set[str] = set()
    seen: set[str] = set()
    for point in points(lambda: ns.modify("a", add), limit=60):
        before, other = ns["a"], ns["b"]

        def nested() -> None:
            ns.modify("b", add)
            try:
                ns.modify("a", lambda value: [*value, "nested"])
                outcomes.add("done")
            except hutch.ConflictError:
                outcomes.add("refused")

        outcomes.clear()
        run_at(point, nested, lambda: ns.modify("a", add))
        assert ns["b"] == [*other, 0]
        assert sorted(map(str, ns["a"][len(before) :])) == (["0", "nested"] if "done" in outcomes else ["0"])
        seen |= outcomes
    assert seen == {"done", "refused"}


# --- waits ---


def test_a_wait_ends_with_an_error_that_names_the_key_and_the_holder(tmp_path: Path) -> None:
    with (
        hutch.connect(f"sqlite://{tmp_path}/k.db?wait_s=0.3") as store,
        store.open("core") as ns,
        ns.mutable("k", []),
    ):
        began_s = time.monotonic()
        [error] = in_threads(lambda: ns.modify("k", add))
        took_s = time.monotonic() - began_s
    assert isinstance(error, hutch.StorageTimeoutError)
    assert f"key 'k' was held by thread {threading.current_thread().name!r}" in str(error)
    assert 0.25 < took_s < AT_ONCE_S


def test_keys_are_given_in_the_order_in_which_they_were_asked_for(memory: hutch.Namespace) -> None:
    threads = []
    with memory.mutable("k", []):
        for number in range(8):
            thread = threading.Thread(target=lambda n=number: memory.modify("k", lambda v: [*v, n], []))
            thread.start()
            threads.append(thread)
            while keylocks.waiters() < number + 2:
                time.sleep(0.001)
    for thread in threads:
        thread.join(30)
    assert memory["k"] == list(range(8))


@needs_signals
def test_ctrl_c_ends_a_wait_for_a_key_at_once(memory: hutch.Namespace) -> None:
    inside, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with memory.mutable("k", []):
            inside.set()
            leave.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    assert inside.wait(30)
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    began_s = time.monotonic()
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        with pytest.raises(KeyboardInterrupt):
            memory.modify("k", add)
        assert time.monotonic() - began_s < AT_ONCE_S
    finally:
        signal.signal(signal.SIGALRM, before)
        leave.set()
        thread.join(30)


def test_an_owner_that_is_not_the_thread(memory: hutch.Namespace) -> None:
    """As hutch.aio uses them: the calls of a task run in any thread."""

    class Task:
        def get_name(self) -> str:
            return "Task-7"

    task = Task()
    outer = keylocks.Ticket("scope", "k", task)
    outer.enter()
    try:
        assert outer.is_first()
        inner = keylocks.Ticket("scope", "k")
        inner.enter()
        assert not inner.is_first()
        assert "task 'Task-7'" in str(inner.timeout(1))
        inner.leave()
        token = keylocks.current_owner.set(task)
        with pytest.raises(hutch.ConflictError, match="of the same task already"):
            keylocks.run_locked("scope", "k", 1, lambda: None)
        keylocks.current_owner.reset(token)
    finally:
        outer.leave()


# --- handlers that raise ---


def modify(ns: hutch.StoreMixin) -> None:
    ns.modify("a", add)


def mutable(ns: hutch.StoreMixin) -> None:
    with ns.mutable("a") as value:
        value.append(0)


def mutable_on_a_stack(ns: hutch.StoreMixin) -> None:
    with contextlib.ExitStack() as stack:
        stack.enter_context(ns.mutable("a")).append(0)


def mutable_that_fails(ns: hutch.StoreMixin) -> None:
    with contextlib.suppress(LookupError), ns.mutable("a") as value:
        value.append(0)
        raise LookupError


@pytest.mark.parametrize("work", [modify, mutable, mutable_that_fails])
def test_wherever_a_handler_raises_the_key_is_free_and_the_value_old_or_new(
    plain: Plain, work: Callable[[hutch.StoreMixin], None]
) -> None:
    """The tracebacks are kept, as a notebook keeps the last one."""
    ns = plain
    kept = []
    ns["a"] = [1]
    for point in points(lambda: work(ns), limit=400):
        ns["a"] = [1]
        try:
            run_at(point, raise_interrupt, lambda: work(ns))
        except Interrupt as error:
            kept.append(error)
        assert keylocks.waiters() == 0, f"point {point}"
        assert ns["a"] in ([1], [1, 0]), f"point {point}"
    assert len(kept) > 10
    assert in_threads(lambda: ns.modify("a", add))[0] in ([1, 0], [1, 0, 0])


def test_an_exit_stack_enters_and_leaves_mutable(ns: hutch.Namespace) -> None:
    mutable_on_a_stack(ns)
    assert ns["a"] == [1, 0]


def test_a_key_that_was_freed_by_a_handler_wakes_who_waits_for_it(memory: hutch.Namespace) -> None:
    """The first call of `__exit__` is interrupted before its first line."""
    kept: list[BaseException] = []
    asked = threading.Event()
    taken: list[object] = []

    def wait() -> None:
        asked.set()
        taken.append(memory.modify("a", add, []))

    thread = threading.Thread(target=wait)

    def block() -> None:
        with memory.mutable("a", []):
            thread.start()
            asked.wait(30)
            while keylocks.waiters() < 2:
                time.sleep(0.001)
            sys.setprofile(raise_in_exit)

    def raise_in_exit(frame: Any, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_name == "_leave":
            sys.setprofile(None)
            raise Interrupt

    try:
        block()
    except Interrupt as error:
        kept.append(error)
    finally:
        sys.setprofile(None)
    thread.join(AT_ONCE_S)
    assert taken == [[0]]
    assert kept


class PlainObjects(hutch.StorageBase):
    """The six verbs on a dict of objects."""

    def __init__(self) -> None:
        self.data: dict[str, Any] = {}

    def set(self, key: str, value: Any) -> None:
        self.data[key] = value

    def get(self, key: str) -> Any:
        return self.data[key]

    def remove(self, key: str) -> None:
        del self.data[key]

    def len(self) -> int:
        return len(self.data)

    def keys(self) -> list[str]:
        return list(self.data)

    def close(self) -> None:
        pass


class ObjectsPlugin:
    def open(self, _namespace: str) -> PlainObjects:
        return PlainObjects()


NESTED: dict[str, Callable[[Plain], object]] = {
    "set": lambda ns: ns.__setitem__("a", "nested"),
    "update": lambda ns: ns.update({"a": "nested", "z": 1}),
    "compare_and_set": lambda ns: ns.compare_and_set("a", ns["a"], "nested"),
    "remove": lambda ns: ns.__delitem__("a"),
    "clear": lambda ns: ns.clear(),
}


@pytest.mark.parametrize("verb", NESTED)
@pytest.mark.parametrize("factory", [PlainPlugin, ObjectsPlugin])
def test_a_write_by_a_handler_in_a_compare_and_set_is_refused_or_seen(factory: Callable[[], Any], verb: str) -> None:
    """For engines without their own compare-and-swap; an acknowledged write was overwritten."""
    ns = Plain()
    ns.open_storage(factory(), "core")
    outcomes: set[str] = set()

    def work() -> bool:
        ns["a"] = "old"
        started.append(1)
        return ns.compare_and_set("a", "old", "new")

    started: list[int] = []
    for point in points(work):
        done: list[str] = []
        started.clear()

        def nested(done: list[str] = done) -> None:
            if not started:
                return  # within the first write
            try:
                result = NESTED[verb](ns)
                done.append("done" if result is not False else "unequal")
            except hutch.ConflictError as error:
                done.append("refused" if "key 'a' is being replaced" in str(error) else "conflict")
            except KeyError:
                done.append("unequal")

        swapped = run_at(point, nested, work)
        outcomes.update(done)
        if done == ["done"] and swapped:
            # It came before the swap read the value, or after the swap: never lost in between.
            assert ns.get("a") != "new", f"point {point}: the write of the handler was lost"
        elif swapped:
            assert ns["a"] == "new"
    assert {"done", "refused"} <= outcomes
    assert not keylocks.swapping
    ns.close_storage()
