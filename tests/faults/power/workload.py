"""Run one process of a plan: ``python -m tests.faults.power.workload PLAN PROCESS FOLDER``, under the shim.

PLAN is JSON. Each worker is a thread. Where calls fail now and then, as on a failing disk, a worker repeats a step
until it returns, and a lone worker reopens the store if even the second try fails.
"""

from __future__ import annotations

import ctypes
import errno
import json
import random
import sys
import threading
from collections import Counter
from pathlib import Path

import hutch

from .history import Plan, Step
from .targets import Target, opened

WRITES, FLUSHES, TRUNCATES = 1, 2, 4

_shim = ctypes.CDLL(None)


def mark(text: str) -> None:
    """Say something in the shim's log."""
    _shim.shim_mark(text.encode())


class Worker:
    """A worker that may close and open the store because it is alone, or one of many that may not."""

    def __init__(self, plan: Plan, number: int, path: Path, store: Target) -> None:
        self.store = store
        self.outcomes: Counter[str] = Counter()
        self._plan, self._number, self._path = plan, number, path
        self._alone = plan.processes == plan.threads == 1
        #: Only the first worker makes calls fail, its own and the others'.
        self._spoils = plan.faults and number == 0
        self._choose = random.Random(f"{plan.seed} faults")

    def work(self) -> None:
        """Do all steps and say of each that it begins and that it was acknowledged."""
        for n, step in enumerate(self._plan.history(self._number), start=1):
            mark(f"begins {self._number} {n}")
            # SQLite cannot take back from the disk what it began to make: a new file may be damaged, and empty.
            if self._spoils and (n > 1 or "sqlite" not in self._plan.target) and self._choose.random() < 0.4:
                self._arm()
            self._apply(step)
            mark(f"acknowledged {self._number} {n}")
            if self._alone and self._plan.reopen_every and n % self._plan.reopen_every == 0:
                self._reopen()

    def _arm(self) -> None:
        what, error = self._choose.choice(((WRITES, errno.EIO), (WRITES, errno.ENOSPC), *[(FLUSHES, errno.EIO)] * 4))
        # One call fails, or a few in a row.
        _shim.shim_fail(what, self._choose.randint(1, 4), self._choose.choice((1, 1, 3)), error, 0)

    def _disarm(self) -> None:
        if self._spoils:
            _shim.shim_fail(0, 0, 0, 0, 0)

    def _apply(self, step: Step) -> None:
        if not self._plan.faults:
            self.store.apply(step)
            return
        tries = 0
        while True:
            tries += 1
            try:
                self.store.apply(step)
            except hutch.StoreError as error:
                self.outcomes[type(error).__name__] += 1
            else:
                break
            assert tries < 20, "it never works again"
            if tries > 1:
                self._disarm()
            if tries == 3 and self._alone:
                self.outcomes["opened again"] += 1
                self._reopen()
        self._disarm()

    def _reopen(self) -> None:
        # Closing flushes, too.
        if self._spoils and self._choose.random() < 0.6:
            self._arm()
        try:
            self.store.close()
        except hutch.StoreError:
            self.outcomes["close failed"] += 1
        self._disarm()
        self.store = opened(self._plan.target, self._path)


def main(plan_as_json: str, process: str, folder: str) -> None:
    """Run the workers of this process; print what came of the faults, as JSON."""
    plan = Plan(**json.loads(plan_as_json))
    path = Path(folder)
    store = opened(plan.target, path)
    first = int(process) * plan.threads
    crew = [Worker(plan, number, path, store) for number in range(first, first + plan.threads)]
    failures: list[BaseException] = []

    def work(worker: Worker) -> None:
        try:
            worker.work()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(worker,)) for worker in crew]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    crew[0].store.close()
    print(json.dumps(sum((worker.outcomes for worker in crew), Counter())))


if __name__ == "__main__":
    main(*sys.argv[1:])
