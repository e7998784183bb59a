"""Test FairLock: order, time-outs, nested calls, forks, and handlers that raise anywhere."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

import hutch
from hutch.locks import FairLock, Ticket


class Interrupt(Exception):
    """Raised as a signal handler would."""


def interrupt_at(number: int, fn: Callable[[], object]) -> tuple[bool, bool]:
    """Call `fn` and raise Interrupt at the event of that `number` inside locks.py: (raised, came out)."""
    count, raised = 0, False

    def event() -> None:
        nonlocal count, raised
        count += 1
        if count == number and not raised:
            raised = True
            raise Interrupt

    def profile(frame: FrameType, kind: str, _: Any) -> None:
        # A handler runs after a C call returned, or as a function begins.
        if kind in ("c_return", "call") and frame.f_code.co_filename.endswith("hutch/locks.py"):
            event()

    sys.setprofile(profile)
    try:
        fn()
    except Interrupt:
        return raised, True
    finally:
        sys.setprofile(None)
    return raised, False


def is_free(lock: FairLock) -> bool:
    thread = threading.Thread(target=lambda: lock.run(0, got.append, 1), daemon=True)
    got: list[int] = []
    thread.start()
    thread.join(10)
    return got == [1]


def test_a_handler_that_raises_at_any_point_leaves_the_lock_free() -> None:
    number = 0
    while True:
        number += 1
        lock = FairLock("it")
        raised, came_out = interrupt_at(number, lambda: lock.run(1, lambda: None))  # noqa: B023 - called at once
        assert came_out == raised
        assert is_free(lock), f"event {number}"
        if not raised:
            break
    assert number > 3


def test_a_handler_that_raises_while_the_lock_is_waited_for_leaves_the_queue() -> None:
    number = 0
    while True:
        number += 1
        lock, ticket = FairLock("it"), Ticket()
        holder = threading.Thread(target=hold_for, args=(lock, ticket, 0.02))
        holder.start()
        while not lock._tickets:
            time.sleep(0.0001)
        raised, came_out = interrupt_at(number, lambda: lock.run(10, lambda: None))  # noqa: B023 - called at once
        holder.join()
        assert came_out == raised
        assert is_free(lock), f"event {number}"
        if not raised:
            break
    assert number > 10


def hold_for(lock: FairLock, ticket: Ticket, seconds: float) -> None:
    lock.enter(ticket, 1)
    time.sleep(seconds)
    lock.leave(ticket)


def test_threads_get_the_lock_in_the_order_in_which_they_asked() -> None:
    lock, held = FairLock("it"), Ticket()
    lock.enter(held, 1)
    order: list[int] = []
    threads = []
    for number in range(8):
        thread = threading.Thread(target=lock.run, args=(10, order.append, number))
        thread.start()
        threads.append(thread)
        while len(lock._tickets) < number + 2:
            time.sleep(0.0001)
    lock.leave(held)
    for thread in threads:
        thread.join()
    assert order == list(range(8))
    assert not lock.has_waiters()


def test_a_thread_in_a_tight_loop_lets_others_in() -> None:
    lock, stop = FairLock("it"), threading.Event()

    def loop() -> None:
        while not stop.is_set():
            lock.run(10, sum, range(100))

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        waits = []
        for _ in range(50):
            began = time.monotonic()
            lock.run(10, sum, ())
            waits.append(time.monotonic() - began)
    finally:
        stop.set()
        thread.join()
    print(f"longest wait {max(waits):.4f} s")
    assert max(waits) < 10


def test_a_wait_ends_with_an_error_that_names_the_holder() -> None:
    lock, held = FairLock("the lock of it"), Ticket()
    release = threading.Event()

    def hold() -> None:
        lock.enter(held, 1)
        release.wait(10)
        lock.leave(held)

    holder = threading.Thread(target=hold, name="slow thread")
    holder.start()
    while not lock._tickets:
        time.sleep(0.0001)
    with pytest.raises(hutch.StorageTimeoutError, match=r"the lock of it: thread 'slow thread' has held its lock"):
        lock.run(0.05, lambda: None)
    release.set()
    holder.join()
    assert is_free(lock)


def test_a_nested_call_of_the_holding_thread_runs_at_once() -> None:
    lock = FairLock("it")
    assert not lock.is_mine()

    def outer() -> tuple[bool, str]:
        return lock.is_mine(), lock.run(0, lambda: "inner")

    assert lock.run(1, outer) == (True, "inner")
    assert is_free(lock)


def test_a_nested_call_of_a_waiting_thread_waits_for_the_lock() -> None:
    lock, held = FairLock("it"), Ticket()
    lock.enter(held, 1)
    order: list[str] = []

    def nested() -> None:
        ticket = Ticket()
        ticket.wake, ticket.thread = None, threading.get_ident()
        lock._tickets.append(ticket)  # the outer call, interrupted while it waits
        lock.run(10, order.append, "nested")
        lock.leave(ticket)

    threads = [threading.Thread(target=nested), threading.Thread(target=lock.run, args=(10, order.append, "other"))]
    for number, thread in enumerate(threads):
        thread.start()
        while len(lock._tickets) < 2 + number:
            time.sleep(0.0001)
    lock.leave(held)
    for thread in threads:
        thread.join(10)
    assert sorted(order) == ["nested", "other"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_does_not_wait_for_a_thread_that_it_does_not_have(unmeasured: None) -> None:
    lock, held, release = FairLock("it"), Ticket(), threading.Event()

    def hold() -> None:
        lock.enter(held, 1)
        release.wait(10)
        lock.leave(held)

    holder = threading.Thread(target=hold)
    holder.start()
    while not lock._tickets:
        time.sleep(0.0001)
    child = os.fork()
    if child == 0:
        try:
            lock.run(0, lambda: None)
        except BaseException:
            os._exit(1)
        os._exit(0)
    release.set()
    holder.join()
    assert os.waitpid(child, 0)[1] == 0
