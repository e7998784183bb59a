"""The servers of a store: a standalone server has all namespaces, a cluster (`cluster.py`) spreads them over nodes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple
from urllib.parse import quote

from redis import exceptions as driver

from .adapter import Connection
from .address import Address
from .greeting import greet
from .pool import Pool
from .protocol import Command
from .scripts import PARTS
from .server import Route, Server, Wait, server_figures

#: The part of a key that names a set of namespaces.
INDEX: Final = "namespaces"


class Shard(NamedTuple):
    """One of the shards of a namespace."""

    number: int
    #: How many shards the namespace has.
    total: int


#: A namespace, and one of its shards; None: the namespace itself.
ShardName = tuple[str, Shard | None]


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
    def reads_replicas(self) -> bool:
        """Whether reads go to replicas."""
        return bool(self.options["read_from"] == "replicas")

    @property
    def index(self) -> str:
        """The server's key of the set of all namespace names."""
        return f"{self.prefix}:{INDEX}"

    def key(self, namespace: str, part: str, shard: Shard | None = None) -> str:
        """Return the server's key of a part of `namespace`, or of one of its shards.

        It holds the name in braces; any character but letters, digits and ``_.-~`` is escaped as %XX.
        """
        # With the count, so that a handle of before a `drop` does not read or write what others made with another one.
        place = "" if shard is None else f"|{shard.number}/{shard.total}"
        return f"{self.prefix}:{{{quote(namespace, safe='')}{place}}}:{part}"

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
        self._route = route
        #: The server that has the index of namespaces.
        self.main = self._server(route)

    def of(self, namespace: str) -> Server:
        """Return the server that has `namespace`, for one handle."""
        return self.main

    def at(self, namespace: str, shard: Shard | None = None) -> Server:
        """Return the server that has `namespace`, or one of its shards, for calls that do not create it."""
        return self.main

    def home(self, namespace: str) -> Server:
        """Return the server that has the number of shards of `namespace`. Its writes do not wait for replicas."""
        return Server(self.route(namespace), self.where, self.settings.options["retry_s"], self._hint)

    def without_retries(self, namespace: str) -> Server:
        """Return the server that has `namespace`, for a call that may fail."""
        return Server(self.route(namespace), self.where, 0, self._hint)

    def of_shard(self, namespace: str, shard: Shard, enlist: Callable[[], object]) -> MarkedServer:
        """Return the server that has a shard of `namespace`, for one handle; see `MarkedServer`."""
        return self._marked(namespace, shard, enlist, self.settings.wait)

    def script_keys(self, namespace: str, shard: Shard | None = None) -> tuple[bytes, ...]:
        """Return the KEYS of a script for `namespace`, or for one of its shards, all of which one node has."""
        values, order, deadlines = (self.settings.key(namespace, part, shard).encode() for part in PARTS)
        index = self.settings.index if shard is None else self.settings.key(namespace, INDEX, shard)
        return values, order, index.encode(), deadlines

    def confirm(self, acknowledged: Any) -> None:
        """Raise NotReplicatedError unless `acknowledged`, the answer to a wait for replicas, counts enough of them."""
        if self.settings.wait is not None:
            self.settings.wait.confirm(acknowledged, self.where)

    def ask_each(self, commands: Sequence[tuple[ShardName, Command]]) -> list[Any]:
        """Return the answers to commands that read, each of them of one shard."""
        return self.main.exchange([command for _, command in commands]) if commands else []

    def primaries(self) -> Mapping[str, Server]:
        """Return the servers that have data, by name."""
        return {self.where: self.main}

    def figures(self) -> dict[str, object]:
        """Return figures of the servers for `hutch stats`, without those that a server refuses to report."""
        return server_figures(self.main)

    def close(self) -> None:
        """Close the idle connections; a connection in use is closed when its call ends."""
        self.main.close()

    @property
    def was_connected(self) -> bool:
        """Whether a server has ever been reached."""
        return self._route.was_connected

    def node(self, name: ShardName) -> Route:
        """Return the way to the node that has a shard now. Raises CallFailedError if no node can be asked."""
        return self._route

    def route(self, namespace: str, shard: Shard | None = None) -> Route:
        """Return the way to the server that has `namespace`, or one of its shards."""
        return self._route

    def _server(self, route: Route) -> Server:
        return Server(route, self.where, self.settings.options["retry_s"], self._hint, self.settings.wait)

    def _marked(
        self, namespace: str, shard: Shard | None, enlist: Callable[[], object], wait: Wait | None
    ) -> MarkedServer:
        route, marker = self.route(namespace, shard), self.script_keys(namespace, shard)[2]
        return MarkedServer(route, self.where, self.settings.options["retry_s"], self._hint, wait, enlist, marker)


class MarkedServer(Server):
    """The server of one hash slot, which announces its data at another slot: every write creates the key `marker`."""

    def __init__(
        self,
        route: Route,
        where: str,
        retry_s: float,
        hint: Callable[[Exception], str],
        wait: Wait | None,
        enlist: Callable[[], object],
        marker: bytes,
    ) -> None:
        """Set up the server; it calls `enlist` before its first write, and after a write that found no marker."""
        super().__init__(route, where, retry_s, hint, wait)
        self._enlist = enlist
        #: A command that goes out before each write.
        self.exists: Command = (b"EXISTS", marker)
        # Whether this handle has called `enlist`.
        self._is_listed = False

    def exchange(
        self, commands: Sequence[Command], changes: bool = False, again: bool = True, reads: int = 0
    ) -> list[Any]:
        if not changes:
            return super().exchange(commands, changes, again)
        self.announce()
        try:
            existed, *answers = super().exchange([self.exists, *commands], changes, again, reads=1)
        except driver.NoScriptError:
            raise
        except BaseException:
            self.forget()
            raise
        self.written(existed)
        return answers

    def announce(self) -> None:
        """Announce the data before the first write."""
        if not self._is_listed:
            self._list()

    def written(self, existed: Any) -> None:
        """Announce the data again after a write for which the marker did not exist; `existed` answers `exists`."""
        if existed != 1:
            self._list()

    def forget(self) -> None:
        """Have the next write announce the data, after a write of which it is unknown what it found."""
        self._is_listed = False

    def _list(self) -> None:
        self._is_listed = False  # until it is: if the call raises, the next write calls it before it writes
        self._enlist()
        self._is_listed = True
