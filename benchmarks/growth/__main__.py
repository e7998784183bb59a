"""How hutch grows: with keys, namespaces, sizes of values, threads and processes. python benchmarks/growth.py

Each store is measured beside the raw library it stands on, in the same rounds; sizes take turns too, so that a busy
moment of the machine hits all of them. A number is the better quartile of many short rounds: the others are those in
which somebody else had the processor. The full form (some 15 minutes, 8 GB of disk) rewrites the plots and tables of
docs/growth.md; `--largest 1e5` is a short one that only prints.
"""

from __future__ import annotations

import argparse
import importlib
import io
import json
import math
import multiprocessing
import os
import platform
import random
import re
import shutil
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from itertools import cycle, islice
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import lmdb
import ormsgpack

import hutch

SEED = 20261121
LARGEST = 10_000_000
LARGEST_IN_MEMORY = 1_000_000
MOST_NAMED_DATABASES = 10_000
BATCH = 10_000
ROUNDS = 12
SHORT_ROUNDS = 40
DOCS = Path(__file__).resolve().parent.parent / "docs"

# About 125 bytes in MessagePack.
VALUE: dict[str, Any] = {
    "id": 1_234_567,
    "name": "Some user",
    "tags": ["a", "bb", "ccc"],
    "score": 1.5,
    "active": True,
    "email": "someone@example.org",
    "note": None,
    "at": "2026-11-21T10:00:00",
}

# What is measured -> store -> size (or case) -> number.
Part = dict[str, dict[str, dict[str, float]]]
LMDB = {
    "normal": {"sync": True, "metasync": False},
    "relaxed": {"sync": False, "metasync": False},
}
SQLITE = {"normal": "NORMAL", "relaxed": "OFF"}
ON_DISK = ("lmdb", "raw lmdb", "sqlite", "raw sqlite3")
IN_MEMORY = ("memory", "dict + decode")


# --- the stores: hutch's, and what they stand on ---


class RawLmdb:
    """A transaction a call, in the idiom of py-lmdb's documentation."""

    def __init__(self, path: Path, durability: str, max_dbs: int = 0) -> None:
        path.mkdir(parents=True, exist_ok=True)
        self.env = lmdb.open(str(path), map_size=1 << 34, max_dbs=max_dbs, **LMDB[durability])

    def __getitem__(self, key: str) -> Any:
        with self.env.begin() as txn:
            return ormsgpack.unpackb(txn.get(key.encode()) or b"")

    def __setitem__(self, key: str, value: Any) -> None:
        with self.env.begin(write=True) as txn:
            txn.put(key.encode(), ormsgpack.packb(value))

    def update(self, items: dict[str, Any]) -> None:
        with self.env.begin(write=True) as txn, txn.cursor() as cursor:
            cursor.putmulti([(key.encode(), ormsgpack.packb(value)) for key, value in items.items()])

    def items(self) -> Iterator[tuple[str, Any]]:
        with self.env.begin() as txn, txn.cursor() as cursor:
            for key, data in cursor:
                yield bytes(key).decode(), ormsgpack.unpackb(data)

    def clear(self) -> None:
        with self.env.begin(write=True) as txn:
            txn.drop(self.env.open_db(txn=txn), delete=False)

    def close(self) -> None:
        self.env.close()


class RawSqlite:
    """A plain table and a connection a thread, with hutch's journal mode and cache: what grows is what differs."""

    def __init__(self, path: Path, durability: str) -> None:
        path.mkdir(parents=True, exist_ok=True)
        self._file = path / "raw.db"
        self._synchronous = SQLITE[durability]
        self._mine = threading.local()
        self._all: list[sqlite3.Connection] = []
        self._connection().execute("CREATE TABLE IF NOT EXISTS t (key TEXT PRIMARY KEY, value BLOB)")

    def _connection(self) -> sqlite3.Connection:
        try:
            found: sqlite3.Connection = self._mine.connection
        except AttributeError:
            found = sqlite3.connect(self._file, timeout=60, isolation_level=None, check_same_thread=False)
            found.execute("PRAGMA journal_mode = WAL")
            found.execute(f"PRAGMA synchronous = {self._synchronous}")
            found.execute("PRAGMA cache_size = -65536")
            self._mine.connection = found
            self._all.append(found)
        return found

    def __getitem__(self, key: str) -> Any:
        row = self._connection().execute("SELECT value FROM t WHERE key = ?", (key,)).fetchone()
        return ormsgpack.unpackb(row[0])

    def __setitem__(self, key: str, value: Any) -> None:
        self._connection().execute("REPLACE INTO t VALUES (?, ?)", (key, ormsgpack.packb(value)))

    def update(self, items: dict[str, Any]) -> None:
        connection = self._connection()
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany("REPLACE INTO t VALUES (?, ?)", [(k, ormsgpack.packb(v)) for k, v in items.items()])
        connection.execute("COMMIT")

    def items(self) -> Iterator[tuple[str, Any]]:
        with closing(self._connection().execute("SELECT key, value FROM t ORDER BY key")) as rows:
            for key, data in rows:
                yield key, ormsgpack.unpackb(data)

    def clear(self) -> None:
        self._connection().execute("DELETE FROM t")

    def close(self) -> None:
        for connection in self._all:
            connection.close()


class Encoded(dict[str, bytes]):
    """A dict of encoded values: what the memory engine cannot be faster than."""

    def __getitem__(self, key: str) -> Any:
        return ormsgpack.unpackb(super().__getitem__(key))

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, ormsgpack.packb(value))

    def update(self, items: dict[str, Any]) -> None:  # type: ignore[override]
        super().update({key: ormsgpack.packb(value) for key, value in items.items()})

    def items(self) -> Iterator[tuple[str, Any]]:  # type: ignore[override]
        return ((key, ormsgpack.unpackb(data)) for key, data in super().items())


def url(kind: str, path: Path, durability: str) -> str:
    return {
        "lmdb": f"lmdb://{path}?durability={durability}",
        "lmdb, uncached": f"lmdb://{path}?durability={durability}&cache_bytes=0",
        "sqlite": f"sqlite://{path}/hutch.db?durability={durability}",
        "memory": "memory://",
    }[kind]


@contextmanager
def opened(kind: str, path: Path, durability: str = "relaxed") -> Iterator[Any]:
    """The mapping to measure."""
    if kind == "raw lmdb":
        with closing(RawLmdb(path, durability)) as raw:
            yield raw
    elif kind == "raw sqlite3":
        with closing(RawSqlite(path, durability)) as raw:
            yield raw
    elif kind == "dict + decode":
        yield Encoded()
    else:
        with hutch.connect(url(kind, path, durability)) as store, store.open("core") as namespace:
            yield namespace


# --- measuring ---


class Record:
    def __init__(self) -> None:
        self._seen: dict[str, dict[str, dict[str, list[float]]]] = {}

    def add(self, what: str, kind: str, size: int | str, number: float) -> None:
        self._seen.setdefault(what, {}).setdefault(kind, {}).setdefault(str(size), []).append(number)

    def typical(self) -> Part:
        """The quartile nearer to a machine at rest: the lower one of times, the upper one of rates."""
        # In one order, whoever was first in the first round.
        order = ("lmdb", "lmdb, uncached", "raw lmdb", "sqlite", "raw sqlite3", "memory", "dict + decode")
        return {
            what: {
                kind: {x: _quartile(found, what.endswith("a second")) for x, found in rows[kind].items()}
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


def fresh(number: int) -> dict[str, Any]:
    """A value not seen before: SQLite skips the write of an equal one."""
    return {**VALUE, "id": 1_000_000 + number}


def disk_bytes(path: Path) -> int:
    """What lies in the folder, but for files of a fixed size that the programs share (locks, indexes of logs)."""
    return sum(f.stat().st_size for f in path.iterdir() if f.name != "lock.mdb" and not f.name.endswith("-shm"))


def decades(low: float, high: float) -> list[int]:
    return [10**power for power in range(round(math.log10(low)), round(math.log10(high)) + 1)]


def turn(kinds: tuple[str, ...], round_: int) -> Iterator[str]:
    """All kinds, each round from another one on."""
    return islice(cycle(kinds), round_ % len(kinds), round_ % len(kinds) + len(kinds))


def fill(stores: dict[str, Any], count: int, record: Record | None = None, batch: int = BATCH) -> None:
    """`count` keys, in key order and in batches; the stores take turns."""
    for start in range(0, count, batch):
        items = {key(number): fresh(number) for number in range(start, min(start + batch, count))}
        for kind, mapping in stores.items():
            began = time.perf_counter()
            mapping.update(items)
            if record is not None:
                record.add("fill, µs a key", kind, count, (time.perf_counter() - began) / len(items) * 1e6)


def place(folder: Path, kind: str, count: int) -> Path:
    return folder / f"{kind.replace(' ', '-')}-{count}"


def in_child(work: Callable[..., Any], *arguments: Any) -> Any:
    """What `work` returns in a process of its own, so that its memory is its own."""
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
            record.add("file, bytes a key", kind, count, disk_bytes(place(folder, kind, count)) / count)
    # Or the disk would be busy with them during what is measured next.
    os.sync()


def measure_keys(folder: Path, largest: int) -> Part:
    record = Record()
    chance = random.Random(SEED)
    sizes = decades(1000, largest)
    make_stores(folder, sizes, record)

    def kinds(count: int) -> tuple[str, ...]:
        return ON_DISK + (IN_MEMORY if count <= LARGEST_IN_MEMORY else ())

    def store_of(kind: str, count: int) -> Path:
        return place(folder, kind.removesuffix(", uncached"), count)

    # Over all keys, the processor's caches miss at every step down a large tree. A few read again and again, though
    # they lie far from each other, show what the depth of the tree alone costs.
    hot = {count: [key(chance.randrange(count)) for _ in range(1000)] for count in sizes}

    def some(count: int, many: int, among: str) -> list[str]:
        return chance.choices(hot[count], k=many) if among else [key(chance.randrange(count)) for _ in range(many)]

    def get_some(round_: int, among: str) -> None:
        for count in sizes:
            for kind in turn((*kinds(count), "lmdb, uncached"), round_):
                mapping = stores[kind, count]
                # Out of the processor's caches goes what the store before had there.
                for name in hot[count] if among else some(count, 500, among):
                    mapping[name]
                names = some(count, 500, among)
                with timed(record, f"get{among}, µs", kind, count, len(names)):
                    for name in names:
                        mapping[name]

    def set_some(round_: int, durability: str, many: int, among: str = "") -> None:
        for count in sizes:
            for kind in turn(kinds(count) if durability == "relaxed" else ON_DISK, round_):
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
                # Warm: all of it was read once by this process.
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
            for kind in turn(ON_DISK, round_):
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
    """Seconds to walk over all items, and what the memory of the process grew by meanwhile, at its highest."""
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
                record.add("items(), µs an item", kind, count, seconds / count * 1e6)
                record.add("anonymous memory, MiB more", kind, count, grown["RssAnon"] / 2**20)
                record.add("mapped file pages, MiB more", kind, count, grown["RssFile"] / 2**20)
    return record.typical()


def measure_namespaces(folder: Path, largest: int) -> Part:
    """The same keys in ever more namespaces."""
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
                with timed(record, "fill, µs a namespace", kind, number, number):
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
                record.add("file, bytes a key", kind, number, disk_bytes(place(folder, kind, number)) / total)
            if raw is not None:
                record.add("file, bytes a key", kinds[3], number, disk_bytes(place(folder, kinds[3], number)) / total)
            for round_ in range(ROUNDS):
                calls = [(chance.randrange(len(chosen)), key(chance.randrange(each))) for _ in range(500)]
                for kind in turn(kinds, round_):
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


def measure_values(folder: Path, largest: int) -> Part:
    record = Record()
    chance = random.Random(SEED)
    for size in decades(10, largest * 10):
        many = max(2, min(10_000, 32_000_000 // size))
        calls = max(2, min(300, 10_000_000 // size))
        kinds = (*ON_DISK, "memory")
        paths = {kind: place(folder, kind, size) for kind in kinds}
        with ExitStack() as memory:
            # The others are closed in between: that folds SQLite's log into its file.
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
                    for kind in turn(kinds, round_):
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
    """Values about as large as a page, where what a page cannot hold is lost."""
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


# --- many at once ---

_OPERATIONS = (("get", "relaxed"), ("set", "relaxed"), ("set", "normal"))
_SHARED_KEYS = 10_000


def _name(operation: str, durability: str) -> str:
    return "get, a second" if operation == "get" else f"set, {durability}, a second"


def work_until(mapping: Any, operation: str, end: float, seed: int) -> int:
    """Calls done until `end` of time.monotonic."""
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
                    for kind in turn(kinds, round_):
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
                for kind in turn(ON_DISK, round_):
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


# --- what might surprise ---


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
            record.add(f"{many:,} keys in batches of 100: file, bytes a key", kind, order, disk_bytes(path) / many)

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


# --- the page ---

PARTS: dict[str, Callable[[Path, int], Part]] = {
    "keys": measure_keys,
    "iteration": measure_iteration,
    "namespaces": measure_namespaces,
    "values": measure_values,
    "pages": measure_pages,
    "threads": measure_threads,
    "processes": measure_processes,
    "surprises": measure_surprises,
}
_DRAWN_OF_KEYS = (
    "get, µs",
    "get of 1,000 hot keys, µs",
    "set, relaxed, µs",
    "set of 1,000 hot keys, relaxed, µs",
    "set, normal, µs",
    "file, bytes a key",
)
# Which of what was measured is drawn: file -> the axis, and a panel for each (part, what).
PLOTS = {
    "keys": (
        "keys",
        [("keys", what) for what in _DRAWN_OF_KEYS],
    ),
    "iteration": ("keys", [("iteration", what) for what in ("items(), µs an item", "anonymous memory, MiB more")]),
    "namespaces": ("namespaces", [("namespaces", what) for what in ("get, µs", "open + get + close of one, µs")]),
    "values": (
        "bytes a value",
        [
            ("values", "get, µs"),
            ("values", "set, relaxed, µs"),
            ("values", "file / values"),
            ("pages", "file / values"),
        ],
    ),
    "threads": ("threads", [("threads", what) for what in ("get, a second", "set, normal, a second")]),
    "processes": ("processes", [("processes", what) for what in ("get, a second", "set, normal, a second")]),
}
_COLOURS = {"lmdb": "#2a8fc4", "sqlite": "#dd7f22", "memory": "#3a9d6b", "dict": "#3a9d6b"}
# Readable on white and on slate.
_INK = "#80868f"


def draw(found: dict[str, Part], folder: Path) -> None:
    matplotlib: Any = importlib.import_module("matplotlib")
    matplotlib.use("svg")
    plt: Any = importlib.import_module("matplotlib.pyplot")
    matplotlib.rcParams.update(
        {"svg.fonttype": "none", "svg.hashsalt": "hutch", "font.size": 9, "axes.facecolor": "none"}
        | dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), _INK)
    )
    folder.mkdir(parents=True, exist_ok=True)
    for name, (along, wanted) in PLOTS.items():
        panels = [(part, what) for part, what in wanted if what in found.get(part, {})]
        if not panels:
            continue
        figure, grid = plt.subplots(
            math.ceil(len(panels) / 2), min(2, len(panels)), squeeze=False, layout="constrained"
        )
        figure.set_size_inches(8.2, 2.9 * len(grid))
        for axes, (part, what) in zip(grid.flat, panels, strict=False):
            _draw_one(axes, found[part][what], what, along)
        for axes in grid.flat[len(panels) :]:
            axes.axis("off")
        lines = {line.get_label(): line for axes in grid.flat for line in axes.get_lines()}
        figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=6, frameon=False)
        drawn = io.StringIO()
        figure.savefig(drawn, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        plt.close(figure)
        # A tenth of a point is enough.
        text = re.sub(r"\d+\.\d{2,}", lambda number: f"{float(number[0]):.1f}", drawn.getvalue())
        (folder / f"growth-{name}.svg").write_text(text, encoding="utf-8")


def _draw_one(axes: Any, rows: dict[str, dict[str, float]], title: str, along: str) -> None:
    for kind, row in rows.items():
        raw = kind.startswith(("raw", "dict"))
        if kind.endswith("uncached"):  # of interest beside the default, in the table
            continue
        colour = next(colour for part, colour in _COLOURS.items() if part in kind)
        style = {"linestyle": "--", "linewidth": 1.0} if raw else {"linewidth": 1.8, "marker": "o", "markersize": 3}
        axes.plot([float(x) for x in row], list(row.values()), color=colour, label=kind, **style)
    places = sorted({float(x) for row in rows.values() for x in row})
    if places[-1] >= 100 * places[0] or along in ("threads", "processes"):
        axes.set_xscale("log", base=2 if along in ("threads", "processes") else 10)
    axes.set_yscale("log")
    numbers = [number for row in rows.values() for number in row.values()]
    if max(numbers) < 30 * max(min(numbers), 1e-9):
        axes.set_yscale("linear")
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter("{x:,g}")
    if along in ("threads", "processes"):
        axes.set_xticks(places, [f"{x:.0f}" for x in places])
    axes.set_title(title, fontsize=9)
    axes.set_xlabel(along)
    axes.minorticks_off()
    axes.grid(color=_INK, alpha=0.25, linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)


def table(part: Part) -> str:
    """One row for each measurement and store; a new head where the columns change."""
    lines: list[str] = []
    head: list[str] = []
    for what, rows in part.items():
        columns = list(dict.fromkeys(x for row in rows.values() for x in row))
        if columns != head:
            head = columns
            shown = [f"{int(x):,}" if x.isdigit() else x for x in columns]
            lines += ["", f"| | | {' | '.join(shown)} |", "|---|---|" + "---:|" * len(columns)]
        for kind, row in rows.items():
            lines.append(f"| {what} | {kind} | {' | '.join(_short(row[x]) if x in row else '' for x in columns)} |")
    return "\n".join(lines[1:])


def _short(number: float) -> str:
    """Three digits."""
    if number == 0:
        return "0"
    return f"{number:,.{max(0, 2 - math.floor(math.log10(abs(number))))}f}" if abs(number) > 0.001 else f"{number:.3g}"


def write_page(page: Path, found: dict[str, Any]) -> None:
    """Replace what stands between `<!-- growth: PART -->` and `<!-- end -->`."""
    text = page.read_text(encoding="utf-8")
    sections = {name: table(found[name]) for name in PARTS if name in found} | {"machine": found["machine"]}
    for name, section in sections.items():
        begin = f"<!-- growth: {name} -->\n"
        before, marker, rest = text.partition(begin)
        if marker:
            text = f"{before}{begin}\n{section}\n\n<!-- end -->{rest.partition('<!-- end -->')[2]}"
    page.write_text(text, encoding="utf-8")


def saved(docs: Path) -> dict[str, Any]:
    numbers = docs / "img" / "growth.json"
    return dict(json.loads(numbers.read_text(encoding="utf-8"))) if numbers.exists() else {}


def save(docs: Path, found: dict[str, Any]) -> None:
    """The numbers, the plots and the tables; after each part, so that a run that is broken off keeps what it had."""
    (docs / "img").mkdir(parents=True, exist_ok=True)
    text = json.dumps(found, ensure_ascii=False, separators=(",", ":"))
    (docs / "img" / "growth.json").write_text(text + "\n", encoding="utf-8")
    draw(found, docs / "img")
    write_page(docs / "growth.md", found)


def machine() -> str:
    load = f"; load average at the start {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    version = lmdb.version(lib_version=1) if hasattr(lmdb, "version") else ()
    return (
        f"One run: {os.cpu_count()} cores, {platform.system()} {platform.release().split('-')[0]}, "
        f"Python {platform.python_version()}, py-lmdb {lmdb.__version__} (LMDB {'.'.join(map(str, version))}), "
        f"SQLite {sqlite3.sqlite_version}; seed {SEED}{load}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--largest", type=float, default=LARGEST, help="most keys; 1e5 is a short form, 1e7 the full")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts to measure")
    parser.add_argument("--folder", type=Path, help="where the stores lie meanwhile; a temporary folder if not given")
    parser.add_argument("--docs", type=Path, help="whose growth.md and img/ to rewrite; the full form writes docs/")
    parser.add_argument("--redraw", action="store_true", help="measure nothing: plots and tables from img/growth.json")
    asked = parser.parse_args()
    largest = int(asked.largest)
    docs: Path | None = asked.docs or (DOCS if largest >= LARGEST or asked.redraw else None)
    found = saved(docs) if docs else {}
    if asked.redraw:
        assert docs is not None
        save(docs, found)
        return
    found["machine"] = machine()
    print(found["machine"])
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        for name in asked.only:
            began = time.perf_counter()
            # Iteration goes over the stores that the part before it made.
            place_ = Path(folder) / ("keys" if name == "iteration" else name)
            place_.mkdir(exist_ok=True)
            # Those that start processes of their own have no need of one; of the others, each leaves its memory behind.
            here = name in ("iteration", "processes")
            found[name] = PARTS[name](place_, largest) if here else in_child(PARTS[name], place_, largest)
            if name != "keys":
                shutil.rmtree(place_)
            print(f"\n{name} ({time.perf_counter() - began:.0f} s)\n\n{table(found[name])}", flush=True)
            if docs:
                save(docs, found)


if __name__ == "__main__":
    main()
