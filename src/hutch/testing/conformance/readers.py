"""The options `create` and `readonly`, if the engine declares them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

import hutch

from .kit import Promises

_WRITES: dict[str, Callable[[hutch.Namespace], object]] = {
    "[]=": lambda ns: ns.__setitem__("k", 2),
    "del": lambda ns: ns.__delitem__("k"),
    "update": lambda ns: ns.update(k=2, new=1),
    "remove_many": lambda ns: ns.remove_many(["k"]),
    "clear": lambda ns: ns.clear(),
    "pop": lambda ns: ns.pop("k"),
    "setdefault": lambda ns: ns.setdefault("k", 2),
    "compare_and_set": lambda ns: ns.compare_and_set("k", 1, 2),
    "modify": lambda ns: ns.modify("k", lambda value: value + 1),
}


class Readers(Promises):
    def test_create_false_creates_no_store(self, config: Any, store: hutch.Store) -> None:
        """With the option create=false a missing store is StoreMissingError; an existing one is read and written."""
        existing = _with_option(store, "create", False)
        store.close()
        for _ in range(2):
            try:
                with hutch.connect(existing) as missing:
                    assert missing.namespaces() == []
            except hutch.StoreMissingError as error:
                assert isinstance(error, FileNotFoundError)
        with hutch.connect(config) as store, store.open("core") as ns:
            ns["k"] = 1
        with hutch.connect(existing) as store, store.open("core") as ns:
            ns["l"] = 2
            assert dict(ns) == {"k": 1, "l": 2}

    def test_readonly_reads_everything_and_refuses_every_write(self, config: Any, store: hutch.Store) -> None:
        """With the option readonly=true every way to read works, and every way to write is CapabilityError."""
        reading = _with_option(store, "readonly", True)
        with store.open("core") as ns:
            ns.update(k=1, l=[2])
        store.close()
        with hutch.connect(reading) as store:
            with store.open("core") as ns:
                for name, write in _WRITES.items():
                    with pytest.raises(hutch.CapabilityError):
                        write(ns)
                    assert dict(ns) == {"k": 1, "l": [2]}, name
                assert (ns["k"], len(ns), "l" in ns, "m" in ns) == (1, 2, True, False)
                assert list(ns.scan()) == [("k", 1), ("l", [2])]
                assert ns.get_many(["l", "m"]) == {"l": [2]}
            with pytest.raises(hutch.CapabilityError):
                store.drop("core")
            with store.open("missing") as ns:
                assert dict(ns) == {}
            assert store.namespaces() == ["core"]
        with hutch.connect(config) as store, store.open("core") as ns:
            assert dict(ns) == {"k": 1, "l": [2]}


def _with_option(store: hutch.Store, name: str, value: bool) -> hutch.StoreConfig:
    """Return the config of `store` with one more option; skip the test if the engine does not declare it."""
    if name not in (getattr(store.factory, "OPTIONS", None) or {}):
        pytest.skip(f"the {store.name} engine does not declare the option {name}")
    return replace(store.config, options={**store.config.options, name: value})
