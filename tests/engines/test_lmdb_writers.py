"""Test threads that write to one LMDB folder: waiting writes share a commit, and each gets its own outcome."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import hutch
from hutch.testing.conformance.kit import together

THREADS = 12


@pytest.fixture
def store(tmp_path: Path) -> Iterator[hutch.Store]:
    with hutch.connect(f"lmdb://{tmp_path}/state?durability=relaxed&map_size_bytes=1048576") as store:
        yield store


@pytest.fixture
def space(store: hutch.Store) -> Iterator[hutch.Namespace]:
    with store.open("core") as space:
        space["there before"] = 1
        yield space


def environment(store: hutch.Store) -> Any:
    return store._factory._environment


def commits(store: hutch.Store) -> int:
    """Return the number of transactions so far."""
    return int(environment(store)._env.info()["last_txnid"])


@contextmanager
def held_up(store: hutch.Store, count: int) -> Iterator[None]:
    """Let no thread write until `count` threads wait to and the block is over."""
    queue = environment(store)._queue
    ticket = sys.modules[type(queue).__module__].new_ticket()
    queue.enter(ticket)
    try:
        yield
        deadline = time.monotonic() + 60
        while len(queue.requests) < count + 1:
            assert time.monotonic() < deadline, "the writers do not wait for their turn"
            time.sleep(0.001)
    finally:
        queue.leave(ticket)


def outcomes(store: hutch.Store, *work: Callable[[], Any]) -> list[Any]:
    """Return what each call returned or raised; all of them wait to write at the same time."""
    found: list[Any] = [None] * len(work)

    def run(index: int) -> None:
        try:
            found[index] = work[index]()
        except Exception as error:
            found[index] = error

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(work))]
    with held_up(store, len(work)):
        for thread in threads:
            thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    return found


def test_writers_who_wait_are_committed_in_one_transaction(store: hutch.Store, space: hutch.Namespace) -> None:
    before = commits(store)
    outcomes(store, *[lambda key=f"k{n}": space.__setitem__(key, key) for n in range(THREADS)])
    assert commits(store) - before == 1
    assert dict(space) == {"there before": 1, **{f"k{n}": f"k{n}" for n in range(THREADS)}}
    assert len(space) == THREADS + 1


def test_each_gets_the_outcome_of_its_own_write(store: hutch.Store, space: hutch.Namespace) -> None:
    """Whatever the writes are, even if one makes another impossible."""
    space.update({"old": 1, "swapped": 1})
    found = outcomes(
        store,
        lambda: space.update({"a": 1, "b": 2}),
        lambda: space.pop("old"),
        lambda: space.remove_many(["a", "not there"]),
        lambda: space.compare_and_set("swapped", 1, 2),
        lambda: space.compare_and_set("swapped", 1, 3),
        lambda: space.__delitem__("not there"),
    )
    assert found[0] is None
    assert found[1] == 1
    assert found[2] in (0, 1)
    assert sorted(map(bool, found[3:5])) == [False, True]
    assert isinstance(found[5], KeyError)
    assert ("a" in space) == (found[2] == 0)
    assert space["b"] == 2
    assert space["swapped"] == (2 if found[3] else 3)
    assert len(space) == len(list(space))


def test_of_many_who_add_one_none_is_lost(store: hutch.Store, space: hutch.Namespace) -> None:
    together(*[lambda: [space.modify("n", lambda n: n + 1, default=0) for _ in range(50)] for _ in range(8)])
    assert space["n"] == 400


def test_a_write_that_cannot_be_fails_alone(store: hutch.Store, space: hutch.Namespace) -> None:
    """Its transaction is undone; the other writes in it are committed without it."""
    with store.open("damaged") as damaged:
        damaged["x"] = 1
        txn_id = damaged._store._with_id(lambda _, id_: id_, None)  # type: ignore[attr-defined]
        environment(store).write(lambda slot: slot[0].put(txn_id, bytes(8)))  # the count, which is now too low
        found = outcomes(
            store,
            lambda: space.__setitem__("a", 1),
            lambda: damaged.__delitem__("x"),
            lambda: space.__setitem__("b", 2),
        )
        assert isinstance(found[1], hutch.CorruptValueError)
        assert found[0] is found[2] is None
        assert space.get_many(["a", "b"]) == {"a": 1, "b": 2}
        assert damaged["x"] == 1


def test_a_group_commit_larger_than_the_map_is_written_whole(store: hutch.Store, space: hutch.Namespace) -> None:
    values = {f"k{n}": os.urandom(300_000) for n in range(THREADS)}
    found = outcomes(store, *[lambda key=key: space.__setitem__(key, values[key]) for key in values])
    assert found == [None] * THREADS
    assert {key: space[key] for key in values} == values


_INTERRUPTED = """
import os, signal, sys, threading, time, hutch

with hutch.connect(f"lmdb://{sys.argv[1]}?durability=relaxed") as store, store.open("core") as space:
    space["before"] = 1
    queue = store._factory._environment._queue
    go = threading.Event()

    def hold():
        queue.enter(ticket := sys.modules[type(queue).__module__].new_ticket())
        try:
            others = [threading.Thread(target=space.__setitem__, args=(f"other {n}", n)) for n in range(5)]
            for other in others:
                other.start()
            while len(queue.requests) < 7:  # the main thread is one of them
                time.sleep(0.001)
            os.kill(os.getpid(), signal.SIGINT)
            go.wait(30)
        finally:
            queue.leave(ticket)
        for other in others:
            other.join()

    holder = threading.Thread(target=hold)
    holder.start()
    while not queue.requests:
        time.sleep(0.001)
    try:
        space["main"] = 1
    except KeyboardInterrupt:
        print("interrupted")
    go.set()
    holder.join()
    print(sorted(space), len(space))
"""


@pytest.mark.skipif(os.name != "posix", reason="needs signals")
@pytest.mark.usefixtures("unmeasured")
def test_a_ctrl_c_while_waiting_withdraws_the_write_and_no_other(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _INTERRUPTED, str(tmp_path / "state")],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.stdout.splitlines() == [
        "interrupted",
        "['before', 'other 0', 'other 1', 'other 2', 'other 3', 'other 4'] 6",
    ], done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.usefixtures("unmeasured")
def test_a_child_forked_while_other_threads_wait_can_write(store: hutch.Store, space: hutch.Namespace) -> None:
    """The child has none of its parent's waiting threads, and their writes happen once.

    Nor does it take the slots of its parent's readers, which would let pages be overwritten that they read.
    """
    stop = threading.Event()

    def write(me: int) -> int:
        number = 0
        while not stop.is_set():
            space.modify(f"count {me}", lambda n: n + 1, default=0)
            number += 1
        return number

    def fork() -> list[int]:
        try:
            codes = []
            for _ in range(20):
                child = os.fork()
                if not child:
                    signal.alarm(60)
                    code = 1
                    try:
                        space.modify("children", lambda n: n + 1, default=0)
                        code = 0
                    finally:
                        os._exit(code)
                codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
            return codes
        finally:
            stop.set()

    counts = together(*[lambda me=me: write(me) for me in range(4)], fork)
    codes = counts.pop()
    assert codes == [0] * 20
    assert {f"count {me}": count for me, count in enumerate(counts)} == dict(space.scan(prefix="count"))
    assert space["children"] == 20


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs a list of open files")
def test_a_store_that_was_closed_has_no_file_open(tmp_path: Path) -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with hutch.connect(f"lmdb://{tmp_path}/state") as store, store.open("core") as space:
            space["k"] = 1
    assert sorted(os.listdir("/proc/self/fd")) == before
