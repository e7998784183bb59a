"""Durability: after a kill, acknowledged writes are stored, and unacknowledged ones are stored whole or not at all."""

from __future__ import annotations

import random
from typing import Any

import hutch

from ..crash.kills import KillPlan
from .child import Child
from .kit import PATIENCE_S, Promises, needs

KILLS = 20


class Durability(Promises):
    def test_a_killed_writer_loses_nothing_it_was_promised(self, config: Any, store: hutch.Store) -> None:
        """Where durable: a writer killed 20 times at random loses no write that returned, and tears none."""
        needs(store, "durable")
        store.close()
        kill_at_random(config, KillPlan(random.randrange(2**32), KILLS))

    def test_writers_go_on_when_others_are_killed(self, config: Any, store: hutch.Store) -> None:
        """If durable and shared: when some of three writers and a reader are killed, the others continue."""
        needs(store, "durable", "shared")
        store.close()
        kill_at_random(config, KillPlan(random.randrange(2**32), KILLS, writers=3, threads=2, readers=1))


def kill_at_random(config: Any, plan: KillPlan) -> dict[str, int]:
    """Kill processes as `plan` says and verify that nothing was lost; return the counts."""
    print(f"{plan}\n{config}")  # pytest shows it after a failure
    with Child(config, measured=False) as child:
        child.start("kill_at_random", config, plan)
        counted: dict[str, int] = child.result(3 * PATIENCE_S + plan.seconds)
    assert counted["kills"] >= plan.kills
    assert counted["acknowledged"] > plan.kills, "hardly anything was written before the kills"
    return counted
