"""A clock for tests of deadlines, which stands still until the test moves it."""

from __future__ import annotations

import pytest

from hutch import deadlines


class Clock:
    """The clock of this process, moved by hand."""

    def __init__(self, ms: int) -> None:
        self.ms = ms

    def move(self, seconds: float) -> None:
        self.ms += round(seconds * 1000)


def stop_clock(monkeypatch: pytest.MonkeyPatch, ms: int) -> Clock:
    """Return the clock that the deadlines of this process go by from now on; it stands at `ms`."""
    clock = Clock(ms)
    monkeypatch.setattr(deadlines, "now_ms", lambda: clock.ms)
    return clock
