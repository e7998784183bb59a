"""Cut the power at many moments of a recorded history, open what is left, and compare it with the promises.

``python -m tests.faults.power.judge``, with the arguments of `cut_power` as JSON, prints a report as JSON. It is a
separate process because it forks: opening what a cut has left may kill the reader.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import os
import pickle
import random
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .disk import MODES, Disk
from .history import COUNTER, Items, Plan, Step, states
from .shim import Record, read_log
from .targets import Target, opened

#: Memory rather than a disk, where there is such a folder: thousands of images are written and flushed.
_FAST = Path("/dev/shm")
# Files whose flush makes writes durable; that of any other file promises nothing.
_DATA = ("data.mdb", "-wal", ".db", ".dat", ".dir")


_AFTER_A_FAILURE = 25


class BrokenPromiseError(AssertionError):
    """An image's content breaks a promise."""


@dataclass
class Report:
    """What was tried, and the results."""

    cuts: int = 0
    images: int = 0
    #: Acknowledged writes that had to be there, over all images.
    checked: int = 0
    #: The most acknowledged writes of one worker that were gone from an image, and from how many images any was.
    most_lost: int = 0
    images_with_losses: int = 0
    #: Promises broken, each with what it takes to see it again.
    broken: list[str] = field(default_factory=list)
    #: How often each file was flushed, and which were mapped for writing.
    flushes: dict[str, int] = field(default_factory=dict)
    mapped: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{self.cuts} cuts, {self.images} images, {self.checked} acknowledged writes checked; lost at most "
            f"{self.most_lost} of a worker, any on {self.images_with_losses} images; {len(self.broken)} broken promises"
        )


@dataclass
class Verdict:
    """The result of one image."""

    checked: int = 0
    lost: list[int] = field(default_factory=lambda: [0])
    #: Which promise is broken, or nothing.
    broken: str = ""


class Past:
    """The steps that the workers had begun and finished by a moment."""

    def __init__(self, workers: int) -> None:
        self.begun = [0] * workers
        self.acknowledged = [0] * workers
        #: What was acknowledged when the last completed flush of the data began.
        self.flushed = [0] * workers
        self._at_begin: dict[int, list[int]] = {}
        self._data: set[int] = set()
        self._in_doubt = False
        #: By worker and step: what others had finished when it began.
        self.before: dict[tuple[int, int], list[int]] = {}

    def feed(self, record: Record) -> None:
        """Process the next record."""
        if record.kind == "K":
            what, worker, number = record.text.split()
            if what == "begins":
                self.begun[int(worker)] = int(number)
                self.before[int(worker), int(number)] = list(self.acknowledged)
            elif what == "acknowledged":
                self.acknowledged[int(worker)] = int(number)
                self._in_doubt = False
        elif record.kind == "O" and record.text.endswith(_DATA):
            self._data.add(record.inode)
        elif record.kind == "B" and record.inode in self._data:
            self._at_begin[record.a] = list(self.acknowledged)
        elif record.kind == "E" and record.a in self._at_begin:
            now = self._at_begin.pop(record.a)
            if not self._in_doubt:
                self.flushed = [max(pair) for pair in zip(self.flushed, now, strict=True)]
        elif record.kind == "F" and record.a in self._at_begin:
            # The next that succeeds need not have written what this one did not; a write acknowledged after it
            # has made up for that.
            self._in_doubt = True


def cut_power(
    folder: str,
    log: str,
    plan: dict[str, Any],
    *,
    cuts: int,
    promise: str,
    first_records: int = 0,
) -> Report:
    """Cut the power at `cuts` moments of `log`, at as many soon after failed flushes, and after each of its
    `first_records`; judge an image of each mode.

    `promise`: "strict": all that was acknowledged is there; "normal": all that was when the last flush began;
    "relaxed": nothing. With every one of them, each worker's items are those after some step of its history, no step
    is there without those that were acknowledged before it began, and the store works.
    """
    records = list(read_log(Path(log)))
    done = Plan(**plan)
    seed, workers = done.seed, done.processes * done.threads
    choose = random.Random(seed)
    moments = set(choose.sample(range(len(records)), min(cuts, len(records)))) | set(range(first_records))
    failed = [moment for moment, record in enumerate(records) if record.kind in "FX"]
    after = {moment + later for moment in failed for later in range(_AFTER_A_FAILURE)} & set(range(len(records)))
    moments |= set(choose.sample(sorted(after), min(cuts, len(after))))
    expected = [done.history(worker) for worker in range(workers)]
    judge = _Judge(expected, functools.partial(opened, done.target))
    disk, past, report = Disk(Path(folder)), Past(workers), Report()
    with _scratch() as scratch:
        # What a child imports it would import for every image.
        warm = scratch / "warm"
        warm.mkdir()
        _everything(judge.target, warm)
        for moment, record in enumerate(records):
            disk.feed(record)
            past.feed(record)
            if moment not in moments:
                continue
            report.cuts += 1
            for mode in MODES:
                image = scratch / f"{moment} {mode}"
                again = f"seed {seed}, after record {moment} ({record.kind} {record.text or record.a}), {mode!r}"
                disk.image(mode, random.Random(f"{seed} {moment} {mode}"), image)
                report.images += 1
                look = functools.partial(judge.look, image, past, promise, thorough=report.images % 3 == 0)
                verdict = _in_a_child(look)
                if verdict.broken:
                    report.broken.append(f"{again}: {verdict.broken}")
                else:
                    report.checked += verdict.checked
                    report.most_lost = max(report.most_lost, *verdict.lost)
                    report.images_with_losses += any(verdict.lost)
                shutil.rmtree(image)
        report.flushes = dict(Counter(disk.flushes))
        report.mapped = sorted(disk.mapped)
    return report


class _Judge:
    def __init__(self, expected: list[list[Step]], target: Callable[[Path], Target]) -> None:
        self.target = target
        self._states = [states(steps) for steps in expected]
        self._counts = [
            list(itertools.accumulate((step.verb == "modify" for step in steps), initial=0)) for steps in expected
        ]

    def look(self, image: Path, past: Past, promise: str, *, thorough: bool) -> Verdict:
        """Raise BrokenPromiseError for what is wrong with `image`."""
        try:
            stored = _everything(self.target, image)
        except Exception as error:
            raise BrokenPromiseError(f"the store cannot be read: {type(error).__name__}: {error}") from error
        counter = stored.pop(COUNTER, 0)
        possible = [self._possible(worker, stored, past) for worker in range(len(self._states))]
        newest = _newest(possible, past.before)
        lost = [max(0, there - now) for there, now in zip(past.acknowledged, newest, strict=True)]
        due = {"strict": past.acknowledged, "normal": past.flushed, "relaxed": [0] * len(newest)}[promise]
        for worker, number in enumerate(due):
            if newest[worker] < number:
                raise BrokenPromiseError(f"worker {worker} has its first {newest[worker]} steps, {number} are due")
        sums = {0}
        for worker, numbers in enumerate(possible):
            sums = {total + self._counts[worker][number] for total in sums for number in numbers}
        if counter not in sums:
            raise BrokenPromiseError(f"the counter is {counter}, possible are {sorted(sums)}")
        if thorough:
            try:
                _go_on(self.target, image, stored)
            except Exception as error:
                raise BrokenPromiseError(f"it cannot be used: {type(error).__name__}: {error}") from error
        return Verdict(sum(due), lost)

    def _possible(self, worker: int, stored: Items, past: Past) -> list[int]:
        """Return the steps after which a worker has what is stored of it."""
        head = f"worker {worker} "
        mine = {name: value for name, value in stored.items() if name[0].startswith(head)}
        numbers = [n for n in range(past.begun[worker] + 1) if self._states[worker][n] == mine]
        if not numbers:
            where = [n for n, state in enumerate(self._states[worker]) if state == mine]
            raise BrokenPromiseError(
                f"worker {worker}: {len(mine)} items that it had after none of {past.begun[worker]} steps "
                f"({past.acknowledged[worker]} acknowledged; after step {where} it will)"
            )
        return numbers


def _newest(possible: list[list[int]], before: dict[tuple[int, int], list[int]]) -> list[int]:
    """The latest moment possible: a step of each worker, none of them without what was older than it.

    A state may come twice in a history, such as that without any item, so that there may be several.
    """
    left = [list(numbers) for numbers in possible]
    while True:
        now = [numbers[-1] for numbers in left]
        for worker, number in enumerate(now):
            needed = before.get((worker, number), now)
            if any(other < finished for other, finished in zip(now, needed, strict=True)):
                if len(left[worker]) == 1:
                    raise BrokenPromiseError(f"step {number} of worker {worker} is there, older ones are not: {now}")
                left[worker].pop()
                break
        else:
            return now


def _everything(target: Callable[[Path], Target], image: Path) -> Items:
    store = target(image)
    try:
        return store.everything()
    finally:
        store.close()


def _go_on(target: Callable[[Path], Target], image: Path, stored: Items) -> None:
    """Write to it, and expect it to be as if nothing had happened."""
    store = target(image)
    try:
        expected = dict(store.everything())
        name = next(iter(stored))[0] if stored else "new"
        there = {key: value for (space, key), value in stored.items() if space == name}
        for step in (
            Step("set", name, {"later": "new"}),
            Step("update", name, {f"later {n}": b"x" * 5000 for n in range(20)} | dict.fromkeys(there, "replaced")),
            Step("remove_many", name, keys=("later", *sorted(there)[1:])),
            Step("set", "later", {"key": 1}),
        ):
            store.apply(step)
            expected = {
                key: value for key, value in expected.items() if key[0] != step.space or key[1] not in step.keys
            } | {(step.space, key): value for key, value in step.items.items()}
            assert store.everything() == expected, f"after {step.verb}"
        store.verify()
    finally:
        store.close()
    assert _everything(target, image) == expected, "opened again"


def _in_a_child(look: Callable[[], Verdict]) -> Verdict:
    """What `look` returns, or what it raised or died of as a broken promise."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            try:
                verdict = look()
            except BrokenPromiseError as error:
                verdict = Verdict(broken=str(error))
            os.write(writing, pickle.dumps(verdict))
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        data = pipe.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return Verdict(broken=f"a reader of it dies of {signal.Signals(os.WTERMSIG(status)).name}")
    verdict = pickle.loads(data)
    assert isinstance(verdict, Verdict)
    return verdict


@contextmanager
def _scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=_FAST if _FAST.is_dir() else None, prefix="hutch-power-") as folder:
        yield Path(folder)


if __name__ == "__main__":
    print(json.dumps(dataclasses.asdict(cut_power(**json.loads(sys.argv[1])))))
