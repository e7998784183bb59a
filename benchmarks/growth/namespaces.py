"""Growth with the number of namespaces: the same keys, spread over ever more of them."""

from __future__ import annotations

import random
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import ormsgpack

import hutch
from benchmarks.workload import fresh

from .samples import ROUNDS, SEED, Part, Record, decades, disk_bytes, key, place, rotated, timed
from .stores import RawLmdb, url

MOST_NAMED_DATABASES = 10_000


def measure_namespaces(folder: Path, largest: int) -> Part:
    """Measure the same keys in ever more namespaces."""
    record = Record()
    chance = random.Random(SEED)
    total = largest // 100
    numbers = decades(1, total)
    kinds = ("lmdb", "sqlite", "memory", "raw lmdb, a database each")
    with ExitStack() as stack:
        for number in numbers:
            stores = {
                kind: stack.enter_context(hutch.connect(url(kind, place(folder, kind, number), "relaxed")))
                for kind in kinds[:3]
            }
            raw = None
            if number <= MOST_NAMED_DATABASES:
                raw = stack.enter_context(closing(RawLmdb(place(folder, kinds[3], number), "relaxed", number)))
            chosen = [chance.randrange(number) for _ in range(min(number, 100))]
            chosen = sorted(set(chosen))
            each = total // number
            items = {key(n): fresh(n) for n in range(each)}
            for kind, store in stores.items():
                with timed(record, "fill, µs per namespace", kind, number, number):
                    for n in range(number):
                        with store.open(f"plugin {n}") as namespace:
                            namespace.update(items)
            databases: list[Any] = []
            if raw is not None:
                for n in range(number):
                    database = raw.env.open_db(b"plugin %d" % n)
                    with raw.env.begin(database, write=True) as txn, txn.cursor() as cursor:
                        cursor.putmulti([(k.encode(), ormsgpack.packb(v)) for k, v in items.items()])
                    if n in chosen:
                        databases.append(database)
            for kind in kinds[:2]:
                record.add("file, bytes per key", kind, number, disk_bytes(place(folder, kind, number)) / total)
            if raw is not None:
                record.add("file, bytes per key", kinds[3], number, disk_bytes(place(folder, kinds[3], number)) / total)
            for round_ in range(ROUNDS):
                calls = [(chance.randrange(len(chosen)), key(chance.randrange(each))) for _ in range(500)]
                for kind in rotated(kinds, round_):
                    if kind in stores:
                        _use_namespaces(record, kind, stores[kind], number, chosen, calls)
                        continue
                    if raw is None:
                        continue
                    with timed(record, "get, µs", kind, number, len(calls)):
                        for which, name in calls:
                            with raw.env.begin(databases[which]) as txn:
                                ormsgpack.unpackb(txn.get(name.encode()) or b"")
                    with timed(record, "set, relaxed, µs", kind, number, 100):
                        for which, name in calls[:100]:
                            with raw.env.begin(databases[which], write=True) as txn:
                                txn.put(name.encode(), ormsgpack.packb(fresh(round_)))
    return record.typical()


def _use_namespaces(
    record: Record, kind: str, store: hutch.Store, number: int, chosen: list[int], calls: list[tuple[int, str]]
) -> None:
    with ExitStack() as handles:
        open_ = [handles.enter_context(store.open(f"plugin {n}")) for n in chosen]
        for which, name in calls[:200]:
            open_[which][name]
        with timed(record, "get, µs", kind, number, len(calls)):
            for which, name in calls:
                open_[which][name]
        values = [fresh(random.randrange(10**6)) for _ in range(100)]
        with timed(record, "set, relaxed, µs", kind, number, len(values)):
            for (which, name), value in zip(calls, values, strict=False):
                open_[which][name] = value
    with timed(record, "open + get + close of one, µs", kind, number, 50):
        for which, name in calls[:50]:
            with store.open(f"plugin {chosen[which]}") as namespace:
                namespace[name]
    with timed(record, "namespaces(), ms", kind, number, 1, 1e-3):
        found = store.namespaces()
    assert len(found) == number
