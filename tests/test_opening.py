"""Test opening: by many processes at once on a store that is not there yet, and for reading alone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import hutch

_WRITE = """\
import sys, hutch
with hutch.connect(sys.argv[1]) as store, store.open("core") as core:
    core[sys.argv[2]] = int(sys.argv[2])
"""
_READ = """\
import sys, hutch
with hutch.connect(sys.argv[1]) as store, store.open("core") as core:
    assert (core["key"], len(core), list(core.items())) == ("value", 1, [("key", "value")])
"""
# A reader of a SQLite file that is not read-only creates the index of its log, if that is missing.
READERS = ["lmdb://{}/store", "lmdb://{}/store?readonly=true", "sqlite://{}/store.db?readonly=true"]
_PROCESSES = int(os.environ.get("HUTCH_STORM", "8"))


@pytest.mark.parametrize("place", ["lmdb://{}/store", "sqlite://{}/store.db"])
def test_many_processes_create_one_store_at_once_and_none_fails(tmp_path: Path, place: str) -> None:
    url = place.format(tmp_path)
    command = [sys.executable, "-c", _WRITE, url]
    started = [
        subprocess.Popen([*command, str(number)], stderr=subprocess.PIPE, text=True) for number in range(_PROCESSES)
    ]
    assert [process.communicate(timeout=150)[1] for process in started] == [""] * _PROCESSES
    with hutch.connect(url) as store, store.open("core") as core:
        assert dict(core) == {str(number): number for number in range(_PROCESSES)}


def _filled(folder: Path, place: str) -> str:
    with hutch.connect(place.format(folder).partition("?")[0]) as store, store.open("core") as core:
        core["key"] = "value"
    return place.format(folder)


def _files(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """Return the inode, time of change and content of each file; readers note themselves in lock.mdb's memory."""
    return {
        str(path): (path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in sorted(folder.rglob("*"))
        if path.name != "lock.mdb"
    }


@pytest.mark.parametrize("place", READERS)
def test_opening_to_read_changes_no_file(tmp_path: Path, place: str) -> None:
    url = _filled(tmp_path, place)
    before = _files(tmp_path)
    for _ in range(2):
        with hutch.connect(url) as store, store.open("core") as core:
            assert core["key"] == "value"
    assert _files(tmp_path) == before


@pytest.mark.parametrize("place", READERS)
def test_opening_to_read_writes_nothing_and_flushes_nothing(tmp_path: Path, place: str) -> None:
    strace = shutil.which("strace")
    if strace is None or subprocess.run([strace, "true"], capture_output=True, check=False).returncode:
        pytest.skip("strace is not there, or may not trace")
    url = _filled(tmp_path, place)
    calls = "write,pwrite64,writev,pwritev,fsync,fdatasync,msync,sync_file_range,ftruncate,fallocate,rename,unlink"
    ran = subprocess.run(
        [strace, "-f", "-y", "-qq", "-e", "signal=none", "-e", f"trace={calls}", sys.executable, "-c", _READ, url],
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert not [line for line in ran.stderr.splitlines() if str(tmp_path) in line or "sync" in line]
