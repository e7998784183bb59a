"""The six verbs of the storage that the plugin's `open` returns, without the mapping around it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest

import hutch

from .kit import Promises, stage2

KNOWN_CAPABILITIES = {
    *("ordered", "atomic-batch", "atomic-modify", "durable", "shared", "ttl"),
    *("atomic-modify:process", "atomic-modify:host", "atomic-modify:cluster"),
    *("atomic-store", "snapshot", "replicated"),
}


class Verbs(Promises):
    def test_every_connect_of_a_test_reaches_the_same_data_and_starts_empty(self, config: Any) -> None:
        """Two stores on one config hold the same data, which starts empty (if not, the fixture is wrong)."""
        with hutch.connect(config) as store, store.open("core") as ns:
            assert list(ns) == [], "the fixture `config` must lead to a fresh storage in every test"
            ns["k"] = 1
        with hutch.connect(config) as store, store.open("core") as ns:
            assert dict(ns) == {"k": 1}, "the fixture `config` must lead to the same storage within a test"

    def test_set_then_get_gives_the_value(self, store: hutch.Store) -> None:
        """What was set is what is got, and set returns nothing."""
        with closing(stage2(store, "core")) as storage:
            assert storage.set("k", [1, "two"]) is None
            assert storage.get("k") == [1, "two"]

    def test_set_replaces_the_value(self, store: hutch.Store) -> None:
        """A second set replaces the value, whatever the two values' sizes."""
        with closing(stage2(store, "core")) as storage:
            for value in ("short", "long" * 5000, "", "short again", {"another": ["type"]}):
                storage.set("k", value)
                assert storage.get("k") == value
                assert storage.len() == 1

    @pytest.mark.parametrize("verb", ["get", "remove"])
    def test_a_missing_key_is_a_key_error(self, store: hutch.Store, verb: str) -> None:
        """get and remove of a missing key raise a plain KeyError whose argument is the key."""
        with closing(stage2(store, "core")) as storage:
            storage.set("other", 1)
            with pytest.raises(KeyError) as raised:
                getattr(storage, verb)("missing")
            assert type(raised.value) is KeyError
            assert raised.value.args == ("missing",)
            assert list(storage.keys()) == ["other"]

    def test_remove_removes(self, store: hutch.Store) -> None:
        """A removed key is gone from get, len and keys, and can be set again."""
        with closing(stage2(store, "core")) as storage:
            storage.set("k", 1)
            storage.set("stays", 2)
            assert storage.remove("k") is None
            with pytest.raises(KeyError):
                storage.get("k")
            with pytest.raises(KeyError):
                storage.remove("k")
            assert (storage.len(), list(storage.keys())) == (1, ["stays"])
            storage.set("k", 3)
            assert storage.get("k") == 3

    def test_len_counts_live_keys(self, store: hutch.Store) -> None:
        """len is exact after every set, overwrite and remove."""
        with closing(stage2(store, "core")) as storage:
            assert storage.len() == 0
            for count in range(1, 21):
                storage.set(f"k{count}", count)
                storage.set("k1", count)
                assert storage.len() == count
            for count in range(20, 0, -1):
                storage.remove(f"k{count}")
                assert storage.len() == count - 1

    def test_keys_gives_each_live_key_once(self, store: hutch.Store) -> None:
        """keys gives every live key exactly once, overwritten ones too, and no removed one."""
        with closing(stage2(store, "core")) as storage:
            assert list(storage.keys()) == []
            for key in [f"k{n}" for n in range(50)] * 2:
                storage.set(key, key)
            for n in range(0, 50, 5):
                storage.remove(f"k{n}")
            assert sorted(storage.keys()) == sorted(f"k{n}" for n in range(50) if n % 5)

    def test_a_stored_none_is_not_a_missing_key(self, store: hutch.Store) -> None:
        """None, False, 0 and empty containers are values like any other."""
        with closing(stage2(store, "core")) as storage:
            falsy: list[Any] = [None, False, 0, "", [], {}]
            for index, value in enumerate(falsy):
                storage.set(f"k{index}", value)
                assert storage.get(f"k{index}") == value
            assert storage.len() == 6

    def test_values_are_fresh(self, store: hutch.Store) -> None:
        """Changing a value after set, or one that get gave, changes nothing that is stored."""
        with closing(stage2(store, "core")) as storage:
            value: dict[str, list[int]] = {"list": [1]}
            storage.set("k", value)
            value["list"].append(2)
            got = storage.get("k")
            assert got == {"list": [1]}
            got["list"].append(3)
            got["new"] = []
            assert storage.get("k") == {"list": [1]}

    def test_two_storages_opened_on_one_namespace_hold_the_same_data(self, store: hutch.Store) -> None:
        """Two storages opened at stage 2 on one namespace see each other's writes; closing one leaves the other."""
        with closing(stage2(store, "core")) as one:
            with closing(stage2(store, "core")) as other:
                one.set("k", 1)
                assert other.get("k") == 1
                other.set("k", 2)
                other.set("l", 3)
                assert (one.get("k"), one.len(), sorted(one.keys())) == (2, 2, ["k", "l"])
            one.set("m", 4)
            assert sorted(one.keys()) == ["k", "l", "m"]

    def test_what_capabilities_list_works_and_the_rest_is_refused(self, store: hutch.Store) -> None:
        """snapshot, atomic-store and ttl work where they are declared; elsewhere each call is a CapabilityError."""
        calls: dict[str, Callable[[hutch.Namespace], object]] = {
            "snapshot": lambda ns: _read_in_snapshot(store),
            "atomic-store": lambda ns: store.transact(lambda tx: tx["core"].set("k", 2)),
            "ttl": lambda ns: ns.set("k", 3, ttl_s=10_000),
        }
        with store.open("core") as ns:
            ns["k"] = 1
            for capability, call in calls.items():
                if capability in store.capabilities:
                    call(ns)
                else:
                    before = ns["k"]
                    with pytest.raises(hutch.CapabilityError, match=capability):
                        call(ns)
                    assert ns["k"] == before

    def test_the_engine_declares_the_same_known_capabilities_everywhere(self, store: hutch.Store) -> None:
        """Factory, storage and handle declare the same known capabilities; atomic-modify has exactly one reach."""
        with store.open("core") as ns:
            declared = ns.capabilities
        assert declared == store.capabilities == frozenset(getattr(store.factory, "capabilities", ()))
        assert declared <= KNOWN_CAPABILITIES
        reach = {name for name in declared if name.startswith("atomic-modify:")}
        assert len(reach) == ("atomic-modify" in declared)
        if "shared" in declared:
            assert reach & {"atomic-modify:host", "atomic-modify:cluster"}, (
                "several processes can be kept from losing each other's updates only by the engine itself"
            )


def _read_in_snapshot(store: hutch.Store) -> None:
    with store.snapshot() as view:
        assert view["core"]["k"] == 1
