"""Test snapshots beyond the conformance kit: what ends one, and its cost in files."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import hutch
from hutch.testing.conformance.interrupt_jobs import open_files
from hutch.testing.signal_points import Interrupt, points, raise_interrupt, run_at

Connect = Callable[[Path], hutch.Store]


def lmdb_store(path: Path, **options: Any) -> hutch.Store:
    return hutch.connect({"STORAGE": "lmdb", "STORAGE_CONFIG": {"path": path / "state", **options}})


def sqlite_store(path: Path, **options: Any) -> hutch.Store:
    return hutch.connect({"STORAGE": "sqlite", "STORAGE_CONFIG": {"path": path / "kv.db", **options}})


BOTH = pytest.mark.parametrize("connect", [lmdb_store, sqlite_store])


def fill(store: hutch.Store) -> None:
    with store.open("core") as core:
        core.update({"a": 1, "b": 2})


def test_a_write_that_needs_a_larger_map_ends_the_snapshot_which_says_so(tmp_path: Path) -> None:
    with lmdb_store(tmp_path, map_size_bytes=1 << 20, durability="relaxed") as store:
        fill(store)
        with store.snapshot() as snap:
            old = snap["core"]
            assert dict(old) == {"a": 1, "b": 2}
            with store.open("core") as core:
                for number in range(40):
                    core[f"large {number}"] = bytes(100_000)
                assert len(core) == 42
            for read in (lambda: old["a"], lambda: list(old), lambda: len(old), lambda: "a" in old, snap.namespaces):
                with pytest.raises(hutch.StoreNotOpenError, match=r"ended, because a write .* needed a larger map"):
                    read()
        with store.snapshot() as snap:
            assert len(snap["core"]) == 42


def test_a_snapshot_ends_at_its_age_so_that_the_file_stops_growing(tmp_path: Path) -> None:
    with lmdb_store(tmp_path, max_age_s=1, durability="relaxed") as store:
        fill(store)
        with store.snapshot() as snap:
            old = snap["core"]
            assert old["a"] == 1
            assert store.stats()["snapshots"] == 1
            time.sleep(1.1)
            with store.open("core") as core:
                core["a"] = 2  # ends it: nobody has read it since
            assert "snapshots" not in store.stats()
            for read in (lambda: old["a"], lambda: dict(old), lambda: "a" in old):
                with pytest.raises(hutch.StoreNotOpenError, match="older than max_age_s = 1 seconds"):
                    read()


def test_stats_show_the_age_of_a_snapshot(tmp_path: Path) -> None:
    with lmdb_store(tmp_path) as store:
        fill(store)
        assert "snapshots" not in store.stats()
        with store.snapshot(), store.snapshot():
            figures: dict[str, Any] = store.stats()
            assert figures["snapshots"] == 2
            assert figures["oldest_snapshot_s"] >= 0
        assert "snapshots" not in store.stats()


@BOTH
def test_a_snapshot_of_a_store_that_was_never_written_is_empty(tmp_path: Path, connect: Connect) -> None:
    with connect(tmp_path) as store, store.snapshot() as snap:
        fill(store)
        assert (snap.namespaces(), dict(snap["core"]), len(snap["core"]), "a" in snap["core"]) == ([], {}, 0, False)


def test_an_engine_without_snapshots_refuses_one(tmp_path: Path) -> None:
    with hutch.connect(f"shelf://{tmp_path}") as store, pytest.raises(hutch.CapabilityError, match="`snapshot`"):
        store.snapshot()


@BOTH
def test_closing_a_namespace_of_a_snapshot_does_nothing(tmp_path: Path, connect: Connect) -> None:
    """Other parts of the program read the same snapshot."""
    with connect(tmp_path) as store:
        store["core"]["k"] = 1
        with store.snapshot() as snap:
            store["core"]["k"] = 2
            with snap["core"] as core:
                assert core["k"] == 1
            snap["core"].close()
            assert core["k"] == snap["core"]["k"] == 1
            with pytest.raises(TypeError, match=r"namespaces\(\)"):
                "core" in snap  # noqa: B015
        with pytest.raises(hutch.StoreNotOpenError):
            core.get("k")


@BOTH
def test_a_snapshot_of_a_closed_store_says_so(tmp_path: Path, connect: Connect) -> None:
    with connect(tmp_path) as store:
        fill(store)
        snap = store.snapshot()
        old = snap["core"]
    with pytest.raises(hutch.StoreNotOpenError):
        old["a"]
    with pytest.raises(hutch.StoreNotOpenError):
        store.snapshot()
    snap.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_fork_ends_a_snapshot_of_sqlite_in_both_processes(tmp_path: Path) -> None:
    with sqlite_store(tmp_path) as store:
        fill(store)
        with store.snapshot() as snap:
            old = snap["core"]
            assert old["a"] == 1
            if not (child := os.fork()):
                try:
                    with pytest.raises(hutch.StoreNotOpenError, match="a fork closed the files"):
                        old["a"]
                except BaseException:
                    os._exit(1)
                os._exit(0)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            with pytest.raises(hutch.StoreNotOpenError, match="a fork closed the files"):
                old["a"]


def test_a_snapshot_of_sqlite_needs_permission_to_write(tmp_path: Path) -> None:
    with sqlite_store(tmp_path) as store:
        fill(store)
    with sqlite_store(tmp_path, readonly=True) as store, pytest.raises(hutch.CapabilityError, match="permission"):
        store.snapshot()


@BOTH
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_kept_tracebacks_keep_few_snapshots_open(tmp_path: Path, connect: Connect) -> None:
    """An interrupted `with` may leave its snapshot open where Python itself enters and leaves it, nowhere else."""
    with connect(tmp_path) as store:
        fill(store)

        def read() -> object:
            with store.snapshot() as snap:
                return snap["core"]["a"]

        read()
        before = open_files()
        kept: list[BaseException] = []
        for point in points(read, loops=False):
            try:
                run_at(point, raise_interrupt, read, loops=False)
            except Interrupt as error:
                kept.append(error)
        assert len(kept) >= 50
        # Of sqlite's, each has a connection with two files; lmdb's have none.
        still_open = store.stats().get("snapshots", (open_files() - before) // 2)
        assert isinstance(still_open, int)
        assert still_open <= 4, f"{still_open} snapshots are open after {len(kept)} interrupts"
        kept.clear()
        gc.collect()  # what they kept warns here
