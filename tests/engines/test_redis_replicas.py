"""Test that the redis engine waits for real replicas, and says so if they do not answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import hutch
from tests.engines.test_redis import ALLOWED
from tests.redis_cluster import RedisCluster, ask
from tests.servers import RedisServer, wait_until

_AT_ONCE = ("repl-diskless-sync-delay 0",)


@pytest.fixture(scope="module")
def primary() -> Iterator[RedisServer]:
    with RedisServer(options=_AT_ONCE) as server:
        yield server


@pytest.fixture(scope="module")
def replica(primary: RedisServer) -> Iterator[RedisServer]:
    with RedisServer(options=(f"replicaof {primary.host} {primary.port}",)) as server:
        wait_until(lambda: ask(server, "INFO", "replication")["master_link_status"] == "up")
        yield server


@contextmanager
def stalled(server: RedisServer) -> Iterator[None]:
    server.stall()
    try:
        yield
    finally:
        server.resume()


def connect(storage: str, **options: Any) -> hutch.Store:
    return hutch.connect({"STORAGE": storage, "STORAGE_CONFIG": options})


def test_a_write_that_returned_is_on_the_replica(primary: RedisServer, replica: RedisServer, prefix: str) -> None:
    with (
        connect(primary.url, prefix=prefix, wait_replicas=1, wait_ms=9_000) as store,
        connect(replica.url, prefix=prefix) as copy,
        store.open("core") as core,
        copy.open("core") as same,
    ):
        assert "replicated" in store.capabilities
        assert "replicated" not in copy.capabilities
        for i in range(200):
            core[f"{i}"] = i
            assert same[f"{i}"] == i
        core.update(a=1, b=2)
        assert same.get_many(["a", "b"]) == {"a": 1, "b": 2}
        assert core.increment("a") == same["a"] == 2
        del core["b"]
        assert "b" not in same
        with core.transaction() as tx:
            tx["a"] += 1
        assert same["a"] == 3
        core.clear()
        assert len(same) == 0


@pytest.mark.parametrize(
    ("change", "after"),
    [
        (lambda core: core.__setitem__("n", 1), {"n": 1}),
        (lambda core: core.update(n=1, m=2), {"n": 1, "m": 2}),
        (lambda core: core.update({f"{i}": i for i in range(100_001)}), None),
        (lambda core: core.__delitem__("n"), {}),
        (lambda core: core.remove_many(["n", "m"]), {}),
        (lambda core: core.pop("n"), {}),
        (lambda core: core.modify("n", lambda n: n + 1), {"n": 1}),
        (lambda core: core.increment("n"), {"n": 1}),
        (lambda core: core.compare_and_set("n", 0, 5), {"n": 5}),
        (lambda core: core.setdefault("m", 5), {"n": 0, "m": 5}),
        (lambda core: core.set("n", 5, ttl_s=1000), {"n": 5}),
        (lambda core: core.clear(), {}),
    ],
)
def test_a_write_that_no_replica_has_in_time_is_made_once_and_is_an_error(
    primary: RedisServer, replica: RedisServer, prefix: str, change: Callable[[Any], Any], after: dict[str, int] | None
) -> None:
    with (
        connect(primary.url, prefix=prefix, wait_replicas=1, wait_ms=50, retry_s=60) as store,
        connect(primary.url, prefix=prefix) as reader,
    ):
        core, same = store["core"], reader["core"]
        same["n"] = 0
        with stalled(replica):
            with pytest.raises(hutch.NotReplicatedError, match="written, not replicated") as caught:
                change(core)
            assert isinstance(caught.value, hutch.StorageUnavailableError)
            found = dict(same.items())
        assert found == after if after is not None else len(found) == 100_002


def test_a_transaction_that_no_replica_has_in_time_is_committed_once(
    primary: RedisServer, replica: RedisServer, prefix: str
) -> None:
    runs: list[int] = []

    def add(tx: hutch.Transaction) -> None:
        runs.append(1)
        tx["a"]["n"] = tx["b"]["n"] = tx["a"].get("n", 0) + 1

    with connect(primary.url, prefix=prefix, wait_replicas=1, wait_ms=50, retry_s=60) as store:
        with stalled(replica), pytest.raises(hutch.NotReplicatedError):
            store.transact(add)
        assert (len(runs), store["a"]["n"], store["b"]["n"]) == (1, 1, 1)


def test_more_replicas_than_there_are_is_an_error_that_counts_them(
    primary: RedisServer, replica: RedisServer, prefix: str
) -> None:
    with (
        connect(primary.url, prefix=prefix, wait_replicas=2, wait_ms=2000) as store,
        pytest.raises(hutch.NotReplicatedError, match=r"2 replicas were to have it .* 1 of them have it"),
    ):
        store["core"]["a"] = 1


def test_a_user_who_may_not_wait_learns_that_the_write_was_made(primary: RedisServer, prefix: str) -> None:
    rights = [f"+{name}" for name in ALLOWED]
    ask(primary, "ACL", "SETUSER", prefix, "on", ">secret", f"~{prefix}:*", *rights)
    login: dict[str, Any] = {"username": prefix, "password": "secret", "prefix": prefix}
    try:
        with connect(primary.url, **login, wait_replicas=1) as store, store.open("core") as core:
            with pytest.raises(hutch.NotReplicatedError, match="refused to wait"):
                core["a"] = 1
            assert core["a"] == 1
    finally:
        ask(primary, "ACL", "DELUSER", prefix)


def test_on_a_cluster_each_shard_has_its_replicas(redis_cluster: RedisCluster, prefix: str) -> None:
    with connect(redis_cluster.url, prefix=prefix, wait_replicas=1, wait_ms=9_000) as store:
        for i in range(20):
            store[f"n{i}"].update(a=1, b=2)
            assert store[f"n{i}"].increment("a") == 2
        assert len(store.namespaces()) == 20
    with connect(redis_cluster.url, prefix=prefix, wait_replicas=2, wait_ms=500) as store:
        with pytest.raises(hutch.NotReplicatedError, match="1 of them have it"):
            store["n0"]["c"] = 3
        assert store["n0"]["c"] == 3
        assert "n0" in store.namespaces()
