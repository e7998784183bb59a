"""Test commits on a Redis server: one script for all namespaces, whole or not at all, and what it costs."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import pytest
import redis

import hutch
from hutch import Commit
from tests.servers import RedisServer

ROUNDS = int(os.environ.get("HUTCH_TRANSFERS", "100"))


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


def everything(store: hutch.Store) -> dict[str, dict[str, Any]]:
    return {name: dict(store[name]) for name in store.namespaces()}


def test_a_commit_is_one_command_whatever_it_changes(store: hutch.Store, server: redis.Redis) -> None:
    stats: Any = None
    for _ in range(2):  # the server knows the script at the second
        server.config_resetstat()
        with store.transaction() as tx:
            for name in ("a", "b", "c"):
                tx[name]["set"] = 1
                tx[name]["also set"] = 2
        stats = server.info("commandstats")
    ran = {name.removeprefix("cmdstat_"): stat["calls"] for name, stat in stats.items()}
    assert ran.pop("evalsha") == 1
    # A namespace without deadlines costs a count of them, and nothing per key.
    checks = {"hlen": 6, "zcard": 6, "scard": 3}
    assert {name: ran[name] for name in ran if name not in ("config|resetstat", "info")} == {
        **checks,
        "hset": 6,
        "sadd": 3,
    }


@pytest.mark.parametrize(
    "expected",
    [
        {"a": {"there": None}},
        {"a": {"missing": b"frame"}},
        {"b": {"there": b"other frame"}},
        {"a": {"missing": None}, "b": {"missing": None, "there": None}},
    ],
)
def test_one_wrong_expectation_changes_nothing(store: hutch.Store, expected: dict[str, dict[str, Any]]) -> None:
    store["a"]["there"] = 1
    store["b"]["there"] = 2
    before = everything(store)
    names = ("a", "b", "c")
    commits = {name: Commit({"there": None, "new": b"frame"}, expected.get(name, {})) for name in names}
    assert store.factory.apply(commits) is False
    assert everything(store) == before


def test_an_expired_frame_counts_as_a_missing_key(store: hutch.Store) -> None:
    store["a"].set("gone", 1, ttl_s=0.002)
    store["a"].set("long", 1, ttl_s=1000)
    time.sleep(0.02)
    assert store.factory.apply({"a": Commit({}, {"long": None})}) is False
    assert store.factory.apply({"a": Commit({}, {"gone": None})}) is True
    with store.transaction() as tx:
        assert "gone" not in tx["a"]
        tx["a"]["gone"] = tx["a"]["long"] + 1
        tx["b"].set("brief", 1, ttl_s=1000)
    assert everything(store) == {"a": {"gone": 2, "long": 1}, "b": {"brief": 1}}
    assert (store["a"].ttl_s("gone"), store["a"].expire(), len(store["a"])) == (None, 0, 2)
    assert 0 < (store["b"].ttl_s("brief") or 0) <= 1000


def test_a_commit_keeps_listing_and_deadlines_in_step(store: hutch.Store) -> None:
    with store.transaction() as tx:
        for n in range(10):
            tx["a"].set(f"expires {n}", n, ttl_s=1000)
            tx["a"][f"plain {n}"] = n
    with store.transaction() as tx:
        for n in range(0, 10, 2):
            del tx["a"][f"expires {n}"]
            del tx["a"][f"plain {n}"]
            tx["a"][f"expires {n + 1}"] = "plain"
            tx["a"].touch(f"plain {n + 1}", 1000)
    assert list(store.verify()) == []
    assert len(store["a"]) == len(list(store["a"])) == 10
    with store.transaction() as tx:
        for key in list(store["a"]):
            del tx["a"][key]
    assert (store.namespaces(), len(store["a"])) == ([], 0)


def test_what_cannot_be_one_step_is_refused_before_anything_is_written(store: hutch.Store) -> None:
    with pytest.raises(hutch.CapabilityError, match="snapshot"):
        store.factory.open("a").apply({"k": b"frame"}, {}, [hutch.KeyRange(None, None, ())])
    tx = store.transaction()
    tx._begin()
    with pytest.raises(hutch.CapabilityError, match="snapshot"):
        tx["a"].scan()
    tx._end()
    many = dict.fromkeys(map(str, range(300_001)), b"f")
    with pytest.raises(hutch.ValueLimitError, match="300,002 keys"):
        store.factory.apply({"a": Commit({"k": b"frame"}, {}), "b": Commit(many, {})})
    large = b"x" * (100 << 20)
    with pytest.raises(hutch.ValueLimitError, match="bytes"):
        store.factory.apply({"a": Commit(dict.fromkeys("12345678", large), {})})
    assert store.namespaces() == []


def test_batches_and_transactions_beyond_max_transaction_bytes_are_refused_unsent(
    own_server: RedisServer, server: redis.Redis, prefix: str
) -> None:
    url = f"{own_server.url}?prefix={prefix}"
    items = {f"k{n}": "x" * 1000 for n in range(100)}

    def received_bytes() -> int:
        stats: Any = server.info("stats")
        return int(stats["total_net_input_bytes"])

    def in_a_transaction(store: hutch.Store) -> None:
        with store.transaction() as tx:
            for key, value in items.items():
                tx["core"][key] = value

    writes: list[Callable[[hutch.Store], object]] = [
        lambda store: store["core"].update(items),
        lambda store: store["core"].set_many(items, ttl_s=1000),
        in_a_transaction,
    ]
    with hutch.connect(f"{url}&max_transaction_bytes=50000") as store:
        store["core"].clear()  # connects
        for write in writes:
            before = received_bytes()
            with pytest.raises(hutch.ValueLimitError, match="50,000 of option max_transaction_bytes"):
                write(store)
            assert received_bytes() - before < 1000
        store["core"].update(list(items.items())[:40])
        assert len(store["core"]) == 40
    with hutch.connect(f"{url}&max_transaction_bytes=200000") as store:
        for write in writes:
            store["core"].clear()
            write(store)
            assert dict(store["core"]) == items


def test_a_foreign_key_in_one_namespace_stops_a_commit_before_it_begins(
    store: hutch.Store, server: redis.Redis, prefix: str
) -> None:
    for part in ("values", "order", "deadlines"):
        key = f"{prefix}:{{z}}:{part}"
        server.set(key, "foreign")
        with pytest.raises(hutch.CorruptValueError, match=part):
            store.factory.apply({name: Commit({"k": b"frame"}, {}) for name in "ayz"})
        assert server.keys(f"{prefix}*") == [key.encode()]
        server.delete(key)


def test_no_transfer_is_lost_and_no_sum_is_torn(store: hutch.Store) -> None:
    """Transfers between accounts of three namespaces, by threads; readers check the total in one commit."""
    names, accounts, opening = ("a", "b", "c"), 4, 100
    for name in names:
        store[name].update({str(n): opening for n in range(accounts)})
    conflicts: list[int] = []

    def move(number: int) -> None:
        rng = random.Random(number)
        for _ in range(ROUNDS):
            places = [(rng.choice(names), str(rng.randrange(accounts))) for _ in range(2)]
            runs: list[int] = []

            def transfer(tx: hutch.Transaction, places: Any = places, runs: Any = runs) -> None:
                runs.append(1)
                (one, ours), (other, theirs) = places
                tx[one][ours] -= 1
                tx[other][theirs] += 1

            store.transact(transfer)
            conflicts.append(len(runs) - 1)

    def total(tx: hutch.Transaction) -> int:
        return sum(tx[name][str(n)] for name in names for n in range(accounts))

    with ThreadPoolExecutor(4) as pool:
        movers = [pool.submit(move, number) for number in range(4)]
        while not all(mover.done() for mover in movers):
            assert store.transact(total) == len(names) * accounts * opening
        for mover in movers:
            mover.result()
    print(f"{len(conflicts)} commits, {sum(conflicts)} conflicts")
    assert store.transact(total) == len(names) * accounts * opening
    assert list(store.verify()) == []


def test_a_commit_of_many_keys_is_one_step(store: hutch.Store) -> None:
    count = int(os.environ.get("HUTCH_TRANSACTION_KEYS", "5000"))
    started_s = time.monotonic()
    with store.transaction() as tx:
        for n in range(count):
            tx["a" if n % 2 else "b"][str(n)] = n
    print(f"{count:,} keys in {time.monotonic() - started_s:.2f} s")
    assert len(store["a"]) + len(store["b"]) == count
