"""Send the commands of the redis engine to its server, and retry where that is safe."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from redis import __version__ as driver_version
from redis import exceptions as driver

from hutch import ConfigError, NotReplicatedError, StoreError

from .errors import code_of, is_redirect, is_unfinished, may_pass, store_error
from .pool import Pool
from .protocol import Argument, CallFailedError, Command, packed
from .scripts import Script

_FIRST_BACKOFF_S: Final = 0.05
_LONGEST_BACKOFF_S: Final = 1.0
_ASKING: Final = (b"ASKING",)
# Followed at once. More of them mean that the nodes of a cluster do not agree yet.
_MAX_REDIRECTS: Final = 5


class Route(Protocol):
    """The way to the server that has the data: a pool of connections to it, or to the nodes of a cluster."""

    @property
    def was_connected(self) -> bool:
        """Whether a server has ever been reached."""

    def ask(self, request: list[bytes], count: int, careful: bool) -> list[Any]:
        """Send `request` and return its `count` answers, see `Pool.ask`."""

    def follow(self, error: Exception) -> Pool | None:
        """React to the failure of a call, see `Pool.follow`."""

    def reader_of(self, server: Server) -> Server:
        """Return the `Server` for reads that may be stale: `server` itself, or one that reads from its replicas."""

    def close(self) -> None:
        """Close the idle connections."""


@dataclass(frozen=True)
class Wait:
    """A wait for replicas after each write."""

    replicas: int
    max_ms: int

    @property
    def command(self) -> Command:
        """The command that waits until the replicas have all earlier writes of its connection."""
        return (b"WAIT", self.replicas, self.max_ms)

    def confirm(self, answer: Any, where: str) -> None:
        """Raise NotReplicatedError unless the `answer` to the command counts enough replicas."""
        if isinstance(answer, int) and answer >= self.replicas:
            return
        text = f"{answer} of them have it" if isinstance(answer, int) else f"the server refused to wait: {answer}"
        raise NotReplicatedError(
            f"{where} has made the change, written, not replicated: {self.replicas} replicas were to have it within "
            f"{self.max_ms} ms (options wait_replicas and wait_ms), {text}. A fail-over may lose it; it was not sent "
            "again. Read the key before you repeat the change"
        )


class Server:
    """One server. Thread-safe.

    `again` allows a command to be sent twice after its answer was lost; `changes` says that it writes.
    """

    def __init__(
        self, pool: Route, where: str, retry_s: float, hint: Callable[[Exception], str], wait: Wait | None = None
    ) -> None:
        """Set up the server, whose writes `wait` for replicas.

        `hint` returns what may be wrong with the address if the first connection fails.
        """
        self._pool = pool
        self._where = where
        self._retry_s = retry_s
        self._hint = hint
        self._wait = wait

    def call(self, *command: Argument, changes: bool = False, again: bool = True) -> Any:
        """Return the answer to one command. Raises the StoreError for its failure."""
        return self.exchange([command], changes, again)[0]

    def run(
        self,
        script: Script,
        keys: Sequence[bytes],
        arguments: Sequence[Argument],
        changes: bool = False,
        again: bool = True,
    ) -> Any:
        """Return the answer of a script, sent by name as long as the server knows it."""
        try:
            return self.exchange([script.by_name(keys, arguments)], changes, again)[0]
        except driver.NoScriptError:
            return self.exchange([script.in_full(keys, arguments)], changes, again)[0]

    def run_after(
        self,
        commands: Sequence[Command],
        script: Script,
        keys: Sequence[bytes],
        arguments: Sequence[Argument],
        changes: bool = False,
        again: bool = True,
    ) -> list[Any]:
        """Return the answers to the read-only `commands` and to a script that runs after them, in one round trip."""
        try:
            return self.exchange([*commands, script.by_name(keys, arguments)], changes, again)
        except driver.NoScriptError:
            return self.exchange([*commands, script.in_full(keys, arguments)], changes, again)

    def transaction(self, commands: Sequence[Command], changes: bool = False, again: bool = True) -> list[Any]:
        """Return the answers to `commands`, which the server runs atomically."""
        if len(commands) == 1:
            return self.exchange(commands, changes, again)
        answers: list[Any] = self.exchange([(b"MULTI",), *commands, (b"EXEC",)], changes, again)[-1]
        return answers

    def exchange(
        self, commands: Sequence[Command], changes: bool = False, again: bool = True, reads: int = 0
    ) -> list[Any]:
        """Return the answers to `commands`, sent in one request.

        The first `reads` of them only read: if the write after them was done, a refusal of theirs stays in the answers.
        """
        wait = self._wait if changes else None
        if wait is not None:
            commands = [*commands, wait.command]
        request, count = packed(commands), len(commands)
        deadline_s = backoff_s = 0.0
        redirects = 0
        maybe_done = False
        importing: Pool | None = None
        while True:
            try:
                if importing is None:
                    answers = self._pool.ask(request, count, careful=not again)
                else:
                    answers = _ask_importing(importing, commands, careful=not again)
            except CallFailedError as failure:
                error = failure.error
                maybe_done |= failure.sent and changes
            else:
                waited = None if wait is None else answers.pop()
                refusal = refusal_in(answers[reads:])
                if refusal is None:
                    if wait is not None:
                        wait.confirm(waited, self._where)
                    return answers
                error = refusal
                maybe_done |= changes and is_unfinished(error)
            importing = self._pool.follow(error)
            if redirects < _MAX_REDIRECTS and is_redirect(error):
                redirects += 1
                continue
            now_s = time.monotonic()
            deadline_s = deadline_s or now_s + self._retry_s
            if now_s >= deadline_s or (maybe_done and not again) or not may_pass(error, self._pool.was_connected):
                raise self._store_error(error, commands, maybe_done) from error
            # Jitter: clients that lost the server together should not all reconnect together.
            time.sleep(min(backoff_s * random.uniform(0.5, 1), deadline_s - now_s))  # noqa: S311
            backoff_s = min(max(backoff_s * 2, _FIRST_BACKOFF_S), _LONGEST_BACKOFF_S)

    @property
    def reader(self) -> Server:
        """The server for reads that may be stale: this one, unless the options name replicas."""
        return self._pool.reader_of(self)

    def close(self) -> None:
        """Close the idle connections; a connection in use is closed when its call ends."""
        self._pool.close()

    def _store_error(self, error: Exception, commands: Sequence[Command], maybe_done: bool) -> Exception:
        if code_of(error) == "NOSCRIPT":
            return driver.NoScriptError(str(error))
        message = store_error(self._where, error, commands, maybe_done)
        if self._pool.was_connected or isinstance(message, ConfigError):
            return message
        return type(message)(f"{message}{self._hint(error)}")


def refusal_in(answers: list[Any]) -> driver.ResponseError | None:
    """Return the first error among the answers, including the answers of a transaction, or None."""
    for answer in answers:
        if isinstance(answer, driver.ResponseError):
            return answer
    last = answers[-1]
    if answers[0] == b"OK" and type(last) is list:
        for answer in last:
            if isinstance(answer, driver.ResponseError):
                return answer
    return None


def _ask_importing(node: Pool, commands: Sequence[Command], careful: bool) -> list[Any]:
    """Return the answers of the node that a hash slot is moving to, which serves it only after ASKING."""
    sent: list[Command] = []
    in_transaction = False
    for command in commands:
        # Within MULTI, the ASKING before it still holds.
        sent += [command] if in_transaction else [_ASKING, command]
        in_transaction = (in_transaction or command[0] == b"MULTI") and command[0] != b"EXEC"
    answers = node.ask(packed(sent), len(sent), careful)
    return [answer for answer, command in zip(answers, sent, strict=True) if command is not _ASKING]


def server_figures(server: Server) -> dict[str, object]:
    """Return the versions of driver and server, and the bytes stored; omit what the server refuses to report."""
    figures: dict[str, object] = {"driver": f"redis-py {driver_version}"}
    try:
        answers = [bytes(server.call("INFO", section)) for section in ("server", "memory")]
    except StoreError:
        return figures
    text = b"\n".join(answers).decode("utf-8", "replace")
    given = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    version, used = given.get("redis_version"), given.get("used_memory")
    return figures | ({"version": version} if version else {}) | ({"server_bytes": int(used)} if used else {})
