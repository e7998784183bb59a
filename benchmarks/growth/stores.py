"""The measured stores: hutch's engines, and the raw libraries below them."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import lmdb
import ormsgpack

import hutch

LMDB = {
    "normal": {"sync": True, "metasync": False},
    "relaxed": {"sync": False, "metasync": False},
}

SQLITE = {"normal": "NORMAL", "relaxed": "OFF"}

ON_DISK = ("lmdb", "raw lmdb", "sqlite", "raw sqlite3")

IN_MEMORY = ("memory", "dict + decode")


class RawLmdb:
    """LMDB as in py-lmdb's documentation: one transaction per call."""

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
    """A plain table and one connection per thread, with hutch's journal mode and cache, so that only growth differs."""

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
    """A dict of encoded values: the upper limit of the memory engine's speed."""

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
    """Open the mapping to measure."""
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
