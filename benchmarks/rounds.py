"""Timing two things side by side. A time alone is noise on a shared machine; the ratio of two taken in turn is not."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable

#: Does what is timed and returns None, or returns the seconds it took as it has measured them itself.
Action = Callable[[], float | None]
#: Seconds of ours and of the yardstick, one pair a round.
Rounds = list[tuple[float, float]]


def in_turn(ours: Action, theirs: Action, rounds: int) -> Rounds:
    """Both once a round, after one of each to warm up; who begins changes with the round."""
    ours()
    theirs()
    gc.collect()
    gc.disable()
    try:
        taken: Rounds = []
        for number in range(rounds):
            if number % 2:
                second = _seconds(theirs)
                taken.append((_seconds(ours), second))
            else:
                taken.append((_seconds(ours), _seconds(theirs)))
            gc.collect(0)
        return taken
    finally:
        gc.enable()


def _seconds(action: Action) -> float:
    began = time.perf_counter()
    measured = action()
    return time.perf_counter() - began if measured is None else measured
