"""Run code at every point where CPython may run a signal handler, one point after the other and without a clock.

CPython 3.11 to 3.13 runs Python's signal handlers in the main thread as a function begins, after a call of a C function
returned, and as a loop jumps back. `run_at` stands in for a signal that arrives at one of these points: it calls an
action there, which may raise, as Ctrl-C and a time limit do, or use hutch itself, as a handler that saves state does::

    for point in points(lambda: ns.set("k", 1)):
        with suppress(Interrupt):
            run_at(point, raise_interrupt, lambda: ns.set("k", 1))
        ...                                     # the old value or the new, and no lock left
"""

from __future__ import annotations

import dis
import random
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from types import CodeType, FrameType
from typing import Any, TypeVar

T = TypeVar("T")

# Of `sys.monitoring`, Python 3.12 and later: an id that no debugger, profiler or coverage tool has by convention.
_TOOL_ID = 4


class Interrupt(Exception):
    """What the tests let a handler raise; a class that nothing else raises or catches."""


class Visit:
    """One call of `work` under observation, in the thread that calls `run`."""

    def __init__(self, at: int, action: Callable[[], object]) -> None:
        """Call `action` at the point number `at`, counted from 1; at none if that is 0."""
        self._at = at
        self._action = action
        #: How many points have been passed.
        self.passed = 0
        #: Where `action` was called: file, line, function and the kind of point.
        self.where: str | None = None
        self._outside: set[str] = set()
        #: Python 3.11: whether the trace function looks after the starts of functions, and the one that has just begun.
        self._traces_starts = False
        self._started: FrameType | None = None

    def run(self, work: Callable[[], T], *, loops: bool = True) -> T:
        """Return ``work()``. The code of the file that defines `work`, and of this one, has no points.

        `loops` counts the jumps of loops too, by a trace function, which must not be used while coverage is measured
        in this process.
        """
        code: CodeType | None = getattr(work, "__code__", None)
        self._outside = {__file__, *([code.co_filename] if code else [])}
        with self._jumps_observed() if loops else nullcontext():
            sys.setprofile(self._profile)
            try:
                return work()
            finally:
                sys.setprofile(None)

    @contextmanager
    def _jumps_observed(self) -> Iterator[None]:
        monitoring: Any = getattr(sys, "monitoring", None)
        if monitoring is None:  # Python 3.11
            before = sys.gettrace()
            self._traces_starts = True
            sys.settrace(self._trace)
            try:
                yield
            finally:
                sys.settrace(before)
                self._traces_starts, self._started = False, None
            return
        thread = threading.get_ident()

        def jump(_: CodeType, start: int, target: int) -> None:
            # Monitoring sees all threads.
            if target < start and threading.get_ident() == thread:
                self._point(sys._getframe(1), "jump")

        monitoring.use_tool_id(_TOOL_ID, __name__)
        try:
            monitoring.register_callback(_TOOL_ID, monitoring.events.JUMP, jump)
            monitoring.set_events(_TOOL_ID, monitoring.events.JUMP)
            yield
        finally:
            monitoring.set_events(_TOOL_ID, 0)
            monitoring.register_callback(_TOOL_ID, monitoring.events.JUMP, None)
            monitoring.free_tool_id(_TOOL_ID)

    def _profile(self, frame: FrameType, event: str, _: Any) -> None:
        if event == "c_return" or (event == "call" and not self._traces_starts):
            self._point(frame, event)

    def _trace(self, frame: FrameType, event: str, _: Any) -> Any:
        if event == "call":
            if frame.f_code.co_filename in self._outside:
                return None
            frame.f_trace_opcodes, frame.f_trace_lines = True, False
            # An exception of this very call would pass by an `except` that guards the start of the function, where
            # that of a signal handler would not.
            self._started = frame
        elif event == "opcode":
            if self._started is frame:
                self._started = None
                frame.f_trace_opcodes = bool(_jumps_back(frame.f_code))
                self._point(frame, "call")
            if frame.f_lasti in _jumps_back(frame.f_code):
                self._point(frame, "jump")
        return self._trace

    def _point(self, frame: FrameType, kind: str) -> None:
        code = frame.f_code
        if code.co_filename in self._outside:
            return
        self.passed += 1
        if self.passed == self._at and self.where is None:
            self.where = f"{code.co_filename}:{frame.f_lineno} {code.co_qualname} ({kind})"
            self._action()


def count_points(work: Callable[[], object], *, loops: bool = True) -> int:
    """Return the number of points that a call of `work` passes."""
    visit = Visit(0, _do_nothing)
    visit.run(work, loops=loops)
    return visit.passed


def run_at(point: int, action: Callable[[], object], work: Callable[[], T], *, loops: bool = True) -> T:
    """Return ``work()``, with a call of `action` at the `point`, counted from 1, that it passes."""
    return Visit(point, action).run(work, loops=loops)


def points(work: Callable[[], object], limit: int | None = None, seed: int = 0, *, loops: bool = True) -> list[int]:
    """Return the numbers of all points of `work`, which is called twice; of more than `limit` a random choice."""
    work()  # what is made once, by the first call, is not counted
    every = range(1, count_points(work, loops=loops) + 1)
    if limit is None or len(every) <= limit:
        return list(every)
    return sorted(random.Random(seed).sample(every, limit))


def raise_interrupt() -> None:
    """Raise `Interrupt`: an action for `run_at`."""
    raise Interrupt


def _do_nothing() -> None:
    pass


@cache
def _jumps_back(code: CodeType) -> frozenset[int]:
    """The places of the instructions with which a loop goes back to its start."""
    return frozenset(
        instruction.offset
        for instruction in dis.get_instructions(code)
        if "JUMP_BACKWARD" in instruction.opname and "NO_INTERRUPT" not in instruction.opname
    )
