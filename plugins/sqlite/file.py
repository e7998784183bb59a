"""One SQLite file of hutch: create it, validate it and connect to it.

While this process has the file open, only SQLite may open and close it: on POSIX, any other close drops every lock that
the process holds on the file. `os.stat` is harmless.

For the same reason only the standard library's driver is used. apsw, with its own newer SQLite, reads in nine tenths of
the time, but two SQLites in one process do not see each other's locks. When the application or a backup opened the file
with sqlite3, both could hold the write lock, and acknowledged writes were lost.
"""

from __future__ import annotations

import math
import os
import sqlite3
import stat
import time
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from sqlite3 import Connection
from typing import Any, TypeVar

from hutch import CorruptValueError, StorageUnavailableError, StoreNotOpenError
from hutch.filesystem import flush_folder
from hutch.handlers import raised_by_handler

from .errors import explain, is_busy, is_from_sqlite, storage_error
from .paths import identity, identity_or_none, refuse_foreign_files, size_of, uri_of
from .wait import BusyWait

T = TypeVar("T")
#: (device, inode) of each file; None for a missing one.
Files = tuple[tuple[int, int] | None, ...]

#: The value of PRAGMA synchronous for each durability, in WAL mode.
SYNCHRONOUS = {"strict": "FULL", "normal": "NORMAL", "relaxed": "OFF"}

_APPLICATION_ID = 0x68757463  # "hutc": by this, `file` and other tools recognise a database of hutch
_FORMAT = 1
# `namespaces`: a row stays when its namespace is emptied, so an id that a handle remembers stays valid for ever.
# `entries`: a WITHOUT ROWID table would save one search per read, but store values among the keys. It was measured 2 to
# 4 times slower for values from 1 KB, in a file twice the size, and hardly faster below. The CHECKs refuse anything but
# blobs: only a blob compares greater than or equal to the empty blob. (typeof() cost a sixth of a write.)
_SCHEMA = (
    "CREATE TABLE namespaces (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, entries INTEGER NOT NULL DEFAULT 0)",
    "CREATE TABLE entries (id INTEGER PRIMARY KEY, ns INTEGER NOT NULL, key BLOB NOT NULL, value BLOB NOT NULL,"
    " UNIQUE (ns, key), CHECK (key >= x''), CHECK (value >= x''))",
    "CREATE TRIGGER entry_added AFTER INSERT ON entries"
    " BEGIN UPDATE namespaces SET entries = entries + 1 WHERE id = new.ns; END",
    "CREATE TRIGGER entry_removed AFTER DELETE ON entries"
    " BEGIN UPDATE namespaces SET entries = entries - 1 WHERE id = old.ns; END",
    f"PRAGMA application_id = {_APPLICATION_ID}",
    f"PRAGMA user_version = {_FORMAT}",
)
_NEEDED = {"namespaces", "entries", "entry_added", "entry_removed"}
_WHOSE = (
    "SELECT a.application_id, u.user_version, m.name FROM pragma_application_id AS a, pragma_user_version AS u"
    " LEFT JOIN sqlite_master AS m ON true"
)

_CACHE_KIB = 64 * 1024
_LOG_BYTES = 64 * 1024 * 1024

# How long a writer assumes that the files are in place, because a look takes 5 us. Windows keeps open files in place.
_TRUST_S = 0.001 if os.name != "nt" else math.inf


#: Files that this process cannot use, because it was forked while another thread used them.
spoilt_by_fork: set[Path] = set()


class NoDataError(Exception):
    """A file that is missing or empty. Never leaves the engine."""


def close(connection: Connection) -> None:
    """Close `connection`, which may be closed already or not connected yet."""
    try:  # noqa: SIM105 - suppress is Python code, in which a signal handler could raise before the call
        Connection.close(connection)
    except sqlite3.ProgrammingError:
        pass


def is_open(connection: Connection) -> bool:
    """Return whether `connection` is connected and not closed."""
    try:
        connection.in_transaction  # noqa: B018
    except sqlite3.ProgrammingError:
        return False
    return True


class DatabaseFile:
    """The file at `path`, for connections of one `durability` that wait up to `wait_s` seconds for others."""

    def __init__(self, path: Path, durability: str, wait_s: float, mmap_bytes: int) -> None:
        self.path = path
        self.wait_s = wait_s
        self.durability = durability
        #: Each user and its owner; without users, nothing connects.
        self.users: dict[object, object] = {}
        self._synchronous = SYNCHRONOUS[durability]
        self._mmap_bytes = mmap_bytes
        self._identity: tuple[int, int] | None = None
        #: Before this time (of `time.monotonic`), `must_be_in_place` need not be called.
        self.trusted_until_s = -math.inf

    def is_the_one_opened(self) -> bool:
        """Return whether the path still leads to the file first connected to; True before the first connection."""
        if self._identity is None:
            return True
        try:
            return self._identity == identity(self.path)
        except OSError as error:
            if raised_by_handler(error):
                raise
            return False

    def files(self) -> Files:
        """Return the identities of the database, its log and the log's index; None for a missing file."""
        return tuple(identity_or_none(f"{self.path}{suffix}") for suffix in ("", "-wal", "-shm"))

    def must_be_in_place(self, files: Files) -> None:
        """Raise StorageUnavailableError if `files`, the files of an open connection, are no longer at the path.

        SQLite would silently continue to write to removed files, while a process that opens the path now creates new
        files and locks.
        """
        if self.files() != files:
            raise StorageUnavailableError(
                f"{self.path} or its log was removed, moved, replaced or closed to this process while it was open; "
                "nothing was written. Put that right, or close the store and connect again, to use what is there"
            )
        self.trusted_until_s = time.monotonic() + _TRUST_S

    def connect(self, connection: Connection, create: bool) -> None:
        """Validate the file and connect `connection`; `create` creates a missing file and its folders.

        Raises NoDataError if the file is missing and `create` is False, CorruptValueError for a file not written by
        hutch, StorageUnavailableError, StorageTimeoutError, StorageFullError, and StoreNotOpenError if there are no
        users left. The caller closes `connection`, also if this fails.
        """
        self._must_be_usable()
        seen = self._look()
        if not seen and self._identity is not None:
            raise StorageUnavailableError(f"{self.path} was removed while it was open; open the store again")
        if not seen and not create:
            raise NoDataError
        if not seen:
            self._make_folder()
        self._connect(connection, f"mode={'rwc' if create else 'rw'}")
        self.run(self._prepare, connection, create)
        refuse_foreign_files(self.path)
        self._remember()

    def run(self, work: Callable[..., T], connection: Connection, *args: object) -> T:
        """Return ``work(connection, *args)``, retried while others hold the file; a failure is rolled back.

        Raises StorageTimeoutError after `wait_s` seconds, and the StoreError for an error of SQLite.
        """
        wait: BusyWait | None = None
        while True:
            try:
                return work(connection, *args)
            except BaseException as error:
                # Roll back first, so that no transaction stays open even if a signal handler raises.
                try:
                    connection.rollback()
                except sqlite3.Error:
                    connection.close()
                if not is_from_sqlite(error):
                    raise
                wait = self.before_next_try(error, wait)

    def before_next_try(self, error: sqlite3.Error, wait: BusyWait | None, began_s: float | None = None) -> BusyWait:
        """Pause if `error` says that others hold the file; raise its StoreError otherwise, or after too long a wait.

        Return the wait, to be passed as `wait` to the next call. `began_s` is when the first try began, if not now.
        """
        if wait is None:
            wait = BusyWait(time.monotonic() if began_s is None else began_s, self.wait_s)
        if not is_busy(error) or not wait.pause():
            raise explain(error, self.path, self.wait_s) from error
        return wait

    # --- a new connection ---

    def _connect(self, connection: Connection, query: str) -> None:
        uri = f"{uri_of(self.path)}?{query}"
        try:
            # The object exists before it connects, so the connection is closed even if a signal handler raises.
            Connection.__init__(connection, uri, uri=True, timeout=0, isolation_level=None, check_same_thread=False)
        except sqlite3.Error as error:
            if not is_from_sqlite(error):
                raise
            raise explain(error, self.path, self.wait_s) from error

    def _must_be_usable(self) -> None:
        if not self.users:
            raise StoreNotOpenError(f"the storage in {self.path} is closed; open it again to use it")
        if self.path in spoilt_by_fork:
            raise StorageUnavailableError(
                f"this process was forked while a thread was using {self.path}, and cannot use it safely; fork before "
                "threads use the store, or start processes by the spawn method"
            )

    def _prepare(self, connection: Connection, create: bool) -> None:
        if not self._is_ours(connection):
            if not create:
                raise NoDataError
            # Look again under the write lock: of many processes that start together, only one creates the tables.
            connection.execute("BEGIN IMMEDIATE")
            if not self._is_ours(connection):
                for statement in _SCHEMA:
                    connection.execute(statement)
            connection.execute("COMMIT")
        # Only now that the file is known to be hutch's, because this writes to it, once.
        ((journal,),) = fetch(connection, "PRAGMA journal_mode = WAL")
        if journal != "wal":
            raise StorageUnavailableError(
                f"SQLite cannot keep a write-ahead log beside {self.path} (its journal mode stays {journal!r}); it "
                "needs a local file system, not a network share"
            )
        connection.execute(f"PRAGMA synchronous = {self._synchronous}")
        if self._synchronous != "OFF":
            connection.execute("PRAGMA fullfsync = ON")  # macOS: fsync alone stops at the disk's own cache
        # Zero by default: with this cache, a memory map gains little. If another program truncates the file, a map
        # kills the process (SIGBUS), while a plain read is an error.
        connection.execute(f"PRAGMA mmap_size = {self._mmap_bytes}")
        # Otherwise the log would keep the size of the largest batch for ever.
        connection.execute(f"PRAGMA journal_size_limit = {_LOG_BYTES}")
        self._prepare_to_read(connection)

    @staticmethod
    def _prepare_to_read(connection: Connection) -> None:
        connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        # Keep the undo data of large statements in memory, not in a temporary file.
        connection.execute("PRAGMA temp_store = MEMORY")
        # The file may come from anywhere: its schema may run no unsafe functions, and pages are validated before use.
        connection.execute("PRAGMA trusted_schema = OFF")
        connection.execute("PRAGMA cell_size_check = ON")

    def _is_ours(self, connection: Connection) -> bool:
        """Return True if hutch's tables exist, False if the file is empty. Raises CorruptValueError otherwise."""
        # One statement, so one snapshot: another process may be creating the tables now.
        rows = fetch(connection, _WHOSE)
        application, version, _ = rows[0]
        names = {name for _, _, name in rows} - {None}
        if not application and not version and not names:
            return False
        if application != _APPLICATION_ID:
            raise CorruptValueError(
                f"{self.path} is an SQLite database of another application (application_id {application:#x}, not "
                f"{_APPLICATION_ID:#x}); nothing was changed. Give hutch a file of its own"
            )
        if version != _FORMAT:
            raise CorruptValueError(
                f"{self.path} has format {version}, and this version of hutch knows format {_FORMAT}; nothing was "
                "changed. Upgrade hutch to read it"
            )
        if not names >= _NEEDED:
            raise CorruptValueError(f"{self.path} lacks {min(_NEEDED - names)!r}; restore it from a backup")
        return True

    def _look(self) -> bool:
        """Return whether the file exists. Raises StorageUnavailableError if it cannot be used."""
        refuse_foreign_files(self.path)
        # Read the log's size first: a new file has a size before it has a log.
        log_bytes = size_of(f"{self.path}-wal")
        try:
            status = os.stat(self.path)  # noqa: PTH116 - one call, in which no signal handler runs
        except FileNotFoundError:
            return False
        except OSError as error:
            if raised_by_handler(error):
                raise
            raise storage_error(self.path, "it cannot be opened", error) from error
        if stat.S_ISDIR(status.st_mode):
            raise StorageUnavailableError(f"{self.path} is a folder; the sqlite engine needs the path of a file in it")
        if not stat.S_ISREG(status.st_mode):
            raise StorageUnavailableError(f"{self.path} is not a regular file; SQLite cannot keep data in it")
        # SQLite treats an empty file as a new database, which is right only without a log: it would delete the log, the
        # last remains of the data. It also treats a file of one byte as empty.
        if status.st_size == 1 or (status.st_size == 0 and log_bytes > 0):
            raise CorruptValueError(
                f"{self.path} was truncated to {status.st_size} bytes, or is not a database; nothing was changed. "
                "Restore it from a backup"
            )
        return True

    def _make_folder(self) -> None:
        try:
            missing = [folder for folder in self.path.parents if not folder.exists()]
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # SQLite flushes the file's name in its folder, but not the name of the folder itself.
            for folder in reversed(missing):
                flush_folder(folder.parent)
        except OSError as error:
            if raised_by_handler(error):
                raise
            raise storage_error(self.path, "its folder cannot be created", error) from error

    def _remember(self) -> None:
        try:
            current = identity(self.path)
        except OSError as error:
            if raised_by_handler(error):
                raise
            raise storage_error(self.path, "it was removed", error) from error
        if self._identity not in (None, current):
            raise StorageUnavailableError(f"{self.path} was replaced while it was open; open the store again")
        self._identity = current


def fetch(connection: Connection, sql: str, parameters: Sequence[object] = ()) -> list[Any]:
    """Return all rows, read in one call of C: no signal handler can leave the statement and its snapshot open."""
    return list(chain.from_iterable(map(connection.execute, (sql,), (parameters,))))
