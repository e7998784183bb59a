"""The lifecycle of handles and stores: opened once, used while open, closed once, without loss."""

from __future__ import annotations

import gc
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import pytest

import hutch

from .kit import Promises, listing, stage2

#: Every use of an open handle.
USES: dict[str, Callable[[hutch.StoreMixin], Any]] = {
    "[]": lambda ns: ns["k"],
    "[]=": lambda ns: ns.__setitem__("k", 1),
    "del": lambda ns: ns.__delitem__("k"),
    "in": lambda ns: "k" in ns,
    "len": len,
    "bool": bool,
    "iter": list,
    "dict": dict,
    "==": lambda ns: ns == {},
    "get": lambda ns: ns.get("k"),
    "keys": lambda ns: ns.keys(),
    "items": lambda ns: ns.items(),
    "values": lambda ns: ns.values(),
    "pop": lambda ns: ns.pop("k", None),
    "popitem": lambda ns: ns.popitem(),
    "setdefault": lambda ns: ns.setdefault("k", 1),
    "update": lambda ns: ns.update(k=1),
    "clear": lambda ns: ns.clear(),
    "get_many": lambda ns: ns.get_many(["k"]),
    "set_many": lambda ns: ns.set_many({"k": 1}),
    "remove_many": lambda ns: ns.remove_many(["k"]),
    "scan": lambda ns: list(ns.scan()),
    "scan_keys": lambda ns: list(ns.scan_keys()),
    "compare_and_set": lambda ns: ns.compare_and_set("k", 1, 2),
    "modify": lambda ns: ns.modify("k", lambda v: v, default=1),
    "mutable": lambda ns: ns.mutable("k").__enter__(),
    "capabilities": lambda ns: ns.capabilities,
    "close": lambda ns: ns.close_storage(),
}


class _CloseFails:
    """A factory that returns storages of `store` whose close raises after closing."""

    def __init__(self, store: hutch.Store) -> None:
        self._store = store

    def open(self, namespace: str) -> Any:
        storage = stage2(self._store, namespace)
        really_close = storage.close

        def close() -> None:
            really_close()
            raise hutch.StorageUnavailableError("on purpose")

        verbs = {verb: getattr(storage, verb) for verb in ("get", "set", "remove", "len", "keys")}
        return SimpleNamespace(**verbs, close=close)


def _secrets(factory: Any) -> list[str]:
    """Return the values of the options that the engine declares secret; of a URL, the password."""
    declared = getattr(factory, "OPTIONS", None) or {}
    given = getattr(factory, "_storage_config", {})
    values = [str(given[name]) for name, option in declared.items() if option.secret and given.get(name)]
    return [secret for text in values if (secret := urlsplit(text).password if "://" in text else text)]


class Lifecycle(Promises):
    @pytest.mark.parametrize("use", USES)
    def test_use_before_open_is_an_error(self, use: str) -> None:
        """Any use before open raises StoreNotOpenError."""
        with pytest.raises(hutch.StoreNotOpenError, match="not open yet"):
            USES[use](hutch.StoreMixin())

    def test_use_after_close_is_an_error(self, store: hutch.Store) -> None:
        """Any use after close, a second close included, raises StoreNotOpenError that names the namespace."""
        ns = store.open("core")
        ns["k"] = 1
        ns.close()
        assert not ns.is_open_storage()
        for use, call in USES.items():
            with pytest.raises(hutch.StoreNotOpenError, match="'core'"):
                call(ns)
                pytest.fail(f"{use} worked on a closed handle")
        with store.open("core") as ns:
            assert dict(ns) == {"k": 1}

    def test_views_and_iterators_end_with_their_handle(self, store: hutch.Store) -> None:
        """Views and iterators taken before close raise StoreNotOpenError after it."""
        ns = store.open("core")
        ns.update({f"k{n}": n for n in range(10)})
        views = [ns.keys(), ns.items(), ns.values()]
        iterators: list[Iterator[Any]] = [iter(ns), *map(iter, views), ns.scan(), ns.scan_keys(reverse=True)]
        for iterator in iterators[::2]:
            next(iterator)
        ns.close()
        for iterator in iterators:
            with pytest.raises(hutch.StoreNotOpenError):
                next(iterator)
        for view in views:
            with pytest.raises(hutch.StoreNotOpenError):
                list(view)
            with pytest.raises(hutch.StoreNotOpenError):
                len(view)

    def test_opening_an_open_handle_is_an_error(self, store: hutch.Store) -> None:
        """open_storage on an open handle raises StoreAlreadyOpenError and leaves it as it was."""
        mixin = hutch.StoreMixin()
        mixin.open_storage(store.factory, "core")
        mixin["k"] = 1
        with pytest.raises(hutch.StoreAlreadyOpenError):
            mixin.open_storage(store.factory, "other")
        assert (mixin.namespace, dict(mixin)) == ("core", {"k": 1})
        mixin.close_storage()
        mixin.open_storage(store.factory, "other")
        assert dict(mixin) == {}
        mixin.close_storage()

    def test_a_store_refuses_a_second_live_handle(self, store: hutch.Store) -> None:
        """Store.open and drop raise StoreAlreadyOpenError while a handle lives; once it is closed both work."""
        with store.open("core") as ns:
            ns["k"] = 1
            with pytest.raises(hutch.StoreAlreadyOpenError):
                store.open("core")
            with pytest.raises(hutch.StoreAlreadyOpenError):
                store.drop("core")
            assert ns["k"] == 1
        with store.open("core") as ns:
            assert ns["k"] == 1
        store.drop("core")

    def test_an_empty_storage_is_open(self, ns: hutch.Namespace) -> None:
        """A handle without keys is open, although it is false, as an empty mapping is."""
        assert not ns
        assert ns.is_open_storage()
        ns["k"] = 1
        del ns["k"]
        assert ns.is_open_storage()

    def test_a_with_block_that_raises_closes(self, store: hutch.Store) -> None:
        """A with block that raises closes the handle, passes the error on and keeps what was set."""
        with pytest.raises(LookupError, match="on purpose"), store.open("core") as ns:
            ns["k"] = 1
            raise LookupError("on purpose")
        assert not ns.is_open_storage()
        with store.open("core") as ns:
            assert ns["k"] == 1

    def test_a_dropped_handle_warns_and_loses_nothing(self, store: hutch.Store) -> None:
        """An unclosed handle that is collected gives a ResourceWarning, loses nothing, and can be opened again."""
        ns = store.open("core")
        ns["k"] = 1
        with pytest.warns(ResourceWarning, match="'core'"):
            del ns
            gc.collect()
        with store.open("core") as again:
            assert again["k"] == 1

    def test_store_close_closes_what_is_open_and_warns(self, config: Any) -> None:
        """Store.close closes the handles that are still open, with a warning for each, and loses nothing."""
        store = hutch.connect(config)
        handles = [store.open("a"), store.open("b")]
        for ns in handles:
            ns["k"] = ns.namespace
        with pytest.warns(ResourceWarning) as warned:
            store.close()
        assert len(warned) == 2
        assert not any(ns.is_open_storage() for ns in handles)
        store.close()
        for call in (store.namespaces, lambda: store.open("a"), lambda: store.drop("a")):
            with pytest.raises(hutch.StoreNotOpenError):
                call()
        with hutch.connect(config) as again, again.open("a") as a, again.open("b") as b:
            assert (dict(a), dict(b)) == ({"k": "a"}, {"k": "b"})

    def test_a_close_that_fails_leaves_it_closed(self, store: hutch.Store) -> None:
        """If the storage's close raises, the caller gets the error; the handle is closed and can be opened again."""
        mixin = hutch.StoreMixin()
        mixin.open_storage(_CloseFails(store), "core")
        mixin["k"] = 1
        with pytest.raises(hutch.StorageUnavailableError, match="on purpose"):
            mixin.close_storage()
        assert not mixin.is_open_storage()
        with pytest.raises(hutch.StoreNotOpenError):
            mixin.close_storage()
        mixin.open_storage(store.factory, "core")
        assert mixin["k"] == 1
        mixin.close_storage()

    def test_what_was_set_outlives_handles_and_stores(self, config: Any) -> None:
        """Data is there when the namespace is opened again, in this store and in the next."""
        expected: dict[str, Any] = {}
        for number in range(4):
            with hutch.connect(config) as store:
                for _ in range(3):
                    with store.open("core") as ns:
                        assert dict(ns) == expected
                        ns[f"k{number}"] = expected[f"k{number}"] = [number]
                        ns["last"] = expected["last"] = number

    def test_stores_of_one_process_share_the_data(self, config: Any) -> None:
        """Two stores on one config see each other's writes at once; close and drop in one leave the other working."""
        with hutch.connect(config) as one, one.open("core") as first:
            with hutch.connect(config) as other:
                with other.open("core") as second:
                    first["k"] = 1
                    assert second["k"] == 1
                    second.update(k=2, l=3)
                    assert dict(first) == {"k": 2, "l": 3}
                    second.clear()
                    assert dict(first) == {}
                    first["k"] = 4
                other.drop("core")
                assert dict(first) == {}
                first["k"] = 5
            assert dict(first) == {"k": 5}
            first["l"] = 6
            assert len(first) == 2

    def test_stats_say_where_the_data_is_and_how_much(self, store: hutch.Store) -> None:
        """stats names the engine, its location, version and bytes, counts namespaces and keys, and shows no secret."""
        listing(store)
        for count in (0, 2, 3):
            store["a"].update({f"k{number}": "v" * 100 for number in range(count)})
            store["b"].update({f"k{number}": None for number in range(count)})
            figures = store.stats()
            assert (figures["engine"], figures["location"]) == (store.name, store.location)
            assert (figures["namespaces"], figures["keys"]) == (2 if count else 0, 2 * count)
            assert json.loads(json.dumps(figures)) == figures
            assert {type(figure) for figure in figures.values()} <= {str, int, float, bool}
        shown = f"{figures} {store!r} {store.factory!r} {store['a']!r}"
        assert not [secret for secret in _secrets(store.factory) if secret in shown]
        own = getattr(store.factory, "stats", None)
        if own is not None and own():
            assert isinstance(figures["bytes"], int)
            assert figures["bytes"] > 300
            assert isinstance(figures["version"], str)
            assert figures["version"]
            if store.capabilities & {"shared", "durable"}:
                assert isinstance(figures.get("path", figures.get("server")), str), "expected `path` or `server`"

    def test_closing_lets_go_of_threads_and_files(self, config: Any) -> None:
        """Opening and closing again and again leaves no thread and no open file behind."""

        def life() -> None:
            with hutch.connect(config) as store, store.open("core") as ns, store.open("other") as other:
                ns["k"] = other["k"] = 1
                assert list(ns.scan()) == [("k", 1)]
                next(iter(ns.items()))

        files = Path("/dev/fd")

        def held() -> tuple[int, int]:
            gc.collect()
            return threading.active_count(), len(list(files.iterdir())) if files.is_dir() else 0

        life()
        before = held()
        for _ in range(5):
            life()
        assert held() == before, "(threads, open files) after closing"
