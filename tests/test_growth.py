"""Test what must not grow with a store, counted, not timed; benchmarks/growth has the times.

These are the memory of an iteration, the work of `len` and `open`, and a file whose contents only change.
"""

from __future__ import annotations

import gc
import itertools
import random
import re
import sqlite3
import sys
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import hutch

ENGINES = ("memory", "lmdb", "sqlite")
CHUNKED = ("lmdb", "sqlite")
MIB = 1 << 20
WALKS: dict[str, Callable[[hutch.Namespace], Iterable[Any]]] = {
    "iter": iter,
    "keys": lambda ns: ns.keys(),
    "values": lambda ns: ns.values(),
    "items": lambda ns: ns.items(),
    "scan": lambda ns: ns.scan(),
    "scan with a prefix, backwards": lambda ns: ns.scan(prefix="key", reverse=True),
    "scan_keys": lambda ns: ns.scan_keys(),
}


def url(engine: str, folder: Path) -> str:
    return {
        "memory": "memory://growth",
        "lmdb": f"lmdb://{folder}/lmdb?durability=relaxed",
        "sqlite": f"sqlite://{folder}/sqlite/kv.db?durability=relaxed",
        "shelf": f"shelf://{folder}/shelf",
    }[engine]


@contextmanager
def opened(engine: str, folder: Path, namespace: str = "core") -> Iterator[hutch.Namespace]:
    with hutch.connect(url(engine, folder)) as store, store.open(namespace) as handle:
        try:
            yield handle
        finally:
            if engine == "memory":
                handle.clear()


def fill(handle: hutch.Namespace, count: int, value: object = b"v" * 100) -> None:
    handle.update({f"key {number:07}": value for number in range(count)})


def bytes_on_disk(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file() and file.name != "lock.mdb")


def peak_of(work: Callable[[], object]) -> int:
    """Return the peak bytes of Python objects during `work`, beyond those before it."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        work()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


def calls_of(work: Callable[[], object]) -> list[str]:
    """Return the names of all functions, of Python and of C, that `work` calls, in order."""
    names: list[str] = []

    def note(frame: Any, event: str, function: Any) -> None:
        if event == "call":
            names.append(frame.f_code.co_qualname)
        elif event == "c_call":
            names.append(function.__qualname__)

    before = sys.getprofile()
    # What the collector finds to do in between is no part of it.
    gc.collect()
    gc.disable()
    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(before)
        gc.enable()
    return names[:-1]  # the second setprofile


def exhaust(iterable: Iterable[object]) -> int:
    return sum(1 for _ in iterable)


# --- memory ---


@pytest.mark.parametrize("walk", [walk for walk in WALKS if walk not in ("iter", "keys")])
@pytest.mark.parametrize("engine", CHUNKED)
def test_an_iteration_takes_the_same_memory_however_many_keys_there_are(engine: str, walk: str, tmp_path: Path) -> None:
    peaks = []
    for count in (5_000, 20_000):
        with opened(engine, tmp_path / str(count)) as handle:
            fill(handle, count)
            exhaust(WALKS[walk](handle))
            peaks.append(peak_of(lambda: exhaust(WALKS[walk](handle)) == count))  # noqa: B023 - run at once
    few, many = peaks
    print(f"peak: {few:,} bytes at 5,000 keys, {many:,} at 20,000")
    assert many < few * 1.25 + 65_536
    assert many < MIB


@pytest.mark.parametrize("walk", ["iter", "keys"])
@pytest.mark.parametrize("engine", CHUNKED)
def test_an_iteration_over_keys_holds_the_keys_and_no_value(engine: str, walk: str, tmp_path: Path) -> None:
    count = 20_000
    with opened(engine, tmp_path) as handle:
        fill(handle, count, b"v" * 1000)
        exhaust(WALKS[walk](handle))
        peak = peak_of(lambda: exhaust(WALKS[walk](handle)))
    print(f"{peak / count:.1f} bytes per key")
    # A key, its place in a list and in a set; the values would be 20 MB.
    assert peak < count * 300 + MIB


@pytest.mark.parametrize("engine", CHUNKED)
def test_an_iteration_over_large_values_holds_a_few_of_them_at_a_time(engine: str, tmp_path: Path) -> None:
    with opened(engine, tmp_path) as handle:
        fill(handle, 400, bytes(65_536))
        peak = peak_of(lambda: exhaust(handle.items()))
    print(f"peak: {peak:,} bytes of {400 * 65_536:,}")
    assert peak < 3 * MIB


def test_an_iteration_over_memory_takes_references_to_keys_and_values_and_no_copy_of_a_value(tmp_path: Path) -> None:
    count = 10_000
    with opened("memory", tmp_path) as handle:
        fill(handle, count, b"v" * 1000)
        for name, walk in WALKS.items():
            peak = peak_of(lambda: exhaust(walk(handle)))  # noqa: B023 - run at once
            print(f"{name}: {peak / count:.1f} bytes per key")
            # A list of pairs, or two beside each other; and of the values a chunk that is decoded at a time.
            assert peak < count * 200 + MIB


# --- work ---


@pytest.fixture
def sqlite_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let SQLite call a function at each step of its machine, so that `calls_of` sees what a statement takes."""
    factory = hutch.load_plugin("sqlite", {"path": str(tmp_path / "unused.db")})
    factory.close()
    file = sys.modules[f"{type(factory).__module__.rpartition('.')[0]}.file"].DatabaseFile
    connect = file.connect

    def connect_and_count(self: Any, connection: sqlite3.Connection, *arguments: Any, **options: Any) -> None:
        connect(self, connection, *arguments, **options)
        connection.set_progress_handler(step_of_sqlite, 1)

    monkeypatch.setattr(file, "connect", connect_and_count)


def step_of_sqlite() -> int:
    return 0  # go on


@pytest.mark.usefixtures("sqlite_steps")
@pytest.mark.parametrize("engine", [*ENGINES, "shelf"])
def test_len_takes_the_same_calls_and_steps_and_makes_no_copy_however_many_keys_there_are(
    engine: str, tmp_path: Path
) -> None:
    calls = []
    for count in (10, 300 if engine == "shelf" else 20_000):
        with opened(engine, tmp_path) as handle:
            fill(handle, count)
            assert len(handle) == count
            calls.append(calls_of(lambda: len(handle)))
            assert peak_of(lambda: len(handle)) < 4096
            if engine == "sqlite":  # what counting the keys would take
                assert calls_of(lambda: exhaust(handle)).count("step_of_sqlite") > count
    print(f"{len(calls[0])} calls")
    assert calls[0] == calls[1]
    assert engine != "sqlite" or "step_of_sqlite" in calls[0]


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="what is mapped of a file is seen in Linux's /proc")
def test_len_reads_a_few_pages_of_an_lmdb_file_however_many_there_are(tmp_path: Path) -> None:
    with opened("lmdb", tmp_path) as handle:
        fill(handle, 100_000)
    # Opened anew, so that no page is mapped yet.
    with opened("lmdb", tmp_path) as handle:
        assert len(handle) == 100_000
        after_len = mapped_bytes("data.mdb")
        assert exhaust(handle) == 100_000
        after_all = mapped_bytes("data.mdb")
    print(f"pages touched: {after_len:,} bytes by len, {after_all:,} by an iteration")
    # The kernel maps up to 64 KiB around each page that is asked for.
    assert 0 < after_len < MIB
    assert after_all > 12 * MIB


def mapped_bytes(name: str) -> int:
    """Return how much of a mapped file this process has touched."""
    smaps = Path("/proc/self/smaps").read_text(encoding="utf-8")
    found = re.findall(rf"/{re.escape(name)}\n(?:[^\n]*\n)*?Rss: +(\d+) kB", smaps)
    return sum(map(int, found)) * 1024


@pytest.mark.usefixtures("sqlite_steps")
@pytest.mark.parametrize("engine", ENGINES)
def test_opening_a_namespace_and_reading_it_is_the_same_work_beside_many_others(engine: str, tmp_path: Path) -> None:
    def visit() -> None:
        with store.open("ours") as handle:
            assert handle["k"] == 1

    with hutch.connect(url(engine, tmp_path)) as store:
        calls = []
        for others in (1, 300):
            for number in range(others):
                with store.open(f"other {number}") as handle:
                    handle["k"] = 0
            with store.open("ours") as handle:
                handle["k"] = 1
            visit()
            calls.append(calls_of(visit))
        assert len(store.namespaces()) == 301
        for name in store.namespaces():
            store.drop(name)
    assert calls[0] == calls[1]


# --- files ---


@pytest.mark.parametrize("engine", CHUNKED)
def test_iterations_left_open_while_everything_is_overwritten_keep_no_old_pages(engine: str, tmp_path: Path) -> None:
    with opened(engine, tmp_path) as handle:
        fill(handle, 1000)
        for number in range(1000):  # to the size that a file of single writes has
            handle[f"key {number:07}"] = b"w" * 100
        before = bytes_on_disk(tmp_path)
        walks = {name: iter(walk(handle)) for name, walk in WALKS.items()}
        for walk in walks.values():
            next(walk)
        for number in range(20_000):
            handle[f"key {number % 1000:07}"] = b"%0100d" % number
        after = bytes_on_disk(tmp_path)
        for name, walk in walks.items():
            assert exhaust(walk) == 999, name
    print(f"{before:,} bytes before, {after:,} after 20,000 overwrites")
    # A log of SQLite's grows to 1,000 pages and starts again. One old snapshot held would be 40 MiB and more.
    assert after < before + 6 * MIB


@pytest.mark.parametrize("engine", CHUNKED)
def test_a_namespace_dropped_and_filled_again_takes_the_room_that_it_left(engine: str, tmp_path: Path) -> None:
    sizes = []
    for _ in range(8):
        with opened(engine, tmp_path, "again") as handle:
            fill(handle, 5000)
        sizes.append(bytes_on_disk(tmp_path))
        with hutch.connect(url(engine, tmp_path)) as store:
            store.drop("again")
            assert store.namespaces() == []
    print(f"file after each filling: {sizes}")
    # LMDB needs the room twice: what a transaction frees, only later ones use.
    assert sizes[-1] <= max(sizes[:3]) * 1.1
    assert sizes[-1] < sizes[0] * 2.5


@pytest.mark.parametrize("engine", CHUNKED)
def test_a_large_value_written_again_and_again_takes_the_room_that_it_left(engine: str, tmp_path: Path) -> None:
    size = 4 * MIB
    chance = random.Random(20261121)
    with opened(engine, tmp_path) as handle:
        fill(handle, 1000)
        for turn in range(12):
            handle["large"] = chance.randbytes(size)
            for number in range(100):  # small ones in between, which take single pages
                handle[f"key {chance.randrange(1000):07}"] = b"%0100d" % (turn * 100 + number)
        assert len(handle["large"]) == size
    after = bytes_on_disk(tmp_path)
    print(f"{after:,} bytes for a value of {size:,}")
    assert after < 4.5 * size


def test_the_measures_see_what_they_look_for() -> None:
    assert peak_of(lambda: list(range(10_000, 20_000))) > 300_000
    assert calls_of(lambda: [abs(number) for number in range(3)]).count("abs") == 3
    assert exhaust(itertools.repeat(None, 5)) == 5
