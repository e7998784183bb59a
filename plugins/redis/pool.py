"""Connections of the redis engine: kept for the next call, limited in number, one at a time while the server is down.

No lock is held while anything is sent, read or waited for. What a call takes is given back by one atomic operation in a
`finally`, since a signal handler may raise after any other.
"""

from __future__ import annotations

import os
import socket
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any, Final, TypeVar

from redis import exceptions as driver

from hutch import StorageTimeoutError
from hutch.handlers import raised_by_handler
from hutch.locks import FairLock, Ticket

from .protocol import PING, CallFailedError, Connection, close_socket, connection_of

T = TypeVar("T")

# Connections kept for the next call; more than this many threads at once pay for new ones.
_MOST_IDLE: Final = 32
# A firewall or a balancer may have forgotten a connection that was idle for longer, without telling either end.
_ASK_AFTER_S: Final = 5.0
_LONGEST_PING_S: Final = 1.0
# A waiting call is woken by the one before it. Where a signal handler raised instead, the wait ends after this.
_LONGEST_NAP_S: Final = 0.05


class Pool:
    """Connections to one server. Each call takes one, or makes one, and gives it back. Used by any thread."""

    def __init__(
        self,
        make_connection: Callable[[], Any],
        where: str,
        timeout_s: float,
        connect_timeout_s: float,
        most: int | None,
        greet: Callable[[Connection], None],
    ) -> None:
        """`greet` is called with the first connection, before it is used for anything else."""
        self._make = make_connection
        self._timeout_s = timeout_s
        # What the longest attempt to connect takes: the connection itself, then the answers to login and PING.
        self._longest_connect_s = connect_timeout_s + 3 * timeout_s
        self._greet: Callable[[Connection], None] | None = greet
        # append and pop are atomic.
        self._idle: list[Connection] = []
        self._is_open = True
        self._limit = None if most is None else _Limit(most, timeout_s, where, self._raise_outage_since)
        self._turn = FairLock(f"connecting to {where}")
        self._outage: _Outage | None = None
        #: Whether the server was ever reached.
        self.was_connected = False
        _all.add(self)

    def ask(self, request: list[bytes], count: int, careful: bool) -> list[Any]:
        """Send `request` over a connection and return its `count` answers; `careful` avoids one that has ended.

        Raises CallFailedError, and StorageTimeoutError if no connection is free within `timeout_s`.
        """
        if self._limit is None:
            return self._ask(request, count, careful)
        return self._limit.run(self._ask, request, count, careful)

    def drop_idle(self) -> None:
        """Close the idle connections, so that the next call looks the server's name up again."""
        while (connection := self._pop()) is not None:
            connection.close()

    def close(self) -> None:
        """Close the idle connections; one that is in use is closed when it is given back."""
        self._is_open = False
        self.drop_idle()

    def _ask(self, request: list[bytes], count: int, careful: bool) -> list[Any]:
        connection = self._idle_connection(careful) or self._new_connection()
        try:
            answers = connection.ask(request, count)
        except CallFailedError as failure:
            self._report(failure.error)
            raise
        # Only here is the connection known to hold no answer of this call.
        if self._outage is not None:
            self._outage = None
        connection.used_s = time.monotonic()
        if len(self._idle) < _MOST_IDLE:
            self._idle.append(connection)
        else:
            connection.close()
        if not self._is_open:
            self.drop_idle()
        return answers

    def _report(self, error: Exception) -> None:
        """Close the idle connections: what broke one broke the others too. Calls in the queue get the same `error`."""
        self._outage = _Outage(error)
        self.drop_idle()

    def _pop(self) -> Connection | None:
        try:
            return self._idle.pop() if self._idle else None
        except IndexError as error:  # another thread was faster
            if raised_by_handler(error):
                raise
            return None

    def _idle_connection(self, careful: bool) -> Connection | None:
        """A connection from earlier, or None."""
        while (connection := self._pop()) is not None:
            if time.monotonic() - connection.used_s > _ASK_AFTER_S:
                if connection.is_alive(min(self._timeout_s, _LONGEST_PING_S)):
                    return connection
                # The others were idle for longer.
                self.drop_idle()
            elif not careful or not connection.has_ended():
                return connection
        return None

    def _new_connection(self) -> Connection:
        if self._outage is not None:
            # One call finds out for all whether the server is back.
            joined_s = time.monotonic()
            connection = self._turn.run(self._longest_connect_s, self._connected_in_turn, joined_s)
            if connection is not None:
                return connection
        return self._connected()

    def _connected_in_turn(self, joined_s: float) -> Connection | None:
        self._raise_outage_since(joined_s)
        return None if self._outage is None else self._connected()

    def _raise_outage_since(self, joined_s: float) -> None:
        """Raise the error of an outage that was seen while a call waited in the queue: it would meet the same."""
        outage = self._outage
        if outage is not None and outage.seen_s >= joined_s:
            raise CallFailedError(outage.error, sent=False)

    def _connected(self) -> Connection:
        try:
            connection = self._logged_in(self._make())
        except CallFailedError as failure:
            failure.sent = False
            self._report(failure.error)
            raise
        self.was_connected, self._outage = True, None
        return connection

    def _logged_in(self, connecting: Any) -> Connection:
        try:
            connecting.connect()
        except BaseException as error:
            if connecting._sock is not None:
                close_socket(connecting._sock)
            # Python's idna codec and the driver make exceptions of their own of what a handler raised inside them.
            _raise_handlers(error)
            # A ValueError comes from the driver's parser, when the other side speaks something else.
            if isinstance(error, driver.RedisError | ValueError):
                raise CallFailedError(error, sent=False) from error
            raise
        connection = connection_of(connecting)
        try:
            # A server that is full, loading or a stranger says so now, before a command was sent.
            (answer,) = connection.ask(PING, 1)
            if isinstance(answer, driver.ResponseError):
                raise CallFailedError(answer, sent=False)
            if self._greet is not None:
                self._greet(connection)
                self._greet = None
        except BaseException:
            connection.close()
            raise
        return connection

    def _after_fork_in_child(self) -> None:
        self._idle.clear()
        self._outage = None
        if self._limit is not None:
            self._limit.forget_other_threads()


class _Outage:
    """The last failure of a connection, as long as no call has succeeded since."""

    __slots__ = ("error", "seen_s")

    def __init__(self, error: Exception) -> None:
        # A copy: the traceback of the first one keeps what its call sent in memory.
        self.error: Exception = error
        if type(error).__module__ == driver.__name__:
            self.error = type(error)(*error.args)
            self.error.__context__ = error.__context__
        self.seen_s = time.monotonic()


class _Limit:
    """At most `most` calls at a time, in the order in which they came.

    Who is among the first `most` of the queue may go on: one atomic operation takes a place, and one gives it back.
    """

    def __init__(self, most: int, timeout_s: float, where: str, raise_outage_since: Callable[[float], None]) -> None:
        self._most = most
        self._timeout_s = timeout_s
        self._where = where
        self._raise_outage_since = raise_outage_since
        self._queue: dict[Ticket, None] = {}

    def run(self, fn: Callable[..., T], *args: object) -> T:
        """Return ``fn(*args)``, called when there is a place."""
        queue, ticket = self._queue, Ticket()
        ticket.wake = None
        ticket.thread = threading.get_ident()
        try:
            queue[ticket] = None
            if len(queue) > self._most:
                self._wait(ticket)
            return fn(*args)
        finally:
            queue.pop(ticket, None)
            if len(queue) >= self._most:
                self._wake_next()

    def forget_other_threads(self) -> None:
        """Forget the calls of threads that a forked child does not have."""
        for ticket in list(self._queue):
            if ticket.thread != threading.get_ident():
                self._queue.pop(ticket, None)

    def _wait(self, ticket: Ticket) -> None:
        queue, most = self._queue, self._most
        if sum(other.thread == ticket.thread for other in list(queue)) > 1:
            # A signal handler or a finalizer interrupted a call of this thread, which waits for it: it cannot wait.
            return
        joined_s = time.monotonic()
        wake = threading.Lock()
        wake.acquire()
        ticket.wake = wake
        while ticket not in list(queue)[:most]:
            left_s = joined_s + self._timeout_s - time.monotonic()
            if left_s <= 0:
                raise StorageTimeoutError(
                    f"{self._where} was not asked: all {most} connections (option max_connections) were in use for "
                    f"{self._timeout_s:g} s (option timeout_s); nothing was done"
                )
            wake.acquire(timeout=min(left_s, _LONGEST_NAP_S))
        self._raise_outage_since(joined_s)

    def _wake_next(self) -> None:
        for ticket in list(self._queue)[self._most - 1 : self._most]:
            wake = ticket.wake
            if wake is not None and wake.locked():
                try:
                    wake.release()
                except RuntimeError as error:  # another thread woke it meanwhile
                    if raised_by_handler(error):
                        raise


def _raise_handlers(error: BaseException) -> None:
    """Raise what a signal handler raised inside the driver, which may have taken it for a failure of its own."""
    seen: BaseException | None = error
    while seen is not None:
        if raised_by_handler(seen):
            raise seen
        seen = seen.__cause__ or seen.__context__


def keepalive_options() -> dict[int, int]:
    """The socket options by which the system notices within two minutes that the other end is gone."""
    wanted = {"TCP_KEEPIDLE": 60, "TCP_KEEPALIVE": 60, "TCP_KEEPINTVL": 15, "TCP_KEEPCNT": 4}
    if hasattr(socket, "TCP_KEEPIDLE"):
        del wanted["TCP_KEEPALIVE"]  # what macOS calls it
    return {getattr(socket, name): value for name, value in wanted.items() if hasattr(socket, name)}


_all: weakref.WeakSet[Pool] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for pool in list(_all):
        pool._after_fork_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
