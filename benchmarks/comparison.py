"""Compare hutch with its peers: each store in its own process, all of them alternating within each round."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .flushes import preloaded, why_not
from .peers import STORES, Store
from .worker import OPERATIONS

_ROOT = Path(__file__).parent.parent
#: A round of an operation takes about this long, or one call.
_ROUND_S = 0.02
_MOST_CALLS = 2000
#: A store that needs longer than this per call takes part in the first rounds only.
_SLOW_S, _LEAST_ROUNDS = 0.2, 5
#: The factor of extra rounds for operations that wait for the disk, because the time of a flush varies.
_FLUSHING = 3
_WRITES = {"set": 200, "add_delete": 100, "update": 5, "counter": 100}


@dataclass
class Row:
    """The measurements of one store."""

    store: Store
    python: str = ""
    note: str = ""
    versions: str = ""
    #: Why it is missing from the table.
    missing: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    #: The time of the comparable hutch store divided by this store's.
    ratios: dict[str, float] = field(default_factory=dict)
    #: Per call, counted.
    flushes: dict[str, float] = field(default_factory=dict)


class Worker:
    """A store's process; see worker.py."""

    def __init__(
        self, name: str, python: str, folder: Path, keys: int, environment: dict[str, str] | None = None
    ) -> None:
        self._process = subprocess.Popen(
            # Its warnings address users who choose a store.
            [python, "-W", "ignore", "-m", "benchmarks.worker", name, str(folder), str(keys)],
            cwd=_ROOT,
            env={**(environment or os.environ), "PYTHONDONTWRITEBYTECODE": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def hear(self) -> Any:
        assert self._process.stdout is not None
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{self._process.args!r} ended with status {self._process.wait()}")
        return json.loads(answer)

    def do(self, operation: str, calls: int) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"operation": operation, "calls": calls}) + "\n")
        self._process.stdin.flush()
        return self.hear()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


def find(store: Store) -> tuple[str, str]:
    """Return the first available Python that can import what `store` needs, and the versions; ("", "") if none can."""
    code = (
        "import importlib, importlib.metadata as m, sys\n"
        f"for name in {store.modules}: importlib.import_module(name)\n"
        f"print(', '.join(f'{{name}} {{m.version(name)}}' for name in {store.packages}))"
    )
    for python in _pythons():
        # Not from the checkout: use only what is installed in that Python.
        ran = subprocess.run([python, "-c", code], check=False, capture_output=True, text=True, cwd="/")
        if not ran.returncode:
            return python, ran.stdout.strip()
    return "", ""


def _pythons() -> list[str]:
    """Return this Python, Errbot's from its environment, the system's, often with other dialects of dbm, and a 3.13."""
    found = [sys.executable, os.environ.get("HUTCH_ERRBOT_PYTHON"), str(_ROOT / ".venvs/errbot/bin/python")]
    found += ["/usr/bin/python3", str(_ROOT / ".venvs/3.13/bin/python"), shutil.which("python3.13")]
    finder = _ROOT / "scripts/find-python"
    if os.name == "posix":
        found.append(subprocess.run([finder, "3.13"], check=False, capture_output=True, text=True).stdout.strip())
    return list(dict.fromkeys(python for python in found if python and Path(python).exists()))


def compare(names: list[str], folder: Path, keys: int, rounds: int, say: Callable[[str], None]) -> dict[str, Row]:
    """Measure every store of `names` and the hutch store comparable with it."""
    wanted = dict.fromkeys([*names, *(beside for name in names if (beside := STORES[name].beside))])
    rows = {name: Row(STORES[name]) for name in STORES if name in wanted}
    pythons: dict[str, str] = {}
    for name, row in rows.items():
        pythons[name], row.versions = find(row.store)
        if not pythons[name]:
            row.missing = f"no Python here has {', '.join(row.store.modules)}"
            say(f"  LEFT OUT: {name}: {row.missing}")
    here = [name for name, row in rows.items() if not row.missing]
    _count_flushes(here, pythons, rows, folder, say)
    with ExitStack() as stack:
        workers = {
            name: stack.enter_context(Worker(name, pythons[name], folder / f"{number}", keys))
            for number, name in enumerate(here)
        }
        offers: dict[str, list[str]] = {}
        for name, worker in workers.items():
            about = worker.hear()
            offers[name], rows[name].python, rows[name].note = about["offers"], about["python"], about["note"]
        for operation in OPERATIONS:
            able = {name: workers[name] for name in here if operation in offers[name]}
            _measure(operation, able, rows, rounds)
            say(f"  {OPERATIONS[operation].replace('`', '')}")
    return rows


def _measure(operation: str, workers: dict[str, Worker], rows: dict[str, Row], rounds: int) -> None:
    calls = {name: _calls(worker, operation) for name, worker in workers.items()}
    taken: dict[str, list[float]] = {name: [] for name in workers}
    for number in range(rounds * _FLUSHING):
        for name, worker in workers.items():
            row = rows[name]
            beside = rows.get(row.store.beside, row)
            flushes = max(row.flushes.get(operation, 0), beside.flushes.get(operation, 0))
            if number >= rounds and flushes < 1:
                continue
            if number >= _LEAST_ROUNDS and taken[name][0] > _SLOW_S:
                continue
            taken[name].append(worker.do(operation, calls[name])["seconds"] / calls[name])
    for name, seconds in taken.items():
        rows[name].seconds[operation] = statistics.median(seconds)
        ours = taken.get(rows[name].store.beside)
        if ours:
            rows[name].ratios[operation] = statistics.median(a / b for a, b in zip(ours, seconds, strict=False))


def _calls(worker: Worker, operation: str) -> int:
    worker.do(operation, 1)
    calls = 1
    while True:
        seconds = worker.do(operation, calls)["seconds"]
        if seconds >= _ROUND_S / 4 or calls >= _MOST_CALLS:
            return max(1, min(_MOST_CALLS, int(calls * _ROUND_S / seconds)))
        calls = min(_MOST_CALLS, calls * 8)


def _count_flushes(
    names: list[str], pythons: dict[str, str], rows: dict[str, Row], folder: Path, say: Callable[[str], None]
) -> None:
    """Count flushes in separate runs, so that counting does not affect the measurements."""
    if reason := why_not():
        say(f"  LEFT OUT: the numbers of flushes: {reason}")
        return
    environment = preloaded(folder)
    for number, name in enumerate(names):
        with Worker(name, pythons[name], folder / f"counted {number}", 1000, environment) as worker:
            offers = worker.hear()["offers"]
            for operation, calls in _WRITES.items():
                if operation in offers:
                    rows[name].flushes[operation] = worker.do(operation, calls)["flushes"] / calls
