"""Time transactions and deadlines. Each function is a target, as those of yardsticks.py are.

Both sides of a transaction encode the same values by the same codec and flush as often.
"""

from __future__ import annotations

import contextlib
import itertools
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lmdb

import hutch
from hutch.codec.select import frame_codec_of

from .rounds import Rounds, in_turn
from .workload import fresh, key_names, shuffled

_KEYS = 10_000
_MAP_BYTES = 1 << 30
_COUNT = itertools.count()
_SPACES = ("checkpoints", "writes", "blobs")
#: Commits the items: of each namespace in turn, a key and a value.
_Commit = Callable[[list[tuple[str, str, Any]]], None]
# One flush per commit on each engine.
_HUTCH = {"lmdb": "lmdb://{}/hutch?durability=normal", "sqlite": "sqlite://{}/hutch.db?durability=strict"}
_encode = frame_codec_of(None).encode


@contextlib.contextmanager
def _hutch(engine: str, folder: Path) -> Iterator[_Commit]:
    with hutch.connect(_HUTCH[engine].format(folder)) as store:

        def commit(items: list[tuple[str, str, Any]]) -> None:
            with store.transaction() as tx:
                for space, key, value in items:
                    tx[space][key] = value

        yield commit


@contextlib.contextmanager
def _lmdb(folder: Path) -> Iterator[_Commit]:
    with lmdb.open(str(folder / "raw"), map_size=_MAP_BYTES, max_dbs=len(_SPACES), metasync=False) as env:
        tables = {space: env.open_db(space.encode()) for space in _SPACES}

        def commit(items: list[tuple[str, str, Any]]) -> None:
            with env.begin(write=True) as txn:
                for space, key, value in items:
                    txn.put(key.encode(), _encode(value), db=tables[space])

        yield commit


@contextlib.contextmanager
def _sqlite(folder: Path) -> Iterator[_Commit]:
    connection = sqlite3.connect(folder / "raw.db", isolation_level=None)
    try:
        connection.executescript("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL")
        for space in _SPACES:
            connection.execute(f"CREATE TABLE {space} (key TEXT PRIMARY KEY, value BLOB)")
        insert = {space: f"INSERT OR REPLACE INTO {space} VALUES (?, ?)" for space in _SPACES}

        def commit(items: list[tuple[str, str, Any]]) -> None:
            connection.execute("BEGIN IMMEDIATE")
            for space, key, value in items:
                connection.execute(insert[space], (key, _encode(value)))
            connection.execute("COMMIT")

        yield commit
    finally:
        connection.close()


def _side_by_side(ours: _Commit, theirs: _Commit, keys: int, spaces: int, rounds: int) -> Rounds:
    names = key_names(_KEYS)
    commits = max(1, 10 // keys)

    def run(commit: _Commit) -> Callable[[], None]:
        def work() -> None:
            for _ in range(commits):
                numbers = [next(_COUNT) for _ in range(keys)]
                commit([(_SPACES[n % spaces], names[n * 7 % _KEYS], fresh(n)) for n in numbers])

        return work

    return in_turn(run(ours), run(theirs), rounds)


def _transactions(engine: str, keys: int, spaces: int) -> Callable[[Path, int], Rounds]:
    raw = _lmdb if engine == "lmdb" else _sqlite

    def measure(folder: Path, rounds: int) -> Rounds:
        with _hutch(engine, folder) as ours, raw(folder) as theirs:
            return _side_by_side(ours, theirs, keys, spaces, rounds)

    return measure


lmdb_transaction_1 = _transactions("lmdb", 1, 1)
lmdb_transaction_10 = _transactions("lmdb", 10, 3)
lmdb_transaction_1000 = _transactions("lmdb", 1000, 3)
sqlite_transaction_1 = _transactions("sqlite", 1, 1)
sqlite_transaction_10 = _transactions("sqlite", 10, 3)
sqlite_transaction_1000 = _transactions("sqlite", 1000, 3)


def lmdb_step(folder: Path, rounds: int) -> Rounds:
    """Time the step of an agent: one write to each of three namespaces, in one commit."""
    with _hutch("lmdb", folder) as ours, _sqlite(folder) as theirs:
        return _side_by_side(ours, theirs, 3, 3, rounds)


def sqlite_step(folder: Path, rounds: int) -> Rounds:
    """Time the step of `lmdb_step` on sqlite."""
    with _hutch("sqlite", folder) as ours, _sqlite(folder) as theirs:
        return _side_by_side(ours, theirs, 3, 3, rounds)


# --- deadlines: with one beside without ---


def deadline_get(folder: Path, rounds: int) -> Rounds:
    """Time reads that reach LMDB, of values with a deadline."""
    keys = shuffled(key_names(_KEYS), 1000)
    with _two_namespaces(folder, "&cache_bytes=0") as (ours_ns, theirs_ns):

        def reading(ns: hutch.Namespace) -> Callable[[], None]:
            def work() -> None:
                for key in keys:
                    ns[key]

            return work

        return in_turn(reading(ours_ns), reading(theirs_ns), rounds)


def deadline_set(folder: Path, rounds: int) -> Rounds:
    """Time relaxed sets with a deadline."""
    keys = shuffled(key_names(_KEYS), 100)
    with _two_namespaces(folder, "") as (ours_ns, theirs_ns):

        def ours() -> None:
            for key in keys:
                ours_ns.set(key, fresh(next(_COUNT)), ttl_s=3600)

        def theirs() -> None:
            for key in keys:
                theirs_ns.set(key, fresh(next(_COUNT)))

        return in_turn(ours, theirs, rounds)


@contextlib.contextmanager
def _two_namespaces(folder: Path, options: str) -> Iterator[tuple[hutch.Namespace, hutch.Namespace]]:
    """Open two namespaces with the same items: in the first all have a deadline."""
    items = {key: fresh(next(_COUNT)) for key in key_names(_KEYS)}
    with (
        hutch.connect(f"lmdb://{folder}/hutch?durability=relaxed{options}") as store,
        store.open("expires") as expires,
        store.open("stays") as stays,
    ):
        expires.set_many(items, ttl_s=3600)
        stays.set_many(items)
        yield expires, stays
