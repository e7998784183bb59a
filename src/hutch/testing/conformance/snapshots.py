"""Snapshots: one unchanging view of all namespaces, where the engine declares `snapshot`."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

import hutch

from .kit import PATIENCE_S, Promises, needs
from .time_to_live import LONG_S, SHORT_S, Clock


class Snapshots(Promises):
    @pytest.fixture
    def snapshots(self, store: hutch.Store) -> hutch.Store:
        """The store; skips the test for an engine without `snapshot`."""
        needs(store, "snapshot")
        return store

    def test_a_snapshot_never_changes(self, snapshots: hutch.Store) -> None:
        """Every read of a snapshot answers as at its moment, whatever is set, removed, cleared or dropped since."""
        with snapshots.open("core") as core, snapshots.open("other") as other:
            core.update({"a": 1, "b": [2], "gone": 3})
            other["k"] = "v"
            with snapshots.snapshot() as snap:
                core["a"], core["new"] = 10, 11
                del core["gone"]
                other.clear()
                with snapshots.open("later") as later:
                    later["k"] = 1
                old = snap["core"]
                assert dict(old.items()) == {"a": 1, "b": [2], "gone": 3}
                assert (len(old), sorted(old), old["gone"], "new" in old, old.get("new")) == (
                    *(3, ["a", "b", "gone"]),
                    *(3, False, None),
                )
                assert list(old.scan(prefix="g")) == [("gone", 3)]
                assert old.get_many(["a", "new"]) == {"a": 1}
                assert (dict(snap["other"]), dict(snap["later"])) == ({"k": "v"}, {})
                assert snap.namespaces() == ["core", "other"]
            assert dict(core) == {"a": 10, "b": [2], "new": 11}

    def test_a_snapshot_is_of_one_moment_across_namespaces(self, snapshots: hutch.Store) -> None:
        """While a thread moves an amount between two namespaces, every snapshot holds the whole sum."""
        needs(snapshots, "atomic-store")
        with snapshots.open("left") as left, snapshots.open("right") as right:
            left["k"], right["k"] = 100, 0
        done = threading.Event()

        def move() -> None:
            while not done.is_set():
                with snapshots.transaction() as tx:
                    tx["left"]["k"] -= 1
                    tx["right"]["k"] += 1

        thread = threading.Thread(target=move, daemon=True)
        thread.start()
        try:
            for _ in range(50):
                with snapshots.snapshot() as snap:
                    assert snap["left"]["k"] + snap["right"]["k"] == 100
        finally:
            done.set()
            thread.join(PATIENCE_S)
        assert not thread.is_alive()

    def test_a_snapshot_refuses_every_write(self, snapshots: hutch.Store) -> None:
        """set, update, remove, pop, clear, modify and the rest raise CapabilityError; nothing changes."""
        with snapshots.open("core") as core:
            core["a"] = 1
            with snapshots.snapshot() as snap:
                old = snap["core"]
                writes: list[Callable[[], object]] = [
                    lambda: old.set("a", 2),
                    lambda: old.update({"a": 2}),
                    lambda: old.remove_many(["a"]),
                    lambda: old.pop("a"),
                    old.clear,
                    lambda: old.modify("a", lambda n: n + 1),
                    lambda: old.compare_and_set("a", 1, 2),
                    lambda: old.setdefault("b", 2),
                ]
                for write in writes:
                    with pytest.raises(hutch.CapabilityError, match="snapshot"):
                        write()
                assert dict(old) == {"a": 1}
            assert dict(core) == {"a": 1}

    def test_a_closed_snapshot_says_so(self, snapshots: hutch.Store) -> None:
        """Reads of a closed snapshot, and of its namespaces, raise StoreNotOpenError; closing twice does nothing."""
        with snapshots.open("core") as core:
            core["a"] = 1
        with snapshots.snapshot() as snap:
            old = snap["core"]
            assert old["a"] == 1
        snap.close()
        for read in (lambda: snap["core"], lambda: old["a"], lambda: len(old), snap.namespaces, snap.__enter__):
            with pytest.raises(hutch.StoreNotOpenError):
                read()

    def test_time_stands_still_in_a_snapshot(self, snapshots: hutch.Store, monkeypatch: pytest.MonkeyPatch) -> None:
        """What had expired at the moment of a snapshot is missing in it; what had not stays, however late it is."""
        needs(snapshots, "ttl")
        clock = Clock(snapshots, monkeypatch)
        with snapshots.open("core") as core:
            core.set("before", 0, ttl_s=SHORT_S)
            clock.expire()
            core.set("short", 1, ttl_s=LONG_S if clock.is_movable else 10 * SHORT_S)
            core["plain"] = 2
            with snapshots.snapshot() as snap:
                left_s = snap["core"].ttl_s("short")
                clock.move(2 * LONG_S if clock.is_movable else 20 * SHORT_S)
                core.expire()
                old = snap["core"]
                assert (dict(old), len(old), sorted(old)) == ({"plain": 2, "short": 1}, 2, ["plain", "short"])
                assert old.ttl_s("short") == left_s
                assert ("short" in old, "before" in old) == (True, False)
                assert dict(core) == {"plain": 2}
