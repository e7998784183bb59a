"""Test the redis engine on a real Redis Cluster: resharding, fail-over, the index of namespaces, wrong addresses.

The promises that all engines share are in the conformance kit, which runs on a cluster too.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import redis

import hutch
from hutch.testing.conformance.interrupt_jobs import open_files
from tests.cli_calls import hutch_
from tests.engines.test_redis import ALLOWED, use_everything
from tests.redis_cluster import SLOTS, RedisCluster, ask, executor
from tests.servers import RedisServer, wait_until


@pytest.fixture(scope="module")
def own_cluster() -> Iterator[RedisCluster]:
    """Yield a cluster whose slots the tests may move and whose nodes they may kill."""
    with RedisCluster(node_timeout_ms=2000) as cluster:
        yield cluster


def connect(storage: str, **options: Any) -> hutch.Store:
    return hutch.connect({"STORAGE": storage, "STORAGE_CONFIG": options})


def slot_of(server: RedisServer, prefix: str, namespace: str) -> int:
    return int(ask(server, "CLUSTER", "KEYSLOT", f"{prefix}:{{{namespace}}}:values"))


def url_of(*servers: RedisServer) -> str:
    return f"redis+cluster://{','.join(f'{server.host}:{server.port}' for server in servers)}"


# --- namespaces and their nodes ---


def test_namespaces_spread_over_the_nodes_and_each_lies_on_one(redis_cluster: RedisCluster, prefix: str) -> None:
    names = [f"n{i}" for i in range(30)] + ["%", "{a}", "\u00fc b:c"]
    with connect(redis_cluster.url, prefix=prefix) as store:
        for name in names:
            with store.open(name) as opened:
                opened.update(a=1, b=2)
                opened.set("c", 3, ttl_s=1000)
        assert sorted(store.namespaces()) == sorted(names)
        # Values, order, deadlines and the namespace's own index, on one node each.
        keys = [
            {key.decode().rpartition(":")[0] for key in ask(node, "KEYS", f"{prefix}:{{*")}
            for node in redis_cluster.servers[:3]
        ]
        assert all(keys)
        assert sum(map(len, keys)) == len(set.union(*keys)) == len(names)
        assert store.stats()["keys"] == 3 * len(names)


def test_a_transaction_changes_one_namespace_and_refuses_several(redis_cluster: RedisCluster, prefix: str) -> None:
    with connect(redis_cluster.url, prefix=prefix) as store, store.open("core") as core:
        assert "atomic-store" not in store.capabilities
        assert store.capabilities >= {"atomic-batch", "atomic-modify:cluster", "shared", "ordered", "ttl"}
        with core.transaction() as tx:
            tx["a"] = 1
            tx["b"] = 2
        assert dict(core) == {"a": 1, "b": 2}
        with pytest.raises(hutch.CapabilityError, match="atomic-store"):
            store.transaction()
        plugin: Any = store.factory
        commit = hutch.Commit({"a": None}, {})
        with pytest.raises(hutch.CapabilityError, match="several namespaces"):
            plugin.apply({"core": commit, "other": commit})
        assert dict(core) == {"a": 1, "b": 2}


def test_the_index_is_written_before_the_first_write_and_again_if_it_was_lost(
    redis_cluster: RedisCluster, prefix: str
) -> None:
    with connect(redis_cluster.url, prefix=prefix) as store, store.open("core") as core, store.open("other") as other:
        core["a"] = other["a"] = 1
        assert sorted(store.namespaces()) == ["core", "other"]
        other.clear()
        assert store.namespaces() == ["core"]
        other["a"] = 1
        assert sorted(store.namespaces()) == ["core", "other"]
        # Another application removes everything of this store: as FLUSHALL on all nodes does.
        for node in redis_cluster.servers[:3]:
            with executor(node) as execute:
                for key in execute("KEYS", f"{prefix}:*"):
                    execute("DEL", key)
        assert store.namespaces() == []
        core["b"] = 2
        assert store.namespaces() == ["core"]
        assert dict(core) == {"b": 2}
        assert list(store.verify()) == []


def test_an_index_that_was_lost_alone_is_found_and_repaired(redis_cluster: RedisCluster, prefix: str) -> None:
    index = f"{prefix}:namespaces"
    with connect(redis_cluster.url, prefix=prefix) as store, store.open("core") as core, store.open("gone") as gone:
        core["a"] = gone["a"] = 1
        gone.clear()
        slot = int(ask(redis_cluster.servers[0], "CLUSTER", "KEYSLOT", index))
        node = redis_cluster.servers[redis_cluster.owner(slot)]
        ask(node, "DEL", index)
        assert store.namespaces() == []
        assert [(found.kind, found.namespace) for found in store.verify()] == [("orphan", "core")]
        assert [found.repaired for found in store.verify(repair=True)] == [True]
        assert store.namespaces() == ["core"]
        assert list(store.verify()) == []


def test_drift_between_the_parts_of_a_namespace_is_found_on_its_node(redis_cluster: RedisCluster, prefix: str) -> None:
    with connect(redis_cluster.url, prefix=prefix) as store, store.open("core") as core:
        core.update(a=1, b=2)
        node = redis_cluster.servers[redis_cluster.owner(slot_of(redis_cluster.servers[0], prefix, "core"))]
        ask(node, "ZREM", f"{prefix}:{{core}}:order", "a")
        assert [(found.namespace, found.key) for found in store.verify(repair=True)] == [("core", "a")]
        assert list(core) == ["a", "b"]


def test_stats_name_each_primary(redis_cluster: RedisCluster, prefix: str) -> None:
    with connect(redis_cluster.url, prefix=prefix) as store:
        store["core"]["a"] = 1
        found = store.stats()
    sizes = {name: size for name, size in found.items() if name.startswith("server_bytes ")}
    primaries = redis_cluster.servers[:3]
    assert sizes.keys() == {f"server_bytes {server.host}:{server.port}" for server in primaries}
    assert (found["nodes"], found["server_bytes"]) == (3, sum(int(str(size)) for size in sizes.values()))
    assert int(str(found["bytes"])) > 0
    assert str(found["version"])[0].isdigit()


def test_the_commands_work_on_a_cluster(redis_cluster: RedisCluster, prefix: str, tmp_path: Path) -> None:
    source, target = f"lmdb://{tmp_path / 'store'}", f"{redis_cluster.url}?prefix={prefix}"
    with hutch.connect(source) as store:
        for i in range(5):
            store[f"n{i}"].update({f"{j}": j for j in range(100)})
    for _ in range(2):
        assert hutch_("copy", source, target, "--verify").code == 0
    found = json.loads(hutch_("-s", target, "stats", "--json").out)
    assert found["namespaces"] == {f"n{i}": 100 for i in range(5)}
    assert (found["items"], found["engine"]["nodes"]) == (500, 3)
    assert hutch_("-s", target, "check").code == 0
    node = redis_cluster.servers[redis_cluster.owner(slot_of(redis_cluster.servers[0], prefix, "n1"))]
    ask(node, "ZREM", f"{prefix}:{{n1}}:order", "7")
    checked = hutch_("-s", target, "check")
    assert (checked.code, "n1" in checked.out + checked.err) == (1, True)
    assert hutch_("-s", target, "check", "--repair").code == 0
    assert hutch_("-s", target, "check").code == 0


# --- addresses ---


def test_one_live_node_of_the_url_is_enough(redis_cluster: RedisCluster, prefix: str) -> None:
    dead = RedisServer()
    dead.close()
    for live in (redis_cluster.servers[2], redis_cluster.servers[-1]):  # a primary and a replica
        with connect(url_of(dead, live), prefix=prefix) as store, store.open("core") as core:
            core["a"] = 1
            assert dict(core) == {"a": 1}


def test_no_live_node_is_an_error_that_names_them_all() -> None:
    dead = RedisServer()
    dead.close()
    with pytest.raises(hutch.StorageUnavailableError, match=r"Redis Cluster at .*cannot be reached") as caught:
        connect(f"redis+cluster://127.0.0.1:{dead.port},localhost:{dead.port}", retry_s=0)
    assert f"127.0.0.1:{dead.port}, localhost:{dead.port}" in str(caught.value)


def test_a_url_of_the_other_kind_is_refused_at_connect(redis_cluster: RedisCluster, redis_server: RedisServer) -> None:
    with pytest.raises(hutch.ConfigError, match=re.escape("start the url with redis://")):
        connect(url_of(redis_server))
    node = redis_cluster.servers[0]
    for url in (node.url, node.unix_url):
        with pytest.raises(hutch.ConfigError, match=re.escape("start the url with redis+cluster://")):
            connect(url)


def test_a_user_who_may_not_ask_for_the_mode_is_told_by_the_first_call(
    redis_cluster: RedisCluster, redis_server: RedisServer, prefix: str
) -> None:
    for server in (redis_cluster.servers[0], redis_server):
        ask(server, "ACL", "SETUSER", prefix, "on", ">secret", "~*", "+@all", "-info")
    try:
        login: dict[str, Any] = {"username": prefix, "password": "secret", "prefix": prefix, "retry_s": 0}
        with pytest.raises(hutch.ConfigError, match=re.escape("start the url with redis://")):
            connect(url_of(redis_server), **login)
        with (
            connect(redis_cluster.servers[0].url, **login) as store,
            pytest.raises(hutch.StorageUnavailableError, match=re.escape("redis+cluster://")),
        ):
            store["n0"]["a"] = store["n1"]["a"] = store["n3"]["a"] = 1  # on three nodes
    finally:
        for server in (redis_cluster.servers[0], redis_server):
            ask(server, "ACL", "DELUSER", prefix)


def test_the_rights_on_the_page_are_enough_on_a_cluster(redis_cluster: RedisCluster, prefix: str) -> None:
    page = (Path(__file__).parents[2] / "docs" / "redis-cluster.md").read_text(encoding="utf-8")
    assert "`+cluster|slots +asking`" in page
    rights = [*(f"+{name}" for name in ALLOWED), "+cluster|slots", "+asking"]
    for server in redis_cluster.servers:
        ask(server, "ACL", "SETUSER", prefix, "on", ">secret", f"~{prefix}:*", *rights)
    try:
        with connect(redis_cluster.url, username=prefix, password="secret", prefix=prefix) as store:
            use_everything(store)
    finally:
        for server in redis_cluster.servers:
            ask(server, "ACL", "DELUSER", prefix)


def test_a_closed_store_leaves_no_connection(redis_cluster: RedisCluster, prefix: str) -> None:
    before = open_files()
    with connect(redis_cluster.url, prefix=prefix) as store:
        for i in range(20):
            store[f"n{i}"]["a"] = 1
        assert open_files() > before
    assert open_files() <= before


# --- slots that move, nodes that die ---


class Counters:
    """Threads that count up keys of several namespaces with `modify`, and what was acknowledged."""

    def __init__(self, store: hutch.Store, names: list[str], threads: int) -> None:
        self._store = store
        self._names = names
        self._stop = threading.Event()
        self.acknowledged = {(name, f"k{i}"): 0 for name in names for i in range(threads)}
        self.unsure = dict.fromkeys(self.acknowledged, 0)
        self._pool = ThreadPoolExecutor(threads)
        self._work = [self._pool.submit(self._count, f"k{i}") for i in range(threads)]

    def total(self) -> int:
        return sum(self.acknowledged.values())

    def go_on(self) -> None:
        """Wait until every thread has counted some more."""
        before = self.total()
        wait_until(lambda: self.total() > before + 50 or any(work.done() for work in self._work))

    def finish(self) -> int:
        """End the threads; return how many acknowledged numbers were lost, and fail if one was counted twice."""
        self._stop.set()
        self._pool.shutdown()
        for work in self._work:
            work.result()
        lost = 0
        for (name, key), count in self.acknowledged.items():
            stored = self._store[name].get(key, 0)
            assert stored <= count + self.unsure[name, key], (name, key)
            lost += max(0, count - stored)
        return lost

    def _count(self, key: str) -> None:
        while not self._stop.is_set():
            for name in self._names:
                try:
                    self._store[name].modify(key, lambda n: n + 1, default=0)
                    self.acknowledged[name, key] += 1
                except hutch.NotReplicatedError:
                    self.unsure[name, key] += 1
                except hutch.StorageUnavailableError as error:
                    # Only a lost answer leaves it open whether the number was counted.
                    if "may have been made or not" not in str(error):
                        raise
                    self.unsure[name, key] += 1


def test_nothing_is_lost_or_doubled_while_slots_move(
    own_cluster: RedisCluster, prefix: str, record_property: Any
) -> None:
    with connect(own_cluster.url, prefix=prefix, retry_s=60) as store:
        names = [f"n{i}" for i in range(4)]
        for name in names:
            store[name].update({f"{i:03}": i for i in range(300)})
        store[names[0]].set("deadline", 1, ttl_s=1000)
        counters = Counters(store, names, threads=3)
        for _ in range(3):
            for name in names:
                slot = slot_of(own_cluster.servers[0], prefix, name)
                own_cluster.move_slot(slot, (own_cluster.owner(slot) + 1) % 3)
                counters.go_on()
                found = store[name].get_many(f"{i:03}" for i in range(300))
                assert found == {f"{i:03}": i for i in range(300)}
        assert counters.finish() == 0
        assert not any(counters.unsure.values())
        assert sorted(store.namespaces()) == names
        for name in names:
            assert len(store[name]) == len(list(store[name])) == 303 + (name == names[0])
        record_property("counted", f"redis cluster: {counters.total()} modify while 12 slots moved, 0 lost, 0 doubled")


def test_a_node_that_is_moving_a_namespace_is_asked_where_it_is_by_now(own_cluster: RedisCluster, prefix: str) -> None:
    with connect(own_cluster.url, prefix=prefix, retry_s=0) as store, store.open("core") as core:
        core.update(a=1, b=2)
        core.set("c", 3, ttl_s=1000)  # now all keys that a script names exist
        slot = slot_of(own_cluster.servers[0], prefix, "core")
        source = own_cluster.owner(slot)
        target = (source + 1) % 3
        with executor(own_cluster.servers[source]) as at_source, executor(own_cluster.servers[target]) as at_target:
            at_target("CLUSTER", "SETSLOT", slot, "IMPORTING", at_source("CLUSTER", "MYID"))
            at_source("CLUSTER", "SETSLOT", slot, "MIGRATING", at_target("CLUSTER", "MYID"))
            core["a"] = 2
            keys = at_source("CLUSTER", "GETKEYSINSLOT", slot, 10)
            server = own_cluster.servers[target]
            at_source("MIGRATE", server.host, server.port, f"{prefix}:{{core}}:values", 0, 10_000)
            assert core["a"] == 2  # by ASK
            with pytest.raises(hutch.StorageUnavailableError, match="is moving this data"):
                core["a"] = 3
            at_source("MIGRATE", server.host, server.port, "", 0, 10_000, "KEYS", *keys)
            # All is there, but the slot still belongs to the source.
            core["a"] = 3
            core.update(b=3)
            assert core.pop("a") == 3
            with core.transaction() as tx:
                tx["a"] = tx["b"] + 1
            assert dict(core) == {"a": 4, "b": 3, "c": 3}
            for execute in (at_target, at_source):
                execute("CLUSTER", "SETSLOT", slot, "NODE", at_target("CLUSTER", "MYID"))
            assert dict(core) == {"a": 4, "b": 3, "c": 3}  # by MOVED
            core["a"] = 5


def replace_all(core: Any) -> None:
    with core.transaction() as tx:
        del tx["a"]
        tx["b"] = 2


@pytest.mark.parametrize(
    ("change", "after"),
    [
        (replace_all, {"b": 2}),
        (lambda core: core.remove_many(["a", "c"]), {}),
        (lambda core: core.pop("a"), {}),
    ],
)
def test_a_change_that_empties_a_namespace_whose_slot_is_moving_is_made_whole(
    own_cluster: RedisCluster, prefix: str, change: Callable[[Any], Any], after: dict[str, int]
) -> None:
    # A node whose slot is moving ends a script at the first key of the server that is not there, or not any more.
    name = "emptied"
    with connect(own_cluster.url, prefix=prefix, retry_s=0) as store, store.open(name) as core:
        core.set("a", 1, ttl_s=1000)  # now all keys that a script names exist
        slot = slot_of(own_cluster.servers[0], prefix, name)
        source = own_cluster.owner(slot)
        target = (source + 1) % 3
        with executor(own_cluster.servers[source]) as at_source, executor(own_cluster.servers[target]) as at_target:
            at_target("CLUSTER", "SETSLOT", slot, "IMPORTING", at_source("CLUSTER", "MYID"))
            at_source("CLUSTER", "SETSLOT", slot, "MIGRATING", at_target("CLUSTER", "MYID"))
            with pytest.raises(hutch.StorageUnavailableError, match="may have been made or not"):
                change(core)
            for key in at_source("CLUSTER", "GETKEYSINSLOT", slot, 10):
                server = own_cluster.servers[target]
                at_source("MIGRATE", server.host, server.port, key, 0, 10_000)
            for execute in (at_target, at_source):
                execute("CLUSTER", "SETSLOT", slot, "NODE", at_target("CLUSTER", "MYID"))
        assert dict(core) == after
        assert list(store.verify()) == []
        core["d"] = 4
        assert core["d"] == 4


def test_a_killed_primary_is_replaced_by_its_replica(
    own_cluster: RedisCluster, prefix: str, record_property: Any
) -> None:
    # What the replica has acknowledged cannot be lost: it takes over.
    with connect(own_cluster.url, prefix=prefix, retry_s=60, wait_replicas=1, wait_ms=100) as store:
        assert "replicated" in store.capabilities
        names = [f"n{i}" for i in range(6)]
        counters = Counters(store, names, threads=3)
        counters.go_on()
        slot = slot_of(own_cluster.servers[0], prefix, names[0])
        killed = own_cluster.owner(slot)
        own_cluster.servers[killed].kill()
        wait_until(lambda: own_cluster.owner(slot) != killed)
        counters.go_on()
        own_cluster.servers[killed].start()  # as a replica
        counters.go_on()
        lost, unsure = counters.finish(), sum(counters.unsure.values())
        counted = f"{counters.total()} modify, {lost} lost, {unsure} unsure, 0 doubled"
        record_property("counted", f"redis cluster, killed primary: {counted}")
        assert lost == 0
        assert sorted(store.namespaces()) == names


def test_a_cluster_that_lost_a_shard_is_an_error_and_works_again_when_it_is_back(prefix: str) -> None:
    with RedisServer(options=("cluster-enabled yes",)) as server:
        ask(server, "CLUSTER", "ADDSLOTSRANGE", 0, SLOTS - 1)
        wait_until(lambda: b"cluster_state:ok" in ask(server, "CLUSTER", "INFO"))
        with connect(url_of(server), prefix=prefix, retry_s=0) as store, store.open("core") as core:
            core["a"] = 1
            slot = slot_of(server, prefix, "core")
            ask(server, "CLUSTER", "DELSLOTS", slot)
            with pytest.raises(hutch.StorageUnavailableError, match="is down"):
                core["a"] = 2
            ask(server, "CLUSTER", "ADDSLOTS", slot)
            with suppress(redis.ResponseError):
                wait_until(lambda: b"cluster_state:ok" in ask(server, "CLUSTER", "INFO"))
            core["a"] = 3
            assert core["a"] == 3
