"""Find the primary of a group of servers by its name: Sentinels watch the servers, and know which one it is by now."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any, Final

from redis import exceptions as driver

from hutch import ConfigError

from .address import Address, Monitor
from .pool import Pool
from .protocol import CallFailedError, packed
from .replicas import Replicas, ReplicatedRoute
from .server import Route, Server
from .servers import Servers, Settings

# How long a call may go to a former primary, which takes writes until a Sentinel turns it into a replica.
_ASK_AGAIN_S: Final = 1.0


class Sentinels:
    """The Sentinels of a store, with a pool of connections each. Thread-safe."""

    def __init__(self, monitor: Monitor, pools: tuple[Pool, ...]) -> None:
        self._monitor = monitor
        self._pools = pools
        self._request = packed([("SENTINEL", "GET-MASTER-ADDR-BY-NAME", monitor.name)])
        self._list_request = packed([("SENTINEL", "REPLICAS", monitor.name)])
        # How often each Sentinel has named a server that was not a primary, since it last named one.
        self._mistakes = dict.fromkeys(pools, 0)
        # What the last answer was.
        self._place: list[bytes] | None = None

    def connection(self) -> Any:
        """Return a new driver connection to the primary of this moment, not connected yet.

        Connecting raises ReadOnlyError if that server is a replica: a Sentinel that missed a fail-over names the former
        primary. Raises CallFailedError if no Sentinel answers, and ConfigError if those that answer do not know the
        name.
        """
        error: Exception | None = None
        is_unknown = False
        for pool in self._in_order():
            try:
                (answer,) = pool.ask(self._request, 1, careful=True)
            except CallFailedError as failure:
                error = failure.error
                continue
            if isinstance(answer, driver.ResponseError):
                error = answer
            elif answer is None:
                is_unknown = True
            else:
                self._place = answer
                host, port = answer
                connecting = self._monitor.address_of(host.decode(), int(port)).make()
                connecting.redis_connect_func = functools.partial(self._log_in, pool)
                return connecting
        if is_unknown or error is None:
            raise ConfigError(
                f"{self._monitor.where} is unknown there: no Sentinel that answers monitors a primary of that name. "
                "Correct the name in the url; 'redis-cli -p 26379 sentinel masters' lists the names"
            )
        raise CallFailedError(error, sent=False)

    def has_moved(self) -> bool:
        """Return whether a Sentinel names another primary than at the last connection; False if none is reachable."""
        pool = self._in_order()[0]
        if pool.is_failing:
            return False
        try:
            (answer,) = pool.ask(self._request, 1, careful=True)
        except CallFailedError:
            return False
        return type(answer) is list and answer != self._place

    def _in_order(self) -> list[Pool]:
        """Return the Sentinels, failing ones last: each may take until the time-out."""
        return sorted(self._pools, key=lambda one: (one.is_failing, self._mistakes[one]))

    def _log_in(self, sentinel: Pool, connecting: Any) -> None:
        """Log in to the server that `sentinel` named. Raises ReadOnlyError if the server says that it is a replica."""
        connecting.on_connect()
        connecting.send_command("ROLE")
        try:
            role = connecting.read_response()[0]
        except driver.NoPermissionError:
            return
        if role in (b"master", "master"):
            self._mistakes[sentinel] = 0
        else:
            self._mistakes[sentinel] += 1
            raise driver.ReadOnlyError("READONLY the Sentinel named a replica")

    def replicas(self) -> list[tuple[str, int]]:
        """Return host and port of each replica that is up and connected to the primary.

        Raises CallFailedError if no Sentinel answers.
        """
        error: Exception | None = None
        for pool in self._in_order():
            try:
                (answer,) = pool.ask(self._list_request, 1, careful=True)
            except CallFailedError as failure:
                error = failure.error
                continue
            if isinstance(answer, driver.ResponseError):
                error = answer
                continue
            listed = [dict(zip(fields[::2], fields[1::2], strict=False)) for fields in answer]
            return [(one[b"ip"].decode(), int(one[b"port"])) for one in listed if _is_up(one)]
        raise CallFailedError(error or driver.ConnectionError("no Sentinel is known"), sent=False)

    def close(self) -> None:
        """Close the idle connections."""
        for pool in self._pools:
            pool.close()


def _is_up(fields: dict[bytes, bytes]) -> bool:
    """Return whether a replica with these `fields` may be read."""
    return fields.get(b"flags") == b"slave" and fields.get(b"master-link-status") == b"ok"


class Primary:
    """The way to the primary, which a Sentinel is asked for again while calls are made."""

    def __init__(self, sentinels: Sentinels, make_pool: Callable[[], Pool]) -> None:
        self._sentinels = sentinels
        self._make_pool = make_pool
        self._pool = make_pool()
        self._asked_s = time.monotonic()
        self.was_connected = False

    def ask(self, request: list[bytes], count: int, careful: bool) -> list[Any]:
        now_s = time.monotonic()
        if now_s - self._asked_s > _ASK_AGAIN_S:
            self._asked_s = now_s
            if self.was_connected and self._sentinels.has_moved():
                # Not only the idle connections: those in use would come back.
                former, self._pool = self._pool, self._make_pool()
                former.close()
        pool = self._pool
        try:
            return pool.ask(request, count, careful)
        finally:
            self.was_connected = self.was_connected or pool.was_connected

    def follow(self, error: Exception) -> Pool | None:
        return self._pool.follow(error)

    def reader_of(self, server: Server) -> Server:
        return server

    def close(self) -> None:
        self._pool.close()


class SentinelServers(Servers):
    """The primary of a group of servers. Each new connection asks the Sentinels which server that is."""

    def __init__(self, settings: Settings, monitor: Monitor) -> None:
        pools = tuple(settings.pool(address, "sentinel") for address in monitor.sentinels)
        self._sentinels = Sentinels(monitor, pools)
        self._address_of = monitor.address_of
        self._replicas: dict[tuple[str, int], Pool] = {}
        address = Address(self._sentinels.connection, monitor.where, monitor.sentinels[0].hint)
        route: Route = Primary(self._sentinels, lambda: settings.pool(address, "standalone"))
        if settings.reads_replicas:
            route = ReplicatedRoute(route, Replicas(self._list_replicas))
        super().__init__(settings, route, monitor.where, address.hint)

    def close(self) -> None:
        super().close()
        self._sentinels.close()
        for pool in list(self._replicas.values()):
            pool.close()

    def _list_replicas(self) -> list[Pool]:
        places = self._sentinels.replicas()
        for place in list(self._replicas):
            if place not in places and (left := self._replicas.pop(place, None)):
                left.close()
        for place in places:
            if place not in self._replicas:
                self._replicas.setdefault(place, self.settings.pool(self._address_of(*place), "standalone"))
        return [pool for place in places if (pool := self._replicas.get(place))]
