"""Fairness between writers: a thread or process that writes without pause does not block the others."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import hutch

from .child import Child
from .interrupts import ALL_POINTS_FROM, SIGNALS
from .kit import PATIENCE_S, Promises, needs

#: The longest wait of a write: ten times what an idle machine needs.
TURN_S = 10.0
_WRITES = 10
WRITERS = [2, 8, *([32] if SIGNALS >= ALL_POINTS_FROM else [])]


class Fairness(Promises):
    @pytest.mark.parametrize("writers", WRITERS)
    def test_a_thread_that_writes_all_the_time_keeps_no_other_out(
        self, store: hutch.Store, writers: int, record_property: Callable[[str, object], None]
    ) -> None:
        """While one thread writes in a tight loop, every write of every other thread ends within 10 s."""
        ns = store.open("core")
        stop = threading.Event()
        busy = threading.Thread(target=write_until, args=(ns, stop.is_set), daemon=True)
        waits: list[float] = []
        others = [
            threading.Thread(target=write_now_and_then, args=(ns, n, waits), daemon=True) for n in range(1, writers)
        ]
        busy.start()
        try:
            for thread in others:
                thread.start()
            deadline = time.monotonic() + TURN_S
            while any(thread.is_alive() for thread in others):
                done = len(waits)
                time.sleep(0.01)
                if len(waits) > done:
                    deadline = time.monotonic() + TURN_S
                missing = (writers - 1) * _WRITES - len(waits)
                assert time.monotonic() < deadline, f"{missing} writes of other threads wait for over {TURN_S:.0f} s"
        finally:
            stop.set()
            for thread in (busy, *others):
                thread.join(TURN_S)
        record_property("counted", f"{store.name}, {writers} threads: the longest wait was {max(waits):.4f} s")
        assert max(waits) < TURN_S
        assert len(waits) == (writers - 1) * _WRITES
        assert [ns[f"k{number}"] for number in range(1, writers)] == [_WRITES - 1] * (writers - 1)
        ns.close()

    @pytest.mark.parametrize("writers", [2, 3])
    def test_a_process_that_writes_all_the_time_keeps_no_other_out(
        self,
        config: Any,
        store: hutch.Store,
        writers: int,
        tmp_path: Path,
        record_property: Callable[[str, object], None],
    ) -> None:
        """Where shared: while one process writes in a tight loop, every write of every other ends within 10 s."""
        needs(store, "shared")
        stop = tmp_path / "stop"
        with ExitStack() as stack:
            busy, *others = [stack.enter_context(Child(config)) for _ in range(writers)]
            busy.start("write_all_the_time", "core", str(stop))
            try:
                with store.open("core") as ns:
                    deadline = time.monotonic() + PATIENCE_S
                    while "busy" not in ns:
                        assert time.monotonic() < deadline, "the busy process has written nothing"
                        time.sleep(0.01)
                for number, child in enumerate(others, 1):
                    child.start("write_from_time_to_time", "core", number)
                waits = [wait for child in others for wait in child.result(PATIENCE_S)]
            finally:
                stop.touch()
            assert busy.result() > 0
        record_property("counted", f"{store.name}, {writers} processes: the longest wait was {max(waits):.4f} s")
        assert max(waits) < TURN_S
        with store.open("core") as ns:
            assert [ns[f"k{number}"] for number in range(1, writers)] == [_WRITES - 1] * (writers - 1)


def write_until(ns: hutch.Namespace, is_over: Callable[[], bool]) -> int:
    """Write in a tight loop; return how often."""
    written = 0
    while not is_over():
        ns["busy"] = written
        written += 1
    return written


def write_now_and_then(ns: hutch.Namespace, number: int, waits: list[float]) -> None:
    """Write the thread's own key by several verbs, and append the duration of each write to `waits`."""
    key = f"k{number}"
    for turn in range(_WRITES):
        began = time.monotonic()
        if turn % 3 == 0:
            ns[key] = turn
        elif turn % 3 == 1:
            ns.update({key: turn, f"{key} more": turn})
        else:
            ns.modify(key, lambda old: old + 1)
        waits.append(time.monotonic() - began)
        time.sleep(0.001)


def write_all_the_time(store: hutch.Store, namespace: str, stop: str) -> int:
    """Write in a tight loop until the file `stop` exists; return how often."""
    with store.open(namespace) as ns:
        return write_until(ns, Path(stop).exists)


def write_from_time_to_time(store: hutch.Store, namespace: str, number: int) -> list[float]:
    """Write at intervals; return the duration of each write."""
    waits: list[float] = []
    with store.open(namespace) as ns:
        write_now_and_then(ns, number, waits)
    return waits
