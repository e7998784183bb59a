"""Read-modify-write: modify, mutable and compare_and_set."""

from __future__ import annotations

from typing import Any

import pytest

import hutch

from .kit import Promises


def append_one(value: list[int]) -> list[int]:
    """Append 1 to `value` in place, and return it."""
    value.append(1)
    return value


class Updates(Promises):
    def test_modify_replaces_and_returns_the_new_value(self, ns: hutch.Namespace) -> None:
        """modify stores and returns the function's result."""
        ns["n"] = 1
        assert ns.modify("n", lambda n: n + 1) == 2
        assert ns.modify("n", lambda n: [n]) == [2]
        assert ns["n"] == [2]

    def test_modify_starts_a_missing_key_from_a_copy_of_the_default(self, ns: hutch.Namespace) -> None:
        """modify of a missing key starts from a copy of the default; without a default it raises KeyError."""
        default: list[int] = []
        assert ns.modify("a", lambda v: [*v, 1], default=default) == [1]
        ns.modify("b", append_one, default=default)
        ns.modify("c", lambda v: v, default=None)
        assert (dict(ns), default) == ({"a": [1], "b": [1], "c": None}, [])
        with pytest.raises(KeyError):
            ns.modify("missing", lambda v: v)
        assert "missing" not in ns

    def test_modify_that_raises_leaves_the_value(self, ns: hutch.Namespace) -> None:
        """A function that raises leaves the value, even if it changed its argument; the error reaches the caller."""
        ns["k"] = [1]

        def fail(value: list[int]) -> None:
            value.append(2)
            raise LookupError("on purpose")

        with pytest.raises(LookupError, match="on purpose"):
            ns.modify("k", fail)
        with pytest.raises(LookupError, match="on purpose"):
            ns.modify("new", fail, default=[])
        assert dict(ns) == {"k": [1]}

    def test_modify_with_missing_as_result_removes(self, ns: hutch.Namespace) -> None:
        """A function that returns hutch.MISSING removes the key; with a default the key may be missing already."""
        ns["k"] = 1
        assert ns.modify("k", lambda _: hutch.MISSING) is hutch.MISSING
        assert ns.modify("k", lambda _: hutch.MISSING, default=0) is hutch.MISSING
        assert len(ns) == 0

    def test_modify_refuses_a_function_that_returns_none(self, ns: hutch.Namespace) -> None:
        """None from a function given a value is a TypeError that says how to store it; nothing is written."""
        ns.update({"k": [1], "none": None})
        for key in ("k", "new"):
            with pytest.raises(TypeError) as raised:
                ns.modify(key, lambda v: v.append(2), default=[])
            for word in (repr(key), "return", "hutch.MISSING", "allow_none=True"):
                assert word in str(raised.value)
        assert dict(ns) == {"k": [1], "none": None}
        assert ns.modify("none", lambda v: v) is None
        assert ns.modify("new", lambda v: v, default=None) is None
        assert ns.modify("k", lambda _: None, allow_none=True) is None
        assert dict(ns) == {"k": None, "none": None, "new": None}

    def test_modify_gives_the_function_a_fresh_value(self, ns: hutch.Namespace) -> None:
        """Changing the argument or the result of a modify function later changes nothing stored."""
        ns["k"] = [1]
        seen: list[Any] = []

        def append(value: list[int]) -> list[int]:
            seen.append(value)
            return [*value, 2]

        result = ns.modify("k", append)
        seen[0].append(3)
        result.append(4)
        assert ns["k"] == [1, 2]

    def test_mutable_writes_changes_back(self, ns: hutch.Namespace) -> None:
        """Changes that a mutable block makes inside the value are stored when the block ends."""
        ns["k"] = {"n": 1}
        with ns.mutable("k") as value:
            value["n"] += 1
            value["new"] = [1]
        assert ns["k"] == {"n": 2, "new": [1]}

    def test_mutable_starts_a_missing_key_from_a_copy_of_the_default(self, ns: hutch.Namespace) -> None:
        """mutable of a missing key starts from a copy of the default and creates the key."""
        default: dict[str, int] = {}
        for _ in range(2):
            with ns.mutable("k", default=default) as value:
                value["n"] = value.get("n", 0) + 1
        with ns.mutable("none", default=None) as value:
            assert value is None
        assert (dict(ns), default) == ({"k": {"n": 2}, "none": None}, {})

    def test_mutable_of_a_missing_key_needs_a_default(self, ns: hutch.Namespace) -> None:
        """mutable of a missing key without a default raises KeyError, as modify does, and leaves the key free."""
        with pytest.raises(KeyError) as raised, ns.mutable("missing"):
            pass
        assert raised.value.args == ("missing",)
        with ns.mutable("missing", default=[]) as value:
            value.append(1)
        assert dict(ns) == {"missing": [1]}

    def test_mutable_that_raises_writes_nothing(self, ns: hutch.Namespace) -> None:
        """A block that raises leaves the value as it was, and a missing key missing."""
        ns["k"] = [1]
        for key in ("k", "new"):
            with pytest.raises(LookupError), ns.mutable(key, default=[]) as value:
                value.append(2)
                raise LookupError
        assert dict(ns) == {"k": [1]}

    @pytest.mark.parametrize("what", ["set", "removed", "created", "cleared"])
    def test_mutable_reports_a_change_made_meanwhile(self, ns: hutch.Namespace, what: str) -> None:
        """If the key was set, removed or created within the block, ConflictError is raised and that change stays."""
        if what != "created":
            ns["k"] = [1]
        with pytest.raises(hutch.ConflictError), ns.mutable("k", default=[]) as value:
            value.append(2)
            if what == "removed":
                del ns["k"]
            elif what == "cleared":
                ns.clear()
            else:
                ns["k"] = ["other"]
        assert dict(ns) == ({"k": ["other"]} if what in ("set", "created") else {})

    def test_mutable_of_one_key_leaves_the_others_free(self, ns: hutch.Namespace) -> None:
        """Within mutable of one key, every other key can be read, set, modified and held by mutable too."""
        ns["a"], ns["b"] = [1], [2]
        with ns.mutable("a") as a:
            a.append(ns["b"])
            ns["c"] = 3
            ns.modify("c", lambda n: n + 1)
            with ns.mutable("b") as b:
                b.append(9)
        assert dict(ns) == {"a": [1, [2]], "b": [2, 9], "c": 4}

    def test_mutable_refuses_to_write_through_a_handle_closed_meanwhile(self, store: hutch.Store) -> None:
        """If the handle was closed within a mutable block, StoreNotOpenError is raised and nothing is written."""
        ns = store.open("core")
        ns["k"] = [1]
        with pytest.raises(hutch.StoreNotOpenError), ns.mutable("k") as value:
            value.append(2)
            ns.close()
        with store.open("core") as ns:
            assert ns["k"] == [1]

    def test_compare_and_set_sets_only_what_is_as_expected(self, ns: hutch.Namespace) -> None:
        """compare_and_set writes and returns True only if the value is the expected one."""
        ns["k"] = {"n": [1]}
        assert ns.compare_and_set("k", {"n": [2]}, "wrong") is False
        assert ns.compare_and_set("missing", {"n": [1]}, "wrong") is False
        assert dict(ns) == {"k": {"n": [1]}}
        assert ns.compare_and_set("k", {"n": [1]}, "new") is True
        assert dict(ns) == {"k": "new"}

    def test_compare_and_set_tells_types_apart(self, ns: hutch.Namespace) -> None:
        """1, True and 1.0 are not the same expected value; NaN is NaN."""
        ns["k"] = 1
        assert not ns.compare_and_set("k", True, "wrong")
        assert not ns.compare_and_set("k", 1.0, "wrong")
        assert ns.compare_and_set("k", 1, float("nan"))
        assert ns.compare_and_set("k", float("nan"), "right")
        assert ns["k"] == "right"

    def test_compare_and_set_creates_and_removes_with_missing(self, ns: hutch.Namespace) -> None:
        """hutch.MISSING as the expected value means that the key is absent; as the new value it removes the key."""
        assert ns.compare_and_set("k", hutch.MISSING, 1)
        assert not ns.compare_and_set("k", hutch.MISSING, 2)
        assert not ns.compare_and_set("k", 2, hutch.MISSING)
        assert ns["k"] == 1
        assert ns.compare_and_set("k", 1, hutch.MISSING)
        assert not ns.compare_and_set("k", None, 1)
        assert len(ns) == 0
