"""Verbs of many keys: get_many, set_many, remove_many, update and clear."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import hutch

from .kit import Promises, encoded, needs, together


class Batches(Promises):
    def test_get_many_gives_what_is_there_in_the_order_asked_for(self, ns: hutch.Namespace) -> None:
        """get_many returns the values of the keys that are present, in the order given, each once."""
        ns.update({f"k{n}": n for n in range(5)})
        values = ns.get_many(["k3", "missing", "k1", "k3", "k0"])
        assert list(values.items()) == [("k3", 3), ("k1", 1), ("k0", 0)]
        assert ns.get_many([]) == {}
        assert ns.get_many(key for key in ("k2",)) == {"k2": 2}

    def test_set_many_sets_all(self, ns: hutch.Namespace) -> None:
        """set_many creates and replaces keys; an empty batch does nothing."""
        ns["a"] = "old"
        ns.set_many({"a": "new", "b": [1]})
        ns.set_many({})
        assert dict(ns) == {"a": "new", "b": [1]}

    def test_remove_many_removes_what_is_there_and_counts_it(self, ns: hutch.Namespace) -> None:
        """remove_many removes the present keys and returns their number; a key named twice counts once."""
        ns.update({f"k{n}": n for n in range(5)})
        assert ns.remove_many(["k1", "missing", "k3", "k1"]) == 2
        assert ns.remove_many([]) == 0
        assert ns.remove_many(["missing"]) == 0
        assert dict(ns) == {"k0": 0, "k2": 2, "k4": 4}

    def test_large_batches_work(self, ns: hutch.Namespace) -> None:
        """Batches of 5,000 keys are set, read, scanned and removed completely."""
        items = {f"key {n:05}": n for n in range(5000)}
        ns.update(items)
        assert len(ns) == 5000
        assert ns.get_many(items) == items
        assert list(ns.scan()) == list(items.items())
        assert ns.remove_many([key for key, n in items.items() if n % 2]) == 2500
        assert sorted(ns) == [key for key, n in items.items() if not n % 2]

    def test_one_key_is_not_taken_for_a_list_of_its_characters(self, ns: hutch.Namespace) -> None:
        """get_many and remove_many of a str, which is one key, are a TypeError; nothing is removed."""
        ns.update({"a": 1, "b": 2, "ab": 3})
        for verb in (ns.get_many, ns.remove_many):
            with pytest.raises(hutch.KeyTypeError, match=r"write \[key\]"):
                verb("ab")
        assert len(ns) == 3

    @pytest.mark.parametrize("bad", ["", "k" * 1025, 7, "\ud800"])
    def test_a_bad_key_refuses_the_whole_batch(self, ns: hutch.Namespace, bad: object) -> None:
        """A batch with one bad key writes, removes and reads nothing."""
        ns["k"] = "old"
        batch: dict[Any, str] = {"k": "new", bad: "bad", "z": "new"}
        calls: list[Callable[[Any], object]] = [ns.update, ns.set_many, ns.remove_many, ns.get_many]
        for wrong in calls:
            with pytest.raises((hutch.KeyLimitError, hutch.KeyTypeError)):
                wrong(batch)
        assert dict(ns) == {"k": "old"}

    def test_a_bad_value_refuses_the_whole_batch(self, store: hutch.Store) -> None:
        """A value that cannot be stored is refused with its key, and with it the batch (engines that encode)."""
        encoded(store, "core").close()
        with store.open("core") as ns:
            ns["k"] = "old"
            with pytest.raises(hutch.ValueTypeError, match="'bad'"):
                ns.update({"k": "new", "bad": lambda: None, "z": "new"})
            with pytest.raises(hutch.ValueTypeError, match="'k'"):
                ns.set_many({"a": 1, "k": [lambda: None]})
            with pytest.raises(hutch.ValueTypeError, match="'k'"):
                ns["k"] = lambda: None
            with pytest.raises(hutch.ValueTypeError, match="'k'"):
                ns.modify("k", lambda _: lambda: None)
            assert dict(ns) == {"k": "old"}

    def test_a_batch_appears_at_once(self, store: hutch.Store) -> None:
        """Where atomic-batch is declared, a reader that saw one key of a batch sees all of it."""
        needs(store, "atomic-batch")
        keys = [f"k{n:02}" for n in range(20)]
        rounds = 60
        with store.open("core") as ns:
            ns.update(dict.fromkeys(keys, 0))

            def write() -> int:
                for number in range(1, rounds + 1):
                    ns.update(dict.fromkeys(keys, number))
                return 0

            def read() -> int:
                torn = 0
                for _ in range(100_000):
                    # Read one by one, no key may be older than the key read before it.
                    seen = [ns[keys[(turn * 7) % 20]] for turn in range(20)]
                    torn += seen != sorted(seen)
                    if seen[0] == rounds:
                        break
                return torn

            assert together(write, read, read) == [0, 0, 0]
            assert set(ns.values()) == {rounds}

    def test_a_batch_is_removed_at_once(self, store: hutch.Store) -> None:
        """Where atomic-batch is declared, clear and remove_many take all keys at once."""
        needs(store, "atomic-batch")
        keys = [f"k{n:02}" for n in range(20)]
        with store.open("core") as ns:
            done: list[bool] = []

            def write() -> int:
                try:
                    for number in range(60):
                        ns.update(dict.fromkeys(keys, number))
                        if number % 2:
                            ns.clear()
                        else:
                            assert ns.remove_many(keys) == 20
                finally:
                    done.append(True)
                return 0

            def count() -> int:
                torn = 0
                while not done:
                    torn += len(ns) not in (0, 20)
                return torn

            assert together(write, count) == [0, 0]
