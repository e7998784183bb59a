"""Kill processes that write and read, and verify the stored data after each kill.

Runs in a `Child` as its job `kill_at_random`: the process may fork, so it has no threads and no open store while it
does.
"""

from __future__ import annotations

import ctypes
import itertools
import multiprocessing
import os
import random
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, NoReturn

import hutch

from ..conformance.kit import PATIENCE_S
from .workloads import CORE, SCRATCH, TALLY, StoreConnection, Workload, balances_of, items_of

_VERIFIED = "verified"


@dataclass(frozen=True)
class KillPlan:
    """The processes of a run and its length. Pauses between kills are random, up to `longest_pause_s`."""

    seed: int
    kills: int
    #: The number of processes that write, of threads in each of them, and of processes that only read.
    writers: int = 1
    threads: int = 3
    readers: int = 0
    seconds: float = 0.0
    longest_pause_s: float = 0.06
    large_bytes: int = 40_000
    #: Whether `get_many` reads one snapshot, which only some engines promise.
    snapshots: bool = False
    #: The probability of a kill of all processes at once instead of some.
    all_at_once: float = 0.4
    #: How long a process may make no progress before the run fails.
    patience_s: float = PATIENCE_S
    start_method: str = "fork" if sys.platform == "linux" else "spawn"


@dataclass
class _Worker:
    """A process, the connection that it reports through, and its workloads; a reader has none."""

    process: BaseProcess
    receiver: Connection
    workloads: list[Workload]
    rounds: int = 0

    def progress(self) -> list[int]:
        return [workload.number for workload in self.workloads] or [self.rounds]


class Kills:
    """A run on one store, which must be empty at the start."""

    def __init__(self, config: Any, capabilities: frozenset[str], plan: KillPlan) -> None:
        self._config = config
        self._plan = plan
        self._whole = "atomic-batch" in capabilities
        self._rng = random.Random(plan.seed)
        self._context: Any = multiprocessing.get_context(plan.start_method)
        has_transactions = "atomic-store" in capabilities
        self._workloads = [
            Workload(plan.seed, n, plan.large_bytes, has_transactions) for n in range(plan.writers * plan.threads)
        ]
        #: For readers: the step number of the newest acknowledged balances of each workload.
        self._stored = self._context.RawArray(ctypes.c_int64, [-1] * len(self._workloads))
        self._workers: list[_Worker] = []
        self._verifications = itertools.count()
        self._figures: Counter[str] = Counter()

    def run(self) -> dict[str, int]:
        """Run to the end and return the counts. Raises AssertionError for a broken promise."""
        plan = self._plan
        end = time.monotonic() + plan.seconds
        try:
            for first in range(0, len(self._workloads), plan.threads):
                self._start_writer(self._workloads[first : first + plan.threads])
            for _ in range(plan.readers):
                self._start_reader()
            while self._figures["kills"] < plan.kills or time.monotonic() < end:
                # Most processes are killed while they work, some while they start.
                if self._rng.random() < 0.75:
                    self._all_go_on(1)
                self._receive_for(self._rng.uniform(0.0, plan.longest_pause_s))
                self._kill_and_verify(self._choose())
            self._kill_and_verify(list(self._workers), start_again=False)
        finally:
            for worker in self._workers:
                worker.process.kill()
                worker.process.join()
                worker.receiver.close()
        return dict(self._figures)

    # --- workers ---

    def _start_writer(self, workloads: list[Workload]) -> None:
        self._start(write, workloads, (self._config, workloads, self._stored))

    def _start_reader(self) -> None:
        names = [workload.name for workload in self._workloads]
        self._start(read, [], (self._config, names, self._stored, self._whole, self._plan.snapshots))

    def _start(self, work: Callable[..., None], workloads: list[Workload], arguments: tuple[Any, ...]) -> None:
        receiver, sender = self._context.Pipe(duplex=False)
        process = self._context.Process(target=_guarded, args=(work, sender, arguments), daemon=True)
        process.start()
        # Close the parent's copy, so that the connection ends with the process.
        sender.close()
        self._workers.append(_Worker(process, receiver, workloads))

    def _choose(self) -> list[_Worker]:
        if len(self._workers) == 1 or self._rng.random() < self._plan.all_at_once:
            return list(self._workers)
        return self._rng.sample(self._workers, self._rng.randint(1, (len(self._workers) + 1) // 2))

    def _receive_for(self, seconds: float) -> None:
        """Receive acknowledgements for `seconds`. Raises AssertionError if a process ended by itself."""
        receivers: dict[Any, _Worker] = {worker.receiver: worker for worker in self._workers}
        end = time.monotonic() + seconds
        while True:
            for receiver in wait(list(receivers), max(0.0, end - time.monotonic())):
                try:
                    self._receive(receivers[receiver])
                except EOFError:
                    raise AssertionError("a process ended by itself") from None
            if time.monotonic() >= end:
                return

    def _receive(self, worker: _Worker) -> None:
        """Receive one message of `worker`. Raises EOFError once it is dead."""
        try:
            message = worker.receiver.recv()
        except OSError as error:  # truncated message
            raise EOFError from error
        assert not isinstance(message, str), message
        index, number = message
        if index < 0:
            worker.rounds = number
            self._figures["reads"] += 1
            return
        workload = self._workloads[index]
        assert number == workload.number, f"{workload.name} acknowledged step {number}, not {workload.number}"
        workload.done(workload.plan())
        self._figures["acknowledged"] += 1

    def _all_go_on(self, steps: int) -> None:
        """Wait until every thread of every process has made `steps` more steps. Raises AssertionError if one stalls."""
        wanted = [(worker, [number + steps for number in worker.progress()]) for worker in self._workers]
        deadline = time.monotonic() + self._plan.patience_s
        while late := [
            worker
            for worker, numbers in wanted
            if any(now < number for now, number in zip(worker.progress(), numbers, strict=True))
        ]:
            assert time.monotonic() < deadline, (
                f"{len(late)} of {len(self._workers)} processes stand still for {self._plan.patience_s:.0f} s: "
                f"{[[workload.name for workload in worker.workloads] or 'a reader' for worker in late]}"
            )
            self._receive_for(0.001)

    # --- kills ---

    def _kill_and_verify(self, victims: list[_Worker], start_again: bool = True) -> None:
        for worker in victims:
            if not worker.process.is_alive():
                # Its last message may say why.
                self._drain(worker)
                raise AssertionError(f"a process ended by itself, exit code {worker.process.exitcode}")
            worker.process.kill()
        for worker in victims:
            worker.process.join()
            self._drain(worker)
            self._workers.remove(worker)
        self._figures["kills"] += len(victims)
        workloads = [workload for worker in victims for workload in worker.workloads]
        if self._workers:
            # Two steps: one that was running at the kill, and one that began after it.
            self._all_go_on(2)
            self._figures["kills that others survived"] += len(victims)
        self._verify(workloads, alone=not self._workers)
        if start_again:
            for worker in victims:
                if worker.workloads:
                    self._start_writer(worker.workloads)
                else:
                    self._start_reader()

    def _drain(self, worker: _Worker) -> None:
        try:
            while True:
                self._receive(worker)
        except EOFError:
            worker.receiver.close()

    # --- what must be there ---

    def _verify(self, workloads: list[Workload], alone: bool) -> None:
        """Compare the stored data with the acknowledged steps of `workloads`; all if no process is left (`alone`)."""
        with hutch.connect(self._config) as store:
            first = self._look(store, workloads, alone)
            # The next writer recovers the store: only then may an unacknowledged step appear, and it must stay.
            with store.open(_VERIFIED) as verified:
                verified["number"] = verified.get("number", 0) + 1
            second = self._look(store, workloads, alone)
            with store.open(_VERIFIED) as verified:
                assert verified["number"] == (last := next(self._verifications) + 1), (
                    f"lost: write {last} of the verifier"
                )
        for workload, (was, _), (standing, stored) in zip(workloads, first, second, strict=True):
            assert standing >= was, f"the step after {workload.number} of {workload.name} was read, and is lost"
            workload.settle(stored, standing)
            self._figures["steps under way that are stored"] += standing > 0
            self._figures["steps under way that are not"] += standing == 0

    def _look(self, store: hutch.Store, workloads: list[Workload], alone: bool) -> list[tuple[float, dict[Any, Any]]]:
        """Return how far the last step of each workload is stored (see `Workload.standing`), and its stored items."""
        standings = []
        owned = set()
        with store.open(CORE) as core:
            everything = dict(core.items()) if alone else {}
            for workload in workloads:
                with store.open(workload.own) as own:
                    items = dict(own.items())
                    exact(own, items)
                if items:
                    owned.add(workload.own)
                held = dict(core.scan(f"{workload.name}:")) if not alone else everything
                if not alone:
                    held[TALLY] = core.get(TALLY, {})
                stored = items_of(workload, held, items)
                standings.append((workload.standing(stored, self._whole), stored))
                self._figures["values verified"] += len(stored)
            if not alone:
                return standings
            exact(core, everything)
            assert core.get_many(everything) == everything
            known = {key for _, stored in standings for _, key in stored} | {TALLY}
            assert everything.keys() <= known, f"written by no workload: {sorted(everything.keys() - known)}"
        with store.open(SCRATCH) as scratch:
            items = dict(scratch.items())
            exact(scratch, items)
            wrong = [key for key, value in items.items() if value.split()[0] != key]
            assert not wrong, f"stale or garbled: {wrong} of the scratch namespace"
        self._verify_names(store, {*owned, *([CORE] if everything else []), *([SCRATCH] if items else [])})
        return standings

    def _verify_names(self, store: hutch.Store, expected: set[str]) -> None:
        try:
            names = set(store.namespaces()) - {_VERIFIED}
        except hutch.CapabilityError:
            return
        assert names == expected, f"namespaces() wrongly lists or omits {names ^ expected}"


def exact(ns: hutch.Namespace, items: dict[str, Any]) -> None:
    """Raise AssertionError unless the number of keys, their list and the items agree."""
    keys = list(ns)
    assert len(ns) == len(items), f"len of {ns.namespace!r} is {len(ns)}, but it has {len(items)} items"
    assert sorted(keys) == sorted(items), (
        f"{ns.namespace!r} wrongly lists, omits or repeats {sorted(set(keys) ^ items.keys())}"
    )


# --- in the processes that are killed ---


def write(report: Callable[[object], None], config: Any, workloads: list[Workload], stored: Any) -> None:
    """Run each of `workloads` in a thread until killed, acknowledging every step."""
    with hutch.connect(config) as store, store.open(CORE) as core, store.open(SCRATCH) as scratch:

        def work(workload: Workload) -> None:
            connection = StoreConnection(workload, store, {CORE: core, SCRATCH: scratch}, config)
            while True:
                step = workload.plan()
                connection.do(step)
                if step.verb == "update balances":
                    stored[workload.index] = workload.number
                report((workload.index, workload.number))
                workload.done(step)

        for workload in workloads[1:]:
            threading.Thread(target=_or_die, args=(report, work, workload), daemon=True).start()
        # Report an error before the store closes; otherwise the other threads would first report that it closed.
        _or_die(report, work, workloads[0])


def read(
    report: Callable[[object], None], config: Any, names: list[str], stored: Any, whole: bool, snapshots: bool
) -> None:
    """Read until killed. Raises AssertionError for a torn batch, a stale value or a key listed twice."""
    with hutch.connect(config) as store, store.open(CORE) as core:
        newest = dict.fromkeys(names, -1)
        nothing = [-1, 0]
        for round_ in itertools.count(1):
            for index, name in enumerate(names):
                least = max(newest[name], stored[index])
                keys = balances_of(name)
                values = core.get_many(keys) if snapshots else {key: core.get(key, nothing) for key in keys}
                numbers, amounts = zip(*(values.get(key, nothing) for key in keys), strict=True)
                newest[name] = min(numbers)
                assert newest[name] >= least, f"stale: {numbers} in the balances of {name}, after {least}"
                # Keys read one by one may come from two batches, but never a newer value before an older one.
                assert not whole or list(numbers) == sorted(numbers), f"torn: {numbers} in the balances of {name}"
                if snapshots:
                    assert len(set(numbers)) == 1, f"torn: {numbers} in the balances of {name}"
                    assert sum(amounts) == 0, f"torn: the amounts in the balances of {name}"
            if round_ % 8 == 0:
                keys = [key for key, _ in core.items()]
                assert len(keys) == len(set(keys)), "items() yielded a key twice"
            report((-1, round_))


def _guarded(work: Callable[..., None], sender: Connection, arguments: tuple[Any, ...]) -> None:
    """Call `work` with a function that sends through `sender`; send the traceback if it fails, and end the process."""
    # Output of a plugin must not mix with the messages of the parent process.
    sys.stdout = sys.stderr
    lock = threading.Lock()

    def report(what: object) -> None:
        with lock:
            try:
                sender.send(what)
            except OSError:  # the parent process is gone
                os._exit(1)

    _or_die(report, work, report, *arguments)


def _or_die(report: Callable[[object], None], work: Callable[..., None], *arguments: Any) -> NoReturn:
    try:
        work(*arguments)
    except BaseException:
        report(f"a process failed: {traceback.format_exc()}")
    os._exit(1)
