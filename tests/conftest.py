"""Fixtures for all tests: servers, a small disk, and an assertion that a test cleans up."""

from __future__ import annotations

import functools
import gc
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

from tests.servers import RedisServer

if TYPE_CHECKING:
    from tests.redis_cluster import RedisCluster

_GRACE_S = 3.0
# A busy machine must not fail a test; each test has a time limit of its own.
settings.register_profile("hutch", deadline=None)
settings.load_profile("hutch")
# The open files of this process are listed here on Linux and macOS; elsewhere only threads are compared.
_OPEN_FILES = next((folder for folder in (Path("/proc/self/fd"), Path("/dev/fd")) if folder.is_dir()), None)


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Stop what else measures when pytest-cov has paused: in a worker of xdist, coverage is started up to three times.

    A measured process has coverage start by itself in each process that it starts, and pytest-cov starts one for a
    worker that it does not yet know to be one.
    """
    coverage: Any = sys.modules.get("coverage")
    if coverage is not None and item.get_closest_marker("no_cover"):
        while measuring := coverage.Coverage.current():
            measuring.stop()
    return (yield)


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """Yield one standalone server (`.url`, `.unix_url`) for the whole run: give every test its own `prefix`."""
    with RedisServer() as server:
        yield server


@pytest.fixture
def prefix() -> str:
    """Return a prefix of this test's own, for the keys on a server that tests share."""
    return f"t{uuid.uuid4().hex}"


@pytest.fixture(scope="session")
def redis_cluster() -> Iterator[RedisCluster]:
    """Yield one cluster of three shards with replicas for the whole run: give every test its own `prefix`."""
    # Here: a Python without the driver's dependencies runs the tests of the shelf's dialects.
    from tests.redis_cluster import RedisCluster

    with RedisCluster() as cluster:
        yield cluster


@pytest.fixture
def unmeasured_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start processes without coverage, which doubles their time: where a test starts many, or tests other engines."""
    for name in os.environ:
        if name.startswith("COV"):
            monkeypatch.delenv(name)


@pytest.fixture
def unmeasured(request: pytest.FixtureRequest, unmeasured_processes: None) -> Iterator[None]:
    """Run the test and the processes it starts without coverage and without callbacks of the garbage collector.

    The lock of coverage's tracer, which all threads take, stays locked for good in a child that is forked meanwhile,
    and after Ctrl-C. And Python drops what a signal handler raises inside a callback of the collector, of which
    hypothesis has one. Nor does the collector finalize what earlier tests left: their objects stay as they are until
    the test ends.
    """
    request.node.add_marker("no_cover")
    callbacks = gc.callbacks[:]
    gc.callbacks.clear()
    gc.freeze()
    yield
    gc.unfreeze()
    gc.callbacks[:] = callbacks


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Yield a disk of 2 MiB, in memory; `mount -o remount,...` enlarges it or makes it read-only. Linux only."""
    folder = tmp_path / "small"
    folder.mkdir()
    if not may_mount():
        yield folder  # unused: pytest_pyfunc_call runs the test in a process that may mount
        return
    _mount("-t", "tmpfs", "-o", "size=2m", "tmpfs", folder)
    yield folder
    # Lazily: a failed test may have left files open.
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture
def few_signals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the conformance kit interrupt each verb a few times only, in a check whose subject is something else."""
    monkeypatch.setenv("HUTCH_INTERRUPTS", "20")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the tests that take longest, and give the long form of the conformance kit more time."""
    items.sort(key=lambda item: -max((mark.args[0] for mark in item.iter_markers("timeout")), default=0))
    signals = int(os.environ.get("HUTCH_INTERRUPTS", "0"))
    if signals >= 1000:
        for item in items:
            item.add_marker(pytest.mark.timeout(600 + signals))


def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a test that needs a small disk as root of its own user namespace if this user may not mount."""
    if "small_disk" not in pyfuncitem.fixturenames or may_mount():
        return None
    if sys.platform != "linux":
        pytest.skip("a small disk is made by Linux's tmpfs")
    if shutil.which("unshare") is None and os.environ.get("CI"):
        pytest.fail("unshare is missing, of the package util-linux")
    inside = ["unshare", "--user", "--map-root-user", "--mount"]
    if _IN_NAMESPACE in os.environ or subprocess.run([*inside, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this user cannot mount a small disk, also not in a user namespace")
    done = subprocess.run(
        [*inside, sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", pyfuncitem.nodeid],
        cwd=pyfuncitem.config.rootpath,
        env={**os.environ, _IN_NAMESPACE: "1"},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    if "1 skipped" in done.stdout:
        pytest.skip(done.stdout[-500:])
    assert done.returncode == 0, done.stdout[-5000:]
    assert "1 passed" in done.stdout, done.stdout[-5000:]
    return True


_IN_NAMESPACE = "HUTCH_TEST_IN_NAMESPACE"


@functools.cache
def may_mount() -> bool:
    """Return whether this process may mount a file system."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            _mount("-t", "tmpfs", "tmpfs", folder)
            subprocess.run(["umount", folder], check=True)
        except (OSError, subprocess.CalledProcessError):
            return False
    return True


def _mount(*arguments: str | Path) -> None:
    subprocess.run(["mount", *arguments], check=True, capture_output=True)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Show what a test counted, even if it passed: ``record_property("counted", text)``."""
    reports = [report for kind in terminalreporter.stats.values() for report in kind if hasattr(report, "nodeid")]
    lines = [
        f"{report.nodeid}: {value}"
        for report in reports
        for name, value in getattr(report, "user_properties", ())
        if name == "counted" and report.when == "call"
    ]
    if lines:
        terminalreporter.section("what was counted")
        for line in lines:
            terminalreporter.write_line(line)


@pytest.fixture(autouse=True)
def no_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Assert that no test leaves a thread, an open file or an open socket. Failed tests are exempt."""
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
