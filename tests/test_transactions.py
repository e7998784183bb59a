"""Test transactions with layers, time to live, size limits and long conflicts; the kit has the promises of engines.

``HUTCH_TRANSACTION_MIB=1024`` sets the size of the largest transaction.
"""

from __future__ import annotations

import copy
import itertools
import os
import pickle
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest

import hutch
from hutch import deadlines
from hutch.layers.metrics import snapshot
from hutch.transactions import retries

TRANSACTION_MIB = int(os.environ.get("HUTCH_TRANSACTION_MIB", "32"))
URLS = ["memory://", "lmdb://{}/data", "sqlite://{}/kv.db"]
each_engine = pytest.mark.parametrize("url", URLS, ids=["memory", "lmdb", "sqlite"])


@each_engine
def test_a_transaction_of_many_keys(url: str, tmp_path: Path) -> None:
    """Read, change, create and remove 100,000 keys."""
    count = 100_000
    with hutch.connect(url.format(tmp_path)) as store:
        with store.transaction() as tx:
            for n in range(count):
                tx[f"n{n % 3}"][f"key {n:06}"] = n
        with store.transaction() as tx:
            for n in range(0, count, 2):
                del tx[f"n{n % 3}"][f"key {n:06}"]
            assert sum(1 for _ in tx["n1"].scan()) == len([n for n in range(1, count, 2) if n % 3 == 1])
        assert sum(len(store[f"n{n}"]) for n in range(3)) == count // 2


@pytest.mark.timeout(600)
@each_engine
def test_a_transaction_of_many_bytes(url: str, tmp_path: Path) -> None:
    values = [os.urandom(TRANSACTION_MIB << 16) for _ in range(16)]
    with hutch.connect(url.format(tmp_path)) as store:
        with store.transaction() as tx:
            for n, value in enumerate(values):
                tx[f"n{n % 3}"][f"key {n}"] = value
        assert [store[f"n{n % 3}"][f"key {n}"] == value for n, value in enumerate(values)] == [True] * 16


def test_read_only_refuses_at_the_write_and_lets_reads_commit() -> None:
    name = f"memory://{uuid.uuid4().hex}"
    with hutch.connect(name) as store:
        store["fixed"]["k"] = store["free"]["k"] = 1
        config = {"STORAGE": name, "NAMESPACES": {"fixed": {"LAYERS": ["read-only"]}}}
        with hutch.connect(config) as other:
            with other.transaction() as tx:
                tx["free"]["k"] = tx["fixed"]["k"] + 1
                with pytest.raises(hutch.CapabilityError, match="'fixed' is configured read-only"):
                    tx["fixed"]["k"] = 2
                with pytest.raises(hutch.CapabilityError, match="'fixed' is configured read-only"):
                    del tx["fixed"]["k"]
            conflict = pytest.raises(hutch.ConflictError, match="'k' of namespace 'fixed'")
            with conflict, other.transaction() as tx:
                assert tx["fixed"]["k"] == 1
                store["fixed"]["k"] = 7
        assert store["free"]["k"] == 2


def test_the_cache_of_an_open_handle_drops_what_a_transaction_changes() -> None:
    config: dict[str, Any] = {"STORAGE": "memory://", "LAYERS": [{"name": "cache", "ttl_s": 3600}]}
    with hutch.connect(config) as store, store.open("core") as core:
        core["k"] = 1
        assert (core["k"], core["k"]) == (1, 1)
        with store.transaction() as tx:
            tx["core"]["k"] += 1
        assert core["k"] == 2
        with core.transaction() as one:
            one["k"] += 1
        assert core["k"] == 3


def test_metrics_count_a_commit_in_each_namespace() -> None:
    label = uuid.uuid4().hex
    config = {"STORAGE": "memory://", "LAYERS": [{"name": "metrics", "label": label}]}
    with hutch.connect(config) as store:
        with store.transaction() as tx:
            tx["a"]["k"] = tx["b"]["k"] = 1
        assert [snapshot()[label, name]["apply"].calls for name in ("a", "b")] == [1, 1]


def test_deadlines_inside_a_transaction(monkeypatch: pytest.MonkeyPatch) -> None:
    now_ms = [1_000_000]
    monkeypatch.setattr(deadlines, "now_ms", lambda: now_ms[0])
    with hutch.connect("memory://") as store:
        with store.transaction() as tx:
            tx["a"].set("brief", 1, ttl_s=10)
            tx["a"]["lasting"] = 2
            assert tx["a"].touch("lasting", 20)
            assert not tx["a"].touch("missing", 20)
        assert (store["a"].ttl_s("brief"), store["a"].ttl_s("lasting")) == (10, 20)
        # A key that was read and expires before the commit is a conflict.
        conflict = pytest.raises(hutch.ConflictError, match="'brief' of namespace 'a' has expired")
        with conflict, store.transaction() as tx:
            assert tx["a"]["brief"] == 1
            now_ms[0] += 10_000
            assert tx["a"]["brief"] == 1
        with store.transaction() as tx:
            assert "brief" not in tx["a"]
            assert list(tx["a"].scan()) == [("lasting", 2)]
            # The space of the expired key comes back meanwhile, which changes nothing that was read.
            store["a"].expire()
            tx["a"]["brief"] = 3
        assert (store["a"]["brief"], store["a"].ttl_s("brief")) == (3, None)


def test_transact_gives_up_with_the_key_after_its_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "PATIENCE_S", 0.05)
    with hutch.connect("memory://") as store:

        def conflict(tx: hutch.Transaction) -> None:
            store["a"]["k"] = tx["a"].get("k", 0) + 1

        with pytest.raises(hutch.ConflictError, match="key 'k' of namespace 'a' was changed"):
            store.transact(conflict)

        async def wrong(tx: hutch.Transaction) -> None:
            raise NotImplementedError

        functions: list[Any] = [wrong, "wrong"]
        with pytest.raises(TypeError, match="async function"):
            store.transact(functions[0])
        with pytest.raises(TypeError, match="takes a function"):
            store.transact(functions[1])


def test_a_namespace_closed_inside_its_transaction_is_a_clear_error() -> None:
    with hutch.connect("memory://") as store:
        core = store.open("core")
        closed = pytest.raises(hutch.StoreNotOpenError, match="'core' is closed")
        with closed, core.transaction() as tx:
            tx["k"] = 1
            core.close()
        with store.open("core") as again:
            assert len(again) == 0


@pytest.mark.parametrize("verb", ["scan", "scan_keys"])
@pytest.mark.parametrize("started", [0, 1, 2])
def test_a_scan_kept_until_the_transaction_has_ended_says_so(verb: str, started: int) -> None:
    """Whether it was started or not, and whether its next item is stored or the transaction's own, or it has none."""
    with hutch.connect("memory://") as store:
        store["a"].update({"stored 1": 1, "stored 2": 2})
        scans: list[Any] = []
        with store.transaction() as tx:
            tx["a"]["own 1"] = tx["a"]["own 2"] = 3
            for prefix in ("", "own", "stored"):
                scan = getattr(tx["a"], verb)(prefix)
                scans.append(scan)
                assert len(list(itertools.islice(scan, started))) == started
        for scan in scans:
            with pytest.raises(hutch.StoreNotOpenError, match="has ended"):
                next(scan)


@pytest.mark.parametrize("take", [copy.copy, copy.deepcopy, pickle.dumps])
def test_transactions_and_snapshots_are_neither_copied_nor_pickled(take: Any, tmp_path: Path) -> None:
    """A copy would commit the same changes a second time."""
    with hutch.connect(f"lmdb://{tmp_path}/data") as store:
        refused = pytest.raises(TypeError, match="cannot be pickled or copied")
        with refused:
            take(store.transaction())
        with store.transaction() as tx:
            tx["a"]["k"] = 1
            for one in (tx, tx["a"]):
                with refused:
                    take(one)
        with store.snapshot() as snap, refused:
            take(snap)


def test_an_engine_without_apply_has_no_transaction_of_one_namespace(tmp_path: Path) -> None:
    with hutch.connect(f"shelf://{tmp_path}") as store:
        core = store["core"]
        with pytest.raises(hutch.CapabilityError, match="has no transactions"):
            core.transaction()


@pytest.mark.parametrize(
    ("name", "advice"),
    [("commit", "leaving the `with` block commits"), ("rollback", "raise an exception"), ("open", r"use `tx\[name\]`")],
)
def test_a_name_that_a_transaction_lacks_says_what_to_write(name: str, advice: str) -> None:
    with (
        hutch.connect("memory://") as store,
        store.transaction() as tx,
        pytest.raises(AttributeError, match=advice),
    ):
        getattr(tx, name)


def test_the_advice_for_a_name_that_a_namespace_in_a_transaction_lacks_can_be_followed() -> None:
    with hutch.connect("memory://") as store:
        store["a"].update(x=1, y=2)
        with store.transaction() as tx:
            for name in ("update", "setdefault", "pop", "modify", "increment", "items", "keys", "values", "clear"):
                with pytest.raises(AttributeError, match=r"; (use|read) "):
                    getattr(tx["a"], name)
            if "z" not in tx["a"]:
                tx["a"]["z"] = 3
            for key in list(tx["a"].scan_keys()):
                del tx["a"][key]
        assert len(store["a"]) == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("engine", ["lmdb", "sqlite"])
def test_a_process_that_is_forked_inside_a_block_commits_nothing(engine: str, tmp_path: Path) -> None:
    url = {"lmdb": f"lmdb://{tmp_path}/data", "sqlite": f"sqlite://{tmp_path}/kv.db"}[engine]
    program = (
        "import os, sys, hutch\n"
        "with hutch.connect(sys.argv[1]) as store:\n"
        "    child = None\n"
        "    try:\n"
        "        with store.transaction() as tx:\n"
        "            child = os.fork()\n"
        "            tx['a']['child' if child == 0 else 'parent'] = 1\n"
        "    except hutch.StoreAlreadyOpenError as error:\n"
        "        os._exit(7 if child == 0 and 'forked' in str(error) else 8)\n"
        "    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7\n"
        "    assert dict(store['a']) == {'parent': 1}\n"
    )
    subprocess.run([sys.executable, "-c", program, url], check=True, timeout=60)
