"""One SQLite file of hutch: made, checked, connected to, and what goes wrong with it as errors of hutch.

Nobody may open and close the file by other means than SQLite while this process has it open: on POSIX that drops
every lock that the process holds on it. `os.stat` is harmless.

For the same reason there is no other driver than the standard library's. apsw, with a newer SQLite of its own, reads in
nine tenths of the time; but two SQLites in one process do not see each other's locks. Where the application, or a
backup, opened the file with sqlite3, both could hold the lock for writing, and writes that were acknowledged were gone.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import random
import sqlite3
import stat
import tempfile
import time
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from sqlite3 import Connection
from typing import TypeVar

from hutch import CorruptValueError, StorageFullError, StorageTimeoutError, StorageUnavailableError, StoreError
from hutch.filesystem import flush_folder

T = TypeVar("T")
#: Device and inode of each file.
Files = tuple[tuple[int, int] | None, ...]

#: What each durability is to SQLite in WAL mode.
SYNCHRONOUS = {"strict": "FULL", "normal": "NORMAL", "relaxed": "OFF"}

_APPLICATION_ID = 0x68757463  # "hutc": what `file` and others tell a database of ours by
_FORMAT = 1
# `namespaces`: a row stays when its namespace is emptied, so that an id that a handle remembers is good for ever.
# `entries`: with a WITHOUT ROWID table a read would be one search less, but values would lie among the keys; from
# 1 KB a value on it was measured 2 to 4 times slower, in a file twice the size, and little faster below. The checks
# keep out what is no blob: nothing else is as large as the empty blob. (A call of typeof() cost a sixth of a write.)
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

_CACHE_KIB = 64 * 1024
_LOG_BYTES = 64 * 1024 * 1024

# SQLite's own busy handler sleeps up to 100 ms between two tries, deaf to Ctrl-C, so that among many writers one
# starves; and it is left out where the journal mode changes. Every wait is done here instead.
_FIRST_PAUSE_S = 0.0005
_LONGEST_PAUSE_S = 0.01

_BUSY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL}
_DAMAGED = {
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_NOTADB,
    sqlite3.SQLITE_ERROR,  # a table or a column is missing
    sqlite3.SQLITE_CONSTRAINT,
    sqlite3.SQLITE_MISMATCH,
    0,  # a text that is not UTF-8: found by Python, not by SQLite
}
# SQLite says FULL for ENOSPC alone. Quotas and limits of file size (EDQUOT, EFBIG) end in these.
_REFUSED_WRITES = {sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_TRUNCATE, sqlite3.SQLITE_IOERR_SHMSIZE}
_NO_ROOM = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
_TRIAL_BYTES = 64 * 1024

# How long a writer trusts that the files are in their place: a look takes 5 us. On Windows nobody can move or remove
# files that are open.
_TRUST_S = 0.001 if os.name != "nt" else math.inf


class NoDataError(Exception):
    """There is no file yet, or nothing in it. Stays within the engine."""


class DatabaseFile:
    """The file at `path`, for connections of one `durability` that wait for others up to `wait_s` seconds."""

    def __init__(self, path: Path, durability: str, wait_s: float, mmap_bytes: int) -> None:
        self.path = path
        self.wait_s = wait_s
        self._synchronous = SYNCHRONOUS[durability]
        self._mmap_bytes = mmap_bytes
        self._identity: tuple[int, int] | None = None
        self._trusted_until_s = -math.inf

    def is_the_one_opened(self) -> bool:
        """Whether the path still leads to the file first connected to; True if there was none yet."""
        if self._identity is None:
            return True
        try:
            return self._identity == _identity(self.path)
        except OSError:
            return False

    def files(self) -> Files:
        """Which files there are: the database, its log, and the index of that; None for one that is not there."""
        return tuple(_identity_or_none(f"{self.path}{suffix}") for suffix in ("", "-wal", "-shm"))

    def must_be_in_place(self, files: Files) -> None:
        """Raise StorageUnavailableError if `files`, those of an open connection, are not the ones at the path.

        SQLite would go on to write into files that were removed, and say nothing; and whoever opens the path then
        makes files, and locks, of their own.
        """
        now = time.monotonic()
        if now < self._trusted_until_s:
            return
        if self.files() != files:
            raise StorageUnavailableError(
                f"{self.path} or its log was removed, moved, replaced or closed to this process while it was open; "
                "nothing was written. Put that right, or close the store and connect again, to use what is there"
            )
        self._trusted_until_s = now + _TRUST_S

    def connect(self, create: bool) -> Connection:
        """A new connection, after a check of the file; with `create` the file and its folders are made if missing.

        Raises NoDataError if there is nothing and `create` is False, CorruptValueError for a file that is not
        ours, StorageUnavailableError, StorageTimeoutError, StorageFullError.
        """
        seen = self._look()
        if not seen and self._identity is not None:
            raise StorageUnavailableError(f"{self.path} was removed while it was open; open the store again")
        if not seen and not create:
            raise NoDataError
        if not seen:
            with _storage_errors(self.path, "its folder cannot be made"):
                missing = [folder for folder in self.path.parents if not folder.exists()]
                self.path.parent.mkdir(parents=True, exist_ok=True)
                # SQLite flushes the names in the folder of its file, and not that of the folder.
                for folder in reversed(missing):
                    flush_folder(folder.parent)
        uri = f"{_uri(self.path)}?mode={'rwc' if create else 'rw'}"
        try:
            connection = sqlite3.connect(uri, uri=True, timeout=0, isolation_level=None, check_same_thread=False)
        except sqlite3.Error as error:
            raise self._explained(error) from error
        try:
            self.run(lambda opened: self._prepare(opened, create), connection)
            self._remember()
        except BaseException:
            connection.close()
            raise
        return connection

    def run(self, work: Callable[[Connection], T], connection: Connection, deadline: float | None = None) -> T:
        """What `work` returns for `connection`, tried again while others hold the file; if it fails, all is undone.

        Raises StorageTimeoutError at `deadline` (of `time.monotonic`; None: `wait_s` from the first try), and what
        SQLite raises as an error of hutch.
        """
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                return work(connection)
            except BaseException as error:
                if connection.in_transaction:
                    with contextlib.suppress(sqlite3.Error):
                        connection.rollback()
                if not isinstance(error, sqlite3.Error):
                    raise
                now = time.monotonic()
                deadline = now + self.wait_s if deadline is None else deadline
                if _code(error) not in _BUSY or now >= deadline:
                    raise self._explained(error) from error
            # Jitter: two that met must not meet again.
            time.sleep(random.uniform(0, pause_s))  # noqa: S311
            pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)

    def timeout(self, whom: str) -> StorageTimeoutError:
        """The error for a wait that was too long; `whom` says for whom."""
        return StorageTimeoutError(
            f"{self.path} was kept busy by {whom} for {self.wait_s:g} s; try again, or raise the option wait_s"
        )

    # --- a new connection ---

    def _prepare(self, connection: Connection, create: bool) -> None:
        if not self._is_ours(connection):
            if not create:
                raise NoDataError
            # Looked at again under the lock for writing: of many processes that start at once, one makes it.
            connection.execute("BEGIN IMMEDIATE")
            if not self._is_ours(connection):
                for statement in _SCHEMA:
                    connection.execute(statement)
            connection.execute("COMMIT")
        # Not before the file is known to be ours, for this writes to it, once.
        (journal,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
        if journal != "wal":
            raise StorageUnavailableError(
                f"SQLite cannot keep a write-ahead log beside {self.path} (its journal mode stays {journal!r}); it "
                "needs a local file system, not a network share"
            )
        connection.execute(f"PRAGMA synchronous = {self._synchronous}")
        if self._synchronous != "OFF":
            connection.execute("PRAGMA fullfsync = ON")  # macOS: fsync alone stops at the disk's own cache
        # Zero by default: beside this cache a map gains little, and when another program cuts the file short it kills
        # the process (SIGBUS) where a plain read is an error.
        connection.execute(f"PRAGMA mmap_size = {self._mmap_bytes}")
        connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        # A large batch makes a large log, which would keep its size for ever.
        connection.execute(f"PRAGMA journal_size_limit = {_LOG_BYTES}")
        # What a statement of many rows may have to undo is kept in memory, where else it goes to a file.
        connection.execute("PRAGMA temp_store = MEMORY")
        # The file may come from anywhere: its schema may run nothing unusual, and pages are looked at before use.
        connection.execute("PRAGMA trusted_schema = OFF")
        connection.execute("PRAGMA cell_size_check = ON")

    def _is_ours(self, connection: Connection) -> bool:
        """Whether our tables are there; False if nothing is. Raises CorruptValueError for anything else."""
        alone = not connection.in_transaction
        if alone:
            connection.execute("BEGIN")  # one snapshot: another process may be making it now
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        names = {name for (name,) in connection.execute("SELECT name FROM sqlite_master").fetchall()}
        if alone:
            connection.execute("COMMIT")
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
        """Whether there is a file. Raises StorageUnavailableError if something else is there, or it cannot be seen."""
        # The log first: a file that is being made has a size before it has a log.
        log_bytes = _size_of_log(self.path)
        with _storage_errors(self.path, "it cannot be opened"):
            try:
                found = self.path.stat()
            except FileNotFoundError:
                return False
        if stat.S_ISDIR(found.st_mode):
            raise StorageUnavailableError(f"{self.path} is a folder; the sqlite engine needs the path of a file in it")
        if not stat.S_ISREG(found.st_mode):
            raise StorageUnavailableError(f"{self.path} is not a regular file; SQLite cannot keep data in it")
        # SQLite takes a file of no bytes for a new database, which it is without a log; with one, SQLite would delete
        # the log, the last that is left of the data. A file of one byte it takes for an empty one.
        if found.st_size == 1 or (found.st_size == 0 and log_bytes > 0):
            raise CorruptValueError(
                f"{self.path} was cut to {found.st_size} bytes, or is not a database; nothing was changed. Restore it "
                "from a backup"
            )
        return True

    def _remember(self) -> None:
        with _storage_errors(self.path, "it went away"):
            found = _identity(self.path)
        if self._identity not in (None, found):
            raise StorageUnavailableError(f"{self.path} was replaced while it was open; open the store again")
        self._identity = found

    def _explained(self, error: sqlite3.Error) -> StoreError:
        code = _code(error)
        # This one is of Python's making, and quotes the value.
        said = "a text in it is not UTF-8" if str(error).startswith("Could not decode") else str(error)
        where = f"{self.path}: SQLite says {said!r}"
        if code in _BUSY:
            return self.timeout("other processes")
        if code == sqlite3.SQLITE_FULL:
            return StorageFullError(f"{where}. Nothing was written, what was stored is intact; make room on the disk")
        if code in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN) and (reason := self._refusal()):
            if reason.errno in _NO_ROOM:
                return StorageFullError(
                    f"{where}, the system {reason.strerror!r}. Nothing was written, what was stored is intact; make "
                    "room on the disk"
                )
            return StorageUnavailableError(
                f"{where}, the system {reason.strerror!r}. Nothing was written, what was stored is intact"
            )
        if getattr(error, "sqlite_errorcode", 0) in _REFUSED_WRITES:
            return StorageFullError(
                f"{where}. Nothing was written, what was stored is intact; the file has met a quota or a limit of file "
                "size, or else the disk is failing"
            )
        if code in _DAMAGED:
            return CorruptValueError(
                f"{where}. It is damaged, or not a database of hutch; nothing was changed. Restore it from a backup"
            )
        return StorageUnavailableError(
            f"{where}. This process must be able to write to the file and its folder, also in order to read"
        )

    def _refusal(self) -> OSError | None:
        """What the system says to another file beside this one: SQLite keeps to itself why it could not write."""
        try:
            with tempfile.TemporaryFile(dir=self.path.parent, buffering=0) as trial:
                trial.write(bytes(_TRIAL_BYTES))
        except OSError as error:
            return error
        return None


@contextlib.contextmanager
def _storage_errors(path: Path, what: str) -> Iterator[None]:
    """An OSError within becomes a StoreError about `path`."""
    try:
        yield
    except OSError as error:
        kind = StorageFullError if error.errno in _NO_ROOM else StorageUnavailableError
        raise kind(f"{path}: {what}: {error.strerror or error}") from error


def _code(error: sqlite3.Error) -> int:
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


def _identity(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino


def _identity_or_none(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)  # noqa: PTH116 - twice as fast as Path.stat
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _size_of_log(path: Path) -> int:
    try:
        return path.with_name(f"{path.name}-wal").stat().st_size
    except OSError:
        return 0


def _uri(path: Path) -> str:
    """`path` as SQLite reads URIs: without a host, also where a Windows share begins with two slashes."""
    text = path.as_posix()
    return "file://" + urllib.parse.quote_from_bytes(os.fsencode(text if text.startswith("/") else f"/{text}"))
