"""Increment: one atomic step, exact for any int, refused for what is not a number."""

from __future__ import annotations

import enum
import math
from contextlib import ExitStack
from functools import partial
from typing import Any

import pytest

import hutch

from .child import Child
from .interrupts import SEED, point_limit
from .kit import Promises, identical, needs, together
from .processes import together_in
from .reentrancy import may_refuse

_THREADS = 8
_POINTS = 40


class Level(enum.IntEnum):
    """A number that is not an exact int."""

    LOW = 1


class Increments(Promises):
    def test_increment_returns_and_stores_the_new_value(self, ns: hutch.Namespace) -> None:
        """increment adds 1 or `by`, starts a missing key from `default`, and returns what it stored."""
        assert [ns.increment("n"), ns.increment("n"), ns.increment("n", 10), ns.increment("n", by=-20)] == [
            1,
            2,
            12,
            -8,
        ]
        assert (ns.increment("m", 5, default=100), ns.increment("m", 5, default=100)) == (105, 110)
        assert (ns.increment("zero", 0), ns.increment("zero", 0, default=7)) == (0, 0)
        assert dict(ns) == {"n": -8, "m": 110, "zero": 0}

    @pytest.mark.parametrize(
        ("old", "by", "new"),
        [
            (1.0, 1, 2.0),
            (1, 1.0, 2.0),
            (0.5, 0.25, 0.75),
            (-0.0, 0, 0.0),
            (2**53, 1, 2**53 + 1),
            (2**53 + 1, 1, 2**53 + 2),
            (-(2**53), -1, -(2**53) - 1),
            (2**63 - 1, 1, 2**63),
            (2**63, 1, 2**63 + 1),
            (2**64 - 1, 1, 2**64),
            (-(2**63), -1, -(2**63) - 1),
            (10**30, -1, 10**30 - 1),
            (math.inf, 1, math.inf),
            *((edge, by, edge + by) for edge in (0, -1, 127, -32, -128, 255, -(2**15), 2**16 - 1) for by in (1, -1)),
            *((edge, by, edge + by) for edge in (-(2**31), 2**31, 2**32 - 1, 2**40, -(2**40)) for by in (1, -1)),
            (2**53 - 1, 0, 2**53 - 1),
            (2**60, -(2**60), 0),
            (5, 2**62, 2**62 + 5),
        ],
    )
    def test_increment_is_exact_and_keeps_the_type(self, ns: hutch.Namespace, old: Any, by: Any, new: Any) -> None:
        """Integers of any size are exact, 1.0 stays a float, and the sum is what a fresh read gives."""
        ns["k"] = old
        assert identical(ns.increment("k", by), new)
        assert identical(ns["k"], new)
        assert identical(ns.increment("created", by, old), new)
        assert identical(ns["created"], new)
        assert ns.compare_and_set("k", new, "same bytes as a set")

    def test_increment_of_what_is_not_a_number_writes_nothing(self, ns: hutch.Namespace) -> None:
        """A stored value, `by` or `default` of a type other than int and float is a TypeError; nothing is written."""
        values = {
            "text": "1",
            "yes": True,
            "none": None,
            "list": [1],
            "bytes": b"1",
            "complex": 1j,
            "large": "x" * 9000,
        }
        ns.update(values)
        for key, value in values.items():
            with pytest.raises(TypeError) as raised:
                ns.increment(key)
            for word in (repr(key), type(value).__name__, "int or float"):
                assert word in str(raised.value)
            assert not isinstance(raised.value, hutch.StoreError)
        wrong: Any
        for wrong in ("1", True, None, 1j, Level.LOW):
            with pytest.raises(TypeError, match="int or float, and by is"):
                ns.increment("new", by=wrong)
            with pytest.raises(TypeError, match="int or float, and default is"):
                ns.increment("new", default=wrong)
        with pytest.raises(hutch.KeyTypeError):
            ns.increment(5)  # type: ignore[arg-type]
        with pytest.raises(hutch.KeyLimitError):
            ns.increment("")
        assert dict(ns) == values

    def test_increment_of_an_int_too_large_for_a_float_writes_nothing(self, ns: hutch.Namespace) -> None:
        """The sum of a float and an int beyond every float is an OverflowError that names the key."""
        ns["k"] = 10**400
        with pytest.raises(OverflowError, match="'k'"):
            ns.increment("k", 1.5)
        assert dict(ns) == {"k": 10**400}

    def test_increment_by_many_threads_loses_nothing(self, ns: hutch.Namespace) -> None:
        """Of 8 threads that increment one key, each gets a number of its own, and the sum is exact."""

        def work() -> list[int]:
            return [ns.increment("n") for _ in range(50)]

        numbers = [number for results in together(*[work] * _THREADS) for number in results]
        assert sorted(numbers) == list(range(1, _THREADS * 50 + 1))
        assert ns["n"] == _THREADS * 50

    def test_increment_and_modify_of_one_key_lose_nothing(self, ns: hutch.Namespace) -> None:
        """increment and modify of one key from 8 threads: every change counts."""

        def work(thread: int) -> None:
            for _ in range(25):
                if thread % 2:
                    ns.increment("n", 2)
                else:
                    ns.modify("n", lambda n: n + 2, default=0)

        together(*[partial(work, thread) for thread in range(_THREADS)])
        assert ns["n"] == _THREADS * 50

    def test_increment_by_many_processes_loses_nothing(self, config: Any, store: hutch.Store) -> None:
        """Where shared: a counter that three processes increment at once is exact."""
        needs(store, "shared")
        with ExitStack() as stack:
            children = [stack.enter_context(Child(config)) for _ in range(3)]
            together_in(children)
            for child in children:
                child.start("increment", "core", 0.2)
            raised = sum(child.result() for child in children)
        with store.open("core") as ns:
            assert ns["n"] == raised > 0

    def test_a_handler_may_increment_the_key_that_it_interrupts(self, config: Any, store: hutch.Store) -> None:
        """A signal handler may increment a key at any point of an increment of that key: both count."""
        limit = point_limit(_POINTS)
        print(f"HUTCH_SEED={SEED}, {limit or 'all'} points")
        with Child(config, measured=False) as child:
            figures = child.call("nest_increments", "core", limit, SEED)
        print(figures)
        assert figures["points"] > 0
        # Where an increment is a `modify` of the key, only few points lie outside its lock.
        if not may_refuse(store) and limit is None:
            assert figures["refused"] < figures["points"]
