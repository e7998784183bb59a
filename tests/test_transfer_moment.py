"""Test that dump, copy and backup read one moment of a store that another thread changes."""

from __future__ import annotations

import io
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest

import hutch
from hutch import transfer
from tests.cli_calls import hutch_

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


def ageing(path: Path) -> dict[str, Any]:
    return {"path": path, "max_age_s": 0.5}


def tight(path: Path) -> dict[str, Any]:
    return {"path": path, "map_size_bytes": 1 << 20, "durability": "relaxed"}


def wait(store: hutch.Store) -> None:
    while "snapshots" in store.stats():
        time.sleep(0.01)


def grow(store: hutch.Store) -> None:
    with store.open("other") as other:
        for number in range(40):
            other[f"large {number}"] = bytes(100_000)


ENDS = [(ageing, wait, "max_age_s = 0.5"), (tight, grow, "needed a larger map")]


@pytest.fixture(params=ENDS, ids=["age", "map"])
def ended(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[hutch.Store, Any, str]]:
    """A store, a callback for progress that ends the store's snapshots, and the words of the error."""
    options, end, words = request.param
    calls: list[transfer.Progress] = []

    def once(progress: transfer.Progress) -> None:
        if not calls:
            end(store)
        calls.append(progress)

    with hutch.connect({"STORAGE": "lmdb", "STORAGE_CONFIG": options(tmp_path / "live")}) as store:
        fill(store)
        yield store, once, rf"has ended, because .*{words}.*run the copy or dump again; max_age_s"
        assert [call.namespace for call in calls] == ["left"]


def test_a_copy_whose_snapshot_ended_stops_and_says_what_to_do(
    ended: tuple[hutch.Store, Any, str], tmp_path: Path
) -> None:
    store, progress, words = ended
    with connect("memory", tmp_path) as target:
        with pytest.raises(hutch.StoreNotOpenError, match=words):
            transfer.copy(store, target, progress=progress)
        assert target.namespaces() == ["left"]


def test_a_dump_whose_snapshot_ended_leaves_no_file_and_says_what_to_do(
    ended: tuple[hutch.Store, Any, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, progress, words = ended
    monkeypatch.setattr("hutch.cli.transfer.show_progress", lambda: nullcontext(progress))
    options = "&".join(f"{name}={value}" for name, value in store.config.options.items() if name != "path")
    (tmp_path / "out").mkdir()
    ran = hutch_("dump", "-s", f"lmdb://{tmp_path / 'live'}?{options}", "-o", str(tmp_path / "out" / "dump"))
    assert ran.code == 3
    assert re.search(words, ran.err)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_backup_by_scan_whose_snapshot_ended_leaves_nothing_and_says_what_to_do(
    ended: tuple[hutch.Store, Any, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, progress, words = ended
    monkeypatch.setattr(type(store.factory), "backup", hutch.StoragePluginBase.backup)
    (tmp_path / "out").mkdir()
    with pytest.raises(hutch.StoreNotOpenError, match=words):
        transfer.backup(store, tmp_path / "out" / "backup", progress=progress)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_backup_of_memory_that_is_interrupted_leaves_nothing(tmp_path: Path) -> None:
    with connect("memory", tmp_path) as store:
        fill(store)

        def interrupt(progress: transfer.Progress) -> None:
            raise KeyboardInterrupt

        (tmp_path / "out").mkdir()
        with pytest.raises(KeyboardInterrupt):
            transfer.backup(store, tmp_path / "out" / "backup", progress=interrupt)
        assert list((tmp_path / "out").iterdir()) == []
        assert transfer.backup(store, tmp_path / "out" / "backup")
