"""The adapter over the driver's connections: take over the socket, or else use the driver's public methods.

Only this module knows where a connection of redis-py has its socket, which is not part of its public interface.
"""

from __future__ import annotations

import time
from typing import Any, Final, Protocol

from redis import exceptions as driver

from hutch.handlers import raised_by_handler, suppress_own

from . import protocol
from .protocol import PING, CallFailedError

#: The attribute that holds the socket.
SOCKET: Final = "_sock"


class Connection(Protocol):
    """A logged-in connection to a server, see `protocol.Connection`."""

    timeout_s: float | None
    used_s: float

    def ask(self, request: list[bytes], count: int) -> list[Any]: ...
    def is_alive(self, timeout_s: float) -> bool: ...
    def has_ended(self) -> bool: ...
    def close(self) -> None: ...


def connection_of(connected: Any) -> Connection:
    """Return a connection that takes over `connected`, a connection of the driver that has just logged in."""
    if socket_of(connected) is None:
        return DriverConnection(connected)
    return protocol.connection_of(connected)


def socket_of(connected: Any) -> Any:
    """Return the socket of a connection of the driver, None if it has none or keeps it elsewhere."""
    taken = getattr(connected, SOCKET, None)
    return taken if hasattr(taken, "sendall") and hasattr(taken, "recv") else None


class DriverConnection:
    """A connection that uses the driver's public methods alone, for a driver that keeps its socket elsewhere.

    It is slower, and does not wait for the server to run a call that a signal handler's exception abandons.
    """

    def __init__(self, connected: Any) -> None:
        self._forks = protocol.forks()
        self._driver = connected
        self.timeout_s: float | None = connected.socket_timeout
        self.used_s = time.monotonic()

    def ask(self, request: list[bytes], count: int) -> list[Any]:
        """Send `request` and return its `count` answers, see `protocol.Connection.ask`."""
        answers: list[Any] = []
        try:
            if self._forks != protocol.forks():
                raise driver.ConnectionError("the process was forked meanwhile")
            self._driver.send_packed_command(request, check_health=False)
            self._read_into(answers, count)
        except (driver.RedisError, OSError, ValueError) as error:
            self.close()
            if raised_by_handler(error):
                raise
            raise CallFailedError(error, sent=True) from error
        except BaseException:
            self.close()
            raise
        return answers

    def _read_into(self, answers: list[Any], count: int) -> None:
        while len(answers) < count:
            answers.append(self._answer())

    def _answer(self) -> Any:
        try:
            return self._driver.read_response(disable_decoding=True)
        except driver.ResponseError as error:
            if raised_by_handler(error):
                raise
            return error

    def is_alive(self, timeout_s: float) -> bool:
        """Return whether the server answers; if not, close the connection."""
        try:
            self.ask(PING, 1)
        except CallFailedError:
            return False
        return True

    def has_ended(self) -> bool:
        """Return whether the server has closed the connection. No answer is due, so any readable data means the end."""
        try:
            has_ended = bool(self._driver.can_read(timeout=0))
        except (driver.RedisError, OSError) as error:
            if raised_by_handler(error):
                raise
            has_ended = True
        if has_ended:
            self.close()
        return has_ended

    def close(self) -> None:
        """Close the connection. A forked child closes only its own copy."""
        with suppress_own(OSError, driver.RedisError):
            self._driver.disconnect()
