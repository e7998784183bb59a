"""Test how long single commands keep a real server busy, which does nothing else meanwhile, with its own SLOWLOG.

100,000 keys; HUTCH_SLOWLOG_KEYS=1000000 gives the figures of docs/redis.md, see them with `pytest -s`.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
import redis

import hutch
from tests.servers import RedisServer

KEYS = int(os.environ.get("HUTCH_SLOWLOG_KEYS", "100000"))
# The median of each command on an idle machine, and on one that is ten times slower.
LIMIT_US = 1000
SLOW_MACHINE = 10
NAMESPACES = 500
COPIES = 3


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer(options=("slowlog-log-slower-than 0", "slowlog-max-len 100000", "save ''")) as started:
        yield started


@pytest.fixture(scope="module")
def store(server: RedisServer) -> Iterator[hutch.Store]:
    with hutch.connect(server.unix_url) as opened:
        core = opened["core"]
        for first in range(0, KEYS, 10_000):
            page = range(first, first + 10_000)
            core.update({f"user:{i:07}": value_of(i) for i in page if i % 4})
            core.set_many({f"user:{i:07}": value_of(i) for i in page if not i % 4}, ttl_s=3600)
        core.set_many({f"gone:{i}": i for i in range(2_000)}, ttl_s=0.001)
        for i in range(NAMESPACES):
            opened[f"n{i}"]["key"] = i
        with closing(redis.Redis(server.host, server.port)) as client:
            for i in range(2 * COPIES):
                for part in ("values", "order", "deadlines"):
                    assert client.copy(f"hutch:{{core}}:{part}", f"hutch:{{copy{i}}}:{part}")
                client.sadd("hutch:namespaces", f"copy{i}")
        yield opened


def value_of(number: int) -> dict[str, Any]:
    return {"id": number, "name": "Some user", "email": "someone@example.org", "tags": ["a", "bb"]}


def slowest_kind(server: RedisServer, work: Callable[[], object]) -> tuple[str, float, int]:
    """Return the command with the longest median time that `work` ran, that time in microseconds, and the maximum."""
    with closing(redis.Redis(server.host, server.port)) as client:
        client.set_response_callback("SLOWLOG GET", lambda answer, **_: answer)
        client.slowlog_reset()
        work()
        run: Any = client.execute_command
        entries = run("SLOWLOG GET", -1)
    taken: dict[str, list[int]] = {}
    for _, _, duration_us, command, *_ in entries:
        name = b" ".join(command[:2])[:18].decode(errors="replace")
        if not name.startswith("SLOWLOG"):
            taken.setdefault(name, []).append(duration_us)
    medians = {name: statistics.median(times_us) for name, times_us in taken.items()}
    slowest = max(medians, key=lambda name: medians[name])
    return slowest, medians[slowest], max(map(max, taken.values()))


def times(count: int, work: Callable[[int], object]) -> Callable[[], None]:
    def run() -> None:
        for number in range(count):
            work(number)

    return run


def works(store: hutch.Store) -> dict[str, Callable[[], object]]:
    """Return the work to measure by name; the last ones remove what the others need."""
    core = store["core"]
    keys = [f"user:{i:07}" for i in range(0, KEYS, max(1, KEYS // 1000))]
    return {
        "get": times(100, lambda i: core.get(keys[i])),
        "in": times(100, lambda i: keys[i] in core),
        "len": times(100, lambda i: len(core)),
        "get_many of 1,000": times(20, lambda i: core.get_many(keys)),
        "ttl_s": times(100, lambda i: core.ttl_s(keys[i])),
        "keys, some expired": lambda: sum(1 for _ in core.scan_keys()),
        "items, some expired": lambda: sum(1 for _ in core.items()),
        "scan backwards": lambda: sum(1 for _ in core.scan(reverse=True)),
        "namespaces": times(5, lambda i: store.namespaces()),
        "expire": core.expire,
        "keys": lambda: sum(1 for _ in core.scan_keys()),
        "items": lambda: sum(1 for _ in core.items()),
        "clear": times(COPIES, lambda i: store[f"copy{i}"].clear()),
        "drop": times(COPIES, lambda i: store.drop(f"copy{COPIES + i}")),
    }


def test_no_command_that_reads_expires_or_drops_keeps_the_server_busy(server: RedisServer, store: hutch.Store) -> None:
    assert len(store["core"]) == KEYS
    small = store["n0"]
    assert ("key" in small, len(small), list(small), small.expire()) == (True, 1, ["key"], 0)
    small.clear()  # the server compiles a script when it first runs
    for name, work in works(store).items():
        command, median_us, most_us = slowest_kind(server, work)
        print(f"| `{name}` | {command} | {median_us:,.0f} us | {most_us:,} us |")
        assert median_us < LIMIT_US * SLOW_MACHINE, (name, command)
    assert [name for name in store.namespaces() if name.startswith("copy")] == []
    assert len(store["core"]) == KEYS


@pytest.mark.skipif(KEYS < 1_000_000, reason="on demand: figures for the page")
def test_how_an_atomic_write_scales(server: RedisServer, store: hutch.Store) -> None:
    for size in (1, 10, 100, 1_000, 10_000, 100_000):
        cells = [f"{slowest_kind(server, work)[1] / 1000:,.2f} ms" for work in writes_of(size, store["core"])]
        print(f"| {size:,} | {' | '.join(cells)} |")


def writes_of(size: int, core: hutch.Namespace[Any]) -> list[Callable[[], object]]:
    """Return the work to measure: overwrite, add and remove `size` keys in one step."""
    keys, rounds = range(size), 20 if size < 10_000 else 5
    return [
        times(rounds, lambda i: core.update({f"user:{n:07}": value_of(n + i) for n in keys})),
        times(rounds, lambda i: core.update({f"new:{i}:{n:07}": value_of(n) for n in keys})),
        times(rounds, lambda i: core.remove_many([f"new:{i}:{n:07}" for n in keys])),
    ]


@pytest.mark.parametrize("ttl_s", [None, 1000], ids=["without deadline", "with deadline"])
def test_in_fetches_no_value(redis_server: RedisServer, prefix: str, ttl_s: float | None) -> None:
    with hutch.connect(f"{redis_server.url}?prefix={prefix}") as store, store.open("core") as core:
        core.set("key", "v" * 100_000, ttl_s=ttl_s)
        with closing(redis.Redis(redis_server.host, redis_server.port)) as client:
            client.config_resetstat()
            for _ in range(10):
                assert "key" in core
                assert "no such key" not in core
            stats: Any = client.info("commandstats")
            sent: Any = client.info("stats")
    assert not {"cmdstat_hget", "cmdstat_hmget", "cmdstat_hgetall", "cmdstat_hscan"} & set(stats)
    assert stats["cmdstat_hexists"]["calls"] == 20
    assert sent["total_net_output_bytes"] < 100_000
