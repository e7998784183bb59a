"""Test namespaces that the redis engine spreads over several hash slots: the option `shards`.

The promises that all engines share are in the conformance kit, which runs with shards too.
"""

from __future__ import annotations

import functools
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import Any
from zlib import crc32

import pytest
import redis

import hutch
from hutch.transfer import copy
from tests.engines.test_redis import ALLOWED
from tests.redis_cluster import RedisCluster, ask
from tests.servers import RedisServer, wait_until

SHARDS = 4


def connect(url: str, prefix: str, shards: object = SHARDS, **options: Any) -> hutch.Store:
    return hutch.connect({"STORAGE": url, "STORAGE_CONFIG": {"prefix": prefix, "shards": shards, **options}})


@pytest.fixture
def server(redis_server: RedisServer) -> Iterator[Any]:
    with closing(redis.Redis(redis_server.host, redis_server.port)) as client:
        yield client


@pytest.fixture
def store(redis_server: RedisServer, prefix: str) -> Iterator[hutch.Store]:
    with connect(redis_server.url, prefix) as opened:
        yield opened


def bucket(key: str, shards: int = SHARDS) -> int:
    return crc32(key.encode()) % shards


@contextmanager
def counted(server: Any) -> Iterator[Counter[str]]:
    """Yield how often the server runs each command during the block, inside scripts too; filled at its end."""
    before, count = server.info("commandstats"), Counter[str]()
    yield count
    for name, stat in server.info("commandstats").items():
        count[name.removeprefix("cmdstat_")] = stat["calls"] - before.get(name, {"calls": 0})["calls"]


def keys_of(server: Any, prefix: str) -> set[str]:
    return {key.decode().removeprefix(f"{prefix}:") for key in server.keys(f"{prefix}:*")}


# --- where the keys lie ---


def test_the_checksum_of_a_key_decides_on_its_shard(store: hutch.Store, server: Any, prefix: str) -> None:
    keys = [f"k{i}" for i in range(40)] + ["\u00fc", "}{:|"]
    with store.open("a b|1") as opened:
        opened.update(dict.fromkeys(keys, 1))
    for shard in range(SHARDS):
        mine = sorted(key.encode() for key in keys if bucket(key) == shard)
        assert mine
        assert sorted(server.hkeys(f"{prefix}:{{a%20b%7C1|{shard}/{SHARDS}}}:values")) == mine
        assert server.zrange(f"{prefix}:{{a%20b%7C1|{shard}/{SHARDS}}}:order", 0, -1) == mine
    assert server.hgetall(f"{prefix}:{{a%20b%7C1}}:shards") == {b"shards": b"4"}
    assert server.smembers(f"{prefix}:namespaces") == {b"a b|1"}
    assert store.namespaces() == ["a b|1"]


@pytest.mark.parametrize("shards", [None, 1, "1"])
def test_one_shard_is_stored_as_ever(redis_server: RedisServer, server: Any, prefix: str, shards: object) -> None:
    with connect(redis_server.url, prefix, shards) as store:
        store["core"].set("a", 1, ttl_s=1000)
        assert "atomic-batch" in store.capabilities
        parts = {"{core}:values", "{core}:order", "{core}:deadlines"}
        assert keys_of(server, prefix) == {*parts, "namespaces"}


# --- the number of shards is fixed ---


def test_a_namespace_without_shards_opens_without_the_server(prefix: str) -> None:
    with RedisServer() as own, connect(own.url, prefix, 1, retry_s=60) as store, connect(own.url, prefix) as other:
        own.kill()
        started_s = time.monotonic()
        store.open("core").close()
        assert time.monotonic() - started_s < 20
        own.start()
        assert dict(store["core"]) == dict(other["core"]) == {}


@pytest.mark.parametrize("in_url", [False, True])
@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, "from 1 to 16,384"),
        (-1, "from 1 to 16,384"),
        (16385, "from 1 to 16,384"),
        ("x", "a whole number, not 'x'"),
        (2.5, "a whole number"),
        ("", "a whole number"),
    ],
)
def test_a_number_out_of_range_is_refused(
    redis_server: RedisServer, value: object, expected: str, in_url: bool
) -> None:
    with pytest.raises(hutch.ConfigError, match=rf"option 'shards' of the redis engine must be {expected}"):
        hutch.connect(f"{redis_server.url}?shards={value}") if in_url else connect(redis_server.url, "p", value)


@pytest.mark.parametrize(("made", "opened"), [(4, 1), (4, 8), (4, 3), (1, 4)])
def test_another_number_is_refused_and_nothing_is_written(
    redis_server: RedisServer, server: Any, prefix: str, made: int, opened: int
) -> None:
    with connect(redis_server.url, prefix, made) as store:
        store["core"].update(a=1, b=2)
    before = {key: server.dump(f"{prefix}:{key}") for key in keys_of(server, prefix)}
    uses: list[Callable[[hutch.Store], object]] = [
        lambda store: store.open("core"),
        lambda store: store["core"],
        lambda store: store.drop("core"),
        lambda store: store.stats(),
        lambda store: list(store.verify(repair=True)),
    ]
    with connect(redis_server.url, prefix, opened) as store:
        assert store.namespaces() == ["core"]
        for use in uses:
            with pytest.raises(hutch.ConfigError) as caught:
                use(store)
            assert str(caught.value) == (
                f"namespace 'core' of the redis engine was made with shards={made}, and the config says "
                f"shards={opened}: the number stays as it was when the namespace was made. Set shards={made}. To "
                "change it, copy the namespace to a store with another prefix"
            )
    assert {key: server.dump(f"{prefix}:{key}") for key in keys_of(server, prefix)} == before
    with connect(redis_server.url, prefix, made) as store, connect(redis_server.url, f"{prefix}2", opened) as other:
        copy(store, other)
        assert dict(store["core"]) == {"a": 1, "b": 2}
        assert dict(other["core"]) == {"a": 1, "b": 2}


def test_the_first_write_decides_and_handles_with_another_number_are_refused(
    redis_server: RedisServer, server: Any, prefix: str
) -> None:
    url = redis_server.url
    with connect(url, prefix, 1) as one, connect(url, prefix, 4) as four, connect(url, prefix, 8) as eight:
        handles = [store.open("core") for store in (one, four, eight)]
        for handle in handles:
            assert dict(handle) == {}
        handles[1]["a"] = 1
        for use in (lambda: handles[0]["a"], lambda: handles[0].update(a=2), handles[0].clear):
            with pytest.raises(hutch.CorruptValueError, match="or a namespace with another option 'shards'"):
                use()
        with pytest.raises(hutch.ConfigError, match="made with shards=4, and the config says shards=8"):
            handles[2]["a"] = 2
        assert dict(handles[1]) == {"a": 1}
        plain = [store.open("plain") for store in (one, four)]
        plain[0]["a"] = 1
        with pytest.raises(hutch.ConfigError, match="made with shards=1, and the config says shards=4"):
            plain[1]["a"] = 2
        assert [key for key in keys_of(server, prefix) if "plain|" in key] == []
        for handle in [*handles, *plain]:
            handle.close()


def test_a_handle_of_before_a_drop_neither_reads_nor_writes_what_was_made_with_another_number(
    redis_server: RedisServer, prefix: str
) -> None:
    items = {f"k{i}": i for i in range(40)}
    url = redis_server.url
    with connect(url, prefix, 4) as old, connect(url, prefix, 7) as new, old.open("core") as stale:
        stale.update(dict.fromkeys(items, "old"))
        with connect(url, prefix, 4) as other:
            other.drop("core")
        with new.open("core") as core:
            core.update(items)
            assert dict(stale) == {}
            for key in items:
                with pytest.raises(hutch.ConfigError, match="made with shards=7, and the config says shards=4"):
                    stale[key] = "stale"
            with pytest.raises(hutch.ConfigError, match="shards=7"):
                stale.update(dict.fromkeys(items, "stale"))
            assert dict(core) == items
            # Of the first write to each shard, which finds the shard empty, and then that it is not the namespace's.
            assert len(stale) == 4
        assert [finding.kind for finding in new.verify()] == ["orphan"] * 4


def test_a_lazy_store_validates_the_number_when_it_is_used(redis_server: RedisServer, prefix: str) -> None:
    with connect(redis_server.url, prefix, 4) as store:
        store["core"]["a"] = 1
    with connect(redis_server.url, prefix, 8, lazy_connect=True) as store, store.open("core") as core:
        for _ in range(2):
            with pytest.raises(hutch.ConfigError, match="made with shards=4"):
                core.get("a")
            with pytest.raises(hutch.ConfigError, match="made with shards=4"):
                core["b"] = 2
    with (
        connect(redis_server.url, prefix, 8, lazy_connect=True) as store,
        pytest.raises(hutch.ConfigError, match="made with shards=4"),
    ):
        store.drop("core")


def test_a_cleared_namespace_keeps_its_number_and_a_dropped_one_does_not(
    redis_server: RedisServer, server: Any, prefix: str
) -> None:
    with connect(redis_server.url, prefix, 4) as store:
        store["core"].update(a=1, b=2)
        store["core"].clear()
        assert store.namespaces() == []
        with connect(redis_server.url, prefix, 1) as other, pytest.raises(hutch.ConfigError):
            other.open("core")
        store.drop("core")
        assert keys_of(server, prefix) == set()
    with connect(redis_server.url, prefix, 1) as store:
        store["core"]["a"] = 3
        assert dict(store["core"]) == {"a": 3}


def test_a_foreign_number_is_an_error(redis_server: RedisServer, server: Any, prefix: str) -> None:
    server.hset(f"{prefix}:{{core}}:shards", "shards", "many")
    for shards in (1, 4):
        with (
            connect(redis_server.url, prefix, shards) as store,
            pytest.raises(hutch.CorruptValueError, match="is not a number; something other than hutch wrote it"),
        ):
            store.open("core")


def test_writes_during_a_drop_are_lost_as_a_whole_or_stay_in_a_valid_namespace(
    store: hutch.Store, redis_server: RedisServer, prefix: str
) -> None:
    acknowledged = 0
    dropped = threading.Event()

    def write() -> None:
        nonlocal acknowledged
        with connect(redis_server.url, prefix) as other, other.open("core") as core:
            while not dropped.is_set():
                core[f"k{acknowledged % 40}"] = acknowledged
                acknowledged += 1

    with ThreadPoolExecutor(1) as pool:
        writer = pool.submit(write)
        try:
            for _ in range(40):
                store.drop("core")
                seen = acknowledged
                wait_until(functools.partial(lambda seen: acknowledged > seen + 1 or writer.done(), seen))
        finally:
            dropped.set()
        writer.result()
    assert store.namespaces() == ["core"]
    assert list(store.verify()) == []
    assert store["core"][f"k{(acknowledged - 1) % 40}"] == acknowledged - 1


# --- rights ---


def test_a_user_with_the_least_rights_can_use_shards(redis_server: RedisServer, server: Any, prefix: str) -> None:
    rights = [f"+{name}" for name in ALLOWED]
    server.execute_command("ACL", "SETUSER", prefix, "on", ">secret", f"~{prefix}:*", *rights)
    try:
        with connect(redis_server.url, prefix, username=prefix, password="secret") as store:
            with store.open("core") as core:
                core.update({f"k{i}": i for i in range(40)})
                core.set("later", 1, ttl_s=1000)
                assert core.get_many(["k1", "later"]) == {"k1": 1, "later": 1}
                assert len(core) == len(list(core.items())) == len(list(core)) == 41
                assert core.increment("k1") == 2
                assert core.remove_many(["k1", "k2"]) == 2
                core.expire()
            assert store.stats()["keys"] == 39
            store.drop("core")
            assert store.namespaces() == []
    finally:
        server.execute_command("ACL", "DELUSER", prefix)


# --- what is atomic ---


def test_what_needs_one_step_is_refused_before_anything_is_written(
    store: hutch.Store, server: Any, prefix: str
) -> None:
    assert store.capabilities == {"ordered", "atomic-modify", "atomic-modify:cluster", "shared", "ttl"}
    with store.open("core") as core:
        assert core.capabilities == store.capabilities
        plugin: Any = store.factory
        uses: list[Callable[[], object]] = [
            core.transaction,
            store.transaction,
            lambda: store.transact(lambda tx: None),
            lambda: plugin.apply({"core": hutch.Commit({"a": None}, {})}),
            lambda: plugin.open("core").apply({"a": b""}, {}),
        ]
        for use in uses:
            with pytest.raises(hutch.CapabilityError):
                use()
    assert keys_of(server, prefix) == set()


def test_a_batch_that_is_too_large_is_refused_before_any_shard_is_written(
    redis_server: RedisServer, server: Any, prefix: str
) -> None:
    with connect(redis_server.url, prefix, max_transaction_bytes=1000) as store, store.open("core") as core:
        with pytest.raises(hutch.ValueLimitError, match=r"1,000 of option max_transaction_bytes"):
            core.update({f"k{i}": "x" * 10 for i in range(100)})
        assert keys_of(server, prefix) == set()
        core.update(a="x" * 900)


def test_the_shards_before_a_failure_have_their_part_of_a_batch(store: hutch.Store, server: Any, prefix: str) -> None:
    items = {f"k{i}": i for i in range(40)}
    with store.open("core") as core:
        server.set(f"{prefix}:{{core|2/{SHARDS}}}:order", "foreign")
        with pytest.raises(hutch.CorruptValueError, match=r"core\|2"):
            core.update(items)
        server.delete(f"{prefix}:{{core|2/{SHARDS}}}:order")
        written = dict(core)
        # Each shard has all of its part or nothing.
        shards = {bucket(key) for key in written}
        assert 0 < len(shards) < SHARDS
        for shard in shards:
            assert {key for key in written if bucket(key) == shard} == {key for key in items if bucket(key) == shard}
        core.update(items)
        assert dict(core) == dict(sorted(items.items()))


@pytest.mark.parametrize("verb", ["clear", "drop"])
def test_a_clear_that_fails_half_way_leaves_a_valid_namespace(
    store: hutch.Store, server: Any, prefix: str, verb: str
) -> None:
    items = {f"k{i}": i for i in range(40)}
    core = store.open("core")
    core.update(items)
    values = server.dump(f"{prefix}:{{core|2/{SHARDS}}}:order")
    server.set(f"{prefix}:{{core|2/{SHARDS}}}:order", "foreign")
    if verb == "drop":
        core.close()
    with pytest.raises(hutch.CorruptValueError, match=r"core\|2"):
        core.clear() if verb == "clear" else store.drop("core")
    server.restore(f"{prefix}:{{core|2/{SHARDS}}}:order", 0, values, replace=True)
    core.close()
    assert list(store.verify()) == []
    with store.open("core") as core:
        left = dict(core)
        assert 0 < len(left) == len(core) < len(items)
        assert left == {key: items[key] for key in left}
        core.clear()
        assert dict(core) == {}
        assert store.namespaces() == []


# --- every verb ---


def test_listings_merge_the_shards_in_key_order(store: hutch.Store) -> None:
    rng = random.Random(14)
    items = {f"{rng.choice('abc')}{rng.randrange(10**6)}\u00fc\U0001f600"[: rng.randint(1, 9)]: i for i in range(3000)}
    items["big"] = -1
    ordered = dict(sorted(items.items()))
    with store.open("core") as core:
        assert list(core.scan()) == list(core.items()) == []
        assert list(core.scan_keys()) == []
        core.update(items)
        assert len(core) == len(items)
        assert list(core) == list(core.scan_keys()) == list(ordered)
        assert list(core.items()) == list(core.scan()) == list(ordered.items())
        assert list(core.scan(reverse=True)) == list(ordered.items())[::-1]
        assert list(core.scan_keys(reverse=True)) == list(ordered)[::-1]
        for bounds in ({"prefix": "b"}, {"start": "a5", "stop": "b7"}, {"prefix": "c9", "reverse": True}):
            expected = [
                (key, value)
                for key, value in ordered.items()
                if key.startswith(str(bounds.get("prefix", "")))
                and key >= str(bounds.get("start", ""))
                and key < str(bounds.get("stop", "\U0010ffff"))
            ]
            assert sorted(core.scan(**bounds)) == expected
        scan = core.scan()
        assert next(scan) == next(iter(ordered.items()))


def test_a_listing_reads_pages_and_no_more_than_is_asked_for(store: hutch.Store, server: Any) -> None:
    with store.open("core") as core:
        core.update({f"k{i:05}": "x" * 50 for i in range(4000)})
        with counted(server) as count:
            scan = core.scan()
            for i in range(40):
                assert next(scan)[0] == f"k{i:05}"
        assert count["zrangebylex"] <= 2 * SHARDS
        with counted(server) as count:
            assert sum(1 for _ in core.scan()) == 4000
        assert count["hmget"] <= 5 * SHARDS


def test_batches_reach_the_keys_of_all_shards(store: hutch.Store) -> None:
    items = {f"k{i}": i for i in range(40)}
    with store.open("core") as core:
        core.update(items)
        wanted = ["k7", "missing", *reversed(items), "k7"]
        found = core.get_many(wanted)
        assert found == items
        assert list(found) == ["k7", *(key for key in reversed(items) if key != "k7")]
        assert core.remove_many(["k1", "missing", "k2", "k1"]) == 2
        assert len(core) == 38
        assert core.get_many([]) == {}
        core.update({})
        assert core.increment("k3", 5) == core["k3"] == 8
        assert core.modify("new", lambda n: n + 1, default=0) == 1
        assert core.compare_and_set("new", 1, hutch.MISSING)
        assert not core.compare_and_set("new", 1, 2)
        with pytest.raises(hutch.KeyTypeError):
            core[1]  # type: ignore[index]
        with pytest.raises(hutch.KeyLimitError):
            core["\ud800"]


def test_a_batch_is_one_request_per_server(redis_server: RedisServer, server: Any, prefix: str) -> None:
    def requests(use: Callable[[], object]) -> int:
        before = int(server.info("stats")["total_reads_processed"])
        use()
        return int(server.info("stats")["total_reads_processed"]) - before - 1

    items = {f"k{i}": i for i in range(64)}
    with connect(redis_server.url, prefix, 16) as store, store.open("core") as core:
        core.update(items)
        assert len(core) == 64
        # The server reads a request in parts of 16 KiB.
        assert requests(lambda: core.get_many(items)) == 1
        assert requests(lambda: len(core)) == 1
        assert requests(lambda: core.update(items)) < 8
        assert requests(lambda: core.remove_many(items)) < 8
        assert len(core) == 0


def test_a_batch_survives_a_lost_connection(redis_server: RedisServer, server: Any, prefix: str) -> None:
    items = {f"k{i}": i for i in range(40)}
    with connect(redis_server.url, prefix) as store, store.open("core") as core:
        uses: list[Callable[[], object]] = [
            lambda: core.update(items),
            lambda: core.get_many(items),
            lambda: len(core),
            lambda: core.remove_many([*items][:20]),
        ]
        for use, expected in zip(uses, (None, items, 40, 20), strict=True):
            server.client_kill_filter(_type="normal", skipme=True)
            assert use() == expected
    with RedisServer() as own, connect(own.url, prefix, retry_s=0) as store, store.open("core") as core:
        core.update(items)
        own.kill()
        for use in (lambda: core.update(items), lambda: core.get_many(items), lambda: core.remove_many(items)):
            with pytest.raises(hutch.StorageUnavailableError):
                use()
        own.start()
        core.update(items)
        assert core.remove_many(items) == 40


def test_a_part_of_many_keys_is_sent_in_several_commands(store: hutch.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[type(store.factory).__module__.rpartition(".")[0] + ".shards"], "_BATCH", 3)
    items = {f"k{i}": i for i in range(40)}
    with store.open("core") as core:
        core.update(items)
        assert core.get_many(items) == items
        core.set_many(items, ttl_s=1000)
        assert core.remove_many(items) == 40


def test_values_expire_in_every_shard(store: hutch.Store, server: Any, prefix: str) -> None:
    with store.open("core") as core:
        core.set("stays", 1, ttl_s=1000)
        core.set_many({f"k{i}": i for i in range(40)}, ttl_s=0.002)
        time.sleep(0.02)
        assert (len(core), list(core), dict(core.items())) == (1, ["stays"], {"stays": 1})
        assert "k1" not in core
        assert core.get_many(["k1", "stays"]) == {"stays": 1}
        assert core.expire(5) == 5
        assert 20 < core.expire() <= 35  # a write may have taken some along
        assert core.expire() == 0
        assert sum(server.hlen(f"{prefix}:{{core|{shard}/{SHARDS}}}:values") for shard in range(SHARDS)) == 1
        assert core.touch("stays", 2000)
        assert 1000 < (core.ttl_s("stays") or 0) <= 2000
        core.set("brief", 1, ttl_s=0.001)
        del core["stays"]
    time.sleep(0.02)
    assert store.namespaces() == []
    assert list(store.verify()) == []


def test_a_namespace_is_listed_again_after_the_server_was_emptied(store: hutch.Store, server: Any, prefix: str) -> None:
    with store.open("core") as core:
        core.update({f"k{i}": i for i in range(40)})
        server.delete(*server.keys(f"{prefix}:*"))
        assert store.namespaces() == []
        core["a"] = 1
        assert store.namespaces() == ["core"]
        assert server.hget(f"{prefix}:{{core}}:shards", "shards") == b"4"
        assert list(store.verify()) == []


def test_a_write_after_another_process_dropped_the_namespace_makes_it_again(
    store: hutch.Store, redis_server: RedisServer, prefix: str
) -> None:
    with store.open("core") as core, connect(redis_server.url, prefix) as other:
        core.update({f"k{i}": i for i in range(40)})
        other.drop("core")
        assert dict(core) == {}
        core["a"] = 1
        assert dict(other["core"]) == {"a": 1}
        assert other.namespaces() == ["core"]


def test_stats_count_the_keys_and_bytes_of_all_shards(store: hutch.Store) -> None:
    with store.open("core") as core:
        core.update({f"k{i}": "x" * 10_000 for i in range(40)})
        figures = store.stats()
    assert (figures["namespaces"], figures["keys"]) == (1, 40)
    assert 400_000 < int(str(figures["bytes"])) < 4_000_000


# --- integrity ---


def test_a_lost_index_or_number_is_found_and_repaired(store: hutch.Store, server: Any, prefix: str) -> None:
    items = {f"k{i}": i for i in range(40)}
    with store.open("core") as core:
        core.update(items)
    for lost in (["namespaces"], ["{core}:values"], ["{core}:shards"], ["{core}:values", "{core}:shards"]):
        server.delete(*(f"{prefix}:{one}" for one in lost))
        (found,) = store.verify()
        assert (found.kind, found.namespace, found.repaired) == ("orphan", "core", False)
        assert [found.repaired for found in store.verify(repair=True)] == [True]
        assert list(store.verify()) == []
        with store.open("core") as core:
            assert dict(core) == dict(sorted(items.items()))


@pytest.mark.parametrize("lost", ["values", "shards"])
def test_the_number_is_stored_twice(
    redis_server: RedisServer, server: Any, prefix: str, store: hutch.Store, lost: str
) -> None:
    store["core"]["a"] = 1
    server.delete(f"{prefix}:{{core}}:{lost}")
    with connect(redis_server.url, prefix, 8) as other, pytest.raises(hutch.ConfigError, match="made with shards=4"):
        other.open("core")
    with connect(redis_server.url, prefix) as other:
        assert other.namespaces() == (["core"] if lost == "shards" else [])
        other["core"]["b"] = 2
        assert other.namespaces() == ["core"]
        assert list(other.verify()) == []


def test_a_lost_number_is_not_guessed(redis_server: RedisServer, server: Any, prefix: str) -> None:
    with connect(redis_server.url, prefix, 4) as store:
        store["core"].update({f"k{i}": i for i in range(40)})
    server.delete(f"{prefix}:{{core}}:values", f"{prefix}:{{core}}:shards")
    for shards in (1, 3):
        with connect(redis_server.url, prefix, shards) as store:
            orphans = [one for one in store.verify(repair=True) if one.kind == "orphan"]
            assert orphans
            assert not any(one.repaired for one in orphans)
    with connect(redis_server.url, prefix, 4) as store:
        assert [one.repaired for one in store.verify(repair=True)] == [True]
        assert len(store["core"]) == 40


def test_drift_and_a_key_in_the_wrong_shard_are_found(store: hutch.Store, server: Any, prefix: str) -> None:
    with store.open("core") as core:
        core.update({f"k{i}": i for i in range(40)})
        shard = bucket("k1")
        server.zrem(f"{prefix}:{{core|{shard}/{SHARDS}}}:order", "k1")
        assert [(one.kind, one.key) for one in store.verify(repair=True) if one.kind == "index"] == [("index", "k1")]
        assert list(store.verify()) == []
        wrong = (shard + 1) % SHARDS
        frame = server.hget(f"{prefix}:{{core|{shard}/{SHARDS}}}:values", "k1")
        server.hset(f"{prefix}:{{core|{wrong}/{SHARDS}}}:values", "k1", frame)
        server.zadd(f"{prefix}:{{core|{wrong}/{SHARDS}}}:order", {"k1": 0})
        found = next(iter(store.verify()))
        assert (found.kind, found.key) == ("index", "k1")
        assert found.message == f"it is in shard {wrong}, but shard {shard} is where 4 shards have it"


# --- a cluster ---


def test_one_namespace_spreads_over_the_nodes_of_a_cluster(redis_cluster: RedisCluster, prefix: str) -> None:
    items = {f"k{i}": i for i in range(300)}
    with connect(redis_cluster.url, prefix, 16) as store:
        assert not {"atomic-batch", "atomic-store", "durable"} & store.capabilities
        with store.open("core") as core:
            core.update(items)
            core.set("brief", 1, ttl_s=0.001)
            per_node = [
                [key for key in ask(node, "KEYS", f"{prefix}:{{core|*") if key.endswith(b":values")]
                for node in redis_cluster.servers[:3]
            ]
            assert all(per_node)
            assert sum(map(len, per_node)) == 16
            time.sleep(0.02)
            assert len(core) == 300
            assert list(core.items()) == sorted(items.items())
            assert list(core.scan_keys("k1", reverse=True)) == sorted((k for k in items if k[:2] == "k1"), reverse=True)
            assert core.get_many(items) == items
            assert core.remove_many([*items][:100]) == 100
            assert core.increment("k200", 1) == 201
            assert store.namespaces() == ["core"]
            assert store.stats()["keys"] == 200
            assert list(store.verify()) == []
        with connect(redis_cluster.url, prefix, 8) as other, pytest.raises(hutch.ConfigError, match="shards=16"):
            other.open("core")
        store.drop("core")
        assert store.namespaces() == []
    with connect(redis_cluster.url, prefix, 1) as store:
        store["core"]["a"] = 1
        assert dict(store["core"]) == {"a": 1}


def test_shards_follow_their_slots_while_these_move(redis_cluster: RedisCluster, prefix: str) -> None:
    items = {f"k{i}": i for i in range(100)}
    with connect(redis_cluster.url, prefix) as store, store.open("core") as core:
        core.update(items)
        slot = int(ask(redis_cluster.servers[0], "CLUSTER", "KEYSLOT", f"{prefix}:{{core|1/{SHARDS}}}:values"))
        source = redis_cluster.owner(slot)
        redis_cluster.move_slot(slot, (source + 1) % 3)
        try:
            assert core.get_many(items) == items
            core.update({key: value + 1 for key, value in items.items()})
            assert dict(core) == {key: value + 1 for key, value in sorted(items.items())}
            redis_cluster.move_slot(slot, (source + 2) % 3)
            assert core.remove_many(items) == 100
            assert len(core) == 0
        finally:
            redis_cluster.move_slot(slot, source)


def test_a_batch_waits_for_the_replicas_of_each_node(redis_cluster: RedisCluster, prefix: str) -> None:
    items = {f"k{i}": i for i in range(64)}
    with connect(redis_cluster.url, prefix, 16, wait_replicas=1, wait_ms=9000) as store, store.open("core") as core:
        assert "replicated" in store.capabilities
        core.update(items)
        assert core.remove_many(["k1", "k2", "missing"]) == 2
    with connect(redis_cluster.url, prefix, 16, wait_replicas=2, wait_ms=50) as store, store.open("core") as core:
        with pytest.raises(hutch.NotReplicatedError, match="written, not replicated"):
            core.update(items)
        assert dict(core) == dict(sorted(items.items()))
        with pytest.raises(hutch.NotReplicatedError):
            core.remove_many(items)
        assert dict(core) == {}


def test_reads_from_replicas_reach_every_shard(redis_cluster: RedisCluster, prefix: str) -> None:
    items = {f"k{i}": i for i in range(64)}
    with connect(redis_cluster.url, prefix, 16, wait_replicas=1, wait_ms=9000) as store, store.open("core") as core:
        core.update(items)
    with connect(redis_cluster.url, prefix, 16, read_from="replicas") as store, store.open("core") as core:
        assert core.get_many(items) == items
        assert core["k1"] == 1
        assert len(core) == 64
        assert dict(core) == dict(sorted(items.items()))
        assert core.modify("k1", lambda n: n + 1) == 2
        assert core.remove_many(items) == 64
