"""Time two operations alternately.

On a shared machine, a single time is noise, but the ratio of alternating times is not.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable

#: Runs the timed work and returns None, or the seconds if it measures itself.
Action = Callable[[], float | None]
#: Seconds of hutch and of the yardstick, one pair per round.
Rounds = list[tuple[float, float]]


def in_turn(ours: Action, theirs: Action, rounds: int) -> Rounds:
    """Return the times of both, run once per round after a warm-up; the order changes with each round."""
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
