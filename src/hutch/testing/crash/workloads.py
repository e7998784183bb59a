"""The workload of a writer that will be killed: a plan from which the verifier derives what must be stored afterwards.

A `Workload` is the workload of one thread on keys of its own. Each step follows from the seed, its number and the
effects of the previous steps. So the number of acknowledged steps determines what must be stored, and what may be,
because one more step may have been running.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import hutch

#: The namespace of all workloads; each has keys that begin with its name.
CORE = "core"
#: The key of CORE that all workloads change: a dict with a counter per workload.
TALLY = "tally"
#: A namespace without a plan, where all workloads set, remove, clear and drop concurrently.
SCRATCH = "scratch"
#: A namespace and a key; for a counter of the tally, TALLY and the name of its workload.
Place = tuple[str, str]

# Each kind of step and its relative frequency.
VERBS = {
    "set": 20,
    "set large": 4,
    "update": 8,
    "update balances": 12,
    "transaction": 8,
    "remove": 7,
    "remove_many": 5,
    "modify": 8,
    "swap": 8,
    "refused swap": 2,
    "tally by modify": 7,
    "tally by swap": 3,
    "set own": 6,
    "update own": 4,
    "clear own": 3,
    "drop own": 2,
    "scratch": 8,
}
_KEYS = 24
_OWN_KEYS = 8
_BALANCES = 6


@dataclass(frozen=True)
class Step:
    """One call of a verb. `changes` are the values that it sets; MISSING means removed."""

    verb: str
    changes: Mapping[Place, Any]

    @property
    def keys(self) -> list[str]:
        return [key for _, key in self.changes]

    @property
    def items(self) -> dict[str, Any]:
        return {key: value for (_, key), value in self.changes.items()}


@dataclass
class Workload:
    """A workload after `number` steps, when `held` is what it has in the store."""

    seed: int
    index: int
    #: The size limit of large values.
    large_bytes: int
    #: Whether the engine declares `atomic-store`.
    has_transactions: bool = False
    number: int = 0
    held: dict[Place, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"workload {self.index}"

    @property
    def own(self) -> str:
        """The namespace that only this workload uses."""
        return f"of {self.name}"

    def plan(self) -> Step:
        """Return the next step."""
        rng = random.Random(f"{self.seed} {self.index} {self.number}")
        [verb] = rng.choices(list(VERBS), list(VERBS.values()))
        places = [(CORE, f"{self.name}:{n}") for n in range(_KEYS)]
        taken = [place for place in places if place in self.held]
        if verb in ("remove", "remove_many", "refused swap") and not taken:
            verb = "set"
        if verb == "transaction" and not self.has_transactions:
            verb = "update"
        own = [(self.own, f"{n}") for n in range(_OWN_KEYS)]
        tally = (TALLY, self.name)
        match verb:
            case "set" | "set large":
                changes = {rng.choice(places): self._value(rng, large=verb == "set large")}
            case "update":
                changes = {place: self._value(rng) for place in rng.sample(places, rng.randint(2, 12))}
            case "transaction":
                changes = {place: self._value(rng) for place in rng.sample(places, 3) + rng.sample(own, 2)}
                changes |= dict.fromkeys([place for place in taken[:1] if place not in changes], hutch.MISSING)
            case "update balances":
                amounts = [rng.randint(-99, 99) for _ in range(_BALANCES - 1)]
                amounts.append(-sum(amounts))
                balances = zip(balances_of(self.name), amounts, strict=True)
                changes = {(CORE, key): [self.number, amount] for key, amount in balances}
            case "remove":
                changes = {rng.choice(taken): hutch.MISSING}
            case "remove_many":
                changes = dict.fromkeys(rng.sample(taken, rng.randint(1, min(8, len(taken)))), hutch.MISSING)
            case "modify" | "swap":
                place = rng.choice(places)
                gone = place in self.held and rng.random() < 0.2
                changes = {place: hutch.MISSING if gone else self._value(rng)}
            case "tally by modify" | "tally by swap":
                changes = {tally: self.held.get(tally, 0) + 1}
            case "set own":
                changes = {rng.choice(own): self._value(rng)}
            case "update own":
                changes = {place: self._value(rng) for place in rng.sample(own, 4)}
            case "clear own" | "drop own":
                changes = dict.fromkeys([place for place in own if place in self.held], hutch.MISSING)
            case _:
                changes = {}
        return Step(verb, changes)

    def done(self, step: Step) -> None:
        """Record that `step` was acknowledged."""
        self.held = after(self.held, step)
        self.number += 1

    def standing(self, stored: Mapping[Place, Any], whole: bool) -> float:
        """Return how much of the next step is in `stored`: 0.0 for nothing, 1.0 for all, 0.5 for a part.

        Raises AssertionError for lost, stale or foreign data, and for a part of a step if steps must be `whole`.
        """
        step = self.plan()
        before, then = self.held, after(self.held, step)
        if stored == before:
            return 0.0
        if stored == then:
            return 1.0
        # Every place must have its value from before or after the running step.
        lost = [place for place in before.keys() & then.keys() if place not in stored]
        back = [place for place in stored if place not in before and place not in then]
        wrong = [
            place for place, value in stored.items() if place not in back and value not in _at(place, before, then)
        ]
        for what, places in (
            ("acknowledged and lost", lost),
            ("removed, acknowledged, and stored again", back),
            ("stale or garbled", wrong),
        ):
            assert not places, (
                f"{what}: {sorted(places)}, of {self.name} after {self.number} steps; the next step was {step.verb!r}"
            )
        torn = [place for place in step.changes if stored.get(place) != before.get(place)]
        assert not whole, (
            f"torn: {step.verb!r} of {self.name} after {self.number} steps changes {len(step.changes)} keys, but only "
            f"{len(torn)} have changed: {sorted(torn)}"
        )
        return 0.5

    def settle(self, stored: Mapping[Place, Any], standing: float) -> None:
        """Continue from `stored`, for which `standing` was returned."""
        if standing:
            self.held = dict(stored)
            self.number += 1

    def _value(self, rng: random.Random, large: bool = False) -> Any:
        """Return a new value that names its workload and differs every time."""
        tag = f"{self.name} {self.number} {rng.randrange(1 << 30)}"
        size = rng.randrange(self.large_bytes) if large else int(10 ** rng.uniform(0, 3))
        return {"of": self.name, "step": self.number, "body": (tag * (size // len(tag) + 1)).encode()}


def balances_of(name: str) -> list[str]:
    """Return the keys of a workload's balances, always set as one batch: ``[number, amount]``, one number, sum 0."""
    return [f"{name}:balance {n}" for n in range(_BALANCES)]


def after(held: Mapping[Place, Any], step: Step) -> dict[Place, Any]:
    """Return the items that are stored after `step`."""
    everything = {**held, **step.changes}
    return {place: value for place, value in everything.items() if value is not hutch.MISSING}


def items_of(workload: Workload, core: Mapping[str, Any], own: Mapping[str, Any]) -> dict[Place, Any]:
    """Return the items of `core` (items of CORE) that belong to `workload`, and all of its own namespace."""
    stored = {(CORE, key): value for key, value in core.items() if key.startswith(f"{workload.name}:")}
    stored |= {(workload.own, key): value for key, value in own.items()}
    if workload.name in core.get(TALLY, {}):
        stored[TALLY, workload.name] = core[TALLY][workload.name]
    return stored


def _at(place: Place, *states: Mapping[Place, Any]) -> Iterator[Any]:
    return (state[place] for state in states if place in state)


class StoreConnection:
    """The connection of a workload to a store: it runs steps and compares what it reads with the plan."""

    def __init__(self, workload: Workload, store: hutch.Store, shared: dict[str, hutch.Namespace], config: Any) -> None:
        self._workload = workload
        self._store = store
        self._core, self._scratch = shared[CORE], shared[SCRATCH]
        self._own = store.open(workload.own)
        #: A second store, if the engine is shared, which drops a namespace under open handles.
        self._elsewhere = hutch.connect(config) if "shared" in store.capabilities else None

    def do(self, step: Step) -> None:
        """Run `step` and read back one key that it changed. Raises AssertionError for a wrong value."""
        core, own, held = self._core, self._own, self._workload.held
        match step.verb:
            case "set" | "set large":
                [(key, value)] = step.items.items()
                core[key] = value
            case "update" | "update balances":
                core.update(step.items)
            case "transaction":
                self._store.transact(lambda tx: self._apply(step, tx))
            case "remove":
                del core[step.keys[0]]
            case "remove_many":
                removed = core.remove_many(step.keys)
                assert removed == len(step.keys), f"only {removed} of {len(step.keys)} keys were removed"
            case "modify":
                self._modify(step)
            case "swap":
                [(place, value)] = step.changes.items()
                swapped = core.compare_and_set(place[1], held.get(place, hutch.MISSING), value)
                assert swapped, "stale: the value that this workload wrote was not the expected one"
            case "refused swap":
                key = next(key for namespace, key in held if namespace == CORE)
                assert not core.compare_and_set(key, "never its value", None), "swapped an unexpected value"
            case "tally by modify":
                core.modify(TALLY, self._counted, default={})
            case "tally by swap":
                while not core.compare_and_set(TALLY, old := core.get(TALLY, hutch.MISSING), self._counted(old)):
                    pass
            case "set own":
                [(key, value)] = step.items.items()
                own[key] = value
            case "update own":
                own.update(step.items)
            case "clear own":
                own.clear()
            case "drop own":
                own.close()
                self._store.drop(self._workload.own)
                self._own = self._store.open(self._workload.own)
            case _:
                self._scribble()
        self._read_back(step)

    def _modify(self, step: Step) -> None:
        [(place, value)] = step.changes.items()
        before = self._workload.held.get(place)

        def fn(stored: Any) -> Any:
            assert stored == before, f"stale or garbled: modify of {place} was given {str(stored)[:60]!r}"
            return value

        assert self._core.modify(place[1], fn, default=None) == value

    def _apply(self, step: Step, tx: hutch.Transaction) -> None:
        for (namespace, key), value in step.changes.items():
            before = self._workload.held.get((namespace, key), hutch.MISSING)
            assert tx[namespace].get(key, hutch.MISSING) == before, f"stale or garbled: {key!r} in a transaction"
            if value is hutch.MISSING:
                del tx[namespace][key]
            else:
                tx[namespace][key] = value

    def _counted(self, tally: Any) -> dict[str, int]:
        tally = {} if tally is hutch.MISSING else tally
        name = self._workload.name
        assert tally.get(name, 0) == self._workload.held.get((TALLY, name), 0), f"lost: a count of {name}, now {tally}"
        return {**tally, name: tally.get(name, 0) + 1}

    def _scribble(self) -> None:
        rng = random.Random(f"{self._workload.seed} {self._workload.index} {self._workload.number} scratch")
        key = f"{rng.randrange(12)}"
        match rng.randrange(8):
            case 0:
                self._scratch.clear()
            case 1 if self._elsewhere is not None:
                self._elsewhere.drop(SCRATCH)
            case 1 | 2:
                self._scratch.remove_many([key, "0", "1", "2"])
            case 3:
                self._scratch.update({f"{n}": f"{n} again" for n in range(6)})
            case _:
                self._scratch[key] = f"{key} by {self._workload.name}"

    def _read_back(self, step: Step) -> None:
        for (namespace, key), value in step.changes.items():
            if namespace in (CORE, self._workload.own):
                stored = (self._core if namespace == CORE else self._own).get(key, hutch.MISSING)
                assert stored == value, f"stale or garbled: {key!r} after {step.verb!r} reads {str(stored)[:60]!r}"
                return
