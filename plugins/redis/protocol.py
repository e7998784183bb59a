"""One connection to a Redis server: send commands and read complete answers.

The driver connects: it resolves the name, does TLS and logs in. Then this module takes over its socket and speaks the
protocol (RESP2) itself, because only the code that reads can tell whether an answer is complete, and whether an
exception came from the socket or from a signal handler.
"""

from __future__ import annotations

import importlib
import select
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any

from redis import exceptions as driver
from redis.utils import HIREDIS_AVAILABLE

from hutch.fork import run_in_child
from hutch.handlers import raised_by_handler, suppress_own

Argument = str | bytes | int
Command = Sequence[Argument]

_READ_BYTES = 64 * 1024
_MAX_READ_BYTES = 1024 * 1024
# The first line of an answer: its type and a number, or the text of an error.
_MAX_LINE_BYTES = 64 * 1024
_MAX_DEPTH = 8
# The longest wait for the end of a call that a signal handler's exception abandons. A caller that gives up, as with
# Ctrl-C, continues after this time although the server hangs.
_LONGEST_END_S = 0.1
# Larger arguments are sent separately: joining would copy them.
_LARGE_BYTES = 64 * 1024


class CallFailedError(Exception):
    """A call without a complete answer. `error` is a driver exception; `sent` says whether any byte may have left."""

    def __init__(self, error: Exception, sent: bool) -> None:
        super().__init__(error)
        self.error = error
        self.sent = sent


class _GarbledError(CallFailedError):
    """The failure of a call whose answer is not in the protocol, also raised by the C parser."""

    def __init__(self, text: str = "") -> None:
        # Do not quote the bytes, or the parser's text: they may include an echo of the password.
        super().__init__(driver.InvalidResponse("not a valid answer"), sent=True)


def packed(commands: Sequence[Command]) -> list[bytes]:
    """Return the bytes to send for `commands`, in one piece unless an argument is large."""
    pieces: list[bytes] = []
    parts: list[bytes] = []
    for command in commands:
        has_large = has_number = False
        for argument in command:
            if type(argument) is int:
                has_number = True
            elif type(argument) is bytes and len(argument) > _LARGE_BYTES:
                has_large = True
        if _pack is None or has_large:
            _add_command(command, pieces, parts)
        elif has_number:
            # Converted here: hiredis crashes if a signal handler raises while it converts a number.
            parts.append(_pack(tuple([b"%d" % one if type(one) is int else one for one in command])))
        else:
            parts.append(_pack(tuple(command)))
    pieces.append(b"".join(parts))
    return pieces


def _add_command(command: Command, pieces: list[bytes], parts: list[bytes]) -> None:
    """Append a command to `parts`; after a large argument move all of them to `pieces`."""
    parts.append(b"*%d\r\n" % len(command))
    for argument in command:
        data = argument if type(argument) is bytes else str(argument).encode()
        if len(data) > _LARGE_BYTES:
            parts.append(b"$%d\r\n" % len(data))
            pieces += [b"".join(parts), data]
            parts[:] = [b"\r\n"]
        else:
            parts.append(b"$%d\r\n%b\r\n" % (len(data), data))


class Connection:
    """A logged-in connection. Any exception in `ask` closes it, including one from a signal handler."""

    __slots__ = ("_at", "_buffer", "_forks", "_socket", "timeout_s", "used_s")

    def __init__(self, connected: Any) -> None:
        """Take over the socket of `connected`, a driver connection that has just logged in."""
        self._forks = _forks
        self._socket: Any = connected._sock
        connected._sock = None
        self._buffer, self._at = b"", 0
        self.timeout_s: float | None = self._socket.gettimeout()
        #: When it was last returned to the pool, by `time.monotonic`.
        self.used_s = time.monotonic()

    def ask(self, request: list[bytes], count: int) -> list[Any]:
        """Send `request` and return its `count` answers; an error answer is a `ResponseError` in the list.

        Raises CallFailedError. Unless every answer was read completely, the connection is closed, so the next call
        cannot read an answer to this one.
        """
        try:
            for piece in request:
                if self._forks != _forks:
                    raise _inherited()
                try:
                    self._socket.sendall(piece)
                except OSError as error:
                    if raised_by_handler(error):
                        raise
                    raise _failed(error, "writing to") from error
            return self._answers(count)
        except BaseException as error:
            try:
                if not isinstance(error, CallFailedError):
                    try:
                        self._end_call()
                    except BaseException:  # a second handler's
                        self._end_call()
                        raise
                self.close()
            finally:
                # A call of C, because a second handler may raise in `close`, and its traceback would keep this object.
                socket.SocketType.close(self._socket)
            raise

    def is_alive(self, timeout_s: float) -> bool:
        """Return whether the server answers within `timeout_s` seconds; if not, close the connection."""
        if self.has_ended():
            return False
        try:
            self._socket.settimeout(timeout_s)
            self.ask(PING, 1)
            self._socket.settimeout(self.timeout_s)
        except CallFailedError:
            return False
        return True

    def has_ended(self) -> bool:
        """Return whether the server has closed the connection. No answer is due, so any readable data means the end."""
        if _is_readable(self._socket):
            self.close()
            return True
        return False

    def close(self) -> None:
        """Close the connection. A forked child closes only its own copy; the parent's connection stays usable."""
        close_socket(self._socket, is_ours=self._forks == _forks)

    def __del__(self) -> None:
        # A handler may raise before the call that took the connection can close it.
        if hasattr(self, "_socket"):
            self.close()

    def _end_call(self) -> None:
        """Wait, for a moment at most, until the server has run what a signal handler's exception abandons.

        The server could receive it later than the application's next call, which may repeat it over another connection.
        A server ends a connection that sends no more once it has run all commands.
        """
        if self._forks != _forks:
            return
        with suppress_own(OSError):
            self._socket.shutdown(socket.SHUT_WR)
            self._receive_all(time.monotonic() + _LONGEST_END_S)

    def _receive_all(self, until_s: float) -> None:
        while (left_s := until_s - time.monotonic()) > 0:
            self._socket.settimeout(left_s)
            if not self._socket.recv(_MAX_READ_BYTES):
                return

    def _answers(self, count: int) -> list[Any]:
        answers = [self._answer(0) for _ in range(count)]
        if self._at != len(self._buffer):
            raise _GarbledError
        self._buffer, self._at = b"", 0
        return answers

    def _answer(self, depth: int) -> Any:
        buffer, at = self._buffer, self._at
        end = buffer.find(b"\r\n", at)
        while end < 0:
            if len(buffer) - at > _MAX_LINE_BYTES:
                raise _GarbledError
            self._fill(len(buffer) - at + 1)
            buffer, at = self._buffer, 0
            end = buffer.find(b"\r\n")
        kind, rest = buffer[at : at + 1], buffer[at + 1 : end]
        self._at = end + 2
        if kind == b"$":
            size = _number(rest)
            if size < 0:
                return None
            stop = end + 2 + size
            if stop + 2 > len(buffer):
                self._fill(size + 2)
                buffer, end = self._buffer, -2
                stop = size
            if buffer[stop : stop + 2] != b"\r\n":
                raise _GarbledError
            self._at = stop + 2
            return buffer[end + 2 : stop]
        if kind == b":":
            return _number(rest)
        if kind == b"+":
            return rest
        if kind == b"-":
            return driver.ResponseError(rest.decode(errors="replace"))
        if kind == b"*" and depth < _MAX_DEPTH:
            length = _number(rest)
            return None if length < 0 else self._array(length, depth + 1)
        raise _GarbledError

    def _array(self, length: int, depth: int) -> list[Any]:
        """Return the next `length` answers. Byte strings already in the buffer are parsed inline, which is faster."""
        answers: list[Any] = []
        buffer, at = self._buffer, self._at
        for _ in range(length):
            if buffer[at : at + 1] == b"$":
                end = buffer.find(b"\r\n", at)
                size = buffer[at + 1 : end]
                if end > 0 and size.isdigit() and (stop := end + 2 + int(size)) + 2 <= len(buffer):
                    answers.append(buffer[end + 2 : stop])
                    at = stop + 2
                    continue
            self._at = at
            answers.append(self._answer(depth))
            buffer, at = self._buffer, self._at
        self._at = at
        return answers

    def _fill(self, needed: int) -> None:
        """Read until the buffer holds `needed` unparsed bytes, and move them to its start."""
        chunks = [self._buffer[self._at :]]
        missing = needed - len(chunks[0])
        while missing > 0:
            data = self._receive(max(_READ_BYTES, min(missing, _MAX_READ_BYTES)))
            chunks.append(data)
            missing -= len(data)
        self._buffer, self._at = b"".join(chunks), 0

    def _receive(self, max_bytes: int) -> bytes:
        if self._forks != _forks:
            raise _inherited()
        try:
            data: bytes = self._socket.recv(max_bytes)
        except OSError as error:
            if raised_by_handler(error):
                raise
            raise _failed(error, "reading from") from error
        if not data:
            raise CallFailedError(driver.ConnectionError("Connection closed by server."), sent=True)
        return data


class HiredisConnection(Connection):
    """A connection that uses the driver's C parser."""

    __slots__ = ("_reader",)

    def __init__(self, connected: Any) -> None:
        super().__init__(connected)
        self._reader: Any = _hiredis.Reader(
            protocolError=_GarbledError, replyError=driver.ResponseError, notEnoughData=_MISSING
        )

    def _answers(self, count: int) -> list[Any]:
        reader = self._reader
        answers: list[Any] = []
        reader.feed(self._receive(_READ_BYTES))
        while len(answers) < count:
            answer = reader.gets()
            if answer is _MISSING:
                reader.feed(self._receive(_READ_BYTES))
            else:
                answers.append(answer)
        if reader.has_data():
            raise _GarbledError
        return answers


def _number(text: bytes) -> int:
    digits = text[1:] if text.startswith(b"-") else text
    if len(digits) > 20 or not digits.isdigit():
        raise _GarbledError
    return int(text)


def _inherited() -> CallFailedError:
    # The thread forked during a call, in a signal handler; the parent continues the call.
    return CallFailedError(driver.ConnectionError("the process was forked meanwhile"), sent=True)


def _failed(error: OSError, doing: str) -> CallFailedError:
    if isinstance(error, TimeoutError):
        return CallFailedError(driver.TimeoutError(f"Timeout {doing} socket"), sent=True)
    return CallFailedError(driver.ConnectionError(f"Error while {doing} socket: {error}"), sent=True)


def _is_readable(connected: Any) -> bool:
    if hasattr(select, "poll"):
        poll = select.poll()
        poll.register(connected.fileno(), select.POLLIN)
        return bool(poll.poll(0))
    return bool(select.select([connected], [], [], 0)[0])


def close_socket(connected: Any, is_ours: bool = True) -> None:
    """Close a socket; if it `is_ours` and not a parent process's, shut down the connection as well."""
    if is_ours:
        try:
            connected.shutdown(socket.SHUT_RDWR)
        except OSError as error:  # already ended
            if raised_by_handler(error):
                raise
        finally:
            socket.SocketType.close(connected)  # a call of C: done before a handler can raise
    connected.close()


def connection_of(connected: Any) -> Connection:
    """Return a `Connection` that takes over the driver's; it uses hiredis if installed."""
    return Connection(connected) if _hiredis is None else HiredisConnection(connected)


# Installed with the extra `redis`, where it can be built.
_hiredis: Any = importlib.import_module("hiredis") if HIREDIS_AVAILABLE else None
_pack: Callable[[tuple[Argument, ...]], bytes] | None = getattr(_hiredis, "pack_command", None)
_MISSING = object()
PING = packed([(b"PING",)])
# The number of forks between the first process and this one: a connection made before the last fork is the parent's.
_forks = 0


def forks() -> int:
    """Return the number of forks between the first process and this one."""
    return _forks


def _after_fork_in_child() -> None:
    global _forks  # noqa: PLW0603
    _forks += 1


run_in_child(_after_fork_in_child)
