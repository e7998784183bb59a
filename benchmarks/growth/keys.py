"""Growth with the number of keys: single calls, and iteration over all items."""

from __future__ import annotations

import os
import random
import time
from contextlib import ExitStack
from pathlib import Path

from benchmarks.workload import fresh

from .samples import (
    LARGEST_IN_MEMORY,
    ROUNDS,
    SEED,
    SHORT_ROUNDS,
    Part,
    Record,
    decades,
    fill,
    in_child,
    key,
    make_stores,
    place,
    rotated,
    timed,
)
from .stores import IN_MEMORY, ON_DISK, opened


def measure_keys(folder: Path, largest: int) -> Part:
    record = Record()
    chance = random.Random(SEED)
    sizes = decades(1000, largest)
    make_stores(folder, sizes, record)

    def kinds(count: int) -> tuple[str, ...]:
        return ON_DISK + (IN_MEMORY if count <= LARGEST_IN_MEMORY else ())

    def store_of(kind: str, count: int) -> Path:
        return place(folder, kind.removesuffix(", uncached"), count)

    # Over all keys, the processor's caches miss at every level of a large tree. A few scattered keys, read repeatedly,
    # show the cost of the tree's depth alone.
    hot = {count: [key(chance.randrange(count)) for _ in range(1000)] for count in sizes}

    def some(count: int, many: int, among: str) -> list[str]:
        return chance.choices(hot[count], k=many) if among else [key(chance.randrange(count)) for _ in range(many)]

    def get_some(round_: int, among: str) -> None:
        for count in sizes:
            for kind in rotated((*kinds(count), "lmdb, uncached"), round_):
                mapping = stores[kind, count]
                # Evict the previous store's data from the processor's caches.
                for name in hot[count] if among else some(count, 500, among):
                    mapping[name]
                names = some(count, 500, among)
                with timed(record, f"get{among}, µs", kind, count, len(names)):
                    for name in names:
                        mapping[name]

    def set_some(round_: int, durability: str, many: int, among: str = "") -> None:
        for count in sizes:
            for kind in rotated(kinds(count) if durability == "relaxed" else ON_DISK, round_):
                mapping = stores[kind, count]
                items = [(name, fresh(chance.randrange(10**6))) for name in some(count, many, among)]
                with timed(record, f"set{among}, {durability}, µs", kind, count, many):
                    for name, value in items:
                        mapping[name] = value

    with ExitStack() as stack:
        stores = {
            (kind, count): stack.enter_context(opened(kind, store_of(kind, count)))
            for count in sizes
            for kind in (*kinds(count), "lmdb, uncached")
        }
        for count in sizes:
            fill({kind: stores[kind, count] for kind in kinds(count) if kind in IN_MEMORY}, count, record)
            for kind in ON_DISK:
                # Warm: this process has read everything once.
                for _ in stores[kind, count].items():
                    pass
        for among in ("", " of 1,000 hot keys"):
            for round_ in range(SHORT_ROUNDS):
                get_some(round_, among)
            for round_ in range(SHORT_ROUNDS):
                set_some(round_, "relaxed", 100, among)
    os.sync()
    for round_ in range(ROUNDS):
        for count in sizes:
            for kind in rotated(ON_DISK, round_):
                with (
                    timed(record, "open + get + close, µs", kind, count, 1),
                    opened(kind, place(folder, kind, count), "normal") as mapping,
                ):
                    mapping[key(count // 2)]
    with ExitStack() as stack:
        stores = {
            (kind, count): stack.enter_context(opened(kind, place(folder, kind, count), "normal"))
            for count in sizes
            for kind in ON_DISK
        }
        for round_ in range(SHORT_ROUNDS):
            set_some(round_, "normal", 10)
    return record.typical()


def memory_bytes() -> dict[str, int]:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    found = dict(line.split(":", 1) for line in status.splitlines())
    return {name: int(found[name].split()[0]) * 1024 for name in ("RssAnon", "RssFile", "VmHWM")}


def iterate(kind: str, path: Path, count: int) -> tuple[float, dict[str, int]]:
    """Return the seconds of an iteration over all items, and the peak growth of the process's memory meanwhile."""
    with opened(kind, path) as mapping:
        if kind in IN_MEMORY:
            fill({kind: mapping}, count)
        before = memory_bytes()
        peak = dict(before)
        seen = 0
        began = time.perf_counter()
        for _ in mapping.items():
            seen += 1
            if seen % 10_000 == 0:
                peak = {name: max(peak[name], now) for name, now in memory_bytes().items()}
        seconds = time.perf_counter() - began
    assert seen == count, f"{kind}: {seen:,} items of {count:,}"
    peak = {name: max(peak[name], now) for name, now in memory_bytes().items()}
    return seconds, {name: peak[name] - before[name] for name in peak}


def measure_iteration(folder: Path, largest: int) -> Part:
    record = Record()
    if not Path("/proc/self/status").exists():
        print("iteration: left out, it needs Linux")
        return {}
    sizes = decades(1000, largest)
    in_child(make_stores, folder, sizes, Record())
    for round_ in range(3):
        for count in sizes:
            if round_ and count > LARGEST_IN_MEMORY:
                continue
            for kind in ON_DISK + (("memory",) if count <= LARGEST_IN_MEMORY else ()):
                seconds, grown = in_child(iterate, kind, place(folder, kind, count), count)
                record.add("items(), µs per item", kind, count, seconds / count * 1e6)
                record.add("anonymous memory, MiB more", kind, count, grown["RssAnon"] / 2**20)
                record.add("mapped file pages, MiB more", kind, count, grown["RssFile"] / 2**20)
    return record.typical()
