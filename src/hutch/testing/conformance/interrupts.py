"""Signal handlers that raise, in the middle of any verb: Ctrl-C, a time limit, an alarm."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable
from typing import Any

import pytest

import hutch

from .child import Child
from .kit import PATIENCE_S, Promises
from .verb_work import VERBS

#: How many signals interrupt each verb, and how many of its points are visited: fewer if `SIGNALS` is below
#: `USUAL_SIGNALS`, all from `ALL_POINTS_FROM` on.
USUAL_SIGNALS = 200
SIGNALS = int(os.environ.get("HUTCH_INTERRUPTS", USUAL_SIGNALS))
SEED = int(os.environ.get("HUTCH_SEED", random.randrange(2**32)))
ALL_POINTS_FROM = 1000
_POINTS = 40

needs_timers = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no interval timers")


class Interrupts(Promises):
    @needs_timers
    def test_what_a_signal_handler_raises_comes_out_as_it_is(
        self, config: Any, store: hutch.Store, record_property: Callable[[str, object], None]
    ) -> None:
        """An exception of a signal handler leaves each verb once, unmodified; no lock stays held, no write is lost."""
        print(f"HUTCH_SEED={SEED} HUTCH_INTERRUPTS={SIGNALS}")
        with Child(config, measured=False) as child:
            for verb in VERBS:
                child.start("interrupt_at_random", config, verb, SIGNALS, SEED)
                figures = child.result(PATIENCE_S + SIGNALS / 10)
                record_property("counted", table_row(store.name, verb, figures))

    def test_an_exception_at_any_point_of_a_verb_breaks_nothing(self, config: Any) -> None:
        """A handler may raise at any point of a verb: the old or new state is stored, and no lock stays taken.

        Nor does a file or connection stay open for an exception that the application keeps.
        """
        limit = point_limit(_POINTS)
        print(f"HUTCH_SEED={SEED}, {limit or 'all'} points per verb")
        with Child(config, measured=False) as child:
            for verb in VERBS:
                assert child.call("interrupt_at_each_point", config, verb, limit, SEED)["points"] > 0


def point_limit(limit: int) -> int | None:
    """Return how many points of a verb to visit: `limit`, or fewer if `SIGNALS` is low; None for all."""
    if SIGNALS >= ALL_POINTS_FROM:
        return None
    return max(3, min(limit, limit * SIGNALS // USUAL_SIGNALS))


def table_row(engine: str, verb: str, figures: dict[str, int]) -> str:
    """Return the counts as a row of the Markdown table in CONTRIBUTING.md."""
    counted = [
        figures.get(name, 0)
        for name in ("delivered", "landed inside", "raised as they were", "acknowledged and read back")
    ]
    others = sum(count for name, count in figures.items() if name.startswith(("taken", "dropped", "swallowed")))
    return f"| {engine} | {verb} | {' | '.join(f'{count:,}' for count in [*counted, others])} |"
