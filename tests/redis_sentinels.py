"""Real Sentinels for tests: three of them watch a primary with one replica, on private ports."""

from __future__ import annotations

import redis

from tests.redis_cluster import ask, text
from tests.servers import RedisServer, ServerGroup, wait_until

#: The name that the Sentinels have for the primary.
NAME = "the-primary"


class Sentinel(RedisServer):
    """A Sentinel of our own."""

    arguments = ("--sentinel",)


class Sentinels(ServerGroup):
    """Three running Sentinels that agree on a primary and its replica: `servers`, in this order at first."""

    def __init__(self) -> None:
        super().__init__()
        try:
            at_once = ("repl-diskless-sync-delay 0",)
            primary = self._stack.enter_context(RedisServer(options=at_once))
            replica = RedisServer(options=(*at_once, f"replicaof {primary.host} {primary.port}"))
            self.servers = [primary, self._stack.enter_context(replica)]
            options = (
                f"sentinel monitor {NAME} {primary.host} {primary.port} 2",
                f"sentinel down-after-milliseconds {NAME} 1000",
                f"sentinel failover-timeout {NAME} 5000",
            )
            self.sentinels = [self._stack.enter_context(Sentinel(options=options)) for _ in range(3)]
            wait_until(lambda: ask(self.servers[1], "INFO", "replication")["master_link_status"] == "up")
            for sentinel in self.sentinels:
                wait_until(lambda one=sentinel: _is_ready(one))  # type: ignore[misc]
        except BaseException:
            self._stack.close()
            raise

    @property
    def url(self) -> str:
        """The URL of the primary, whichever it is."""
        hosts = ",".join(f"{sentinel.host}:{sentinel.port}" for sentinel in self.sentinels)
        return f"redis+sentinel://{hosts}/{NAME}"

    def primary(self) -> RedisServer:
        """Return the primary that most of the Sentinels know."""
        ports = [int(ask(one, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", NAME)[1]) for one in self.sentinels]
        port = max(ports, key=ports.count)
        return next(server for server in self.servers if server.port == port)


def _is_ready(sentinel: RedisServer) -> bool:
    """Return whether a Sentinel knows the other two and a replica that it could promote."""
    known = ask(sentinel, "INFO", "sentinel")["master0"]
    if (known["status"], int(known["slaves"]), int(known["sentinels"])) != ("ok", 1, 3):
        return False
    try:
        return text(ask(sentinel, "SENTINEL", "CKQUORUM", NAME)).startswith("OK 3 ")
    except redis.ResponseError:
        return False
