"""Fixtures for all tests: a server for those that need one, and a check that a test cleans up behind itself."""

from __future__ import annotations

import gc
import os
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers import RedisServer

_GRACE_S = 3.0
# The files this process has open are listed here on Linux and on macOS; elsewhere only threads are checked.
_OPEN_FILES = next((folder for folder in (Path("/proc/self/fd"), Path("/dev/fd")) if folder.is_dir()), None)


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """One standalone server (`.url`, `.unix_url`) for the whole run: give every test a `prefix` of its own."""
    with RedisServer() as server:
        yield server


@pytest.fixture(autouse=True)
def no_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    """No test leaves a thread, an open file or an open socket. A test that failed has told enough already."""
    failed_before = request.session.testsfailed
    threads_before, files_before = set(threading.enumerate()), _open_files()
    yield
    if request.session.testsfailed > failed_before:
        return
    deadline = time.monotonic() + _GRACE_S
    while left := [
        *(f"thread {thread.name}" for thread in set(threading.enumerate()) - threads_before),
        *(f"open {what}" for what in _open_files() - files_before),
    ]:
        if time.monotonic() > deadline:
            pytest.fail(f"the test left behind: {', '.join(sorted(left))}")
        # What only the garbage collector can close is closed; threads get a moment to end.
        gc.collect()
        time.sleep(0.01)


def _open_files() -> set[str]:
    """Regular files and sockets. Pipes and the like are left out: the interpreter keeps some for itself."""
    found: set[str] = set()
    if _OPEN_FILES is None:
        return found
    for name in os.listdir(_OPEN_FILES):
        try:
            status = os.fstat(int(name))
        except OSError:  # the one that listed the folder
            continue
        if stat.S_ISSOCK(status.st_mode) or stat.S_ISREG(status.st_mode):
            found.add(f"{_path_of(name)} (inode {status.st_ino})")
    return found


def _path_of(name: str) -> str:
    assert _OPEN_FILES is not None
    try:
        return os.readlink(_OPEN_FILES / name)
    except OSError:  # macOS: no links there
        return f"file descriptor {name}"
