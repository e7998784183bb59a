"""Test that `set` takes back what `get` prints, for any value of the default codec."""

from __future__ import annotations

import collections
import dataclasses
import ipaddress
import math
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hutch
from hutch.cli.literals import read_literal
from hutch.transfer import to_json
from tests.cli_calls import Result, a_place_of_its_own, fill, held, hutch_, url

__all__ = ["a_place_of_its_own", "url"]


@hutch.register_type(name="a name (of any kind)")
@dataclasses.dataclass
class OddlyNamed:
    x: Any


@hutch.register_type
@dataclasses.dataclass
class Named:
    x: Any


SCALARS: list[Any] = [
    *(None, True, False, 0, -1, 2**53, -(2**53), 2**63, 10**400, -0.0, 1e300, 5e-324, math.nan, math.inf, -math.inf),
    *("", 'a "quoted" \\ text\n\x1b\u202e', "\ud800", b"", b"\x00'\"\\\xff\n", "$set", "set(1)"),
    *((), (1,), (None,), [], [[]], ((),), {}, set(), {1}, frozenset(), frozenset({(1, 2), ()})),
    *(
        {"$set": 1},
        {"$": {}},
        {"a": {"$type": 1}},
        {1: "one", (2,): None},
        {math.inf: 1, None: 2},
        {"\ud800": 1, "a": 2},
    ),
    *({b"k": 1}, {"a": {"b": {"c": (1, {2})}}}),
    *(datetime(2024, 2, 29, 12, tzinfo=UTC), datetime(2024, 10, 27, 2, 30, fold=1, tzinfo=ZoneInfo("Europe/Berlin"))),
    *(datetime(2024, 1, 1), date(2024, 1, 1), time(1, 2, 3), time(1, tzinfo=timezone(timedelta(hours=1), "X"))),
    *(timedelta(-1, 0, 1), Decimal("1.50"), Decimal("NaN"), Fraction(1, 3), complex(-0.0, math.inf), range(0, 10, 3)),
    *(UUID(int=5), Path("/srv/x y"), PurePosixPath("a"), PureWindowsPath("c:\\x")),
    *(
        collections.Counter(a=2),
        collections.deque([1, (2,)], 3),
        collections.OrderedDict(a=1),
        ipaddress.ip_address("::1"),
    ),
    *(collections.defaultdict(list, a=[1]), OddlyNamed({1: 2}), Named([OddlyNamed(None)])),
]


@pytest.mark.parametrize("value", SCALARS, ids=lambda value: type(value).__name__)
def test_what_get_prints_set_takes_back(value: Any, url: str) -> None:
    fill(url, core={"k": value})
    printed = hutch_("-s", url, "get", "core", "k")
    assert printed.code == 0
    assert hutch_("-s", url, "set", "core", "again", "--", printed.out) == Result(0, "", "")
    assert hutch_("-s", url, "set", "core", "piped", "-", stdin=printed.out.encode()) == Result(0, "", "")
    items = held(url, "core")
    for name in ("again", "piped"):
        assert to_json(items[name]) == to_json(value)
        assert type(items[name]) is type(value)


_LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(),
    st.binary(),
    st.datetimes(),
    st.timedeltas(),
    st.decimals(allow_nan=False),
    st.fractions(),
    st.uuids(),
)
_KEYS = st.one_of(st.text(), st.integers(), st.none(), st.tuples(st.text()), st.binary())
_VALUES = st.recursive(
    _LEAVES,
    lambda inner: st.one_of(
        st.lists(inner), st.lists(inner).map(tuple), st.dictionaries(_KEYS, inner), st.sets(_KEYS), st.frozensets(_KEYS)
    ),
    max_leaves=20,
)


@pytest.fixture(scope="module")
def store() -> Any:
    with hutch.connect("memory://test_cli_values") as store:
        yield store


@settings(max_examples=60)
@given(_VALUES)
def test_what_get_prints_of_a_random_value_set_takes_back(store: hutch.Store, value: Any) -> None:
    with store.open("core") as core:
        core["k"] = value
    printed = hutch_("-s", "memory://test_cli_values", "get", "core", "k")
    assert printed.code == 0, printed.err
    assert to_json(read_literal(printed.out)) == to_json(value)


@pytest.mark.parametrize(
    "text",
    ["hunter2", "set(1", "set 1", "[1,]", "{1: }", "b'", "tuple(1,)", "nan(1)", "(1)", "{1 2}", "[" * 50_000, "1 2"],
)
def test_what_is_neither_json_nor_printed_by_get_is_refused(text: str, url: str) -> None:
    refused = hutch_("-s", url, "set", "core", "k", "-", stdin=text.encode())
    assert (refused.code, refused.out) == (2, "")
    assert "the value cannot be read" in refused.err
    assert held(url, "core") == {}


@pytest.mark.parametrize("text", ["a\n", "no end", "", "ä\x1b[1m"])
def test_a_text_in_a_pipe_is_exact_so_that_it_can_be_set_again(text: str, url: str) -> None:
    fill(url, core={"k": text})
    printed = hutch_("-s", url, "get", "core", "k", "--text").out
    assert printed == text
    assert hutch_("-s", url, "set", "core", "again", "--text", "-", stdin=printed.encode()).code == 0
    assert held(url, "core")["again"] == text


def test_keys_with_values(url: str) -> None:
    fill(url, core={"a\tb": {1}, "b": "two\nlines", "c": {"x": (1,)}})
    assert hutch_("-s", url, "keys", "core", "--values").out == 'a\\tb\tset(1)\nb\t"two\\nlines"\nc\t{"x": tuple(1)}\n'
    assert hutch_("-s", url, "keys", "core", "--values", "--prefix", "b", "--json").out == (
        '{"key":"b","value":"two\\nlines"}\n'
    )
    assert hutch_("-s", url, "keys", "core", "--values", "--limit", "1").out == "a\\tb\tset(1)\n"
    assert hutch_("-s", url, "keys", "nothing", "--values").code == 3
