"""The pool of this process's reading connections to one SQLite file, each used by one thread at a time."""

from __future__ import annotations

import contextlib
import sys
import time
from collections import deque
from collections.abc import Callable
from sqlite3 import Connection
from typing import TypeVar

from hutch import StorageTimeoutError
from hutch.handlers import release_frames
from hutch.locks import FairLock, Ticket

from .file import DatabaseFile, close, is_open

T = TypeVar("T")

# The number of idle readers kept. More exist while more threads read concurrently.
_IDLE_READERS = 8


class Readers:
    """A pool of reading connections. A reader never waits for a writer: it sees the last commit.

    A connection returns to the pool only after success. Any exception, also from a signal handler, closes it, because a
    stored traceback may keep an unfinished read alive. A connection that a handler's exception lost between the pool
    and the variable that should hold it is recovered when the next one is needed. That is why no variable may refer to
    an idle or lost connection where a handler can raise: a stored traceback would keep the variable, and the connection
    would seem to be in use for ever.
    """

    def __init__(self, file: DatabaseFile) -> None:
        self._file = file
        self._opening = FairLock(f"opening {file.path}")
        #: The idle readers; the list object never changes. A thread takes one by `pop` and puts it back by ``+=``: as
        #: atomic as `append`, but no call, so no handler runs before the variable is deleted. A thread that then finds
        #: the storage closed calls `trim`.
        self.idle: list[Connection] = []
        # Every reader, which shows when none is in use.
        self._all: set[Connection] = set()

    def run(self, work: Callable[..., T], *args: object) -> T:
        """Return ``work(connection, *args)``, with a connection that no other thread uses meanwhile.

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
        idle = self.idle
        idle += (reader,)
        del reader
        if len(idle) > _IDLE_READERS or not self._file.users:
            self.trim()
        return result

    def trim(self) -> None:
        """Close surplus idle readers, or all of them once the last user has left."""
        while len(self.idle) > (_IDLE_READERS if self._file.users else 0):
            try:
                Connection.close(self.idle.pop())
            except IndexError:
                break
        if self._all and not self._file.users:
            # A thread that is opening a reader closes it itself.
            with contextlib.suppress(StorageTimeoutError):
                self._opening.run(0, self._close_lost)

    def close_before_fork(self, ticket: Ticket, patience_s: float) -> None:
        """Close all readers and block new ones until `leave`. Waits up to `patience_s` for readers in use."""
        deadline_s = time.monotonic() + patience_s
        self._opening.enter(ticket, patience_s)
        while self._all and time.monotonic() < deadline_s:
            self._close_lost()
            try:
                Connection.close(self.idle.pop())
            except IndexError:
                time.sleep(0.001)

    def leave(self, ticket: Ticket) -> None:
        """Allow readers to be opened again."""
        self._opening.leave(ticket)

    def forget(self) -> list[Connection]:
        """Empty the pool in a forked child, and return the connections that are still open."""
        left = list(filter(is_open, self._all))
        self.idle.clear()
        self._all.clear()
        return left

    def _take(self) -> Connection:
        try:
            return self.idle.pop()
        except IndexError:
            pass
        lost = self._lost()
        return lost[0] if lost else self._connect(Connection.__new__(Connection))

    def _connect(self, reader: Connection) -> Connection:
        try:
            self._file.connect(reader, create=False)
            self._all.add(reader)
        except BaseException:
            close(reader)
            raise
        return reader

    def _lost(self) -> list[Connection]:
        """Return open readers that are neither idle nor in use, because a handler raised before they were assigned.

        Call it only while holding `_opening`, because every caller takes ownership of them.
        """
        if len(self._all) == len(self.idle):
            return []
        probe = Connection(":memory:")
        try:
            return self._find_lost(probe)
        except BaseException as error:
            release_frames(error, __file__)
            raise
        finally:
            probe.close()

    def _find_lost(self, probe: Connection) -> list[Connection]:
        # Two variables refer to `probe`, as `self._all` and a variable refer to a reader in use.
        lost: list[Connection] = []
        used = 0
        for reader in [probe, *self._all]:
            count = sys.getrefcount(reader)
            if reader is probe:
                used = count
            elif not is_open(reader):
                self._all.discard(reader)
            elif count < used:
                lost.append(reader)
        return lost

    def _close_lost(self) -> None:
        """Close the lost readers; the next search removes them from `_all`."""
        deque(map(Connection.close, self._lost()), 0)
