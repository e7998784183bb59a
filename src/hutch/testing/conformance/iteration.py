"""Iterations during changes: no error, no duplicate, and every untouched key."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import pytest

import hutch

from .kit import Promises, together

# More keys than engines read at once.
COUNT = 1300
WAYS: dict[str, Callable[[hutch.Namespace], Iterable[Any]]] = {
    "iter": lambda ns: ns,
    "keys": lambda ns: ns.keys(),
    "items": lambda ns: (key for key, _ in ns.items()),
    "values": lambda ns: ns.values(),
    "scan": lambda ns: (key for key, _ in ns.scan()),
    "scan_keys": lambda ns: ns.scan_keys(),
    "scan reverse": lambda ns: (key for key, _ in ns.scan(reverse=True)),
    "scan_keys reverse": lambda ns: ns.scan_keys(reverse=True),
}
every_way = pytest.mark.parametrize("way", WAYS)


def fill(ns: hutch.Namespace, count: int = COUNT) -> list[str]:
    """Set `count` keys, k0000 and so on, each to its own name; return them."""
    keys = [f"k{n:04}" for n in range(count)]
    ns.update({key: key for key in keys})
    return keys


class Iteration(Promises):
    @every_way
    def test_iterating_survives_changes(self, ns: hutch.Namespace, way: str) -> None:
        """Keys set and removed during an iteration: no error, no duplicate, and every untouched key appears."""
        keys = fill(ns)
        doomed = set(keys[5::97])
        touched = set(doomed)
        seen = []
        for number, key in enumerate(WAYS[way](ns)):
            seen.append(key)
            if number % 50 == 0:
                for new in (f"k{number:04}+", f"a{number}", f"z{number}"):
                    ns[new] = new
                    touched.add(new)
                for gone in list(doomed)[:3]:
                    doomed.discard(gone)
                    del ns[gone]
            if number % 111 == 0:
                ns[key] = key
        assert [key for key, times in Counter(seen).items() if times > 1] == []
        assert set(keys) - touched <= set(seen), "untouched keys did not appear"
        assert set(seen) <= set(keys) | touched

    @every_way
    def test_iterating_survives_the_removal_of_what_it_stands_on(self, ns: hutch.Namespace, way: str) -> None:
        """Each key can be removed as soon as it is yielded; the iteration still yields every key."""
        keys = fill(ns, 300)
        seen = []
        for key in WAYS[way](ns):
            seen.append(key)
            del ns[key]
        assert sorted(seen) == keys
        assert len(ns) == 0

    @pytest.mark.parametrize("way", ["iter", "keys", "items", "values"])
    @pytest.mark.parametrize("count", [3, 300])
    def test_a_loop_over_the_mapping_that_adds_keys_ends(self, ns: hutch.Namespace, way: str, count: int) -> None:
        """A loop over the handle or its views yields the keys of its start, though each step adds one further on."""
        keys = fill(ns, count)
        seen = []
        for number, key in enumerate(WAYS[way](ns)):
            assert number < count, "the loop yields keys that it added"
            seen.append(key)
            ns[f"x{key}"] = f"x{key}"
        assert sorted(seen) == keys
        assert len(ns) == 2 * count

    @pytest.mark.parametrize("way", ["items", "values"])
    def test_a_long_loop_over_items_that_adds_keys_ends(self, ns: hutch.Namespace, way: str) -> None:
        """A loop over more items than are read at once, which adds keys further on at each step, ends."""
        keys = fill(ns)
        seen: list[str] = []
        for key in WAYS[way](ns):
            assert len(seen) < 4 * COUNT, "the loop continues with keys that it added"
            seen.append(key)
            if len(seen) > COUNT - 50:  # the first items are read at once
                ns.update({f"x{len(seen)} {number}": f"x{len(seen)} {number}" for number in range(3)})
        assert set(keys) <= set(seen)
        assert len(set(seen)) == len(seen)

    @every_way
    def test_iterating_survives_clear(self, ns: hutch.Namespace, way: str) -> None:
        """clear during an iteration ends it, sooner or later, without an error."""
        keys = fill(ns)
        seen = []
        for number, key in enumerate(WAYS[way](ns)):
            seen.append(key)
            if number == 10:
                ns.clear()
        assert len(set(seen)) == len(seen)
        assert set(seen) <= set(keys)
        assert list(WAYS[way](ns)) == []

    @every_way
    def test_an_iteration_holds_nothing_between_steps(self, ns: hutch.Namespace, way: str) -> None:
        """In the middle of an iteration another thread can write, modify, clear; an abandoned iteration is freed."""
        # More than the mapping reads at its start.
        ns.update({f"k{number:04}": "x" * 8192 for number in range(60)})
        steps = iter(WAYS[way](ns))
        next(steps)
        abandoned = iter(WAYS[way](ns))
        next(abandoned)

        def write() -> None:
            ns["k0001"] = "k0001"
            ns.modify("counter", lambda n: n + 1, default=0)
            ns.update({"x": "x", "y": "y"})
            ns.clear()
            ns["last"] = "last"

        together(write, patience_s=10)  # hangs if a writer waits for an iteration that has stopped
        list(steps)
        assert dict(ns) == {"last": "last"}

    def test_iterations_do_not_disturb_each_other(self, ns: hutch.Namespace) -> None:
        """Two interleaved iterations, and two nested ones, each yield every key."""
        keys = fill(ns, 40)
        assert sorted(zip(sorted(ns), ns.scan_keys(), strict=True)) == [(key, key) for key in keys]
        pairs = {(a, b) for a in ns for b in ns.scan_keys()}
        assert len(pairs) == 40 * 40
