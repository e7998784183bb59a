"""Real Sentinels for tests: three of them watch a primary with one replica, on private ports."""

from __future__ import annotations

from typing import Any

import redis

from tests.redis_cluster import ask, text
from tests.servers import Certificates, RedisServer, ServerGroup, wait_until

#: The name that the Sentinels have for the primary.
NAME = "the-primary"


class Sentinel(RedisServer):
    """A Sentinel of our own."""

    arguments = ("--sentinel",)


class Sentinels(ServerGroup):
    """Three running Sentinels that agree on a primary and its replica: `servers`, in this order at first."""

    def __init__(
        self,
        *,
        name: str = "redis-7.0",
        host: str = "127.0.0.1",
        certificates: Certificates | None = None,
        options: tuple[str, ...] = (),
    ) -> None:
        """Start them; `options` are for the primary and the replica."""
        super().__init__(certificates)
        tls = self._tls_options[:1]
        kwargs: dict[str, Any] = {"name": name, "host": host, "certificates": certificates}
        try:
            at_once = (*tls, "repl-diskless-sync-delay 0", *options)
            primary = self._stack.enter_context(RedisServer(**kwargs, options=at_once))
            its_port = self._port(primary)
            replica = RedisServer(**kwargs, options=(*at_once, f"replicaof {host} {its_port}"))
            self.servers = [primary, self._stack.enter_context(replica)]
            watched = (
                *tls,
                f"sentinel monitor {NAME} {host} {its_port} 2",
                f"sentinel down-after-milliseconds {NAME} 1000",
                f"sentinel failover-timeout {NAME} 5000",
            )
            self.sentinels = [self._stack.enter_context(Sentinel(**kwargs, options=watched)) for _ in range(3)]
            wait_until(lambda: ask(self.servers[1], "INFO", "replication")["master_link_status"] == "up")
            for sentinel in self.sentinels:
                wait_until(lambda one=sentinel: _is_ready(one))  # type: ignore[misc]
        except BaseException:
            self._stack.close()
            raise

    @property
    def url(self) -> str:
        """The URL of the primary, whichever it is."""
        return f"{self._scheme}+sentinel://{self._places([*self.sentinels])}/{NAME}"

    def primary(self) -> RedisServer:
        """Return the primary that most of the Sentinels know."""
        ports = [int(ask(one, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", NAME)[1]) for one in self.sentinels]
        port = max(ports, key=ports.count)
        return next(server for server in self.servers if self._port(server) == port)


def _is_ready(sentinel: RedisServer) -> bool:
    """Return whether a Sentinel knows the other two and a replica that it could promote."""
    known = ask(sentinel, "INFO", "sentinel")["master0"]
    if (known["status"], int(known["slaves"]), int(known["sentinels"])) != ("ok", 1, 3):
        return False
    try:
        return text(ask(sentinel, "SENTINEL", "CKQUORUM", NAME)).startswith("OK 3 ")
    except redis.ResponseError:
        return False
