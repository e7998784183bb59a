"""Test that a store and its handles show where the data is, and never a secret."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

import hutch
import hutch.aio
from hutch.config import read_config, shown_location


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


@pytest.mark.parametrize("url", ["memory://", "lmdb://state", "sqlite://state.db", "shelf://shelves"])
def test_stats_count_namespaces_and_keys_and_are_plain(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with hutch.connect(url) as store:
        store["a"].update({"1": 1, "2": 2})
        with store.open("b") as handle:
            handle["1"] = 1
            assert store.stats()["keys"] == 3
        found = store.stats()
        assert (found["engine"], found["location"]) == (store.name, store.location)
        assert (found["namespaces"], found["keys"]) == (2, 3)
        assert json.loads(json.dumps(found)) == found
        if url.startswith(("lmdb", "sqlite")):
            assert int(str(found["bytes"])) > 0
            assert str(found[store.name])[0].isdigit(), "the version of the engine"
        assert all(isinstance(figure, str | int | float | bool) for figure in found.values())
