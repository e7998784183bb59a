"""Test lmdb and signal handlers that raise, or use the store, at any point of any verb."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import hutch
from hutch.testing.signal_points import Interrupt, Visit, count_points, points, raise_interrupt, run_at

pytestmark = pytest.mark.usefixtures("unmeasured")

POINTS = int(os.environ.get("HUTCH_POINTS", "120"))

VERBS: dict[str, Callable[[Any], object]] = {
    "set": lambda space: space.__setitem__("k", [1]),
    "set of a new key": lambda space: space.__setitem__(f"new {time.monotonic_ns()}", 1),
    "update": lambda space: space.update({f"u{n}": n for n in range(5)}),
    "remove": lambda space: space.pop("gone", None),
    "remove_many": lambda space: space.remove_many(["u1", "u2", "nothing"]),
    "compare_and_set": lambda space: space.compare_and_set("k", [1], [1]),
    "clear": lambda space: space.clear(),
    "get": lambda space: space.get("k"),
    "in": lambda space: "k" in space,
    "len": len,
    "items": lambda space: list(space.items()),
    "get_many": lambda space: space.get_many(["k", "u1"]),
}


@pytest.fixture(autouse=True)
def handler() -> Iterator[None]:
    """Set a handler, as an application does whose handlers use a store: `run_at` runs them without a signal."""
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[hutch.Store]:
    with hutch.connect(f"lmdb://{tmp_path}/state?durability=relaxed&map_size_bytes=1048576&wait_s=5") as store:
        yield store


def others_can_write(store: hutch.Store) -> bool:
    """Return whether another thread can write at once."""
    done: list[bool] = []

    def write() -> None:
        with store.open("others") as others:
            others["x"] = 1
            done.append(True)

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    thread.join(10)
    return bool(done)


@pytest.mark.parametrize("verb", VERBS)
def test_what_a_handler_raises_comes_out_and_leaves_nothing_behind(store: hutch.Store, verb: str) -> None:
    """The traceback is kept, as a notebook keeps it in sys.last_value: it must not keep a transaction."""
    with store.open("core") as space:
        space.update({"k": [1], "u1": 1, "u2": 2})
        kept: list[BaseException] = []
        every = points(lambda: VERBS[verb](space), POINTS)
        for point in every:
            visit = Visit(point, raise_interrupt)
            try:
                visit.run(lambda: VERBS[verb](space))
            except Interrupt as error:
                kept = [*kept[-3:], error]
            else:
                assert visit.where is None, f"swallowed: {visit.where}"
            assert others_can_write(store), visit.where
            space["k"] = [1]
        assert len(space) == len(list(space))
    assert len(every) > 3


@pytest.mark.parametrize("verb", VERBS)
def test_a_handler_may_write_at_any_point(store: hutch.Store, verb: str) -> None:
    """Its write is there when it returns, and so is the one that it interrupted."""
    with store.open("core") as space, store.open("saved") as saved:
        space.update({"k": [1], "u1": 1, "u2": 2})
        seen: list[int] = []

        def save() -> None:
            number = len(seen)
            saved["state"] = number
            assert saved["state"] == number
            saved.update({"a": number, "b": number})
            seen.append(number)

        for point in points(lambda: VERBS[verb](space), POINTS):
            expected = VERBS[verb](space)
            began = time.monotonic()
            found = run_at(point, save, lambda: VERBS[verb](space))
            assert time.monotonic() - began < 5, f"point {point}"
            assert found == expected, f"point {point}"
            assert (saved["state"], dict(saved)["b"]) == (len(seen) - 1, len(seen) - 1)
        assert len(space) == len(list(space))
        assert others_can_write(store)
        assert seen


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("what", ["raises", "raises, without a handler", "writes", "closes another", "forks"])
def test_opening_the_first_write_and_closing_with_a_handler_at_any_point(tmp_path: Path, what: str) -> None:
    if what == "forks" and not hasattr(os, "fork"):
        pytest.skip("this system has no fork")
    if what == "raises, without a handler":  # the main thread opens the files itself, and Ctrl-C may raise
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    number = 0

    def life() -> None:
        nonlocal number
        number += 1
        url = f"lmdb://{tmp_path}/{number % 7}?wait_s=5&durability=relaxed"
        with hutch.connect(url) as store, store.open("core") as space:
            space["k"] = 1
            assert space["k"] == 1

    def act() -> None:
        if what.startswith("raises"):
            raise_interrupt()
        url = f"lmdb://{tmp_path}/{number % 7}?wait_s=5&durability=relaxed"
        if what == "forks":
            child = os.fork()
            if not child:
                os.kill(os.getpid(), signal.SIGKILL)  # coverage has its own os._exit, which runs Python code first
            os.waitpid(child, 0)
            return
        with hutch.connect(url) as store, store.open("handler") as space:
            space["h"] = number

    life()
    total = count_points(life)
    every = sorted(set(range(1, total, max(1, total // POINTS))))
    kept: list[BaseException] = []
    for point in every:
        began = time.monotonic()
        try:
            run_at(point, act, life)
        except Interrupt as error:
            kept = [*kept[-3:], error]
        assert time.monotonic() - began < 5, f"point {point}"
        # Whatever was left, the folder opens and is written to.
        url = f"lmdb://{tmp_path}/{number % 7}?wait_s=5&durability=relaxed"
        with hutch.connect(url) as store, store.open("core") as space:
            space["k"] = point
            assert space["k"] == point
    kept.clear()
    sys.last_value = None


def test_a_finalizer_of_another_store_within_close_leaves_the_files_to_that_close(tmp_path: Path) -> None:
    """The finalizer closes every environment without users, of which this one is just being closed."""
    visited: list[str] = []
    # 0 visits nothing: it counts. Environments that earlier tests left are looked at first.
    numbers = [0]
    for point in numbers:
        plugin: Any = hutch.load_plugin("lmdb", {"path": str(tmp_path / "state"), "durability": "relaxed"})
        with plugin.open("core") as space:
            space.set("k", point)
        # As after a write that failed: closing begins a transaction and flushes.
        plugin._shared._settle.__func__.__globals__["in_doubt"].add(str(tmp_path / "state"))
        others: list[Any] = [hutch.load_plugin("lmdb", {"path": str(tmp_path / "other")})]
        gc.collect()
        visit = Visit(point, others.clear)
        visit.run(plugin.close, loops=False)
        if not point:
            numbers += range(max(1, visit.passed - 110), visit.passed)
        visited += [visit.where] if visit.where else []
        others.clear()
        with hutch.connect(f"lmdb://{tmp_path}/state?durability=relaxed") as store, store.open("core") as core:
            assert core["k"] == point
    assert any("_settle" in where for where in visited), "\n".join(visited)


@pytest.mark.parametrize(
    "read",
    [lambda space: list(space.items()), lambda space: list(space.scan()), list],
    ids=["items", "scan", "list"],
)
def test_a_kept_traceback_keeps_no_reader_slot(store: hutch.Store, read: Callable[[Any], object]) -> None:
    """LMDB has 1,024 slots for readers, and an aborted read transaction keeps its slot while it is referenced."""
    with store.open("core") as space:
        space.update({f"k{number}": number for number in range(5)})
        kept: list[BaseException] = []
        for point in points(lambda: read(space), POINTS, loops=False):
            try:
                Visit(point, raise_interrupt).run(lambda: read(space), loops=False)
            except Interrupt as error:
                kept.append(error)
        assert len(kept) >= 10
        storage: Any = space._store
        used = storage._environment._env.readers().count("\n") - 1  # below a line of headings
        assert used <= 2, f"{used} reader slots are in use after {len(kept)} interrupted reads"


@pytest.mark.parametrize("step", range(1, 9))
def test_no_second_handler_lets_a_write_be_committed_after_its_exception(store: hutch.Store, step: int) -> None:
    """Another thread commits the interrupted write together with its own; meanwhile the exception waits."""
    handler = signal.getsignal(signal.SIGINT)
    has_left, may_lead = threading.Event(), threading.Event()
    second: list[str] = []

    def raise_again(frame: Any, event: str, _: object) -> None:
        if event in ("call", "c_return") and frame.f_code.co_filename.endswith("commit_queue.py"):
            raise_again.passed += 1  # type: ignore[attr-defined]
            if raise_again.passed == step:  # type: ignore[attr-defined]
                sys.setprofile(None)
                second.append(frame.f_code.co_name)
                raise Interrupt("second")

    raise_again.passed = 0  # type: ignore[attr-defined]

    def raise_first(*_: object) -> None:
        sys.setprofile(raise_again)
        raise Interrupt("first")

    def lead(_: object) -> None:
        signal.raise_signal(signal.SIGINT)  # its handler runs in the main thread
        has_left.wait(0.3)

    def wait_for_requests(count: int) -> None:
        end = time.monotonic() + 20
        while len(queue.requests) < count and time.monotonic() < end:
            time.sleep(0.001)

    def release_leader() -> None:
        wait_for_requests(3)
        may_lead.set()

    with store.open("core") as space:
        space["k"] = 0
        storage: Any = space._store
        environment = storage._environment
        queue = environment._queue
        threads = [
            threading.Thread(target=environment.write, args=(lambda _: may_lead.wait(20),)),
            threading.Thread(target=environment.write, args=(lead,)),
            threading.Thread(target=release_leader),
        ]
        for number, thread in enumerate(threads, 1):
            thread.start()
            wait_for_requests(min(number, 2))
        try:
            signal.signal(signal.SIGINT, raise_first)
            with pytest.raises(Interrupt):
                space["k"] = 1
        finally:
            sys.setprofile(None)
            signal.signal(signal.SIGINT, handler)
        at_once = space["k"]
        has_left.set()
        for thread in threads:
            thread.join(20)
        assert space["k"] == at_once, f"committed after its exception; the second was raised in {second}"
        assert second, "the second handler did not run"
