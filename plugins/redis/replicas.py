"""Read from replicas of the redis engine: choose one, and fall back to the primary."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from redis import exceptions as driver

from .errors import code_of
from .pool import Pool
from .protocol import CallFailedError, Command, packed
from .server import Route, Server, refusal_in

# How long a choice lasts: a new replica is noticed after this time, and one that was removed is no longer read.
_CHOICE_S: Final = 5.0
# How long a replica that failed, or refused to answer, is left alone.
_AVOID_S: Final = 5.0


class Replicas:
    """The replicas of one primary. Thread-safe. Reads stay with one of them, so they do not go back in time."""

    def __init__(self, list_replicas: Callable[[], Sequence[Pool]]) -> None:
        """Set up the choice; `list_replicas` returns the replicas of this moment, or raises CallFailedError."""
        self._list = list_replicas
        self._chosen: Pool | None = None
        self._chosen_until_s = 0.0
        self._avoided_until_s: dict[Pool, float] = {}

    def choose(self) -> Pool | None:
        """Return the replica that takes the next read, or None: the primary takes it."""
        now_s = time.monotonic()
        if now_s >= self._chosen_until_s:
            self._chosen_until_s = now_s + _CHOICE_S  # first, so that one thread asks for all
            try:
                replicas = self._list()
            except CallFailedError:
                return self._chosen
            usable = [one for one in replicas if self._avoided_until_s.get(one, 0.0) <= now_s]
            if self._chosen not in usable:
                self._chosen = random.choice(usable) if usable else None  # noqa: S311
            self._avoided_until_s = {
                one: until_s for one, until_s in self._avoided_until_s.copy().items() if one in replicas
            }
        return self._chosen

    def avoid(self, replica: Pool) -> None:
        """Leave `replica` alone for a while, because it failed or refused to answer."""
        self._avoided_until_s[replica] = time.monotonic() + _AVOID_S
        if self._chosen is replica:
            self._chosen, self._chosen_until_s = None, 0.0


class ReplicatedRoute:
    """The way to a primary that has `replicas`."""

    def __init__(self, primary: Route, replicas: Replicas) -> None:
        self._primary = primary
        self._replicas = replicas

    @property
    def was_connected(self) -> bool:
        return self._primary.was_connected

    def ask(self, request: list[bytes], count: int, careful: bool) -> list[Any]:
        return self._primary.ask(request, count, careful)

    def follow(self, error: Exception) -> Pool | None:
        return self._primary.follow(error)

    def reader_of(self, server: Server) -> Server:
        return ReplicaReader(server, self._replicas)

    def close(self) -> None:
        self._primary.close()


class ReplicaReader(Server):
    """A server that reads from replicas of `primary`, and from the primary what no replica answers."""

    def __init__(self, primary: Server, replicas: Replicas) -> None:
        self._primary = primary
        self._replicas = replicas

    @property
    def reader(self) -> Server:
        return self

    def exchange(
        self, commands: Sequence[Command], changes: bool = False, again: bool = True, reads: int = 0
    ) -> list[Any]:
        replica = None if changes else self._replicas.choose()
        if replica is not None:
            try:
                answers = replica.ask(packed(commands), len(commands), careful=False)
            except CallFailedError:
                answers = None
            if answers is not None:
                refusal = refusal_in(answers)
                if refusal is None:
                    return answers
                if code_of(refusal) == "NOSCRIPT":
                    raise driver.NoScriptError(str(refusal))
            self._replicas.avoid(replica)
        return self._primary.exchange(commands, changes, again, reads)

    def close(self) -> None:
        self._primary.close()
