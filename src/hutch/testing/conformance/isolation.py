"""Isolation of namespaces, whatever their names are."""

from __future__ import annotations

from collections.abc import Callable

import hutch

from .kit import Promises, listing
from .limits import NAMESPACES

CLOSE = ["a", "A", "a:b", "a/b", "a:", "ab", "a.b", "a%3Ab", ":", "a ", "a*", "a:b:c", "b"]


def assert_isolated(store: hutch.Store, empty: Callable[[str], None]) -> None:
    """Fill the namespaces of `CLOSE`, empty one after the other, and assert each time that the rest is complete."""
    for name in CLOSE:
        with store.open(name) as ns:
            ns.update({"k": name, "l": 2})
    for number, emptied in enumerate(CLOSE, 1):
        empty(emptied)
        for name in CLOSE:
            with store.open(name) as ns:
                assert dict(ns) == ({} if name in CLOSE[:number] else {"k": name, "l": 2}), name


class Isolation(Promises):
    def test_a_key_belongs_to_its_namespace_alone(self, store: hutch.Store) -> None:
        """A key set in many namespaces has a value of its own in each; len and keys cover one namespace only."""
        with store.open("a") as a, store.open("a:b") as ab, store.open("A") as upper:
            a["k"], ab["k"], upper["k"] = 1, 2, 3
            ab["b:k"] = a["b:k"] = "same name"
            assert (a["k"], ab["k"], upper["k"]) == (1, 2, 3)
            assert (len(a), len(ab), len(upper)) == (2, 2, 1)
            del ab["k"]
            assert (dict(a), dict(ab), dict(upper)) == ({"k": 1, "b:k": "same name"}, {"b:k": "same name"}, {"k": 3})

    def test_a_key_never_reaches_into_another_namespace(self, store: hutch.Store) -> None:
        """A key of one namespace, whatever its text, never appears in another."""
        with store.open("a") as a, store.open("a:b") as ab, store.open("b") as b:
            for key in ("b:k", ":b:k", "b\0k", "/b/k", "../b/k", "b"):
                a[key] = key
            assert (len(ab), list(b), len(a)) == (0, [], 6)
            assert list(ab.scan()) == list(b.items()) == []

    def test_clear_empties_one_namespace_alone(self, store: hutch.Store) -> None:
        """clear of each of many like-named namespaces leaves the others whole."""

        def clear(name: str) -> None:
            with store.open(name) as ns:
                ns.clear()

        assert_isolated(store, clear)

    def test_drop_removes_one_namespace_alone(self, store: hutch.Store) -> None:
        """drop of each of many like-named namespaces leaves the others whole."""
        assert_isolated(store, store.drop)

    def test_any_name_makes_a_namespace_of_its_own(self, store: hutch.Store) -> None:
        """Hostile, long, alike and reserved names all open at once, hold their own data, and keep it."""
        handles = [store.open(name) for name in NAMESPACES]
        try:
            for number, ns in enumerate(handles):
                ns["k"] = number
            assert [dict(ns) for ns in handles] == [{"k": number} for number in range(len(handles))]
        finally:
            for ns in handles:
                ns.close()
        for number, name in enumerate(NAMESPACES):
            with store.open(name) as ns:
                assert dict(ns) == {"k": number}, ascii(name)

    def test_namespaces_lists_exactly_those_that_hold_data(self, store: hutch.Store) -> None:
        """namespaces() returns the sorted names of exactly the namespaces that hold data, whatever their names."""
        assert listing(store) == []
        for name in NAMESPACES:
            with store.open(name) as ns:
                ns["k"] = 1
        with store.open("opened, never written") as ns:
            assert len(ns) == 0
        assert store.namespaces() == sorted(NAMESPACES)
        for name in NAMESPACES[:-1:2]:
            store.drop(name)
        for name in NAMESPACES[1:-1:2]:
            with store.open(name) as ns:
                ns.clear()
        assert store.namespaces() == [NAMESPACES[-1]]
        with store.open(NAMESPACES[-1]) as ns:
            del ns["k"]
        assert store.namespaces() == []

    def test_a_dropped_namespace_can_be_used_again(self, store: hutch.Store) -> None:
        """drop of a missing namespace does nothing; a dropped namespace opens empty and works."""
        store.drop("never there")
        for round_ in range(3):
            with store.open("core") as ns:
                assert dict(ns) == {}
                ns["k"] = round_
                assert dict(ns) == {"k": round_}
            store.drop("core")
            store.drop("core")
