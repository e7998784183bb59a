"""Test a failing disk: every system call of an engine fails once, and then the engine must work as before.

HUTCH_POWER_CUTS and HUTCH_POWER_SEED as in test_power.py.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .power import shim
from .power.history import Plan
from .test_power import built_shim, cut_power, kept, seed

__all__ = ["built_shim", "seed"]  # fixtures


@pytest.mark.parametrize(
    ("engine", "durability", "least"),
    [("lmdb", "strict", 200), ("lmdb", "normal", 200), ("sqlite", "strict", 600), ("sqlite", "normal", 600)],
)
def test_any_call_to_the_system_may_fail(engine: str, durability: str, least: int, tmp_path: Path) -> None:
    """EIO, ENOSPC and EDQUOT: the right StoreError, nothing lost, nothing half done, and the same handle goes on."""
    folder = tmp_path / "disk"
    folder.mkdir()
    came = json.loads(shim.finish(shim.start("tests.faults.power.faulty", engine, durability, folder, folder=folder)))
    print(came)
    assert came["calls that failed"] >= least
    assert came["StorageFullError"] > 50
    assert came["StorageUnavailableError"] > 50
    assert came.get("raised, and was done", 0) == 0


@pytest.mark.parametrize(
    ("engine", "durability", "threads"),
    [("lmdb", "strict", 1), ("lmdb", "normal", 1), ("lmdb", "normal", 4), ("sqlite", "strict", 1)],
)
def test_what_is_acknowledged_after_a_failed_flush_is_on_the_disk(
    engine: str, durability: str, threads: int, tmp_path: Path, seed: int
) -> None:
    """What a failed flush should have written a later one that succeeds does not write; and then the power is cut.

    Not for sqlite with normal, which docs/durability.md tells: SQLite takes the later flush's word for it.
    """
    plan = Plan(
        f"hutch:{engine}:{durability}", seed, steps=90 // threads, threads=threads, reopen_every=30, faults=True
    )
    report = cut_power(plan, tmp_path, durability, 25)
    kept(report)
    if engine == "lmdb":
        assert report.most_lost <= (durability == "normal")
