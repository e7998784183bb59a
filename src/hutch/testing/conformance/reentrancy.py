"""Signal handlers and finalizers that use hutch in the middle of a verb of the same thread."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import hutch

from .child import Child
from .interrupts import SEED, SIGNALS, needs_timers, point_limit
from .kit import PATIENCE_S, Promises
from .verb_work import VERBS

_POINTS = 10


def may_refuse(store: hutch.Store) -> bool:
    """Return whether the engine declares that it refuses a write in the middle of another write of its thread."""
    return bool(getattr(store.factory, "refuses_nested_writes", False))


class Reentrancy(Promises):
    def test_a_handler_may_write_at_any_point_of_a_verb(self, config: Any, store: hutch.Store) -> None:
        """A signal handler may set, modify, update and open in the middle of any verb: no wait, and both are stored."""
        limit = point_limit(_POINTS)
        print(f"HUTCH_SEED={SEED}, {limit or 'all'} points per verb and nested verb")
        with Child(config, measured=False) as child:
            for verb in VERBS:
                child.start("nest_at_each_point", config, verb, limit, SEED, may_refuse(store))
                figures = child.result(PATIENCE_S + SIGNALS / 10)
                print(verb, figures)
                assert figures.get("worked", 0) > 0

    @needs_timers
    def test_a_handler_may_write_while_other_threads_do(
        self, config: Any, store: hutch.Store, record_property: Callable[[str, object], None]
    ) -> None:
        """A signal handler may write while verbs run and another thread writes: no wait, and every write is stored."""
        figures = _run_at_random("nest_at_random", config, store)
        record_property("counted", f"{store.name}, handlers that write: {figures}")

    def test_a_finalizer_may_write_open_and_close(
        self, config: Any, store: hutch.Store, record_property: Callable[[str, object], None]
    ) -> None:
        """A finalizer, which the collector may run anywhere, may write, open and close: nothing hangs or is lost."""
        figures = _run_at_random("finalize_at_random", config, store)
        record_property("counted", f"{store.name}, finalizers: {figures}")


def _run_at_random(job: str, config: Any, store: hutch.Store) -> dict[str, Any]:
    print(f"HUTCH_SEED={SEED} HUTCH_INTERRUPTS={SIGNALS}")
    with Child(config, measured=False) as child:
        child.start(job, config, SIGNALS, SEED, may_refuse(store))
        figures: dict[str, Any] = child.result(PATIENCE_S + SIGNALS / 10)
    return figures
