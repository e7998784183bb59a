"""Query a server over its first connection: its mode, what it can do, its persistence and its eviction policy."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from typing import Final

from redis import exceptions as driver

from hutch import ConfigError

from .adapter import Connection
from .errors import code_of
from .hints import SENTINEL_HINT
from .protocol import Command, packed

_QUERIES: Final[tuple[Command, ...]] = (
    ("INFO", "server"),
    ("INFO", "persistence"),
    ("INFO", "memory"),
    ("CONFIG", "GET", "appendfsync"),
)
# Proxies and similar servers may lack them.
_NEEDED: Final[tuple[Command, ...]] = (("EVAL", "return 1", 0), ("MULTI",), ("EXEC",))
_LACKS: Final = re.compile("unknown command|unsupported|not supported|not allowed|disabled", re.IGNORECASE)
#: What to do about a server of another mode than the url says, by the server's mode.
WRONG_MODE: Final = {
    "sentinel": f"is a Sentinel, which stores nothing; {SENTINEL_HINT}",
    "cluster": "is a node of a Redis Cluster; start the url with redis+cluster:// (TLS: rediss+cluster://)",
    "standalone": "is a standalone server, neither a node of a Redis Cluster nor a Sentinel; start the url with "
    "redis:// (TLS: rediss://)",
}


def greet(connection: Connection, where: str, mode: str) -> bool:
    """Return whether the server writes each change to its disk before it answers.

    Raises ConfigError for a server of another mode than `mode`, or without scripts or transactions. Hosted servers
    refuse CONFIG, and a user may lack the permission to ask: then nothing is promised.
    """
    queries = _QUERIES if mode == "sentinel" else (*_QUERIES, *_NEEDED)
    answers = connection.ask(packed(queries), len(queries))
    server, persistence, memory = (_fields(answer) for answer in answers[:3])
    actual = server.get("redis_mode", server.get("server_mode", mode))
    # Whether this is a cluster shows when its map is read: services that emulate one may call themselves standalone.
    if actual in WRONG_MODE and actual != mode and (actual, mode) != ("standalone", "cluster"):
        raise ConfigError(f"{where} {WRONG_MODE[actual]}")
    _refuse_without_scripts_or_transactions(answers[len(_QUERIES) :], where)
    policy = memory.get("maxmemory_policy", "")
    if policy.startswith("allkeys-"):
        warnings.warn(
            f"{where} has the maxmemory-policy {policy}: when its memory is full it evicts what hutch stores. "
            "Set it to noeviction, or to one of volatile-*, which leaves what hutch stores alone",
            RuntimeWarning,
            stacklevel=2,
        )
    return persistence.get("aof_enabled") == "1" and answers[3] == [b"appendfsync", b"always"]


def _refuse_without_scripts_or_transactions(answers: Sequence[object], where: str) -> None:
    for answer, name in zip(answers, ("EVAL", "MULTI"), strict=False):
        # Other refusals are of this user or of this moment: calls report them, or wait.
        if isinstance(answer, driver.ResponseError) and not code_of(answer) and _LACKS.search(str(answer)):
            raise ConfigError(
                f"{where} refuses the command {name}, as some proxies do, and hutch needs scripts and transactions. "
                "Name the server behind the proxy in the url, or allow the command"
            ) from answer


def _fields(answer: object) -> dict[str, str]:
    """Return the fields of an INFO answer by name; empty if INFO was refused."""
    text = answer.decode(errors="replace") if isinstance(answer, bytes) else ""
    return {name: value for name, _, value in (line.partition(":") for line in text.splitlines())}
