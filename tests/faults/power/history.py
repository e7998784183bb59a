"""A worker's writes, step by step, and what is stored after each: the same for the same seed, in any process.

A step is one call and must be atomic. Each worker has its own namespaces; all share one counter.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Items = dict[tuple[str, str], Any]

COUNTER = ("shared", "counter")

_SPACES = 4
_KEYS = 12
# Sizes of values, in bytes: within a page, and beyond it.
_SIZES = (20, 20, 90, 90, 90, 600, 3_000, 9_000, 60_000)
# So much that SQLite's log is written back, and begun anew, while the store is open.
_LARGE_SIZES = (*_SIZES, 400_000, 400_000)
_VERBS = (
    *("set",) * 8,
    *("update",) * 5,
    *("transaction",) * 4,
    *("modify",) * 3,
    *("remove",) * 3,
    *("remove_many", "clear", "drop"),
)


@dataclass(frozen=True)
class Plan:
    """The writes to a store: all histories, and their settings."""

    target: str
    seed: int
    steps: int
    processes: int = 1
    #: Threads, in each process.
    threads: int = 1
    large: bool = False
    #: After so many steps a lone worker closes the store and opens it again; 0: never.
    reopen_every: int = 0
    #: Calls fail now and then.
    faults: bool = False

    def history(self, worker: int) -> list[Step]:
        """Return the steps of one worker; each process has `threads` workers."""
        choose = random.Random(f"{self.seed} {worker}")
        stored: Items = {}
        steps = []
        for number in range(self.steps):
            step = _step(choose, stored, worker, number, _LARGE_SIZES if self.large else _SIZES)
            stored = after(stored, step)
            steps.append(step)
        return steps


@dataclass(frozen=True)
class Step:
    verb: str
    space: str
    #: What is set, by key, for `set`, `update` and `transaction`, which sets it in a second namespace too.
    items: Mapping[str, Any] = field(default_factory=dict)
    #: What is removed.
    keys: tuple[str, ...] = ()

    @property
    def sets(self) -> Items:
        """What is set, by namespace and key."""
        spaces = (self.space, f"{self.space} again") if self.verb == "transaction" else (self.space,)
        return {(space, key): value for space in spaces for key, value in self.items.items()}


def states(steps: list[Step]) -> list[Items]:
    """Return what one worker has stored after 0, 1, 2... of its steps, without the counter."""
    states: list[Items] = [{}]
    for step in steps:
        states.append(after(states[-1], step))
    return states


def after(stored: Items, step: Step) -> Items:
    """Return `stored` after `step`."""
    space = step.space
    match step.verb:
        case "set" | "update" | "transaction":
            return stored | step.sets
        case "remove" | "remove_many":
            return {name: value for name, value in stored.items() if name[0] != space or name[1] not in step.keys}
        case "clear" | "drop":
            return {name: value for name, value in stored.items() if name[0] != space}
        case other:
            assert other == "modify"
            return stored


def _step(choose: random.Random, stored: Items, worker: int, number: int, sizes: Sequence[int]) -> Step:
    space = f"worker {worker} space {min(choose.randrange(_SPACES), choose.randrange(_SPACES))}"
    there = [key for name, key in stored if name == space]
    verb = choose.choice(_VERBS)
    if verb == "modify":
        return Step(verb, *COUNTER[:1])
    if verb in ("set", "update", "transaction") or not there:
        keys = choose.sample(range(_KEYS), choose.randint(2, 8) if verb in ("update", "transaction") else 1)
        return Step(
            verb if len(keys) > 1 else "set",
            space,
            {f"key {key}": [number, choose.randbytes(choose.choice(sizes))] for key in keys},
        )
    if verb in ("clear", "drop"):
        return Step(verb, space)
    removed = choose.sample(there, 1 if verb == "remove" else choose.randint(1, len(there)))
    return Step(verb, space, keys=tuple(removed))
