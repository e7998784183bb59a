"""Jobs of a `Child` whose main thread waits until a signal interrupts it."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import hutch

from .interrupt_jobs import set_timer
from .kit import enter


class Alarm(Exception):
    """The exception that the handler raises."""


def interrupt_waits_for_a_key(store: hutch.Store) -> float:
    """Interrupt each kind of wait for a held key by a signal; return the longest time from a signal to the wait's end.

    Raises AssertionError if a wait ends otherwise, or the key stays held.
    """
    held, done = threading.Event(), threading.Event()
    longest_s = 0.0
    with store.open("core") as ns:

        def hold() -> None:
            with ns.mutable("k", default=[]):
                held.set()
                done.wait()

        thread = threading.Thread(target=hold, daemon=True)
        thread.start()
        held.wait()
        for call in (lambda: enter(ns, "k"), lambda: ns.modify("k", lambda old: old, default=1)) * 3:
            after_s = _until_alarm(call)
            assert after_s is not None, "it did not wait for the key"
            longest_s = max(longest_s, after_s)
        done.set()
        thread.join()
        ns["k"] = []
        ns.modify("k", lambda old: [*old, 1])
        assert ns["k"] == [1]
    return longest_s


def interrupt_a_write(store: hutch.Store, key: str) -> float:
    """Write `key`, and return how long after the signal the call ended; 0.0 if it ended before, or by a StoreError."""
    with store.open("mine") as ns, suppress(hutch.StoreError):
        return _until_alarm(lambda: ns.__setitem__(key, 1)) or 0.0
    return 0.0


def _until_alarm(call: Callable[[], object], delay_s: float = 0.2) -> float | None:
    """Return how many seconds after the signal `call` ended with its exception; None if it had ended before."""
    fired_s: list[float] = []
    is_over = False

    def handle(*_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        if not is_over:
            fired_s.append(time.monotonic())
            raise Alarm

    try:
        try:
            set_timer(handle, delay_s)
            call()
        finally:
            is_over = True  # a later signal would raise outside of this `try`
    except Alarm:
        return time.monotonic() - fired_s[0]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    assert not fired_s, "what the handler raised was swallowed"
    return None
