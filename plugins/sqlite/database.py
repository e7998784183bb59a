"""The connections of this process to one SQLite file, shared by all who use it, and what a fork does to them.

A signal handler may raise, and a handler or a finalizer may use or close a store itself, at nearly any point of this
code. So users are known by objects of their own (a count could go wrong), and to join or to leave twice does nothing.
"""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from sqlite3 import Connection, Cursor
from typing import Any

from hutch import CorruptValueError, StorageTimeoutError
from hutch.locks import FairLock, Ticket

from .file import DatabaseFile, NoDataError, fetch, spoilt_by_fork
from .readers import Readers
from .writer import WriteLock, Writer

_CHUNK_BYTES = 1024 * 1024
_FORK_PATIENCE_S = 10.0
_REGISTRY_WAIT_S = 60.0
_Settings = tuple[Path, str, float, int]


class Database:
    """One connection that writes, and as many that read as threads read at once.

    The last user to `leave` closes them. No lock is held while code of others runs.
    """

    def __init__(self, settings: _Settings, write_lock: WriteLock) -> None:
        self.path = settings[0]
        self._settings = settings
        self._file = DatabaseFile(*settings)
        self._users = self._file.users
        self._is_frozen = False
        self.readers = Readers(self._file)
        self.writer = Writer(self._file, write_lock)
        #: ``read(work, *args)`` and ``write(work, *args)`` return ``work(connection, *args)``.
        self.read = self.readers.run
        self.write = self.writer.run
        _all.add(self)

    # --- users ---

    @classmethod
    def join(cls, owner: object, user: object, path: Path, durability: str, wait_s: float, mmap_bytes: int) -> Database:
        """Return the database on that file with these settings, shared if there is one, with `user` as one more user.

        `user` stands for `owner`, and leaves with it, should a handler have kept the finalizer of that from saying so.

        Connections of one process to a file may differ in their settings, so that each setting has its own.
        A file that was put in the place of another is another database.
        """
        return _registry.run(_REGISTRY_WAIT_S, cls._join, owner, user, (path, durability, wait_s, mmap_bytes))

    @classmethod
    def _join(cls, owner: object, user: object, settings: _Settings) -> Database:
        for database in list(_databases):
            if database._settings == settings and database._file.is_the_one_opened():
                database._remember(owner, user)
                return database
        path = settings[0]
        database = cls(settings, _write_locks.get(path) or _write_locks.setdefault(path, WriteLock(path)))
        database._remember(owner, user)
        database._register()
        return database

    def add_user(self, owner: object, user: object) -> None:
        """Keep the connections open until `user`, which stands for `owner`, leaves, too."""
        self._remember(owner, user)
        _registry.run(_REGISTRY_WAIT_S, self._register)

    def _remember(self, owner: object, user: object) -> None:
        self._users[user] = weakref.ref(owner, partial(self._owner_is_gone, user))

    def _owner_is_gone(self, user: object, _: object) -> None:
        self.leave(user, 0)

    def _register(self) -> None:
        _databases[self] = None
        self.writer.write_lock.add(self.writer)

    def leave(self, user: object, wait_s: float | None = None) -> None:
        """Forget `user`, and close the connections after the last; does nothing if it is not a user.

        A write of another thread is waited for up to `wait_s` seconds (None: as configured); after that, it closes its
        connection itself. A reader that another thread is using is closed when that puts it back.
        """
        self._users.pop(user, None)
        if not self._users:
            self.readers.trim()
            self.writer.close_if_unused(self._file.wait_s if wait_s is None else wait_s)
            _registry.run(_REGISTRY_WAIT_S, self._unregister)

    def has_user(self, user: object) -> bool:
        """Whether `user` has joined and not left."""
        return user in self._users

    def _unregister(self) -> None:
        if not self._users:
            _databases.pop(self, None)
            self.writer.write_lock.remove(self.writer)

    # --- reading ---

    def check(self) -> None:
        """Raise what is wrong with the file, if there is one."""
        with contextlib.suppress(NoDataError):
            self.read(_do_nothing)

    def number_of(self, namespace: str) -> int | None:
        """The id of `namespace`, or None if nobody ever wrote to it."""
        try:
            row = self.row("SELECT id FROM namespaces WHERE name = ?", (namespace,))
        except NoDataError:
            return None
        return None if row is None else row[0]

    def row(self, sql: str, parameters: Sequence[object]) -> Any:
        """The first row, or None."""
        return self.read(_fetch_row, sql, parameters)

    def rows(self, sql: str) -> list[Any]:
        """All rows."""
        return self.read(fetch, sql)

    def chunk(self, sql: str, parameters: Sequence[object], limit: int) -> tuple[list[Any], bool]:
        """The first rows, up to `limit` or about 1 MiB of the last column; and whether there are no more."""
        return self.read(self._fetch_chunk, sql, parameters, limit)

    def _fetch_chunk(
        self, connection: Connection, sql: str, parameters: Sequence[object], limit: int
    ) -> tuple[list[Any], bool]:
        cursor = connection.execute(sql, (*parameters, limit))
        try:
            # A loop here would be outside of the `try` on Python 3.12 and 3.13, where a handler runs as it jumps back.
            return self._take_rows(cursor, limit)
        finally:
            # Else a kept traceback could keep the cursor, and with it the snapshot, after the connection was closed.
            cursor.close()

    def _take_rows(self, cursor: Cursor, limit: int) -> tuple[list[Any], bool]:
        rows = []
        size = 0
        for row in cursor:
            rows.append(row)
            if type(row[-1]) is not bytes:
                raise CorruptValueError(f"{self.path} is damaged: a value in it is a {type(row[-1]).__name__}")
            size += len(row[-1])
            if size >= _CHUNK_BYTES:
                return rows, False
        return rows, len(rows) < limit

    # --- writing ---

    def change(self, sql: str, parameters: Sequence[object]) -> int:
        """Run one statement that writes, in a transaction of its own; how many rows it changed."""
        return self.write(change, sql, parameters)

    def change_many(self, sql: str, rows: list[tuple[object, ...]]) -> int:
        """Run a statement that writes for each of `rows`, all in one transaction; how many rows that changed."""
        return self.write(_change_many, sql, rows)

    # --- fork ---

    def before_fork(self, ticket: Ticket) -> None:
        """Close every connection, so that none is inherited. Raises StorageTimeoutError if that takes too long.

        A child cannot use a file that was open when it was forked, not even by a new connection: SQLite keeps one
        record a file of the locks that the process holds, the child has the record without the locks, and would
        read and write unprotected.
        """
        self._is_frozen = False
        self.writer.close_before_fork(ticket, _FORK_PATIENCE_S)
        self.readers.close_before_fork(ticket, _FORK_PATIENCE_S)
        self._is_frozen = True

    def after_fork_in_parent(self, ticket: Ticket) -> None:
        """Go on; connections are opened anew when they are needed."""
        self._is_frozen = False
        self.readers.leave(ticket)
        self.writer.leave(ticket)

    def after_fork_in_child(self, ticket: Ticket) -> None:
        """Go on with nothing of the parent's. A connection that is left is kept: to close it would drop its locks."""
        left = self.readers.forget() + self.writer.forget()
        if left or not self._is_frozen:
            _inherited.extend(left)
            spoilt_by_fork.add(self.path)
        self.after_fork_in_parent(ticket)


def leave_all(user: object, wait_s: float | None = None) -> None:
    """Let `user` leave every database that it joined; see `Database.leave`."""
    for database in list(_all):
        if database.has_user(user):
            database.leave(user, wait_s)


def _do_nothing(_: Connection) -> None:
    pass


def _fetch_row(connection: Connection, sql: str, parameters: Sequence[object]) -> Any:
    return connection.execute(sql, parameters).fetchone()


def change(connection: Connection, sql: str, parameters: Sequence[object]) -> int:
    """Run one statement that writes; how many rows it changed."""
    return connection.execute(sql, parameters).rowcount


def _change_many(connection: Connection, sql: str, rows: list[tuple[object, ...]]) -> int:
    connection.execute("BEGIN IMMEDIATE")
    changed = connection.executemany(sql, rows).rowcount
    connection.execute("COMMIT")
    return changed


_registry = FairLock("the registry of SQLite files")
# Those that have users, a set that keeps its order; and all that may have connections.
_databases: dict[Database, None] = {}
_all: weakref.WeakSet[Database] = weakref.WeakSet()
_write_locks: weakref.WeakValueDictionary[Path, WriteLock] = weakref.WeakValueDictionary()
_inherited: list[Connection] = []
# The places of each thread that forks, in the queues of all locks here; a handler may fork in the middle of a fork.
_fork_tickets: dict[int, list[Ticket]] = {}


def _before_fork() -> None:
    ticket = Ticket()
    _fork_tickets.setdefault(threading.get_ident(), []).append(ticket)
    _registry.enter(ticket, _REGISTRY_WAIT_S)
    for database in list(_all):
        with contextlib.suppress(StorageTimeoutError):  # the child is told
            database.before_fork(ticket)


def _after_fork(after: Callable[[Database, Ticket], None]) -> None:
    ticket = _fork_tickets[threading.get_ident()].pop()
    steps = [partial(after, database, ticket) for database in list(_all)] + [partial(_registry.leave, ticket)]
    raised: BaseException | None = None
    for step in steps:
        try:
            step()
        except BaseException as error:  # of a signal handler: once more, so that no lock stays taken
            raised = error
            step()
    if raised is not None:
        raise raised


def _after_fork_in_parent() -> None:
    _after_fork(Database.after_fork_in_parent)


def _after_fork_in_child() -> None:
    _after_fork(Database.after_fork_in_child)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
