"""Test the how-to for web applications: its examples run under the real servers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

import hutch
from tests.servers import RedisServer
from tests.servers import _free_ports as free_ports

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "web"
PATIENCE_S = 60
VISITS = 40


@contextmanager
def running(folder: Path, *command: str, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program of this environment while the block runs, end it with SIGTERM, and assert that it ends cleanly."""
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=EXAMPLES,
            env={
                **os.environ,
                "HUTCH_STORAGE": f"lmdb://{folder}/state",
                "PYTHONDONTWRITEBYTECODE": "1",
                **environment,
            },
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield process
        process.send_signal(signal.SIGTERM)
        code = process.wait(PATIENCE_S)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(PATIENCE_S)
    printed = (folder / "log").read_text()
    assert code in (0, -signal.SIGTERM), printed
    assert "Traceback" not in printed, printed


def visit(port: int, process: subprocess.Popen[bytes]) -> int:
    """Return the number of visits that the server answers with, once it answers."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/visit/ada", timeout=PATIENCE_S) as answer:
                return int(json.load(answer)["visits"])
        except (urllib.error.URLError, ConnectionError) as error:
            if isinstance(error, urllib.error.HTTPError) or process.poll() is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def stored(folder: Path) -> int:
    with hutch.connect(f"lmdb://{folder}/state") as store, store.open("visits") as visits:
        return int(visits["ada"])


SERVERS = [
    ("flask", "--app", "flask_app", "run", "--port", "{port}"),
    ("gunicorn", "--preload", "-w", "2", "--threads", "4", "-b", "127.0.0.1:{port}", "flask_app:app"),
    ("uvicorn", "--port", "{port}", "fastapi_app:app"),
    ("uvicorn", "--workers", "2", "--port", "{port}", "fastapi_app:app"),
]


@pytest.mark.parametrize("command", SERVERS, ids=["flask", "gunicorn preload", "uvicorn", "uvicorn workers"])
def test_concurrent_requests_lose_no_visit(command: tuple[str, ...], tmp_path: Path) -> None:
    (port,) = free_ports(1)
    with running(tmp_path, *(part.format(port=port) for part in command)) as process:
        assert visit(port, process) == 1
        with ThreadPoolExecutor(8) as pool:
            counts = list(pool.map(lambda _: visit(port, process), range(VISITS)))
        assert sorted(counts) == list(range(2, VISITS + 2))
    assert stored(tmp_path) == VISITS + 1


def test_tasks_of_celery_lose_no_visit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with RedisServer() as server:
        monkeypatch.setenv("BROKER", server.url)
        send = (
            "import celery_app\n"
            f"sent = [celery_app.visit.delay('ada') for _ in range({VISITS})]\n"
            "print(sorted(one.get(timeout=60) for one in sent))"
        )
        command = ("celery", "-A", "celery_app", "worker", "-c", "2", "--without-gossip", "--without-mingle")
        with running(tmp_path, *command, BROKER=server.url):
            done = subprocess.run(
                [sys.executable, "-B", "-c", send], cwd=EXAMPLES, capture_output=True, text=True, timeout=90, check=True
            )
        assert json.loads(done.stdout) == list(range(1, VISITS + 1))
    assert stored(tmp_path) == VISITS


def test_the_page_shows_the_examples_that_run() -> None:
    page = (ROOT / "docs" / "howto" / "web.md").read_text()
    for example in sorted(EXAMPLES.glob("*.py")):
        assert f"```python\n{example.read_text()}```" in page, example.name
