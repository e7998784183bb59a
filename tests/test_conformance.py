"""Test every built-in engine with the suite that plugin authors run, without overrides.

test_conformance_servers.py runs it on other servers and topologies of the redis engine.
"""

from __future__ import annotations

import dbm
import uuid
from pathlib import Path
from typing import Any

import pytest

from hutch.testing import StorageSuite
from tests.servers import RedisServer


@pytest.fixture(autouse=True)
def no_coverage_where_handlers_raise(request: pytest.FixtureRequest) -> None:
    """Run the promises about signal handlers and finalizers without coverage, whose tracer drops what they raise."""
    if any(word in request.node.name for word in ("handler", "point", "finalizer", "signal")):
        request.getfixturevalue("unmeasured")


class TestMemory(StorageSuite):
    @pytest.fixture
    def config(self) -> Any:
        return f"memory://{uuid.uuid4().hex}"


class TestLmdb(StorageSuite):
    @pytest.fixture
    def config(self, tmp_path: Path) -> Any:
        return f"lmdb://{tmp_path / 'data'}"


class TestSqlite(StorageSuite):
    @pytest.fixture
    def config(self, tmp_path: Path) -> Any:
        return f"sqlite://{tmp_path / 'kv.db'}"


class TestShelf(StorageSuite):
    @pytest.fixture
    def config(self, tmp_path: Path) -> Any:
        return f"shelf://{tmp_path / 'data'}"

    def corrupt(self, config: Any, namespace: str, key: str) -> None:
        file = f"{config.removeprefix('shelf://')}/{namespace}.db"
        with dbm.open(file, "w") as database:
            database[key.encode()] = b"\x80\x02" + database[key.encode()][5:]


class TestRedis(StorageSuite):
    @pytest.fixture
    def config(self, redis_server: RedisServer) -> Any:
        return f"{redis_server.url}?prefix={uuid.uuid4().hex}"
