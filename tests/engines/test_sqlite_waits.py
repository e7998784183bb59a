"""Test waiting for SQLite's single writer: fair among threads and processes, bounded, and interruptible."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import hutch
from tests.engines.test_sqlite import connect, in_child, needs_fork, needs_posix, raw

PATIENCE_S = 90.0
# A writer gets to write within a second; on a machine busy with ten other things, within ten.
TURN_S = 1.0
SLOW_MACHINE = 10

_WRITE_IN_A_LOOP = """
import json, sys, threading, time, hutch
url, name, threads, seconds, pause_s = sys.argv[1], sys.argv[2], *map(float, sys.argv[3:])
longest = []
with hutch.connect(url) as store, store.open("core") as ns:
    ns[name] = 0
    print("ready", flush=True)
    sys.stdin.readline()
    def write(key):
        end, waits = time.monotonic() + seconds, []
        while (began := time.monotonic()) < end or len(waits) < 3:
            ns[key] = 1
            waits.append(time.monotonic() - began)
            time.sleep(pause_s) if pause_s else None
        longest.append(max(waits))
    crowd = [threading.Thread(target=write, args=(f"{name} {n}",)) for n in range(int(threads))]
    [thread.start() for thread in crowd]
    [thread.join() for thread in crowd]
print(json.dumps(max(longest)), flush=True)
"""


def longest_wait_s(url: str, processes: int, threads: int, pause_s: float) -> float:
    command = [sys.executable, "-c", _WRITE_IN_A_LOOP, url]
    crowd = [
        subprocess.Popen(
            [*command, f"p{number}", str(threads), "0.7", str(pause_s)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(processes)
    ]
    for process in crowd:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    longest = [json.loads(process.communicate("go\n", timeout=PATIENCE_S)[0]) for process in start_together(crowd)]
    return float(max(longest))


def start_together(crowd: list[subprocess.Popen[str]]) -> list[subprocess.Popen[str]]:
    for process in crowd:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    return crowd


@pytest.mark.parametrize(("processes", "threads"), [(1, 2), (1, 8), (1, 32), (2, 1), (8, 1), (4, 4)])
@pytest.mark.parametrize(("durability", "pause_s"), [("strict", 0), ("normal", 0), ("normal", 0.001), ("relaxed", 0)])
def test_every_writer_is_served(tmp_path: Path, processes: int, threads: int, pause_s: float, durability: str) -> None:
    url = f"sqlite://{(tmp_path / 'kv.db').as_posix()}?durability={durability}"
    longest = longest_wait_s(url, processes, threads, pause_s)
    print(f"{processes} x {threads} threads, {durability}, {pause_s} s between writes: longest wait {longest:.3f} s")
    assert longest < TURN_S * SLOW_MACHINE


_HOLD = """
import sqlite3, sys
database = sqlite3.connect(sys.argv[1], isolation_level=None)
database.execute("BEGIN IMMEDIATE")
print("held", flush=True)
sys.stdin.read()
"""


@needs_posix
@pytest.mark.parametrize("verb", ["set", "update", "clear", "modify"])
def test_a_wait_for_a_stopped_process_ends_and_names_it(tmp_path: Path, verb: str) -> None:
    path = tmp_path / "kv.db"
    calls: dict[str, Any] = {
        "set": lambda ns: ns.__setitem__("k", 2),
        "update": lambda ns: ns.update(k=2),
        "clear": lambda ns: ns.clear(),
        "modify": lambda ns: ns.modify("k", lambda value: value + 1),
    }
    with connect(path, wait_s=0.3) as store, store.open("core") as ns:
        ns["k"] = 1
        with subprocess.Popen(
            [sys.executable, "-c", _HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as holder:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "held\n"
            holder.send_signal(signal.SIGSTOP)
            try:
                os.waitid(os.P_PID, holder.pid, os.WSTOPPED | os.WNOWAIT)
                began = time.monotonic()
                whom = rf"process {holder.pid} .*which is stopped" if sys.platform == "linux" else "other processes"
                with pytest.raises(hutch.StorageTimeoutError, match=rf"kv\.db was kept busy by {whom}.* for 0\.3 s"):
                    calls[verb](ns)
                assert 0.3 <= time.monotonic() - began < 0.3 * SLOW_MACHINE + 2
                assert ns["k"] == 1  # reads do not wait
            finally:
                holder.send_signal(signal.SIGCONT)
            assert holder.stdin is not None
            holder.stdin.close()
            holder.wait(PATIENCE_S)
        calls[verb](ns)


_INTERRUPTED = """
import hutch, signal, sys, time
with hutch.connect(sys.argv[1]) as store, store.open("core") as ns:
    print("ready", flush=True)
    try:
        ns["k"] = 2
    except KeyboardInterrupt:
        print("interrupted", flush=True)
"""


@needs_posix
def test_ctrl_c_ends_a_wait_for_another_process_at_once(tmp_path: Path) -> None:
    path = tmp_path / "kv.db"
    with connect(path) as store, store.open("core") as ns:
        ns["k"] = 1
    with raw(path) as blocker:
        blocker.execute("BEGIN IMMEDIATE")
        with subprocess.Popen(
            [sys.executable, "-c", _INTERRUPTED, f"sqlite://{path.as_posix()}?wait_s=80"],
            stdout=subprocess.PIPE,
            text=True,
        ) as waiting:
            assert waiting.stdout is not None
            assert waiting.stdout.readline() == "ready\n"
            time.sleep(0.5)
            began = time.monotonic()
            waiting.send_signal(signal.SIGINT)
            assert waiting.stdout.readline() == "interrupted\n"
            assert time.monotonic() - began < TURN_S * SLOW_MACHINE
        blocker.execute("COMMIT")


def test_the_timeout_of_a_waiting_thread_names_the_holder(tmp_path: Path) -> None:
    path = tmp_path / "kv.db"
    with connect(path, wait_s=0.5) as store, store.open("core") as ns:
        ns["k"] = 1
        database = ns._store._shared  # type: ignore[attr-defined]
        entered, leave = threading.Event(), threading.Event()

        def hold(_: object) -> None:
            entered.set()
            leave.wait(PATIENCE_S)

        holder = threading.Thread(target=database.write, args=(hold,), name="the holder")
        holder.start()
        try:
            assert entered.wait(PATIENCE_S)
            with pytest.raises(hutch.StorageTimeoutError, match=r"kv\.db: thread 'the holder' .* wait_s"):
                ns["k"] = 2
        finally:
            leave.set()
            holder.join()
        ns["k"] = 3


@needs_fork
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.usefixtures("unmeasured")
def test_a_reader_that_an_exception_lost_does_not_hold_up_a_fork(tmp_path: Path) -> None:
    path = tmp_path / "kv.db"
    with connect(path) as store, store.open("core") as ns:
        ns["k"] = 1
        assert ns["k"] == 1
        ns._store._idle.pop()  # type: ignore[attr-defined]  # as an exception right after it does
        began = time.monotonic()
        pid = in_child(lambda: ns.__setitem__("child", ns["k"]))
        assert time.monotonic() - began < 5
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert ns["child"] == 1


@needs_fork
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.usefixtures("unmeasured")
def test_a_handler_may_fork_in_the_middle_of_a_write(tmp_path: Path) -> None:
    path = tmp_path / "kv.db"
    with connect(path) as store, store.open("core") as ns:
        ns["k"] = 1
        database = ns._store._shared  # type: ignore[attr-defined]
        pids: list[int] = []

        def work(connection: Any) -> None:
            connection.execute("BEGIN IMMEDIATE")
            if not pids:
                pids.append(in_child(lambda: ns.__setitem__("child", 1)))
            connection.execute("UPDATE namespaces SET entries = entries")
            connection.execute("COMMIT")

        database.write(work)
        assert os.waitstatus_to_exitcode(os.waitpid(pids[0], 0)[1]) == 0
        ns["parent"] = 1
        assert dict(ns) == {"k": 1, "child": 1, "parent": 1}
    with raw(path) as other:
        assert other.execute("PRAGMA integrity_check").fetchone() == ("ok",)
