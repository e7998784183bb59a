"""Measure surprises: file growth under open iterations, after drops, in random order, beside a large value."""

from __future__ import annotations

import random
from pathlib import Path

from benchmarks.workload import fresh

from .samples import SEED, Part, Record, disk_bytes, fill, key, timed
from .stores import ON_DISK, opened


def measure_surprises(folder: Path, largest: int) -> Part:
    record = Record()
    many = min(20_000, largest // 10)
    for kind in ON_DISK:
        for iterating in (False, True):
            case = "with an iteration open" if iterating else "without"
            path = folder / f"{kind} {iterating}"
            with opened(kind, path) as mapping:
                fill({kind: mapping}, many)
                before = disk_bytes(path)
                walk = iter(mapping.items())
                if iterating:
                    next(walk)
                for number in range(many):
                    mapping[key(number)] = fresh(number + 1)
                record.add(f"{many:,} overwrites: file grows to, x", kind, case, disk_bytes(path) / before)
                walk.close()

    many = min(100_000, largest // 10)
    for kind in ON_DISK:
        path = folder / f"{kind} dropped"
        with opened(kind, path) as mapping:
            for time_ in range(1, 11):
                fill({kind: mapping}, many)
                record.add(f"{many:,} keys filled and cleared: file, MB", kind, f"{time_}x", disk_bytes(path) / 1e6)
                with timed(record, f"clear() of {many:,} keys, ms", kind, "each time", 1, 1e-3):
                    mapping.clear()

    for kind in ON_DISK:
        for order in ("in key order", "in random order"):
            numbers = list(range(many))
            if order == "in random order":
                random.Random(SEED).shuffle(numbers)
            path = folder / f"{kind} {order}"
            with opened(kind, path) as mapping:
                for start in range(0, many, 100):
                    mapping.update({key(number): fresh(number) for number in numbers[start : start + 100]})
            record.add(f"{many:,} keys in batches of 100: file, bytes per key", kind, order, disk_bytes(path) / many)

    size = largest * 10
    for kind in ON_DISK:
        path = folder / f"{kind} large"
        with opened(kind, path) as mapping:
            fill({kind: mapping}, 10_000)
            for case in ("without", "with one", "after 5 rewrites of it"):
                if case != "without":
                    for _ in range(1 if case == "with one" else 5):
                        mapping["large"] = random.randbytes(size)
                names = [key(random.randrange(10_000)) for _ in range(1000)]
                for _ in range(5):
                    with timed(record, f"a value of {size:,} bytes: get of others, µs", kind, case, len(names)):
                        for name in names:
                            mapping[name]
                    with timed(record, f"a value of {size:,} bytes: set of others, µs", kind, case, len(names)):
                        for name in names:
                            mapping[name] = fresh(random.randrange(10**6))
                record.add(f"a value of {size:,} bytes: file, MB", kind, case, disk_bytes(path) / 1e6)
    return record.typical()
