"""The three topologies of the redis engine, with real servers and a network that can be broken."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import ExitStack
from typing import Any

import redis
from redis.crc import key_slot

from tests.faults.network import Network
from tests.redis_cluster import RedisCluster, ask, text
from tests.redis_sentinels import NAME, Sentinels
from tests.servers import RedisServer, wait_until

USER, PASSWORD = "hutch", "secret"
# Each server writes every change to its disk before it answers, so a restart loses nothing.
_OPTIONS = ("appendonly yes", f"user {USER} on >{PASSWORD} ~* &* +@all", "repl-diskless-sync-delay 0")
# No fail-over, unless it is asked for.
_NEVER_MS = 60_000


class Topology(ABC):
    """Running servers, and how to break them."""

    name: str
    url: str
    #: The servers that have data.
    servers: list[RedisServer]
    network: Network

    def __init__(self) -> None:
        self.stack = ExitStack()

    @abstractmethod
    def primary(self, key: str) -> RedisServer:
        """Return the server that accepts writes of a key of the server."""

    @abstractmethod
    def replica(self, key: str) -> RedisServer:
        """Return the replica of that server."""

    def wire(self, key: str) -> Any:
        """Return the wire between the client and the primary."""
        return self.network.wires[self.primary(key).port]

    def fail_over_after(self, ms: int) -> None:
        """Let a replica take over when its primary was away for `ms`."""
        raise NotImplementedError

    def fail_over(self, key: str, *how: str) -> None:
        """Order a fail-over, and wait for it."""
        raise NotImplementedError

    def wait_ready(self) -> None:
        """Wait until each replica follows its primary."""
        for server in self.servers:
            wait_until(lambda one=server: _follows(one))  # type: ignore[misc]

    def close(self) -> None:
        self.stack.close()


class Standalone(Topology):
    """A server, and another one that replicates it and that an operator may promote."""

    name = "standalone"

    def __init__(self) -> None:
        super().__init__()
        first = self.stack.enter_context(RedisServer(options=_OPTIONS))
        second = RedisServer(options=(*_OPTIONS, f"replicaof {first.host} {first.port}"))
        self.servers = [first, self.stack.enter_context(second)]
        self.url = first.url
        self._port = first.port
        self.network = Network([first.port])
        self.stack.callback(self.network.close)

    def primary(self, key: str) -> RedisServer:
        return self.servers[0]

    def replica(self, key: str) -> RedisServer:
        return self.servers[1]

    def wire(self, key: str) -> Any:
        return self.network.wires[self._port]

    def promote(self) -> None:
        """Let the replica and the server change places, once the replica has all, and the name lead to it."""
        old, new = self.servers
        ask(old, "CLIENT", "PAUSE", 60_000, "WRITE")
        wait_until(lambda: _offset(old, "master_repl_offset") == _offset(new, "slave_repl_offset"))
        ask(new, "REPLICAOF", "NO", "ONE")
        self.network.wires[self._port].target_port = new.port
        ask(old, "REPLICAOF", new.host, new.port)
        ask(old, "CLIENT", "UNPAUSE")
        self.servers.reverse()


class Monitored(Topology):
    """A primary with a replica, and three Sentinels."""

    name = "sentinel"

    def __init__(self) -> None:
        super().__init__()
        self.group = self.stack.enter_context(Sentinels(options=_OPTIONS))
        self.servers, self.url = self.group.servers, self.group.url
        self.fail_over_after(_NEVER_MS)
        self.network = Network([server.port for server in (*self.servers, *self.group.sentinels)])
        self.stack.callback(self.network.close)

    def primary(self, key: str) -> RedisServer:
        return self.group.primary()

    def replica(self, key: str) -> RedisServer:
        primary = self.primary(key)
        return next(server for server in self.servers if server is not primary)

    def fail_over_after(self, ms: int) -> None:
        for sentinel in self.group.sentinels:
            ask(sentinel, "SENTINEL", "SET", NAME, "down-after-milliseconds", ms)

    def fail_over(self, key: str, *how: str) -> None:
        old = self.primary(key)
        wait_until(lambda: _is_done(self.group.sentinels[0], "SENTINEL", "FAILOVER", NAME))
        wait_until(lambda: self.primary(key) is not old)
        new = self.primary(key)
        # The clients leave the former primary before the Sentinels turn it into a replica, ten seconds later.
        wait_until(lambda: f"user={USER}" in text(ask(new, "CLIENT", "LIST")))
        assert _is_primary(old)
        follow(old, new)


class Clustered(Topology):
    """A cluster of three primaries with a replica each."""

    name = "cluster"

    def __init__(self) -> None:
        super().__init__()
        self.group = self.stack.enter_context(RedisCluster(node_timeout_ms=_NEVER_MS, options=_OPTIONS))
        self.servers, self.url = self.group.servers, self.group.url
        self.network = Network([server.port for server in self.servers])
        self.stack.callback(self.network.close)

    def slot(self, key: str) -> int:
        """Return the hash slot of a key."""
        return int(key_slot(key.encode()))

    def primary(self, key: str) -> RedisServer:
        return self.servers[self.group.owner(self.slot(key))]

    def replica(self, key: str) -> RedisServer:
        port = self.primary(key).port
        return next(one for one in self.servers if ask(one, "INFO", "replication").get("master_port") == port)

    def fail_over_after(self, ms: int) -> None:
        for server in self.servers:
            ask(server, "CONFIG", "SET", "cluster-node-timeout", ms)

    def fail_over(self, key: str, *how: str) -> None:
        old, new = self.primary(key), self.replica(key)
        ask(new, "CLUSTER", "FAILOVER", *how)
        wait_until(lambda: _is_primary(new) and not _is_primary(old))


def follow(server: RedisServer, primary: RedisServer) -> None:
    """Make a server that is a primary no longer a replica, where nobody else does."""
    ask(server, "REPLICAOF", primary.host, primary.port)


def _follows(server: RedisServer) -> bool:
    replication = ask(server, "INFO", "replication")
    cluster = ask(server, "INFO", "cluster")["cluster_enabled"]
    is_ok = not cluster or "cluster_state:ok" in text(ask(server, "CLUSTER", "INFO"))
    return is_ok and (replication["role"] == "master" or replication["master_link_status"] == "up")


def _is_primary(server: RedisServer) -> bool:
    return bool(ask(server, "INFO", "replication")["role"] == "master")


def _is_done(server: RedisServer, *command: str) -> bool:
    try:
        ask(server, *command)
    except redis.ResponseError:  # it knows too little about the replica yet
        return False
    return True


def _offset(server: RedisServer, name: str) -> int:
    return int(ask(server, "INFO", "replication").get(name, -1))
