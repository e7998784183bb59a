"""Jobs of a `Child` whose main thread is interrupted: by signals at random moments, and at each point in turn."""

from __future__ import annotations

import gc
import os
import signal
import sys
import sysconfig
import tempfile
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import hutch

from .. import signal_points
from ..signal_points import Place, Visit, places, points
from .try_bodies import is_alone_in_try, line_of, visited_frame
from .verb_work import VERBS, Landing, Step, Work

_STANDARD_LIBRARY = sysconfig.get_path("stdlib") + os.sep
_CHECK_EVERY = 50
_AGAIN_S = 0.02
#: How many files and connections more than before an engine may have open for later calls.
_POOLED = 6
#: Below this number of signals, the share that lands inside hutch is not judged.
_ENOUGH_TO_JUDGE = 100


class Limit(Exception):
    """Like the soft time limit of a task queue."""


class OutOfTime(TimeoutError):
    """Like the timeout of an alarm."""


class NotFound(KeyError):
    """Like a lookup error of an application."""


class Broken(OSError):
    """Like an I/O error of an application."""


class Stop(BaseException):
    """Like an application's request to end."""


#: Neither a verb nor a driver catches these: they always come out unmodified. So does MemoryError.
STRICT: tuple[type[BaseException], ...] = (Limit, KeyboardInterrupt, Stop, MemoryError)
#: Verbs and drivers catch these: they come out unmodified unless they arrive in the call that may raise their class.
CAUGHT: tuple[type[BaseException], ...] = (NotFound, OutOfTime, Broken)
#: What is raised at one point after the other: of two neighbours, one is an Exception and one is not.
_AT_POINTS: tuple[type[BaseException], ...] = (
    *(Limit, KeyboardInterrupt, Broken, Stop, MemoryError, KeyboardInterrupt, NotFound, Stop, OutOfTime),
    KeyboardInterrupt,
)
_BROAD = "an `except` stands around more than the one call that may raise what it catches"


def set_timer(handler: Callable[[int, FrameType | None], None], delay_s: float) -> None:
    """Call `handler` after `delay_s` seconds, again and again until it stops the timer."""
    signal.signal(signal.SIGALRM, handler)
    # Repeated, because CPython 3.11 overlooks a signal that arrives as another thread releases the interpreter's lock.
    signal.setitimer(signal.ITIMER_REAL, max(delay_s, 1e-6), _AGAIN_S)


class Shots:
    """One signal, or two in quick succession, and the errors that their handler raises."""

    def __init__(self, errors: list[BaseException], landing: Landing) -> None:
        self._errors = errors
        self._landing = landing
        self.fired = 0
        self.landed = self.was_own = self.was_in_finalizer = self.was_in_tempfile = False
        self._file, self._line = "", 0
        self.where = ""

    def arm(self, delay_s: float) -> None:
        """Send the first signal after `delay_s` seconds."""
        set_timer(self._handle, delay_s)

    def all_fired(self) -> bool:
        """Return whether every signal has been delivered."""
        return self.fired == len(self._errors)

    def is_alone_in_try(self) -> bool:
        """Return whether the first signal arrived in a `try` with one statement before its `except`."""
        return is_alone_in_try(self._file, self._line)

    def wait_until_all_fired(self) -> None:
        """Return once every signal has been delivered."""
        while not self.all_fired():
            time.sleep(0)

    def _handle(self, _: int, frame: FrameType | None) -> None:
        if self.all_fired():  # the timer fired once more before it was switched off
            return
        error = self._errors[self.fired]
        if not self.fired and frame is not None:
            self.landed, self.was_own = self._landing.is_inside(frame), self._landing.is_own(frame)
            self.was_in_finalizer = is_in_finalizer(frame)
            self.was_in_tempfile = is_in_tempfile(frame)
            self._file, self._line = frame.f_code.co_filename, line_of(frame)
            self.where = f"{frame.f_code.co_filename}:{frame.f_lineno} {frame.f_code.co_qualname}"
        self.fired += 1
        signal.setitimer(signal.ITIMER_REAL, *((0.0,) if self.all_fired() else (2e-5, _AGAIN_S)))
        raise error


def interrupt_at_random(_: hutch.Store, config: Any, verb: str, count: int, seed: int) -> dict[str, int]:
    """Interrupt `verb` by `count` signals; return the counts.

    Raises AssertionError for an exception that was swallowed or changed, a lock that stays taken, a lost acknowledged
    write, and if fewer than 30% of the signals landed inside hutch.
    """
    figures: Counter[str] = Counter()
    with _measured_leaks(config, figures), _dropped_by_python() as dropped, Work(config, seed) as work:
        plan = VERBS[verb]
        duration_s = work.measure(plan)
        retained = _retained()
        while (number := figures["delivered"]) < count:
            if number % _CHECK_EVERY == 0:
                work.check_everything()
                work.busy(number // _CHECK_EVERY % 2 == 1)
            caught = _interrupt_once(number, plan, work.rng.uniform(0, 2 * duration_s), work, figures, dropped)
            if caught is not None and verb != "open":
                retained.append(caught)
            del caught
            gc.collect(0)  # an unreferenced handle is closed with its last frame
            work.settle()
        signal.signal(signal.SIGALRM, signal.SIG_IGN)  # the handler refers to the last exceptions
        work.finish()
        retained.clear()
        figures["acknowledged and read back"] = work.read_back
    _judge_figures(figures)
    return dict(figures)


def _interrupt_once(
    number: int,
    plan: Callable[[Work], Step],
    delay_s: float,
    work: Work,
    figures: Counter[str],
    dropped: list[BaseException],
) -> BaseException | None:
    """Interrupt the verb by one or two signals; judge and return the exception that came out."""
    kinds = CAUGHT if number % 3 == 2 else STRICT
    kind = kinds[number // 3 % len(kinds)]
    errors = [kind(f"number {number}") for _ in range(2 if number % 5 == 4 else 1)]
    shots = Shots(errors, work.landing)
    caught = _shoot(work, plan, shots, delay_s)
    figures["delivered"] += 1
    figures["landed inside"] += shots.landed
    figures["inside tempfile"] += shots.was_in_tempfile
    _judge(caught, errors, shots, kind in STRICT, figures, dropped)
    return caught


def _shoot(work: Work, plan: Callable[[Work], Step], shots: Shots, delay_s: float) -> BaseException | None:
    """Repeat the verb until all signals have come; return the exception that came out."""
    try:
        try:
            shots.arm(delay_s)
            _run_until_fired(work, plan, shots)
        finally:
            shots.wait_until_all_fired()
    except BaseException as error:
        return error
    return None


def _run_until_fired(work: Work, plan: Callable[[Work], Step], shots: Shots) -> None:
    while not shots.fired:
        work.run(plan(work))


def _judge(
    caught: BaseException | None,
    expected: list[BaseException],
    shots: Shots,
    is_strict: bool,
    figures: Counter[str],
    dropped: list[BaseException],
) -> None:
    if any(caught is one for one in expected):  # of two, the second may replace the first
        figures["raised as they were"] += 1
    elif any(one is expected[-1] for one in dropped) or (caught is None and shots.was_in_finalizer):
        figures["dropped by Python in a finalizer"] += 1
    elif caught is None and is_of_standard_library(shots.where):
        figures["swallowed by the standard library"] += 1
    elif is_strict or isinstance(caught, AssertionError) or (shots.was_own and not shots.is_alone_in_try()):
        outcome = "was swallowed" if caught is None else "came out as\n" + "".join(traceback.format_exception(caught))
        broad = "" if is_strict or isinstance(caught, AssertionError) else f"{_BROAD}: "
        raise AssertionError(f"{broad}{expected}, raised by a signal handler at {shots.where}, {outcome}") from None
    elif shots.was_own:
        figures["taken for the verb's own"] += 1
    else:
        figures["taken for the driver's own"] += 1
    dropped.clear()


def is_of_standard_library(where: str) -> bool:
    """Return whether `where` is in the standard library, which swallows exceptions in a few places (copyreg.py)."""
    return where.startswith(_STANDARD_LIBRARY) and "-packages" not in where


def is_in_finalizer(frame: FrameType) -> bool:
    """Return whether `frame` was called by a finalizer, whose exceptions Python drops."""
    return any(caller.f_code.co_name == "__del__" for caller, _ in traceback.walk_stack(frame))


def is_in_tempfile(frame: FrameType) -> bool:
    """Return whether `frame` was called by tempfile, which for a moment has an open file that no object would close."""
    return any(caller.f_code.co_filename == tempfile.__file__ for caller, _ in traceback.walk_stack(frame))


def _judge_figures(figures: Counter[str]) -> None:
    share = figures["landed inside"] / figures["delivered"]
    assert share >= 0.3 or figures["delivered"] < _ENOUGH_TO_JUDGE, (
        f"only {share:.0%} of the signals landed inside hutch: {dict(figures)}"
    )
    assert figures["swallowed by the standard library"] <= max(3, 0.01 * figures["delivered"]), dict(figures)


def interrupt_at_each_point(_: hutch.Store, config: Any, verb: str, limit: int | None, seed: int) -> dict[str, int]:
    """Raise at each point of `verb` where a handler may run, or at `limit` of them; return the counts.

    The limited points include each place in the engine's own code.
    """
    figures: Counter[str] = Counter()
    with _measured_leaks(config, figures), _dropped_by_python() as dropped, Work(config, seed) as work:
        plan = VERBS[verb]
        retained: deque[BaseException] = deque()
        work.run(plan(work))
        opened = open_files()
        for point in _points_to_visit(work, plan, limit, figures):
            where = _interrupt_at(point, work, plan(work), dropped, retained if verb != "open" else None, figures)
            gc.collect(0)  # an unreferenced handle is closed with its last frame
            figures["points"] += where is not None
            try:
                work.settle()
            except BaseException as failure:
                failure.add_note(f"after an exception at {where}")
                raise
            dropped.clear()
        work.finish()
        _assert_none_keeps_files(retained, open_files() - opened - figures["inside tempfile"])
        retained.clear()
        figures["acknowledged and read back"] = work.read_back
    return dict(figures)


def _assert_none_keeps_files(retained: Collection[BaseException], opened: int) -> None:
    assert opened <= _POOLED, (
        f"{opened} more files or connections are open while {len(retained)} exceptions are kept: their tracebacks keep "
        "the variables of the engine's functions; close what a variable holds before the exception leaves"
    )


def _points_to_visit(
    work: Work, plan: Callable[[Work], Step], limit: int | None, figures: Mapping[str, int]
) -> Iterator[int | Place]:
    """Yield points of a verb; then earlier ones if none was reached, because later calls were shorter."""

    def run() -> None:
        work.run(plan(work))

    if limit is not None:
        yield from _engine_places(run, work.landing.engine, figures)
        limit = max(0, limit - figures["points"])
    yield from points(run, limit, work.rng.randrange(2**32))
    for shorter in range(1, 10):
        if figures["points"]:
            return
        every = points(run)
        yield from every[: 1 + (len(every) >> shorter)][-3:]


def _engine_places(run: Callable[[], object], engine: str, figures: Mapping[str, int]) -> Iterator[Place]:
    """Yield each place in the engine's own code, again if the call that should visit it takes another way."""
    run()
    for place in sorted(places(run, engine) | places(run, engine)):
        before = figures["points"]
        for _ in range(3):
            yield place
            if figures["points"] > before:
                break


def _interrupt_at(
    point: int | Place,
    work: Work,
    step: Step,
    dropped: list[BaseException],
    retained: deque[BaseException] | None,
    figures: Counter[str],
) -> str | None:
    """Raise at the `point` of `step`; return where that was, or None if the step ended before."""
    error = _AT_POINTS[figures["points"] % len(_AT_POINTS)](f"number {figures['points']}")
    may_be_lost = may_be_taken = False

    def action() -> None:
        nonlocal may_be_lost, may_be_taken
        frame = visited_frame(sys._getframe(), __file__, signal_points.__file__)
        name = frame.f_code.co_filename
        may_be_lost = is_in_finalizer(frame) or is_of_standard_library(name)
        may_be_taken = isinstance(error, CAUGHT) and (
            not work.landing.is_own(frame) or is_alone_in_try(name, line_of(frame))
        )
        figures["inside tempfile"] += is_in_tempfile(frame)
        raise error

    visit = Visit(point, action)
    caught: BaseException | None = None
    try:
        visit.run(lambda: work.run(step))
    except BaseException as raised:
        caught = raised
    is_lost = caught is None and (error in dropped or may_be_lost)
    if visit.where is not None and not (caught is error or is_lost or may_be_taken):
        outcome = "was swallowed" if caught is None else f"came out as {caught!r}"
        broad = f"{_BROAD}: " if isinstance(error, CAUGHT) else ""
        raise AssertionError(f"{broad}{error!r}, raised at {visit.where}, {outcome}") from caught
    if caught is not None and retained is not None:
        retained.append(caught)
    del caught
    return visit.where


def _retained() -> deque[BaseException]:
    """Return a list for the last exceptions, whose tracebacks keep frames alive, as a notebook or a log does."""
    return deque(maxlen=20)


@contextmanager
def _dropped_by_python() -> Iterator[list[BaseException]]:
    """Collect the exceptions of finalizers, which Python drops."""
    dropped: list[BaseException] = []
    before = sys.unraisablehook
    sys.unraisablehook = lambda message: dropped.append(message.exc_value) if message.exc_value else None
    try:
        yield dropped
    finally:
        sys.unraisablehook = before


@contextmanager
def _measured_leaks(config: Any, figures: Counter[str]) -> Iterator[None]:
    """Raise AssertionError if the block leaves more files open than tempfile may, by `figures`."""
    with hutch.connect(config) as store, store.open("core") as ns:
        ns["first"] = 1  # what hutch opens once per process is not a leak
        del ns["first"]
    before = open_files()
    yield
    deadline = time.monotonic() + 5
    while (left := open_files() - before - figures["inside tempfile"]) > 0:
        gc.collect()
        assert time.monotonic() < deadline, f"{left} files or connections were left open"
        time.sleep(0.01)


def open_files() -> int:
    """Return how many files and connections this process has open; 0 if the system does not report it."""
    for folder in ("/proc/self/fd", "/dev/fd"):
        with suppress(OSError):
            return sum(1 for _ in Path(folder).iterdir())
    return 0
