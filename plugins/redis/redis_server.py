"""Connections of the redis engine to its server: retries, and what each failure is to a user."""

from __future__ import annotations

import os
import random
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any

from redis import exceptions as driver

from hutch import (
    ConfigError,
    CorruptValueError,
    StorageFullError,
    StorageTimeoutError,
    StorageUnavailableError,
    StoreError,
)

from .redis_scripts import Argument, Command, Script

_FIRST_BACKOFF_S = 0.05
_LONGEST_BACKOFF_S = 1.0
# Connections kept for the next call; more than this many threads at once pay for new ones.
_MOST_IDLE = 32
# What the driver raises. A ValueError comes from its parser, when the other side speaks something else.
_FAILURES = (driver.RedisError, ValueError)


class Server:
    """Connections to one server: each call takes one, or makes one, and gives it back. Used by any thread.

    `again` says that a command may be sent twice, because its answer was lost; `changes` that it writes.
    """

    def __init__(self, make_connection: Callable[[], Any], where: str, retries: int) -> None:
        self._make = make_connection
        self._where = where
        self._retries = retries
        # append and pop are atomic, so it needs no lock that a fork could copy while it is held.
        self._idle: list[Any] = []
        self._is_open = True

    def call(self, *command: Argument, changes: bool = False, again: bool = True) -> Any:
        """The answer to one command. Raises the StoreError that its failure amounts to."""
        return self.exchange([command], changes, again)[0]

    def run(
        self,
        script: Script,
        keys: Sequence[bytes],
        arguments: Sequence[Argument],
        changes: bool = False,
        again: bool = True,
    ) -> Any:
        """The answer of a script, which is sent by its name as long as the server knows it."""
        try:
            return self.exchange([script.by_name(keys, arguments)], changes, again)[0]
        except driver.NoScriptError:
            return self.exchange([script.in_full(keys, arguments)], changes, again)[0]

    def transaction(self, commands: Sequence[Command], changes: bool = False, again: bool = True) -> list[Any]:
        """The answers to `commands`, which the server runs as one step."""
        if len(commands) == 1:
            return self.exchange(commands, changes, again)
        in_one: list[Command] = [(b"MULTI",), *commands, (b"EXEC",)]
        answers: list[Any] = self.exchange(in_one, changes, again)[-1]
        for answer in answers:
            if isinstance(answer, driver.RedisError):
                raise self._said(answer, commands) from answer
        return answers

    def exchange(self, commands: Sequence[Command], changes: bool = False, again: bool = True) -> list[Any]:
        """The answers to `commands`, sent together."""
        backoff_s, maybe_done = 0.0, False
        for tries_left in range(self._retries, -1, -1):
            sent = False
            try:
                connection = self._idle_connection(surely_alive=not again) or self._connected()
                sent = True
                return self._talk(connection, commands)
            except driver.NoScriptError:
                raise
            except _FAILURES as error:
                refused = isinstance(error, driver.ResponseError | driver.BusyLoadingError)
                maybe_done |= sent and changes and not refused
                if not tries_left or not _may_pass(error) or (maybe_done and not again):
                    raise self._said(error, commands, maybe_done) from error
                if not refused:
                    # What broke one connection broke the others too.
                    self._drop_idle()
            # Jitter: clients that lost the server together should not all come back together.
            time.sleep(backoff_s * random.uniform(0.5, 1))  # noqa: S311
            backoff_s = min(max(backoff_s * 2, _FIRST_BACKOFF_S), _LONGEST_BACKOFF_S)
        raise AssertionError("the last try returns or raises")

    def close(self) -> None:
        """Close the idle connections; one that is in use is closed when it is given back."""
        self._is_open = False
        self._drop_idle()

    def _talk(self, connection: Any, commands: Sequence[Command]) -> list[Any]:
        answers: list[Any] = []
        refusal: driver.ResponseError | None = None
        try:
            connection.send_packed_command(connection.pack_commands(commands), check_health=False)
            for _ in commands:
                try:
                    answers.append(connection.read_response())
                except driver.ResponseError as error:
                    # Read on: the other answers must not be taken for those of the next call.
                    refusal = refusal or error
        except BaseException:
            connection.disconnect()
            raise
        self._give_back(connection)
        if refusal is not None:
            raise refusal
        return answers

    def _connected(self) -> Any:
        connection = self._make()
        try:
            connection.connect()
            # A server that is full, loading or a stranger says so now, before a command was sent.
            connection.send_command("PING", check_health=False)
            connection.read_response()
        except BaseException:
            connection.disconnect()
            raise
        return connection

    def _idle_connection(self, surely_alive: bool) -> Any:
        """A connection from earlier, or None. One whose end is known already is not given to those who need to know."""
        while self._idle:
            try:
                connection = self._idle.pop()
            except IndexError:  # another thread was faster
                break
            if connection.pid == os.getpid() and not (surely_alive and _has_ended(connection)):
                return connection
            # After a fork this closes our copy of the socket alone; the parent's connection goes on.
            connection.disconnect()
        return None

    def _give_back(self, connection: Any) -> None:
        if len(self._idle) < _MOST_IDLE:
            self._idle.append(connection)
        else:
            connection.disconnect()
        if not self._is_open:
            self._drop_idle()

    def _drop_idle(self) -> None:
        while self._idle:
            try:
                self._idle.pop().disconnect()
            except IndexError:
                break

    def _said(self, error: Exception, commands: Sequence[Command] = (), maybe_done: bool = False) -> StoreError:
        """The error that a user gets for the driver's, which loses what it quotes of the data."""
        if isinstance(error, ValueError | driver.InvalidResponse):
            # It quotes what it could not read: anything, from an echo of the password on.
            error.args = ("an answer that is none",)
            return StorageUnavailableError(f"{self._where} answers as no Redis server does; check the port, and TLS")
        text, quoted, _ = str(error).partition(", with args beginning with")
        if quoted:
            # A server that does not know a command repeats its arguments: values, or a password.
            error.args = (text,)
        unknown = "; the change may have been made or not, look before you repeat it" if maybe_done else ""
        if isinstance(error, driver.TimeoutError):
            return StorageTimeoutError(
                f"{self._where} gave no answer in time (options timeout_s and connect_timeout_s): {text}{unknown}"
            )
        if "DB index" in text:
            return ConfigError(f"{self._where} cannot be used: the server has no such database")
        words = {*text.split(), getattr(error, "status_code", None)}
        for code, of_driver, kind, told in _REFUSALS:
            if code in words or isinstance(error, of_driver):
                names = f": {_keys_of(commands)}" if kind is CorruptValueError else ""
                return kind(f"{self._where} {told}{names}")
        if isinstance(error, driver.ConnectionError):
            return StorageUnavailableError(f"{self._where} cannot be reached: {text}{unknown}")
        return StorageUnavailableError(f"{self._where} refuses: {text}")


# What a server answers instead of doing it: the code, the driver's class, ours. A script passes the code on within
# a longer text, so a code counts wherever it stands.
_REFUSALS: tuple[tuple[str, type[Exception] | tuple[()], type[StoreError], str], ...] = (
    (
        "NOAUTH",
        driver.AuthenticationError,
        StorageUnavailableError,
        "refuses the login; check the user name and the password, in the url or as options",
    ),
    (
        "NOPERM",
        driver.NoPermissionError,
        StorageUnavailableError,
        "does not allow this user all commands and keys that hutch needs; docs/redis.md lists them",
    ),
    ("LOADING", driver.BusyLoadingError, StorageUnavailableError, "is still loading its data; try again later"),
    (
        "OOM",
        driver.OutOfMemoryError,
        StorageFullError,
        "has no memory left for it; nothing was written. Remove something, or raise its 'maxmemory'",
    ),
    (
        "MISCONF",
        (),
        StorageFullError,
        "refuses writes because it cannot save to its disk; nothing was written. Its log says why",
    ),
    (
        "READONLY",
        driver.ReadOnlyError,
        StorageUnavailableError,
        "is a read-only replica; nothing was written. Name its primary in the url",
    ),
    ("NOREPLICAS", (), StorageUnavailableError, "has too few replicas at hand to take a write; nothing was written"),
    ("MASTERDOWN", driver.MasterDownError, StorageUnavailableError, "is a replica that has lost its primary"),
    ("BUSY", (), StorageTimeoutError, "is busy with a script; nothing was done"),
    ("WRONGTYPE", (), CorruptValueError, "holds something that hutch did not write under one of these keys"),
    *(
        (
            code,
            of_driver,
            StorageUnavailableError,
            "belongs to a Redis Cluster, which this engine does not serve; it needs a standalone server",
        )
        for code, of_driver in (
            ("MOVED", driver.MovedError),
            ("ASK", driver.AskError),
            ("CROSSSLOT", driver.ClusterCrossSlotError),
            ("CLUSTERDOWN", driver.ClusterDownError),
        )
    ),
)


def _keys_of(commands: Sequence[Command]) -> str:
    """The names of the server's keys that `commands` use."""
    names: dict[Any, None] = {}
    for command in commands:
        if command[0] in (b"EVAL", b"EVALSHA"):
            names.update(dict.fromkeys(command[3:6]))
        elif len(command) > 1:
            names[command[1]] = None
    return ", ".join(name.decode() if isinstance(name, bytes) else str(name) for name in names)


def _may_pass(error: Exception) -> bool:
    """Whether to try again: a connection was lost, or the server is not itself yet. Timeouts have waited already."""
    if isinstance(error, driver.ResponseError):
        return str(error).startswith("BUSY ")
    # The system has looked for an unknown name long enough.
    lasting = isinstance(error, driver.AuthenticationError) or isinstance(error.__context__, socket.gaierror)
    return isinstance(error, driver.ConnectionError) and not lasting


def _has_ended(connection: Any) -> bool:
    """Whether the server closed it. Nothing was asked, so anything to read is the end, or a word of farewell."""
    try:
        return bool(connection.can_read(0))
    except driver.RedisError:
        return True
