"""FairLock: a lock among the threads of one process that stays consistent if a signal handler or finalizer raises."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final, TypeVar

from .errors import StorageTimeoutError
from .fork import WeakRefs, run_in_child
from .handlers import raised_by_handler

T = TypeVar("T")

# A waiting thread is woken by the previous holder. If a signal handler raised in place of the wake-up, the thread
# wakes by itself after this long.
_LONGEST_NAP_S: Final = 0.05


class Ticket:
    """The place of one call in the queue of a `FairLock`."""

    __slots__ = ("thread", "wake")

    thread: int
    #: Locked while the call sleeps; None if it never had to sleep.
    wake: threading.Lock | None


class FairLock:
    """A lock that threads acquire in the order in which they requested it.

    The queue is the lock: the thread of its first ticket holds it. So one atomic operation acquires the lock and one
    releases it, and the `finally` that releases it begins with that operation. CPython may run a signal handler after
    any call, so with ``acquire()`` before ``try`` the lock would stay locked if a handler raised between the two.

    A call by a thread that holds the lock already runs at once: it comes from a signal handler or finalizer that
    interrupted the thread in the middle of the outer call. `is_mine` detects such a nested call.
    """

    __slots__ = ("__weakref__", "_tickets", "_what")

    def __init__(self, what: str) -> None:
        """Create a free lock; `what` names what it protects, for the message of a time-out."""
        self._what = what
        self._tickets: deque[Ticket] = deque()
        _all.add(self)

    def run(self, timeout_s: float, fn: Callable[..., T], *args: object) -> T:
        """Return ``fn(*args)``, called while the lock is held.

        Raises StorageTimeoutError if the lock is not free within `timeout_s` seconds, and what `fn` raises.
        """
        tickets = self._tickets
        ticket = Ticket()
        ticket.wake = None
        ticket.thread = threading.get_ident()
        try:
            tickets.append(ticket)
            if tickets[0] is not ticket:
                self._wait(ticket, timeout_s)
            return fn(*args)
        finally:
            # Remove the ticket first: whatever a handler raises afterwards, the lock is free.
            try:  # noqa: SIM105 - suppress is Python code, in which a handler could raise before the removal
                tickets.remove(ticket)
            except ValueError:  # a handler raised before the ticket was in the queue
                pass
            if tickets:
                self._wake_first()

    def is_mine(self) -> bool:
        """Return whether the calling thread holds the lock."""
        try:
            return self._tickets[0].thread == threading.get_ident()
        except IndexError:
            return False

    def has_waiters(self) -> bool:
        """Return whether any call is waiting for the lock."""
        return len(self._tickets) > 1

    def enter(self, ticket: Ticket, timeout_s: float) -> None:
        """Acquire the lock until `leave` is called with the same `ticket`: for fork hooks, which span two calls.

        Raises StorageTimeoutError as `run` does; the caller must call `leave` in that case too.
        """
        ticket.wake = None
        ticket.thread = threading.get_ident()
        self._tickets.append(ticket)
        self._wait(ticket, timeout_s)

    def leave(self, ticket: Ticket) -> None:
        """Release the lock; does nothing if `ticket` is not in the queue."""
        try:
            self._tickets.remove(ticket)
        except ValueError:
            return
        if self._tickets:
            self._wake_first()

    def _wait(self, ticket: Ticket, timeout_s: float) -> None:
        """Wait until the first ticket belongs to this thread."""
        tickets, thread = self._tickets, ticket.thread
        if tickets[0].thread == thread:
            return
        deadline_s = time.monotonic() + timeout_s
        wake = threading.Lock()
        # No other thread has a reference to it yet. A wake-up releases it, and each wait acquires it again.
        wake.acquire()
        ticket.wake = wake
        while (first := tickets[0]).thread != thread:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                raise StorageTimeoutError(
                    f"{self._what}: {_name_of(first.thread)} has held its lock for {timeout_s:g} s; the call was given "
                    "up and nothing was written. Try again, or allow a longer wait_s"
                )
            wake.acquire(timeout=min(left_s, _LONGEST_NAP_S))

    def _wake_first(self) -> None:
        try:
            wake = self._tickets[0].wake
        except IndexError:
            return
        wake_up(wake)

    def _after_fork_in_child(self) -> None:
        """Remove the tickets of threads that do not exist in the child."""
        thread = threading.get_ident()
        left = [ticket for ticket in self._tickets if ticket.thread == thread]
        self._tickets.clear()
        self._tickets.extend(left)


def wake_up(wake: threading.Lock | None) -> None:
    """Wake the thread that sleeps on `wake`, if any: release the lock."""
    if wake is not None and wake.locked():
        try:
            wake.release()
        except RuntimeError as error:  # another thread has woken it
            if raised_by_handler(error):
                raise


def _name_of(thread: int) -> str:
    for one in threading.enumerate():
        if one.ident == thread:
            return f"thread {one.name!r}"
    return "a thread that has ended"


_all: WeakRefs[FairLock] = WeakRefs()


def _after_fork_in_child() -> None:
    for lock in _all.live():
        lock._after_fork_in_child()


run_in_child(_after_fork_in_child)
