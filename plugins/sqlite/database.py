"""Share this process's connections to one SQLite file among all users, and handle forks.

A signal handler may raise, and a handler or finalizer may use or close a store, at nearly any point of this code. So
each user is identified by an object (a count could go wrong), and joining or leaving twice has no effect.
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
from hutch.fork import WeakRefs
from hutch.locks import FairLock, Ticket

from .deadlines import NUMBER
from .file import DatabaseFile, NoDataError, fetch, spoilt_by_fork
from .read_only import ReadOnlyFile, ReadOnlyReaders
from .readers import Readers
from .writer import WriteLock, Writer

_CHUNK_BYTES = 1024 * 1024
_FORK_PATIENCE_S = 10.0
_REGISTRY_WAIT_S = 60.0
Settings = tuple[Path, str, float, int, str | None]


class Database:
    """One writing connection, and one reading connection per concurrently reading thread.

    The last user to `leave` closes them. No lock is held while the caller's code runs.
    """

    def __init__(self, settings: Settings, write_lock: WriteLock) -> None:
        self.path = settings[0]
        self._settings = settings
        path, durability, wait_s, mmap_bytes, reason = settings
        #: Whether the file is only read, because this process may not write to it or is opened read-only.
        self.is_read_only = reason is not None
        if reason is None:
            self._file = DatabaseFile(path, durability, wait_s, mmap_bytes)
            self.readers = Readers(self._file)
        else:
            self._file = read_only = ReadOnlyFile(path, durability, wait_s, mmap_bytes)
            self.readers = ReadOnlyReaders(read_only)
            read_only.reason = reason
        self._users = self._file.users
        #: The namespaces, by id, that are known to have had a deadline. Once one has, it has for ever.
        self.expiring: set[int] = set()
        #: The ids of namespaces that commits have written, by name. An id is never given to another namespace.
        self.numbers: dict[str, int] = {}
        self._is_frozen = False
        self.writer = Writer(self._file, write_lock)
        #: ``read(work, *args)`` and ``write(work, *args)`` each return ``work(connection, *args)``.
        self.read = self.readers.run
        self.write = self.writer.run
        if isinstance(self._file, ReadOnlyFile):
            self.write = self._file.refuse  # type: ignore[assignment]
        _all.add(self)

    # --- users ---

    @classmethod
    def join(cls, owner: object, user: object, settings: Settings) -> Database:
        """Return the database with these settings, shared if one exists, and add `user` to it.

        `settings` are the path, the durability, `wait_s`, `mmap_bytes`, and why the file is only read, or None.
        `user` represents `owner` and leaves when `owner` is collected, even if a handler interrupted its finalizer.
        Each combination of settings has its own connections. A file that replaced another one is a different database.
        """
        return _registry.run(_REGISTRY_WAIT_S, cls._join, owner, user, settings)

    @classmethod
    def _join(cls, owner: object, user: object, settings: Settings) -> Database:
        for database in list(_databases):
            if database._settings == settings and database._file.is_the_one_opened():
                database._remember(owner, user)
                return database
        path = settings[0]
        shared = next((one.writer.write_lock for one in _all.live() if one.path == path), None)
        database = cls(settings, shared or WriteLock(path))
        database._remember(owner, user)
        database._register()
        return database

    def add_user(self, owner: object, user: object) -> None:
        """Keep the connections open until `user`, which represents `owner`, leaves too."""
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
        """Remove `user`, and close the connections after the last user; do nothing if it is not a user.

        Waits up to `wait_s` seconds (None: as configured) for another thread's write; a longer write closes its
        connection itself. A reader in use by another thread is closed when that thread returns it.
        """
        self._users.pop(user, None)
        if not self._users:
            self.readers.trim()
            self.writer.close_if_unused(self._file.wait_s if wait_s is None else wait_s)
            _registry.run(_REGISTRY_WAIT_S, self._unregister)

    def is_writable_by(self, user: object) -> bool:
        """Return whether `user` has joined, and the path still leads to the file that was opened for writing."""
        return user in self._users and not self.is_read_only and self._file.is_the_one_opened()

    def has_user(self, user: object) -> bool:
        """Return whether `user` has joined and not left."""
        return user in self._users

    def _unregister(self) -> None:
        if not self._users:
            _databases.pop(self, None)
            self.writer.write_lock.remove(self.writer)

    # --- reading ---

    def validate(self) -> None:
        """Validate the file, if it exists. Raises the StoreError that says what is wrong."""
        with contextlib.suppress(NoDataError):
            self.read(lambda connection: None)

    def number_of(self, namespace: str) -> int | None:
        """Return the id of `namespace`, or None if it was never written to."""
        try:
            row = self.row(NUMBER, (namespace,))
        except NoDataError:
            return None
        if row is None:
            return None
        if row[1]:
            self.expiring.add(row[0])
        number: int = row[0]
        return number

    def row(self, sql: str, parameters: Sequence[object]) -> Any:
        """Return the first row, or None."""
        return self.read(_fetch_row, sql, parameters)

    def rows(self, sql: str, parameters: Sequence[object] = ()) -> list[Any]:
        """Return all rows."""
        return self.read(fetch, sql, parameters)

    def chunk(self, sql: str, parameters: Sequence[object], limit: int) -> tuple[list[Any], bool]:
        """Return the first rows, up to `limit` or about 1 MiB of the last column, and whether they are the last."""
        return self.read(self._fetch_chunk, sql, parameters, limit)

    def _fetch_chunk(
        self, connection: Connection, sql: str, parameters: Sequence[object], limit: int
    ) -> tuple[list[Any], bool]:
        cursor = connection.execute(sql, (*parameters, limit))
        try:
            # A separate function: on Python 3.12 and 3.13 an exception as a loop jumps back can miss the `try`.
            return self._take_rows(cursor, limit)
        finally:
            # A stored traceback would keep the cursor, and with it the snapshot, after the connection was closed.
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
        """Run one writing statement in its own transaction; return how many rows it changed."""
        return self.write(change, sql, parameters)

    # --- fork ---

    def before_fork(self, ticket: Ticket) -> None:
        """Close every connection, so that no child inherits one. Raises StorageTimeoutError if that takes too long.

        A child cannot use a file that was open at the fork, not even through a new connection: SQLite keeps one record
        per file of the locks that the process holds. The child would inherit the record without the locks, and read and
        write unprotected.
        """
        self._is_frozen = False
        self.writer.close_before_fork(ticket, _FORK_PATIENCE_S)
        self.readers.close_before_fork(ticket, _FORK_PATIENCE_S)
        self._is_frozen = True

    def after_fork_in_parent(self, ticket: Ticket) -> None:
        """Resume in the parent; connections are opened again when needed."""
        self._is_frozen = False
        self.readers.leave(ticket)
        self.writer.leave(ticket)

    def after_fork_in_child(self, ticket: Ticket) -> None:
        """Discard the parent's state in the child. Inherited connections stay open: to close one drops its locks."""
        left = self.readers.forget() + self.writer.forget()
        if left or not self._is_frozen:
            _inherited.extend(left)
            spoilt_by_fork.add(self.path)
        self.after_fork_in_parent(ticket)


def leave_all(user: object, wait_s: float | None = None) -> None:
    """Remove `user` from every database that it joined; see `Database.leave`."""
    for database in _all.live():
        if database.has_user(user):
            database.leave(user, wait_s)


def _fetch_row(connection: Connection, sql: str, parameters: Sequence[object]) -> Any:
    return connection.execute(sql, parameters).fetchone()


def change(connection: Connection, sql: str, parameters: Sequence[object]) -> int:
    """Run one writing statement; return how many rows it changed."""
    return connection.execute(sql, parameters).rowcount


_registry = FairLock("the registry of SQLite files")
# `_databases`: the databases with users, as an ordered set. `_all`: every database that may have connections.
_databases: dict[Database, None] = {}
_all: WeakRefs[Database] = WeakRefs()
_inherited: list[Connection] = []
# The tickets of each forking thread in the lock queues of this module; a handler may fork during a fork.
_fork_tickets: dict[int, list[Ticket]] = {}


def _before_fork() -> None:
    ticket = Ticket()
    _fork_tickets.setdefault(threading.get_ident(), []).append(ticket)
    _registry.enter(ticket, _REGISTRY_WAIT_S)
    for database in _all.live():
        with contextlib.suppress(StorageTimeoutError):  # the child gets an error
            database.before_fork(ticket)


def _after_fork(after: Callable[[Database, Ticket], None]) -> None:
    ticket = _fork_tickets[threading.get_ident()].pop()
    steps = [partial(after, database, ticket) for database in _all.live()] + [partial(_registry.leave, ticket)]
    raised: BaseException | None = None
    for step in steps:
        try:
            step()
        except BaseException as error:  # from a signal handler: run the step again, so that no lock stays taken
            raised = error
            step()
    if raised is not None:
        raise raised


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=partial(_after_fork, Database.after_fork_in_parent),
        after_in_child=partial(_after_fork, Database.after_fork_in_child),
    )
