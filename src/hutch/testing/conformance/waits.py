"""Every wait for a key ends: with the key, with an error that names it, or by Ctrl-C."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from typing import Any

import pytest

import hutch

from .child import Child
from .interrupts import needs_timers
from .kit import Promises, enter, needs, together

#: The longest time for an answer that needs no wait: ten times what a slow machine needs.
AT_ONCE_S = 10.0
_WAIT_S = 0.5


class Waits(Promises):
    def test_two_keys_taken_in_opposite_order_end_in_an_error(self, ns: hutch.Namespace) -> None:
        """Of two threads that each wait for a key that the other holds, one gets a StoreError that names the key."""
        both_hold = threading.Barrier(2)

        def work(first: str, second: str) -> hutch.StoreError | None:
            try:
                with ns.mutable(first, default=[]) as held:
                    both_hold.wait(AT_ONCE_S)
                    held.append(first)
                    with ns.mutable(second, default=[]) as inner:
                        inner.append(first)
            except hutch.StoreError as error:
                assert re.search(f"{first}|{second}", str(error)), error
                return error
            return None

        began = time.monotonic()
        errors = together(lambda: work("left", "right"), lambda: work("right", "left"))
        took_s = time.monotonic() - began
        print(f"it took {took_s:.3f} s")
        assert any(errors), "neither thread got an error"
        assert took_s < AT_ONCE_S
        ns["left"] = ns["right"] = "free"

    def test_a_key_within_its_own_modify_is_refused_at_once(self, ns: hutch.Namespace) -> None:
        """modify and mutable of a key within modify or mutable of the same key work, or raise an error, at once."""
        ns["k"] = [1]

        def within(value: list[int]) -> list[int]:
            try:
                ns.modify("k", lambda old: old)
            except hutch.StoreError as error:
                assert "'k'" in str(error)
            try:
                enter(ns, "k")
            except hutch.StoreError as error:
                assert "'k'" in str(error)
            return [*value, 2]

        began = time.monotonic()
        assert ns.modify("k", within) == [1, 2]
        try:
            with ns.mutable("k") as value:
                value[:] = within(value)
        except hutch.ConflictError as error:
            assert "'k'" in str(error)
        assert time.monotonic() - began < AT_ONCE_S
        assert ns["k"][:2] == [1, 2]
        ns["k"] = "free"

    def test_a_wait_for_a_key_ends_in_time(self, ns: hutch.Namespace) -> None:
        """modify and mutable wait for a held key at most wait_s, then raise StorageTimeoutError that names the key."""
        held, done = threading.Event(), threading.Event()

        def hold() -> None:
            with ns.mutable("k", default=[]):
                held.set()
                done.wait(10 * AT_ONCE_S)

        def want() -> list[str]:
            assert held.wait(AT_ONCE_S)
            errors = []
            try:
                for call in (lambda: ns.modify("k", lambda old: old, default=1), lambda: enter(ns, "k")):
                    with pytest.raises((hutch.StorageTimeoutError, hutch.ConflictError)) as raised:
                        call()
                    errors.append(str(raised.value))
                ns["other"] = "is free"
            finally:
                done.set()
            return errors

        vars(ns)["_store"].wait_s = _WAIT_S
        began = time.monotonic()
        _, errors = together(hold, want)
        assert time.monotonic() - began < AT_ONCE_S
        assert errors
        assert all("'k'" in error for error in errors)
        ns["k"] = "free"

    @needs_timers
    def test_a_signal_ends_a_wait_for_a_key(self, config: Any) -> None:
        """A wait for a key that another thread holds ends at once when a signal handler raises."""
        with Child(config, measured=False) as child:
            assert child.call("interrupt_waits_for_a_key") < AT_ONCE_S

    @needs_timers
    def test_a_signal_ends_a_wait_for_another_process(self, config: Any, store: hutch.Store) -> None:
        """Where shared: a write that waits for a stopped process ends at once, by itself or by a signal."""
        needs(store, "shared")
        with Child(config, measured=False) as busy, Child(config, measured=False) as child:
            busy.start("write_batches", "core", [f"k{number}" for number in range(3000)], 1_000_000)
            try:
                for turn in range(5):
                    time.sleep(0.05)
                    os.kill(busy.pid, signal.SIGSTOP)
                    try:
                        ended_s = child.call("interrupt_a_write", f"turn {turn}")
                    finally:
                        os.kill(busy.pid, signal.SIGCONT)
                    print(f"a write of the other process ended {ended_s:.3f} s after the signal")
                    assert ended_s < AT_ONCE_S
                assert child.call("get_all", "mine").keys() <= {f"turn {turn}" for turn in range(5)}
            finally:
                busy.kill_only()
