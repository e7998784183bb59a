"""Time opening a store: again and again in one process, and by many processes at once.

`HUTCH_STORM=200` starts 200 processes in place of 40.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import hutch

from .rounds import Rounds, in_turn
from .workload import VALUE

_TIMES = 20
_PROCESSES = int(os.environ.get("HUTCH_STORM", "40"))


def open_warm(folder: Path, rounds: int) -> Rounds:
    """Time opening, one read and closing beside lmdbm, which is a dict on py-lmdb."""
    opened = import_module("lmdbm").Lmdb.open
    place = str(folder / "lmdbm")
    with opened(place, "c") as database:
        database[b"key"] = b"value"

    def theirs() -> None:
        for _ in range(_TIMES):
            with opened(place, "c") as database:
                database[b"key"]

    return in_turn(_opening(f"lmdb://{folder}/hutch"), theirs, rounds)


def open_warm_sqlite(folder: Path, rounds: int) -> Rounds:
    """Time opening, one read and closing beside sqlitedict."""
    opened = import_module("sqlitedict").SqliteDict
    place = str(folder / "sqlitedict")
    with opened(place, autocommit=True) as database:
        database["key"] = VALUE

    def theirs() -> None:
        for _ in range(_TIMES):
            with opened(place, autocommit=True) as database:
                database["key"]

    return in_turn(_opening(f"sqlite://{folder}/hutch.db"), theirs, rounds)


def _opening(url: str) -> Callable[[], None]:
    with hutch.connect(url) as store, store.open("core") as core:
        core["key"] = VALUE

    def opening() -> None:
        for _ in range(_TIMES):
            with hutch.connect(url) as store, store.open("core") as core:
                core["key"]

    return opening


# --- many processes at once ---

_HUTCH = """\
import hutch
with hutch.connect(sys.argv[1]) as store, store.open("core") as core:
    core[sys.argv[2]] = {"number": 1}
"""
_DISKCACHE = """\
import diskcache
with diskcache.Cache(sys.argv[1]) as cache:
    cache[sys.argv[2]] = {"number": 1}
"""
_TIMED = "import sys, time\nbegan = time.perf_counter()\n{}print(time.perf_counter() - began)"


def storm_lmdb(folder: Path, rounds: int) -> Rounds:
    return _storm(folder, rounds, f"lmdb://{folder}/hutch/store", is_filled=False)


def storm_lmdb_filled(folder: Path, rounds: int) -> Rounds:
    return _storm(folder, rounds, f"lmdb://{folder}/hutch/store", is_filled=True)


def storm_sqlite(folder: Path, rounds: int) -> Rounds:
    return _storm(folder, rounds, f"sqlite://{folder}/hutch/store.db", is_filled=False)


def storm_sqlite_filled(folder: Path, rounds: int) -> Rounds:
    return _storm(folder, rounds, f"sqlite://{folder}/hutch/store.db", is_filled=True)


def _storm(folder: Path, rounds: int, url: str, *, is_filled: bool) -> Rounds:
    """Return the median of each process's own time: imports, opening, one write and closing. None of them may fail."""

    def running(code: str, place: str, parent: Path) -> Callable[[], float]:
        def run() -> float:
            if not is_filled:
                shutil.rmtree(parent, ignore_errors=True)
            parent.mkdir(exist_ok=True)
            return _median_of_processes(code, place)

        return run

    cache = folder / "diskcache"
    ours, theirs = running(_HUTCH, url, folder / "hutch"), running(_DISKCACHE, str(cache), cache)
    if is_filled:
        ours()
        theirs()
    return [(ours(), theirs()) for _ in range(rounds)]


def _median_of_processes(code: str, place: str) -> float:
    # With compiled modules, as in any second start.
    unwanted = ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE")
    environment = {key: value for key, value in os.environ.items() if key not in unwanted}
    command = [sys.executable, "-c", _TIMED.format(code), place]
    started = [
        subprocess.Popen(
            [*command, str(number)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        for number in range(_PROCESSES)
    ]
    outputs, errors = zip(*(process.communicate() for process in started), strict=True)
    if failed := [error for process, error in zip(started, errors, strict=True) if process.returncode]:
        raise SystemExit(f"{len(failed)} of {_PROCESSES} processes failed at {place}: {failed[0][-500:]}")
    return statistics.median(map(float, outputs))
