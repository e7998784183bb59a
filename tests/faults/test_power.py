"""Test simulated power cuts: what was written and flushed at any moment opens and keeps its promises.

HUTCH_POWER_CUTS=N makes N cuts of each history instead of the few that fit into every run; HUTCH_POWER_SEED=N repeats.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from .power import shim
from .power.history import Plan
from .power.judge import Report

CUTS = int(os.environ.get("HUTCH_POWER_CUTS", "0"))
ENGINES = ("lmdb", "sqlite")
# As many records as it takes to make a store and write to it a few times.
MAKING = {"lmdb": 24, "sqlite": 60}


@pytest.fixture(scope="module", autouse=True)
def built_shim(tmp_path_factory: pytest.TempPathFactory) -> None:
    shim.build(tmp_path_factory.mktemp("shim"))


@pytest.fixture
def seed() -> int:
    return int(os.environ.get("HUTCH_POWER_SEED", random.randrange(2**32)))


def record(plan: Plan, tmp_path: Path) -> tuple[Path, Path, str]:
    """Carry out `plan`: the folder that was recorded, the log, and what the first process printed."""
    folder, log = tmp_path / "disk", tmp_path / "log"
    folder.mkdir()
    # A flush takes as long as on a quick disk where many wait for it, so that they meet.
    flush_us = 0 if plan.processes == plan.threads == 1 else 300
    written = json.dumps(dataclasses.asdict(plan))
    processes = [
        shim.start("tests.faults.power.workload", written, number, folder, folder=folder, log=log, flush_us=flush_us)
        for number in range(plan.processes)
    ]
    printed = [shim.finish(process) for process in processes]
    return folder, log, printed[0]


def cut_power(plan: Plan, tmp_path: Path, promise: str, cuts: int, making: int = 0) -> Report:
    """Carry out `plan`, cut the power while it was, and judge what is left."""
    folder, log, came = record(plan, tmp_path)
    print(plan, came.strip())
    arguments = {
        "folder": str(folder),
        "log": str(log),
        "plan": dataclasses.asdict(plan),
        "cuts": CUTS or cuts,
        "promise": promise,
        "first_records": making,
    }
    report = Report(**json.loads(shim.finish(shim.plain("tests.faults.power.judge", json.dumps(arguments)))))
    print(report)
    # What is written through a map is not seen; these two need not outlive the system.
    assert all(name.endswith(("lock.mdb", "-shm")) for name in report.mapped), report.mapped
    assert report.images >= 6 * (CUTS or cuts)
    return report


def kept(report: Report) -> None:
    """All promises were."""
    assert not report.broken, "\n".join([str(report), *report.broken[:10]])


@pytest.mark.parametrize("engine", ENGINES)
def test_strict_loses_nothing_that_was_acknowledged(engine: str, tmp_path: Path, seed: int) -> None:
    plan = Plan(f"hutch:{engine}:strict", seed, steps=90, reopen_every=30)
    report = cut_power(plan, tmp_path, "strict", 30, MAKING[engine])
    kept(report)
    assert report.most_lost == 0
    assert report.checked > report.images


@pytest.mark.parametrize("engine", ENGINES)
def test_normal_loses_no_more_than_the_latest_writes(engine: str, tmp_path: Path, seed: int) -> None:
    """All that was acknowledged before the last flush began is there: on lmdb that is all but the last write."""
    plan = Plan(f"hutch:{engine}:normal", seed, steps=90, reopen_every=30)
    report = cut_power(plan, tmp_path, "normal", 30, MAKING[engine])
    kept(report)
    if engine == "lmdb":
        assert report.most_lost <= 1
    assert report.checked > report.images


@pytest.mark.parametrize("durability", ["strict", "normal"])
@pytest.mark.parametrize("engine", ENGINES)
def test_threads_and_processes_lose_no_more_than_one_alone(
    engine: str, durability: str, tmp_path: Path, seed: int
) -> None:
    """Two processes of three threads: what a group commits together is there together, and in order."""
    plan = Plan(f"hutch:{engine}:{durability}", seed, steps=25, processes=2, threads=3)
    report = cut_power(plan, tmp_path, durability, 20)
    kept(report)
    if engine == "lmdb":
        # Of each worker: with a group the last write of each of its threads goes.
        assert report.most_lost <= (durability == "normal")


@pytest.mark.parametrize("durability", ["strict", "normal"])
def test_the_log_of_sqlite_is_written_back_without_a_moment_of_danger(
    durability: str, tmp_path: Path, seed: int
) -> None:
    plan = Plan(f"hutch:sqlite:{durability}", seed, steps=60, large=True)
    report = cut_power(plan, tmp_path, durability, 8)
    kept(report)
    # Two when it was made, one when it was closed; the others are checkpoints.
    assert report.flushes["store/data.db"] > 3


@pytest.mark.parametrize("engine", ENGINES)
def test_relaxed_loses_nothing_while_the_system_lives(engine: str, tmp_path: Path, seed: int) -> None:
    """Everything that was written counts as written: so it is when a process is killed. A power cut does damage."""
    # Never closed, for closing flushes; and long, for SQLite's log is safe until it is written back.
    plan = Plan(f"hutch:{engine}:relaxed", seed, steps=60, large=True)
    report = cut_power(plan, tmp_path, "relaxed", 20)
    killed = [broken for broken in report.broken if "'all'" in broken]
    assert not killed, killed
    assert report.broken, "a power cut did no damage, so that the page about it is wrong"


@pytest.mark.parametrize("peer", ["lmdb-unflushed", "shelf-dumb"])
def test_a_store_with_a_known_flaw_is_caught(peer: str, tmp_path: Path) -> None:
    """LMDB without flushes in the right order, and one after each commit; a shelf on dbm.dumb, after each `sync`."""
    report = cut_power(Plan(peer, seed=1, steps=60), tmp_path, "strict", 40)
    assert report.broken
    print(*report.broken[:3], sep="\n")


@pytest.mark.parametrize(
    ("engine", "durability", "flushes"),
    [
        ("lmdb", "strict", 2),
        ("lmdb", "normal", 1),
        ("lmdb", "relaxed", 0),
        ("sqlite", "strict", 1),
        ("sqlite", "normal", 0),
        ("sqlite", "relaxed", 0),
    ],
)
def test_a_write_flushes_as_often_as_the_page_says(engine: str, durability: str, flushes: int, tmp_path: Path) -> None:
    plan = Plan(f"hutch:{engine}:{durability}", seed=1, steps=60)
    _, log, _ = record(plan, tmp_path)
    seen: Counter[int] = Counter()
    now = 0
    for one in shim.read_log(log):
        if one.kind in "ED":
            now += 1
        elif one.text.startswith("begins"):
            now = 0
        elif one.text.startswith("acknowledged"):
            seen[now] += 1
    # A few have more to do: to make the store, or a namespace; and a modify that finds nothing to change has less.
    assert seen.most_common(1)[0] > (flushes, 40), seen
    assert seen.most_common(1)[0][0] == flushes, seen


@pytest.mark.parametrize("engine", ["lmdb", "sqlite"])
def test_closing_a_relaxed_store_puts_it_on_the_disk(engine: str, tmp_path: Path) -> None:
    _, log, _ = record(Plan(f"hutch:{engine}:relaxed", seed=1, steps=30), tmp_path)
    flushes = 0
    for one in shim.read_log(log):
        if one.text.startswith("acknowledged"):
            flushes = 0
        flushes += one.kind in "ED"
    assert flushes > 0, "after the last write"


def test_the_same_plan_is_the_same_history_in_any_process() -> None:
    plan = Plan("hutch:lmdb:strict", seed=1, steps=50)
    assert plan.history(0) == plan.history(0) != plan.history(1) != replace(plan, seed=2).history(1)
