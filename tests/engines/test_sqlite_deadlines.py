"""Deadlines in an SQLite file: what they cost a file without any, what processes learn, and what a check repairs."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

import hutch
from hutch import deadlines

DAY_S = 86_400.0

# Works on the namespace "cache" of the file that argv names.
SET_IN_ANOTHER_PROCESS = """
import sys, time, hutch
with hutch.connect("sqlite://" + sys.argv[1]) as store, store.open("cache") as cache:
    cache.set("long", 1, ttl_s=10_000)
    cache.set("gone", 1, ttl_s=0.05)
time.sleep(0.1)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "kv.db"


@pytest.fixture
def store(path: Path) -> Any:
    with hutch.connect(f"sqlite://{path}") as store:
        yield store


def tables(path: Path) -> set[str]:
    with closing(sqlite3.connect(path)) as connection:
        return {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE name NOT LIKE 'sqlite_%'")}


def database_of(path: Path) -> Any:
    """Return the connections to the file, which all stores of this process share."""
    with hutch.load_plugin("sqlite", {"path": path}) as factory, factory.open("plain") as storage:
        return storage._database


def indexed(path: Path) -> int:
    with closing(sqlite3.connect(path)) as connection:
        return int(connection.execute("SELECT count(*) FROM deadlines").fetchone()[0])


def later(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Move the clock forward."""
    real = deadlines.now_ms
    monkeypatch.setattr(deadlines, "now_ms", lambda: real() + round(seconds * 1000))


VERBS: dict[str, Callable[[Any, hutch.Namespace], object]] = {
    "set": lambda store, ns: ns.set("a", 2),
    "get": lambda store, ns: ns.get("a"),
    "in": lambda store, ns: "a" in ns,
    "not in": lambda store, ns: "missing" in ns,
    "len": lambda store, ns: len(ns),
    "keys": lambda store, ns: list(ns),
    "items": lambda store, ns: list(ns.items()),
    "update": lambda store, ns: ns.update({"a": 3, "b": 3}),
    "pop": lambda store, ns: ns.pop("b"),
    "remove_many": lambda store, ns: ns.remove_many(["c", "missing"]),
    "pop of a missing key": lambda store, ns: ns.pop("missing", None),
    "compare_and_set": lambda store, ns: ns.compare_and_set("a", 3, 4),
    "namespaces": lambda store, ns: list(store.namespaces()),
}
# What each verb ran before there were deadlines.
STATEMENTS = {"keys": 2, "items": 2, "update": 4, "remove_many": 4, "compare_and_set": 2, "pop": 2}


def test_a_file_without_deadlines_runs_no_more_statements(store: Any, path: Path) -> None:
    """Each verb runs one statement and its transaction's, and the file's schema does not change."""
    with store.open("plain") as ns:
        ns.update({"a": 1, "b": 1, "c": 1})
        list(ns)
        before = tables(path)
        database = database_of(path)
        ran: list[str] = []
        for connection in (*database.readers.idle, database.writer._connection):
            connection.set_trace_callback(lambda sql: None if sql.startswith("--") else ran.append(sql))
        counts = {}
        for name, run in VERBS.items():
            ran.clear()
            run(store, ns)
            # SQLite repeats a statement in the trace at each of its triggers.
            counts[name] = len([sql for sql, _ in groupby(ran)])
        assert counts == {name: STATEMENTS.get(name, 1) for name in VERBS}
        assert tables(path) == before == {"namespaces", "entries", "entry_added", "entry_removed"}


def test_a_commit_runs_one_statement_per_write(store: Any, path: Path) -> None:
    """The commit of a write to each of three namespaces is BEGIN, three statements and COMMIT."""
    names = ("checkpoints", "writes", "blobs")

    def write(tx: Any) -> None:
        for name in names:
            tx[name]["k"] = 1

    store.transact(write)
    ran: list[str] = []
    database_of(path).writer._connection.set_trace_callback(
        lambda sql: None if sql.startswith("--") else ran.append(sql.split()[0])
    )
    store.transact(write)
    assert ran == ["BEGIN", "INSERT", "INSERT", "INSERT", "COMMIT"]


def test_a_commit_after_the_first_deadline_of_another_process_keeps_its_index(store: Any, path: Path) -> None:
    """Also where this process has not yet learned that the namespace has deadlines."""
    store.transact(lambda tx: tx["cache"].set("k", 1))
    subprocess.run([sys.executable, "-c", SET_IN_ANOTHER_PROCESS, str(path)], check=True)
    store.transact(lambda tx: (tx["cache"].set("long", 2), tx["cache"].set("new", 3, ttl_s=DAY_S)))
    while store["cache"].get("gone") is not None:
        pass
    assert (dict(store["cache"]), len(store["cache"])) == ({"k": 1, "long": 2, "new": 3}, 3)
    assert list(store.verify()) == []


def test_the_schema_changes_with_the_first_deadline_only(store: Any, path: Path) -> None:
    """Neither a refused compare_and_set nor `expire` makes the index; the first value that expires does."""
    with store.open("cache") as ns:
        ns["k"] = 1
        assert not ns.compare_and_set("k", 2, 3, ttl_s=DAY_S)
        assert (ns.touch("missing", DAY_S), ns.expire()) == (False, 0)
        assert "deadlines" not in tables(path)
        assert ns.compare_and_set("k", 1, 2, ttl_s=DAY_S)
        assert "deadlines" in tables(path)


@pytest.mark.parametrize(
    ("use", "expected"),
    [
        (len, 1),
        (list, ["long"]),
        (lambda ns: ("gone" in ns, "long" in ns), (False, True)),
        (lambda ns: ns.pop("gone", "missing"), "missing"),
        (lambda ns: ns.remove_many(["gone", "long"]), 1),
        (lambda ns: dict(ns.items()), {"long": 1}),
        (lambda ns: ns.compare_and_set("gone", hutch.MISSING, 2), True),
        (lambda ns: ns.expire(), 1),
    ],
)
def test_an_open_handle_learns_of_the_first_deadline_of_another_process(
    store: Any, path: Path, use: Callable[[Any], object], expected: object
) -> None:
    """A handle that was used before a process gave the namespace its first deadline judges it all the same."""
    with store.open("cache") as ns:
        ns["k"] = 1
        assert ("k" in ns, len(ns), list(ns), ns.pop("k"), len(ns)) == (True, 1, ["k"], 1, 0)
        subprocess.run([sys.executable, "-c", SET_IN_ANOTHER_PROCESS, str(path)], check=True)
        while ns.get("gone") is not None:
            pass
        assert use(ns) == expected


def test_a_delete_learns_of_the_first_deadline_of_another_process(store: Any, path: Path) -> None:
    """`del` of an expired key is a KeyError, even as the first use after the deadline was written."""
    with store.open("cache") as ns:
        ns["k"] = 1
        subprocess.run([sys.executable, "-c", SET_IN_ANOTHER_PROCESS, str(path)], check=True)
        with pytest.raises(KeyError):
            del ns["gone"]
        del ns["long"]
        assert list(ns) == ["k"]


def test_each_write_takes_two_expired_keys(store: Any, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write of the namespace removes two expired keys, one of another namespace none, `expire` the rest."""
    with store.open("cache") as ns, store.open("plain") as plain:
        ns.set_many({f"k{n}": n for n in range(20)}, ttl_s=60)
        later(monkeypatch, 61)
        plain["a"] = 1
        assert indexed(path) == 20
        ns["a"] = 1
        ns.update(b=1)
        assert indexed(path) == 16
        del ns["a"]
        assert ns.compare_and_set("b", 1, 2)
        assert indexed(path) == 12
        assert (ns.expire(5), ns.expire(), len(ns)) == (5, 7, 1)


def test_an_old_hutch_keeps_the_index_right(store: Any, path: Path) -> None:
    """Statements that know nothing of the index, as an older hutch runs them, leave it exact."""
    with store.open("cache") as ns:
        ns.set_many({"a": 1, "b": 1, "c": 1}, ttl_s=DAY_S)
        ns["plain"] = 1
        with closing(sqlite3.connect(path)) as old:
            frame = old.execute("SELECT value FROM entries WHERE key = CAST('plain' AS BLOB)").fetchone()[0]
            old.execute("UPDATE entries SET value = ? WHERE key = CAST('a' AS BLOB)", (frame,))
            old.execute("DELETE FROM entries WHERE key = CAST('b' AS BLOB)")
            old.commit()
        assert (indexed(path), len(ns)) == (1, 3)
        assert [finding.key for finding in store.verify() if finding.kind != "value"] == []
        ns.clear()
        assert indexed(path) == 0


@pytest.mark.parametrize(
    "damage",
    [
        "DELETE FROM deadlines",
        "UPDATE deadlines SET expires = x'0000000000000001'",
        "INSERT INTO deadlines VALUES (1, x'61', x'0000000000000001'), (77, x'62', x'0000000000000001')",
        "UPDATE namespaces SET expiring = 0",
        "DROP TRIGGER deadline_changed",
        "DROP TABLE deadlines",
    ],
)
def test_a_check_finds_and_repairs_a_wrong_index(path: Path, damage: str) -> None:
    """Whatever the index lacks or has too much, `verify` says so, and its repair makes it what the frames say."""
    with hutch.connect(f"sqlite://{path}") as store, store.open("cache") as ns:
        ns.set_many({"k1": 1, "k2": 2}, ttl_s=DAY_S)
        ns["plain"] = 1
        assert list(store.verify()) == []
    with closing(sqlite3.connect(path)) as other:
        if damage == "DROP TABLE deadlines":
            for name in ("deadline_added", "deadline_changed", "deadline_removed"):
                other.execute(f"DROP TRIGGER {name}")
        other.execute(damage)
        other.commit()
    with hutch.connect(f"sqlite://{path}") as store, store.open("cache") as ns:
        findings = list(store.verify())
        assert ("index", False) in {(finding.kind, finding.repaired) for finding in findings}
        assert all(finding.repaired for finding in store.verify(repair=True))
        assert list(store.verify()) == []
        assert (len(ns), indexed(path), sorted(ns)) == (3, 2, ["k1", "k2", "plain"])


def test_a_backup_and_a_compacted_file_keep_deadlines(
    store: Any, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both have the index, so their count is exact after the deadline; a reader without permission counts too."""
    with store.open("cache") as ns:
        ns.set("gone", 1, ttl_s=60)
        ns["plain"] = 1
    store.backup(tmp_path / "copy.db")
    store.compact()
    later(monkeypatch, 61)
    for file in (path, tmp_path / "copy.db"):
        with hutch.connect(f"sqlite://{file}?readonly=true") as reader, reader.open("cache") as ns:
            assert (len(ns), list(ns), "gone" in ns, ns.get("gone")) == (1, ["plain"], False, None)
            assert list(reader.namespaces()) == ["cache"]


def test_a_transaction_writes_the_first_deadline(store: Any, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit over two namespaces makes the index in its own step, and a rolled back one makes none."""
    with store.transaction() as change:
        change["cache"].set("k", 1, ttl_s=60)
        change["plain"]["k"] = 1
    later(monkeypatch, 61)
    assert (list(store.namespaces()), indexed(path)) == (["plain"], 1)


def test_a_damaged_value_is_not_taken(store: Any, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A frame that is damaged stays after its deadline, an error to read, and keeps no other key from being taken."""
    with store.open("cache") as ns:
        ns.set_many({f"k{n}": n for n in range(5)}, ttl_s=60)
        with closing(sqlite3.connect(path)) as other:
            other.execute(
                "UPDATE entries SET value = CAST(value || x'00' AS BLOB) WHERE key IN (x'6b30', x'6b31', x'6b32')"
            )
            other.commit()
        later(monkeypatch, 61)
        assert ns.expire() == 2
        with pytest.raises(hutch.CorruptValueError):
            ns["k0"]
