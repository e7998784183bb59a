"""Jobs of a `Child` in which a signal handler or finalizer uses hutch in the middle of a verb."""

from __future__ import annotations

import faulthandler
import gc
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from types import FrameType
from typing import Any

import hutch

from ..signal_points import Visit, points
from .interrupt_jobs import set_timer
from .verb_work import KEYS, VERBS, Step, Work, value

#: A nested call that takes longer waits for the verb that it interrupted.
_QUICK_S = 10.0
_HANGS_AFTER_S = 25.0
_SAME_KEY = "set the same key"


class Nested:
    """One call in the middle of another call of the same thread: what it stores, and how it ended."""

    def __init__(self, work: Work, name: str, number: int, outer: Step, keys: list[str]) -> None:
        self._work, self._name, self._keys, self._number = work, name, keys, number
        self.new = value(number)
        #: Whether it writes a key that the interrupted verb also writes.
        self.is_same = name == _SAME_KEY
        if self.is_same:
            self._keys = [next(iter(outer.changes), KEYS[0])]
        self.was_called = self.landed = False
        self.error: hutch.StoreError | None = None
        self.took_s = 0.0

    def run(self) -> None:
        """Make the call. A StoreError is recorded, not raised: `_judge` knows whether the call may fail."""
        self.was_called = True
        self.landed = self._work.landing.is_inside(sys._getframe())
        began = time.monotonic()
        try:
            _ACTIONS[self._name](self._work, self._keys, self.new)
        except hutch.StoreError as error:
            self.error = error.with_traceback(None)
        else:
            if not self.is_same and self._name != "open":
                self._work.know(dict.fromkeys(self._keys, self.new))
        self.took_s = time.monotonic() - began

    def __str__(self) -> str:
        return f"a nested {self._name!r}"


def _set_all(work: Work, keys: list[str], new: Any) -> None:
    for key in keys:
        work.ns[key] = new


def _modify(work: Work, keys: list[str], new: Any) -> None:
    for key in keys:
        work.ns.modify(key, lambda _: new, default=None)


def _update(work: Work, keys: list[str], new: Any) -> None:
    work.ns.update(dict.fromkeys(keys, new))


def _open(work: Work, keys: list[str], new: Any) -> None:
    with work.store.open(f"nested {keys[0]}") as ns:
        ns["k"] = new
        assert ns["k"] == new


_ACTIONS: dict[str, Callable[[Work, list[str], Any], None]] = {
    "set": _set_all,
    "modify": _modify,
    "update": _update,
    "open": _open,
    _SAME_KEY: _set_all,
}
_OTHER_KEYS = [name for name in _ACTIONS if name != _SAME_KEY]


def nest_at_each_point(
    _: hutch.Store, config: Any, verb: str, limit: int | None, seed: int, may_refuse: bool
) -> dict[str, Any]:
    """Make each nested call at each point of `verb`, or at `limit` of them; return the counts and the longest call."""
    figures: Counter[str] = Counter()
    longest_s = 0.0
    with Work(config, seed) as work:
        plan = VERBS[verb]
        for name in _ACTIONS:
            for point in points(lambda: work.run(plan(work)), limit, work.rng.randrange(2**32)):
                step = plan(work)
                # An increment refuses the nested value, which is not a number.
                if name == _SAME_KEY and (not step.changes or verb == "increment"):
                    break
                call = Nested(work, name, work.next_number(), step, ["h0", "h1"])
                _nest(work, call, step, point, may_refuse)
                figures["refused" if call.error else "worked"] += call.was_called
                longest_s = max(longest_s, call.took_s)
        work.finish()
    return {**figures, "longest_s": longest_s}


def nest_increments(store: hutch.Store, namespace: str, limit: int | None, seed: int) -> dict[str, int]:
    """Increment a key at each point of an increment of the same key, or at `limit` of them; return the counts."""
    figures = {"points": 0, "refused": 0}
    with store.open(namespace) as ns:

        def nest() -> None:
            try:
                ns.increment("n", 1000)
            except hutch.ConflictError:
                figures["refused"] += 1

        for point in points(lambda: ns.increment("n"), limit, seed):
            ns["n"], refused = 0, figures["refused"]
            visit = Visit(point, nest)
            result = visit.run(lambda: ns.increment("n"))
            figures["points"] += visit.where is not None
            expected = 1 + 1000 * (visit.where is not None and figures["refused"] == refused)
            assert ns["n"] == expected, f"{ns['n']} is stored, not {expected}: {visit.where}"
            assert result in (1, expected), f"{result} was returned: {visit.where}"
    return figures


def _nest(work: Work, call: Nested, step: Step, point: int, may_refuse: bool) -> None:
    visit = Visit(point, call.run)
    faulthandler.dump_traceback_later(_HANGS_AFTER_S, exit=True)
    failure: Exception | None = None
    try:
        visit.run(lambda: work.run(step))
    except Exception as error:
        failure = error
    where = f"{call} within {step} at {visit.where}"
    _judge(call, failure, where, may_refuse)
    if call.is_same:
        _settle_same(work, step, call, where)
    work.settle()
    faulthandler.cancel_dump_traceback_later()


def _judge(call: Nested, failure: Exception | None, where: str, may_refuse: bool) -> None:
    """Raise AssertionError if the nested call or the verb around it failed, or if the call was slow."""
    if failure is not None and not (call.is_same and isinstance(failure, hutch.ConflictError)):
        raise AssertionError(f"{where}: the interrupted verb failed") from failure
    if call.error is not None and not (may_refuse or call.is_same):
        raise AssertionError(f"{where} was refused") from call.error
    assert call.took_s < _QUICK_S, f"{where} took {call.took_s:.1f} s"


def _settle_same(work: Work, step: Step, call: Nested, where: str) -> None:
    """Verify that either write of the key is stored, and that a read-modify-write did not lose the nested write."""
    [key] = call._keys
    new = step.changes[key]
    if not call.was_called or call.error is not None:
        allowed = [new]
    else:
        allowed = [call.new, value(call.new[0] + 1)]
        if not step.reads_first or _swaps_by_default(work):
            allowed.append(new)
    stored = work.ns.get(key, hutch.MISSING)
    assert stored in allowed, f"{where}: {stored} is stored, none of {allowed}"
    for other in set(step.changes) - {key}:
        assert work.ns.get(other, hutch.MISSING) == step.changes[other], f"{where}: lost {other!r}"
    work.pending, work.is_done = None, True
    work.know({**step.changes, key: stored})


def _swaps_by_default(work: Work) -> bool:
    """Return whether the engine uses hutch's default compare-and-set, which excludes only other threads."""
    storage = type(vars(work.ns)["_store"])
    names = {"compare_and_write", "compare_and_swap"}
    return not any(names & vars(one).keys() for one in storage.__mro__ if not one.__module__.startswith("hutch."))


def nest_at_random(_: hutch.Store, config: Any, count: int, seed: int, may_refuse: bool) -> dict[str, Any]:
    """Let `count` signal handlers write while verbs run and another thread writes; return the counts."""
    figures: Counter[str] = Counter()
    longest_s = 0.0
    with Work(config, seed) as work:
        longest_s_of = {verb: work.measure(plan) for verb, plan in VERBS.items()}
        work.repeats = 1
        for number in range(count):
            verb = work.rng.choice(list(VERBS))
            if number % 20 == 0:
                work.busy(number // 20 % 2 == 1)
            call = Nested(work, work.rng.choice(_OTHER_KEYS), work.next_number(), Step(lambda: None), ["h0", "h1"])

            def handle(_: int, frame: FrameType | None, call: Nested = call) -> None:
                signal.setitimer(signal.ITIMER_REAL, 0)
                call.run()

            faulthandler.dump_traceback_later(_HANGS_AFTER_S, exit=True)
            set_timer(handle, work.rng.uniform(0, 2 * longest_s_of[verb]))
            while not call.was_called:
                work.run(VERBS[verb](work))
            _judge(call, None, f"{call} within {verb!r}", may_refuse)
            work.settle()
            faulthandler.cancel_dump_traceback_later()
            figures["refused" if call.error else "worked"] += 1
            figures["landed inside"] += call.landed
            longest_s = max(longest_s, call.took_s)
        work.finish()
    return {**figures, "longest_s": longest_s}


class Saver:
    """An object that saves state when it is collected. It refers to itself, so only the garbage collector frees it."""

    def __init__(self, call: Nested) -> None:
        self._call, self._cycle = call, self

    def __del__(self) -> None:
        self._call.run()


def finalize_at_random(_: hutch.Store, config: Any, count: int, seed: int, may_refuse: bool) -> dict[str, Any]:
    """Let the garbage collector run `count` finalizers that write, open and close anywhere; return the counts."""
    figures: Counter[str] = Counter()
    calls = []
    with Work(config, seed) as work:
        thresholds = gc.get_threshold()
        faulthandler.dump_traceback_later(_HANGS_AFTER_S + count / 5, exit=True)
        try:
            for number in range(count):
                if number % 50 == 0:
                    work.busy(number // 50 % 2 == 1)
                name = _OTHER_KEYS[number % len(_OTHER_KEYS)]
                calls.append(Nested(work, name, number, Step(lambda: None), [f"d{number}", f"e{number}"]))
                # Collected later, usually in the middle of a verb.
                gc.set_threshold(work.rng.randint(2, 60))
                Saver(calls[-1])
                work.run(work.rng.choice(list(VERBS.values()))(work))
                if number % 10 == 0:
                    work.settle()
        finally:
            gc.set_threshold(*thresholds)
        work.busy(False)
        gc.collect()
        faulthandler.cancel_dump_traceback_later()
        for call in calls:
            assert call.was_called, "a finalizer was not run"
            _judge(call, None, f"{call}, of a finalizer,", may_refuse)
            figures["refused" if call.error else "worked"] += 1
            figures["landed inside"] += call.landed
        work.finish()
    assert threading.active_count() <= 2, f"threads that still run: {threading.enumerate()}"
    return {**figures, "longest_s": max(call.took_s for call in calls)}
