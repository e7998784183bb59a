"""PinnedDatabase: the reading half of a database on one read transaction, for a snapshot.

While it is open, SQLite cannot move later writes from the log to the file, so the log grows with every write.
"""

from __future__ import annotations

import sqlite3
from collections import deque
from collections.abc import Callable
from sqlite3 import Connection
from typing import TYPE_CHECKING, NoReturn, TypeVar

from hutch import CapabilityError, StoreNotOpenError, deadlines
from hutch.handlers import raised_by_handler
from hutch.locks import Ticket

from .database import Database
from .errors import explain
from .file import DatabaseFile, NoDataError
from .readers import Readers
from .storage import SqliteStorage
from .writer import WriteLock

if TYPE_CHECKING:
    from .database import Settings
    from .plugin import SqlitePlugin

T = TypeVar("T")


class _PinnedReader(Readers):
    """One connection in one read transaction, used by one thread at a time."""

    def __init__(self, file: DatabaseFile) -> None:
        super().__init__(file)
        self._is_empty = False
        self._reason = ""
        self._pinned: list[Connection] = []

    def pin(self) -> None:
        """Begin the transaction; without a file there is nothing to begin."""
        self._opening.run(self._file.wait_s, self._pin)

    def _pin(self) -> None:
        try:
            reader = self._connect(Connection.__new__(Connection))
        except NoDataError:
            self._is_empty = True
            return
        self._file.run(_begin, reader)
        self._pinned.append(reader)

    def run(self, work: Callable[..., T], *args: object) -> T:
        result: T = self._opening.run(self._file.wait_s, self._run, work, *args)
        return result

    def _run(self, work: Callable[..., T], *args: object) -> T:
        if not self._pinned:
            if self._is_empty and not self._reason:
                raise NoDataError
            raise StoreNotOpenError(
                f"sqlite {self._file.path}: this snapshot has ended, because {self._reason or 'it was closed'}. Take a "
                "new one with store.snapshot()"
            )
        try:
            return work(self._pinned[0], *args)
        except sqlite3.Error as error:
            if raised_by_handler(error):
                raise
            raise explain(error, self._file.path, self._file.wait_s) from error

    def end(self, reason: str) -> None:
        """Close the connection, once no other thread reads. Reading raises StoreNotOpenError with the first reason."""
        self._opening.run(self._file.wait_s, self._end, reason)

    def _end(self, reason: str) -> None:
        self._reason = self._reason or reason
        self._pinned.clear()
        deque(map(Connection.close, list(self._all)), 0)

    def close_before_fork(self, ticket: Ticket, patience_s: float) -> None:
        self._opening.enter(ticket, patience_s)
        self._end("a fork closed the files")


class PinnedDatabase(Database):
    """One state of the file. Its storages neither own nor close it."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings, WriteLock(settings[0]))
        if self.is_read_only:
            raise CapabilityError(
                f"sqlite {self.path}: a snapshot needs permission to write to the file and its folder, for the locks "
                "of SQLite. Read the namespaces one by one, or connect with that permission and without readonly=true"
            )
        #: Storages then read through `read` alone.
        self.is_read_only = True
        # The file refuses connections without a user.
        self._users[self] = lambda: None
        self._reader = self.readers = _PinnedReader(self._file)
        self.read = self._reader.run
        self.write = self._refuse  # type: ignore[assignment]
        try:
            self._reader.pin()
            self.now_ms = deadlines.now_ms()
        except BaseException:
            # A stored traceback would keep the transaction.
            self._reader.end("it was interrupted")
            raise

    def _refuse(self, *_: object) -> NoReturn:
        raise CapabilityError(f"sqlite {self.path}: a snapshot never changes; nothing was written")

    def add_user(self, owner: object, user: object) -> None:
        """Do nothing: the snapshot ends by `end` alone."""

    def leave(self, user: object, wait_s: float | None = None) -> None:
        """Do nothing: the snapshot ends by `end` alone."""

    def end(self, reason: str) -> None:
        """Let SQLite move the log to the file again. Reading raises StoreNotOpenError with the first `reason`."""
        self._reader.end(reason)


class SqliteSnapshot:
    """What `SqlitePlugin.snapshot` returns."""

    def __init__(self, plugin: SqlitePlugin, settings: Settings) -> None:
        self._plugin = plugin
        self._database = PinnedDatabase(settings)
        self.now_ms = self._database.now_ms

    def open(self, namespace: str) -> SqliteStorage:
        return SqliteStorage(self._plugin, namespace, self._database)

    def namespaces(self) -> list[str]:
        return self._plugin.list_namespaces(self._database, self.now_ms)

    def close(self) -> None:
        self._database.end("it was closed")


def _begin(connection: Connection) -> None:
    # The first read decides which state the transaction sees.
    connection.execute("BEGIN")
    connection.execute("SELECT count(*) FROM namespaces").fetchone()
