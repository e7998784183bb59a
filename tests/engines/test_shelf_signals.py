"""Test the shelf engine when a signal handler raises, or uses the namespace, at any point of any of its calls."""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import hutch
from hutch.testing.signal_points import Visit, count_points, run_at
from tests.engines.test_shelf import dbm_open, errbot_reads

# The tracer of coverage has a lock of its own, and sees signals between hutch's instructions.
pytestmark = pytest.mark.usefixtures("unmeasured")

PATIENCE_S = 60.0
# The number of points tried per call, chosen at random with this seed; 0 for all of them.
POINTS = int(os.environ.get("HUTCH_SIGNAL_POINTS", "12"))
SEED = int(os.environ.get("HUTCH_SEED", "0")) or random.randrange(1 << 30)
# A file that was just opened when an interrupt came is closed as it is collected, which Python warns of.
closed_by_the_collector = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
DIALECTS = [
    name
    for name, module in {"dumb": "dbm", "sqlite3": "sqlite3", "gnu": "_gdbm", "ndbm": "_dbm"}.items()
    if importlib.util.find_spec(module)
]
BEFORE = {f"k{n}": [n] * 100 for n in range(5)}


@pytest.fixture(params=DIALECTS)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder with the namespace "core" in each dialect."""
    dbm_open(str(tmp_path / "core.db"), request.param).close()
    return tmp_path


class Limit(TimeoutError):
    """What a time limit raises; also an OSError, which the engine catches from the operating system."""


class Lack(MemoryError):
    """What Python raises when memory runs out."""


class Miss(KeyError):
    """Like what a missing key raises."""


def raising(kind: type[BaseException]) -> Callable[[], None]:
    def action() -> None:
        raise kind

    return action


def some_points(work: Callable[[], object]) -> list[int]:
    every = range(1, count_points(work, loops=False) + 1)
    print(f"{len(every)} points, HUTCH_SEED={SEED}")
    return list(every) if not POINTS or len(every) <= POINTS else random.Random(SEED).sample(every, POINTS)


VERBS: dict[str, tuple[Callable[[hutch.Namespace], object], dict[str, Any]]] = {
    "set": (lambda ns: ns.__setitem__("k1", "new"), {"k1": "new"}),
    "set a new key": (lambda ns: ns.__setitem__("new", 1), {"new": 1}),
    "update": (lambda ns: ns.update(k1="new", new=1), {"k1": "new", "new": 1}),
    "remove": (lambda ns: ns.__delitem__("k1"), {"k1": None}),
    "remove_many": (lambda ns: ns.remove_many(["k1", "k2"]), {"k1": None, "k2": None}),
    "clear": (lambda ns: ns.clear(), dict.fromkeys(BEFORE)),
    "setdefault": (lambda ns: ns.setdefault("new", "new"), {"new": "new"}),
    "modify": (lambda ns: ns.modify("k1", lambda _: "new"), {"k1": "new"}),
    "get": (lambda ns: ns["k1"], {}),
    "get_many": (lambda ns: ns.get_many(["k1", "k2"]), {}),
    "in": (lambda ns: "k1" in ns, {}),
    "len": (len, {}),
    "keys": (list, {}),
    "items": (lambda ns: list(ns.items()), {}),
    "scan": (lambda ns: list(ns.scan()), {}),
}


def after(changes: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in {**BEFORE, **changes}.items() if value is not None}


def is_free(ns: hutch.Namespace) -> bool:
    """Return whether another thread can write."""
    writing = threading.Thread(target=ns.__setitem__, args=("free", 1), daemon=True)
    writing.start()
    writing.join(PATIENCE_S)
    if writing.is_alive():
        return False
    del ns["free"]
    return True


def restore(ns: hutch.Namespace) -> None:
    ns.remove_many([key for key in ns if key not in BEFORE])
    ns.update(BEFORE)


@closed_by_the_collector
@pytest.mark.parametrize("kind", [Limit, Lack, Miss])
@pytest.mark.parametrize("verb", VERBS)
def test_an_interrupt_at_any_point_comes_out_and_leaves_the_old_or_the_new_state(
    folder: Path, verb: str, kind: type[BaseException]
) -> None:
    call, changes = VERBS[verb]
    with hutch.connect(f"shelf://{folder}") as store, store.open("core") as ns:
        restore(ns)
        for point in some_points(lambda: call(ns)):
            restore(ns)
            visit = Visit(point, raising(kind))
            with contextlib.suppress(kind):
                visit.run(lambda: call(ns), loops=False)
                assert visit.where is None, f"swallowed at {visit.where}"
            left = dict(ns)
            assert left in (BEFORE, after(changes)), point
            with hutch.connect(f"shelf://{folder}") as other, other.open("core") as same:
                assert dict(same) == left
        assert is_free(ns)
        left = dict(ns)
    with hutch.connect(f"shelf://{folder}") as store, store.open("core") as ns:
        assert dict(ns) == left


@pytest.mark.parametrize("verb", VERBS)
def test_a_write_at_any_point_is_refused_or_done_and_damages_nothing(folder: Path, verb: str) -> None:
    call, changes = VERBS[verb]
    results: list[int] = []
    refused = 0

    def write() -> None:
        nonlocal refused
        try:
            ns["nested"] = number
            results.append(number)
        except hutch.ConflictError as error:
            assert "in the middle of another call on namespace 'core'" in str(error)  # noqa: PT017
            refused += 1

    with hutch.connect(f"shelf://{folder}") as store, store.open("core") as ns:
        restore(ns)
        for number in some_points(lambda: call(ns)):
            restore(ns)
            results.clear()
            began = time.monotonic()
            run_at(number, write, lambda: call(ns), loops=False)
            assert time.monotonic() - began < PATIENCE_S / 2, "it waited for itself"
            left = dict(ns)
            nested = left.pop("nested", None)
            assert left == after(changes), number
            assert nested == (results[0] if results else None) or (verb == "clear" and nested is None)
        left = dict(ns)
    with hutch.connect(f"shelf://{folder}") as store, store.open("core") as ns:
        assert dict(ns) == left


@pytest.mark.parametrize("verb", VERBS)
def test_a_read_at_any_point_reads_what_is_stored(folder: Path, verb: str) -> None:
    call, changes = VERBS[verb]
    seen: list[Any] = []
    with hutch.connect(f"shelf://{folder}") as store, store.open("core") as ns:
        restore(ns)
        for number in some_points(lambda: call(ns)):
            restore(ns)
            seen.clear()
            run_at(number, lambda: seen.append(dict(ns)), lambda: call(ns), loops=False)
            assert all(one in (BEFORE, after(changes)) for one in seen), number
            assert dict(ns) == after(changes), number


def open_and_close(plugin: hutch.StoragePluginBase) -> None:
    with plugin.open("core") as storage:
        storage.set("k", 1)


@closed_by_the_collector
@pytest.mark.parametrize("kind", [Limit, Lack])
def test_an_interrupt_while_it_is_opened_or_closed_leaves_no_lock_and_no_damage(
    folder: Path, kind: type[BaseException]
) -> None:
    plugin = hutch.load_plugin("shelf", {"basedir": str(folder)})
    open_and_close(plugin)
    for point in some_points(lambda: open_and_close(plugin)):
        with contextlib.suppress(kind):
            run_at(point, raising(kind), lambda: open_and_close(plugin), loops=False)
        with hutch.connect(f"shelf://{folder}") as store, store.open("core") as ns:
            assert dict(ns) == {"k": 1}
    opened = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, hutch; hutch.connect(sys.argv[1]).open('core').close()",
            f"shelf://{folder}",
        ],
        check=False,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S * 2,
    )
    assert opened.returncode == 0, opened.stderr


@closed_by_the_collector
def test_closing_the_plugin_closes_what_an_interrupted_open_or_close_left_open(folder: Path) -> None:
    plugin = hutch.load_plugin("shelf", {"basedir": str(folder)})
    kept: list[Limit] = []  # as a notebook keeps the last exception, and with its traceback the storage
    for point in some_points(lambda: open_and_close(plugin)):
        try:
            run_at(point, raising(Limit), lambda: open_and_close(plugin), loops=False)
        except Limit as error:
            kept.append(error)
        plugin.close()
        assert [key for _, key, _ in plugin.pickles()] in ([], ["k"])  # StoreLockedError if it is open still
    assert kept


def test_a_handle_that_a_handler_closes_in_the_middle_of_a_write_lets_others_in_at_its_end(folder: Path) -> None:
    def write(ns: hutch.Namespace, number: int) -> None:
        ns["k"] = number

    with hutch.connect(f"shelf://{folder}") as store:
        with store.open("core") as ns:
            points = some_points(lambda: write(ns, 0))
        for number in points:
            ns = store.open("core")
            with contextlib.suppress(hutch.StoreNotOpenError):
                run_at(number, ns.close, lambda: write(ns, number), loops=False)  # noqa: B023 - called at once
            opened = hutch.load_plugin("shelf", {"basedir": str(folder)})
            assert [key for _, key, _ in opened.pickles()] == ["k"], number  # as another process would read it


def test_every_thread_gets_to_write_while_others_write_in_loops(tmp_path: Path) -> None:
    for threads in (2, 8, 32):
        stop = threading.Event()
        with hutch.connect(f"shelf://{tmp_path}") as store, store.open("core") as ns:

            def write_in_a_loop(name: str, ns: hutch.Namespace = ns, stop: threading.Event = stop) -> None:
                while not stop.is_set():
                    ns[name] = 1

            crowd = [threading.Thread(target=write_in_a_loop, args=(f"k{n}",)) for n in range(threads - 1)]
            for thread in crowd:
                thread.start()
            try:
                longest_s = 0.0
                for n in range(20):
                    began = time.monotonic()
                    ns["mine"] = n
                    longest_s = max(longest_s, time.monotonic() - began)
            finally:
                stop.set()
                for thread in crowd:
                    thread.join()
        print(f"{threads} threads: longest wait for a turn {longest_s * 1000:.1f} ms")
        assert longest_s < 10


def test_a_wait_for_another_thread_ends_and_names_it(tmp_path: Path) -> None:
    entered, leave = threading.Event(), threading.Event()

    class Slow:
        def __init__(self, key: str) -> None:
            self.key = key

    with hutch.connect(f"shelf://{tmp_path}?wait_s=0.2") as store, store.open("core") as ns:
        ns["k"] = 1

        def hold() -> None:
            entered.set()
            leave.wait(PATIENCE_S)

        shelf: Any = ns._store._shelf  # type: ignore[attr-defined]
        holder = threading.Thread(target=lambda: shelf.read(1, lambda _: hold()), name="the holder")
        holder.start()
        assert entered.wait(PATIENCE_S)
        try:
            for use in (lambda: ns.update(k=2), lambda: ns["k"], lambda: len(ns)):
                with pytest.raises(hutch.StorageTimeoutError, match=r"namespace 'core' in .*'the holder'.*wait_s"):
                    use()
        finally:
            leave.set()
            holder.join()
        assert ns["k"] == 1


def test_a_finalizer_that_writes_in_the_middle_of_a_write_is_refused_and_nothing_is_damaged(folder: Path) -> None:
    calls: list[int] = []

    class Saves:
        def __del__(self) -> None:
            with contextlib.suppress(hutch.ConflictError):
                ns["saved"] = 1
                calls.append(1)

    with hutch.connect(f"shelf://{folder}") as store, store.open("core") as ns:
        threshold = gc.get_threshold()
        gc.set_threshold(1)
        try:
            for n in range(200):
                cycle: list[Any] = [Saves()]
                cycle.append(cycle)
                del cycle
                ns[f"k{n % 10}"] = [n] * n
        finally:
            gc.set_threshold(*threshold)
        gc.collect()
        expected = {f"k{n % 10}": [n] * n for n in range(190, 200)} | {"saved": 1}
        assert dict(ns) == expected
    assert calls


@closed_by_the_collector
def test_a_handle_that_is_dropped_without_closing_lets_other_processes_in(tmp_path: Path) -> None:
    plugin = hutch.load_plugin("shelf", {"basedir": str(tmp_path)})
    storage = plugin.open("core")
    storage.set("k", 1)
    del storage
    assert [key for _, key, _ in plugin.pickles()] == ["k"]


@closed_by_the_collector
def test_errbot_reads_what_was_left_by_interrupts(tmp_path: Path) -> None:
    dbm_open(str(tmp_path / "core.db"), "dumb").close()
    with hutch.connect(f"shelf://{tmp_path}") as store, store.open("core") as ns:
        for point in some_points(lambda: ns.update(a=1, b=2)):
            for call in (lambda: ns.update(a=1, b=2), lambda: ns.__setitem__("c", "x" * 700), ns.clear):
                with contextlib.suppress(Limit):
                    run_at(point, raising(Limit), call, loops=False)
                held = dict(ns)
        ns["end"] = 1
        held = dict(ns)
    assert errbot_reads(tmp_path, "dumb") == held
