"""Engines with one fault each that only a kill reveals, to test the kill tests themselves. `Sound` has none."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

from hutch import EncodedStorage, Option, StoragePluginBase, StorageTimeoutError, StorageUnavailableError

_SCHEMA = """
PRAGMA journal_mode = WAL;
PRAGMA synchronous = OFF;
CREATE TABLE IF NOT EXISTS items (ns TEXT, key TEXT, value BLOB, PRIMARY KEY (ns, key)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS counts (ns TEXT PRIMARY KEY, n INTEGER);
"""


class HolesPlugin(StoragePluginBase):
    OPTIONS: ClassVar[Mapping[str, Option]] = {
        "path": Option(Path, required=True, help="the folder that holds the store"),
        "fault": Option(str, default="Sound", help="the class of storage to use"),
    }
    capabilities = frozenset({"atomic-batch", "atomic-modify", "atomic-modify:host", "durable", "shared"})

    def __init__(self, config: object = None) -> None:
        super().__init__(config)
        self.folder: Path = self._storage_config["path"]
        self.folder.mkdir(parents=True, exist_ok=True)
        self._storage: type[Sound] = globals()[self._storage_config["fault"]]
        self.lock = threading.RLock()
        self.db = sqlite3.connect(self.folder / "db", isolation_level=None, check_same_thread=False, timeout=60)
        while True:
            try:
                self.db.executescript(_SCHEMA)
                break
            except sqlite3.OperationalError:  # the timeout does not hold for a change of the journal's mode
                time.sleep(0.001)
        self.turn = 0

    def open(self, namespace: str) -> Sound:
        return self._storage(self, namespace)

    def namespaces(self) -> list[str]:
        with self.lock:
            return [name for (name,) in self.db.execute("SELECT DISTINCT ns FROM items")]

    def close(self) -> None:
        with self.lock:
            if self.db.in_transaction:
                self.db.execute("COMMIT")
            self.db.close()


class Sound(EncodedStorage):
    def __init__(self, plugin: HolesPlugin, namespace: str) -> None:
        super().__init__(plugin, namespace)
        self.plugin = plugin
        self.db = plugin.db

    @contextmanager
    def transaction(self) -> Iterator[None]:
        with self.plugin.lock:
            self.db.execute("BEGIN IMMEDIATE")
            yield
            self.db.execute("COMMIT")

    def put(self, key: str, data: bytes) -> None:
        self.db.execute("INSERT OR REPLACE INTO items VALUES (?, ?, ?)", (self.namespace, key, data))

    def drop(self, key: str) -> bool:
        return self.db.execute("DELETE FROM items WHERE ns = ? AND key = ?", (self.namespace, key)).rowcount > 0

    def read(self, key: str) -> bytes | None:
        with self.plugin.lock:
            row = self.db.execute("SELECT value FROM items WHERE ns = ? AND key = ?", (self.namespace, key)).fetchone()
        return None if row is None else row[0]

    def write(self, key: str, data: bytes) -> None:
        with self.transaction():
            self.put(key, data)

    def delete(self, key: str) -> bool:
        with self.transaction():
            return self.drop(key)

    def write_many(self, items: Mapping[str, bytes]) -> None:
        with self.transaction():
            for key, data in items.items():
                self.put(key, data)

    def delete_many(self, keys: list[str]) -> int:
        with self.transaction():
            return sum(self.drop(key) for key in keys)

    def compare_and_write(self, key: str, old: bytes | None, new: bytes | None) -> bool:
        with self.transaction():
            if self.read(key) != old:
                return False
            if new is None:
                self.drop(key)
            else:
                self.put(key, new)
            return True

    def len(self) -> int:
        with self.plugin.lock:
            count: int = self.db.execute("SELECT count(*) FROM items WHERE ns = ?", (self.namespace,)).fetchone()[0]
        return count

    def keys(self) -> Iterator[str]:
        with self.plugin.lock:
            rows = self.db.execute("SELECT key FROM items WHERE ns = ?", (self.namespace,)).fetchall()
        return (key for (key,) in rows)

    def close(self) -> None:
        pass


class AcknowledgesBeforeItCommits(Sound):
    @contextmanager
    def transaction(self) -> Iterator[None]:
        with self.plugin.lock:
            if not self.db.in_transaction:
                self.db.execute("BEGIN IMMEDIATE")
            yield
            self.plugin.turn += 1
            if self.plugin.turn % 5 == 0:
                self.db.execute("COMMIT")


class CountsOutsideTheTransaction(Sound):
    @contextmanager
    def transaction(self) -> Iterator[None]:
        with self.plugin.lock:
            before = super().len()
            with super().transaction():
                yield
            added = super().len() - before
            self.db.execute(
                "INSERT INTO counts VALUES (?, ?) ON CONFLICT (ns) DO UPDATE SET n = n + excluded.n",
                (self.namespace, added),
            )

    def len(self) -> int:
        with self.plugin.lock:
            row = self.db.execute("SELECT n FROM counts WHERE ns = ?", (self.namespace,)).fetchone()
        return 0 if row is None else row[0]


class TearsBatches(Sound):
    def write_many(self, items: Mapping[str, bytes]) -> None:
        for key, data in items.items():
            self.write(key, data)


class TearsClears(Sound):
    def delete_many(self, keys: list[str]) -> int:
        return sum(self.delete(key) for key in keys)


class WritesInPlace(Sound):
    def write(self, key: str, data: bytes) -> None:
        super().write(key, data[: len(data) // 2])
        super().write(key, data)


class ReadsFromACacheOfItsOwn(Sound):
    def __init__(self, plugin: HolesPlugin, namespace: str) -> None:
        super().__init__(plugin, namespace)
        self.cached: dict[str, bytes] = {}

    def read(self, key: str) -> bytes | None:
        if key not in self.cached and (data := super().read(key)) is not None:
            self.cached[key] = data
        return self.cached.get(key)

    def put(self, key: str, data: bytes) -> None:
        self.cached.pop(key, None)
        super().put(key, data)

    def drop(self, key: str) -> bool:
        self.cached.pop(key, None)
        return super().drop(key)


class SwapsWithoutALock(Sound):
    def compare_and_write(self, key: str, old: bytes | None, new: bytes | None) -> bool:
        if self.read(key) != old:
            return False
        if new is None:
            self.delete(key)
        else:
            self.write(key, new)
        return True


class LeavesItsLockBehind(Sound):
    """The lock is a file, which stays when its creator was killed."""

    @contextmanager
    def transaction(self) -> Iterator[None]:
        file = self.plugin.folder / "lock"
        with self.plugin.lock:
            deadline = time.monotonic() + 8
            while True:
                try:
                    os.close(os.open(file, os.O_CREAT | os.O_EXCL))
                    break
                except FileExistsError:
                    if time.monotonic() > deadline:
                        raise StorageTimeoutError(f"{file} is locked by a process that has ended") from None
                    time.sleep(0.0005)
            with super().transaction():
                yield
            file.unlink()


class RefusesWhatWasNotClosed(Sound):
    def __init__(self, plugin: HolesPlugin, namespace: str) -> None:
        super().__init__(plugin, namespace)
        self.mark = plugin.folder / f"in use.{namespace}"
        try:
            self.mark.touch(exist_ok=False)
        except FileExistsError as error:
            raise StorageUnavailableError(f"{namespace!r} was not closed; repair it first") from error

    def close(self) -> None:
        self.mark.unlink()
