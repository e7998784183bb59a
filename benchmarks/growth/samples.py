"""Timed calls, their quartiles, and stores filled for them."""

from __future__ import annotations

import math
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from benchmarks.workload import fresh

from .stores import ON_DISK, opened

# Measurement -> store -> size (or case) -> number.
Part = dict[str, dict[str, dict[str, float]]]

SEED = 20261121

BATCH = 10_000

ROUNDS = 12

SHORT_ROUNDS = 40

LARGEST_IN_MEMORY = 1_000_000


class Record:
    def __init__(self) -> None:
        self._seen: dict[str, dict[str, dict[str, list[float]]]] = {}

    def add(self, what: str, kind: str, size: int | str, number: float) -> None:
        self._seen.setdefault(what, {}).setdefault(kind, {}).setdefault(str(size), []).append(number)

    def typical(self) -> Part:
        """Return the quartile closer to an idle machine: the lower one of times, the upper one of rates."""
        # In a fixed order, independent of the first round's.
        order = ("lmdb", "lmdb, uncached", "raw lmdb", "sqlite", "raw sqlite3", "memory", "dict + decode")
        return {
            what: {
                kind: {x: _quartile(found, what.endswith("per second")) for x, found in rows[kind].items()}
                for kind in sorted(rows, key=lambda kind: order.index(kind) if kind in order else 1)
            }
            for what, rows in self._seen.items()
        }


def _quartile(numbers: list[float], upper: bool) -> float:
    found = sorted(numbers, reverse=upper)[len(numbers) // 4]
    return float(f"{found:.4g}")


@contextmanager
def timed(record: Record, what: str, kind: str, size: int | str, calls: int, unit: float = 1e-6) -> Iterator[None]:
    began = time.perf_counter()
    yield
    record.add(what, kind, size, (time.perf_counter() - began) / calls / unit)


def key(number: int) -> str:
    return f"user:{number:08}"


def disk_bytes(path: Path) -> int:
    """Return the bytes in the folder, without files of fixed size that programs share (locks, indexes of logs)."""
    return sum(f.stat().st_size for f in path.iterdir() if f.name != "lock.mdb" and not f.name.endswith("-shm"))


def decades(low: float, high: float) -> list[int]:
    return [10**power for power in range(round(math.log10(low)), round(math.log10(high)) + 1)]


def rotated(kinds: tuple[str, ...], round_: int) -> Iterator[str]:
    """Yield all kinds, starting with a different one each round."""
    return islice(cycle(kinds), round_ % len(kinds), round_ % len(kinds) + len(kinds))


def fill(stores: dict[str, Any], count: int, record: Record | None = None, batch: int = BATCH) -> None:
    """Set `count` keys, in key order and in batches, alternating between the stores."""
    for start in range(0, count, batch):
        items = {key(number): fresh(number) for number in range(start, min(start + batch, count))}
        for kind, mapping in stores.items():
            began = time.perf_counter()
            mapping.update(items)
            if record is not None:
                record.add("fill, µs per key", kind, count, (time.perf_counter() - began) / len(items) * 1e6)


def place(folder: Path, kind: str, count: int) -> Path:
    return folder / f"{kind.replace(' ', '-')}-{count}"


def in_child(work: Callable[..., Any], *arguments: Any) -> Any:
    """Return the result of `work` in a new process, so that its memory is its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def make_stores(folder: Path, sizes: list[int], record: Record) -> None:
    for count in sizes:
        missing = [kind for kind in ON_DISK if not (place(folder, kind, count) / "whole").exists()]
        with ExitStack() as stack:
            fill(
                {kind: stack.enter_context(opened(kind, place(folder, kind, count))) for kind in missing}, count, record
            )
        for kind in missing:
            (place(folder, kind, count) / "whole").touch()
        for kind in ON_DISK:
            record.add("file, bytes per key", kind, count, disk_bytes(place(folder, kind, count)) / count)
    # Otherwise the disk would be busy with them during the next measurement.
    os.sync()
