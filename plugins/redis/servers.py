"""The servers of a store: a standalone server has all namespaces, a cluster (`cluster.py`) spreads them over nodes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

from .address import Address
from .greeting import greet
from .pool import Pool
from .protocol import Command, Connection
from .scripts import PARTS
from .server import Route, Server, Wait, server_figures

#: The part of a key that names a set of namespaces.
INDEX: Final = "namespaces"


@dataclass(frozen=True)
class Settings:
    """What all servers of a store share."""

    prefix: str
    options: Mapping[str, Any]

    @property
    def wait(self) -> Wait | None:
        """The wait for replicas after each write, if the options ask for one."""
        replicas, max_ms = self.options["wait_replicas"], self.options["wait_ms"]
        return Wait(replicas, max_ms) if replicas else None

    @property
    def index(self) -> str:
        """The server's key of the set of all namespace names."""
        return f"{self.prefix}:{INDEX}"

    def key(self, namespace: str, part: str) -> str:
        """Return the server's key of a part of `namespace`.

        It holds the name in braces; any character but letters, digits and ``_.-~`` is escaped as %XX.
        """
        return f"{self.prefix}:{{{quote(namespace, safe='')}}}:{part}"

    def pool(self, address: Address, mode: str, on_durable: Callable[[], None] | None = None) -> Pool:
        """Return an empty pool of connections to a server, which must be of `mode`.

        `on_durable` is called if the first connection shows that the server writes each change to its disk before it
        answers.
        """

        def greet_server(connection: Connection) -> None:
            if greet(connection, address.where, mode) and on_durable is not None:
                on_durable()

        options = self.options
        timeouts = options["timeout_s"], options["connect_timeout_s"]
        return Pool(address.make, address.where, *timeouts, options["max_connections"], greet_server)


class Servers:
    """A standalone server."""

    def __init__(self, settings: Settings, route: Route, where: str, hint: Callable[[Exception], str]) -> None:
        self.settings = settings
        self.where = where
        self._hint = hint
        #: The server that has the index of namespaces.
        self.main = self._server(route)

    def of(self, namespace: str) -> Server:
        """Return the server that has `namespace`, for one handle."""
        return self.main

    def script_keys(self, namespace: str) -> tuple[bytes, ...]:
        """Return the KEYS of a script for `namespace`, all of which one node has."""
        values, order, deadlines = (self.settings.key(namespace, part).encode() for part in PARTS)
        return values, order, self.settings.index.encode(), deadlines

    def ask_each(self, commands: Mapping[str, Command]) -> list[Any]:
        """Return the answers to commands that read, by namespace."""
        return self.main.exchange(list(commands.values())) if commands else []

    def primaries(self) -> Mapping[str, Server]:
        """Return the servers that have data, by name."""
        return {self.where: self.main}

    def figures(self) -> dict[str, object]:
        """Return figures of the servers for `hutch stats`, without those that a server refuses to report."""
        return server_figures(self.main)

    def close(self) -> None:
        """Close the idle connections; a connection in use is closed when its call ends."""
        self.main.close()

    def _server(self, route: Route) -> Server:
        return Server(route, self.where, self.settings.options["retry_s"], self._hint, self.settings.wait)
