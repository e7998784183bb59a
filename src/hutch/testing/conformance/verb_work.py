"""Verbs that signals interrupt, and what may be stored afterwards: the old state or the new.

Runs in the main thread of a `Child`. After each interruption a second thread reads and writes the same keys.
"""

from __future__ import annotations

import os
import random
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from types import FrameType
from typing import Any, Self

import hutch

from .other_threads import BUSY, BusyThread, OtherThread

KEYS = [f"k{number}" for number in range(6)]
# The key that increments add to.
_COUNTER = "counter"
_LONG_ENOUGH_S = 2e-4
_HUTCH = str(Path(hutch.__file__).parent) + os.sep
_TESTING = str(Path(__file__).parents[1]) + os.sep


def value(number: int) -> list[Any]:
    """Return a value whose types a codec decodes by Python code of hutch."""
    return [number, {number}, date(2024, 2, 29), "text" * 20]


class Landing:
    """Find out whether a handler interrupted code of hutch or of the engine, or code that they called."""

    def __init__(self, store: hutch.Store) -> None:
        self.engine = str(Path(sys.modules[type(store.factory).__module__].__file__ or "").parent) + os.sep
        self._own = (_HUTCH, self.engine)

    def is_own(self, frame: FrameType) -> bool:
        """Return whether `frame` runs code of hutch or of the engine."""
        name = frame.f_code.co_filename
        return name.startswith(self._own) and not name.startswith(_TESTING)

    def is_inside(self, frame: FrameType) -> bool:
        """Return whether `frame` or one of its callers runs code of hutch or of the engine."""
        return any(self.is_own(caller) for caller, _ in traceback.walk_stack(frame))


@dataclass
class Step:
    """One call of a verb, and what it stores."""

    call: Callable[[], object] = field(repr=False)
    #: The new value of each key that the call changes; `hutch.MISSING` for a removed key.
    changes: dict[str, Any] = field(default_factory=dict)
    #: Whether the new value depends on the old one, so that a write in between must not be lost.
    reads_first: bool = False


class Work:
    """A store, its acknowledged contents, and the running step."""

    def __init__(self, config: Any, seed: int) -> None:
        self.rng = random.Random(seed)
        self._config = config
        self.store = hutch.connect(config)
        self.landing = Landing(self.store)
        self.ns = self.store.open("core")
        self.is_atomic = "atomic-batch" in self.ns.capabilities
        self.known: dict[str, Any] = {key: value(number) for number, key in enumerate(KEYS)}
        self.known[_COUNTER] = 0
        self.ns.clear()
        self.ns.update(self.known)
        self.number = len(KEYS)
        #: Handles that a step has opened and not yet closed.
        self.opened: list[hutch.Namespace] = []
        self.read_back = 0
        #: How often a step repeats its verb, which otherwise could end before a signal can arrive.
        self.repeats = 1
        self.pending: Step | None = None
        self.is_done = True
        self._other, self._busy = OtherThread(), BusyThread(self.ns)
        #: Start or stop a second thread that writes without pause.
        self.busy = self._busy.go_on

    # --- steps ---

    def next_number(self) -> int:
        """Return a number that no value has used."""
        self.number += 1
        return self.number

    def any_key(self) -> str:
        """Return one of `KEYS` that is stored."""
        return self.rng.choice([key for key in KEYS if key in self.known])

    def run(self, step: Step) -> None:
        """Call `step` and record that it was acknowledged."""
        self.pending, self.is_done = step, False
        step.call()
        self.is_done = True
        self.know(step.changes)

    def know(self, changes: dict[str, Any]) -> None:
        """Record that `changes` are stored."""
        for key, new in changes.items():
            if new is hutch.MISSING:
                self.known.pop(key, None)
            else:
                self.known[key] = new

    def measure(self, plan: Callable[[Work], Step]) -> float:
        """Set `repeats` so that a step of `plan` is not too short; return its duration in seconds."""
        self.repeats = 1
        self.run(plan(self))
        durations_s = []
        for _ in range(6):
            step = plan(self)
            start = time.perf_counter()
            self.run(step)
            durations_s.append(time.perf_counter() - start)
        longest_s = max(sorted(durations_s)[:-1])  # without the longest, which may have waited for something else
        self.repeats = max(1, min(50, int(_LONG_ENOUGH_S / longest_s)))
        return longest_s * self.repeats

    # --- afterwards ---

    def settle(self) -> None:
        """Compare the stored data with the interrupted step, and write the same keys in another thread."""
        self._other.do(self._settle, "a read or a write of another thread")

    def check_everything(self) -> None:
        """Verify that exactly the acknowledged items are stored."""
        self._other.do(self._check_everything, "reading all items in another thread")

    def _settle(self) -> None:
        step, self.pending = self.pending or Step(lambda: None), None
        stored = {key: self.ns.get(key, hutch.MISSING) for key in step.changes}
        old = {key: self.known.get(key, hutch.MISSING) for key in step.changes}
        self.read_back += len(stored)
        if self.is_done:
            assert stored == step.changes, f"acknowledged and lost: {stored} is stored, not {step.changes}"
        elif self.is_atomic:
            assert stored in (old, step.changes), f"{stored} is stored: neither {old} nor {step.changes}"
        else:
            torn = {key: now for key, now in stored.items() if now not in (old[key], step.changes[key])}
            assert not torn, f"{torn} is stored: neither of {old} nor of {step.changes}"
        self.know(stored)
        self.is_done = True
        for handle in self.opened:
            handle.close()
        self.opened.clear()
        self._write(next((key for key in step.changes if key != _COUNTER), KEYS[0]))

    def _write(self, key: str) -> None:
        self.ns[key] = value(self.next_number())
        self.known[key] = self.ns.modify(key, lambda old: value(old[0]))
        assert self.known[key] == value(self.number), f"acknowledged and lost: {value(self.number)} of {key!r}"
        with self.store.open("other") as other:
            other["number"] = self.number
            assert other["number"] == self.number

    def _check_everything(self) -> None:
        least = self._busy.acknowledged
        stored = dict(self.ns.items())
        busy, most = stored.pop(BUSY, -1), self._busy.begun
        assert stored == self.known, f"{stored} is stored, and {self.known} was acknowledged"
        assert least <= busy <= most, f"{busy} is stored under {BUSY!r}, {least} was acknowledged"
        self.read_back += len(stored)

    # --- the end ---

    def finish(self) -> None:
        """Close the store, open it again, and verify that the acknowledged items are stored."""
        self.busy(False)
        self.check_everything()
        self._other.do(self._close, "closing the store in another thread")
        self.store = hutch.connect(self._config)
        self.ns = self.store.open("core")
        self.check_everything()
        self._close()

    def _close(self) -> None:
        self.ns.close()
        self.store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._busy.end()
        if kind is None:
            self._other.end()


# --- the verbs: each step repeats its last call, without further effect ---


def _plan_get(work: Work) -> Step:
    key = work.any_key()
    expected, ns = work.known[key], work.ns

    def call() -> None:
        for _ in range(work.repeats):
            got = ns[key]
        assert got == expected, f"{got} was read, not {expected}"

    return Step(call)


def _plan_set(work: Work) -> Step:
    key, new = work.rng.choice(KEYS), value(work.next_number())

    def call() -> None:
        for _ in range(work.repeats):
            work.ns[key] = new

    return Step(call, {key: new})


def _plan_removing(work: Work, remove: Callable[[str], Any]) -> Step:
    gone = next((key for key in KEYS if key not in work.known), None)
    if gone is not None:
        return _plan_setting(work, work.ns.set_many, {gone: value(work.next_number())})
    key = work.rng.choice(KEYS)

    def call() -> None:
        remove(key)
        for _ in range(work.repeats - 1):
            try:
                remove(key)
            except KeyError as error:
                if type(error) is not KeyError:
                    raise

    return Step(call, {key: hutch.MISSING})


def _plan_update(work: Work) -> Step:
    number = work.next_number()
    return _plan_setting(work, work.ns.update, {key: value(number) for key in work.rng.sample(KEYS, 4)})


def _plan_setting(work: Work, set_all: Callable[[dict[str, Any]], None], items: dict[str, Any]) -> Step:
    def call() -> None:
        for _ in range(work.repeats):
            set_all(items)

    return Step(call, dict(items))


def _plan_modify(work: Work) -> Step:
    key, ns = work.any_key(), work.ns
    new = value(work.known[key][0] + 1)

    def call() -> None:
        ns.modify(key, lambda old: value(old[0] + 1))
        for _ in range(work.repeats - 1):
            ns.modify(key, lambda old: old)

    return Step(call, {key: new}, reads_first=True)


def _plan_increment(work: Work) -> Step:
    ns, new = work.ns, work.known[_COUNTER] + 1

    def call() -> None:
        assert ns.increment(_COUNTER) == new
        for _ in range(work.repeats - 1):
            ns.increment(_COUNTER, 0)

    return Step(call, {_COUNTER: new}, reads_first=True)


def _plan_transact(work: Work) -> Step:
    if "atomic-store" not in work.store.capabilities:
        return _plan_update(work)
    key = work.any_key()
    new = value(work.known[key][0] + 1)

    def change(tx: hutch.Transaction) -> None:
        tx["log"]["last"] = tx["core"][key] = value(tx["core"][key][0] + 1)

    def call() -> None:
        work.store.transact(change)
        for _ in range(work.repeats - 1):
            work.store.transact(lambda tx: tx["core"].get(key))

    return Step(call, {key: new}, reads_first=True)


def _plan_mutable(work: Work) -> Step:
    key, ns = work.any_key(), work.ns
    new = value(work.known[key][0] + 1)

    def call() -> None:
        with ns.mutable(key) as held:
            held[0] += 1
            held[1] = {held[0]}
        for _ in range(work.repeats - 1):
            with ns.mutable(key):
                pass

    return Step(call, {key: new}, reads_first=True)


def _plan_reading(work: Work, read: Callable[[], Any]) -> Step:
    def call() -> None:
        for _ in range(work.repeats):
            items = list(read())
        stored = {key: new for key, new in items if key in KEYS}
        known = {key: work.known[key] for key in KEYS if key in work.known}
        assert stored == known, f"{stored} was read, not {known}"

    return Step(call)


def _plan_open(work: Work) -> Step:
    def call() -> None:
        for _ in range(work.repeats):
            work.opened.append(work.store.open("other"))
            work.opened[-1].close()
            work.opened.clear()

    return Step(call)


VERBS: dict[str, Callable[[Work], Step]] = {
    "get": _plan_get,
    "set": _plan_set,
    "remove": lambda work: _plan_removing(work, work.ns.__delitem__),
    "pop": lambda work: _plan_removing(work, work.ns.pop),
    "update": _plan_update,
    "modify": _plan_modify,
    "increment": _plan_increment,
    "mutable": _plan_mutable,
    "transact": _plan_transact,
    "items": lambda work: _plan_reading(work, work.ns.items),
    "scan": lambda work: _plan_reading(work, work.ns.scan),
    "open": _plan_open,
}
