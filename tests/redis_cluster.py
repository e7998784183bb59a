"""A real Redis Cluster for tests: shards with a replica each, on private ports."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from typing import Any

import redis

from tests.servers import Certificates, RedisServer, ServerGroup, wait_until

SLOTS = 16384


class RedisCluster(ServerGroup):
    """A running cluster: the primaries come first in `servers`, then their replicas in the same order.

    `node_timeout_ms` decides how soon a replica takes over from a dead primary; `options` are for each server.
    """

    def __init__(
        self,
        shards: int = 3,
        *,
        node_timeout_ms: int = 30_000,
        name: str = "redis-7.0",
        host: str = "127.0.0.1",
        certificates: Certificates | None = None,
        options: tuple[str, ...] = (),
    ) -> None:
        super().__init__(certificates)
        options = (
            *options,
            *self._tls_options,
            "cluster-enabled yes",
            f"cluster-node-timeout {node_timeout_ms}",
            "cluster-replica-validity-factor 0",
            "repl-diskless-sync-delay 0",
        )
        start = partial(RedisServer, name=name, host=host, certificates=certificates)
        try:
            self._buses = [_free_port() for _ in range(2 * shards)]
            self.servers = [
                self._stack.enter_context(start(options=(*options, f"cluster-port {bus}"))) for bus in self._buses
            ]
            self._join(shards)
        except BaseException:
            self._stack.close()
            raise

    @property
    def url(self) -> str:
        """The URL of all its nodes."""
        return f"{self._scheme}+cluster://{self._places(self.servers)}"

    def owner(self, slot: int) -> int:
        """Return which of the servers serves `slot`, as the first one that answers knows it."""
        for server in self.servers:
            try:
                ranges = ask(server, "CLUSTER", "SLOTS")
            except redis.ConnectionError:
                continue
            port = next(primary[1] for first, last, primary, *_ in ranges if first <= slot <= last)
            return next(i for i, one in enumerate(self.servers) if one.port == port)
        raise AssertionError("no node answers")

    def pair(self, slot: int) -> tuple[RedisServer, RedisServer]:
        """Return the primary that serves `slot` and its replica, once every node lists the replica.

        A node lists a replica after the first contact since the replica received something, so write to it before.
        """
        primary = self.servers[self.owner(slot)]
        number = next(i for i, one in enumerate(self.servers) if text(ask(one, "ROLE")[2]) == str(primary.port))
        replica = self.servers[number]
        for one in self.servers:
            ask(one, "CLUSTER", "MEET", replica.host, replica.port, self._buses[number])  # contact it now
        wait_until(lambda: all(replica.port in _ports(one, slot) for one in self.servers))
        return primary, replica

    def move_slot(self, slot: int, target: int) -> None:
        """Move `slot` to the primary `target`, one key after the other, while clients write."""
        source = self.owner(slot)
        if source == target:
            return
        with executor(self.servers[source]) as at_source, executor(self.servers[target]) as at_target:
            ids = [text(execute("CLUSTER", "MYID")) for execute in (at_source, at_target)]
            at_target("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[0])
            at_source("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[1])
            server = self.servers[target]
            while keys := at_source("CLUSTER", "GETKEYSINSLOT", slot, 1):
                at_source("MIGRATE", server.host, self._port(server), keys[0], 0, 10_000)
            for execute in (at_target, at_source):
                execute("CLUSTER", "SETSLOT", slot, "NODE", ids[1])

    def _join(self, shards: int) -> None:
        bounds = [SLOTS * i // shards for i in range(shards + 1)]
        first = self.servers[0]
        for i, server in enumerate(self.servers):
            if i < shards:
                ask(server, "CLUSTER", "ADDSLOTSRANGE", bounds[i], bounds[i + 1] - 1)
            ask(server, "CLUSTER", "SET-CONFIG-EPOCH", i + 1)
            if i:
                ask(server, "CLUSTER", "MEET", first.host, self._port(first), self._buses[0])
        for i, replica in enumerate(self.servers[shards:]):
            primary = text(ask(self.servers[i], "CLUSTER", "MYID"))
            wait_until(lambda one=replica, its=primary: _replicates(one, its))  # type: ignore[misc]
        for server in self.servers:
            wait_until(lambda one=server: _is_ready(one))  # type: ignore[misc]


def _ports(server: RedisServer, slot: int) -> list[int]:
    """Return the ports of the nodes that have `slot`, as `server` knows them."""
    ranges = ask(server, "CLUSTER", "SLOTS")
    return [node[1] for first, last, *nodes in ranges if first <= slot <= last for node in nodes]


def _replicates(server: RedisServer, primary: str) -> bool:
    try:
        ask(server, "CLUSTER", "REPLICATE", primary)
    except redis.ResponseError:  # it has not heard of that node yet
        return False
    return True


def _is_ready(server: RedisServer) -> bool:
    replication = ask(server, "INFO", "replication")
    is_up = replication["role"] == "master" or replication["master_link_status"] == "up"
    cluster = text(ask(server, "CLUSTER", "INFO")).split()
    return is_up and {"cluster_state:ok", f"cluster_slots_ok:{SLOTS}"} <= set(cluster)


def ask(server: RedisServer, *command: Any) -> Any:
    """Return the answer of one node to one command."""
    with executor(server) as execute:
        return execute(*command)


@contextmanager
def executor(server: RedisServer) -> Iterator[Any]:
    """Yield a function that sends commands to one node, over one connection."""
    # Not over TCP: a test may have broken the network.
    with closing(redis.Redis(unix_socket_path=str(server.socket), single_connection_client=True)) as client:
        yield client.execute_command


def text(answer: Any) -> str:
    return answer.decode() if isinstance(answer, bytes) else str(answer)


def _free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as held:
        port: int = held.getsockname()[1]
        return port
