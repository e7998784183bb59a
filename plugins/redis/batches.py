"""Send the parts of a batch, which lie in several hash slots, in one request per node.

Each part is sent once. The parts that a node refuses, for instance because a slot has moved, are then sent one by one:
a call to one slot follows the slot, and is retried.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from redis import exceptions as driver

from hutch import NotReplicatedError
from hutch.handlers import raised_by_handler

from .errors import is_unfinished, may_pass, store_error
from .protocol import CallFailedError, Command, packed
from .server import Route
from .servers import MarkedServer, Servers, ShardName


class Write(NamedTuple):
    """The part of one shard: a command that writes, and the server that announces it."""

    server: MarkedServer
    command: Command


def read_together(servers: Servers, commands: Mapping[ShardName, Command]) -> dict[ShardName, Any]:
    """Return the answers to commands that only read, without those that a node refused."""
    answers: dict[ShardName, Any] = {}
    for node, names in _by_node(servers, commands).items():
        received = zip(names, _ask(servers, node, [commands[name] for name in names], True), strict=False)
        answers |= {name: answer for name, answer in received if not isinstance(answer, driver.ResponseError)}
    return answers


def write_together(
    servers: Servers, writes: Mapping[ShardName, Write | None], again: bool, alone: Callable[[ShardName], Any]
) -> list[Any]:
    """Return the answers to `writes`; `alone` writes a part that was refused, or is None, and returns its answer.

    `again` allows a part to be sent twice after its answer was lost. Raises NotReplicatedError when all is written.
    """
    together = {name: write for name, write in writes.items() if write is not None}
    for write in together.values():
        write.server.announce()
    answers: dict[ShardName, Any] = {}
    replicas: list[Any] = []
    for node, names in _by_node(servers, together).items():
        answers |= _write(servers, node, {name: together[name] for name in names}, again, replicas)
    failure: NotReplicatedError | None = None
    for name in writes:
        if name not in answers:
            try:
                answers[name] = alone(name)
            except NotReplicatedError as error:
                if raised_by_handler(error):
                    raise
                failure = error
    if failure is not None:
        raise failure
    for acknowledged in replicas:
        servers.confirm(acknowledged)
    return [answers[name] for name in writes]


def _by_node(servers: Servers, names: Iterable[ShardName]) -> dict[Route, list[ShardName]]:
    nodes: dict[Route, list[ShardName]] = {}
    for name in names:
        try:
            node = servers.node(name)
        except CallFailedError:
            continue
        nodes.setdefault(node, []).append(name)
    return nodes


def _write(
    servers: Servers, node: Route, writes: Mapping[ShardName, Write], again: bool, replicas: list[Any]
) -> dict[ShardName, Any]:
    """Return the answers of a node; add to `replicas` how many of its replicas have them, if the store waits for them.

    Raises the StoreError of a lost answer unless the write may be sent `again`.
    """
    commands = [command for write in writes.values() for command in (write.server.exists, write.command)]
    wait = servers.settings.wait
    try:
        received = _ask(servers, node, [*commands, wait.command] if wait else commands, again)
    except BaseException:
        _forget(writes)
        raise
    if not received:
        return {}
    if wait:
        replicas.append(received.pop())
    answers: dict[ShardName, Any] = {}
    for (name, write), existed, answer in zip(writes.items(), received[::2], received[1::2], strict=True):
        if not isinstance(answer, driver.ResponseError):
            answers[name] = answer
            write.server.written(existed)
        elif is_unfinished(answer) and not again:
            raise store_error(servers.where, answer, [write.command], maybe_done=True) from answer
    return answers


def _forget(writes: Mapping[ShardName, Write]) -> None:
    for write in writes.values():
        write.server.forget()


def _ask(servers: Servers, node: Route, commands: Sequence[Command], again: bool) -> list[Any]:
    """Return the answers of a node; none at all if it gave no answer, and the commands may be sent again."""
    try:
        return node.ask(packed(commands), len(commands), careful=not again)
    except CallFailedError as failure:
        error, maybe_done = failure.error, failure.sent and not again
    if maybe_done or not may_pass(error, was_connected=True):
        raise store_error(servers.where, error, commands, maybe_done) from error
    return []
