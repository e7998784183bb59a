"""Measure growth with the size of values, and the cost of values about as large as a page."""

from __future__ import annotations

import random
import shutil
from contextlib import ExitStack
from pathlib import Path

from .samples import SEED, Part, Record, decades, disk_bytes, key, place, rotated, timed
from .stores import ON_DISK, opened


def measure_values(folder: Path, largest: int) -> Part:
    record = Record()
    chance = random.Random(SEED)
    for size in decades(10, largest * 10):
        many = max(2, min(10_000, 32_000_000 // size))
        calls = max(2, min(300, 10_000_000 // size))
        kinds = (*ON_DISK, "memory")
        paths = {kind: place(folder, kind, size) for kind in kinds}
        with ExitStack() as memory:
            # The others are closed in between: that merges SQLite's log into its file.
            stores = {"memory": memory.enter_context(opened("memory", folder))}
            with ExitStack() as stack:
                stores |= {kind: stack.enter_context(opened(kind, paths[kind])) for kind in ON_DISK}
                for start in range(0, many, max(1, 10_000_000 // size)):
                    numbers = range(start, min(many, start + max(1, 10_000_000 // size)))
                    for mapping in stores.values():
                        mapping.update({key(number): chance.randbytes(size) for number in numbers})
            for kind in ON_DISK:
                record.add("file / values", kind, size, disk_bytes(paths[kind]) / (many * size))
            with ExitStack() as stack:
                stores |= {kind: stack.enter_context(opened(kind, paths[kind])) for kind in ON_DISK}
                for round_ in range(5):
                    names = [key(chance.randrange(many)) for _ in range(calls)]
                    values = [chance.randbytes(size) for _ in range(calls)]
                    for kind in rotated(kinds, round_):
                        mapping = stores[kind]
                        with timed(record, "get, µs", kind, size, calls):
                            for name in names:
                                mapping[name]
                        with timed(record, "set, relaxed, µs", kind, size, calls):
                            for name, value in zip(names, values, strict=True):
                                mapping[name] = value
        for kind in ON_DISK:
            after = disk_bytes(paths[kind]) / (many * size)
            record.add("file / values, after overwriting", kind, size, after)
            shutil.rmtree(paths[kind])
    return record.typical()


def measure_pages(folder: Path, largest: int) -> Part:
    """Measure values about as large as a page, where the rest of a page is wasted."""
    record = Record()
    chance = random.Random(SEED)
    many = min(2000, largest // 100)
    for size in (250, 500, *range(1000, 4001, 250), 4096, *range(5000, 12_001, 1000)):
        for kind in ON_DISK:
            path = place(folder, kind, size)
            with opened(kind, path) as mapping:
                mapping.update({key(number): chance.randbytes(size) for number in range(many)})
            record.add("file / values", kind, size, disk_bytes(path) / (many * size))
            shutil.rmtree(path)
    return record.typical()
