"""Several processes on one storage, if the engine is `shared`; forked processes on every engine."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

import pytest

import hutch

from .child import Child
from .kit import PATIENCE_S, Promises, listing, needs


def together_in(children: list[Child]) -> None:
    """Wait until each child has begun, so that their next jobs run concurrently."""
    for child in children:
        child.start("get_all", "core")
    for child in children:
        child.result()


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


class Processes(Promises):
    def test_processes_see_each_others_writes_at_once(self, config: Any, store: hutch.Store) -> None:
        """Where shared: what one process set, replaced or removed, every other sees as soon as the call returned."""
        needs(store, "shared")
        with store.open("core") as ns, Child(config) as child:
            ns["mine"] = [1]
            assert child.call("get_all", "core") == {"mine": [1]}
            child.call("update", "core", {"theirs": {"n": 2}, "mine": "replaced"})
            assert (ns["theirs"], ns["mine"], len(ns), sorted(ns)) == ({"n": 2}, "replaced", 2, ["mine", "theirs"])
            assert child.call("remove", "core", ["mine", "missing"]) == 1
            assert dict(ns) == {"theirs": {"n": 2}}
            assert "mine" not in ns
            ns.clear()
            assert child.call("get_all", "core") == {}

    def test_processes_see_each_others_namespaces(self, config: Any, store: hutch.Store) -> None:
        """Where shared: a namespace that another process made is listed; drop empties it under an open handle."""
        needs(store, "shared")
        with Child(config) as child, store.open("core") as ns:
            ns["k"] = 1
            child.call("update", "made: elsewhere", {"k": 2})
            child.call("drop", "core")
            assert (dict(ns), len(ns)) == ({}, 0)
            ns["again"] = 3
            assert child.call("get_all", "core") == {"again": 3}
            with store.open("made: elsewhere") as made:
                assert dict(made) == {"k": 2}
            assert listing(store) == child.call("namespaces") == ["core", "made: elsewhere"]

    def test_modify_by_many_processes_loses_nothing(self, config: Any, store: hutch.Store) -> None:
        """Where shared: a counter raised by modify from three processes at once is exact."""
        needs(store, "shared")
        with ExitStack() as stack:
            children = [stack.enter_context(Child(config)) for _ in range(3)]
            together_in(children)
            for child in children:
                # For a fixed time, because a fast engine would finish a fixed number before the next process begins.
                child.start("count", "core", 0.4)
            raised = sum(child.result() for child in children)
        with store.open("core") as ns:
            assert ns["n"] == raised

    def test_one_process_wins_a_race(self, config: Any, store: hutch.Store) -> None:
        """Where shared: of processes that compare_and_set, pop or setdefault one key, exactly one succeeds."""
        needs(store, "shared")
        rounds = 100
        with store.open("core") as ns:
            ns.update({f"token {number}": True for number in range(rounds)})
        with ExitStack() as stack:
            children = [stack.enter_context(Child(config)) for _ in range(3)]
            together_in(children)
            start = time.time() + 0.05
            for me, child in enumerate(children):
                child.start("race", "core", rounds, me, start)
            won = [number for child in children for number in child.result()]
        assert sorted(won) == list(range(3 * rounds))

    def test_mutable_reports_another_processes_change(self, config: Any, store: hutch.Store) -> None:
        """Where shared: if another process changes the key within mutable: ConflictError, and its change stays."""
        needs(store, "shared")
        with store.open("core") as ns, Child(config) as child:
            ns["k"] = [1]
            with pytest.raises(hutch.ConflictError), ns.mutable("k") as value:
                value.append(2)
                child.call("update", "core", {"k": ["theirs"]})
            assert ns["k"] == ["theirs"]
            with ns.mutable("k") as value:
                value.append("mine")
                child.call("update", "core", {"other": 1})
            assert ns["k"] == ["theirs", "mine"]

    def test_a_batch_of_another_process_appears_at_once(self, config: Any, store: hutch.Store) -> None:
        """Where shared and atomic-batch: a process that reads one key of another's batch reads the whole batch."""
        needs(store, "shared", "atomic-batch")
        keys = [f"k{n:02}" for n in range(20)]
        with store.open("core") as ns, Child(config) as child:
            ns.update(dict.fromkeys(keys, 0))
            child.start("write_batches", "core", keys, 200)
            seen = [0]
            deadline = time.monotonic() + PATIENCE_S
            while seen[0] < 200:
                assert time.monotonic() < deadline, "no batch of the other process was seen"
                seen = [ns[keys[(turn * 7) % 20]] for turn in range(20)]
                assert seen == sorted(seen), "a key of a batch was seen before the rest of it"
            child.result()

    def test_iterating_survives_another_processes_changes(self, config: Any, store: hutch.Store) -> None:
        """Where shared: an iteration goes on while another process sets and removes; every untouched key appears."""
        needs(store, "shared")
        keys = [f"k{n:04}" for n in range(2200)]
        with store.open("core") as ns, Child(config) as child:
            ns.update(dict.fromkeys(keys, 1))
            ways: list[Callable[[], Iterable[str]]] = [ns.keys, lambda: (key for key, _ in ns.items()), ns.scan_keys]
            for number, way in enumerate(ways):
                gone = keys[number * 100 + 50 : number * 100 + 90]
                new = [f"k{n:04}+{number}" for n in range(0, 2200, 40)]
                before = set(ns) - set(gone)
                steps = iter(way())
                seen = [next(steps) for _ in range(10)]
                child.call("remove", "core", gone)
                child.call("update", "core", dict.fromkeys(new, 2))
                seen += list(steps)
                assert len(seen) == len(set(seen))
                assert before <= set(seen)

    def test_a_storage_grown_by_another_process_goes_on(self, config: Any, store: hutch.Store) -> None:
        """Where shared: 24 MiB stored by one process can be read by another, in both directions."""
        needs(store, "shared")
        with store.open("core") as ns, Child(config) as child:
            ns["k"] = 1
            child.call("grow", "core", "theirs", 12, 2 << 20)
            assert len(ns) == 13
            assert all(ns[f"theirs{n}"].startswith(b"theirs") for n in range(12))
            for number in range(12):
                ns[f"mine{number}"] = b"mine" * (1 << 19)
            child.call("update", "core", {"k": 2})
            assert sorted(child.call("get_all", "core")) == sorted(ns)
            assert ns["k"] == 2

    @needs_fork
    def test_a_forked_child_can_use_an_inherited_handle(self, config: Any) -> None:
        """After fork an inherited handle works or raises a StoreError; the parent's data and handle are intact."""
        with Child(config) as child:
            outcome, items = child.call("fork", "core")
            assert outcome in ("worked", "StoreError"), f"{outcome}\n{child.errors()}"
            own_items = {key: items[key] for key in ("before", "shared", "after")}
            assert own_items == {"before": 2, "shared": "parent", "after": 2}
            assert set(items) - set(own_items) <= {"child", "by children"}
            assert child.call("get_all", "core") == items

    @needs_fork
    def test_fork_amid_writes_breaks_nothing(self, config: Any) -> None:
        """Forks while threads write hang neither parent nor child, and damage no data."""
        with Child(config, measured=False) as child:
            outcomes, made, there = child.call("fork_amid_writes", "core", 10)
            assert set(outcomes) <= {"worked", "StoreError"}, f"{outcomes}\n{child.errors()}"
            assert made == there > 0
            items = child.call("get_all", "core")
            assert items.get("by children", 0) <= 10
            assert items["shared"] == "parent"
