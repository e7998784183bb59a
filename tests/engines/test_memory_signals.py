"""Test the memory engine when a signal handler raises, or writes itself, at any point of any of its calls."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any

import pytest

import hutch
from hutch import deadlines
from hutch.codec import frame
from hutch.testing.signal_points import Visit, points, run_at

PATIENCE_S = 60.0
BEFORE = {f"k{number}": bytes([number]) * 20 for number in range(10)}
pytestmark = pytest.mark.usefixtures("unmeasured")


class Limit(Exception):
    """Like a task queue's soft time limit."""


class Miss(KeyError):
    """Like what a missing key raises."""


@pytest.fixture
def dropped(monkeypatch: pytest.MonkeyPatch) -> list[BaseException]:
    """Return what Python cannot raise: exceptions in finalizers and callbacks of weak references."""
    dropped: list[BaseException] = []
    monkeypatch.setattr("sys.unraisablehook", lambda message: dropped.append(message.exc_value))
    return dropped


@pytest.fixture
def plugin() -> Any:
    return hutch.load_plugin("memory", {})


@pytest.fixture
def storage(plugin: Any) -> Any:
    return plugin.open("core")


VERBS: dict[str, tuple[Callable[[Any], object], dict[str, bytes | None], object]] = {
    "set": (lambda storage: storage.write("k1", b"new"), {"k1": b"new"}, None),
    "update": (lambda storage: storage.write_many({"k1": b"new", "new": b"new"}), {"k1": b"new", "new": b"new"}, None),
    "remove": (lambda storage: storage.delete("k1"), {"k1": None}, True),
    "remove_many": (lambda storage: storage.delete_many(["k1", "k2", "no"]), {"k1": None, "k2": None}, 2),
    "clear": (lambda storage: storage.clear(), dict.fromkeys(BEFORE), None),
    "swap": (lambda storage: storage.compare_and_write("k1", BEFORE["k1"], b"new"), {"k1": b"new"}, True),
    "remove equal": (lambda storage: storage.compare_and_write("k1", BEFORE["k1"], None), {"k1": None}, True),
    "add": (lambda storage: storage.compare_and_write("new", None, b"new"), {"new": b"new"}, True),
    "get": (lambda storage: storage.read("k1"), {}, BEFORE["k1"]),
    "get_many": (lambda storage: storage.read_many(["k1", "no"]), {}, {"k1": BEFORE["k1"]}),
    "len": (lambda storage: storage.len(), {}, 10),
    "keys": (lambda storage: list(storage.keys()), {}, list(BEFORE)),
    "namespaces": (lambda storage: storage._plugin.namespaces(), {}, ["core"]),
}


def after(changes: dict[str, bytes | None]) -> dict[str, bytes]:
    return {key: value for key, value in {**BEFORE, **changes}.items() if value is not None}


def restore(storage: Any) -> None:
    storage.clear()
    storage.write_many(BEFORE)


def held(storage: Any) -> dict[str, bytes]:
    """Return what is stored, asserting that keys, single reads and the count agree."""
    found = {key: storage.read(key) for key in storage.keys()}  # noqa: SIM118 - a storage
    assert storage.len() == len(found)
    assert None not in found.values()
    return found


@pytest.mark.parametrize("kind", [Limit, MemoryError, Miss])
@pytest.mark.parametrize("verb", VERBS)
def test_an_exception_at_any_point_comes_out_and_leaves_nothing_taken(
    storage: Any, verb: str, kind: type[BaseException], dropped: list[BaseException]
) -> None:
    call, changes, _ = VERBS[verb]
    restore(storage)
    for point in points(lambda: call(storage)):
        restore(storage)
        error = kind(f"at point {point}")

        def action(error: BaseException = error) -> None:
            raise error

        visit = Visit(point, action)
        caught: BaseException | None = None
        try:
            visit.run(lambda: call(storage))
        except BaseException as raised:
            caught = raised
        assert caught is error or visit.where is None or error in dropped, f"{caught!r} at {visit.where}"
        assert held(storage) in (BEFORE, after(changes)), visit.where
        writing = threading.Thread(target=storage.write, args=("other", b"1"), daemon=True)
        writing.start()
        writing.join(PATIENCE_S)
        assert not writing.is_alive(), f"a lock was left taken at {visit.where}"


@pytest.mark.parametrize("nested", ["set", "set the same key", "remove", "remove_many", "update", "clear", "len"])
@pytest.mark.parametrize("verb", VERBS)
def test_a_nested_call_at_any_point_works_and_both_calls_are_serialised(storage: Any, verb: str, nested: str) -> None:
    inner: dict[str, Callable[[Any], object]] = {
        "set": lambda storage: storage.write("nested", b"1"),
        "set the same key": lambda storage: storage.write("k1", b"nested"),
        "remove": lambda storage: storage.delete("k1"),
        "remove_many": lambda storage: storage.delete_many(["k1", "k3"]),
        "update": lambda storage: storage.write_many({"k1": b"nested", "nested": b"1"}),
        "clear": lambda storage: storage.clear(),
        "len": lambda storage: storage.len(),
    }
    call, _, _ = VERBS[verb]
    possible = []
    for order in ((call, inner[nested]), (inner[nested], call)):
        restore(storage)
        first, second = order[0](storage), order[1](storage)
        results = (first, second) if order[0] is call else (second, first)
        possible.append((*results, held(storage)))
    restore(storage)
    for point in points(lambda: call(storage)):
        restore(storage)
        nested_results: list[object] = []
        visit = Visit(point, lambda: nested_results.append(inner[nested](storage)))  # noqa: B023 - called at once
        result = visit.run(lambda: call(storage))
        if nested_results:
            assert (result, nested_results[0], held(storage)) in possible, visit.where


def test_a_write_in_the_middle_of_modify_of_another_key_works() -> None:
    with hutch.connect("memory://") as store, store.open("core") as ns:
        ns["k"] = 0
        every = points(lambda: ns.modify("k", lambda value: value + 1))
        ns["k"] = 0
        for number, point in enumerate(every):
            run_at(point, lambda: ns.update(nested=1, more=2), lambda: ns.modify("k", lambda value: value + 1))
            assert dict(ns) == {"k": number + 1, "nested": 1, "more": 2}


# --- with deadlines ---

NOW_MS = 1_000_000


def expiring(deadline_ms: int) -> bytes:
    return frame.set_deadline(frame.seal(b"\x92\xc0\xce"), deadline_ms)


EXPIRED, LIVING = expiring(NOW_MS), expiring(NOW_MS + 1000)
DEADLINE_VERBS: dict[str, Callable[[Any], object]] = {
    "write": lambda storage: storage.write("new", b"1"),
    "write over": lambda storage: storage.write("living", b"1"),
    "write_until": lambda storage: storage.write_until("new", LIVING, NOW_MS + 1000),
    "write_until over": lambda storage: storage.write_until("expired 0", LIVING, NOW_MS + 1000),
    "write_many_until": lambda storage: storage.write_many_until(
        {"new": LIVING, "plain": b"1"}, {"new": NOW_MS + 1000}
    ),
    "delete": lambda storage: storage.delete("living"),
    "delete_many": lambda storage: storage.delete_many(["living", "expired 0", "plain"]),
    "swap": lambda storage: storage.compare_and_write("living", LIVING, expiring(NOW_MS + 500)),
    "reclaim": lambda storage: storage.reclaim(10),
    "len": lambda storage: storage.len(),
    "keys": lambda storage: list(storage.keys()),
    "clear": lambda storage: storage.clear(),
}


@pytest.fixture
def expires(storage: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Return a function that sets the clock of the storage."""
    clock = [NOW_MS]
    monkeypatch.setattr(deadlines, "now_ms", lambda: clock[0])
    return lambda ms: clock.__setitem__(0, ms)


def restore_deadlines(storage: Any, expires: Callable[[int], None]) -> None:
    expires(0)
    storage.clear()
    storage._all.due.clear()
    for number in range(4):
        storage.write_until(f"expired {number}", EXPIRED, NOW_MS)
    # Enough entries without a frame that each write drops them.
    for _ in range(80):
        storage.write_until("living", LIVING, NOW_MS + 1000)
    storage.write("plain", b"plain")
    expires(NOW_MS)


def assert_deadlines_hold(storage: Any, expires: Callable[[int], None], where: object) -> None:
    """Assert that keys and counts agree now, and that each value with a deadline is gone after it."""
    keys = list(storage.keys())
    assert storage.len() == len(keys), where
    assert not [key for key in keys if storage.read(key) == EXPIRED], where
    expires(NOW_MS + 1000)
    rest = dict(storage._all.frames)
    assert storage.len() == sum(data[0] != frame.DEADLINE for data in rest.values() if data is not None), where
    assert not [key for key, data in storage._all.frames.items() if data[0] == frame.DEADLINE], where


@pytest.mark.parametrize("nested", [None, "write_until", "write_until over", "write_many_until", "len", "clear"])
@pytest.mark.parametrize("verb", DEADLINE_VERBS)
def test_no_deadline_is_lost_by_what_a_handler_does_at_any_point(
    storage: Any, expires: Callable[[int], None], verb: str, nested: str | None, dropped: list[BaseException]
) -> None:
    call = DEADLINE_VERBS[verb]
    restore_deadlines(storage, expires)
    for point in points(lambda: call(storage)):
        restore_deadlines(storage, expires)

        def action() -> None:
            if nested is None:
                raise Limit
            DEADLINE_VERBS[nested](storage)

        visit = Visit(point, action)
        with contextlib.suppress(Limit):
            visit.run(lambda: call(storage))
        assert_deadlines_hold(storage, expires, visit.where)
