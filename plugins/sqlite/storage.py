"""The SQLite engine: all namespaces in one file, in WAL mode, through the standard library's sqlite3.

Keys are stored as UTF-8, so that SQLite's order of bytes is the order of code points. The layout of the file is in
file.py.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, repeat
from pathlib import Path
from sqlite3 import Connection
from typing import Any, NoReturn

from hutch import (
    ConfigError,
    CorruptValueError,
    EncodedStorage,
    Finding,
    Option,
    StoragePluginBase,
    StoreNotOpenError,
)
from hutch.limits import check_key, legible

from .database import Database, change, leave_all
from .errors import is_from_sqlite
from .file import SYNCHRONOUS, NoDataError
from .integrity import check

# A key is bound as text and made a blob by SQLite: to bind bytes, Python 3.11 first asks them for an adapter, in vain,
# which costs a tenth of a read. (Values are bound as bytearrays, which it does not ask.)
_GET = "SELECT value FROM entries WHERE ns = ? AND key = CAST(? AS BLOB)"
_GET_SOME = "SELECT key, value FROM entries WHERE ns = ? AND key IN ({})"
_EXISTS = "SELECT 1 FROM entries WHERE ns = ? AND key = CAST(? AS BLOB)"
_INSERT = "INSERT INTO entries (ns, key, value) "
_ROW = "VALUES (?, CAST(? AS BLOB), ?) "
_OR_REPLACE = "ON CONFLICT (ns, key) DO UPDATE SET value = excluded.value"
_SET = _INSERT + _ROW + _OR_REPLACE
_ADD = _INSERT + _ROW + "ON CONFLICT (ns, key) DO NOTHING"
_REPLACE = "UPDATE entries SET value = ? WHERE ns = ? AND key = CAST(? AS BLOB) AND value = ?"
_REMOVE = "DELETE FROM entries WHERE ns = ? AND key = CAST(? AS BLOB)"
_REMOVE_EQUAL = _REMOVE + " AND value = ?"
_REMOVE_ALL = "DELETE FROM entries WHERE ns = ?"
_RANGE = "SELECT {} FROM entries WHERE ns = ? AND key >= ? AND key < ? ORDER BY key {} LIMIT ?"

# So many keys of a batch go into one statement: to run one costs as much as to write half a row.
_TOGETHER = 64
# `WHERE true` tells SQLite that the `ON` after it is no part of a join.
_ROWS = "SELECT ?, CAST(column1 AS BLOB), column2 FROM (VALUES {}) WHERE true "
_SET_TOGETHER = _INSERT + _ROWS.format(", ".join(["(?, ?)"] * _TOGETHER)) + _OR_REPLACE

# Values shorter than that are copied in less time than an adapter takes to be not found.
_COPIED_BYTES = 4096

# Of decoding what is no key: other bytes, or no bytes at all, since one bit of a file makes a text, or NULL, of them.
_NOT_A_KEY = (UnicodeDecodeError, AttributeError)
# Larger than every key: no byte of UTF-8 is 0xFF.
_AFTER_ALL_KEYS = b"\xff"
# The first chunk of a range is small: whoever takes one item (popitem) does not pay for hundreds.
_FIRST_CHUNK = 16
# More values at once wake the garbage collector, and are slower to decode than fewer are to fetch.
_LARGEST_CHUNK = 256


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
            default=60.0,
            minimum=0,
            maximum=86_400,
            help="how many seconds a call waits for other writers, threads and processes, before StorageTimeoutError; "
            "0 does not wait",
        ),
        "mmap_bytes": Option(
            int,
            default=0,
            minimum=0,
            help="how much of the file is mapped into memory: a third faster where it is much larger than the cache of "
            "64 MiB, but another program that cuts the file short then ends this process (SIGBUS)",
        ),
    }
    capabilities = frozenset({"ordered", "atomic-batch", "atomic-modify", "atomic-modify:host", "durable", "shared"})

    # Here for __del__, should __init__ fail.
    _database: Database | None = None

    def __init__(self, config: object = None) -> None:
        super().__init__(config)
        # Known to the databases that this factory uses, in its place: it must not be kept alive by them.
        self._user = object()
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
        leave_all(self._user)
        self._database = None

    def __del__(self) -> None:
        if hasattr(self, "_user"):
            leave_all(self._user, 0)

    def _shared(self) -> Database:
        options = self._storage_config
        database = Database.join(
            self, self._user, self._path, options["durability"], options["wait_s"], options["mmap_bytes"]
        )
        former, self._database = self._database, database
        if former is not None and former is not database:
            former.leave(self._user)
        return database


class SqliteStorage(EncodedStorage):
    """One namespace. Each write, a batch too, is one transaction; no reader waits for it."""

    # Here for __del__, should __init__ fail.
    _database: Database | None = None

    def __init__(self, plugin: SqlitePlugin, namespace: str, database: Database) -> None:
        super().__init__(plugin, namespace)
        self._path = database.path
        self._number: int | None = None
        self._user = object()
        # Of `Database`, for the short way of `_row`.
        self._idle, self._trim = database.readers.idle, database.readers.trim
        # The same for writes; replaced when this is closed.
        self._run_write: Callable[..., int] = database.write
        # In this order: whatever a signal handler raises, `close` knows what to leave.
        self._database = database
        database.add_user(self, self._user)

    # --- the six verbs ---

    def read(self, key: str) -> bytes | None:
        row = self._row(_GET, key)
        return None if row is None else row[0]

    def write(self, key: str, data: bytes) -> None:
        number = self._number or self._find_or_make()
        self._run_write(change, _SET, (number, key, bytearray(data) if len(data) < _COPIED_BYTES else data))

    def delete(self, key: str) -> bool:
        number = self._find()
        return number is not None and self._shared.change(_REMOVE, (number, key)) > 0

    def len(self) -> int:
        number = self._find()
        if number is None:
            return 0
        row = self._shared.row("SELECT entries FROM namespaces WHERE id = ?", (number,))
        if row is None or type(row[0]) is not int:
            raise CorruptValueError(f"{self._path} is damaged: it has no count for namespace {self.namespace!r}")
        count: int = row[0]
        return count

    def keys(self) -> Iterator[str]:
        return self.key_range(None, None, False)

    def close(self) -> None:
        self._close(None)

    def __del__(self) -> None:
        self._close(0)

    def _close(self, wait_s: float | None) -> None:
        database = self._database
        if database is not None:
            self._idle = []
            self._run_write = partial(_refuse, self.namespace)
            database.leave(self._user, wait_s)
            self._database = None

    # --- what SQLite does better than the defaults ---

    def exists(self, key: str) -> bool:
        return self._row(_EXISTS, key) is not None

    def read_many(self, keys: list[str]) -> dict[str, bytes]:
        number = self._find()
        if number is None:
            return {}

        found = self._shared.read(_read_all, number, keys)
        return {key: found[name] for key in keys if (name := key.encode()) in found}

    def write_many(self, items: Mapping[str, bytes]) -> None:
        self._shared.write(_write_all, self._find_or_make(), items)

    def delete_many(self, keys: list[str]) -> int:
        number = self._find()
        if number is None:
            return 0
        return self._shared.change_many(_REMOVE, [(number, key) for key in keys])

    def clear(self) -> None:
        number = self._find()
        if number is not None:
            self._shared.change(_REMOVE_ALL, (number,))

    def swap(self, key: str, old: bytes | None, new: bytes | None) -> bool:
        # Each is one statement, and that has the lock for writing before it looks at the old value.
        if old is None:
            if new is None:
                return not self.exists(key)
            return self._shared.change(_ADD, (self._find_or_make(), key, new)) > 0
        number = self._find()
        if number is None:
            return False
        if new is None:
            return self._shared.change(_REMOVE_EQUAL, (number, key, old)) > 0
        return self._shared.change(_REPLACE, (new, number, key, old)) > 0

    def read_range(self, start: str | None, stop: str | None, reverse: bool) -> Iterator[tuple[str, bytes]]:
        for keys, frames in self.read_chunks(start, stop, reverse):
            yield from zip(keys, frames, strict=True)

    def read_chunks(
        self, start: str | None, stop: str | None, reverse: bool
    ) -> Iterator[tuple[Sequence[str], Sequence[bytes]]]:
        for rows in self._range("key, value", start, stop, reverse):
            try:
                keys = [name.decode() for name, _ in rows]
            except _NOT_A_KEY:
                # What comes before the damaged key is given all the same.
                for name, data in rows:
                    yield [self._text(name)], [data]
            else:
                yield keys, [data for _, data in rows]

    def key_range(self, start: str | None, stop: str | None, reverse: bool) -> Iterator[str]:
        return chain.from_iterable(map(self._keys, self._range("key, x''", start, stop, reverse)))

    @property
    def lock_scope(self) -> Hashable:
        return ("sqlite", self._path, self.namespace)

    # --- inside ---

    def _keys(self, rows: list[Any]) -> Iterable[str]:
        try:
            return [name.decode() for name, _ in rows]
        except _NOT_A_KEY:
            return (self._text(name) for name, _ in rows)

    def _row(self, sql: str, key: str) -> Any:
        """The row that `sql` finds for `key`, or None: what `Database.row` does, by the shortest way."""
        if type(key) is not str:
            key = check_key(key)  # SQLite would take 5 for "5"
        number = self._find() if self._number is None else self._number
        if number is None:
            return None
        parameters = (number, key)
        idle = self._idle
        try:
            reader = idle.pop()
        except IndexError:
            return self._shared.row(sql, parameters)
        try:
            row = reader.execute(sql, parameters).fetchone()
        except BaseException as error:
            # As in `Readers.run`.
            reader.close()
            if not is_from_sqlite(error):
                raise
        else:
            idle.append(reader)
            if self._idle is not idle:
                self._trim()  # closed meanwhile
            return row
        # Perhaps only busy: the long way waits, or says what is wrong.
        return self._shared.row(sql, parameters)

    def _range(self, columns: str, start: str | None, stop: str | None, reverse: bool) -> Iterator[list[Any]]:
        """The rows, as many at a time as are read in one transaction; at least one, each of two columns."""
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
            if rows:
                yield rows
            if complete:
                return
            last: bytes = rows[-1][0]
            if reverse:
                high = last
            else:
                low = last + b"\0"
            limit = min(limit * 4, _LARGEST_CHUNK)

    def _text(self, name: bytes) -> str:
        try:
            return name.decode()
        except _NOT_A_KEY as error:
            shown = legible(name) if isinstance(name, bytes) else name
            raise CorruptValueError(
                f"{self._path} holds a key in namespace {self.namespace!r} that is not bytes of UTF-8, {shown!r}: "
                "another program wrote it, or it is damaged"
            ) from error

    # --- the namespace in the file ---

    @property
    def _shared(self) -> Database:
        if self._database is None:
            _refuse(self.namespace)
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


def _refuse(namespace: str, *_: object) -> NoReturn:
    raise StoreNotOpenError(f"namespace {namespace!r} is closed; open it again to use it")


def _read_all(connection: Connection, number: int, keys: list[str]) -> dict[bytes, bytes]:
    connection.execute("BEGIN")  # one snapshot
    found: dict[bytes, bytes] = {}
    for at in range(0, len(keys), _TOGETHER):
        some = keys[at : at + _TOGETHER]
        sql = _GET_SOME.format(", ".join(["CAST(? AS BLOB)"] * len(some)))
        found.update(connection.execute(sql, (number, *some)))
    connection.execute("COMMIT")
    return found


def _write_all(connection: Connection, number: int, items: Mapping[str, bytes]) -> None:
    # In order, so that one page after the other is filled. (The order of texts is that of their UTF-8.)
    keys = sorted(items)
    together = len(keys) // _TOGETHER * _TOGETHER
    bindable = bytearray if max(map(len, items.values()), default=0) < _COPIED_BYTES else bytes
    # Iterators in C alone: no Python code runs, and so no signal handler, while SQLite reads them.
    frames = map(bindable, map(items.__getitem__, keys))
    fields = chain.from_iterable(zip(keys[:together], frames, strict=False))
    connection.execute("BEGIN IMMEDIATE")
    connection.executemany(_SET_TOGETHER, zip(repeat(number), *[fields] * (2 * _TOGETHER), strict=False))
    connection.executemany(_SET, zip(repeat(number), keys[together:], frames, strict=False))
    connection.execute("COMMIT")
