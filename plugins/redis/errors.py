"""Translate each failure of the driver or the server into the StoreError that a user of the redis engine gets."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Any, Final

from redis import exceptions as driver

from hutch import (
    ConfigError,
    CorruptValueError,
    StorageFullError,
    StorageTimeoutError,
    StorageUnavailableError,
    StoreError,
)

from .protocol import Command

# The server's role has changed or it is not ready; its name may lead to another server by now.
_MOVED: Final = ("READONLY", "LOADING", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "MOVED", "ASK")
# A script lost its keys to another node between two of its commands: it emptied one, whose slot is moving there.
_UNFINISHED: Final = "non local key"
_TOO_MANY_CLIENTS: Final = "max number of clients reached"


def code_of(error: Exception) -> str:
    """Return the code of a server's refusal, such as READONLY; "" if the code is unknown or missing.

    A script wraps the code in a longer text, so a code counts anywhere in the text.
    """
    # The rest of the text quotes data.
    text = str(error).partition(", with args beginning with")[0]
    words = {word.lstrip("-") for word in text.split()} | {str(getattr(error, "status_code", None))}
    for code, of_driver, _, _ in _REFUSALS:
        if code in words or isinstance(error, of_driver):
            return code
    return "NOSCRIPT" if "NOSCRIPT" in words else ""


def has_moved(error: Exception) -> bool:
    """Return whether the server refused because of its role or because it is not ready yet.

    Its name may lead to another server by now.
    """
    return isinstance(error, driver.RedisError) and code_of(error) in _MOVED


def is_redirect(error: Exception) -> bool:
    """Return whether the node of a cluster names the node that has the data."""
    return str(error).startswith(("MOVED ", "ASK "))


def is_unfinished(error: Exception) -> bool:
    """Return whether the server ended a script that may have made some of its changes already."""
    return _UNFINISHED in str(error)


def may_pass(error: Exception, was_connected: bool) -> bool:
    """Return whether a retry may help: a connection was lost, or the server is not ready yet.

    A time-out has waited long enough already. An unknown host name is a mistake, unless the server was reached before:
    while a container restarts, its name may not resolve.
    """
    if isinstance(error, driver.AuthenticationError | driver.TimeoutError):
        return False
    if isinstance(error, driver.ResponseError):
        text = str(error)
        return has_moved(error) or text.startswith("BUSY ") or _TOO_MANY_CLIENTS in text or is_unfinished(error)
    if isinstance(error.__context__, socket.gaierror):
        return was_connected or error.__context__.errno == socket.EAI_AGAIN
    return isinstance(error, driver.ConnectionError)


def store_error(where: str, error: Exception, commands: Sequence[Command] = (), maybe_done: bool = False) -> StoreError:
    """Return the StoreError for the driver's `error`, and strip quoted data from `error` itself."""
    if isinstance(error, ValueError | driver.InvalidResponse):
        # It quotes the bytes it could not read, which may include an echo of the password.
        error.args = ("not a valid answer",)
        return StorageUnavailableError(f"{where} does not answer like a Redis server; check the port, and TLS")
    text, quoted, _ = str(error).partition(", with args beginning with")
    if quoted:
        # A server quotes the arguments of an unknown command: values, or a password.
        error.args = (text,)
    unknown = "; the change may have been made or not, read the key to find out" if maybe_done else ""
    if isinstance(error, driver.TimeoutError):
        return StorageTimeoutError(
            f"{where} gave no answer in time (options timeout_s and connect_timeout_s): {text}{unknown}"
        )
    if is_unfinished(error):
        return StorageUnavailableError(f"{where} ended a script because this data is moving to another node{unknown}")
    if "DB index" in text:
        return ConfigError(f"{where} cannot be used: the server has no such database")
    if "in cluster mode" in text:
        return ConfigError(
            f"{where} is a node of a Redis Cluster, which has database 0 only; start the url with redis+cluster:// "
            "(TLS: rediss+cluster://), without a database"
        )
    code = code_of(error)
    for known, _, kind, message in _REFUSALS:
        if known == code:
            names = f": {_keys_of(commands)}" if kind is CorruptValueError else ""
            return kind(f"{where} {message}{names}")
    if isinstance(error, driver.ConnectionError):
        return StorageUnavailableError(
            f"{where} cannot be reached: {text.rstrip('.')}{unknown}. Start the server, or correct the url"
        )
    return StorageUnavailableError(f"{where} refuses: {text.removeprefix('ERR ')}")


def _keys_of(commands: Sequence[Command]) -> str:
    """Return the names of the server's keys that `commands` use, separated by commas."""
    names: dict[Any, None] = {}
    for command in commands:
        if command[0] in (b"EVAL", b"EVALSHA"):
            names.update(dict.fromkeys(command[3 : 3 + int(command[2])]))
        elif len(command) > 1:
            names[command[1]] = None
    return ", ".join(name.decode() if isinstance(name, bytes) else str(name) for name in names)


# The refusals of a server: code, the driver's class, hutch's class, text of the error.
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
        "is a read-only replica; nothing was written. Name its primary in the url, or try again after the fail-over",
    ),
    ("NOREPLICAS", (), StorageUnavailableError, "has too few replicas to accept a write; nothing was written"),
    ("MASTERDOWN", driver.MasterDownError, StorageUnavailableError, "is a replica that has lost its primary"),
    ("BUSY", (), StorageTimeoutError, "is busy with a script; nothing was done"),
    (
        "WRONGTYPE",
        (),
        CorruptValueError,
        "holds something that hutch did not write under one of these keys, or a namespace with another option 'shards'",
    ),
    # MOVED before ASK, because the driver's MovedError is an AskError.
    *(
        (
            code,
            of_driver,
            StorageUnavailableError,
            "belongs to a Redis Cluster, which has this data on another node; nothing was done. Start the url with "
            "redis+cluster://, or, if it does, try again when the cluster has moved the data",
        )
        for code, of_driver in (
            ("MOVED", driver.MovedError),
            ("ASK", driver.AskError),
            ("CROSSSLOT", driver.ClusterCrossSlotError),
        )
    ),
    (
        "CLUSTERDOWN",
        driver.ClusterDownError,
        StorageUnavailableError,
        "is down: some hash slot has no primary, or this part of the cluster has lost its majority; nothing was done",
    ),
    (
        "TRYAGAIN",
        driver.TryAgainError,
        StorageUnavailableError,
        "is moving this data to another node; nothing was done. Try again later, or raise retry_s",
    ),
)
