"""Fixtures of all bridges' tests: a URL of each engine, and connections that end with the test.

A bridge is tested in an environment that has its framework; `make bridges` makes one for each. Elsewhere its file is
left out, and the header of the run says so.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from hutch.bridges.connections import close_shared

# The module that a test file needs: one of its framework, which also distinguishes Themis 4 from Themis 1.
_NEEDS = {
    "test_dotevals.py": "dotevals",
    "test_exengine.py": "exengine",
    "test_keyvalue.py": "key_value.aio",
    "test_ragas.py": "ragas",
    "test_themis.py": "themis.core.stores",
    "test_themis1.py": "themis.storage",
    "test_web.py": "flask",
}


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False


collect_ignore = [file for file, module in _NEEDS.items() if not _is_there(module)]


def pytest_report_header() -> str:
    return f"bridges that are not tested here, for want of their framework: {', '.join(collect_ignore)}"


@pytest.fixture(params=["memory", "lmdb", "sqlite", "redis"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return a new, empty storage of each engine."""
    return url_of(request, tmp_path)


@pytest.fixture(params=["lmdb", "sqlite", "redis"])
def lasting_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return a new, empty storage of each engine that other processes can use, and that outlives them."""
    return url_of(request, tmp_path)


def url_of(request: pytest.FixtureRequest, folder: Path) -> str:
    """Return a new, empty storage of the engine of `request`."""
    engine: str = request.param
    if engine == "memory":
        return "memory://"
    if engine == "redis":
        return f"{request.getfixturevalue('redis_server').url}?prefix={uuid.uuid4().hex}"
    return f"{engine}://{(folder / f'{engine}-store').as_posix()}"


@pytest.fixture(autouse=True)
def shared_connections_end_here(no_leaks: None) -> Iterator[None]:
    """Close the shared connections before `no_leaks` looks."""
    yield
    close_shared()
