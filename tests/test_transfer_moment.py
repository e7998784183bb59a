"""Test that dump, copy and backup read one moment of a store that another thread changes."""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import hutch
from hutch import transfer

ACCOUNTS = [f"a{number:03}" for number in range(100)]
TOTAL = 2 * 100 * len(ACCOUNTS)


def connect(engine: str, path: Path, **options: Any) -> hutch.Store:
    return hutch.connect({"STORAGE": engine, "STORAGE_CONFIG": options if engine == "memory" else {"path": path}})


def fill(store: hutch.Store) -> None:
    for name in ("left", "right"):
        with store.open(name) as accounts:
            accounts.set_many(dict.fromkeys(ACCOUNTS, 100))


def move(store: hutch.Store, number: int) -> None:
    with store.transaction() as block:
        left, right, key = block["left"], block["right"], ACCOUNTS[number % len(ACCOUNTS)]
        sign = 1 if number % 3 else -1
        left[key], right[key] = left[key] - sign, right[key] + sign


@contextmanager
def moving(store: hutch.Store) -> Iterator[None]:
    """Move money between the two namespaces in transactions until the block ends."""
    done, begun = threading.Event(), threading.Event()

    def work() -> None:
        number = 0
        while not done.is_set():
            move(store, number)
            number += 1
            begun.set()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        assert begun.wait(60)
        yield
    finally:
        done.set()
        thread.join(60)


def total(store: hutch.Store) -> int:
    with store.open("left") as left, store.open("right") as right:
        return int(sum(left.values()) + sum(right.values()))


@pytest.mark.parametrize("engine", ["memory", "lmdb", "sqlite"])
def test_dump_copy_and_backup_hold_one_moment(engine: str, tmp_path: Path) -> None:
    with connect(engine, tmp_path / "live") as store:
        fill(store)
        with moving(store):
            for number in range(5):
                out = io.BytesIO()
                assert transfer.dump(store, out).snapshot
                items = [json.loads(line) for line in out.getvalue().splitlines()[1:-1]]
                assert sum(item["value"] for item in items) == TOTAL
                with connect("memory", tmp_path) as target:
                    assert transfer.copy(store, target).snapshot
                    assert total(target) == TOTAL
                copied = transfer.backup(store, tmp_path / f"backup{number}")
                assert copied is None or copied.snapshot
                kept = "lmdb" if engine == "memory" else engine
                with connect(kept, tmp_path / f"backup{number}") as target:
                    assert total(target) == TOTAL


@pytest.mark.parametrize("engine", ["memory", "lmdb", "sqlite"])
def test_a_transaction_between_two_namespaces_is_not_seen_in_halves(engine: str, tmp_path: Path) -> None:
    with connect(engine, tmp_path / "live") as store, connect("memory", tmp_path) as target:
        fill(store)
        written: list[transfer.Progress] = []

        def between(progress: transfer.Progress) -> None:
            move(store, len(written))
            written.append(progress)

        transfer.copy(store, target, progress=between)
        assert total(target) == TOTAL
        assert written


def test_a_source_without_snapshots_says_so(tmp_path: Path) -> None:
    with hutch.connect(f"shelf://{tmp_path / 'live'}") as store, connect("memory", tmp_path) as target:
        fill(store)
        assert not transfer.copy(store, target).snapshot
        assert not transfer.dump(store, io.BytesIO()).snapshot


def test_a_copy_keeps_deadlines_and_leaves_out_the_expired(tmp_path: Path) -> None:
    with connect("lmdb", tmp_path / "live") as store, connect("memory", tmp_path) as target:
        with store.open("core") as core:
            core.set("soon", 1, ttl_s=0.001)
            core.set("later", 1, ttl_s=1000)
            while "soon" in core:
                time.sleep(0.001)
        transfer.copy(store, target)
        with target.open("core") as core:
            assert list(core) == ["later"]
            assert 0 < (core.ttl_s("later") or 0) <= 1000


def test_an_ended_snapshot_leaves_no_backup_and_says_what_to_do(tmp_path: Path) -> None:
    options = {"path": tmp_path / "live", "max_age_s": 0.001}
    with hutch.connect({"STORAGE": "lmdb", "STORAGE_CONFIG": options}) as store, connect("memory", tmp_path) as target:
        fill(store)

        def wait(progress: transfer.Progress) -> None:
            time.sleep(0.05)

        with pytest.raises(hutch.StoreNotOpenError, match=r"has ended.*run the copy or dump again; max_age_s"):
            transfer.copy(store, target, progress=wait)
