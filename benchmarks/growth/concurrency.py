"""Growth with the number of threads and of processes that use one store."""

from __future__ import annotations

import multiprocessing
import random
import threading
import time
from contextlib import ExitStack
from itertools import cycle
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.workload import fresh

from .samples import Part, Record, fill, key, rotated
from .stores import ON_DISK, opened

_OPERATIONS = (("get", "relaxed"), ("set", "relaxed"), ("set", "normal"))

_SHARED_KEYS = 10_000


def _name(operation: str, durability: str) -> str:
    return "get, per second" if operation == "get" else f"set, {durability}, per second"


def work_until(mapping: Any, operation: str, end: float, seed: int) -> int:
    """Return the number of calls done until `end` of time.monotonic."""
    chance = random.Random(seed)
    names = [key(chance.randrange(_SHARED_KEYS)) for _ in range(1000)]
    value = fresh(seed)
    for done, name in enumerate(cycle(names)):
        if operation == "get":
            mapping[name]
        else:
            value["id"] = 1_000_000 + done
            mapping[name] = value
        if (operation == "set" or done % 20 == 19) and time.monotonic() > end:
            return done + 1
    raise AssertionError("a cycle has no end")


def measure_threads(folder: Path, largest: int) -> Part:
    record = Record()
    numbers = [number for number in (1, 2, 4, 8, 16, 32, 64) if number <= largest // 10_000]
    kinds = (*ON_DISK, "memory")
    with ExitStack() as stack:
        stores = {
            (kind, durability): stack.enter_context(opened(kind, folder / f"{kind} {durability}", durability))
            for kind in kinds
            for durability in ("relaxed", "normal")
        }
        for durability in ("relaxed", "normal"):
            fill({kind: stores[kind, durability] for kind in kinds}, _SHARED_KEYS)
        for round_ in range(5):
            for number in numbers:
                for operation, durability in _OPERATIONS:
                    for kind in rotated(kinds, round_):
                        mapping = stores[kind, durability]
                        done: list[int] = []

                        def work(seed: int, mapping: Any = mapping, operation: str = operation) -> None:
                            done.append(work_until(mapping, operation, end, seed))  # noqa: B023 - joined below

                        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(number)]
                        began = time.perf_counter()
                        end = time.monotonic() + 0.25
                        for thread in threads:
                            thread.start()
                        for thread in threads:
                            thread.join()
                        record.add(
                            _name(operation, durability), kind, number, sum(done) / (time.perf_counter() - began)
                        )
    return record.typical()


def _worker(folder: Path, seed: int, pipe: Connection) -> None:
    with ExitStack() as stack:
        stores: dict[tuple[str, str], Any] = {}
        while order := pipe.recv():
            kind, durability, operation, begin, end = order
            if (kind, durability) not in stores:
                stores[kind, durability] = stack.enter_context(
                    opened(kind, folder / f"{kind} {durability}", durability)
                )
            mapping = stores[kind, durability]
            mapping[key(0)]
            time.sleep(max(0.0, begin - time.monotonic()))
            done = work_until(mapping, operation, end, seed)
            pipe.send((done, time.monotonic() - begin))


def measure_processes(folder: Path, largest: int) -> Part:
    record = Record()
    numbers = [number for number in (1, 2, 4, 8) if number <= largest // 10_000]
    for kind in ON_DISK:
        for durability in ("relaxed", "normal"):
            with opened(kind, folder / f"{kind} {durability}", durability) as mapping:
                fill({kind: mapping}, _SHARED_KEYS)
    spawning = multiprocessing.get_context("spawn")
    pipes = [spawning.Pipe() for _ in range(max(numbers))]
    workers = [spawning.Process(target=_worker, args=(folder, seed, there)) for seed, (_, there) in enumerate(pipes)]
    for worker in workers:
        worker.start()
    # The first round opens the stores.
    for round_ in range(6):
        for number in [max(numbers)] if round_ == 0 else numbers:
            for operation, durability in _OPERATIONS:
                for kind in rotated(ON_DISK, round_):
                    begin = time.monotonic() + 0.05
                    for here, _ in pipes[:number]:
                        here.send((kind, durability, operation, begin, begin + 0.4))
                    rates = [done / seconds for done, seconds in (here.recv() for here, _ in pipes[:number])]
                    if round_:
                        record.add(_name(operation, durability), kind, number, sum(rates))
    for here, _ in pipes:
        here.send(None)
    for worker in workers:
        worker.join()
    return record.typical()
