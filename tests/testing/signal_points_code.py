"""Functions whose points test_signal_points.py counts; in a separate file, because a test's file has no points."""

from __future__ import annotations

import threading


def call_c(items: list[int]) -> int:
    items.append(1)
    return len(items)


def call_python() -> None:
    _do_nothing()


def _do_nothing() -> None:
    pass


def with_c_lock(lock: threading.Lock) -> bool:
    with lock:
        return lock.locked()


def acquire_before_try(lock: threading.Lock) -> bool:
    lock.acquire()
    try:
        return lock.locked()
    finally:
        lock.release()


def loop(times: int) -> int:
    done = 0
    for _ in range(times):
        done += 1
    return done


def many_calls(times: int) -> None:
    items: list[int] = []
    for _ in range(times):
        items.append(1)
