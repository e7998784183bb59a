"""Test values that expire on a Redis server: what they cost, what reclaims them, and how their index is repaired."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
import redis

import hutch
from tests.servers import RedisServer

SOON_S = 0.002
LONG_S = 1000.0


@pytest.fixture(scope="module")
def own_server() -> Iterator[RedisServer]:
    """Yield a server that no other test uses, so that its commands can be counted."""
    with RedisServer() as server:
        yield server


@pytest.fixture
def server(own_server: RedisServer) -> Iterator[redis.Redis]:
    with closing(redis.Redis(own_server.host, own_server.port)) as client:
        yield client


@pytest.fixture
def store(own_server: RedisServer, prefix: str) -> Iterator[hutch.Store]:
    with hutch.connect(f"{own_server.url}?prefix={prefix}") as opened:
        yield opened


@pytest.fixture
def core(store: hutch.Store) -> Iterator[hutch.Namespace]:
    with store.open("core") as opened:
        yield opened


def sizes(server: redis.Redis, prefix: str) -> tuple[int, int, int]:
    """Return how many values, listed keys and deadlines the server holds."""
    key = f"{prefix}:{{core}}:"
    client: Any = server
    return client.hlen(f"{key}values"), client.zcard(f"{key}order"), client.zcard(f"{key}deadlines")


def commands(server: redis.Redis, call: Callable[[], object]) -> dict[str, int]:
    """Return how often the server ran each command during `call`, inside scripts too."""
    call()  # the server knows the scripts from now on
    server.config_resetstat()
    call()
    stats: Any = server.info("commandstats")
    ran = {name.removeprefix("cmdstat_"): stat["calls"] for name, stat in stats.items()}
    return {name: count for name, count in ran.items() if name not in ("config|resetstat", "info")}


def round_trips(store: hutch.Store, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list to which each round trip of `store` adds its number of commands."""
    trips: list[int] = []
    pool = store.factory.server._pool
    ask = pool.ask

    def counted(request: list[bytes], count: int, careful: bool = False) -> list[Any]:
        trips.append(count)
        answers: list[Any] = ask(request, count, careful=careful)
        return answers

    monkeypatch.setattr(pool, "ask", counted)
    return trips


def test_a_namespace_without_deadlines_pays_nothing(core: hutch.Namespace, server: redis.Redis) -> None:
    core.update({"key": 1, "other": 1})
    # A write counts the deadlines, which a check of the values did before there were any.
    checks = {"evalsha": 1, "zcard": 2, "scard": 1}
    assert commands(server, lambda: core["key"]) == {"hget": 1}
    assert commands(server, lambda: core.get_many(["key", "other"])) == {"hmget": 1}
    assert commands(server, lambda: core.__setitem__("key", 2)) == {**checks, "hset": 1, "sadd": 1}
    swap = {**checks, "hget": 2, "hset": 1, "hlen": 1, "sadd": 1}
    assert commands(server, lambda: core.compare_and_set("key", 2, 2)) == swap
    assert commands(server, lambda: core.pop("missing", None)) == {"hget": 1}
    removal = {"eval": 1, "zcard": 2, "scard": 1, "hdel": 1, "hlen": 1, "sadd": 1}
    assert commands(server, lambda: core.remove_many(["missing"])) == removal
    assert commands(server, lambda: len(core)) == {"evalsha": 1, "hlen": 1, "zcard": 1}
    assert commands(server, lambda: "key" in core) == {"evalsha": 1, "hexists": 1, "zscore": 1}
    assert "time" not in commands(server, lambda: [*core, *core.items(), *core.scan()])


def test_a_value_and_the_time_are_read_in_one_round_trip(
    store: hutch.Store, core: hutch.Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    core.set("key", 1, ttl_s=LONG_S)
    core["plain"] = 2
    trips = round_trips(store, monkeypatch)
    assert (core["key"], core["plain"], core.get("missing"), core["key"]) == (1, 2, None, 1)
    assert trips == [2] * 4
    with pytest.raises(hutch.KeyTypeError):
        core[7]  # type: ignore[index]
    with pytest.raises(hutch.KeyLimitError):
        core[""]


def test_a_handle_that_meets_its_first_deadline_judges_it_by_the_server(
    store: hutch.Store, core: hutch.Namespace, own_server: RedisServer, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hutch.deadlines.now_ms", lambda: 0)
    with hutch.connect(f"{own_server.url}?prefix={prefix}") as other, other.open("core") as same:
        same.set("long", 1, ttl_s=LONG_S)
        same.set("key", 1, ttl_s=0.2)  # last and not sooner: any write reclaims what has expired
    time.sleep(0.25)
    trips = round_trips(store, monkeypatch)
    assert (core.get("key"), core.get("long")) == (None, 1)
    assert trips == [1, 1, 2]


@pytest.mark.parametrize(
    "write",
    [
        lambda core: core.__setitem__("k", 1),
        lambda core: core.set("k", 1, ttl_s=LONG_S),
        lambda core: core.update(k=1, l=1),
        lambda core: core.set_many({"k": 1}, ttl_s=LONG_S),
        lambda core: core.remove_many(["missing"]),
        lambda core: core.compare_and_set("k", hutch.MISSING, 1),
        lambda core: core.modify("plain", lambda n: n + 1),
    ],
)
def test_a_write_reclaims_two_expired_keys(
    core: hutch.Namespace, server: redis.Redis, prefix: str, write: Callable[[hutch.Namespace], object]
) -> None:
    core["plain"] = 1
    core.set_many({f"gone {n}": n for n in range(9)}, ttl_s=SOON_S)
    time.sleep(0.02)
    written = len(core)
    write(core)
    written = len(core) - written
    values, listed, deadlines = sizes(server, prefix)
    assert values == listed == 1 + 9 - 2 + written
    assert deadlines - sum(core.ttl_s(key) is not None for key in core) == 7


def test_expire_takes_small_steps(core: hutch.Namespace, server: redis.Redis, prefix: str) -> None:
    core.set_many({f"gone {n}": "x" * 100 for n in range(2500)}, ttl_s=SOON_S)
    time.sleep(0.02)
    core.set_many({"long": 1}, ttl_s=LONG_S)
    server.config_resetstat()
    reclaimed = core.expire()
    assert 2490 <= reclaimed <= 2500
    stats: Any = server.info("commandstats")
    steps = sum(stats[name]["calls"] for name in ("cmdstat_eval", "cmdstat_evalsha") if name in stats)
    print(f"{steps} steps of {stats['cmdstat_evalsha']['usec_per_call']:.0f} us")
    assert 25 <= steps <= 30
    assert sizes(server, prefix) == (1, 1, 1)


def test_clear_and_drop_remove_the_deadlines(store: hutch.Store, server: redis.Redis, prefix: str) -> None:
    for forget in (store.drop, lambda name: store[name].clear()):
        store["core"].set("key", 1, ttl_s=LONG_S)
        forget("core")
        assert server.keys(f"{prefix}*") == []


def test_a_score_that_an_older_version_left_removes_nothing(
    core: hutch.Namespace, server: redis.Redis, prefix: str
) -> None:
    """A version without time to live overwrites a value, and does not know of its deadline."""
    core["plain"] = 1
    core.set_many({"a": 1, "b": 2, "c": 3}, ttl_s=SOON_S)
    server.zadd(f"{prefix}:{{core}}:deadlines", {"plain": 1, "never there": 1})
    time.sleep(0.02)
    assert ("plain" in core, list(core)) == (True, ["plain"])
    assert core.expire() == 3
    assert (core["plain"], len(core), sizes(server, prefix)) == (1, 1, (1, 1, 0))
    server.zadd(f"{prefix}:{{core}}:deadlines", {"plain": 1})
    del core["plain"]
    assert sizes(server, prefix) == (0, 0, 0)


def test_check_finds_and_repairs_deadlines_that_drifted(
    store: hutch.Store, core: hutch.Namespace, server: redis.Redis, prefix: str
) -> None:
    deadlines = f"{prefix}:{{core}}:deadlines"
    core.update({"plain": 1, "other": 2})
    core.set_many({"long": 1, "wrong": 2, "right": 3}, ttl_s=LONG_S)
    core.set("gone", 4, ttl_s=SOON_S)
    assert list(store.verify()) == []
    server.zrem(deadlines, "long", "gone")
    server.zadd(deadlines, {"wrong": 5, "plain": 5, "never there": 5})
    time.sleep(0.02)
    for repair in (False, True):
        found = [(finding.kind, finding.key, finding.repaired) for finding in store.verify(repair=repair)]
        drifted = ("gone", "long", "never there", "plain", "wrong")
        assert sorted(found) == [("index", key, repair) for key in drifted]
    assert list(store.verify()) == []
    assert (len(core), "gone" in core, sorted(core)) == (5, False, ["long", "other", "plain", "right", "wrong"])
    assert core.expire() == 1


def test_evictions_with_deadlines(store: hutch.Store, core: hutch.Namespace, server: redis.Redis, prefix: str) -> None:
    """An evicted listing is rebuilt; evicted values stay an error; evicted deadlines leave every read right."""
    key = f"{prefix}:{{core}}:"
    core.update({f"plain {n}": n for n in range(40)})
    core.set_many({f"gone {n}": n for n in range(40)}, ttl_s=SOON_S)
    time.sleep(0.02)
    plain = sorted(f"plain {n}" for n in range(40))
    server.delete(f"{key}order")
    assert list(core) == [name for name, _ in core.items()] == plain
    server.delete(f"{key}deadlines")
    assert (core.get("gone 1"), [name for name, _ in core.items()]) == (None, plain)
    assert store.namespaces() == ["core"]
    assert list(store.verify(repair=True))
    assert (len(core), list(core)) == (40, plain)
    server.delete(f"{key}values")
    core["new"] = 1
    core.expire()
    with pytest.raises(hutch.CorruptValueError, match="maxmemory-policy"):
        list(core)


def test_a_foreign_key_in_place_of_the_deadlines_stops_writes_before_they_begin(
    store: hutch.Store, core: hutch.Namespace, server: redis.Redis, prefix: str
) -> None:
    server.set(f"{prefix}:{{core}}:deadlines", "foreign")
    changes: list[Callable[[], object]] = [
        lambda: core.__setitem__("a", 1),
        lambda: core.set("a", 1, ttl_s=LONG_S),
        lambda: core.remove_many(["a"]),
        lambda: core.compare_and_set("a", hutch.MISSING, 1),
        core.clear,
        core.expire,
        lambda: len(core),
    ]
    for change in changes:
        with pytest.raises(hutch.CorruptValueError, match="deadlines"):
            change()
    assert server.keys(f"{prefix}*") == [f"{prefix}:{{core}}:deadlines".encode()]


def test_a_cached_value_does_not_outlive_its_deadline(own_server: RedisServer, prefix: str) -> None:
    config = {
        "STORAGE": own_server.url,
        "STORAGE_CONFIG": {"prefix": prefix},
        "LAYERS": [{"name": "cache", "ttl_s": 1000}],
    }
    with hutch.connect(config) as cached, cached.open("core") as ns:
        ns.set("long", 2, ttl_s=LONG_S)
        ns.set("gone", 1, ttl_s=0.3)
        assert ns.get("gone", 1) == 1  # cached, unless the machine is slow
        time.sleep(0.35)
        assert (ns.get("gone"), "gone" in ns, ns["long"]) == (None, False, 2)
