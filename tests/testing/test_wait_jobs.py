"""Test the jobs of the conformance kit that wait for a signal."""

from __future__ import annotations

import signal

import pytest

from hutch.testing.conformance.wait_jobs import _until_alarm
from hutch.testing.signal_points import Visit, points


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no interval timers")
def test_a_signal_at_the_very_end_of_a_call_leaves_no_exception(unmeasured: None) -> None:
    """However late the signal comes, its exception ends in the job and not in what follows it."""
    before = signal.signal(signal.SIGALRM, signal.SIG_IGN)
    try:
        ends = []
        for point in points(lambda: _until_alarm(bool)):
            signal.signal(signal.SIGALRM, signal.SIG_IGN)
            visit = Visit(point, lambda: signal.raise_signal(signal.SIGALRM))
            ends.append(visit.run(lambda: _until_alarm(bool)))
        assert any(end is not None for end in ends)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
