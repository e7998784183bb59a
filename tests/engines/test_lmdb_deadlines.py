"""Test the lmdb engine's index of deadlines: what it costs, what keeps it right, what finds and repairs its drift."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import lmdb
import pytest

import hutch
from tests.clock import Clock, stop_clock

from .test_lmdb import connect, process, run_python

INDEX = b"\0\0\0\0x"
FORMAT = b"\0\0\0\0v"
NOW_MS = 1_700_000_000_000


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return stop_clock(monkeypatch, NOW_MS)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state"


def table(path: Path) -> dict[bytes, bytes]:
    with lmdb.open(str(path), readonly=True) as env, env.begin() as txn:
        return dict(txn.cursor())


def change(path: Path, change: Callable[[Any], object]) -> None:
    """Change a closed store behind hutch's back."""
    with lmdb.open(str(path)) as env, env.begin(write=True) as txn:
        change(txn)


def index(path: Path) -> list[tuple[int, int, str]]:
    """Return id, deadline and key of each entry."""
    return [
        (int.from_bytes(entry[5:9], "big"), int.from_bytes(entry[9:17], "big"), entry[17:].decode())
        for entry in table(path)
        if entry.startswith(INDEX)
    ]


def assert_index_is_right(path: Path) -> None:
    stored = table(path)
    frames = {
        (int.from_bytes(name[:4], "big"), int.from_bytes(frame[1:9], "big"), name[4:].decode())
        for name, frame in stored.items()
        if len(name) > 4 and name[:4] != bytes(4) and frame[:1] == b"T"
    }
    assert set(index(path)) == frames
    assert list(hutch.verify(f"lmdb://{path}")) == []


# --- the layout ---


def test_a_deadline_is_indexed_and_changes_the_format(path: Path, clock: Clock) -> None:
    with connect(path) as store, store.open("core") as core:
        core["plain"] = 1
        assert table_of(store)[FORMAT] == b"hutch 1"
        core.set("k", 1, ttl_s=60)
    stored = table(path)
    assert stored[FORMAT] == b"hutch 2"
    assert stored[b"\0\0\0\1"] == (1 << 63 | 2).to_bytes(8, "big")
    assert index(path) == [(1, NOW_MS + 60_000, "k")]
    assert stored[INDEX + b"\0\0\0\1" + (NOW_MS + 60_000).to_bytes(8, "big") + b"k"] == b""
    assert_index_is_right(path)


def table_of(store: hutch.Store) -> dict[bytes, bytes]:
    environment: Any = store._factory._environment
    return dict(environment.read(lambda txn: list(txn.cursor()), None))


# --- what it costs ---


class Counting:
    """A transaction that counts the operations of LMDB that go through it."""

    def __init__(self, inner: Any, counts: Counter[str]) -> None:
        self._inner, self._counts = inner, counts

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._inner, name)
        if name not in _OPERATIONS:
            return method

        def counted(*args: Any, **more: Any) -> Any:
            self._counts[name] += 1
            result = method(*args, **more)
            return Counting(result, self._counts) if name == "cursor" else result

        return counted


_OPERATIONS = frozenset(
    ("put", "get", "delete", "putmulti", "cursor", "set_range", "set_key", "next", "iternext", "stat")
)


def count_operations(store: hutch.Store) -> Counter[str]:
    """Count the operations in all transactions that begin from now on. The files are open already."""
    counts: Counter[str] = Counter()
    environment: Any = store._factory._environment
    begin, begin_write = environment.begin, environment.begin_write
    environment.begin = lambda *args: Counting(begin(*args), counts)
    environment.begin_write = lambda *args: Counting(begin_write(*args), counts)
    return counts


def operations(counts: Counter[str], call: Callable[[], object]) -> dict[str, int]:
    counts.clear()
    call()
    return dict(counts)


def test_a_namespace_without_deadlines_pays_no_operation(path: Path) -> None:
    with connect(path, cache_bytes=0) as store, store.open("core") as core:
        core["a"] = 1  # finds out the namespace's id
        counts = count_operations(store)
        assert operations(counts, lambda: core.set("k", 1)) == {"put": 2, "get": 1}
        for _ in range(2):
            assert operations(counts, lambda: core.set("k", 2)) in (
                {"put": 3},  # an append that failed, the look whether the key is new, the write
                {"put": 2},
            )
        assert operations(counts, lambda: core.set("b", 1)) == {"put": 2, "get": 1}
        assert operations(counts, lambda: core.update(b=1, k=2)) == {"stat": 2, "cursor": 1, "putmulti": 1}
        assert operations(counts, lambda: core.update(c=1)) == {
            "stat": 2,
            "cursor": 1,
            "putmulti": 1,
            "get": 1,
            "put": 1,
        }
        assert operations(counts, lambda: core.remove_many(["missing"])) == {"delete": 1}
        assert operations(counts, lambda: core.remove_many(["c"])) == {"delete": 1, "get": 1, "put": 1}
        assert operations(counts, lambda: core.compare_and_set("k", 2, 3)) == {"get": 3, "put": 1}
        assert operations(counts, lambda: core["k"]) == {"get": 1}
        assert operations(counts, lambda: core.get("missing")) == {"get": 1}
        assert operations(counts, lambda: "k" in core) == {"get": 1}
        assert operations(counts, lambda: len(core)) == {"get": 1}
        assert operations(counts, lambda: list(iter(core))) == {"cursor": 2, "set_range": 2, "iternext": 1}
        assert operations(counts, lambda: list(iter(core.items()))) == {"cursor": 2, "set_range": 2, "iternext": 1}
        assert operations(counts, core.expire) == {"get": 1}


# --- keeping it right ---


def test_every_write_keeps_the_index_right(path: Path, clock: Clock) -> None:
    """A model of random calls: what it holds, what `len` says and what the index says agree after each of them."""
    rng = Random(7)
    model: dict[str, tuple[int, int | None]] = {}

    def live() -> dict[str, int]:
        return {key: value for key, (value, until) in model.items() if until is None or until > clock.ms}

    def until(ttl_s: float | None) -> int | None:
        return None if ttl_s is None else clock.ms + round(ttl_s * 1000)

    with connect(path, durability="relaxed") as store, store.open("core") as core, store.open("other") as other:
        for turn in range(400):
            key, ttl_s = f"k{rng.randrange(12)}", rng.choice([None, None, 1.0, 5.0])
            keys = [f"k{rng.randrange(12)}" for _ in range(3)]
            match rng.randrange(9):
                case 0 | 1:
                    core.set(key, turn, ttl_s=ttl_s)
                    model[key] = turn, until(ttl_s)
                case 2:
                    core.set_many(dict.fromkeys(keys, turn), ttl_s=ttl_s)
                    model.update(dict.fromkeys(keys, (turn, until(ttl_s))))
                case 3:
                    assert core.remove_many(keys) == len(set(keys) & set(live()))
                    for one in keys:
                        model.pop(one, None)
                case 4:
                    assert core.pop(key, None) == live().get(key)
                    model.pop(key, None)
                case 5:
                    assert core.touch(key, ttl_s or float("inf")) == (key in live())
                    if key in live():
                        model[key] = model[key][0], until(ttl_s)
                case 6:
                    if core.compare_and_set(key, live().get(key, hutch.MISSING), turn, ttl_s=ttl_s):
                        model[key] = turn, until(ttl_s)
                case 7:
                    other.set(key, turn, ttl_s=ttl_s)
                    clock.move(0.4)
                case 8 if turn % 50 == 0:
                    core.clear()
                    model.clear()
            assert (len(core), sorted(core), dict(core.items())) == (len(live()), sorted(live()), live())
            assert [one in core for one in keys] == [one in live() for one in keys]
    assert_index_is_right(path)
    with connect(path) as store, store.open("core") as core:
        clock.move(10)
        core.expire()
        assert len(core) == len(live())
    assert [entry for entry in index(path) if entry[0] == 1] == []


def test_each_write_takes_at_most_two_expired_keys(path: Path, clock: Clock) -> None:
    writes: list[Callable[[hutch.Namespace, int], object]] = [
        lambda core, n: core.set(f"new {n}", 1),
        lambda core, n: core.set("same", n),
        lambda core, n: core.update({"same": n}),
        lambda core, n: core.set("long", n, ttl_s=1000),
        lambda core, n: core.remove_many(["same"]),
        lambda core, n: core.compare_and_set("same", core.get("same", hutch.MISSING), n),
    ]
    with connect(path) as store, store.open("core") as core:
        core["same"] = 0
        core.set_many(dict.fromkeys(map(str, range(20)), 1), ttl_s=1)
        clock.move(2)
        for left, write in zip(range(18, 0, -2), writes, strict=False):
            write(core, left)
            assert len(index_of(store, clock)) == left
        assert core.expire() == 8
        assert core.expire() == 0


def index_of(store: hutch.Store, clock: Clock) -> list[bytes]:
    """Return the entries whose deadline has come."""
    entries = [entry for entry in table_of(store) if entry.startswith(INDEX)]
    return [entry for entry in entries if int.from_bytes(entry[9:17], "big") <= clock.ms]


def test_more_expired_keys_than_a_page_remembers_are_not_listed(path: Path, clock: Clock) -> None:
    with connect(path, durability="relaxed") as store, store.open("core") as core:
        core.update(dict.fromkeys((f"{n:05} plain" for n in range(0, 3000, 3)), 0))
        core.set_many(dict.fromkeys((f"{n:05} gone" for n in range(3000)), 0), ttl_s=1)
        clock.move(2)
        assert list(core) == [f"{n:05} plain" for n in range(0, 3000, 3)]
        assert list(core.scan_keys(reverse=True, stop="00100")) == [f"{n:05} plain" for n in range(99, -1, -3)]
        assert len(core) == 1000
        assert store.namespaces() == ["core"]


def test_a_deadline_of_another_process_is_noticed_by_an_open_handle(path: Path) -> None:
    """The other process overwrites its keys too, so this handle may rely on nothing that it remembers."""
    program = """
import sys, hutch
with hutch.connect(f"lmdb://{sys.argv[1]}") as store, store.open("core") as core:
    core.set_many({"a": 2, "b": 2, "c": 2, "d": 2}, ttl_s=0.001)
    core.set("e", 2, ttl_s=1000)
"""
    with connect(path) as store, store.open("core") as core:
        core.update(a=1, b=1, c=1, d=1, e=1)
        core["e"] = 1
        assert "e" in core
        done = run_python(program, path)
        assert (done.returncode, done.stderr) == (0, "")
        assert ("a" in core, len(core), list(core)) == (False, 1, ["e"])
        core["e"] = 3
        core["a"] = 3
        assert dict(core) == {"a": 3, "e": 3}
    assert_index_is_right(path)


@pytest.mark.skipif(not hasattr(os, "kill"), reason="needs kill")
def test_a_killed_writer_leaves_the_index_right(path: Path) -> None:
    program = """
import sys, hutch
with hutch.connect(f"lmdb://{sys.argv[1]}?durability=relaxed") as store, store.open("core") as core:
    turn = 0
    while True:
        turn += 1
        core.set(f"k{turn % 7}", turn, ttl_s=0.001 if turn % 2 else 1000)
        core.set_many({f"k{n}": turn for n in range(5)}, ttl_s=1000)
        core[f"k{turn % 5}"] = turn
        core.pop(f"k{turn % 3}", None)
        print(turn, flush=True)
"""
    for turn in range(3):
        with process(program, path) as child:
            assert child.stdout is not None
            for _ in range(20 + turn):
                assert child.stdout.readline()
            child.kill()
        assert_index_is_right(path)


def test_a_reader_without_permission_sees_what_has_expired(path: Path, clock: Clock, monkeypatch: Any) -> None:
    with connect(path) as store, store.open("core") as core:
        core.set_many({"a": 1, "b": 2}, ttl_s=1)
        core.set("long", 3, ttl_s=1000)
        core["plain"] = 4
    (path / "lock.mdb").unlink()
    with connect(path, readonly=True) as store, store.open("core") as core:
        assert store.stats().get("reads") == "without a lock"
        assert (len(core), "a" in core, "long" in core) == (4, True, True)
        clock.move(2)
        assert (len(core), "a" in core, "long" in core, "plain" in core) == (2, False, True, True)
        assert (list(core), dict(core.items())) == (["long", "plain"], {"long": 3, "plain": 4})
        assert store.namespaces() == ["core"]
        clock.move(2000)
        assert dict(core) == {"plain": 4}


def test_a_backup_and_a_compaction_keep_deadlines(path: Path, clock: Clock, tmp_path: Path) -> None:
    with connect(path) as store:
        with store.open("core") as core:
            core.set_many({"a": 1, "b": 2}, ttl_s=10)
            core["plain"] = 3
        store.backup(tmp_path / "copy")
        store.compact()
    for place in (path, tmp_path / "copy"):
        assert_index_is_right(place)
        with connect(place) as store, store.open("core") as core:
            assert (core.ttl_s("a"), len(core)) == (10, 3)
    clock.move(20)
    with connect(path) as store, store.open("core") as core:
        assert dict(core) == {"plain": 3}
        assert core.expire() == 2


# --- drift ---


def kinds(path: Path, repair: bool) -> list[tuple[str, str | None, bool]]:
    found = hutch.verify(f"lmdb://{path}", repair=repair)
    return [(one.kind, one.namespace, one.repaired) for one in found]


def entry(key: bytes, deadline_ms: int, id_: int = 1) -> bytes:
    return INDEX + id_.to_bytes(4, "big") + deadline_ms.to_bytes(8, "big") + key


@pytest.mark.parametrize(
    ("damage", "namespace"),
    [
        (lambda txn: txn.delete(entry(b"a", NOW_MS + 10_000)), "core"),
        (lambda txn: txn.put(entry(b"plain", NOW_MS), b""), "core"),
        (lambda txn: txn.put(entry(b"a", NOW_MS - 5), b""), "core"),
        (lambda txn: txn.put(entry(b"ghost", NOW_MS - 5), b""), "core"),
        (lambda txn: txn.put(entry(b"k", NOW_MS, 77), b""), None),
        (lambda txn: txn.put(b"\0\0\0\1", (3).to_bytes(8, "big")), "core"),
        (lambda txn: txn.put(FORMAT, b"hutch 1"), None),
    ],
    ids=["missing", "of a plain value", "another deadline", "no such key", "no such id", "no mark", "old format"],
)
def test_drift_of_the_index_is_found_and_repaired(path: Path, clock: Clock, damage: Any, namespace: str | None) -> None:
    with connect(path) as store, store.open("core") as core:
        core.set_many({"a": 1, "b": 2}, ttl_s=10)
        core["plain"] = 3
    before = table(path)
    change(path, damage)
    assert kinds(path, False) == [("index", namespace, False)]
    assert kinds(path, True) == [("index", namespace, True)]
    assert kinds(path, False) == []
    assert table(path) == before


def test_a_stale_entry_never_removes_a_value_that_lives(path: Path, clock: Clock) -> None:
    with connect(path) as store, store.open("core") as core:
        core.set("a", 1, ttl_s=1000)
        core["plain"] = 2
    change(path, lambda txn: [txn.put(entry(key, NOW_MS - 1), b"") for key in (b"a", b"plain", b"ghost")])
    with connect(path) as store, store.open("core") as core:
        assert core.expire() == 0
        assert dict(core) == {"a": 1, "plain": 2}
        assert len(core) == 2
    assert_index_is_right(path)


def test_an_expired_value_that_is_damaged_stays_an_error(path: Path, clock: Clock) -> None:
    with connect(path) as store, store.open("core") as core:
        core.set("a", "value", ttl_s=1)
    stored = table(path)[b"\0\0\0\1a"]
    change(path, lambda txn: txn.put(b"\0\0\0\1a", stored[:-1] + bytes([stored[-1] ^ 1])))
    clock.move(2)
    with connect(path) as store, store.open("core") as core:
        core.expire()
        with pytest.raises(hutch.CorruptValueError, match="key 'a' in namespace 'core'"):
            core["a"]
        assert len(core) == 1


def test_a_deadline_is_noticed_after_a_call_that_changed_nothing(path: Path) -> None:
    """LMDB gives the id of a transaction without changes again, here to the other process."""
    program = """
import sys, hutch
with hutch.connect(f"lmdb://{sys.argv[1]}") as store, store.open("core") as core:
    core.set("k", 2, ttl_s=1000)
"""
    with connect(path) as store, store.open("core") as core:
        core["k"] = 1
        core["k"] = 1
        assert len(core) == 1
        assert core.remove_many(["missing"]) == 0
        done = run_python(program, path)
        assert (done.returncode, done.stderr) == (0, "")
        core["k"] = 3
    assert_index_is_right(path)


def test_transactions_and_increment_keep_the_index_right(path: Path, clock: Clock) -> None:
    with connect(path) as store, store.open("core") as core:
        core.set_many({"a": 1, "b": 2, "gone": 3, "n": 4}, ttl_s=10)
        core.set("gone", 3, ttl_s=1)
        clock.move(2)
        assert core.increment("n") == 5
        with store.transaction() as tx:
            assert sorted(tx["core"].scan_keys()) == ["a", "b", "n"]
            tx["core"]["a"] = 2
            del tx["core"]["b"]
            tx["core"].set("new", 1, ttl_s=5)
            tx["other"].set("new", 1, ttl_s=5)
            tx["plain"]["new"] = 1
        assert dict(core) == {"a": 2, "n": 5, "new": 1}
        assert (core.ttl_s("a"), core.ttl_s("n"), core.ttl_s("new")) == (None, 8, 5)
        assert core.expire() == 0  # the commit reclaimed it
    assert_index_is_right(path)
    assert [entry[0] for entry in index(path)] == [1, 1, 2]
