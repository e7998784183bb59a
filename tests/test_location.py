"""Test that a store and its handles show where the data is, and never a secret."""

from __future__ import annotations

import asyncio
import logging
import sys
from contextlib import closing
from pathlib import Path
from types import FrameType

import pytest

import hutch
import hutch.aio
from hutch.config import read_config, shown_location
from tests.servers import RedisServer


def test_the_repr_of_a_store_and_a_namespace_shows_where_the_data_is(tmp_path: Path) -> None:
    where = f"lmdb://{(tmp_path / 'state').as_posix()}"
    for config in (where, tmp_path / "state", {"STORAGE": "lmdb", "STORAGE_CONFIG": {"path": str(tmp_path / "state")}}):
        with hutch.connect(config) as store:
            assert repr(store) == f"<hutch.Store {where}, open>"
            with store.open("core") as core:
                assert repr(core) == f"<hutch.Namespace 'core' of {where}, open>"
            assert repr(core) == f"<hutch.Namespace 'core' of {where}, closed>"
        assert repr(store) == f"<hutch.Store {where}, closed>"

    async def main() -> None:
        async with hutch.aio.connect(where) as store, store.open("core") as core:
            assert repr(store) == f"<hutch.aio.Store {where}, open>"
            assert repr(core) == f"<hutch.aio.Namespace 'core' of {where}, open>"

    asyncio.run(main())


@pytest.mark.parametrize(
    ("config", "option", "shown"),
    [
        ("redis://u:s3cr3t@host:1/0?password=s3cr3t", "url", "redis://***@host:1/0"),
        ({"STORAGE": "redis", "STORAGE_CONFIG": {"url": "redis://:s3cr3t@h?password=s3cr3t"}}, "url", "redis://***@h"),
        ({"STORAGE": "redis", "STORAGE_CONFIG": {"password": "s3cr3t"}}, "url", "redis://"),
        ("memory://name", "name", "memory://name"),
        ({"STORAGE": "sqlite", "STORAGE_CONFIG": {"path": "kv.db", "key": "s3cr3t"}}, "path", "sqlite:///here/kv.db"),
    ],
)
def test_no_location_holds_a_secret(config: object, option: str, shown: str) -> None:
    found = shown_location(read_config(config, environ={}, cwd=Path("/here").absolute()), option)
    assert found == shown or found.endswith("/here/kv.db")
    assert "s3cr3t" not in found


def test_the_repr_of_an_engine_shows_where_the_data_is(tmp_path: Path) -> None:
    for scheme in ("lmdb", "sqlite", "shelf"):
        where = f"{scheme}://{(tmp_path / scheme).as_posix()}"
        with hutch.connect(where) as store, closing(store.factory.open("core")) as storage:
            factory = repr(store.factory)
            assert factory == f"<{type(store.factory).__name__} {where}>"
            assert repr(storage) == f"<{type(storage).__name__} 'core' of {factory}>"
    built_by_hand = type(store.factory)({"basedir": str(tmp_path)})
    assert repr(built_by_hand) == "<ShelfPlugin>"


def test_the_log_shows_where_the_data_is_and_no_secret(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    url = redis_server.url.replace("://", "://default:s3cr3t@")
    with caplog.at_level("INFO", "hutch"):
        hutch.connect(f"{url}?lazy_connect=true").close()
        hutch.connect("memory://").close()
    first, second = (record.getMessage() for record in caplog.records)
    assert (first, second) == (f"connected to {redis_server.url.replace('://', '://***@')}", "connected to memory://")


def test_connecting_again_takes_no_lock_of_logging() -> None:
    """Before Python 3.13 they stay taken if a signal handler raises, and then every other thread waits for ever."""
    hutch.connect("memory://").close()
    called: list[str] = []

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_filename == logging.__file__:
            called.append(frame.f_code.co_name)

    sys.setprofile(note)
    try:
        hutch.connect("memory://").close()
    finally:
        sys.setprofile(None)
    assert called
    assert not {name for name in called if "ock" in name or name in {"acquire", "getLogger"}}


@pytest.mark.parametrize("url", ["lmdb://state", "sqlite://state.db", "shelf://shelves"])
def test_stats_of_an_empty_store_and_of_a_reader_have_the_same_keys(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with hutch.connect(url) as store:
        empty = store.stats()
        store["a"]["k"] = 1
    with hutch.connect(f"{url}?readonly=true") as reader:
        found = reader.stats()
    for figures in (empty, found):
        assert {"engine", "location", "namespaces", "keys", "path", "bytes", "version"} <= figures.keys()
    assert (empty["bytes"], empty["keys"], found["keys"]) == (0, 0, 1)
    assert int(str(found["bytes"])) > 0
    assert found["version"] == empty["version"]


def test_the_reference_names_the_keys_of_stats() -> None:
    described = str(hutch.Store.stats.__doc__)
    for key in ("engine", "location", "namespaces", "keys", "bytes", "version", "path", "server"):
        assert f"`{key}`" in described
