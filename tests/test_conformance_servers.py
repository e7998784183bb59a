"""Run the whole conformance kit on each server and topology that the redis engine supports, and count its promises.

Every promise is kept, or stands here as skipped. The kit of every engine is in test_conformance.py.
"""

from __future__ import annotations

import itertools
import os
import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from hutch.testing import StorageSuite
from hutch.testing.run import run_conformance
from tests.redis_cluster import RedisCluster
from tests.redis_sentinels import Sentinels
from tests.servers import REDIS_SERVERS, RedisServer, need_server

TOPOLOGIES: dict[str, Callable[[str], AbstractContextManager[RedisServer | RedisCluster | Sentinels]]] = {
    "standalone": lambda name: RedisServer(name=name, appendonly=True),
    "cluster": lambda name: RedisCluster(name=name),
    "sentinel": lambda name: Sentinels(name=name),
    "shards": lambda name: RedisServer(name=name, appendonly=True),
}
OPTIONS = {"shards": "&shards=4"}
# Each server and each topology is here; HUTCH_ALL_SERVERS=1 runs every server in every topology.
USUAL = [("redis-7.0", "standalone"), ("redis-8.2", "standalone"), ("valkey-9.1", "standalone")]
USUAL += [("valkey-9.1", "cluster"), ("redis-8.2", "sentinel"), ("redis-7.0", "shards")]
SERVERS = list(itertools.product(REDIS_SERVERS, TOPOLOGIES)) if os.environ.get("HUTCH_ALL_SERVERS") else USUAL

NO_SNAPSHOT = {
    "a_closed_snapshot_says_so",
    "a_phantom_is_a_conflict",
    "a_scan_covers_only_what_it_has_read",
    "a_scan_shows_the_changes_of_its_transaction",
    "a_snapshot_is_of_one_moment_across_namespaces",
    "a_snapshot_never_changes",
    "a_snapshot_refuses_every_write",
    "concurrent_transactions_are_serializable",
    "time_stands_still_in_a_snapshot",
}
NO_FILES = {"create_false_creates_no_store", "readonly_reads_everything_and_refuses_every_write"}
SERVER_CLOCK = {"a_clock_that_is_set_expires_early_or_late"}
HAS_TTL = {"an_engine_without_ttl_refuses_it_before_anything_is_written"}
HAS_ATOMIC_STORE = {"without_the_capability_nothing_begins"}
NOT_DURABLE = {"a_killed_writer_loses_nothing_it_was_promised", "writers_go_on_when_others_are_killed"}
NO_ATOMIC_STORE = {
    "a_bad_key_or_value_is_refused_at_its_write",
    "a_block_that_raises_writes_nothing",
    "a_changed_key_is_a_conflict",
    "a_commit_appears_at_once",
    "a_key_that_was_only_written_is_no_conflict",
    "a_transaction_commits_all_its_changes",
    "a_transaction_sees_namespaces_that_are_open",
    "a_transaction_that_only_reads_is_checked",
    "misuse_is_a_clear_error",
    "transact_counts_every_increment",
    "transact_runs_again_where_the_function_saw_a_mixture",
    "two_reads_of_a_key_give_the_same_value",
}
NO_ATOMIC_BATCH = {
    "a_batch_appears_at_once",
    "a_batch_is_removed_at_once",
    "a_batch_of_another_process_appears_at_once",
}
ALWAYS = NO_SNAPSHOT | NO_FILES | SERVER_CLOCK | HAS_TTL

#: The promises that are skipped, by topology and reason: the standalone server writes each change to its disk.
SKIPPED = {
    "standalone": ALWAYS | HAS_ATOMIC_STORE,
    "sentinel": ALWAYS | HAS_ATOMIC_STORE | NOT_DURABLE,
    "cluster": ALWAYS | NO_ATOMIC_STORE | NOT_DURABLE,
    "shards": ALWAYS | NO_ATOMIC_STORE | NO_ATOMIC_BATCH,
}

NAMES = {
    (getattr(StorageSuite, name).__doc__ or name).strip().splitlines()[0]: name.removeprefix("test_")
    for name in dir(StorageSuite)
    if name.startswith("test_")
}


@pytest.mark.timeout(1200)
@pytest.mark.usefixtures("unmeasured_processes")
@pytest.mark.parametrize(("server", "topology"), SERVERS)
def test_every_promise_is_kept_or_named_as_skipped(
    server: str, topology: str, request: pytest.FixtureRequest, record_property: Callable[[str, object], None]
) -> None:
    if (server, topology) != USUAL[0]:
        request.getfixturevalue("few_signals")  # the same client, which handles them
    outcomes: dict[str, set[str]] = {"passed": set(), "skipped": set(), "failed": set()}
    details: list[str] = []
    with TOPOLOGIES[topology](server) as started:
        for result in run_conformance("redis", f"{started.url}?prefix={{fresh}}{OPTIONS.get(topology, '')}"):
            outcomes[result.outcome].add(NAMES.get(result.promise, result.promise))
            if result.outcome == "failed":
                details.append(f"{result.promise}\n{result.detail}")
    passed, skipped = len(outcomes["passed"]), sorted(outcomes["skipped"])
    record_property(
        "counted", f"{server}, {topology}: {passed} promises kept, {len(skipped)} skipped: {', '.join(skipped)}"
    )
    assert not details, "\n\n".join(details)
    assert outcomes["skipped"] == SKIPPED[topology]
    assert outcomes["passed"] == set(NAMES.values()) - SKIPPED[topology]


def test_the_page_names_the_servers_that_are_tested() -> None:
    page = (Path(__file__).parents[1] / "docs" / "redis-servers.md").read_text(encoding="utf-8")
    rows = {row.split("|")[1].strip(): row for row in page.splitlines() if ", in CI |" in row}
    for name in REDIS_SERVERS:
        version = subprocess.check_output([need_server(name), "--version"], text=True).partition(" v=")[2].split()[0]
        product, series = name.split("-")
        assert version.startswith(f"{series}.")
        cells = rows.pop(f"{product.capitalize()} {version}").split("|")[2:5]
        for topology, cell in zip(("standalone", "sentinel", "cluster"), cells, strict=True):
            assert ("in CI" in cell) == ((name, topology) in USUAL)
    assert not rows
