"""Test eight processes at once on one store, without pause, some of them killed and replaced.

Each of them verifies the results by a common plan (`hutch.testing.crash.workloads`): no lost `modify`, no torn or stale
read, no process without progress, readers included, a map that any of them grows, and exact counts at the end.
``HUTCH_CROWD_S=600`` runs for ten minutes, ``HUTCH_SEED=7`` repeats the work.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import hutch
from hutch.testing.conformance.child import Child
from hutch.testing.conformance.durability import kill_at_random
from hutch.testing.crash.kills import KillPlan

CROWD_S = float(os.environ.get("HUTCH_CROWD_S", "20"))
SEED = int(os.environ.get("HUTCH_SEED", random.randrange(2**32)))

HOLD = {
    "lmdb": """
import lmdb, sys, time
with lmdb.open(sys.argv[1]).begin(write=True) as txn:
    txn.put(b"mine", b"never committed")
    print("held", flush=True)
    time.sleep(600)
""",
    "sqlite": """
import sqlite3, sys, time
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
connection.execute("DELETE FROM entries")
print("held", flush=True)
time.sleep(600)
""",
}


def config_of(engine: str, folder: Path) -> str:
    if engine == "sqlite":
        return f"sqlite://{folder.as_posix()}/kv.db?wait_s=60"
    return f"lmdb://{folder.as_posix()}/data?map_size_bytes={1 << 20}"


@pytest.mark.timeout(180 + 2 * CROWD_S)
@pytest.mark.parametrize("engine", ["lmdb", "sqlite"])
def test_many_killed_processes_lose_nothing_and_none_hangs(
    engine: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    config = config_of(engine, tmp_path)
    plan = KillPlan(
        *(SEED, 0),
        writers=6,
        threads=1,
        readers=2,
        seconds=CROWD_S,
        longest_pause_s=1.0,
        large_bytes=200_000,
        snapshots=True,
        all_at_once=0.0,
    )
    counted = kill_at_random(config, plan)
    [data] = [tmp_path / name for name in ("data/data.mdb", "kv.db") if (tmp_path / name).exists()]
    counted["bytes of data"] = data.stat().st_size
    record_property("counted", f"seed {SEED}: {', '.join(f'{n:,} {what}' for what, n in counted.items())}")
    # The last processes are all killed at the end, when no other is left.
    assert counted["kills that others survived"] == counted["kills"] - 8 > 0
    assert counted["reads"] > counted["kills"]
    # More than the map that each of them began with.
    assert counted["bytes of data"] > 1 << 20


@pytest.mark.parametrize("engine", HOLD)
def test_a_process_killed_while_it_holds_the_writer_lock_blocks_no_other(engine: str, tmp_path: Path) -> None:
    config = config_of(engine, tmp_path)
    path = tmp_path / ("kv.db" if engine == "sqlite" else "data")
    with hutch.connect(config) as store, store.open("core") as core, Child(config) as waiting:
        core.update({f"k{n}": n for n in range(100)})
        assert len(waiting.call("get_all", "core")) == 100
        with subprocess.Popen([sys.executable, "-c", HOLD[engine], str(path)], stdout=subprocess.PIPE) as holder:
            try:
                assert holder.stdout is not None
                assert holder.stdout.readline().strip() == b"held"
                waiting.start("update", "core", {"theirs": "waited for it"})
                # It never holds up a reader.
                assert core["k7"] == 7
            finally:
                holder.kill()
        core["mine"] = "written at once"
        waiting.result()
        assert dict(core) == {f"k{n}": n for n in range(100)} | {"theirs": "waited for it", "mine": "written at once"}
        assert len(core) == 102
