"""The connection pool of the redis engine: reused, limited in number, opened one at a time while the server is down.

No lock is held while a call sends, reads or waits. A call returns what it took by one atomic operation in a `finally`,
because a signal handler may raise after any other operation.
"""

from __future__ import annotations

import itertools
import socket
import threading
import time
import traceback
from collections.abc import Callable
from types import FrameType
from typing import Any, Final, TypeVar

from redis import exceptions as driver

from hutch import StorageTimeoutError
from hutch.fork import ForkSafeLock, WeakRefs, run_in_child
from hutch.handlers import raised_by_handler
from hutch.locks import FairLock, Ticket, wake_up

from .adapter import SOCKET, Connection, connection_of, socket_of
from .errors import has_moved
from .protocol import PING, CallFailedError, close_socket

T = TypeVar("T")

# Idle connections kept for reuse; more threads than this at once pay for new connections.
_MAX_IDLE: Final = 32
# A firewall or load balancer may silently drop a connection that is idle for longer.
_PING_AFTER_S: Final = 5.0
_MAX_PING_S: Final = 1.0
# A waiting call is woken by the call before it. If a signal handler raised instead, the wait ends after this time.
_MAX_WAKE_DELAY_S: Final = 0.05


class Pool:
    """A pool of connections to one server. Thread-safe. Each call takes or opens a connection and returns it."""

    def __init__(
        self,
        make_connection: Callable[[], Any],
        where: str,
        timeout_s: float,
        connect_timeout_s: float,
        max_connections: int | None,
        greet: Callable[[Connection], None],
    ) -> None:
        """Set up an empty pool; `greet` is called with the first connection, before any other use of it."""
        self._make = make_connection
        self._timeout_s = timeout_s
        # The longest connection attempt: connecting, then the answers to login and PING.
        self._longest_connect_s = connect_timeout_s + 3 * timeout_s
        self._greet: Callable[[Connection], None] | None = greet
        # Without a lock: append and pop are atomic.
        self._idle: list[Connection] = []
        self._is_open = True
        self._limit = (
            None if max_connections is None else _Limit(max_connections, timeout_s, where, self._raise_outage_since)
        )
        self._connect_lock = FairLock(f"connecting to {where}")
        self._outage: _Outage | None = None
        # How many outages were recorded. A call that began before the last one, and fails, reports nothing new.
        self._outages = 0
        self._outage_lock = ForkSafeLock()
        #: Whether the server has ever been reached.
        self.was_connected = False
        _all.add(self)

    @property
    def is_failing(self) -> bool:
        """Whether the last call failed for want of a connection."""
        return self._outage is not None

    def ask(self, request: list[bytes], count: int, careful: bool) -> list[Any]:
        """Send `request` over a connection and return its `count` answers; `careful` skips closed connections.

        Raises CallFailedError, and StorageTimeoutError if no connection is free within `timeout_s`.
        """
        if self._limit is None:
            return self._ask(request, count, careful)
        return self._limit.run(self._ask, request, count, careful)

    def follow(self, error: Exception) -> Pool | None:
        """React to the failure of a call, before the next attempt: a server whose role has changed may be another one.

        Returns the pool of the one node that takes the next attempt, of a cluster that is moving the data.
        """
        if has_moved(error):
            self.drop_idle()
        return None

    def reader_of(self, server: T) -> T:
        """Return `server`, which reads from this same pool."""
        return server

    def drop_idle(self) -> None:
        """Close the idle connections, so that the next call resolves the server's name again."""
        while (connection := self._pop()) is not None:
            connection.close()

    def close(self) -> None:
        """Close the idle connections; a connection in use is closed when its call ends."""
        self._is_open = False
        self.drop_idle()

    def _ask(self, request: list[bytes], count: int, careful: bool) -> list[Any]:
        # Read before an idle connection is taken: what was idle when an outage was counted has been dropped.
        outages = self._outages
        connection = self._idle_connection(careful)
        if connection is None:
            connection = self._new_connection()
            outages = self._outages
        try:
            answers = connection.ask(request, count)
            # Reuse is safe only from here on: the connection holds no unread answer.
            if self._outage is not None:
                self._outage = None
            connection.used_s = time.monotonic()
            has_room = len(self._idle) < _MAX_IDLE
        except CallFailedError as failure:
            self._report(failure.error, outages)
            raise
        except BaseException:
            # Not left to the finalizer: the traceback of an exception that a log holds keeps this frame.
            connection.close()
            raise
        # CPython runs no handler between the `try` and the append.
        if has_room:
            self._idle.append(connection)
        else:
            connection.close()
        if not self._is_open:
            self.drop_idle()
        return answers

    def _report(self, error: Exception, outages: int) -> None:
        """Record an outage and close the idle connections, which are broken too. Queued calls get the same `error`.

        Does nothing if another outage was recorded since the failed call read `outages`: connections that broke
        together time out one after another, while the next calls already use new ones.
        """
        with self._outage_lock.current:
            if outages == self._outages:
                self._outage = _Outage(error)
                self.drop_idle()
                self._outages += 1

    def _pop(self) -> Connection | None:
        try:
            return self._idle.pop() if self._idle else None
        except IndexError as error:  # another thread was faster
            if raised_by_handler(error):
                raise
            return None

    def _idle_connection(self, careful: bool) -> Connection | None:
        """Return a live idle connection, or None."""
        while (connection := self._pop()) is not None:
            try:
                if time.monotonic() - connection.used_s <= _PING_AFTER_S:
                    is_alive = not careful or not connection.has_ended()
                else:
                    is_alive = connection.is_alive(min(self._timeout_s, _MAX_PING_S))
                    if not is_alive:
                        # The other connections were idle for longer.
                        self.drop_idle()
            except BaseException:
                connection.close()
                raise
            if is_alive:
                return connection
        return None

    def _new_connection(self) -> Connection:
        if self._outage is not None:
            # One call probes for all whether the server is back.
            joined_s = time.monotonic()
            connection = self._connect_lock.run(self._longest_connect_s, self._connect_unless_up, joined_s)
            if connection is not None:
                return connection
        return self._connect()

    def _connect_unless_up(self, joined_s: float) -> Connection | None:
        self._raise_outage_since(joined_s)
        return None if self._outage is None else self._connect()

    def _raise_outage_since(self, joined_s: float) -> None:
        """Raise the error of an outage seen while the call waited in the queue: the call would fail the same way."""
        outage = self._outage
        if outage is not None and outage.seen_s >= joined_s:
            raise CallFailedError(outage.error, sent=False)

    def _connect(self) -> Connection:
        outages = self._outages
        try:
            connection = self._log_in(self._make())
        except CallFailedError as failure:
            failure.sent = False
            self._report(failure.error, outages)
            raise
        self.was_connected, self._outage = True, None
        return connection

    def _log_in(self, connecting: Any) -> Connection:
        try:
            connecting.connect()
        except BaseException as error:
            if (opened := socket_of(connecting)) is not None:
                close_socket(opened)
            _close_unassigned(error)
            # Python's idna codec and the driver wrap a signal handler's exception in their own.
            _raise_handler_error(error)
            # The driver's parser raises ValueError if the other side does not speak the protocol.
            if isinstance(error, driver.RedisError | ValueError):
                raise CallFailedError(error, sent=False) from error
            raise
        # Without a call: a signal handler may raise after one, before the socket has an owner.
        attributes = connecting.__dict__
        connected = attributes[SOCKET] if SOCKET in attributes else None  # noqa: SIM401 - `get` is a call
        try:
            connection = connection_of(connecting)
        except BaseException:
            if connected is not None:
                socket.SocketType.close(connected)
            else:
                connecting.disconnect()
            raise
        try:
            # Detect a full, loading or foreign server before the first command is sent.
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
    """The last connection failure, kept until a call succeeds."""

    __slots__ = ("error", "seen_s")

    def __init__(self, error: Exception) -> None:
        # A copy, because the original's traceback keeps the sent data in memory.
        self.error: Exception = error
        if type(error).__module__ == driver.__name__:
            self.error = type(error)(*error.args)
            self.error.__context__ = error.__context__
        self.seen_s = time.monotonic()


class _Limit:
    """A limit of `max_calls` concurrent calls, served first come, first served.

    The first `max_calls` calls in the queue may run: one atomic operation enters the queue, and one leaves it.
    """

    def __init__(
        self, max_calls: int, timeout_s: float, where: str, raise_outage_since: Callable[[float], None]
    ) -> None:
        self._max_calls = max_calls
        self._timeout_s = timeout_s
        self._where = where
        self._raise_outage_since = raise_outage_since
        self._queue: dict[Ticket, None] = {}

    def run(self, fn: Callable[..., T], *args: object) -> T:
        """Return ``fn(*args)``, called when fewer than `max_calls` calls run."""
        queue, ticket = self._queue, Ticket()
        ticket.wake = None
        ticket.thread = threading.get_ident()
        try:
            queue[ticket] = None
            if len(queue) > self._max_calls:
                self._wait(ticket)
            return fn(*args)
        finally:
            queue.pop(ticket, None)
            if len(queue) >= self._max_calls:
                self._wake_next()

    def forget_other_threads(self) -> None:
        """Remove the calls of threads that do not exist in a forked child."""
        for ticket in list(self._queue):
            if ticket.thread != threading.get_ident():
                self._queue.pop(ticket, None)

    def _wait(self, ticket: Ticket) -> None:
        queue, max_calls = self._queue, self._max_calls
        if sum(other.thread == ticket.thread for other in list(queue)) > 1:
            # A signal handler or finalizer interrupted a call of this same thread: waiting for it would be a deadlock.
            return
        joined_s = time.monotonic()
        wake = threading.Lock()
        wake.acquire()
        ticket.wake = wake
        while ticket not in list(queue)[:max_calls]:
            left_s = joined_s + self._timeout_s - time.monotonic()
            if left_s <= 0:
                raise StorageTimeoutError(
                    f"{self._where} was not asked: all {max_calls} connections (option max_connections) were in use "
                    f"for {self._timeout_s:g} s (option timeout_s); nothing was done"
                )
            wake.acquire(timeout=min(left_s, _MAX_WAKE_DELAY_S))
        self._raise_outage_since(joined_s)

    def _wake_next(self) -> None:
        for ticket in list(self._queue)[self._max_calls - 1 : self._max_calls]:
            wake_up(ticket.wake)


def _close_unassigned(error: BaseException) -> None:
    """Close the sockets that only the driver's frames in the traceback of `error` refer to.

    A signal handler may raise between the driver's opening of a socket and its assignment, and an application may keep
    the exception. The frames after the driver's are the handler's, whose sockets are its own.
    """
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    for frame in itertools.takewhile(_is_of_driver, itertools.islice(frames, 1, None)):
        for value in frame.f_locals.values():
            if isinstance(value, socket.socket):
                socket.SocketType.close(value)


def _is_of_driver(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__")).partition(".")[0] in ("redis", "ssl")


def _raise_handler_error(error: BaseException) -> None:
    """Raise a signal handler's exception that the driver may have mistaken for its own failure."""
    seen: BaseException | None = error
    while seen is not None:
        if raised_by_handler(seen):
            raise seen
        seen = seen.__cause__ or seen.__context__


def keepalive_options() -> dict[int, int]:
    """Return the socket options that make the system notice a dead peer within two minutes."""
    wanted = {"TCP_KEEPIDLE": 60, "TCP_KEEPALIVE": 60, "TCP_KEEPINTVL": 15, "TCP_KEEPCNT": 4}
    if hasattr(socket, "TCP_KEEPIDLE"):
        del wanted["TCP_KEEPALIVE"]  # the name on macOS
    return {getattr(socket, name): value for name, value in wanted.items() if hasattr(socket, name)}


_all: WeakRefs[Pool] = WeakRefs()


def _after_fork_in_child() -> None:
    for pool in _all.live():
        pool._after_fork_in_child()


run_in_child(_after_fork_in_child)
