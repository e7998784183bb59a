"""Measure what a snapshot of a million keys costs: python -m benchmarks.snapshots.

Prints the table of docs/howto/snapshots.md.
Each engine is measured in a process of its own. Time: the median of opening, one read, and closing. Memory: what the
process holds more while a snapshot is open; Linux only.
"""

from __future__ import annotations

import gc
import os
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import hutch

from .workload import key_names

_KEYS = 1_000_000
_ROUNDS = 21
_URLS = {
    "memory": "memory://",
    "lmdb": "lmdb://{}/lmdb?durability=relaxed",
    "sqlite": "sqlite://{}/kv.db?durability=relaxed",
}


def main() -> None:
    keys = int(sys.argv[1]) if sys.argv[1:] else _KEYS
    print(f"| engine, {keys:,} keys | open, read one key, close | memory while it is open |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for engine, url in _URLS.items():
            with ProcessPoolExecutor(1, get_context("spawn")) as process:
                taken_s, held_bytes = process.submit(measure, url.format(folder), keys).result()
            print(f"| `{engine}` | {taken_s * 1000:.2f} ms | {held_bytes / (1 << 20):.1f} MiB |")


def measure(url: str, keys: int) -> tuple[float, int]:
    """Return the seconds and the bytes that a snapshot of a new store with so many keys takes."""
    names = key_names(keys)
    with hutch.connect(url) as store:
        core = store["core"]
        for first in range(0, keys, 10_000):
            core.update({name: number for number, name in enumerate(names[first : first + 10_000], first)})
        del names
        gc.collect()
        before = _resident_bytes()  # before memory is freed that a snapshot could take
        with store.snapshot() as snap:
            assert len(snap["core"]) == keys
            held_bytes = _resident_bytes() - before
        taken_s = []
        for _ in range(_ROUNDS):
            began_s = time.perf_counter()
            with store.snapshot() as snap:
                assert snap["core"]["user:000001"] == 1
            taken_s.append(time.perf_counter() - began_s)
    return statistics.median(taken_s), held_bytes


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
