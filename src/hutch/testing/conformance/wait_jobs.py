"""Jobs of the other process whose main thread waits, and is interrupted by a signal."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable

import hutch

from .interrupt_jobs import set_timer


class Alarm(Exception):
    """What the handler raises."""


def interrupt_waits_for_a_key(store: hutch.Store) -> float:
    """Wait for a key that another thread holds, in each way, until a signal comes; the longest time from it to the end.

    Raises AssertionError if a wait ends in another way, or the key cannot be had afterwards.
    """
    held, done = threading.Event(), threading.Event()
    longest_s = 0.0
    with store.open("core") as ns:

        def hold() -> None:
            with ns.mutable("k", default=[]):
                held.set()
                done.wait()

        def enter() -> None:
            with ns.mutable("k"):
                pass

        thread = threading.Thread(target=hold, daemon=True)
        thread.start()
        held.wait()
        for call in (enter, lambda: ns.modify("k", lambda old: old, default=1)) * 3:
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
    """Write; how long that went on after the signal, 0.0 if it was done before. A StoreError is an end, too."""
    with store.open("mine") as ns:
        try:
            after_s = _until_alarm(lambda: ns.__setitem__(key, 1))
        except hutch.StoreError:
            after_s = None
    return after_s or 0.0


def _until_alarm(call: Callable[[], object], delay_s: float = 0.2) -> float | None:
    """Return how many seconds after the signal `call` ended with its exception; None if it had ended before."""
    fired_s: list[float] = []

    def handle(*_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        fired_s.append(time.monotonic())
        raise Alarm

    try:
        set_timer(handle, delay_s)
        call()
    except Alarm:
        return time.monotonic() - fired_s[0]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    assert not fired_s, "what the handler raised was swallowed"
    return None
