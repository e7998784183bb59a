"""The connections of this process to one SQLite file, shared by all who use it, and what a fork does to them."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from sqlite3 import Connection
from typing import Any, TypeVar

from hutch import CorruptValueError, StorageUnavailableError, StoreNotOpenError

from .sqlite_file import DatabaseFile, Files, NoDataError

T = TypeVar("T")

# Readers kept when idle. While more threads than that read at once there are more.
_IDLE_READERS = 8
_CHUNK_BYTES = 1024 * 1024
_FORK_PATIENCE_S = 10.0


class Database:
    """One connection that writes, and as many that read as threads read at once.

    A reader never waits for a writer: with a connection of its own it sees the last commit. Users are counted;
    the last to `release` it closes it. No lock is held while code of others runs.
    """

    def __init__(self, path: Path, durability: str, wait_s: float, mmap_bytes: int) -> None:
        self.path = path
        self._settings = (path, durability, wait_s, mmap_bytes)
        self._file = DatabaseFile(path, durability, wait_s, mmap_bytes)
        self._users = 0
        self._frozen: list[threading.Lock] = []
        #: The readers that nobody uses: always this list. A thread takes one and puts it back; `pop` and `append` are
        #: atomic. Whoever finds the storage closed then calls `trim`.
        self.idle: list[Connection] = []
        self._start_afresh()

    def _start_afresh(self) -> None:
        self._writing = threading.Lock()
        self._opening = threading.Lock()
        self._writer: Connection | None = None
        # The files that the writer has open, known once it has written: the log is made by then.
        self._files: Files | None = None
        self.idle.clear()
        # All readers, so that it is known when none is in use.
        self._readers: set[Connection] = set()
        self._keep = _IDLE_READERS

    # --- users ---

    @classmethod
    def acquire(cls, path: Path, durability: str, wait_s: float, mmap_bytes: int) -> Database:
        """The database on that file with these settings, shared if there is one, with one more user.

        Connections of one process to a file may differ in their settings, so that each setting has its own.
        A file that was put in the place of another is another database.
        """
        settings = (path, durability, wait_s, mmap_bytes)
        with registry:
            for database in _databases:
                if database._settings == settings and database._file.is_the_one_opened():
                    return database.retain()
            return cls(*settings).retain()

    def retain(self) -> Database:
        """Count one more user."""
        with registry:
            self._users += 1
            if self._users == 1:
                self._keep = _IDLE_READERS
                _databases.append(self)
            return self

    def release(self) -> None:
        """Count one user less, and close the connections after the last."""
        with registry:
            self._users -= 1
            if self._users:
                return
            _databases.remove(self)
            # A reader that another thread is using is closed when that puts it back.
            self._keep = 0
            self.trim()
            if self._writing.acquire(timeout=self._file.wait_s):
                self._flush_relaxed()
                self._close_writer()
                self._writing.release()

    # --- reading ---

    def check(self) -> None:
        """Raise what is wrong with the file, if there is one."""
        with contextlib.suppress(NoDataError):
            self._give_back(self._borrow())

    def number_of(self, namespace: str) -> int | None:
        """The id of `namespace`, or None if nobody ever wrote to it."""
        try:
            row = self.row("SELECT id FROM namespaces WHERE name = ?", (namespace,))
        except NoDataError:
            return None
        return None if row is None else row[0]

    def row(self, sql: str, parameters: Sequence[object]) -> Any:
        """The first row, or None."""
        return self.read(lambda connection: connection.execute(sql, parameters).fetchone())

    def rows(self, sql: str) -> list[Any]:
        """All rows."""
        return self.read(lambda connection: connection.execute(sql).fetchall())

    def chunk(self, sql: str, parameters: Sequence[object], limit: int) -> tuple[list[Any], bool]:
        """The first rows, up to `limit` or about 1 MiB of the last column; and whether there are no more."""

        def fetch(connection: Connection) -> tuple[list[Any], bool]:
            rows = []
            size = 0
            with contextlib.closing(connection.execute(sql, (*parameters, limit))) as cursor:
                for row in cursor:
                    rows.append(row)
                    if type(row[-1]) is not bytes:
                        raise CorruptValueError(f"{self.path} is damaged: a value in it is a {type(row[-1]).__name__}")
                    size += len(row[-1])
                    if size >= _CHUNK_BYTES:
                        return rows, False
            return rows, len(rows) < limit

        return self.read(fetch)

    def read(self, work: Callable[[Connection], T]) -> T:
        """What `work` returns for a connection that nobody else uses meanwhile.

        Raises NoDataError if there is no file.
        """
        try:
            connection = self.idle.pop()
        except IndexError:
            connection = self._borrow()
        try:
            return self._file.run(work, connection)
        finally:
            self._give_back(connection)

    def _borrow(self) -> Connection:
        with self._opening:
            with contextlib.suppress(IndexError):
                return self.idle.pop()
            connection = self._connect(create=False)
            self._readers.add(connection)
            return connection

    def _give_back(self, connection: Connection) -> None:
        self.idle.append(connection)
        if len(self.idle) > self._keep:
            self.trim()

    def trim(self) -> None:
        """Close the idle readers that are too many; once the last user is gone, all."""
        while len(self.idle) > self._keep:
            with contextlib.suppress(IndexError):
                self._close_reader(self.idle.pop())

    def _close_reader(self, connection: Connection) -> None:
        connection.close()
        self._readers.discard(connection)

    # --- writing ---

    def change(self, sql: str, parameters: Sequence[object]) -> int:
        """Run one statement that writes, in a transaction of its own; how many rows it changed."""
        return self.write(lambda connection: connection.execute(sql, parameters).rowcount)

    def change_many(self, sql: str, rows: list[tuple[object, ...]]) -> int:
        """Run a statement that writes for each of `rows`, all in one transaction; how many rows that changed."""

        def run(connection: Connection) -> int:
            connection.execute("BEGIN IMMEDIATE")
            changed = connection.executemany(sql, rows).rowcount
            connection.execute("COMMIT")
            return changed

        return self.write(run)

    def write(self, work: Callable[[Connection], T]) -> T:
        """What `work` returns for the connection that writes."""
        deadline = None
        if not self._writing.acquire(blocking=False):
            deadline = time.monotonic() + self._file.wait_s
            if not self._writing.acquire(timeout=self._file.wait_s):
                raise self._file.timeout("other threads of this process")
        try:
            if self._writer is None:
                self._writer = self._connect(create=True)
            if self._files is not None:
                self._file.must_be_in_place(self._files)
            result = self._file.run(work, self._writer, deadline)
            if self._files is None:
                self._files = self._file.files()
            return result
        finally:
            if self._writer is not None and self._writer.in_transaction:
                # Rolling back failed. Closing does it for certain.
                self._close_writer()
            self._writing.release()

    def _flush_relaxed(self) -> None:
        """Have on the disk what was written without a flush, as far as others who have the file open allow."""
        if self._writer is not None and self._settings[1] == "relaxed":
            with contextlib.suppress(sqlite3.Error):
                self._writer.execute("PRAGMA synchronous = NORMAL")
                self._writer.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    def _close_writer(self) -> None:
        connection, self._writer = self._writer, None
        self._files = None
        if connection is not None:
            connection.close()

    def _connect(self, create: bool) -> Connection:
        if not self._users:
            raise StoreNotOpenError(f"the storage in {self.path} is closed; open it again to use it")
        if self.path in _spoilt_by_fork:
            raise StorageUnavailableError(
                f"this process was forked while a thread was using {self.path}, and cannot use it safely; fork before "
                "threads use the store, or start processes by the spawn method"
            )
        return self._file.connect(create)

    # --- fork ---

    def before_fork(self) -> None:
        """Close every connection, so that none is inherited.

        A child cannot use a file that was open when it was forked, not even by a new connection: SQLite keeps one
        record a file of the locks that the process holds, the child has the record without the locks, and would
        read and write unprotected.
        """
        deadline = time.monotonic() + _FORK_PATIENCE_S
        self._frozen = []
        if self._writing.acquire(timeout=_FORK_PATIENCE_S):
            self._frozen.append(self._writing)
            self._close_writer()
        if self._opening.acquire(timeout=_FORK_PATIENCE_S):
            self._frozen.append(self._opening)
        while self._readers and time.monotonic() < deadline:
            try:
                self._close_reader(self.idle.pop())
            except IndexError:
                time.sleep(0.001)

    def after_fork_in_parent(self) -> None:
        """Go on; connections are opened anew when they are needed."""
        for lock in self._frozen:
            lock.release()

    def after_fork_in_child(self) -> None:
        """Go on with nothing of the parent's. A connection that is left is kept: to close it would drop its locks."""
        left = [connection for connection in (*self._readers, self._writer) if connection is not None]
        if left or len(self._frozen) < 2:
            _inherited.extend(left)
            _spoilt_by_fork.add(self.path)
        self._start_afresh()


# Reentrant, because the garbage collector may close a storage anywhere.
registry = threading.RLock()
_databases: list[Database] = []
_inherited: list[Connection] = []
_spoilt_by_fork: set[Path] = set()


def _before_fork() -> None:
    registry.acquire()
    for database in _databases:
        database.before_fork()


def _after_fork_in_parent() -> None:
    for database in _databases:
        database.after_fork_in_parent()
    registry.release()


def _after_fork_in_child() -> None:
    for database in _databases:
        database.after_fork_in_child()
    # Held by the thread that forked, the only one there is here.
    registry.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
