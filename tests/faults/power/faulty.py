"""Let every system call fail: ``python -m tests.faults.power.faulty ENGINE DURABILITY FOLDER``, under the shim.

For each kind of step, each kind of fault, and N = 1, 2, 3...: the Nth such call within the step fails, once or from
then on, until the step has no Nth call. Then the fault ends, and the same handle must have all that was stored, and
work.
"""

from __future__ import annotations

import ctypes
import errno
import itertools
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import hutch

from .history import COUNTER, Items, Step, after
from .targets import Hutch

WRITES, FLUSHES, TRUNCATES, READS, OPENS, UNLINKS, FOLDER_FLUSHES = (1 << bit for bit in range(7))

_shim = ctypes.CDLL(None)
_numbers = itertools.count()
_FULL = {"StorageFullError"}
_FAILED = {"StorageUnavailableError"}
_EITHER = _FULL | _FAILED
# To SQLite, what a disk cannot read is damaged.
_UNREADABLE = _FAILED | {"CorruptValueError"}


@dataclass(frozen=True)
class Fault:
    what: int
    error: int
    #: How many calls fail; 0: all from the first on.
    times: int
    #: The errors that it may be, by engine: SQLite keeps some reasons to itself.
    expected: dict[str, set[str]]
    #: Half of what was to be written is.
    partly: bool = False


def faults() -> Iterator[Fault]:
    """Yield every fault to try."""
    for times in (1, 0):
        for error in (errno.ENOSPC, errno.EDQUOT):
            yield Fault(WRITES, error, times, {"lmdb": _FULL, "sqlite": _FULL})
        yield Fault(WRITES, errno.EIO, times, {"lmdb": _FAILED, "sqlite": _EITHER})
        yield Fault(FLUSHES, errno.EIO, times, {"lmdb": _FAILED, "sqlite": _FAILED})
        yield Fault(FLUSHES, errno.ENOSPC, times, {"lmdb": _FULL, "sqlite": _EITHER})
        yield Fault(TRUNCATES, errno.ENOSPC, times, {"lmdb": _FULL, "sqlite": _EITHER})
        yield Fault(TRUNCATES, errno.EIO, times, {"lmdb": _FAILED, "sqlite": _EITHER})
        yield Fault(READS, errno.EIO, times, {"lmdb": _FAILED, "sqlite": _UNREADABLE})
        yield Fault(OPENS, errno.EIO, times, {"lmdb": _FAILED, "sqlite": _EITHER})
        yield Fault(UNLINKS, errno.EIO, times, {"lmdb": _FAILED, "sqlite": _EITHER})
        yield Fault(FOLDER_FLUSHES, errno.EIO, times, {"lmdb": _FAILED, "sqlite": _FAILED})
    yield Fault(WRITES, errno.ENOSPC, 0, {"lmdb": _FULL, "sqlite": _FULL}, partly=True)
    yield Fault(WRITES, errno.EIO, 0, {"lmdb": _EITHER, "sqlite": _EITHER}, partly=True)


def _values(count: int, size: int) -> dict[str, object]:
    number = next(_numbers)
    return {f"key {n}": [number, b"x" * size] for n in range(count)}


STEPS: dict[str, Callable[[], Step]] = {
    "set a new key": lambda: Step("set", "core", {f"new {next(_numbers)}": b"x" * 100}),
    "overwrite": lambda: Step("set", "core", _values(1, 100)),
    "set a large value": lambda: Step("set", "core", _values(1, 20_000)),
    "update": lambda: Step("update", "core", _values(12, 3000)),
    "modify": lambda: Step("modify", COUNTER[0]),
    "remove": lambda: Step("remove", "core", keys=("key 0",)),
    "remove_many": lambda: Step("remove_many", "core", keys=tuple(f"key {n}" for n in range(12))),
    "clear": lambda: Step("clear", "core"),
    "make a namespace": lambda: Step("set", f"space {next(_numbers)}", {"key": 1}),
}


class Trial:
    """A store, its expected content, and the results of the faults."""

    def __init__(self, engine: str, durability: str, folder: Path) -> None:
        self._engine, self._durability, self._folder = engine, durability, folder
        self._expected: Items = {}
        self.came: Counter[str] = Counter()
        self._open()

    def _open(self) -> None:
        self._store = Hutch(self._folder, self._engine, self._durability)

    def run(self) -> None:
        """Everything."""
        for fault in faults():
            for name, step in STEPS.items():
                for nth in itertools.count(1):
                    self._do(Step("update", "core", _values(12, 10)))
                    if not self._fails(name, step(), fault, nth):
                        break
                self._must_be_there("the same handle")
            self._store.close()
            self._open()
            self._must_be_there("opened again")

    def run_new(self) -> None:
        """The same for the first write of all, which makes the store."""
        folder = self._folder
        for number, fault in enumerate(faults()):
            for nth in itertools.count(1):
                self._folder = folder / f"{number} {nth}"
                self._folder.mkdir()
                self._expected = {}
                self._store.close()
                self._open()
                goes_on = self._fails("make the store", Step("set", "core", {"key": 1}), fault, nth)
                self._store.close()
                self._open()
                self._must_be_there("made and opened again")
                if not goes_on:
                    break
        self._store.close()

    def _fails(self, name: str, step: Step, fault: Fault, nth: int) -> bool:
        """Whether there was an `nth` call to fail within `step`."""
        where = f"{name}, {fault}, call {nth}"
        wanted = self._after(step)
        _shim.shim_fail(fault.what, nth, fault.times, fault.error, int(fault.partly))
        raised = None
        try:
            self._store.apply(step)
        except hutch.StoreError as error:
            raised = error
        seen = _shim.shim_seen()
        _shim.shim_fail(0, 0, 0, 0, 0)
        self.came["calls that failed"] += seen >= nth
        if raised is None:
            self._expected = wanted
            self.came["steps that did without"] += seen >= nth
            self._must_be_there(where)
            return bool(seen >= nth)
        kind = type(raised).__name__
        assert seen >= nth, f"{where}: raised without cause: {raised!r}"
        assert kind in fault.expected[self._engine], f"{where}: {raised!r}"
        self.came[kind] += 1
        stored = self._store.everything()
        assert stored in (self._expected, wanted), f"{where}: a part of the step was done"
        if stored == wanted:
            # Only where the error was reported: a failed write did not happen.
            self.came["raised, and was done"] += 1
            self._expected = wanted
        else:
            self._do(step)
            self._must_be_there(where)
        return True

    def _do(self, step: Step) -> None:
        self._store.apply(step)
        self._expected = self._after(step)

    def _after(self, step: Step) -> Items:
        if step.verb == "modify":
            return self._expected | {COUNTER: self._expected.get(COUNTER, 0) + 1}
        return after(self._expected, step)

    def _must_be_there(self, where: str) -> None:
        stored = self._store.everything()
        if stored != self._expected:
            wrong = [name for name in stored.keys() | self._expected if stored.get(name) != self._expected.get(name)]
            raise AssertionError(f"{where}: lost or changed: {sorted(wrong)[:5]}")


def main(engine: str, durability: str, folder: str) -> None:
    """Try it; print what came of it, as JSON."""
    trial = Trial(engine, durability, Path(folder))
    trial.run()
    trial.run_new()
    print(json.dumps(trial.came))


if __name__ == "__main__":
    main(*sys.argv[1:])
