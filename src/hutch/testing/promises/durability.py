"""Kill and reopen, where `durable`: what was acknowledged is there, what was not is whole or absent."""

from __future__ import annotations

import random
import time
from collections import Counter
from typing import Any

import hutch

from .child import Child
from .kit import Promises, needs

ROUNDS = 20
BATCH = 12


class Durability(Promises):
    def test_a_killed_writer_loses_nothing_it_was_promised(self, config: Any, store: hutch.Store) -> None:
        """Where durable: a writer killed 20 times at random loses no write that returned, and tears no batch."""
        needs(store, "durable")
        atomic_batch = "atomic-batch" in store.capabilities
        store.close()
        seed = random.randrange(2**32)
        print(f"random moments from seed {seed}")  # noqa: T201 - pytest shows it if this fails
        moments = random.Random(seed)
        first = counted = unsure = 0
        removed: set[int] = set()
        kept: set[int] = set()
        batches: set[int] = set()
        with hutch.connect(config) as store:
            for _ in range(ROUNDS):
                told = write_and_kill(config, first, moments.uniform(0.0, 0.06))
                for what, number in told:
                    if what == "set":
                        kept.add(number)
                    elif what == "batch":
                        batches.add(number)
                    elif what == "removed":
                        removed.add(number)
                        kept.discard(number)
                    else:
                        assert what == "counted", f"the writer failed: {number}"
                        counted += 1
                last = max((number for what, number in told if what == "set"), default=first - 1)
                # What the writer may have been killed in stays open, also for the rounds to come: a commit that
                # was not acknowledged may be seen only when the next writer has cleared up.
                if last % 5 == 4:
                    kept.discard(last - 1)
                unsure += last % 7 == 6 and ("counted", last) not in told
                with store.open("core") as ns:
                    items = dict(ns.items())
                    assert len(ns) == len(items)
                check(items, kept, removed, batches, range(counted, counted + unsure + 1), last, atomic_batch)
                first = last + 10


def write_and_kill(config: Any, first: int, moment_s: float) -> list[tuple[str, int]]:
    """What a writer acknowledged before it was killed."""
    told: list[tuple[str, int]] = []
    with Child(config) as child:
        child.start("write_until_killed", "core", first)
        assert child.read() == ("ready", None)
        told.append(child.read())
        time.sleep(moment_s)
        child.kill_only()
        while True:
            try:
                told.append(child.read())
            except EOFError:
                return told


def check(
    items: dict[str, Any],
    kept: set[int],
    removed: set[int],
    batches: set[int],
    counted: range,
    last: int,
    atomic_batch: bool,
) -> None:
    """Hold `items` against what was acknowledged; `counted` is what the counter may be."""
    lost = [number for number in kept if f"key {number}" not in items]
    assert not lost, f"acknowledged and lost: {lost}"
    assert all(items[f"key {number}"] == number for number in kept)
    back = [number for number in removed if f"key {number}" in items]
    assert not back, f"removed, acknowledged, and back: {back}"
    assert items.get("newest", -1) in (last, last + 1)
    sizes = Counter(int(key.split()[1]) for key in items if key.startswith("batch "))
    assert all(sizes[number] == BATCH for number in batches), f"acknowledged batches with keys lost: {sizes}"
    if atomic_batch:
        torn = {number: size for number, size in sizes.items() if size != BATCH}
        assert not torn, f"batches of {BATCH} keys of which only some are there: {torn}"
    assert all(value == int(key.split()[1]) for key, value in items.items() if key.startswith("batch "))
    assert items.get("counter", 0) in counted, f"{counted} increments, the counter is {items.get('counter', 0)}"
