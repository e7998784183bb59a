"""Every type of the default codec comes back with equal value and identical type, or is refused by set."""

from __future__ import annotations

import math
import zoneinfo
from collections import namedtuple
from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import IntEnum
from fractions import Fraction
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any
from uuid import UUID

import pytest

import hutch

from .kit import Promises, encoded, identical

Point = namedtuple("Point", "x y")


class Colour(IntEnum):
    """A subclass of int."""

    RED = 1


_deep: list[Any] = []
for _ in range(150):
    _deep = [_deep]

#: Values that the codec must accept, by type.
VALUES: dict[str, list[Any]] = {
    "None": [None],
    "bool": [True, False],
    "int": [
        *(0, 1, -1, 127, 128, -128, 255, 256, 2**31, 2**53 + 1, 2**63 - 1, -(2**63), 2**63, 2**64 - 1, 2**64, -(2**70)),
        10**400,
    ],
    "float": [0.0, -0.0, 1.5, 1.0, 0.1, 5e-324, 1.7976931348623157e308, math.inf, -math.inf, math.nan],
    "str": ["", "a", "é", "🐇", "\0", "a\0b", "\ud800", "a\udfff", "\u2028", "x" * 70_000, "1", "null"],
    "bytes": [b"", b"\0", bytes(range(256)), b"\xff" * 70_000, b"text"],
    "list": [[], [1, "a", None], [[], [[]]], [1, 1.0, True], list(range(1000)), _deep],
    "tuple": [(), (1,), (1, "a", (2, [3])), ((),), ([],)],
    "dict": [
        *({}, {"a": 1}, {"z": 1, "a": 2, "m": 3}, {1: "a", "1": "b"}, {(1, 2): [3]}, {None: 0, b"k": 1, 1.5: 2}),
        {"": {"": {}}},
    ],
    "dict keys": [
        *({date(2020, 1, 1): 1}, {frozenset({1}): 1}, {UUID(int=5): 1}, {Decimal("1.5"): 1}, {True: 1}, {2**70: 1}),
        {-1: 2},
    ],
    "set": [set(), {1, 2}, {"a", 1, None, (1, 2)}, {frozenset({1})}],
    "frozenset": [frozenset(), frozenset({1, "a"}), frozenset({frozenset()})],
    "datetime": [
        *(datetime(2024, 2, 29, 12, 30, 15, 123456), datetime.min, datetime.max, datetime(2024, 10, 27, 2, 30, fold=1)),
        *(datetime(2024, 1, 1, tzinfo=UTC), datetime(2024, 1, 1, tzinfo=timezone(timedelta(hours=5, minutes=45)))),
        datetime(2024, 1, 1, tzinfo=timezone(timedelta(hours=-3), "local")),
        datetime(1900, 1, 1, tzinfo=timezone(timedelta(seconds=-17_762))),
    ],
    "date": [date(2024, 2, 29), date.min, date.max],
    "time": [time(), time(23, 59, 59, 999999), time(2, 30, fold=1), time(1, 2, tzinfo=UTC)],
    "timedelta": [
        timedelta(),
        timedelta(microseconds=-1),
        timedelta.max,
        timedelta.min,
        timedelta(days=400, seconds=3),
    ],
    "Decimal": [
        *(Decimal("0"), Decimal("-0"), Decimal("1.10"), Decimal("1E+400"), Decimal("Infinity"), Decimal("NaN")),
        Decimal("9" * 50),
    ],
    "Fraction": [Fraction(1, 3), Fraction(-7), Fraction(2**80, 3)],
    "complex": [1 + 2j, complex(0.0, -0.0), complex(math.nan, math.inf)],
    "UUID": [UUID(int=0), UUID(int=2**128 - 1)],
    "Path": [Path("a/b"), Path(), Path("/"), PurePosixPath("/a"), PureWindowsPath("C:\\a")],
    "range": [range(0), range(10), range(10, 0, -3), range(2**70, 2**70 + 5)],
    "nested": [{"plugins": {"enabled": {"Help"}, "at": [(datetime(2024, 1, 1), Decimal("1.0"))]}, 3: (b"", {None})}],
}

#: Values that the codec must refuse: subclasses of its types, and types that it does not know.
FOREIGN: list[Any] = [
    *(Colour.RED, Point(1, 2), type("Text", (str,), {})("a"), type("N", (int,), {})(1), bytearray(b"a")),
    *(memoryview(b"a"), object(), int, len, lambda: None, iter(()), {"deep": [bytearray(b"x")]}, (bytearray(),)),
]


def came_back(value: Any, got: Any) -> bool:
    """Return whether `got` is identical to `value`; a NaN of Decimal, which equals nothing, counts as identical."""
    if isinstance(value, Decimal) and value.is_nan():
        return type(got) is Decimal and str(got) == str(value)
    return identical(value, got)


class Fidelity(Promises):
    @pytest.fixture
    def encoding(self, store: hutch.Store) -> Iterator[hutch.Namespace]:
        """Yield a namespace of an engine that encodes with the default codec; skip the test for others."""
        encoded(store, "core").close()
        if store.config.codec_for("core").name != "msgpack":
            pytest.skip("the config chooses another codec than the default")
        with store.open("core") as ns:
            yield ns

    @pytest.mark.parametrize("kind", VALUES)
    def test_every_type_of_the_codec_comes_back(self, encoding: hutch.Namespace, kind: str) -> None:
        """Each value of each type of the default codec comes back equal and of identical type (engines that encode)."""
        for number, value in enumerate(VALUES[kind]):
            encoding[f"k{number}"] = value
        got = dict(encoding.items())
        for number, value in enumerate(VALUES[kind]):
            assert came_back(value, encoding[f"k{number}"]), (
                f"{value!r:.80} came back as {encoding[f'k{number}']!r:.80}"
            )
            assert came_back(value, got[f"k{number}"])

    def test_named_time_zones_come_back(self, encoding: hutch.Namespace) -> None:
        """A datetime in a named zone comes back in that zone (engines that encode)."""
        try:
            zone = zoneinfo.ZoneInfo("Europe/Berlin")
        except zoneinfo.ZoneInfoNotFoundError:
            pytest.skip("this machine has no time zone data; install tzdata")
        value = datetime(2024, 10, 27, 2, 30, fold=1, tzinfo=zone)
        encoding["k"] = value
        assert identical(encoding["k"], value)
        assert encoding["k"].tzinfo is zone
        assert encoding["k"].utcoffset() == value.utcoffset()

    def test_what_the_codec_cannot_give_back_is_refused(self, encoding: hutch.Namespace) -> None:
        """Instances of subclasses, bytearray and unknown types are a ValueTypeError at set (engines that encode)."""
        for value in FOREIGN:
            with pytest.raises(hutch.ValueTypeError) as raised:
                encoding["k"] = value
            assert type(value).__name__ in str(raised.value) or "bytearray" in str(raised.value)
        assert len(encoding) == 0

    def test_a_value_comes_back_as_it_was_or_is_refused(self, ns: hutch.Namespace) -> None:
        """Every value that any engine takes comes back equal and of identical type; any other is refused at set."""
        changed = []
        for value in [value for values in VALUES.values() for value in values]:
            try:
                ns["k"] = value
            except hutch.StoreError:
                ns.pop("k", None)
                continue
            if not came_back(value, ns["k"]):
                changed.append(f"{value!r:.60} -> {ns['k']!r:.60}")
        assert changed == []

    def test_plain_values_are_taken_by_every_engine(self, ns: hutch.Namespace) -> None:
        """None, bool, int, float, str, list and dict, nested, are stored by every engine."""
        value: dict[str, Any] = {
            "none": None,
            "bool": True,
            "int": 7,
            "float": 1.5,
            "str": "é",
            "list": [1, [2, {}]],
            "dict": {"a": {}},
        }
        ns["k"] = value
        for key, part in value.items():
            ns[key] = part
        assert identical(ns["k"], value)
        assert all(identical(ns[key], part) for key, part in value.items())

    def test_dicts_keep_their_order(self, ns: hutch.Namespace) -> None:
        """A dict comes back with its keys in their original order."""
        value = {f"{n * 7919 % 101}": n for n in range(101)}
        ns["k"] = value
        assert list(ns["k"].items()) == list(value.items())
