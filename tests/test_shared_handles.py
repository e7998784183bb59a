"""Test `store[name]`: one handle for all threads, which only its store closes."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import gc
import os
import pickle
import threading
import warnings
import weakref
from pathlib import Path
from typing import Any

import pytest

import hutch
import hutch.aio
from hutch.pickling import close_unpickled
from hutch.testing.signal_points import Interrupt, Visit, points, raise_interrupt, run_at


@pytest.fixture(params=["memory://", "lmdb://state", "sqlite://state.db", "shelf://shelves"])
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    return str(request.param)


def test_it_is_one_handle_that_only_the_store_closes(url: str) -> None:
    with hutch.connect(url) as store:
        core = store["core"]
        core["k"] = 1
        core.close()
        with store["core"] as same:
            assert same is core
        assert core.is_open_storage()
        assert store["core"]["k"] == 1
        assert store["other"] is not core
    assert not core.is_open_storage()
    with pytest.raises(hutch.StoreNotOpenError):
        core["k"]
    with pytest.raises(hutch.StoreNotOpenError):
        store["core"]


def test_threads_that_ask_at_once_get_one_handle(url: str) -> None:
    together = threading.Barrier(8)
    found: list[Any] = []

    def ask() -> None:
        together.wait(30)
        core = store["core"]
        core.modify("n", lambda n: n + 1, default=0)
        core.close()
        found.append(core)

    with hutch.connect(url) as store:
        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert len(found) == 8
        assert len(set(map(id, found))) == 1
        assert store["core"]["n"] == 8


def test_an_exclusive_handle_and_the_shared_one_exclude_each_other(url: str) -> None:
    with hutch.connect(url) as store:
        shared = store["core"]
        with pytest.raises(hutch.StoreAlreadyOpenError, match=r"shared handle, .*use store\['core'\] here too"):
            store.open("core")
        with store.open("mine") as mine, pytest.raises(hutch.StoreAlreadyOpenError, match="live handle"):
            store["mine"]
        assert not mine.is_open_storage()
        store["mine"]["k"] = 1
        assert shared.is_open_storage()


def test_drop_removes_its_data_and_the_same_handle_opens_again(url: str) -> None:
    with hutch.connect(url) as store:
        core = store["core"]
        core["k"] = 1
        store.drop("core")
        assert store.namespaces() == []
        assert store["core"] is core
        assert dict(core) == {}
        core["k"] = 2
        core.close()
        assert store["core"]["k"] == 2


@pytest.mark.parametrize("name", [7, None, b"core", ["core"], "", "a\0b"])
def test_a_name_that_no_namespace_can_have_is_refused(name: Any) -> None:
    with hutch.connect("memory://") as store, pytest.raises(hutch.NamespaceError):
        store[name]


def test_a_store_is_no_mapping_and_says_what_to_use() -> None:
    with hutch.connect("memory://") as store:
        for use, advice in (
            (lambda: "core" in store, r"store\.namespaces\(\)"),
            (lambda: list(store), r"store\.namespaces\(\)"),
            (lambda: dict(store), r"store\.namespaces\(\)"),
            (lambda: store.__setitem__("core", {}), r"store\[name\]\.update\(items\)"),
            (lambda: store.__delitem__("core"), r"store\.drop\(name\)"),
        ):
            with pytest.raises(TypeError, match=advice):
                use()


def test_it_is_not_pickled_or_copied_and_what_to_send_instead_works(tmp_path: Path) -> None:
    with hutch.connect(tmp_path / "state") as store:
        store["core"]["k"] = 1
        with pytest.raises(TypeError, match="Send the store and the name"):
            pickle.dumps(store["core"])
        for copied in (copy.copy, copy.deepcopy):
            with pytest.raises(TypeError, match=r"dict\(namespace\)"):
                copied(store["core"])
        sent, name = pickle.loads(pickle.dumps((store, "core")))
        assert sent[name]["k"] == 1
    close_unpickled()


def test_a_closed_store_and_its_shared_handles_are_freed_without_the_garbage_collector(url: str) -> None:
    def use() -> list[weakref.ref[Any]]:
        with hutch.connect(url) as store:
            store["core"]["k"] = 1
            return [weakref.ref(store), weakref.ref(store["core"])]

    gc.collect()
    gc.disable()
    try:
        assert [reference() for reference in use()] == [None, None]
    finally:
        gc.enable()


def test_a_store_that_nobody_closes_is_closed_silently_with_its_shared_handles(url: str) -> None:
    if url.startswith("shelf"):
        return  # Python itself warns of files that the garbage collector closes
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        handle = hutch.connect(url)["core"]
        handle["k"] = 1
        assert handle["k"] == 1, "a handle keeps its store"
        del handle
        gc.collect()
    with hutch.connect(url) as store:
        assert store["core"].get("k") == (None if url == "memory://" else 1)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_uses_it_even_if_another_thread_was_opening_one(tmp_path: Path) -> None:
    held, done = threading.Event(), threading.Event()
    with hutch.connect(tmp_path / "state") as store:
        store["core"]["k"] = 1

        def hold() -> None:
            with store._opening.current:
                held.set()
                done.wait(60)

        thread = threading.Thread(target=hold)
        thread.start()
        assert held.wait(60)
        child = os.fork()
        if not child:
            os._exit(0 if store["core"]["k"] == 1 and store["new"].get("k") is None else 1)
        done.set()
        thread.join(60)
        assert os.waitpid(child, 0)[1] == 0
        assert store["new"] is store["new"]


def test_wherever_a_signal_handler_raises_the_next_use_opens_it() -> None:
    stores = [hutch.connect("memory://")]

    def use() -> None:
        stores[-1]["core"]

    for point in points(use):
        with hutch.connect("memory://") as store:
            stores.append(store)
            with contextlib.suppress(Interrupt):
                Visit(point, raise_interrupt).run(use)
            core = store["core"]
            core["k"] = 1
            core.close()
            assert store["core"] is core
            store.drop("core")
            assert dict(store["core"]) == {}
    stores[0].close()


def test_a_signal_handler_that_uses_it_gets_the_handle_of_the_call_that_it_interrupts() -> None:
    stores = [hutch.connect("memory://")]
    handles: list[Any] = []

    def use() -> None:
        handles.append(stores[-1]["core"])

    for point in points(use):
        with hutch.connect("memory://") as store:
            stores.append(store)
            handles.clear()
            run_at(point, use, use)
            assert len(handles) == 2
            assert handles[0] is handles[1]
            assert handles[0].is_open_storage()
    stores[0].close()


def test_with_asyncio_it_is_awaited_and_the_same_for_every_task_and_loop(url: str) -> None:
    async def use(store: hutch.aio.Store) -> hutch.aio.Namespace:
        core = await store["core"]
        await core.modify("n", lambda n: n + 1, default=0)
        await core.close()
        async with store["core"] as same:
            assert same is core
        return core

    async def main() -> tuple[hutch.aio.Store, hutch.aio.Namespace]:
        store = await hutch.aio.connect(url)
        found = await asyncio.gather(*(use(store) for _ in range(8)))
        assert len(set(map(id, found))) == 1
        with pytest.raises(hutch.StoreAlreadyOpenError, match="shared handle"):
            await store.open("core")
        return store, found[0]

    store, core = asyncio.run(main())

    async def again() -> None:
        assert await use(store) is core, "in another event loop"
        assert await core.get("n") == 9
        await store.drop("core")
        assert await store["core"] is core
        assert await core.len() == 0
        await store.close()
        with pytest.raises(hutch.StoreNotOpenError):
            await core.get("n")
        with pytest.raises(hutch.StoreNotOpenError):
            await store["core"]

    asyncio.run(again())


def test_with_asyncio_connect_takes_app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HUTCH_STORAGE", "HUTCH_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    for name in ("XDG_DATA_HOME", "LOCALAPPDATA", "HOME"):
        monkeypatch.setenv(name, str(tmp_path))

    async def main() -> None:
        async with hutch.aio.connect(app="my-bot") as store:
            await (await store["core"]).set("k", 1)

    asyncio.run(main())
    (made,) = tmp_path.rglob("my-bot")
    with hutch.connect(app="my-bot") as store:
        assert store["core"]["k"] == 1
    if os.name == "posix":
        assert made.stat().st_mode & 0o777 == 0o700
        assert (made / "store").stat().st_mode & 0o777 == 0o700
