"""Many threads that use one handle."""

from __future__ import annotations

from contextlib import closing
from functools import partial
from typing import Any

import pytest

import hutch

from .child import Child
from .kit import Promises, stage2, together

THREADS = 8


def appended(item: object, value: list[object]) -> list[object]:
    """Return `value` with `item` at its end."""
    return [*value, item]


class Threads(Promises):
    def test_modify_by_many_threads_loses_nothing(self, ns: hutch.Namespace) -> None:
        """A counter raised by modify from 8 threads is exact."""

        def work() -> None:
            for _ in range(50):
                ns.modify("n", lambda n: n + 1, default=0)

        together(*[work] * THREADS)
        assert ns["n"] == THREADS * 50

    def test_modify_of_a_bare_storage_loses_nothing(self, store: hutch.Store) -> None:
        """The same at stage 2, without the handle's lock on the key."""
        with closing(stage2(store, "core")) as storage:
            if not isinstance(storage, hutch.StorageBase):
                pytest.skip(f"a storage of the {store.name} engine has no modify of its own")
            storage.set("n", 0)

            def work() -> None:
                for _ in range(25):
                    storage.modify("n", lambda n: n + 1)

            together(*[work] * THREADS)
            assert storage.get("n") == THREADS * 25

    def test_mutable_excludes_other_threads(self, ns: hutch.Namespace) -> None:
        """mutable from 8 threads, mixed with modify: threads wait for each other, no ConflictError, nothing lost."""

        def work(thread: int) -> None:
            for turn in range(20):
                if (turn + thread) % 4:
                    with ns.mutable("list", default=[]) as value:
                        value.append((thread, turn))
                else:
                    ns.modify("list", partial(appended, (thread, turn)), default=[])

        together(*[partial(work, thread) for thread in range(THREADS)])
        expected = [(thread, turn) for thread in range(THREADS) for turn in range(20)]
        assert sorted(map(tuple, ns["list"])) == expected

    def test_two_stores_of_one_process_do_not_lose_each_others_updates(self, config: Any) -> None:
        """modify and mutable through two stores on one config are as exact as through one."""
        with (
            hutch.connect(config) as one,
            hutch.connect(config) as other,
            one.open("core") as first,
            other.open("core") as second,
        ):

            def work(ns: hutch.Namespace) -> None:
                for _ in range(25):
                    ns.modify("n", lambda n: n + 1, default=0)
                    with ns.mutable("list", default=[]) as value:
                        value.append(1)

            together(*[partial(work, ns) for ns in (first, second) * 3])
            assert first["n"] == second["n"] == len(first["list"]) == 150

    def test_threads_with_keys_of_their_own_do_not_disturb_each_other(self, ns: hutch.Namespace) -> None:
        """8 threads set, read, remove, batch and list their own keys on one handle: no error, nothing lost."""

        def work(thread: int) -> None:
            mine = [f"{thread} {n}" for n in range(40)]
            for turn, key in enumerate(mine):
                ns[key] = [thread, turn]
                assert ns[key] == [thread, turn]
                if turn % 10 == 0:
                    ns.update({f"{key} {n}": n for n in range(5)})
                    assert ns.remove_many([f"{key} {n}" for n in range(5)]) == 5
                    assert {*mine[:turn:2], key} <= set(ns)
                if turn % 2:
                    del ns[key]
                    assert key not in ns
                len(ns)
            assert [key for key, _ in ns.scan(prefix=f"{thread} ")] == sorted(mine[::2])

        together(*[partial(work, thread) for thread in range(THREADS)])
        assert dict(ns) == {f"{thread} {n}": [thread, n] for thread in range(THREADS) for n in range(0, 40, 2)}

    def test_a_reader_sees_whole_values(self, ns: hutch.Namespace) -> None:
        """While one thread replaces a value, others read the old or the new value whole, and never find it missing."""
        values = [{"n": n, "text": str(n) * 5000} for n in range(4)]
        ns["k"] = values[0]
        done: list[bool] = []

        def write() -> None:
            try:
                for turn in range(200):
                    ns["k"] = values[turn % 4]
            finally:
                done.append(True)

        def read() -> None:
            while not done:
                assert ns["k"] in values
                assert [key for key, _ in ns.items()] == ["k"]
                assert len(ns) == 1

        together(write, read, read)

    def test_one_thread_wins_a_race(self, ns: hutch.Namespace) -> None:
        """Of 8 threads that pop, setdefault or compare_and_set one key, exactly one succeeds."""
        for turn in range(25):
            ns["popped"] = turn
            won = together(*[lambda: ns.pop("popped", None)] * THREADS)
            assert sorted(won, key=str) == [*([turn]), *[None] * (THREADS - 1)]
            got = together(*[partial(ns.setdefault, f"default {turn}", thread) for thread in range(THREADS)])
            assert set(got) == {ns[f"default {turn}"]}
            swapped = together(*[partial(ns.compare_and_set, "cas", hutch.MISSING, t) for t in range(THREADS)])
            assert swapped.count(True) == 1
            assert ns["cas"] == swapped.index(True)
            del ns["cas"]

    def test_popitem_gives_each_item_to_one_thread(self, ns: hutch.Namespace) -> None:
        """8 threads that empty a namespace with popitem get every item, each once."""
        ns.update({f"k{n}": n for n in range(100)})

        def work() -> list[tuple[str, Any]]:
            taken = []
            while True:
                try:
                    taken.append(ns.popitem())
                except KeyError:
                    return taken

        taken = [item for items in together(*[work] * THREADS) for item in items]
        assert sorted(taken) == sorted((f"k{n}", n) for n in range(100))
        assert len(ns) == 0

    def test_one_thread_opens(self, store: hutch.Store) -> None:
        """Of 8 threads that open one namespace at once, one gets the handle, the others StoreAlreadyOpenError."""

        def work() -> hutch.Namespace | None:
            try:
                return store.open("core")
            except hutch.StoreAlreadyOpenError:
                return None

        for turn in range(10):
            opened = [ns for ns in together(*[work] * THREADS) if ns is not None]
            assert len(opened) == 1
            opened[0][f"k{turn}"] = turn
            opened[0].close()
        with store.open("core") as ns:
            assert len(ns) == 10

    def test_closing_under_working_threads_gives_them_store_errors(self, config: Any) -> None:
        """A handle or store closed while threads use it gives them StoreErrors: no crash, no other error."""
        with Child(config) as child:
            assert child.call("close_under_use") == []
