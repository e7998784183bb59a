"""Record transactions and calls of many processes and check that each history is serializable.

``HUTCH_TRANSACTIONS=100000`` sets the number of transactions, and of calls, ``HUTCH_SEED=7`` repeats the work.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import random
import time
import uuid
from collections.abc import Iterator
from multiprocessing.pool import Pool
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest

import hutch
from hutch.testing.conformance.kit import together
from hutch.testing.histories import NAMESPACES, Entry, final_state, find_anomalies, record, record_calls, summary
from tests.servers import RedisServer

TRANSACTIONS = int(os.environ.get("HUTCH_TRANSACTIONS", "400"))
INCREMENTS = 1000 if "HUTCH_TRANSACTIONS" in os.environ else 5
SEED = int(os.environ.get("HUTCH_SEED", random.randrange(2**32)))
PROCESSES = 8
CONTEXT = multiprocessing.get_context("spawn")


def work(config: str, worker: int, count: int) -> list[Entry]:
    with hutch.connect(config) as store:
        return record(store, worker, count, SEED)


def work_on_single_keys(config: str, worker: int, count: int) -> list[Entry]:
    with hutch.connect(config) as store:
        return record_calls(store, worker, count, SEED)


def increment(config: str, count: int) -> float:
    """Increment one key `count` times; return the longest call in seconds."""
    longest_s = 0.0
    with hutch.connect(config) as store:
        for _ in range(count):
            began_s = time.monotonic()
            if "atomic-store" in store.capabilities:
                store.transact(lambda tx: tx["counts"].set("n", tx["counts"].get("n", 0) + 1))
            else:
                store["counts"].modify("n", lambda n: n + 1, default=0)
            longest_s = max(longest_s, time.monotonic() - began_s)
    return longest_s


def meet(barrier: Barrier) -> None:
    """Wait until all processes have started: the first ones would do their work before the others."""
    barrier.wait(200)


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    """Processes for all tests of this module: starting them takes longer than the tests."""
    with CONTEXT.Pool(PROCESSES, meet, (CONTEXT.Barrier(PROCESSES),)) as pool:
        yield pool


@pytest.fixture
def config(engine: str, tmp_path: Path, request: pytest.FixtureRequest, prefix: str) -> Iterator[str]:
    """Return the URL of an empty store of `engine`."""
    if engine == "redis, appendfsync always":
        with RedisServer(appendonly=True) as server, hutch.connect(url := f"{server.url}?prefix={prefix}") as store:
            assert "durable" in store.capabilities
            yield url
    elif engine in ("redis", "redis cluster"):
        servers: Any = request.getfixturevalue("redis_server" if engine == "redis" else "redis_cluster")
        yield f"{servers.url}?prefix={prefix}"
    else:
        yield {"lmdb": f"lmdb://{tmp_path}/data", "sqlite": f"sqlite://{tmp_path}/kv.db"}[engine]


@pytest.mark.timeout(300 + TRANSACTIONS // 20)
@pytest.mark.parametrize("engine", ["lmdb", "sqlite", "redis", "redis, appendfsync always", "redis cluster"])
def test_transactions_of_many_processes_are_serializable(engine: str, config: str, pool: Pool) -> None:
    jobs = [(config, worker, TRANSACTIONS // PROCESSES) for worker in range(PROCESSES)]
    entries = [entry for some in pool.starmap(work, jobs, 1) for entry in some]
    longest_s = max(pool.starmap(increment, [(config, INCREMENTS)] * PROCESSES, 1))
    print(f"HUTCH_SEED={SEED} {engine}: {summary(entries, PROCESSES)}, longest increment {longest_s:.2f} s")
    with hutch.connect(config) as store:
        assert find_anomalies(entries, final_state(store)) == []
        assert store["counts"]["n"] == PROCESSES * INCREMENTS


@pytest.mark.timeout(300 + TRANSACTIONS // 20)
@pytest.mark.parametrize("engine", ["redis, appendfsync always", "redis cluster"])
def test_calls_on_single_keys_of_many_processes_are_serializable(engine: str, config: str, pool: Pool) -> None:
    jobs = [(config, worker, TRANSACTIONS // PROCESSES) for worker in range(PROCESSES)]
    entries = [entry for some in pool.starmap(work_on_single_keys, jobs, 1) for entry in some]
    with hutch.connect(config) as store:
        assert find_anomalies(entries, final_state(store)) == []
    lasts = [(entry.number, read[-1]) for entry in entries for read in entry.reads.values() if read]
    of_others = sum(number.partition(".")[0] != last.partition(".")[0] for number, last in lasts)
    print(f"HUTCH_SEED={SEED} {engine}: {len(entries)} calls, {of_others} on what another process wrote")
    assert of_others > 0.2 * len(entries), "the processes did not meet: no test"


def test_a_scan_inside_a_transaction_on_redis_is_refused(redis_server: RedisServer) -> None:
    config = f"{redis_server.url}?prefix={uuid.uuid4().hex}"

    def scan(tx: hutch.Transaction) -> None:
        tx["a"]["k"] = 1
        list(tx["a"].scan())

    with hutch.connect(config) as store, pytest.raises(hutch.CapabilityError, match="snapshot"):
        store.transact(scan)
    with hutch.connect(config) as store:
        assert len(store["a"]) == 0


def test_transactions_of_many_threads_are_serializable_in_memory() -> None:
    with hutch.connect("memory://") as store:
        workers = [lambda n=n: record(store, n, TRANSACTIONS // PROCESSES, SEED) for n in range(PROCESSES)]
        entries = list(itertools.chain.from_iterable(together(*workers)))
        print(f"HUTCH_SEED={SEED} memory: {summary(entries, PROCESSES)}")
        assert find_anomalies(entries, final_state(store)) == []


# --- the checker itself ---

X, Y = (NAMESPACES[0], "x"), (NAMESPACES[1], "y")


def entry(number: str, reads: dict[tuple[str, str], list[str]], appends: dict[tuple[str, str], list[str]]) -> Entry:
    return Entry(number, is_committed=True, reads=reads, appends=appends)


@pytest.mark.parametrize(
    ("anomaly", "entries", "final"),
    [
        ("lost update", [entry("a", {X: []}, {X: ["a.0"]}), entry("b", {X: []}, {X: ["b.0"]})], {X: ["b.0"]}),
        ("G1a", [Entry("a", appends={X: ["a.0"]})], {X: ["a.0"]}),
        ("G1b", [entry("a", {}, {X: ["a.0", "a.1"]}), entry("b", {X: ["a.0"]}, {})], {X: ["a.0", "a.1"]}),
        (
            "G0",
            [entry("a", {}, {X: ["a.0"], Y: ["a.1"]}), entry("b", {}, {X: ["b.0"], Y: ["b.1"]})],
            {X: ["a.0", "b.0"], Y: ["b.1", "a.1"]},
        ),
        (
            "G1c",
            [entry("a", {Y: ["b.0"]}, {X: ["a.0"]}), entry("b", {X: ["a.0"]}, {Y: ["b.0"]})],
            {X: ["a.0"], Y: ["b.0"]},
        ),
        # Write skew.
        ("G2", [entry("a", {X: [], Y: []}, {X: ["a.0"]}), entry("b", {X: [], Y: []}, {Y: ["b.0"]})], None),
        # Long fork: two readers see two writes in different orders.
        (
            "G2",
            [
                entry("a", {}, {X: ["a.0"]}),
                entry("b", {}, {Y: ["b.0"]}),
                entry("c", {X: ["a.0"], Y: []}, {}),
                entry("d", {X: [], Y: ["b.0"]}, {}),
            ],
            None,
        ),
        # Phantom: each scans, and creates a key that the other one does not see.
        (
            "G2",
            [
                Entry("a", True, appends={(X[0], "new 1"): ["a.0"]}, scans=[(X[0], "new ")]),
                Entry("b", True, appends={(X[0], "new 2"): ["b.0"]}, scans=[(X[0], "new ")]),
            ],
            {(X[0], "new 1"): ["a.0"], (X[0], "new 2"): ["b.0"]},
        ),
    ],
)
def test_the_checker_names_each_anomaly(
    anomaly: str, entries: list[Entry], final: dict[tuple[str, str], list[str]] | None
) -> None:
    found = find_anomalies(entries, final or {X: ["a.0"], Y: ["b.0"]})
    assert any(one.startswith(anomaly) for one in found), found
