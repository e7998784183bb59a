"""Every built-in engine keeps every promise: the suite that any plugin author runs, without overrides."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import pytest

from hutch.testing import StorageSuite


class TestMemory(StorageSuite):
    @pytest.fixture
    def config(self) -> Any:
        return f"memory://{uuid.uuid4().hex}"


class TestLmdb(StorageSuite):
    @pytest.fixture
    def config(self, tmp_path: Path) -> Any:
        return f"lmdb://{tmp_path / 'data'}"
