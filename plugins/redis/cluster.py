"""Find the node of a Redis Cluster that serves a namespace: the map of hash slots, and the answers that correct it.

The text in braces in the keys of a namespace determines its node. The set of all namespaces lies on a node of its own,
which a script of another node cannot change. So a handle adds its namespace to the set before its first write, and
again after a write that found nothing of the namespace: the whole cluster may have been emptied. No name is removed.
"""

from __future__ import annotations

import binascii
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

from redis import exceptions as driver

from hutch import ConfigError
from hutch.handlers import raised_by_handler

from .address import Address, Nodes
from .batches import read_together
from .errors import store_error
from .greeting import WRONG_MODE
from .pool import Pool
from .protocol import CallFailedError, Command, packed
from .replicas import ReplicaReader, Replicas
from .server import Server, Wait, server_figures
from .servers import INDEX, Servers, Settings, Shard, ShardName

Place = tuple[str, int]
# The first and the last slot, and the nodes that have them, the primary first.
Range = tuple[int, int, list[Place]]

_SLOTS: Final = 16384
_READ_MAP: Final = packed([("CLUSTER", "SLOTS")])
# Threads that lost the same node at the same time need the new map once.
_FRESH_S: Final = 0.02
# The longest use of a map to find replicas.
_MAP_AGE_S: Final = 4.0
# Of Redis and Valkey, and of Dragonfly.
_NO_CLUSTER: Final = ("cluster support disabled", "Cluster is disabled")


def slot_of(key: str) -> int:
    """Return the hash slot of a server's key: that of the text in its first braces, or of the whole key."""
    tag = key.partition("{")[2].partition("}")[0]
    return binascii.crc_hqx((tag or key).encode(), 0) % _SLOTS


class Cluster:
    """The nodes of a Redis Cluster, with a pool of connections each. Thread-safe."""

    def __init__(self, nodes: Nodes, make_pool: Callable[[Address], Pool], reads_replicas: bool) -> None:
        """Set up the cluster without connecting."""
        self.where = nodes.where
        #: Whether reads go to replicas.
        self.reads_replicas = reads_replicas
        self._replicas: list[tuple[Place, ...]] = []
        # Apart from the others: a replica serves only connections that ask for it.
        self._replica_pools: dict[Place, Pool] = {}
        self._nodes = nodes
        self._make_pool = make_pool
        self._pools: dict[Place, Pool] = {}
        # The places of the last map, replicas too: they know the map as well.
        self._places: tuple[Place, ...] = nodes.places
        self._primaries: list[Pool | None] = []
        self._read_s = 0.0

    @property
    def was_connected(self) -> bool:
        """Whether the map has ever been read."""
        return bool(self._primaries)

    def primary(self, slot: int) -> Pool:
        """Return the pool of the node that serves `slot`. Raises CallFailedError if no node can be asked."""
        if not self._primaries:
            self._read_map()
        # A node says that a slot is not served, or where it is by now.
        return self._primaries[slot] or self._pool(self._places[0])

    def primaries(self) -> dict[str, int]:
        """Return one hash slot of each primary, by the name of the node, after reading the map. See `primary`."""
        self._read_map()
        slots = {id(pool): slot for slot, pool in enumerate(self._primaries)}
        return {f"{host}:{port}": slots[id(pool)] for (host, port), pool in self._pools.items() if id(pool) in slots}

    def replicas(self, slot: int) -> list[Pool]:
        """Return the pools of the replicas of `slot`. Raises CallFailedError if no node can be asked for them."""
        # A replica that joins, or moves to another primary, changes no answer to a call.
        if not self._replicas or time.monotonic() - self._read_s > _MAP_AGE_S:
            self._read_map()
        return [self._replica_pool(place) for place in self._replicas[slot]]

    def follow(self, slot: int, error: Exception) -> Pool | None:
        """Correct the map after `error`; return the pool of the one node that takes the next attempt, or None."""
        # By the text: the driver's MovedError is an AskError.
        code, _, rest = str(error).partition(" ")
        if isinstance(error, driver.ResponseError):
            host, _, port = rest.partition(" ")[2].rpartition(":")
            if code in ("MOVED", "ASK") and host and port.isdecimal():
                pool = self._pool((host, int(port)))
                if code == "ASK":
                    return pool
                self._primaries[slot] = pool
                return None
            if code == "TRYAGAIN":
                return None
        if self.was_connected and time.monotonic() - self._read_s > _FRESH_S:
            with suppress(CallFailedError):  # the old map may be right by the next attempt
                self._read_map()
        return None

    def close(self) -> None:
        """Close the idle connections to all nodes."""
        for pool in (*self._pools.values(), *self._replica_pools.values()):
            pool.close()

    def _pool(self, place: Place) -> Pool:
        pool = self._pools.get(place)
        return pool or self._pools.setdefault(place, self._make_pool(self._nodes.address_of(*place)))

    def _replica_pool(self, place: Place) -> Pool:
        pool = self._replica_pools.get(place)
        if pool is None:
            address = self._nodes.address_of(*place)
            readable = Address(lambda: _read_only(address.make()), address.where, address.hint)
            pool = self._replica_pools.setdefault(place, self._make_pool(readable))
        return pool

    def _read_map(self) -> None:
        """Read the map from the first node that answers. Raises CallFailedError if no node does, and ConfigError."""
        error: Exception | None = None
        for place in self._candidates():
            try:
                self._take(self._map_of(place))
            except CallFailedError as failure:
                error = failure.error
            else:
                return
        raise CallFailedError(error or driver.ClusterDownError("CLUSTERDOWN no node is known"), sent=False)

    def _map_of(self, place: Place) -> list[Range]:
        """Return the ranges of slots with their nodes, the primary first, as the node at `place` knows them."""
        (answer,) = self._pool(place).ask(_READ_MAP, 1, careful=True)
        if isinstance(answer, driver.ResponseError):
            if any(text in str(answer) for text in _NO_CLUSTER):
                raise ConfigError(f"{self.where} {WRONG_MODE['standalone']}")
            raise CallFailedError(answer, sent=False)
        if not answer:
            raise CallFailedError(driver.ClusterDownError("CLUSTERDOWN no node serves a hash slot"), sent=False)
        try:
            return _ranges(answer, place[0])
        except (TypeError, ValueError, LookupError, AttributeError) as error:
            if raised_by_handler(error):
                raise
            raise CallFailedError(driver.InvalidResponse("not a map of hash slots"), sent=False) from error

    def _candidates(self) -> Iterator[Place]:
        """Yield the nodes to ask, failing ones last, in random order, because one may be isolated."""
        places = list(dict.fromkeys((*self._places, *self._nodes.places)))
        if self._primaries:
            random.shuffle(places)
        failing = [place for place in places if (pool := self._pools.get(place)) is not None and pool.is_failing]
        yield from [place for place in places if place not in failing]
        yield from failing

    def _take(self, ranges: list[Range]) -> None:
        """Use a map; forget the nodes that left the cluster."""
        primaries: list[Pool | None] = [None] * _SLOTS
        replicas: list[tuple[Place, ...]] = [()] * _SLOTS
        for first, last, nodes in ranges:
            primaries[first : last + 1] = [self._pool(nodes[0])] * (last + 1 - first)
            replicas[first : last + 1] = [tuple(nodes[1:])] * (last + 1 - first)
        self._replicas = replicas
        places = tuple(dict.fromkeys(place for _, _, nodes in ranges for place in nodes))
        self._places, self._primaries, self._read_s = places, primaries, time.monotonic()
        for place in list(self._pools):
            if place not in places and place not in self._nodes.places and (pool := self._pools.pop(place, None)):
                pool.close()
        for place in list(self._replica_pools):
            if place not in places and (pool := self._replica_pools.pop(place, None)):
                pool.close()


def _read_only(connecting: Any) -> Any:
    """Return a driver connection that reads from a replica: without READONLY, it names its primary instead."""

    def log_in(connecting: Any) -> None:
        connecting.on_connect()
        connecting.send_command("READONLY")
        connecting.read_response()

    connecting.redis_connect_func = log_in
    return connecting


def _ranges(answer: list[Any], asked_host: str) -> list[Range]:
    """Return the ranges of slots in an answer to CLUSTER SLOTS. A node without a host is at `asked_host`."""
    return [
        (int(first), int(last), [((node[0] or b"").decode() or asked_host, int(node[1])) for node in nodes])
        for first, last, *nodes in answer
    ]


class Slot:
    """The way to the node that serves one hash slot."""

    def __init__(self, cluster: Cluster, slot: int) -> None:
        self._cluster = cluster
        self._slot = slot

    @property
    def was_connected(self) -> bool:
        return self._cluster.was_connected

    def ask(self, request: list[bytes], count: int, careful: bool) -> list[Any]:
        return self._cluster.primary(self._slot).ask(request, count, careful)

    def follow(self, error: Exception) -> Pool | None:
        return self._cluster.follow(self._slot, error)

    def reader_of(self, server: Server) -> Server:
        if not self._cluster.reads_replicas:
            return server
        return ReplicaReader(server, Replicas(lambda: self._cluster.replicas(self._slot)))

    def close(self) -> None:
        self._cluster.close()


class ClusterServers(Servers):
    """The nodes of a Redis Cluster."""

    def __init__(self, settings: Settings, nodes: Nodes) -> None:
        self._cluster = Cluster(nodes, lambda address: settings.pool(address, "cluster"), settings.reads_replicas)
        route = Slot(self._cluster, slot_of(settings.index))
        super().__init__(settings, route, nodes.where, nodes.hint)
        # Without waiting for replicas: a name that a fail-over lost is repaired by `hutch check`.
        self._index = Server(route, nodes.where, settings.options["retry_s"], nodes.hint)

    def of(self, namespace: str) -> Server:
        return self._listed(namespace, self.settings.wait)

    def home(self, namespace: str) -> Server:
        return self._listed(namespace, None)

    def at(self, namespace: str, shard: Shard | None = None) -> Server:
        return self._server(self.route(namespace, shard))

    def script_keys(self, namespace: str, shard: Shard | None = None) -> tuple[bytes, ...]:
        # The set of all namespaces is on another node; the scripts write a set of this namespace alone.
        values, order, _, deadlines = super().script_keys(namespace, shard)
        return values, order, self.settings.key(namespace, INDEX, shard).encode(), deadlines

    def ask_each(self, commands: Sequence[tuple[ShardName, Command]]) -> list[Any]:
        answers = read_together(self, dict(commands))
        for name, command in commands:
            if name not in answers:
                (answers[name],) = self.at(*name).exchange([command])
        return [answers[name] for name, _ in commands]

    def _listed(self, namespace: str, wait: Wait | None) -> Server:
        add: Command = (b"SADD", self.settings.index, namespace.encode())
        return self._marked(namespace, None, lambda: self._index.exchange([add], changes=True), wait)

    def node(self, name: ShardName) -> Pool:
        return self._cluster.primary(self._slot(*name))

    def route(self, namespace: str, shard: Shard | None = None) -> Slot:
        return Slot(self._cluster, self._slot(namespace, shard))

    def _slot(self, namespace: str, shard: Shard | None) -> int:
        return slot_of(self.settings.key(namespace, INDEX, shard))

    def primaries(self) -> Mapping[str, Server]:
        self.main.call("PING")
        try:
            slots = self._cluster.primaries()
        except CallFailedError as failure:
            raise store_error(self.where, failure.error) from failure.error
        return {name: self._server(Slot(self._cluster, slot)) for name, slot in slots.items()}

    def figures(self) -> dict[str, object]:
        nodes = {name: server_figures(server) for name, server in self.primaries().items()}
        sizes = {name: size for name, one in nodes.items() if isinstance(size := one.get("server_bytes"), int)}
        figures = next(iter(nodes.values())) | {"nodes": len(nodes)}
        total = {"server_bytes": sum(sizes.values())} if sizes else {}
        return figures | total | {f"server_bytes {name}": size for name, size in sizes.items()}
