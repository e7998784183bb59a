"""The SQLite engine: all namespaces in one file, in WAL mode, through the standard library's sqlite3.

Keys are stored as UTF-8, so that SQLite's order of bytes is the order of code points. The layout of the file is in
sqlite_file.py.
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterator, Mapping
from pathlib import Path
from sqlite3 import Connection
from typing import Any

from hutch import (
    ConfigError,
    CorruptValueError,
    EncodedStorage,
    Finding,
    Option,
    StoragePluginBase,
    StoreNotOpenError,
)

from .sqlite_check import check
from .sqlite_database import Database, registry
from .sqlite_file import SYNCHRONOUS, NoDataError

_GET = "SELECT value FROM entries WHERE ns = ? AND key = ?"
_EXISTS = "SELECT 1 FROM entries WHERE ns = ? AND key = ?"
_SET = (
    "INSERT INTO entries (ns, key, value) VALUES (?, ?, ?) ON CONFLICT (ns, key) DO UPDATE SET value = excluded.value"
)
_ADD = "INSERT INTO entries (ns, key, value) VALUES (?, ?, ?) ON CONFLICT (ns, key) DO NOTHING"
_REPLACE = "UPDATE entries SET value = ? WHERE ns = ? AND key = ? AND value = ?"
_REMOVE = "DELETE FROM entries WHERE ns = ? AND key = ?"
_REMOVE_EQUAL = "DELETE FROM entries WHERE ns = ? AND key = ? AND value = ?"
_REMOVE_ALL = "DELETE FROM entries WHERE ns = ?"
_RANGE = "SELECT {} FROM entries WHERE ns = ? AND key >= ? AND key < ? ORDER BY key {} LIMIT ?"

# Larger than every key: no byte of UTF-8 is 0xFF.
_AFTER_ALL_KEYS = b"\xff"
# The first chunk of a range is small: whoever takes one item (popitem) does not pay for a thousand.
_FIRST_CHUNK = 16
_LARGEST_CHUNK = 1000


class SqlitePlugin(StoragePluginBase):
    """Opens the namespaces of one SQLite file, which the first write makes, with its folders.

    A process that is killed loses nothing that was set, whatever `durability` is: that option says what a power
    cut, or a crash of the system, may take. Stores of one process share their connections to a file.

    Where several processes write without pause, prefer an SQLite of 3.51.3 or later (`sqlite3.sqlite_version`): all
    before have a very rare race between two checkpoints that can damage the file (sqlite.org/wal.html#walresetbug).
    """

    OPTIONS = {  # noqa: RUF012 - never changed
        "path": Option(Path, required=True, help="the file, for example /srv/app/state.db"),
        "durability": Option(
            str,
            default="normal",
            choices=tuple(SYNCHRONOUS),
            help="what a power cut may take. strict: nothing that was set, each write waits for the disk. "
            "normal: the latest writes, while the file stays whole. relaxed: it may damage the file",
        ),
        "wait_s": Option(
            float,
            default=10.0,
            minimum=0,
            maximum=86_400,
            help="how many seconds a call waits for other writers before StorageTimeoutError; 0 does not wait",
        ),
    }
    capabilities = frozenset({"ordered", "atomic-batch", "atomic-modify", "atomic-modify:host", "durable", "shared"})

    # Here for __del__, should __init__ fail.
    _database: Database | None = None

    def __init__(self, config: object = None) -> None:
        super().__init__(config)
        path: Path = self._storage_config["path"]
        if path.name == ":memory:":
            raise ConfigError(
                "the sqlite engine needs the path of a file, not ':memory:'; for data that lives in this process "
                "only, use memory://, or memory://NAME to share it between stores"
            )
        self._path = Path(os.path.realpath(path))

    def open(self, namespace: str) -> SqliteStorage:
        """Open `namespace`. Creates nothing; a file that is there is checked.

        Raises CorruptValueError if it is not a whole file of this engine and of a format known here, and
        StorageUnavailableError, StorageTimeoutError.
        """
        database = self._shared()
        database.check()
        return SqliteStorage(self, namespace, database)

    def namespaces(self) -> list[str]:
        try:
            return [name for (name,) in self._shared().rows("SELECT name FROM namespaces WHERE entries > 0")]
        except NoDataError:
            return []

    def drop(self, namespace: str) -> None:
        database = self._shared()
        number = database.number_of(namespace)
        if number is not None:
            database.change(_REMOVE_ALL, (number,))

    def check(self, fix: bool = False) -> list[Finding]:
        return check(self._shared(), fix)

    def close(self) -> None:
        with registry:
            database, self._database = self._database, None
        if database is not None:
            database.release()

    def __del__(self) -> None:
        self.close()

    def _shared(self) -> Database:
        options = self._storage_config
        with registry:
            database = Database.acquire(self._path, options["durability"], options["wait_s"])
            former, self._database = self._database, database
            if former is not None:
                former.release()
            return database


class SqliteStorage(EncodedStorage):
    """One namespace. Each write, a batch too, is one transaction; no reader waits for it."""

    # Here for __del__, should __init__ fail.
    _database: Database | None = None

    def __init__(self, plugin: SqlitePlugin, namespace: str, database: Database) -> None:
        super().__init__(plugin, namespace)
        self._path = database.path
        self._number: int | None = None
        self._database = database.retain()

    # --- the six verbs ---

    def read(self, key: str) -> bytes | None:
        number = self._find()
        if number is None:
            return None
        row = self._shared.row(_GET, (number, key.encode()))
        return None if row is None else row[0]

    def write(self, key: str, data: bytes) -> None:
        self._shared.change(_SET, (self._find_or_make(), key.encode(), data))

    def delete(self, key: str) -> bool:
        number = self._find()
        return number is not None and self._shared.change(_REMOVE, (number, key.encode())) > 0

    def len(self) -> int:
        number = self._find()
        return 0 if number is None else self._shared.row("SELECT entries FROM namespaces WHERE id = ?", (number,))[0]

    def keys(self) -> Iterator[str]:
        return self.key_range(None, None, False)

    def close(self) -> None:
        with registry:
            database, self._database = self._database, None
        if database is not None:
            database.release()

    def __del__(self) -> None:
        self.close()

    # --- what SQLite does better than the defaults ---

    def exists(self, key: str) -> bool:
        number = self._find()
        return number is not None and self._shared.row(_EXISTS, (number, key.encode())) is not None

    def read_many(self, keys: list[str]) -> dict[str, bytes]:
        number = self._find()
        if number is None:
            return {}

        def read_all(connection: Connection) -> dict[str, bytes]:
            connection.execute("BEGIN")  # one snapshot
            found = {}
            for key in keys:
                row = connection.execute(_GET, (number, key.encode())).fetchone()
                if row is not None:
                    found[key] = row[0]
            connection.execute("COMMIT")
            return found

        return self._shared.read(read_all)

    def write_many(self, items: Mapping[str, bytes]) -> None:
        number = self._find_or_make()
        self._shared.change_many(_SET, [(number, key.encode(), data) for key, data in items.items()])

    def delete_many(self, keys: list[str]) -> int:
        number = self._find()
        if number is None:
            return 0
        return self._shared.change_many(_REMOVE, [(number, key.encode()) for key in keys])

    def clear(self) -> None:
        number = self._find()
        if number is not None:
            self._shared.change(_REMOVE_ALL, (number,))

    def swap(self, key: str, old: bytes | None, new: bytes | None) -> bool:
        # Each is one statement, and that has the lock for writing before it looks at the old value.
        name = key.encode()
        if old is None:
            if new is None:
                return not self.exists(key)
            return self._shared.change(_ADD, (self._find_or_make(), name, new)) > 0
        number = self._find()
        if number is None:
            return False
        if new is None:
            return self._shared.change(_REMOVE_EQUAL, (number, name, old)) > 0
        return self._shared.change(_REPLACE, (new, number, name, old)) > 0

    def read_range(self, start: str | None, stop: str | None, reverse: bool) -> Iterator[tuple[str, bytes]]:
        for key, data in self._range("key, value", start, stop, reverse):
            yield self._text(key), data

    def key_range(self, start: str | None, stop: str | None, reverse: bool) -> Iterator[str]:
        for (key,) in self._range("key", start, stop, reverse):
            yield self._text(key)

    @property
    def lock_scope(self) -> Hashable:
        return ("sqlite", self._path, self.namespace)

    def _range(self, columns: str, start: str | None, stop: str | None, reverse: bool) -> Iterator[Any]:
        number = self._find()
        if number is None:
            return
        sql = _RANGE.format(columns, "DESC" if reverse else "ASC")
        # A bound need not be a possible key: surrogates too have their place in the order of code points.
        low = b"" if start is None else start.encode("utf-8", "surrogatepass")
        high = _AFTER_ALL_KEYS if stop is None else stop.encode("utf-8", "surrogatepass")
        limit = _FIRST_CHUNK
        while True:
            rows, complete = self._shared.chunk(sql, (number, low, high), limit)
            yield from rows
            if complete:
                return
            last: bytes = rows[-1][0]
            if reverse:
                high = last
            else:
                low = last + b"\0"
            limit = min(limit * 4, _LARGEST_CHUNK)

    def _text(self, key: bytes) -> str:
        try:
            return key.decode()
        except UnicodeDecodeError as error:
            raise CorruptValueError(
                f"{self._path} holds a key in namespace {self.namespace!r} that is not UTF-8, {key[:40]!r}: another "
                "program wrote it"
            ) from error

    # --- the namespace in the file ---

    @property
    def _shared(self) -> Database:
        if self._database is None:
            raise StoreNotOpenError(f"namespace {self.namespace!r} is closed; open it again to use it")
        return self._database

    def _find(self) -> int | None:
        """The id of the namespace; None as long as nobody wrote to it."""
        if self._number is None:
            self._number = self._shared.number_of(self.namespace)
        return self._number

    def _find_or_make(self) -> int:
        number = self._find()
        if number is None:
            # A transaction of its own: a namespace without entries is one that does not exist.
            self._shared.change("INSERT INTO namespaces (name) VALUES (?) ON CONFLICT DO NOTHING", (self.namespace,))
            number = self._find()
            assert number is not None, "no row of namespaces is ever deleted"
        return number
