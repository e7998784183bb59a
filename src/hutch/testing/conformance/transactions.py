"""Transactions: changes of several keys and namespaces that happen whole or not at all, and see no half of another."""

from __future__ import annotations

import threading
from typing import Any

import pytest

import hutch

from ..histories import final_state, find_anomalies, record, summary
from .kit import Promises, needs, together


class Transactions(Promises):
    def test_a_transaction_commits_all_its_changes(self, store: hutch.Store) -> None:
        """Where atomic-store is declared: what a block set and removed in several namespaces is there after it."""
        needs(store, "atomic-store")
        store["a"].update({"changed": 1, "removed": 2, "kept": 3})
        with store.transaction() as tx:
            tx["a"]["changed"] += 10
            del tx["a"]["removed"]
            tx["b"]["created"] = [tx["a"]["changed"]]
            tx["b"]["brief"] = 1
            del tx["b"]["brief"]
            # Its own writes are visible inside, and outside only after the block.
            assert (tx["a"].get("changed"), "removed" in tx["a"], tx["b"]["created"]) == (11, False, [11])
            assert (dict(store["a"]), len(store["b"])) == ({"changed": 1, "removed": 2, "kept": 3}, 0)
        assert dict(store["a"]) == {"changed": 11, "kept": 3}
        assert (dict(store["b"]), len(store["b"])) == ({"created": [11]}, 1)

    def test_a_block_that_raises_writes_nothing(self, store: hutch.Store) -> None:
        """Where atomic-store is declared: an exception leaves the block as itself, and nothing was written."""
        needs(store, "atomic-store")
        with pytest.raises(ZeroDivisionError), store.transaction() as tx:
            tx["a"]["k"] = 1
            tx["b"]["k"] = 1 // 0
        assert (len(store["a"]), len(store["b"])) == (0, 0)

    @pytest.mark.parametrize("read", ["present", "absent"])
    def test_a_changed_key_is_a_conflict(self, store: hutch.Store, read: str) -> None:
        """Where atomic-store is declared: a key that was read, or missed, and changed is a ConflictError that names it.

        Nothing is written.
        """
        needs(store, "atomic-store")
        store["a"]["present"] = 1
        with pytest.raises(hutch.ConflictError, match=f"'{read}' of namespace 'a'"), store.transaction() as tx:
            assert tx["a"].get(read) == (1 if read == "present" else None)
            tx["b"]["k"] = 1
            store["a"][read] = 2
        assert (store["a"][read], len(store["b"])) == (2, 0)

    def test_a_transaction_that_only_reads_is_checked(self, store: hutch.Store) -> None:
        """Where atomic-store is declared: reads that do not belong to one moment are a conflict, without any write."""
        needs(store, "atomic-store")
        store["a"].update({"x": 0, "y": 0})
        with pytest.raises(hutch.ConflictError, match="'x'"), store.transaction() as tx:
            assert tx["a"]["x"] == 0
            store["a"].update({"x": 1, "y": 1})
            assert tx["a"]["y"] == 1

    def test_a_key_that_was_only_written_is_no_conflict(self, store: hutch.Store) -> None:
        """Where atomic-store is declared: a key that the block did not read may change; the block's value wins."""
        needs(store, "atomic-store")
        with store.transaction() as tx:
            tx["a"]["k"] = "mine"
            store["a"]["k"] = "other"
        assert store["a"]["k"] == "mine"

    def test_two_reads_of_a_key_give_the_same_value(self, store: hutch.Store) -> None:
        """Where atomic-store is declared: a key keeps its value within a block; each read returns a new object."""
        needs(store, "atomic-store")
        store["a"]["k"] = [1]
        with pytest.raises(hutch.ConflictError), store.transaction() as tx:
            first = tx["a"]["k"]
            store["a"]["k"] = [2]
            first.append("changed")
            assert tx["a"]["k"] == [1]

    def test_a_bad_key_or_value_is_refused_at_its_write(self, store: hutch.Store) -> None:
        """Where atomic-store is declared: the write itself refuses a key, a name or a value; nothing is committed."""
        needs(store, "atomic-store")
        bad: list[tuple[str, Any, Any, type[Exception]]] = [
            ("a", "", 1, hutch.KeyLimitError),
            ("a", 7, 1, hutch.KeyTypeError),
            ("", "k", 1, hutch.NamespaceError),
            ("a", "k", lambda: None, hutch.ValueTypeError),
        ]
        for name, key, value, error in bad:
            with store.transaction() as tx:
                tx["b"]["k"] = 1
                with pytest.raises(error):
                    tx[name][key] = value
        assert (len(store["a"]), dict(store["b"])) == (0, {"k": 1})

    def test_a_transaction_sees_namespaces_that_are_open(self, store: hutch.Store) -> None:
        """Where atomic-store is declared: an exclusive handle and a transaction of its namespace see each other."""
        needs(store, "atomic-store")
        with store.open("core") as ns:
            ns["k"] = 1
            with store.transaction() as tx:
                tx["core"]["k"] += 1
            assert ns["k"] == 2

    def test_transact_counts_every_increment(self, store: hutch.Store) -> None:
        """Where atomic-store is declared: transact loses no update, however many threads change the same key."""
        needs(store, "atomic-store")

        def increment(tx: hutch.Transaction) -> int:
            count: int = tx["a"].get("count", 0) + 1
            tx["a"]["count"] = count
            tx["b"][f"{count:03}"] = threading.get_ident()
            return count

        counts = together(*[lambda: [store.transact(increment) for _ in range(25)] for _ in range(4)])
        assert sorted(number for some in counts for number in some) == list(range(1, 101))
        assert (store["a"]["count"], len(store["b"])) == (100, 100)

    def test_transact_runs_again_where_the_function_saw_a_mixture(self, store: hutch.Store) -> None:
        """Where atomic-store is declared: an error of the function, made of reads that no longer hold, is no error."""
        needs(store, "atomic-store")
        store["a"].update({"x": 0, "y": 0})
        calls: list[int] = []

        def read_both(tx: hutch.Transaction) -> int:
            x: int = tx["a"]["x"]
            if not calls:
                calls.append(x)
                store["a"].update({"x": 1, "y": 1})
            if x != tx["a"]["y"]:
                raise ValueError("a mixture")
            return x

        assert store.transact(read_both) == 1
        with pytest.raises(ZeroDivisionError):
            store.transact(lambda tx: tx["a"]["x"] // 0)

    def test_a_commit_appears_at_once(self, store: hutch.Store) -> None:
        """Where atomic-store is declared: a reader that saw one change of a commit sees all, in every namespace."""
        needs(store, "atomic-store")
        names = [f"n{n}" for n in range(5)]
        rounds = 60
        handles = [store[name] for name in names]
        for handle in handles:
            handle["k"] = 0

        def write() -> int:
            for number in range(1, rounds + 1):
                with store.transaction() as tx:
                    for name in names:
                        tx[name]["k"] = number
            return 0

        def read() -> int:
            torn = 0
            for _ in range(100_000):
                # One after the other: whatever was seen first, what is read after it is as new or newer.
                seen = [handles[(turn * 2) % 5]["k"] for turn in range(5)]
                torn += seen != sorted(seen)
                if seen[0] == rounds:
                    break
            return torn

        assert together(write, read, read) == [0, 0, 0]

    def test_concurrent_transactions_are_serializable(self, store: hutch.Store) -> None:
        """Where atomic-store and snapshot are declared: no history of concurrent transactions has an anomaly.

        Lost update, write skew, long fork, phantom, dirty and torn reads: G0, G1 and G2 of Adya.
        """
        needs(store, "atomic-store", "snapshot")
        workers = [lambda n=n: record(store, n, 40, 7) for n in range(4)]
        entries = [entry for some in together(*workers) for entry in some]
        summary(entries, len(workers))
        assert find_anomalies(entries, final_state(store)) == []

    @pytest.mark.parametrize("reverse", [False, True])
    def test_a_scan_shows_the_changes_of_its_transaction(self, store: hutch.Store, reverse: bool) -> None:
        """Where atomic-store and snapshot are declared: scan inside a block is in order, with the block's changes."""
        needs(store, "atomic-store", "snapshot")
        store["a"].update({f"k{n}": n for n in range(8)})
        with store.transaction() as tx:
            tx["a"]["k3"] = "changed"
            del tx["a"]["k4"]
            for key in ("k", "k35", "k9", "z"):
                tx["a"][key] = "added"
            expected = {"k35": "added", "k3": "changed", "k2": 2, "k5": 5}
            items = list(tx["a"].scan(prefix="k", start="k2", stop="k6", reverse=reverse))
            assert items == sorted(expected.items(), reverse=reverse)
            keys = list(tx["a"].scan_keys(reverse=reverse))
            assert keys == sorted(["k", "k0", "k1", "k2", "k3", "k35", "k5", "k6", "k7", "k9", "z"], reverse=reverse)

    @pytest.mark.parametrize("change", ["adds", "removes", "changes"])
    def test_a_phantom_is_a_conflict(self, store: hutch.Store, change: str) -> None:
        """Where atomic-store and snapshot are declared: what was scanned may not gain, lose or change a key."""
        needs(store, "atomic-store", "snapshot")
        store["a"].update({"p1": 1, "p2": 2, "q": 3})
        with pytest.raises(hutch.ConflictError, match="namespace 'a'"), store.transaction() as tx:
            tx["b"]["sum"] = sum(value for _, value in tx["a"].scan(prefix="p"))
            if change == "adds":
                store["a"]["p3"] = 3
            elif change == "removes":
                del store["a"]["p1"]
            else:
                store["a"]["p1"] = 7
        assert len(store["b"]) == 0

    @pytest.mark.parametrize("reverse", [False, True])
    def test_a_scan_covers_only_what_it_has_read(self, store: hutch.Store, reverse: bool) -> None:
        """Where atomic-store and snapshot are declared: keys outside a scan, or after its early end, may change."""
        needs(store, "atomic-store", "snapshot")
        store["a"].update({f"p{n}": n for n in range(4)})
        with store.transaction() as tx:
            assert next(tx["a"].scan(prefix="p", reverse=reverse)) == (("p3", 3) if reverse else ("p0", 0))
            store["a"].update({"q": 1, "p1": 7, "p11": 7})
            tx["b"]["k"] = 1
        assert store["b"]["k"] == 1
        with pytest.raises(hutch.ConflictError), store.transaction() as tx:
            assert next(tx["a"].scan(prefix="p", reverse=reverse))
            store["a"]["p30" if reverse else "p"] = 7

    def test_misuse_is_a_clear_error(self, store: hutch.Store) -> None:
        """Where atomic-store is declared: nested, ended, shared or unbegun transactions say what is wrong."""
        needs(store, "atomic-store")
        with store.transaction() as tx:
            tx["a"]["k"] = 1
            with pytest.raises(hutch.StoreAlreadyOpenError, match="inside another"), store.transaction():
                pass
            errors: list[Exception] = []

            def share() -> None:
                with pytest.raises(hutch.StoreAlreadyOpenError, match="belongs to the thread") as raised:
                    tx["a"].get("k")
                errors.append(raised.value)

            together(share)
            assert len(errors) == 1
        for name in ("a", "b"):
            with pytest.raises(hutch.StoreNotOpenError, match="has ended"):
                tx[name].get("k")
        with pytest.raises(hutch.StoreAlreadyOpenError, match="used before"), tx:
            pass
        with pytest.raises(hutch.StoreNotOpenError, match="has not begun"):
            store.transaction()["a"]
        with pytest.raises(hutch.StoreNotOpenError, match="closed"), store.transaction() as tx:
            tx["a"]["k"] = 2
            store.close()

    def test_without_the_capability_nothing_begins(self, store: hutch.Store) -> None:
        """Where atomic-store is not declared: transaction and transact are CapabilityErrors, before anything runs."""
        if "atomic-store" in store.capabilities:
            pytest.skip(f"the {store.name} engine declares atomic-store")
        calls: list[object] = []
        with pytest.raises(hutch.CapabilityError, match="atomic-store"):
            store.transaction()
        with pytest.raises(hutch.CapabilityError, match="atomic-store"):
            store.transact(calls.append)
        assert calls == []
