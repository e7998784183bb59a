"""Run code at every point where CPython may run a signal handler, one point at a time and without a timer.

CPython 3.11 to 3.13 runs signal handlers in the main thread when a function begins, after a C function returns, and
when a loop jumps back. `run_at` simulates a signal at one of these points: it calls an action there, which may raise,
as Ctrl-C and a time limit do, or use hutch itself, as a handler that saves state does::

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
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")

# The id for `sys.monitoring` (Python 3.12 and later); by convention no debugger, profiler or coverage tool uses it.
_TOOL_ID = 4


class Interrupt(Exception):
    """The exception that tests raise in a handler; nothing else raises or catches this class."""


class Place(NamedTuple):
    """The place of a point in the code: a file, the first line of a function, an instruction, and the kind of point."""

    file: str
    first_line: int
    instruction: int
    kind: str


class Visit:
    """An observed call of `work`, in the thread that calls `run`."""

    def __init__(self, at: int | Place, action: Callable[[], object]) -> None:
        """Call `action` at point number `at`, counted from 1, or the first time that `at` is passed; never at 0."""
        self._at = at
        self._action = action
        #: The places that have been passed, each with the number of its first point; known if `at` is 0.
        self.places: dict[Place, int] = {}
        #: How many points have been passed.
        self.passed = 0
        #: Where `action` was called: file, line, function and kind of point.
        self.where: str | None = None
        self._outside: set[str] = set()
        #: Python 3.11: whether the trace function handles function starts, and the stack frame that has just begun.
        self._traces_starts = False
        self._started: FrameType | None = None

    def run(self, work: Callable[[], T], *, loops: bool = True) -> T:
        """Call ``work()`` and return its result. Code of this file and of the file that defines `work` has no points.

        `loops` also counts jumps of loops. In Python 3.11 that needs a trace function, which must not be used while
        coverage is measured in this process.
        """
        code: CodeType | None = getattr(work, "__code__", None)
        self._outside = {__file__, *([code.co_filename] if code else [])}
        try:
            with self._jumps_observed() if loops else nullcontext():
                sys.setprofile(self._profile)
                try:
                    return work()
                finally:
                    sys.setprofile(None)
        finally:
            # Each traced frame refers to this object, and Python 3.11's collector misses some of these frames: without
            # this, what `action` refers to, such as the exception that it raised, could stay for ever.
            self._action = bool

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
            # Monitoring reports all threads.
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

    def _profile(self, frame: FrameType, event: str, called: Any) -> None:
        del called  # the traceback of what `action` raises would keep the object of a called C method
        if event == "c_return" or (event == "call" and not self._traces_starts):
            self._point(frame, event)

    def _trace(self, frame: FrameType, event: str, _: Any) -> Any:
        if event == "call":
            if frame.f_code.co_filename in self._outside:
                return None
            frame.f_trace_opcodes, frame.f_trace_lines = True, False
            # Raised from this event, an exception would bypass an `except` around the start of the function; one from
            # a signal handler would not. So wait for the first opcode.
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
        if self._at == 0:
            self.places.setdefault(_place(frame, kind), self.passed)
        elif self.where is None and (
            self.passed == self._at or (self._at.__class__ is Place and _place(frame, kind) == self._at)
        ):
            self.where = f"{code.co_filename}:{frame.f_lineno} {code.co_qualname} ({kind})"
            self._action()


def count_points(work: Callable[[], object], *, loops: bool = True) -> int:
    """Call `work` and return the number of points that it passes."""
    visit = Visit(0, lambda: None)
    visit.run(work, loops=loops)
    return visit.passed


def run_at(point: int, action: Callable[[], object], work: Callable[[], T], *, loops: bool = True) -> T:
    """Call ``work()`` with a call of `action` at its `point`, counted from 1, and return the result of `work`."""
    return Visit(point, action).run(work, loops=loops)


def points(work: Callable[[], object], limit: int | None = None, seed: int = 0, *, loops: bool = True) -> list[int]:
    """Return the numbers of all points of `work`, or a random `limit` of them. `work` is called twice."""
    work()  # so that one-time initialization is not counted
    every = range(1, count_points(work, loops=loops) + 1)
    if limit is None or len(every) <= limit:
        return list(every)
    return sorted(random.Random(seed).sample(every, limit))


def places(work: Callable[[], object], folder: str) -> set[Place]:
    """Call `work` and return the places of all points that it passes in the files of `folder`."""
    visit = Visit(0, bool)
    visit.run(work)
    return {place for place in visit.places if place.file.startswith(folder)}


def raise_interrupt() -> None:
    """Raise `Interrupt`: an action for `run_at`."""
    raise Interrupt


def _place(frame: FrameType, kind: str) -> Place:
    code = frame.f_code
    return Place(code.co_filename, code.co_firstlineno, frame.f_lasti, kind)


@cache
def _jumps_back(code: CodeType) -> frozenset[int]:
    """Return the offsets of the instructions that jump back to the start of a loop."""
    return frozenset(
        instruction.offset
        for instruction in dis.get_instructions(code)
        if "JUMP_BACKWARD" in instruction.opname and "NO_INTERRUPT" not in instruction.opname
    )
