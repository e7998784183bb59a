"""Test waiting on lmdb: every thread and process gets to write, every wait ends, and links are refused."""

from __future__ import annotations

import os
import platform
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import hutch

pytestmark = [
    pytest.mark.skipif(os.name != "posix", reason="needs signals, links and flock"),
    pytest.mark.usefixtures("unmeasured"),
]

# Ten times the promised time, because the machine may be slow.
LONGEST_WAIT_S = 10.0
WRITE_S = float(os.environ.get("HUTCH_FAIR_S", "0.5"))

_WRITE = """
import sys, time, threading, hutch
url, threads, pause_s, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4])
counts, waits = [0] * threads, [0.0] * threads
def write(me):
    while time.monotonic() < end:
        began = time.monotonic()
        space[f"{sys.argv[5]} {me}"] = counts[me]
        waits[me] = max(waits[me], time.monotonic() - began)
        counts[me] += 1
        if pause_s:
            time.sleep(pause_s)
with hutch.connect(url) as store, store.open("core") as space:
    print("ready", flush=True)
    sys.stdin.readline()
    end = time.monotonic() + seconds
    writers = [threading.Thread(target=write, args=(me,)) for me in range(threads)]
    for one in writers: one.start()
    for one in writers: one.join()
    print(min(counts), sum(counts), max(waits))
"""

_STOP = """
import os, signal, sys, hutch
with hutch.connect(sys.argv[1]) as store, store.open("core") as space:
    space["before"] = 1
    store._factory._environment.write(lambda slot: os.kill(os.getpid(), signal.SIGSTOP))
    print("went on", flush=True)
"""


def python(program: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("pause_s", [0, 0.001])
@pytest.mark.parametrize("durability", ["strict", "normal", "relaxed"])
@pytest.mark.parametrize(("processes", "threads"), [(1, 2), (1, 8), (1, 32), (2, 1), (4, 2), (8, 1)])
def test_every_writer_is_served(
    tmp_path: Path, processes: int, threads: int, durability: str, pause_s: float, record_property: Callable[..., None]
) -> None:
    url = f"lmdb://{tmp_path}/state?durability={durability}"
    with ExitStack() as stack:
        children = [
            stack.enter_context(python(_WRITE, url, threads, pause_s, WRITE_S, number)) for number in range(processes)
        ]
        for child in children:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
        for child in children:
            assert child.stdin is not None
            child.stdin.write("\n")
            child.stdin.flush()
        outputs = [child.communicate(timeout=60) for child in children]
    results = [out.split() for out, error in outputs if not error]
    assert len(results) == processes, outputs
    fewest, writes = min(int(one[0]) for one in results), sum(int(one[1]) for one in results)
    longest_s = max(float(one[2]) for one in results)
    record_property("counted", f"{writes:,} writes, the slowest writer {fewest:,}, the longest wait {longest_s:.4f} s")
    print(f"{processes} x {threads} {durability} {pause_s}: {writes:,} writes, {fewest:,}, {longest_s:.4f} s")
    assert longest_s < LONGEST_WAIT_S
    assert fewest > 0


@pytest.fixture
def stopped(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Yield a process that was stopped in the middle of a write."""
    with python(_STOP, f"lmdb://{tmp_path}/state") as child:
        deadline = time.monotonic() + 60
        while os.waitpid(child.pid, os.WNOHANG | os.WUNTRACED) == (0, 0):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        try:
            yield child
        finally:
            child.kill()


def test_a_wait_for_a_stopped_process_ends_with_its_number(tmp_path: Path, stopped: subprocess.Popen[str]) -> None:
    with hutch.connect(f"lmdb://{tmp_path}/state?wait_s=0.5") as store, store.open("core") as space:
        errors: list[hutch.StorageTimeoutError] = []

        def write() -> None:
            try:
                space["k"] = 1
            except hutch.StorageTimeoutError as error:
                errors.append(error)

        threads = [threading.Thread(target=write) for _ in range(4)]
        began = time.monotonic()
        for thread in threads:
            thread.start()
        assert space["before"] == 1, "readers do not wait"
        for thread in threads:
            thread.join()
        assert 0.4 < time.monotonic() - began < 10
        assert len(errors) == 4
        for error in errors:
            assert f"{tmp_path}/state" in str(error)
            assert "wait_s" in str(error)
            if sys.platform == "linux":
                assert f"process {stopped.pid}, which is stopped" in str(error)
        stopped.send_signal(signal.SIGCONT)
        assert stopped.communicate(timeout=60)[0] == "went on\n"
        space["k"] = 2
        assert space["k"] == 2


def test_a_wait_of_no_seconds_is_refused_at_once(tmp_path: Path, stopped: subprocess.Popen[str]) -> None:
    with hutch.connect(f"lmdb://{tmp_path}/state?wait_s=0") as store, store.open("core") as space:
        began = time.monotonic()
        with pytest.raises(hutch.StorageTimeoutError):
            space["k"] = 1
        assert time.monotonic() - began < 5
        stopped.kill()
        stopped.wait()
        space["k"] = 2
    with pytest.raises(hutch.ConfigError, match="wait_s"):
        hutch.connect(f"lmdb://{tmp_path}/state?wait_s=-1")


_INTERRUPTED = """
import signal, sys, threading, time, hutch
with hutch.connect(sys.argv[1]) as store, store.open("core") as space:
    def other():
        try: space["other"] = 1
        except hutch.StorageTimeoutError: pass
    if sys.argv[2] == "behind":
        thread = threading.Thread(target=other, daemon=True)
        thread.start()
        time.sleep(0.2)
    print("waits", flush=True)
    try:
        space["k"] = 1
    except KeyboardInterrupt:
        print("interrupted", flush=True)
        import os; os._exit(0)
"""


@pytest.mark.parametrize("place", ["first", "behind"])
@pytest.mark.usefixtures("stopped")
def test_ctrl_c_ends_a_wait_at_once(tmp_path: Path, place: str) -> None:
    with python(_INTERRUPTED, f"lmdb://{tmp_path}/state", place) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "waits\n"
        time.sleep(0.3)
        began = time.monotonic()
        child.send_signal(signal.SIGINT)
        assert child.communicate(timeout=30)[0] == "interrupted\n"
        assert time.monotonic() - began < 10


def test_a_stopped_process_that_only_waits_delays_no_other(tmp_path: Path, stopped: subprocess.Popen[str]) -> None:
    url = f"lmdb://{tmp_path}/state?wait_s=20"
    program = (
        "import sys, hutch\n"
        "with hutch.connect(sys.argv[1]) as store, store.open('core') as space:\n"
        "    print('up', flush=True)\n"
        "    space['w'] = 1\n"
    )
    with python(program, url) as waiting:
        try:
            assert waiting.stdout is not None
            waiting.stdout.readline()
            time.sleep(0.3)
            waiting.send_signal(signal.SIGSTOP)
            stopped.kill()
            stopped.wait()
            with hutch.connect(url) as store, store.open("core") as space:
                began = time.monotonic()
                for number in range(20):
                    space["k"] = number
                assert time.monotonic() - began < 10
        finally:
            waiting.kill()


# --- links and special files ---


def _link(path: Path, victim: Path) -> None:
    path.symlink_to(victim)


def _dangling(path: Path, _: Path) -> None:
    path.symlink_to(path.with_name("nothing"))


def _fifo(path: Path, _: Path) -> None:
    os.mkfifo(path)


def _folder(path: Path, _: Path) -> None:
    path.mkdir()


def _device(path: Path, _: Path) -> None:
    path.symlink_to("/dev/zero")


def _hard_link(path: Path, victim: Path) -> None:
    path.hardlink_to(victim)


@pytest.mark.parametrize("put", [_link, _dangling, _fifo, _folder, _device, _hard_link])
@pytest.mark.parametrize("name", ["data.mdb", "lock.mdb"])
def test_a_file_not_written_by_the_store_is_refused_and_unchanged(tmp_path: Path, name: str, put: Any) -> None:
    url, victim = f"lmdb://{tmp_path}/state", tmp_path / "authorized_keys"
    with hutch.connect(url) as store, store.open("core") as space:
        space["k"] = 1
    victim.write_text("ssh-ed25519 AAAA mine\n")
    (tmp_path / "state" / name).unlink()
    put(tmp_path / "state" / name, victim)
    before = sorted(os.listdir(tmp_path / "state")), sorted(os.listdir(tmp_path))
    uses: list[Callable[[], object]] = [
        lambda: use(lambda space: space.get("k")),
        lambda: use(lambda space: space.__setitem__("k", 1)),
    ]

    def use(fn: Callable[[Any], object]) -> None:
        with hutch.connect(url) as store, store.open("core") as space:
            fn(space)

    for one in uses:
        with pytest.raises((hutch.StorageUnavailableError, hutch.CorruptValueError)) as raised:
            one()
        assert str(tmp_path / "state" / name) in str(raised.value)
    assert victim.read_text() == "ssh-ed25519 AAAA mine\n"
    assert (sorted(os.listdir(tmp_path / "state")), sorted(os.listdir(tmp_path))) == before
    if name == "data.mdb" and put is not _hard_link:
        assert any("data.mdb" in one.message for one in hutch.verify(url))


def test_a_folder_that_is_a_link_is_used(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with hutch.connect(f"lmdb://{tmp_path}/link") as store, store.open("core") as space:
        space["k"] = 1
    assert sorted(os.listdir(tmp_path / "real")) == ["data.mdb", "lock.mdb"]


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664])
def test_the_lock_file_takes_the_mode_of_the_data_file_which_is_never_changed(tmp_path: Path, mode: int) -> None:
    url, folder = f"lmdb://{tmp_path}/state", tmp_path / "state"
    with hutch.connect(url) as store, store.open("core") as space:
        space["k"] = 1
    (folder / "data.mdb").chmod(mode)
    (folder / "lock.mdb").unlink()
    with hutch.connect(url) as store, store.open("core") as space:
        space["k"] = 2
    assert [stat.S_IMODE((folder / name).stat().st_mode) for name in ("data.mdb", "lock.mdb")] == [mode, mode]


def test_in_a_private_folder_the_files_are_private(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir(0o700)
    with hutch.connect(f"lmdb://{tmp_path}/state") as store, store.open("core") as space:
        space["k"] = 1
    assert {stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / "state").iterdir()} == {0o600}


# --- LMDB's own lock for writing ---

_HOLD = """
import sys, lmdb
with lmdb.open(sys.argv[1], max_readers=1024).begin(write=True):
    print("held", flush=True)
    sys.stdin.read()
"""

reads_mutex = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64" or platform.libc_ver()[0] != "glibc",
    reason="LMDB's mutex is read where it is that of glibc on x86-64",
)


@reads_mutex
def test_a_single_writer_takes_no_lock_but_lmdbs_own(tmp_path: Path) -> None:
    """A py-lmdb that lays lock.mdb out in another way must not go unnoticed: each write would cost a seventh more."""
    with hutch.connect(f"lmdb://{tmp_path}/state") as store, store.open("core") as space:
        for number in range(3):
            space["k"] = number
        environment = store._factory._environment
        gate = environment.gate
        assert gate.fd_in_use == -1
        owners: list[int] = []
        environment.write(lambda slot: owners.append(int.from_bytes(gate.lock_file[64:68], "little") & 0x3FFFFFFF))
        assert owners == [threading.get_native_id()]
        assert gate.lock_file[64:68] == bytes(4)


@reads_mutex
def test_a_wait_for_another_lmdb_program_ends_too(tmp_path: Path) -> None:
    with hutch.connect(f"lmdb://{tmp_path}/state?wait_s=0.5") as store, store.open("core") as space:
        space["k"] = 1
        with python(_HOLD, tmp_path / "state") as holder:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "held\n"
            with pytest.raises(hutch.StorageTimeoutError, match=f"process {holder.pid} "):
                space["k"] = 2
            assert space["k"] == 1
            holder.kill()
        space["k"] = 3
        assert space["k"] == 3
