"""The connection of this process that writes to one SQLite file, used by one thread at a time, in turn.

A signal handler or a finalizer may write in the middle of another write of its thread. It finds the transaction of
that, rolls it back, and commits its own; the interrupted one finds that its connection refuses to write, and begins
again.
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

# SQLite's lock has no queue: a process that writes in a loop takes it again before another one has asked. So a process
# that had to wait for others a moment ago lets them in after each turn of _TURN_S, for longer than they sleep between
# two tries. Eight processes in a loop, each with strict durability: 0.5 s was the longest wait, and 1.6 s without it.
_CONTENDED_S = 1.0
_TURN_S = 0.02
_LET_IN_S = 0.002


class WriteLock:
    """The turn of those who write to one path, which the writers there share: they may differ in their settings."""

    def __init__(self, path: Path) -> None:
        self.lock = FairLock(str(path))
        #: A set that keeps its order, and whose operations are those of a dict.
        self.writers: dict[Writer, None] = {}
        #: Whether there is more than one of them.
        self.is_shared = False

    def add(self, writer: Writer) -> None:
        """Let `writer` take part."""
        self.writers[writer] = None
        self.is_shared = len(self.writers) > 1

    def remove(self, writer: Writer) -> None:
        """Forget `writer`, if it takes part."""
        self.writers.pop(writer, None)
        self.is_shared = len(self.writers) > 1


class Writer:
    """The connection that writes, made when it is needed."""

    def __init__(self, file: DatabaseFile, write_lock: WriteLock) -> None:
        self.write_lock = write_lock
        self._file = file
        self._lock = write_lock.lock
        self._contended_until_s = self._turn_ends_s = -math.inf
        self._forget()

    def _forget(self) -> None:
        self._connection: Connection | None = None
        # One on its way: it may have begun a transaction to make the tables.
        self._new: Connection | None = None
        # Those whose transactions were undone, until the calls that used them have closed them.
        self._interrupted: set[Connection] = set()
        # The files that the connection has open, known once it has written: the log is made by then.
        self._files: Files | None = None

    def run(self, work: Callable[..., T], *args: object) -> T:
        """Return ``work(connection, *args)`` for the connection that writes.

        `work` is one statement, or a transaction from BEGIN to COMMIT; it may be called again after it failed.
        """
        result: T = self._lock.run(self._file.wait_s, self._run, time.monotonic(), work, *args)
        return result

    def _run(self, began_s: float, work: Callable[..., T], *args: object) -> T:
        wait: BusyWait | None = None
        if began_s < self._contended_until_s:
            self._let_others_in()
        while True:
            connection = self._connection
            # In a transaction, although this thread has the lock: its own write, which this one interrupts.
            if connection is None or connection.in_transaction or self.write_lock.is_shared:
                connection = self._ready()
            if self._files is not None and time.monotonic() >= self._file.trusted_until_s:
                self._file.must_be_in_place(self._files)
            try:
                result = work(connection, *args)
            except BaseException as error:
                is_current = self._connection is connection
                # No call comes before: whatever a signal handler raises after it, no transaction is left open.
                try:
                    connection.rollback()
                except sqlite3.Error:
                    # Closing does it for certain.
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
        """Pause at the end of this process's turn: other processes wait to write."""
        now_s = time.monotonic()
        if now_s > self._turn_ends_s:
            self._turn_ends_s = now_s + _LET_IN_S + _TURN_S
            time.sleep(_LET_IN_S)

    def _ready(self) -> Connection:
        """Return the connection, with no transaction on it or on any other one of this thread."""
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
                # Where a handler wrote meanwhile, that has made the tables, and this went wrong for it.
                if self._new is new or not isinstance(error, StoreError) or raised_by_handler(error):
                    raise
                continue
            if self._new is new:
                self._connection, self._new, self._files = new, None, None
            else:
                self._close_interrupted(new)

    def interrupt(self) -> None:
        """Undo the transaction that this thread has begun and not ended, so that it cannot go on.

        Whatever code was interrupted in the middle of it finds its connection refuse to write, and begins again.
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
                # It may not be connected yet, or closed.
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

        A write of another thread is waited for up to `wait_s` seconds; after that, it closes the connection itself.
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
        """Have on the disk what was written without a flush, as far as others who have the file open allow."""
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
        """Close it, and let nobody write until `leave`. Raises StorageTimeoutError after `patience_s` seconds."""
        self._lock.enter(ticket, patience_s)
        # What this thread uses in a call that a signal handler interrupted, which forks: that begins again.
        for connection in self._known():
            close(connection)
        self._forget()

    def leave(self, ticket: Ticket) -> None:
        """Let the others write again."""
        self._lock.leave(ticket)

    def forget(self) -> list[Connection]:
        """Return the connections that are open, and know none any more: in a child of fork."""
        left = list(filter(is_open, self._known()))
        self._forget()
        return left

    def _known(self) -> list[Connection]:
        known = [self._connection, self._new, *self._interrupted]
        return [connection for connection in known if connection is not None]
