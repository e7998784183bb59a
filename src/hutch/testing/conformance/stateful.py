"""A Hypothesis state machine that compares random sequences of operations with dicts."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

import hutch

from .kit import Promises
from .scans import model
from .time_to_live import LONG_S

NAMESPACES = ["a", "a:b", "A", "../b"]
ALPHABET = ["a", "b", ":", "/", "\0", "\n", "é", "\ud7ff", "\ue000", "\uffff", "\U00010000", "\U0010ffff"]

names = st.sampled_from(NAMESPACES)
# Few, so that several rules use the same key.
keys = st.sampled_from([*ALPHABET, "ab", "a\0", "b:", "\uffffa", "\U0010ffff\U0010ffff"])
values: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.sampled_from(ALPHABET), max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(st.sampled_from("ab"), max_size=2), inner, max_size=3)
    ),
    max_leaves=5,
)
batches = st.dictionaries(keys, values, max_size=6)
bounds = st.none() | keys


class Model(RuleBasedStateMachine):
    """One store, and per namespace a dict with the expected items."""

    connect: Callable[[], hutch.Store]

    def __init__(self) -> None:
        super().__init__()
        self.store = type(self).connect()
        for name in NAMESPACES:
            self.store.drop(name)
        self.open = {name: self.store.open(name) for name in NAMESPACES}
        self.model: dict[str, dict[str, Any]] = {name: {} for name in NAMESPACES}

    def teardown(self) -> None:
        for ns in self.open.values():
            with contextlib.suppress(hutch.StoreNotOpenError):
                ns.close()
        self.store.close()

    @rule(name=names, key=keys, value=values)
    def set(self, name: str, key: str, value: Any) -> None:
        self.open[name][key] = value
        self.model[name][key] = value

    @rule(name=names, key=keys, value=values)
    def set_for_long(self, name: str, key: str, value: Any) -> None:
        if "ttl" in self.store.capabilities:
            self.open[name].set(key, value, ttl_s=LONG_S)
            assert (self.open[name].ttl_s(key) or 0) > LONG_S / 2
        else:
            self.open[name].set(key, value)
        self.model[name][key] = value

    @rule(name=names, key=keys)
    def set_and_let_expire(self, name: str, key: str) -> None:
        if "ttl" in self.store.capabilities:
            self.open[name].set(key, "expires", ttl_s=0.001)
            time.sleep(0.002)
            self.model[name].pop(key, None)

    @rule(name=names, key=keys)
    def get(self, name: str, key: str) -> None:
        assert self.open[name].get(key, "missing") == self.model[name].get(key, "missing")
        assert (key in self.open[name]) == (key in self.model[name])

    @rule(name=names, key=keys)
    def remove(self, name: str, key: str) -> None:
        if key in self.model[name]:
            del self.open[name][key], self.model[name][key]
            return
        with contextlib.suppress(KeyError):
            del self.open[name][key]
            raise AssertionError("a missing key was removed without an error")

    @rule(name=names, key=keys, value=values)
    def pop_or_set(self, name: str, key: str, value: Any) -> None:
        assert self.open[name].pop(key, "missing") == self.model[name].pop(key, "missing")
        assert self.open[name].setdefault(key, value) == self.model[name].setdefault(key, value)

    @rule(name=names, items=batches)
    def update(self, name: str, items: dict[str, Any]) -> None:
        self.open[name].update(items)
        self.model[name].update(items)

    @rule(name=names, wanted=st.lists(keys, max_size=6))
    def get_and_remove_many(self, name: str, wanted: list[str]) -> None:
        expected = {key: self.model[name][key] for key in wanted if key in self.model[name]}
        assert list(self.open[name].get_many(wanted).items()) == list(expected.items())
        assert self.open[name].remove_many(wanted) == len(expected)
        for key in expected:
            del self.model[name][key]

    @rule(name=names, key=keys, value=values)
    def modify(self, name: str, key: str, value: Any) -> None:
        old = self.model[name].get(key, "missing")
        new = self.open[name].modify(key, lambda stored: [value] if stored == old else stored, default="missing")
        assert new == [value]
        self.model[name][key] = [value]

    @rule(name=names, key=keys, expected=values, value=values, right=st.booleans())
    def compare_and_set(self, name: str, key: str, expected: Any, value: Any, right: bool) -> None:
        if right:
            expected = self.model[name].get(key, hutch.MISSING)
            assert self.open[name].compare_and_set(key, expected, value)
            self.model[name][key] = value
        else:
            assert not self.open[name].compare_and_set(key, ["no value is like this", expected], value)

    @rule(name=names, prefix=st.just("") | keys, start=bounds, stop=bounds, reverse=st.booleans())
    def scan(self, name: str, prefix: str, start: str | None, stop: str | None, reverse: bool) -> None:
        expected = model(list(self.model[name]), prefix, start, stop, reverse)
        items = [(key, self.model[name][key]) for key in expected]
        assert list(self.open[name].scan(prefix, start, stop, reverse)) == items
        assert list(self.open[name].scan_keys(prefix, start, stop, reverse)) == expected

    @rule(name=names)
    def clear(self, name: str) -> None:
        self.open[name].clear()
        self.model[name].clear()

    @rule(name=names)
    def drop(self, name: str) -> None:
        self.open[name].close()
        self.store.drop(name)
        self.open[name] = self.store.open(name)
        self.model[name].clear()

    @rule()
    def reopen(self) -> None:
        self.teardown()
        self.store = type(self).connect()
        self.open = {name: self.store.open(name) for name in NAMESPACES}

    @invariant()
    def each_namespace_is_as_its_model(self) -> None:
        for name, expected in self.model.items():
            ns = self.open[name]
            assert (len(ns), sorted(ns)) == (len(expected), sorted(expected))
            assert dict(ns.items()) == expected


class Stateful(Promises):
    def test_it_behaves_as_dicts_would(self, config: Any) -> None:
        """Random sequences of all operations on several namespaces, reopened now and then, do what dicts would do."""

        class Machine(Model):
            connect = staticmethod(lambda: hutch.connect(config))

        run_state_machine_as_test(
            Machine,
            settings=settings(
                max_examples=30,
                stateful_step_count=25,
                deadline=None,
                database=None,
                print_blob=True,
                report_multiple_bugs=False,
                suppress_health_check=list(HealthCheck),
            ),
        )
