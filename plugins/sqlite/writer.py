"""This process's writing connection to one SQLite file, used by one thread at a time.

A signal handler or finalizer may write in the middle of another write of its thread. It rolls back the interrupted
transaction and commits its own; the interrupted write finds that its connection refuses to write, and starts again.
"""

from __future__ import annotations

import math
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from sqlite3 import Connection
from typing import TypeVar

from hutch import StorageTimeoutError, StoreError
from hutch.handlers import raised_by_handler
from hutch.locks import FairLock, Ticket

from .errors import is_from_sqlite
from .file import DatabaseFile, Files, close, fetch, is_open
from .wait import BusyWait

T = TypeVar("T")

# SQLite's lock has no queue: a process that writes in a loop retakes it before another one tries. So a process that
# recently waited for others pauses after every _TURN_S of writing, for longer than they sleep between two tries. With
# eight processes writing in a loop (strict durability) the longest wait was 0.5 s, and 1.6 s without the pauses.
_CONTENDED_S = 1.0
_TURN_S = 0.02
_LET_IN_S = 0.002


class WriteLock:
    """The lock of all writers of one path, which share it because they may differ in their settings."""

    def __init__(self, path: Path) -> None:
        self.lock = FairLock(str(path))
        #: An ordered set: a dict whose operations are atomic.
        self.writers: dict[Writer, None] = {}
        #: Whether there is more than one writer.
        self.is_shared = False

    def add(self, writer: Writer) -> None:
        """Add `writer`."""
        self.writers[writer] = None
        self.is_shared = len(self.writers) > 1

    def remove(self, writer: Writer) -> None:
        """Remove `writer`, if present."""
        self.writers.pop(writer, None)
        self.is_shared = len(self.writers) > 1


class Writer:
    """The writing connection, opened when first needed."""

    def __init__(self, file: DatabaseFile, write_lock: WriteLock) -> None:
        self.write_lock = write_lock
        self._file = file
        self._lock = write_lock.lock
        self._contended_until_s = self._turn_ends_s = -math.inf
        self._forget()

    def _forget(self) -> None:
        self._connection: Connection | None = None
        # A connection being opened, which may have begun a transaction to create the tables.
        self._new: Connection | None = None
        # Connections whose transactions were rolled back, until the interrupted calls close them.
        self._interrupted: set[Connection] = set()
        # The files that the connection has open; known after its first write, which creates the log.
        self._files: Files | None = None

    def run(self, work: Callable[..., T], *args: object) -> T:
        """Return ``work(connection, *args)``, run on the writing connection.

        `work` runs one statement, or a transaction from BEGIN to COMMIT; it may be called again after it failed.
        """
        result: T = self._lock.run(self._file.wait_s, self._run, time.monotonic(), work, *args)
        return result

    def _run(self, began_s: float, work: Callable[..., T], *args: object) -> T:
        wait: BusyWait | None = None
        if began_s < self._contended_until_s:
            self._let_others_in()
        while True:
            connection = self._connection
            # An open transaction although this thread has the lock is its own write, which this call interrupts.
            if connection is None or connection.in_transaction or self.write_lock.is_shared:
                connection = self._ready()
            if self._files is not None and time.monotonic() >= self._file.trusted_until_s:
                self._file.must_be_in_place(self._files)
            try:
                result = work(connection, *args)
            except BaseException as error:
                is_current = self._connection is connection
                # The first call here, so that no transaction stays open even if a signal handler raises.
                try:
                    connection.rollback()
                except sqlite3.Error:
                    # Closing certainly rolls back.
                    if is_current:
                        self._connection = None
                    connection.close()
                if not is_current:
                    self._close_interrupted(connection)
                if not is_from_sqlite(error):
                    raise
                if is_current:
                    wait = self._file.before_next_try(error, wait, began_s)
                    now_s = time.monotonic()
                    self._contended_until_s, self._turn_ends_s = now_s + _CONTENDED_S, now_s + _TURN_S
                else:
                    self._must_not_be_too_late(began_s)
            else:
                if self._files is None:
                    self._files = self._file.files()
                return result
            finally:
                if not self._file.users:
                    self._close()

    def _let_others_in(self) -> None:
        """Pause if this process has written for _TURN_S, because other processes wait to write."""
        now_s = time.monotonic()
        if now_s > self._turn_ends_s:
            self._turn_ends_s = now_s + _LET_IN_S + _TURN_S
            time.sleep(_LET_IN_S)

    def _ready(self) -> Connection:
        """Return the connection, after rolling back every transaction of this thread, on any connection."""
        while True:
            for writer in list(self.write_lock.writers):
                writer.interrupt()
            if self._connection is not None:
                return self._connection
            new = Connection.__new__(Connection)
            try:
                self._new = new
                self._file.connect(new, create=True)
            except BaseException as error:
                self._close_interrupted(new)
                # If a handler wrote meanwhile, it has created the tables and so caused this error.
                if self._new is new or not isinstance(error, StoreError) or raised_by_handler(error):
                    raise
                continue
            if self._new is new:
                self._connection, self._new, self._files = new, None, None
            else:
                self._close_interrupted(new)

    def interrupt(self) -> None:
        """Roll back this thread's open transaction, so that it cannot continue.

        The code interrupted inside it finds that its connection refuses to write, and starts again.
        """
        for connection in (self._connection, self._new):
            if connection is None:
                continue
            if connection is self._new:
                self._new = None
                if not is_open(connection):
                    continue  # not connected yet, or failed
            elif connection.in_transaction:
                self._connection = None
            else:
                continue
            self._interrupted.add(connection)
            try:
                connection.execute("PRAGMA query_only = ON")
                connection.rollback()
            except sqlite3.Error as error:
                # The connection may not be open yet, or already closed.
                if not is_from_sqlite(error):
                    raise

    def _close_interrupted(self, connection: Connection) -> None:
        close(connection)
        self._interrupted.discard(connection)

    def _must_not_be_too_late(self, began_s: float) -> None:
        if time.monotonic() - began_s > self._file.wait_s:
            raise StorageTimeoutError(
                f"a write to {self._file.path} was interrupted by writes of signal handlers, again and again, for "
                f"{self._file.wait_s:g} s; nothing was written by it. Let the signals come less often, or raise wait_s"
            )

    def close_if_unused(self, wait_s: float) -> None:
        """Close the connection unless there are users.

        Waits up to `wait_s` seconds for another thread's write; a longer write closes the connection itself.
        """
        if self._connection is None:
            return
        try:
            self._lock.run(wait_s, self._close_if_unused)
        except StorageTimeoutError as error:
            if raised_by_handler(error):
                raise

    def _close_if_unused(self) -> None:
        if not self._file.users:
            if self._file.durability == "relaxed":
                self._flush()
            self._close()

    def _flush(self) -> None:
        """Flush unflushed writes to the disk, as far as other processes that have the file open allow."""
        if self._connection is None or self._connection.in_transaction:
            return
        try:
            self._connection.execute("PRAGMA synchronous = NORMAL")
            fetch(self._connection, "PRAGMA wal_checkpoint(PASSIVE)")
        except sqlite3.Error as error:
            if not is_from_sqlite(error):
                raise

    def _close(self) -> None:
        connection, self._connection, self._files = self._connection, None, None
        if connection is not None:
            connection.close()

    # --- fork ---

    def close_before_fork(self, ticket: Ticket, patience_s: float) -> None:
        """Close the connection and block writes until `leave`; raise StorageTimeoutError after `patience_s` seconds."""
        self._lock.enter(ticket, patience_s)
        # If a signal handler forks during a write of this thread, the interrupted write starts again.
        for connection in self._known():
            close(connection)
        self._forget()

    def leave(self, ticket: Ticket) -> None:
        """Allow writes again."""
        self._lock.leave(ticket)

    def forget(self) -> list[Connection]:
        """Forget all connections in a forked child, and return the ones that are still open."""
        left = list(filter(is_open, self._known()))
        self._forget()
        return left

    def _known(self) -> list[Connection]:
        known = [self._connection, self._new, *self._interrupted]
        return [connection for connection in known if connection is not None]
