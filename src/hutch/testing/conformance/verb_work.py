"""Verbs that signals interrupt, and what may be stored afterwards: the old state or the new.

Runs in the main thread of a `Child`. A second thread does what another thread of an application would do afterwards.

Over 400 lines: one short function per verb, in one table.
"""

from __future__ import annotations

import os
import queue
import random
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from types import FrameType
from typing import Any, Self, TypeVar

import hutch

T = TypeVar("T")

#: What another thread may need for one write on a slow machine. After that a lock was left taken.
OTHERS_PATIENCE_S = 20.0
KEYS = [f"k{number}" for number in range(6)]
#: The key that a thread writes meanwhile, so that the interrupted verb has to wait now and then.
BUSY = "busy"
_LONG_ENOUGH_S = 2e-4
_HUTCH = str(Path(hutch.__file__).parent) + os.sep
_TESTING = str(Path(__file__).parents[1]) + os.sep


def value(number: int) -> list[Any]:
    """Return a value with types that a codec decodes in code of its own."""
    return [number, {number}, date(2024, 2, 29), "text" * 20]


class Landing:
    """Tells where a handler ran: in hutch's or the engine's own code, or called by it."""

    def __init__(self, store: hutch.Store) -> None:
        module = sys.modules[type(store.factory).__module__]
        engine = str(Path(module.__file__ or "").parent) + os.sep
        self._own = (_HUTCH, engine)

    def is_own(self, frame: FrameType) -> bool:
        """Whether `frame` runs code of hutch or of the engine."""
        name = frame.f_code.co_filename
        return name.startswith(self._own) and not name.startswith(_TESTING)

    def is_inside(self, frame: FrameType | None) -> bool:
        """Whether `frame` was called by hutch or by the engine, or is theirs."""
        while frame is not None:
            if self.is_own(frame):
                return True
            frame = frame.f_back
        return False


@dataclass
class Step:
    """One call of a verb: what it does, and what it stores."""

    call: Callable[[], object] = field(repr=False)
    #: What the keys hold when the call returned; `hutch.MISSING` for a removed one.
    changes: dict[str, Any] = field(default_factory=dict)
    #: Whether the new value is made of the old one, so that a write in between must not be lost.
    reads_first: bool = False


class Work:
    """A store, what it holds as far as acknowledged, and the step that is under way."""

    def __init__(self, config: Any, seed: int) -> None:
        self.rng = random.Random(seed)
        self._config = config
        self.store = hutch.connect(config)
        self.landing = Landing(self.store)
        self.ns = self.store.open("core")
        self.is_atomic = "atomic-batch" in self.ns.capabilities
        self.known = {key: value(number) for number, key in enumerate(KEYS)}
        self.ns.clear()
        self.ns.update(self.known)
        self.number = len(KEYS)
        #: Handles that a step has opened and not closed.
        self.opened: list[hutch.Namespace] = []
        self.read_back = 0
        #: How often a step does the same: a verb that is done before a signal can arrive would never be interrupted.
        self.repeats = 1
        self.pending: Step | None = None
        self.is_done = True
        self._other = OtherThread()
        self._busy = BusyThread(self.ns)

    # --- steps ---

    def next_number(self) -> int:
        """Return a number that no value had so far."""
        self.number += 1
        return self.number

    def any_key(self) -> str:
        """Return one of `KEYS` that is stored."""
        return self.rng.choice([key for key in KEYS if key in self.known])

    def run(self, step: Step) -> object:
        """Call `step` and remember that it was acknowledged."""
        self.pending, self.is_done = step, False
        result = step.call()
        self.is_done = True
        self.know(step.changes)
        return result

    def know(self, changes: dict[str, Any]) -> None:
        """Take `changes` for what is stored."""
        for key, new in changes.items():
            if new is hutch.MISSING:
                self.known.pop(key, None)
            else:
                self.known[key] = new

    def busy(self, on: bool) -> None:
        """Let a second thread write all the time, or stop it."""
        self._busy.go_on(on)

    def measure(self, plan: Callable[[Work], Step]) -> float:
        """Return how long a step of `plan` takes, in seconds; `repeats` is chosen so that it is not too short."""
        self.repeats = 1
        self.run(plan(self))
        durations_s = []
        for _ in range(6):
            step = plan(self)
            start = time.perf_counter()
            self.run(step)
            durations_s.append(time.perf_counter() - start)
        longest_s = max(sorted(durations_s)[:-1])  # one may have waited for something else
        self.repeats = max(1, min(50, int(_LONG_ENOUGH_S / longest_s)))
        return longest_s * self.repeats

    # --- afterwards ---

    def settle(self) -> None:
        """Hold what is stored against the interrupted step, and let another thread write the same keys."""
        self._other.do(self._settle, "a read or a write of another thread", OTHERS_PATIENCE_S)

    def check_everything(self) -> None:
        """Read all items: what was acknowledged is there, and nothing else."""
        self._other.do(self._check_everything, "reading all items in another thread", OTHERS_PATIENCE_S)

    def _settle(self) -> None:
        step, self.pending = self.pending or Step(lambda: None), None
        found = {key: self.ns.get(key, hutch.MISSING) for key in step.changes}
        old = {key: self.known.get(key, hutch.MISSING) for key in step.changes}
        self.read_back += len(found)
        if self.is_done:
            assert found == step.changes, f"acknowledged and lost: {found} is stored, not {step.changes}"
        elif self.is_atomic:
            assert found in (old, step.changes), f"{found} is stored: neither {old} nor {step.changes}"
        else:
            torn = {key: now for key, now in found.items() if now not in (old[key], step.changes[key])}
            assert not torn, f"{torn} is stored: neither of {old} nor of {step.changes}"
        self.know(found)
        self.is_done = True
        for handle in self.opened:
            handle.close()
        self.opened.clear()
        self._write(next(iter(step.changes), KEYS[0]))

    def _write(self, key: str) -> None:
        self.ns[key] = value(self.next_number())
        self.known[key] = self.ns.modify(key, lambda old: value(old[0]))
        assert self.known[key] == value(self.number), f"acknowledged and lost: {value(self.number)} of {key!r}"
        with self.store.open("other") as other:
            other["number"] = self.number
            assert other["number"] == self.number

    def _check_everything(self) -> None:
        found = dict(self.ns.items())
        busy = found.pop(BUSY, -1)
        least, most = self._busy.acknowledged, self._busy.begun
        assert found == self.known, f"{found} is stored, and {self.known} was acknowledged"
        assert least <= busy or busy <= most, f"{busy} is stored under {BUSY!r}, {least} was acknowledged"
        self.read_back += len(found)

    # --- life ---

    def finish(self) -> None:
        """Close the store, open it again, and read what was acknowledged."""
        self.busy(False)
        self.check_everything()
        self._other.do(self._close, "closing the store in another thread", OTHERS_PATIENCE_S)
        self.store = hutch.connect(self._config)
        self.ns = self.store.open("core")
        self.check_everything()
        for handle in (self.ns, self.store):
            handle.close()

    def _close(self) -> None:
        self.ns.close()
        self.store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._busy.end()
        if kind is None:
            self._other.end()


class BusyThread:
    """A thread that writes one key all the time, while it is allowed to."""

    def __init__(self, ns: hutch.Namespace) -> None:
        self._ns = ns
        self._may_go, self._stands, self._is_over = threading.Event(), threading.Event(), False
        #: The number of the last write that it began, and of the last that was acknowledged.
        self.begun = self.acknowledged = -1
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, daemon=True, name="busy")
        self._thread.start()

    def go_on(self, on: bool) -> None:
        """Start, or stop and wait until it stands."""
        if on:
            self._stands.clear()
            self._may_go.set()
        else:
            self._may_go.clear()
            stands = self._stands.wait(OTHERS_PATIENCE_S)
            if self._error is not None:
                raise AssertionError("a thread that only writes failed") from self._error
            if not stands:
                where = "".join(traceback.format_stack(sys._current_frames().get(self._thread.ident or 0)))
                raise AssertionError(f"a thread that only writes does not come to an end:\n{where}")

    def end(self) -> None:
        """End the thread."""
        self._is_over = True
        self._may_go.set()

    def _work(self) -> None:
        while True:
            if not self._may_go.is_set():
                self._stands.set()
                self._may_go.wait()
            if self._is_over:
                return
            self.begun += 1
            try:
                self._ns[BUSY] = self.begun
            except BaseException as error:
                self._error = error
                self._stands.set()
                return
            self.acknowledged = self.begun
            time.sleep(0.0005)


class OtherThread:
    """A thread that is given work, and whose errors are raised by the thread that gave it."""

    def __init__(self) -> None:
        self._orders: queue.SimpleQueue[Callable[[], Any] | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[tuple[bool, Any]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, daemon=True, name="other")
        self._thread.start()

    def do(self, work: Callable[[], T], what: str, patience_s: float) -> T:
        """Return ``work()``. Raises AssertionError if it is not done in time."""
        self._orders.put(work)
        try:
            worked, result = self._answers.get(timeout=patience_s)
        except queue.Empty:
            raise AssertionError(f"{what} does not end: a lock was left taken") from None
        if not worked:
            raise result
        answer: T = result
        return answer

    def end(self) -> None:
        """End the thread."""
        self._orders.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (order := self._orders.get()) is not None:
            try:
                self._answers.put((True, order()))
            except BaseException as error:
                self._answers.put((False, error))


# --- the verbs: each step repeats the last of what it does, with the same effect ---


def plan_get(work: Work) -> Step:
    """Read one value."""
    key = work.any_key()
    expected, ns = work.known[key], work.ns

    def call() -> None:
        for _ in range(work.repeats):
            got = ns[key]
        assert got == expected, f"{got} was read, not {expected}"

    return Step(call)


def plan_set(work: Work) -> Step:
    """Set one key."""
    key, new, ns = work.rng.choice(KEYS), value(work.next_number()), work.ns

    def call() -> None:
        for _ in range(work.repeats):
            ns[key] = new

    return Step(call, {key: new})


def plan_remove(work: Work) -> Step:
    """Remove a key that the step before has set, or set it."""
    return _plan_removing(work, work.ns.__delitem__)


def plan_pop(work: Work) -> Step:
    """Take a key out that the step before has set, or set it."""
    return _plan_removing(work, work.ns.pop)


def _plan_removing(work: Work, remove: Callable[[str], Any]) -> Step:
    gone = next((key for key in KEYS if key not in work.known), None)
    if gone is not None:
        items = {gone: value(work.next_number())}

        def put_back() -> None:
            for _ in range(work.repeats):
                work.ns.set_many(items)

        return Step(put_back, dict(items))
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


def plan_update(work: Work) -> Step:
    """Set four keys as one batch."""
    number = work.next_number()
    items = {key: value(number) for key in work.rng.sample(KEYS, 4)}

    def call() -> None:
        for _ in range(work.repeats):
            work.ns.update(items)

    return Step(call, dict(items))


def plan_modify(work: Work) -> Step:
    """Raise the number in one value."""
    key, ns = work.any_key(), work.ns
    new = value(work.known[key][0] + 1)

    def call() -> None:
        ns.modify(key, lambda old: value(old[0] + 1))
        for _ in range(work.repeats - 1):
            ns.modify(key, lambda old: old)

    return Step(call, {key: new}, reads_first=True)


def plan_mutable(work: Work) -> Step:
    """Raise the number in one value in place."""
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


def plan_items(work: Work) -> Step:
    """Read all items."""
    return _plan_reading(work, work.ns.items)


def plan_scan(work: Work) -> Step:
    """Read all items in key order."""
    return _plan_reading(work, work.ns.scan)


def _plan_reading(work: Work, read: Callable[[], Any]) -> Step:
    def call() -> None:
        for _ in range(work.repeats):
            found = list(read())
        stored = {key: new for key, new in found if key in KEYS}
        known = {key: work.known[key] for key in KEYS if key in work.known}
        assert stored == known, f"{stored} was read, not {known}"

    return Step(call)


def plan_open(work: Work) -> Step:
    """Open another namespace and close it."""
    opened, store = work.opened, work.store

    def call() -> None:
        for _ in range(work.repeats):
            opened.append(store.open("other"))
            opened[-1].close()
            opened.clear()

    return Step(call)


VERBS: dict[str, Callable[[Work], Step]] = {
    "get": plan_get,
    "set": plan_set,
    "remove": plan_remove,
    "pop": plan_pop,
    "update": plan_update,
    "modify": plan_modify,
    "mutable": plan_mutable,
    "items": plan_items,
    "scan": plan_scan,
    "open": plan_open,
}
