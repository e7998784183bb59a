"""MutableMapping with the semantics of dict, including CPython's own tests of them."""

from __future__ import annotations

import importlib
import traceback
import unittest
from collections.abc import Callable, ItemsView, KeysView, MutableMapping, ValuesView
from itertools import count
from typing import Any

import pytest

import hutch

from .kit import Promises


class MappingProtocol(Promises):
    def test_cpythons_own_mapping_tests_pass(self, store: hutch.Store) -> None:
        """CPython's test.mapping_tests.BasicTestMappingProtocol passes."""
        try:
            shipped: Any = importlib.import_module("test.mapping_tests")
        except ImportError as error:
            pytest.skip(f"this Python ships without its own tests: {error}")
        opened: list[hutch.Namespace] = []
        numbers = count()

        class Basic(shipped.BasicTestMappingProtocol):  # type: ignore[misc]
            def _empty_mapping(self) -> hutch.Namespace:
                opened.append(store.open(f"mapping {next(numbers)}"))
                return opened[-1]

        result = unittest.TestResult()
        try:
            unittest.defaultTestLoader.loadTestsFromTestCase(Basic).run(result)
        finally:
            for ns in opened:
                ns.close()
        assert result.testsRun >= 14
        assert not result.skipped
        assert result.wasSuccessful(), "\n".join(f"{test}: {text}" for test, text in result.errors + result.failures)

    def test_it_is_a_mutable_mapping(self, ns: hutch.Namespace) -> None:
        """A handle is a MutableMapping, and its views are of the classes in collections.abc."""
        assert isinstance(ns, MutableMapping)
        assert isinstance(ns.keys(), KeysView)
        assert isinstance(ns.items(), ItemsView)
        assert isinstance(ns.values(), ValuesView)

    def test_item_access_is_that_of_a_dict(self, ns: hutch.Namespace) -> None:
        """[], in, del, get and len do what they do on a dict, with KeyError for a missing key."""
        ns["a"] = 1
        ns["a"] = 2
        ns["b"] = None
        assert (ns["a"], ns["b"], len(ns), bool(ns)) == (2, None, 2, True)
        assert "a" in ns
        assert "c" not in ns
        assert (ns.get("a"), ns.get("b", 9), ns.get("c"), ns.get("c", 9)) == (2, None, None, 9)
        del ns["a"]
        calls: list[Callable[[], Any]] = [lambda: ns["a"], lambda: ns.pop("a")]
        for missing in calls:
            with pytest.raises(KeyError) as raised:
                missing()
            assert (type(raised.value), raised.value.args) == (KeyError, ("a",))
        with pytest.raises(KeyError):
            del ns["a"]
        assert dict(ns) == {"b": None}

    def test_it_equals_a_dict_of_its_items(self, ns: hutch.Namespace) -> None:
        """A handle equals any mapping with the same items, and no other."""
        ns.update(a=1, b=[2])
        assert ns == {"a": 1, "b": [2]}
        assert ns != {"a": 1}
        assert ns != {"a": 1, "b": [3]}
        assert ns == ns

    def test_it_can_be_updated_by_an_operator_and_read_backwards(self, ns: hutch.Namespace) -> None:
        """|= stores items and returns the handle; | is a TypeError; reversed goes through keys, items and values."""
        same = ns
        ns |= {"b": 2, "a": 1}
        ns |= [("c", 3)]
        assert ns is same
        assert dict(ns) == {"a": 1, "b": 2, "c": 3}
        for wrong in ("ns | {'d': 4}", "{'d': 4} | ns"):
            with pytest.raises(TypeError, match=r"dict\(namespace\)"):
                eval(wrong, {"ns": ns})
        assert list(reversed(ns)) == list(reversed(ns.keys())) == list(ns)[::-1]
        if "ordered" in ns.capabilities:
            assert list(reversed(ns)) == ["c", "b", "a"]
        assert sorted([*reversed(ns.items())]) == [("a", 1), ("b", 2), ("c", 3)]
        assert sorted([*reversed(ns.values())]) == [1, 2, 3]

    def test_one_error_shows_one_traceback(self, ns: hutch.Namespace) -> None:
        """The error for a missing key, a bad key or a bad argument is shown alone, without one that led to it."""
        wrong: Any = ns
        calls: list[Callable[[], Any]] = [
            *(lambda: ns["missing"], lambda: ns.pop("missing"), lambda: ns.modify("missing", len), ns.popitem),
            *(lambda: wrong.__delitem__("missing"), lambda: ns.mutable("missing").__enter__(), lambda: wrong[7]),
            *(lambda: wrong[["unhashable"]], lambda: wrong[b"bytes"], lambda: ns["\ud800"], lambda: wrong.get(7)),
            *(lambda: wrong.get([]), lambda: 7 in wrong, lambda: [] in wrong, lambda: wrong.pop(7)),
            *(lambda: wrong.__setitem__(7, 1), lambda: wrong.__delitem__(7), lambda: wrong.update({7: 1})),
            *(lambda: wrong.get_many([7]), lambda: wrong.remove_many([[]]), lambda: wrong.setdefault(7)),
            *(lambda: wrong.pop(7), lambda: wrong.scan(prefix=1), lambda: wrong.scan_keys(stop=b"z")),
            lambda: wrong.modify("k", 5),
        ]
        for call in calls:
            with pytest.raises((KeyError, TypeError, hutch.KeyLimitError)) as raised:
                call()
            shown = "".join(traceback.format_exception(raised.value))
            assert "During handling of the above exception" not in shown, shown
        assert len(ns) == 0

    def test_views_are_live(self, ns: hutch.Namespace) -> None:
        """The views keys, items and values show the current data, not the data of when they were taken."""
        keys, items, values = ns.keys(), ns.items(), ns.values()
        assert (len(keys), list(items), list(values)) == (0, [], [])
        ns["a"] = 1
        assert (list(keys), list(items), list(values)) == (["a"], [("a", 1)], [1])
        assert "a" in keys
        assert ("a", 1) in items
        assert ("a", 2) not in items
        assert 1 in values
        assert keys & {"a", "z"} == {"a"}
        ns["a"] = 2
        assert list(items) == [("a", 2)]
        del ns["a"]
        assert (len(keys), len(items), len(values)) == (0, 0, 0)

    def test_pop_removes_and_returns(self, ns: hutch.Namespace) -> None:
        """pop returns the value once, then the default or KeyError."""
        ns["a"] = [1]
        assert ns.pop("a") == [1]
        assert ns.pop("a", "default") == "default"
        assert ns.pop("a", None) is None
        with pytest.raises(KeyError):
            ns.pop("a")
        assert len(ns) == 0

    def test_popitem_removes_and_returns_each_item_once(self, ns: hutch.Namespace) -> None:
        """popitem returns each item once, then raises KeyError."""
        expected = {f"k{n}": n for n in range(10)}
        ns.update(expected)
        assert dict(ns.popitem() for _ in range(10)) == expected
        with pytest.raises(KeyError):
            ns.popitem()

    def test_setdefault_sets_only_what_is_missing(self, ns: hutch.Namespace) -> None:
        """setdefault returns the stored value, None included, or sets and returns the default."""
        ns["none"] = None
        assert ns.setdefault("none", 1) is None
        assert ns.setdefault("a", [1]) == [1]
        assert ns.setdefault("a", [2]) == [1]
        assert ns.setdefault("b") is None
        assert dict(ns) == {"none": None, "a": [1], "b": None}

    def test_update_takes_what_dict_update_takes(self, ns: hutch.Namespace) -> None:
        """update takes a mapping, pairs, keywords, an iterator, and nothing; later items win."""
        ns.update({"a": 1, "b": 2})
        ns.update([("b", 3), ("c", 4), ("c", 5)])
        ns.update(iter([("d", 6)]), e=7)
        ns.update(ns.items(), a=8)
        ns.update(self="a keyword", other="too")
        ns.update()
        assert dict(ns) == {"a": 8, "b": 3, "c": 5, "d": 6, "e": 7, "self": "a keyword", "other": "too"}
        for wrong, error in ((42, TypeError), ([(1, 2, 3)], ValueError)):
            with pytest.raises(error):
                ns.update(wrong)
        assert len(ns) == 7

    def test_clear_empties_and_leaves_it_usable(self, ns: hutch.Namespace) -> None:
        """clear removes every key, works on an empty namespace too, and leaves the handle usable."""
        ns.clear()
        ns.update({f"k{n}": n for n in range(100)})
        ns.clear()
        assert (len(ns), list(ns), list(ns.items()), bool(ns)) == (0, [], [], False)
        assert "k1" not in ns
        ns["a"] = 1
        assert dict(ns) == {"a": 1}

    def test_what_the_mapping_gives_is_fresh(self, ns: hutch.Namespace) -> None:
        """Changing what get, items, values, scan, get_many or setdefault returned changes nothing stored."""
        ns["k"] = [1]
        given = [
            *(ns.get("k"), ns.setdefault("k", []), *ns.values(), *ns.get_many(["k"]).values()),
            *(value for _, value in [*ns.items(), *ns.scan()]),
        ]
        default: list[int] = [1]
        given.append(ns.setdefault("new", default))
        assert len(given) == 7
        for value in given:
            assert value == [1]
            value.append(2)
        assert dict(ns) == {"k": [1], "new": [1]}
