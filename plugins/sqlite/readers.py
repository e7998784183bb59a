"""The connections of this process that read one SQLite file, each used by one thread at a time."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable
from sqlite3 import Connection
from typing import TypeVar

from hutch import StorageTimeoutError
from hutch.locks import FairLock, Ticket

from .file import DatabaseFile, close, is_open

T = TypeVar("T")

# Readers kept when idle. While more threads than that read at once there are more.
_IDLE_READERS = 8


class Readers:
    """A pool of connections that read. A reader never waits for a writer: it sees the last commit.

    A connection goes back to the pool only where all went well. Whatever is raised, by a signal handler too, closes it,
    since a kept traceback may keep a part of a read that was not ended. One that a handler's exception lost on its way
    out of the pool, before it had a name, is found again when the next is needed.
    """

    def __init__(self, file: DatabaseFile) -> None:
        self._file = file
        self._opening = FairLock(f"opening {file.path}")
        #: Those that nobody uses: always this list. A thread takes one and puts it back; `pop` and `append` are atomic.
        #: Whoever finds the storage closed then calls `trim`.
        self.idle: list[Connection] = []
        # All of them, so that it is known when none is in use.
        self._all: set[Connection] = set()

    def run(self, work: Callable[..., T], *args: object) -> T:
        """Return ``work(connection, *args)`` for a connection that nobody else uses meanwhile.

        Raises NoDataError if there is no file.
        """
        try:
            reader = self.idle.pop()
        except IndexError:
            reader = self._opening.run(self._file.wait_s, self._take)
        try:
            result = self._file.run(work, reader, *args)
        except BaseException:
            reader.close()
            raise
        self.idle.append(reader)
        if len(self.idle) > _IDLE_READERS or not self._file.users:
            self.trim()
        return result

    def trim(self) -> None:
        """Close the idle readers that are too many; once the last user is gone, all."""
        while len(self.idle) > (_IDLE_READERS if self._file.users else 0):
            try:
                reader = self.idle.pop()
            except IndexError:
                break
            self._close(reader)
        if self._all and not self._file.users:
            # Another thread that opens one closes it, too.
            with contextlib.suppress(StorageTimeoutError):
                self._opening.run(0, self._close_lost)

    def close_before_fork(self, ticket: Ticket, patience_s: float) -> None:
        """Close all, and let none be opened until `leave`. Those that are in use are waited for, up to `patience_s`."""
        deadline_s = time.monotonic() + patience_s
        self._opening.enter(ticket, patience_s)
        while self._all and time.monotonic() < deadline_s:
            self._close_lost()
            try:
                reader = self.idle.pop()
            except IndexError:
                time.sleep(0.001)
            else:
                self._close(reader)

    def leave(self, ticket: Ticket) -> None:
        """Let readers be opened again."""
        self._opening.leave(ticket)

    def forget(self) -> list[Connection]:
        """Return the connections that are open, and know none any more: in a child of fork."""
        left = list(filter(is_open, self._all))
        self.idle.clear()
        self._all.clear()
        return left

    def _take(self) -> Connection:
        try:
            return self.idle.pop()
        except IndexError:
            pass
        for reader in self._lost():
            return reader
        reader = Connection.__new__(Connection)
        try:
            self._file.connect(reader, create=False)
            self._all.add(reader)
        except BaseException:
            close(reader)
            raise
        return reader

    def _lost(self) -> list[Connection]:
        """Return the open readers that are not idle and that no code uses: a handler raised before they had a name.

        Call it only while `_opening` is held, since every caller takes them for its own.
        """
        lost: list[Connection] = []
        if len(self._all) == len(self.idle):
            return lost
        # Whoever uses a reader has a reference to it, besides those that every connection has, to itself and from
        # `self._all`, in the place of which stands the name `probe`.
        probe = Connection(":memory:")
        unused = 0
        for reader in [probe, *self._all]:
            count = sys.getrefcount(reader)
            if reader is probe:
                unused = count
            elif not is_open(reader):
                self._all.discard(reader)
            elif count <= unused:
                lost.append(reader)
        probe.close()
        return lost

    def _close_lost(self) -> None:
        for reader in self._lost():
            self._close(reader)

    def _close(self, reader: Connection) -> None:
        reader.close()
        self._all.discard(reader)
