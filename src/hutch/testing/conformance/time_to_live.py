"""Values that expire: where the engine declares `ttl`, against a clock that the test moves if it can."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from typing import Any

import pytest

import hutch
from hutch import deadlines

from .child import Child
from .kit import Promises, listing, needs, stage2

#: The time to live of values that a test lets expire, and of values that it does not.
SHORT_S, LONG_S = 0.05, 10_000.0


class Clock:
    """The clock that judges deadlines: moved forward and back if the engine asks `hutch.deadlines`, else waited for."""

    def __init__(self, store: hutch.Store, patch: pytest.MonkeyPatch) -> None:
        self._ahead_ms = 0
        real = deadlines.now_ms
        patch.setattr(deadlines, "now_ms", lambda: real() + self._ahead_ms)
        with store.open("clock") as ns:
            ns.set("k", 1, ttl_s=LONG_S)
            self.is_movable = True
            self.move(2 * LONG_S)
            self.is_movable = "k" not in ns
            self._ahead_ms = 0
        store.drop("clock")

    def move(self, seconds: float) -> None:
        """Move the clock by `seconds`, back if negative; sleep if it is the server's."""
        if self.is_movable:
            self._ahead_ms += round(seconds * 1000)
        else:
            time.sleep(seconds)

    def expire(self) -> None:
        """Let values that live `SHORT_S` expire."""
        self.move(2 * SHORT_S)


class TimeToLive(Promises):
    @pytest.fixture
    def clock(self, store: hutch.Store, monkeypatch: pytest.MonkeyPatch) -> Clock:
        """A clock; skips the test for an engine without `ttl`."""
        needs(store, "ttl")
        return Clock(store, monkeypatch)

    @pytest.fixture
    def mixed(self, ns: hutch.Namespace, clock: Clock) -> hutch.Namespace:
        """A namespace with an expired key "gone", and keys "long" and "plain" that live."""
        ns.set("gone", 0, ttl_s=SHORT_S)
        ns.set("long", 1, ttl_s=LONG_S)
        ns["plain"] = 2
        clock.expire()
        return ns

    def test_an_expired_key_is_missing_for_reads(self, mixed: hutch.Namespace) -> None:
        """get, in, get_many and ttl_s treat an expired key as missing, and others not."""
        with pytest.raises(KeyError) as raised:
            mixed["gone"]
        assert (type(raised.value), raised.value.args) == (KeyError, ("gone",))
        assert (mixed.get("gone"), mixed.get("gone", 9), mixed.get("long"), mixed.get("plain")) == (None, 9, 1, 2)
        assert ("gone" in mixed, "long" in mixed, "plain" in mixed) == (False, True, True)
        assert mixed.get_many(["gone", "plain", "long"]) == {"plain": 2, "long": 1}
        with pytest.raises(KeyError):
            mixed.ttl_s("gone")

    def test_an_expired_key_is_not_counted(self, mixed: hutch.Namespace) -> None:
        """len counts no expired key, before its space is reclaimed and after."""
        assert len(mixed) == 2
        mixed.expire()
        assert len(mixed) == 2

    def test_an_expired_key_is_not_iterated_over(self, mixed: hutch.Namespace) -> None:
        """Keys, items, values, scans in both directions and popitem meet no expired key."""
        live = {"long": 1, "plain": 2}
        assert sorted(mixed) == sorted(mixed.keys()) == sorted(live)
        assert dict(mixed.items()) == live
        assert sorted(mixed.values()) == [1, 2]
        assert list(mixed.scan()) == list(live.items())
        assert list(mixed.scan(reverse=True)) == list(live.items())[::-1]
        assert list(mixed.scan(prefix="g")) == list(mixed.scan(stop="h")) == []
        assert list(mixed.scan_keys()) == list(live)
        assert {mixed.popitem()[0], mixed.popitem()[0]} == set(live)
        with pytest.raises(KeyError):
            mixed.popitem()

    def test_an_expired_key_cannot_be_removed(self, mixed: hutch.Namespace) -> None:
        """del and pop of an expired key raise KeyError; remove_many, touch and compare_and_set count it as missing."""
        with pytest.raises(KeyError):
            del mixed["gone"]
        with pytest.raises(KeyError):
            mixed.pop("gone")
        assert mixed.pop("gone", "missing") == "missing"
        assert mixed.touch("gone", LONG_S) is False
        assert mixed.compare_and_set("gone", 0, 1) is False
        assert mixed.remove_many(["gone", "long"]) == 1
        assert dict(mixed) == {"plain": 2}

    def test_an_expired_key_is_written_as_a_missing_one(self, ns: hutch.Namespace, clock: Clock) -> None:
        """Each write of an expired key does what it does to a missing key, and the earlier deadline is gone."""
        writes: dict[str, Callable[[str], object]] = {
            "set": lambda key: ns.set(key, "new"),
            "setdefault": lambda key: ns.setdefault(key, "new"),
            "compare_and_set": lambda key: ns.compare_and_set(key, hutch.MISSING, "new"),
            "modify": lambda key: ns.modify(key, lambda value: value, default="new"),
            "update": lambda key: ns.update({key: "new"}),
        }
        for key in [*writes, "mutable"]:
            ns.set(key, "old", ttl_s=SHORT_S)
        clock.expire()
        for key, write in writes.items():
            write(key)
            assert (key, ns[key], ns.ttl_s(key)) == (key, "new", None)
        with ns.mutable("mutable", default=[]) as value:
            value.append("new")
        ns.set_many({"number": 5, "again": 5}, ttl_s=SHORT_S)
        clock.expire()
        assert (ns.increment("number"), ns.ttl_s("number")) == (1, None)
        assert ns.increment("again", ttl_s=LONG_S) == 1
        assert (ns.ttl_s("again") or 0) > LONG_S / 2
        assert ns.remove_many(["number", "again"]) == 2
        with pytest.raises(KeyError):
            ns.modify("never there", lambda value: value)
        assert (ns["mutable"], ns.ttl_s("mutable"), len(ns)) == (["new"], None, 6)

    def test_a_namespace_of_expired_keys_is_not_listed(self, store: hutch.Store, clock: Clock) -> None:
        """namespaces() leaves out a namespace all of whose keys have expired."""
        for name, ttl_s in (("all gone", SHORT_S), ("lives", LONG_S)):
            with store.open(name) as ns:
                ns.set_many({"a": 1, "b": 2}, ttl_s=ttl_s)
        clock.expire()
        assert listing(store) == ["lives"]

    def test_each_write_can_give_a_deadline(self, ns: hutch.Namespace, clock: Clock) -> None:
        """Every verb that can create a key gives it the deadline of ttl_s: set, setdefault, increment and others."""
        ns.set("set", 1, ttl_s=LONG_S)
        ns.set_many({f"many {n}": n for n in range(20)}, ttl_s=LONG_S)
        assert ns.setdefault("setdefault", 1, ttl_s=LONG_S) == 1
        assert ns.compare_and_set("compare_and_set", hutch.MISSING, 1, ttl_s=LONG_S)
        ns.modify("modify", lambda value: value, default=1, ttl_s=LONG_S)
        assert (ns.increment("increment", ttl_s=LONG_S), ns.increment("increment", ttl_s=9 * LONG_S)) == (1, 2)
        with ns.mutable("mutable", default=[1], ttl_s=LONG_S) as value:
            value.append(2)
        assert len(ns) == 26
        for key in ns:
            left_s = ns.ttl_s(key)
            assert left_s is not None, key
            assert LONG_S - 1000 < left_s <= LONG_S, key
        assert dict(ns.items())["mutable"] == [1, 2]

    def test_a_plain_set_clears_an_earlier_deadline(self, ns: hutch.Namespace, clock: Clock) -> None:
        """A value set without ttl_s never expires, whatever deadline the key had; a new ttl_s replaces the old one."""
        sets: dict[str, Callable[[str], object]] = {
            "[]": lambda key: ns.__setitem__(key, 1),
            "set": lambda key: ns.set(key, 1),
            "update": lambda key: ns.update({key: 1}),
            "compare_and_set": lambda key: ns.compare_and_set(key, 0, 1),
            "forever": lambda key: ns.set(key, 1, ttl_s=math.inf),
            "later": lambda key: ns.set(key, 1, ttl_s=LONG_S),
        }
        ns.set_many(dict.fromkeys(sets, 0), ttl_s=LONG_S / 10)
        for key, write in sets.items():
            write(key)
            assert (key, (ns.ttl_s(key) or 0) > LONG_S / 10) == (key, key == "later")
            assert (key, ns.ttl_s(key) is None) == (key, key != "later")
        if clock.is_movable:
            clock.move(LONG_S / 5)
        assert dict(ns.items()) == dict.fromkeys(sets, 1)
        assert len(ns) == 6

    def test_modify_and_mutable_keep_the_deadline(self, ns: hutch.Namespace, clock: Clock) -> None:
        """modify, mutable and increment change the value and leave the deadline, whatever ttl_s they are given."""
        ns.set_many({"modify": 1, "mutable": [1], "increment": 1}, ttl_s=LONG_S)
        ns["plain"] = [1]
        for _ in range(2):
            ns.modify("modify", lambda n: n + 1, ttl_s=7)
            ns.increment("increment", ttl_s=7)
            with ns.mutable("mutable", ttl_s=7) as value:
                value.append(2)
            with ns.mutable("plain", ttl_s=7) as value:
                value.append(2)
        assert dict(ns) == {"modify": 3, "increment": 3, "mutable": [1, 2, 2], "plain": [1, 2, 2]}
        assert (ns.ttl_s("modify") or 0) > LONG_S - 1000
        assert (ns.ttl_s("mutable") or 0) > LONG_S - 1000
        assert ns.ttl_s("plain") is None

    def test_touch_changes_the_deadline_alone(self, ns: hutch.Namespace, clock: Clock) -> None:
        """touch gives a key another deadline, or none, leaves its value, and says whether the key is there."""
        ns.set("sooner", [1], ttl_s=LONG_S)
        ns["new"] = [2]
        ns.set("never", [3], ttl_s=LONG_S)
        assert (ns.touch("sooner", 100), ns.touch("new", 100), ns.touch("never", math.inf)) == (True, True, True)
        assert ns.touch("missing", 100) is False
        assert "missing" not in ns
        assert dict(ns) == {"sooner": [1], "new": [2], "never": [3]}
        for key in ("sooner", "new"):
            assert 0 < (ns.ttl_s(key) or 0) <= 100
        assert ns.ttl_s("never") is None
        ns.touch("sooner", SHORT_S)
        clock.expire()
        assert (sorted(ns), len(ns)) == (["never", "new"], 2)

    def test_expire_reclaims_and_says_how_many(self, ns: hutch.Namespace, clock: Clock) -> None:
        """expire(limit) reclaims at most `limit` expired keys, expire() all others, and no key that lives."""
        ns.set_many({f"gone {n}": n for n in range(50)}, ttl_s=SHORT_S)
        clock.expire()
        ns.set_many({f"long {n}": n for n in range(50)}, ttl_s=LONG_S)
        assert ns.expire(0) == 0
        first = ns.expire(10)
        rest = ns.expire()
        assert first == 10
        # Writes and counts may reclaim some too.
        assert first + rest <= 50
        assert (ns.expire(), len(ns), len(dict(ns))) == (0, 50, 50)

    def test_each_write_reclaims_a_few_expired_keys(
        self, store: hutch.Store, ns: hutch.Namespace, clock: Clock
    ) -> None:
        """Where the engine keeps an index of deadlines: each write reclaims expired keys, but never more than two."""
        with closing(stage2(store, "core")) as storage:
            if isinstance(storage, hutch.EncodedStorage) and type(storage).reclaim is hutch.EncodedStorage.reclaim:
                pytest.skip(f"the {store.name} engine keeps no index of deadlines")
        ns.set_many({f"gone {n}": n for n in range(50)}, ttl_s=SHORT_S)
        clock.expire()
        for n in range(10):
            ns[f"plain {n}"] = n
        assert 30 <= ns.expire() < 50
        assert len(ns) == 10

    def test_space_is_reclaimed_by_the_writes_that_follow(self, ns: hutch.Namespace, clock: Clock) -> None:
        """A key that expired can be set, expire and be set again, any number of times."""
        for turn in range(5):
            ns.set("k", turn, ttl_s=SHORT_S)
            ns.set_many({f"{turn} {n}": n for n in range(5)}, ttl_s=SHORT_S)
            clock.expire()
            assert (len(ns), "k" in ns, list(ns)) == (0, False, [])
        ns["k"] = "last"
        ns.expire()
        assert dict(ns) == {"k": "last"}

    def test_clear_and_drop_forget_deadlines(self, store: hutch.Store, clock: Clock) -> None:
        """A key that is set again after clear, remove or drop has no deadline of before."""
        with store.open("core") as ns:
            for forget in (ns.clear, lambda: ns.remove_many(["a", "b"])):
                ns.set_many({"a": 1, "b": 2}, ttl_s=SHORT_S)
                forget()
                ns["a"] = 3
                clock.expire()
                assert (dict(ns), len(ns), ns.ttl_s("a"), ns.expire()) == ({"a": 3}, 1, None, 0)
            ns.set("a", 1, ttl_s=SHORT_S)
        store.drop("core")
        with store.open("core") as ns:
            ns["a"] = 4
            clock.expire()
            assert (dict(ns), len(ns), ns.expire()) == ({"a": 4}, 1, 0)

    def test_a_deadline_outlives_the_handle(self, config: Any, store: hutch.Store, clock: Clock) -> None:
        """A deadline holds in every handle and store that is opened later."""
        with store.open("core") as ns:
            ns.set("gone", 0, ttl_s=SHORT_S)
            ns.set("long", 1, ttl_s=LONG_S)
        clock.expire()
        with hutch.connect(config) as other, other.open("core") as ns:
            assert (dict(ns), len(ns), "gone" in ns) == ({"long": 1}, 1, False)
            assert LONG_S - 1000 < (ns.ttl_s("long") or 0) <= LONG_S

    def test_a_deadline_holds_in_other_processes(self, config: Any, store: hutch.Store) -> None:
        """Where shared: a key that expired is missing in every other process too."""
        needs(store, "ttl", "shared")
        with store.open("core") as ns, Child(config) as child:
            ns.set("gone", 0, ttl_s=SHORT_S)
            ns.set("long", 1, ttl_s=LONG_S)
            time.sleep(2 * SHORT_S)
            assert child.call("get_all", "core") == {"long": 1}

    def test_a_clock_that_is_set_expires_early_or_late(self, ns: hutch.Namespace, clock: Clock) -> None:
        """A clock that is set back adds to what a key has left, one that is set forward expires it; no call fails."""
        if not clock.is_movable:
            pytest.skip("the engine has a clock of its own, which a test cannot set")
        ns.set("k", 1, ttl_s=LONG_S)
        clock.move(-100 * LONG_S)
        assert (ns["k"], len(ns), list(ns)) == (1, 1, ["k"])
        assert 100 * LONG_S < (ns.ttl_s("k") or 0) <= 101 * LONG_S
        ns.set("earlier", 2, ttl_s=LONG_S)
        clock.move(101 * LONG_S)
        assert (dict(ns.items()), len(ns), "earlier" in ns) == ({}, 0, False)
        ns.set("again", 3, ttl_s=LONG_S)
        assert dict(ns) == {"again": 3}

    @pytest.mark.parametrize(
        ("ttl_s", "kind"),
        [
            *((wrong, ValueError) for wrong in (0, 0.0, -1, -math.inf, math.nan, 1e300, 10**300, 1e12)),
            *((wrong, TypeError) for wrong in ("60", b"60", True, [1], timedelta(seconds=1))),
        ],
    )
    def test_a_wrong_time_to_live_is_refused_before_anything_is_written(
        self, store: hutch.Store, ns: hutch.Namespace, ttl_s: Any, kind: type[Exception]
    ) -> None:
        """ttl_s of zero, below, NaN or past the year 9999 is a ValueError, other types a TypeError; nothing changes."""
        needs(store, "ttl")
        ns["k"] = [1]
        ns.set("long", 1, ttl_s=LONG_S)
        writes: list[Callable[[str], object]] = [
            lambda key: ns.set(key, 2, ttl_s=ttl_s),
            lambda key: ns.set_many({key: 2}, ttl_s=ttl_s),
            lambda key: ns.setdefault(key, 2, ttl_s=ttl_s),
            lambda key: ns.compare_and_set(key, [1], 2, ttl_s=ttl_s),
            lambda key: ns.modify(key, lambda value: 2, default=0, ttl_s=ttl_s),
            lambda key: ns.mutable(key, default=[], ttl_s=ttl_s).__enter__(),
            lambda key: ns.touch(key, ttl_s),
        ]
        for write in writes:
            for key in ("k", "new"):
                with pytest.raises(kind, match="ttl_s"):
                    write(key)
        assert dict(ns) == {"k": [1], "long": 1}
        assert ns.ttl_s("k") is None
        assert (ns.ttl_s("long") or 0) > LONG_S - 1000

    def test_an_engine_without_ttl_refuses_it_before_anything_is_written(
        self, store: hutch.Store, ns: hutch.Namespace
    ) -> None:
        """Without the capability `ttl`, every use of it is a CapabilityError and nothing changes; math.inf is taken."""
        if "ttl" in store.capabilities:
            pytest.skip(f"the {store.name} engine declares ttl")
        ns["k"] = [1]
        uses: list[Callable[[], object]] = [
            lambda: ns.set("k", 2, ttl_s=1),
            lambda: ns.set_many({"k": 2, "l": 3}, ttl_s=1),
            lambda: ns.setdefault("k", 2, ttl_s=1),
            lambda: ns.compare_and_set("k", [1], 2, ttl_s=1),
            lambda: ns.modify("k", lambda value: [value], ttl_s=1),
            lambda: ns.mutable("k", ttl_s=1).__enter__(),
            lambda: ns.touch("k", 1),
            lambda: ns.ttl_s("k"),
            ns.expire,
        ]
        for use in uses:
            with pytest.raises(hutch.CapabilityError, match="ttl"):
                use()
        assert dict(ns) == {"k": [1]}
        ns.set("k", 2, ttl_s=math.inf)
        assert dict(ns) == {"k": 2}
