"""Run the `hutch` command in tests: in this process, as a process, and the fixtures that its tests share."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import hutch
from hutch.cli.run import run as run_command

TIMEOUT_S = 60
POSIX_ONLY = pytest.mark.skipif(os.name != "posix", reason="needs signals and terminals as POSIX has them")


@dataclass
class Result:
    code: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def a_place_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("HUTCH_"):
            monkeypatch.delenv(name)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"lmdb://{tmp_path}/store"


def hutch_(*arguments: str, stdin: bytes = b"") -> Result:
    """Run the command in this process; what it prints must be UTF-8."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
    given = io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr(sys, "stdin", given)
        code = run_command(list(arguments))
    texts = []
    for stream in (out, err):
        stream.flush()
        assert isinstance(stream.buffer, io.BytesIO)
        texts.append(stream.buffer.getvalue().decode())
    return Result(code, *texts)


def hutch_process(*arguments: str, timeout_s: float = TIMEOUT_S, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the command as users do."""
    return subprocess.run(
        [sys.executable, "-m", "hutch", *arguments],
        capture_output=True,
        encoding="utf-8",
        timeout=timeout_s,
        check=False,
        **options,
    )


def fill(config: Any, **namespaces: dict[str, Any]) -> None:
    with hutch.connect(config) as store:
        for name, items in namespaces.items():
            with store.open(name) as handle:
                handle.update(items)


def held(config: Any, namespace: str) -> dict[str, Any]:
    with hutch.connect(config) as store, store.open(namespace) as handle:
        return dict(handle)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def interrupt(process: subprocess.Popen[bytes]) -> None:
    """Press Ctrl-C repeatedly: a signal before the process waits for input is noticed only after the next key."""
    deadline = time.monotonic() + TIMEOUT_S
    while process.poll() is None:
        assert time.monotonic() < deadline
        process.send_signal(signal.SIGINT)
        time.sleep(0.1)
