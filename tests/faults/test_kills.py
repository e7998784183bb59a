"""Test killing writing processes, hundreds of times, with every durability: nothing acknowledged is lost.

The workload and its assertions are the conformance kit's (`hutch.testing.crash.kills`); these tests have more kills,
more threads, and a map that has to grow. ``HUTCH_KILLS=5000`` sets the number of kills, ``HUTCH_SEED=7`` repeats the
moments and the work.
"""

from __future__ import annotations

import math
import os
import random
import re
import sys
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from hutch.testing.conformance.child import Child, ChildError
from hutch.testing.conformance.durability import kill_at_random
from hutch.testing.conformance.kit import PATIENCE_S
from hutch.testing.crash.kills import KillPlan
from tests.servers import RedisServer

ENGINES = Path(__file__).parent / "kills_engines"
CASES = [(engine, durability) for engine in ("lmdb", "sqlite") for durability in ("strict", "normal", "relaxed")]
KILLS = int(os.environ.get("HUTCH_KILLS", "216"))
SEED = int(os.environ.get("HUTCH_SEED", random.randrange(2**32)))
# A store gets so many, then comes a new one: the first moments of a store are among those that matter.
KILLS_A_STORE = 12
# What each engine with a hole is found out by, and by how many processes that write and that read.
FAULTS = {
    # Its lock for writing keeps all others out.
    "AcknowledgesBeforeItCommits": ("acknowledged and lost|stored again|stale or garbled|lost: ", 1, 0),
    "CountsOutsideTheTransaction": ("len of", 3, 0),
    "TearsBatches": ("torn: 'update", 3, 0),
    "TearsClears": ("torn: '(remove_many|clear own|drop own)'", 3, 0),
    "WritesInPlace": ("CorruptValueError", 3, 0),
    "ReadsFromACacheOfItsOwn": ("stale", 3, 1),
    "SwapsWithoutALock": ("lost: a count|acknowledged and lost|stale or garbled", 3, 0),
    "LeavesItsLockBehind": ("stand still|is locked by a process that has ended", 3, 0),
    "RefusesWhatWasNotClosed": ("was not closed; repair it first", 1, 0),
}


def config_of(engine: str, durability: str, folder: Path) -> str:
    if engine == "sqlite":
        return f"sqlite://{folder.as_posix()}/kv.db?durability={durability}&wait_s=60"
    return f"lmdb://{folder.as_posix()}?durability={durability}&map_size_bytes={1 << 20}"


@pytest.mark.timeout(180 + 2 * KILLS)
@pytest.mark.parametrize(("engine", "durability"), CASES)
def test_a_killed_process_loses_no_acknowledged_write_and_blocks_no_other_process(
    engine: str, durability: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    plans = [
        KillPlan(
            SEED, KILLS_A_STORE, writers=3, threads=2, large_bytes=300_000, readers=1, snapshots=True, all_at_once=0.2
        ),
        KillPlan(SEED, KILLS_A_STORE, writers=1, threads=6, large_bytes=300_000),
        KillPlan(SEED, KILLS_A_STORE, writers=4, threads=1, snapshots=True, all_at_once=0.1),
    ]
    stores = math.ceil(KILLS / len(CASES) / KILLS_A_STORE)
    counted: Counter[str] = Counter()
    with Child(config_of(engine, durability, tmp_path / "0"), measured=False) as child:
        for number in range(stores):
            plan = replace(plans[number % len(plans)], seed=SEED + number)
            config = config_of(engine, durability, tmp_path / f"{number}")
            print(f"{plan}\n{config}")
            child.start("kill_at_random", config, plan)
            counted.update(child.result(3 * PATIENCE_S))
            if engine == "lmdb":
                counted["stores whose map was grown"] += (tmp_path / f"{number}" / "data.mdb").stat().st_size > 1 << 20
    record_property("counted", f"seed {SEED}: {', '.join(f'{n:,} {what}' for what, n in counted.items())}")
    assert counted["kills"] >= KILLS / len(CASES)
    assert counted["acknowledged"] > 10 * counted["kills"]
    assert stores < len(plans) or counted["kills that others survived"]
    assert stores < len(plans) or engine != "lmdb" or counted["stores whose map was grown"]


@pytest.mark.timeout(180 + 2 * KILLS)
def test_a_killed_client_of_a_server_loses_nothing_and_leaves_no_half(
    redis_server: RedisServer, record_property: Callable[[str, object], None]
) -> None:
    """Its commits have several keys and namespaces; the server goes on."""
    plan = KillPlan(SEED, math.ceil(KILLS / len(CASES)), writers=3, threads=2, readers=1)
    counted = kill_at_random(f"{redis_server.url}?prefix={uuid.uuid4().hex}", plan)
    record_property("counted", f"seed {SEED}: {', '.join(f'{n:,} {what}' for what, n in counted.items())}")
    assert counted["kills that others survived"]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere processes are spawned anyway")
def test_processes_that_are_spawned_not_forked_keep_the_same_promise(tmp_path: Path) -> None:
    plan = KillPlan(SEED, 4, writers=2, threads=2, readers=1, snapshots=True, start_method="spawn")
    kill_at_random(config_of("sqlite", "relaxed", tmp_path), plan)


def holes(fault: str, folder: Path) -> dict[str, object]:
    return {
        "STORAGE": "Holes",
        "STORAGE_CONFIG": {"path": str(folder), "fault": fault},
        "EXTRA_PLUGIN_DIRS": [str(ENGINES)],
    }


def test_a_third_party_engine_without_a_fault_passes(tmp_path: Path) -> None:
    kill_at_random(holes("Sound", tmp_path), KillPlan(SEED, 24, writers=3, threads=2, readers=1))


@pytest.mark.parametrize("fault", FAULTS)
def test_an_engine_with_a_fault_fails(fault: str, tmp_path: Path) -> None:
    message, writers, readers = FAULTS[fault]
    others = []
    for attempt in range(3):
        plan = KillPlan(SEED + attempt, 400, writers=writers, threads=2, readers=readers, patience_s=5.0)
        with pytest.raises(ChildError) as found:
            kill_at_random(holes(fault, tmp_path / f"{attempt}"), plan)
        if re.search(message, str(found.value)):
            return
        # Another process may have met the same fault differently, and reported it first.
        others.append(str(found.value))
    pytest.fail(f"found out each time, but never by {message!r}: {others}")
