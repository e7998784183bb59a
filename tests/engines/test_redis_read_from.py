"""Test that reads go to real replicas with `read_from=replicas`, and that what writes still reads from the primary."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import redis

import hutch
from tests.engines.test_redis import ALLOWED
from tests.redis_cluster import RedisCluster, ask
from tests.redis_sentinels import NAME, Sentinels
from tests.servers import RedisServer, wait_until

DOCS = Path(__file__).parents[2] / "docs"
# The commands that read one namespace. A new connection runs a script of its own, by EVAL.
READS = frozenset({"hget", "hmget", "evalsha"})


@pytest.fixture(scope="module")
def sentinels() -> Iterator[Sentinels]:
    with Sentinels() as started:
        yield started


@pytest.fixture(params=["sentinel", "cluster"])
def group(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue("sentinels" if request.param == "sentinel" else "redis_cluster")


def connect(group: Any, **options: Any) -> hutch.Store:
    """Connect such that what was written is on the replica, so that the tests need not wait for it."""
    config = {"read_from": "replicas", "wait_replicas": 1, "wait_ms": 9_000} | options
    return hutch.connect({"STORAGE": group.url, "STORAGE_CONFIG": config})


def pair_of(group: Any, prefix: str) -> tuple[RedisServer, RedisServer]:
    """Return the primary that serves the namespace `core`, and its replica, which is known to all."""
    if isinstance(group, RedisCluster):
        slot = int(ask(group.servers[0], "CLUSTER", "KEYSLOT", f"{prefix}:{{core}}:values"))
        return group.pair(slot)
    primary = group.primary()
    wait_until(lambda: all(is_listed(one) for one in group.sentinels))
    return primary, next(one for one in group.servers if one is not primary)


def is_listed(sentinel: RedisServer) -> bool:
    (replica,) = ask(sentinel, "SENTINEL", "REPLICAS", NAME)
    return (replica[b"flags"], replica[b"master-link-status"]) == (b"slave", b"ok")


def counted(server: RedisServer, commands: frozenset[str] = READS) -> dict[str, int]:
    """Return how often the server has run each of `commands`."""
    with closing(redis.Redis(server.host, server.port)) as client:
        stats = client.info("commandstats")
    names = {name: name.removeprefix("cmdstat_") for name in stats}
    return {short: stats[name]["calls"] for name, short in names.items() if short in commands}


def reset(*servers: RedisServer) -> None:
    for server in servers:
        ask(server, "CONFIG", "RESETSTAT")


def fill(core: hutch.Namespace[Any]) -> None:
    core.update({"a": 1, "b": 2, **{f"{i:03}": i for i in range(400)}})


PLAIN_READS: dict[str, Callable[[hutch.Namespace[Any]], Any]] = {
    "get": lambda core: core["a"],
    "miss": lambda core: core.get("none", 1),
    "in": lambda core: "a" in core,
    "len": lambda core: len(core) == 402,
    "get_many": lambda core: core.get_many(["a", "b"]) == {"a": 1, "b": 2},
    "keys": lambda core: len(list(core)) == 402,
    "items": lambda core: dict(core.items())["b"] == 2,
    "scan": lambda core: dict(core.scan(prefix="a")) == {"a": 1},
}


def test_plain_reads_go_to_the_replica(group: Any, prefix: str) -> None:
    with connect(group, prefix=prefix) as store, store.open("core") as core:
        fill(core)
        primary, replica = pair_of(group, prefix)
    with connect(group, prefix=prefix) as store, store.open("core") as core:
        for verb, read in PLAIN_READS.items():
            reset(primary, replica)
            assert read(core), verb
            assert counted(primary) == {}, verb
            assert sum(counted(replica).values()) > 0, verb


def test_the_shards_of_a_namespace_are_read_from_replicas_too(redis_cluster: RedisCluster, prefix: str) -> None:
    config = {"prefix": prefix, "shards": 4}
    with connect(redis_cluster, **config) as store, store.open("core") as core:
        fill(core)
    slots = [ask(redis_cluster.servers[0], "CLUSTER", "KEYSLOT", f"{prefix}:{{core|{i}}}:values") for i in range(4)]
    pairs = [redis_cluster.pair(slot) for slot in slots]
    primaries = {primary.port: primary for primary, _ in pairs}.values()
    with connect(redis_cluster, **config) as store, store.open("core") as core:
        reset(*redis_cluster.servers)
        assert all(read(core) for read in PLAIN_READS.values())
        assert sum(counted(one).get("hmget", 0) for one in primaries) == 0


CHANGES: dict[str, Callable[[hutch.Namespace[Any]], Any]] = {
    "set": lambda core: core.__setitem__("a", 1),
    "update": lambda core: core.update(a=1),
    "modify": lambda core: core.modify("a", lambda n: n + 1),
    "increment": lambda core: core.increment("a", ttl_s=None),
    "pop": lambda core: core.pop("a"),
    "setdefault": lambda core: core.setdefault("a", 1),
    "compare_and_set": lambda core: core.compare_and_set("a", 1, 5),
    "ttl": lambda core: core.set("t", 1, ttl_s=1000),
    "touch": lambda core: core.touch("t", 2000),
    "ttl_s": lambda core: core.ttl_s("t"),
    "remove_many": lambda core: core.remove_many(["b", "none"]),
    "expire": lambda core: core.expire(),
    "clear": lambda core: core.clear(),
}


def add_in_transaction(core: hutch.Namespace[Any]) -> None:
    with core.transaction() as tx:
        tx["n"] = tx.get("n", 0) + tx.get("a", 0) + 1


def test_what_writes_reads_from_the_primary(group: Any, prefix: str) -> None:
    with connect(group, prefix=prefix) as store, store.open("core") as core:
        fill(core)
        primary, replica = pair_of(group, prefix)
        for verb, change in {**CHANGES, "transaction": add_in_transaction}.items():
            reset(primary, replica)
            change(core)
            assert counted(replica) == {}, verb
            assert sum(counted(primary, READS | {"eval"}).values()) > 0, verb
        assert (len(core), core["n"]) == (1, 1)


def test_a_stale_read_shows_in_get_alone(sentinels: Sentinels, prefix: str) -> None:
    """The replica lacks writes here: it is made to differ from its primary."""
    with connect(sentinels, prefix=prefix) as store, store.open("core") as core:
        core.update(n=1, m=1)
        _, replica = pair_of(sentinels, prefix)
        ask(replica, "CONFIG", "SET", "replica-read-only", "no")
        try:
            ask(replica, "HDEL", f"{prefix}:{{core}}:values", "n")
            assert core.get("n", "stale") == "stale"
            assert core.setdefault("n", 5) == 1
            assert core.modify("n", lambda n: n + 1, 100) == 2
            assert core["n"] == 2  # written meanwhile
        finally:
            ask(replica, "CONFIG", "SET", "replica-read-only", "yes")


def test_a_deadline_is_judged_on_the_replica(group: Any, prefix: str) -> None:
    with connect(group, prefix=prefix) as store, store.open("core") as core:
        core.set("long", 1, ttl_s=1000)
        core.set("short", 2, ttl_s=0.001)
        assert core["long"] == 1
        primary, replica = pair_of(group, prefix)
        reset(primary, replica)
        wait_until(lambda: core.get("short") is None)
        assert core["long"] == 1
        assert "short" not in core
        assert list(core) == ["long"]
        assert counted(primary) == {}


def test_the_capabilities_say_that_reads_may_be_stale(group: Any, prefix: str) -> None:
    with connect(group, prefix=prefix) as store, connect(group, prefix=prefix, read_from="primary") as fresh:
        assert fresh.capabilities - store.capabilities == {"shared"}
        assert store.capabilities - fresh.capabilities == {"redis:stale-reads"}
        assert pickle.dumps(store)


def test_the_rights_on_the_pages_are_enough(group: Any, prefix: str) -> None:
    pages = {"redis-cluster.md": "+readonly", "redis-failover.md": "+sentinel|replicas"}
    for page, right in pages.items():
        assert right in (DOCS / page).read_text(encoding="utf-8")
    login = {"username": prefix, "password": "secret"}
    allowed = [*(f"+{name}" for name in ALLOWED), "+wait"]
    users: list[tuple[RedisServer, list[str]]] = []
    if isinstance(group, RedisCluster):
        users = [(one, [*allowed, "+cluster|slots", "+asking", "+readonly"]) for one in group.servers]
    else:
        login |= {"sentinel_username": prefix, "sentinel_password": "secret"}
        users = [(one, allowed) for one in group.servers]
        rights = ["+ping", "+sentinel|get-master-addr-by-name", "+sentinel|replicas"]
        users += [(one, rights) for one in group.sentinels]
    for server, rights in users:
        keys = [f"~{prefix}:*"] if server in group.servers else []
        ask(server, "ACL", "SETUSER", prefix, "on", ">secret", *keys, *rights)
    try:
        with connect(group, prefix=prefix, **login) as store, store.open("core") as core:
            fill(core)
            primary, replica = pair_of(group, prefix)
        with connect(group, prefix=prefix, **login) as store, store.open("core") as core:
            reset(primary, replica)
            assert all(read(core) for read in PLAIN_READS.values())
            assert (counted(primary), bool(counted(replica))) == ({}, True)
    finally:
        for server, _ in users:
            ask(server, "ACL", "DELUSER", prefix)


def test_a_url_without_replicas_is_refused(redis_server: RedisServer) -> None:
    with pytest.raises(hutch.ConfigError, match=r"'read_from' .* redis\+cluster:// or redis\+sentinel://"):
        connect(redis_server)
    with pytest.raises(hutch.ConfigError, match="one of primary, replicas"):
        connect(redis_server, read_from="slave")


def test_a_replica_that_hangs_or_dies_costs_at_most_its_time_out(sentinels: Sentinels, prefix: str) -> None:
    with connect(sentinels, prefix=prefix, wait_replicas=0, timeout_s=2) as store, store.open("core") as core:
        core["a"] = 1
        primary, replica = pair_of(sentinels, prefix)
        wait_until(lambda: core.get("a") == 1)
        reset(primary)
        replica.stall()
        try:
            for _ in range(20):
                assert core["a"] == 1
            assert counted(primary)["hget"] == 20
        finally:
            replica.resume()
        replica.kill()
        try:
            for _ in range(20):
                assert core["a"] == 1
            with connect(sentinels, prefix=prefix) as other:
                assert other["core"]["a"] == 1
        finally:
            replica.start()
            wait_until(lambda: ask(replica, "INFO", "replication")["master_link_status"] == "up")
