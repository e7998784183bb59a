"""Threads that write while a fault happens, and what was acknowledged, lost and counted twice."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

import hutch
from tests.servers import wait_until

#: How often each thread goes round before, during and after a fault.
ROUNDS = int(os.environ.get("HUTCH_FAULT_ROUNDS", "10"))


@dataclass
class Figures:
    """What became of the writes."""

    acknowledged: int = 0
    lost: int = 0
    doubled: int = 0
    #: Writes with an error that says that they may have been made or not.
    unsure: int = 0
    #: The longest time to an error, if there was one.
    error_s: float | None = None

    def __str__(self) -> str:
        return ", ".join(f"{value} {name}" for name, value in asdict(self).items())


@dataclass
class Worker:
    """What one thread has done."""

    name: str
    number: int
    rounds: int = 0
    counted: int = 0
    unsure: int = 0
    keys: list[str] = field(default_factory=list)
    #: Values that belong to another key: the reply to another call.
    mismatches: list[Any] = field(default_factory=list)
    failures: int = 0
    #: The errors that say that nothing was done.
    refusals: Counter[type[hutch.StoreError]] = field(default_factory=Counter)
    error_s: float = 0.0
    longest_s: float = 0.0


class Load:
    """Threads that increment a number, set new keys and read them back: two in the first namespace, one in the other.

    The increments are not idempotent, the sets are.
    """

    def __init__(self, store: hutch.Store, names: list[str]) -> None:
        self._store = store
        self._stop = threading.Event()
        self.workers = [Worker(name, number) for number, name in enumerate([names[0], names[0], names[1]])]
        self._pool = ThreadPoolExecutor(len(self.workers))
        self._work = [self._pool.submit(self._run, worker) for worker in self.workers]

    def progress(self) -> None:
        """Wait until every thread has gone round some more times without an error."""
        before = [worker.rounds for worker in self.workers]
        wait_until(
            lambda: (
                all(worker.rounds >= old + ROUNDS for worker, old in zip(self.workers, before, strict=True))
                or any(work.done() for work in self._work)
            )
        )

    def finish(self) -> Figures:
        """End the threads; count what is stored."""
        self.stop()
        for work in self._work:
            work.result()
        figures = Figures()
        for worker in self.workers:
            namespace = self._store[worker.name]
            stored, kept = namespace.get(_counter(worker), 0), len(namespace.get_many(worker.keys))
            figures.acknowledged += worker.counted + len(worker.keys)
            figures.lost += max(0, worker.counted - stored) + len(worker.keys) - kept
            figures.doubled += max(0, stored - worker.counted - worker.unsure)
            figures.unsure += worker.unsure
        if any(worker.failures for worker in self.workers):
            figures.error_s = max(worker.error_s for worker in self.workers)
        return figures

    def stop(self) -> None:
        """End the threads."""
        self._stop.set()
        self._pool.shutdown()

    def _run(self, worker: Worker) -> None:
        namespace = self._store[worker.name]
        while not self._stop.is_set():
            key = f"{worker.number}.{worker.rounds}.{worker.failures}"
            calls = (_increment if worker.rounds % 2 else _modify, _set, _get)
            done = [_is_acknowledged(worker, call, namespace, key) for call in calls]
            if all(done):
                worker.rounds += 1
            else:
                time.sleep(0.01)  # a refused call takes no time


def _counter(worker: Worker) -> str:
    return f"count {worker.number}"


def _plus_one(number: int) -> int:
    return number + 1


def _increment(worker: Worker, namespace: Any, key: str) -> None:
    _count(worker, lambda: namespace.increment(_counter(worker)))


def _modify(worker: Worker, namespace: Any, key: str) -> None:
    _count(worker, lambda: namespace.modify(_counter(worker), _plus_one, default=0))


def _count(worker: Worker, increment: Callable[[], Any]) -> None:
    try:
        increment()
    except hutch.StoreError as error:
        # Otherwise nothing was done; if it was, it counts as doubled.
        worker.unsure += _is_unsure(error)
        raise
    worker.counted += 1


def _is_unsure(error: hutch.StoreError) -> bool:
    return isinstance(error, hutch.NotReplicatedError) or "may have been made or not" in str(error)


def _set(worker: Worker, namespace: Any, key: str) -> None:
    namespace[key] = [key, worker.number]
    worker.keys.append(key)


def _get(worker: Worker, namespace: Any, key: str) -> None:
    value = namespace.get(key)
    if value not in (None, [key, worker.number]):
        worker.mismatches.append((key, value))


def _is_acknowledged(worker: Worker, call: Callable[[Worker, Any, str], None], namespace: Any, key: str) -> bool:
    began_s = time.monotonic()
    try:
        call(worker, namespace, key)
    except hutch.StoreError as error:
        worker.failures += 1
        if not _is_unsure(error):
            worker.refusals[type(error)] += 1
        worker.error_s = max(worker.error_s, time.monotonic() - began_s)
        return False
    finally:
        worker.longest_s = max(worker.longest_s, time.monotonic() - began_s)
    return True
