"""Test that a signal handler's exception is distinguished from the interrupted call's own."""

from __future__ import annotations

import functools
import pickle
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from hutch.handlers import raised_by_handler
from hutch.testing.signal_points import points, raise_interrupt, run_at

pytestmark = [
    pytest.mark.usefixtures("unmeasured"),
    pytest.mark.skipif(sys.platform == "win32", reason="Windows has no timer that sends a signal"),
]


class Limit(Exception):
    """What a time limit raises."""


def plain(_number: int, _frame: FrameType | None) -> None:
    raise Limit


def variadic(*_: object) -> None:
    raise Limit


def keyword(_number: int, _frame: FrameType | None = None, *, kind: type[Exception] = Limit) -> None:
    raise kind


def deep(_number: int, _frame: FrameType | None) -> None:
    Path("/no such folder/at all").read_bytes()


class Handler:
    def method(self, _number: int, _frame: FrameType | None) -> None:
        raise Limit

    def __call__(self, *_: object) -> None:
        raise Limit


def spin(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


HANDLERS: list[Callable[..., object]] = [
    plain,
    variadic,
    functools.partial(keyword, kind=TimeoutError),
    deep,
    Handler().method,
    Handler(),
    lambda *_: deep(*_),  # noqa: PLW0108 - a frame more
]
WAYS: dict[str, Callable[[], object]] = {
    "in Python": lambda: spin(60),
    "in a call that blocks": lambda: time.sleep(60),
    "in a call of C into Python": lambda: list(map(spin, [60])),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("handler", HANDLERS)
def test_what_a_handler_raises_is_recognised(handler: Callable[..., Any], way: Callable[[], object]) -> None:
    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.01)
    try:
        with pytest.raises((Limit, TimeoutError, FileNotFoundError)) as raised:
            way()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert raised_by_handler(raised.value)


def test_what_an_interrupted_call_raises_itself_is_not(tmp_path: Path) -> None:
    calls: list[tuple[type[Exception], Callable[[], object]]] = [
        (OSError, (tmp_path / "nothing").read_bytes),
        (pickle.UnpicklingError, lambda: pickle.loads(b"no pickle")),
        (ZeroDivisionError, lambda: list(map(lambda n: 1 // n, [0]))),  # noqa: C417 - a call of C into Python
    ]
    for kind, call in calls:
        with pytest.raises(kind) as raised:
            call()
        assert not raised_by_handler(raised.value)
    assert not raised_by_handler(ValueError())


def test_the_interrupts_of_the_tests_are_recognised() -> None:
    def work() -> object:
        return pickle.loads(pickle.dumps(Path("x")))

    recognised = []
    for point in points(work, 30):
        with pytest.raises(Exception) as raised:
            run_at(point, raise_interrupt, work)
        recognised.append(raised_by_handler(raised.value))
    assert recognised
    assert all(recognised)
