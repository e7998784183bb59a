"""Test `backup` and `compact` of the `hutch` command, and their methods of a store: whole copies, smaller files."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import hutch
import hutch.aio
from tests.cli_calls import (
    POSIX_ONLY,
    TIMEOUT_S,
    Result,
    a_place_of_its_own,
    fill,
    held,
    hutch_,
    hutch_process,
)

__all__ = ["a_place_of_its_own"]

ENGINES = {"lmdb": "lmdb://store", "sqlite": "sqlite://store.db", "shelf": "shelf://store"}
SHARED = [ENGINES["lmdb"], ENGINES["sqlite"]]
KIT_ENGINES = Path(__file__).parent / "kit_engines"

# Sets two namespaces' worth of keys to one number per batch, for as long as it lives.
WRITER = """
import itertools, sys, hutch
with hutch.connect(sys.argv[1]) as store, store.open("core") as core:
    for n in itertools.count():
        core.set_many({f"k{i}": [n, "x" * 50] for i in range(200)})
        if n == 20:
            print("ready", flush=True)
"""


@contextmanager
def writing(url: str) -> Iterator[None]:
    with subprocess.Popen([sys.executable, "-c", WRITER, url], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        try:
            yield
            assert process.poll() is None, "the application did not notice anything"
        finally:
            process.kill()


def grow(url: str, count: int) -> None:
    """Store `count` items, and remove nine in ten, so that most of the file is free."""
    with hutch.connect(url) as store, store.open("core") as core:
        core.update({f"{number:06}": "x" * 200 for number in range(count)})
        core.remove_many([f"{number:06}" for number in range(count) if number % 10])


def same_engine(url: str, path: object) -> str:
    return f"{url.partition('://')[0]}://{path}"


# --- backup ---


@pytest.mark.parametrize("url", SHARED)
def test_a_backup_is_one_moment_while_the_application_writes(url: str, tmp_path: Path) -> None:
    with writing(url):
        for number in range(2):
            done = hutch_process("-s", url, "backup", f"copy{number}")
            assert (done.returncode, done.stderr) == (0, "")
            assert done.stdout.startswith(f"backed up to 'copy{number}', ")
    before = 0
    for number in range(2):
        items = held(same_engine(url, f"copy{number}"), "core")
        assert len(items) == 200
        moments = {n for n, _ in items.values()}
        assert len(moments) == 1, "every key of a batch is from the same batch"
        assert before < min(moments)
        before = min(moments)
        assert list(hutch.verify(same_engine(url, f"copy{number}"))) == []
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".hutch-")]


@pytest.mark.parametrize("url", ENGINES.values(), ids=list(ENGINES))
def test_a_backup_holds_every_namespace_and_is_private(url: str, tmp_path: Path) -> None:
    fill(url, core={"a": {1, 2}, "b": (1,)}, **{"a:b/c": {"k": b"x" * 20_000}}, empty={})
    assert hutch_("-s", url, "backup", "copy").code == 0
    copy = same_engine(url, "copy")
    with hutch.connect(copy) as store:
        assert store.namespaces() == ["a:b/c", "core"]
    assert held(copy, "core") == {"a": {1, 2}, "b": (1,)}
    assert held(copy, "a:b/c") == {"k": b"x" * 20_000}
    if os.name == "posix":
        assert (tmp_path / "copy").stat().st_mode & 0o077 == 0


def test_a_backup_replaces_nothing_and_says_what_to_do(tmp_path: Path) -> None:
    fill(ENGINES["lmdb"], core={"a": 1})
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("file", "folder", "link"):
        refused = hutch_("-s", ENGINES["lmdb"], "backup", name)
        assert (refused.code, refused.out) == (2, "")
        assert f"/{name}' exists" in refused.err
        assert "Choose another name" in refused.err
    assert (tmp_path / "file").read_text() == "mine"
    assert hutch_("-s", ENGINES["lmdb"], "backup", "no/such/copy").code == 2
    assert {path.name for path in tmp_path.iterdir()} == {"store", "file", "folder", "link"}


@pytest.mark.parametrize("url", SHARED)
def test_a_backup_of_a_store_that_is_not_there_is_an_error(url: str, tmp_path: Path) -> None:
    refused = hutch_("-s", url, "backup", "copy")
    assert (refused.code, refused.out) == (3, "")
    assert list(tmp_path.iterdir()) == []


def test_an_engine_without_a_backup_is_scanned_and_the_command_says_so(tmp_path: Path) -> None:
    config = tmp_path / "files.yaml"
    config.write_text(f"STORAGE: Files\nSTORAGE_CONFIG: {{path: files}}\nEXTRA_PLUGIN_DIRS: ['{KIT_ENGINES}']\n")
    with hutch.connect(config) as store, store.open("core") as core:
        core.update({f"k{number}": {number} for number in range(20)})
        with pytest.raises(hutch.CapabilityError, match=r"hutch\.transfer\.backup"):
            store.backup("copy")
    done = hutch_("-c", "files.yaml", "backup", "copy")
    assert done.code == 0
    assert "an lmdb store, made by a scan of 20 items" in done.out
    assert held("lmdb://copy", "core") == {f"k{number}": {number} for number in range(20)}


@POSIX_ONLY
@pytest.mark.usefixtures("unmeasured")
@pytest.mark.parametrize("url", SHARED)
def test_ctrl_c_during_a_backup_leaves_nothing(url: str, tmp_path: Path) -> None:
    fill(url, core={f"{number:06}": os.urandom(1000) for number in range(20_000)})
    before = {path.name for path in tmp_path.iterdir()}
    interrupted = 0
    for _ in range(2):
        with subprocess.Popen(
            [sys.executable, "-m", "hutch", "-s", url, "backup", "copy"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            while process.poll() is None and not any(path.name.startswith(".hutch-") for path in tmp_path.iterdir()):
                time.sleep(0.001)
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=TIMEOUT_S)
        if process.returncode == 130:
            interrupted += 1
            assert err == b"hutch: interrupted\n"
            assert {path.name for path in tmp_path.iterdir()} == before
        else:  # it was faster
            assert process.returncode == 0
            assert len(held(same_engine(url, "copy"), "core")) == 20_000
            return
    assert interrupted


def test_a_program_backs_up_and_compacts_its_store(tmp_path: Path) -> None:
    async def in_aio() -> None:
        async with hutch.aio.connect(ENGINES["sqlite"]) as store:
            async with store.open("core") as core:
                await core.set("a", 1)
            await store.backup(tmp_path / "copy.db")
            sizes = await store.compact()
            assert sizes is not None
            assert sizes[0] >= sizes[1] > 0

    asyncio.run(in_aio())
    assert held("sqlite://copy.db", "core") == {"a": 1}


# --- compact ---


@pytest.mark.parametrize("url", ENGINES.values(), ids=list(ENGINES))
def test_compact_shrinks_the_files_and_keeps_everything(url: str, tmp_path: Path) -> None:
    count = 20_000 if url in SHARED else 600
    grow(url, count)
    items = held(url, "core")
    done = hutch_("-s", url, "compact")
    assert (done.code, done.err) == (0, "")
    words = done.out.replace(",", "").split()
    before, after = int(words[1]), int(words[4])
    assert after < before / 3
    assert held(url, "core") == items
    assert list(hutch.verify(url)) == []
    fill(url, core={"new": 1})
    assert held(url, "core") == items | {"new": 1}
    again = hutch_("-s", url, "compact").out.replace(",", "").split()
    assert int(again[4]) <= after * 1.1
    assert not list(tmp_path.rglob("compact-*"))


def test_compact_of_sqlite_while_the_application_writes() -> None:
    url = ENGINES["sqlite"]
    grow(url, 20_000)
    with writing(url):
        done = hutch_process("-s", url, "compact")
        assert (done.returncode, done.stderr) == (0, "")
    assert len(held(url, "core")) == 2_200
    assert list(hutch.verify(url)) == []


def test_compact_of_lmdb_is_refused_while_another_process_has_it_open() -> None:
    url = ENGINES["lmdb"]
    grow(url, 2_000)
    with writing(url):
        refused = hutch_process("-s", url, "compact")
        assert (refused.returncode, refused.stdout) == (3, "")
        assert "another process has the store open" in refused.stderr
        assert "A backup is compact too" in refused.stderr
        assert hutch_process("-s", url, "backup", "copy").returncode == 0
    assert len(held("lmdb://copy", "core")) == 400
    assert list(hutch.verify(url)) == []


def test_compact_says_that_there_is_nothing_to_do() -> None:
    assert hutch_("-s", "memory://", "compact") == Result(0, "nothing to do: the memory engine has no files\n", "")


def test_a_store_with_an_open_namespace_or_a_second_store_is_not_compacted() -> None:
    url = ENGINES["lmdb"]
    grow(url, 200)
    with hutch.connect(url) as store:
        with store.open("core"), pytest.raises(hutch.StoreAlreadyOpenError, match="'core' is open in this store"):
            store.compact()
        with hutch.connect(url) as other:
            with pytest.raises(hutch.StoreLockedError, match="another store of this process"):
                store.compact()
            assert other.namespaces() == ["core"]
        assert store.compact() is not None
        with store.open("core") as core:
            assert len(core) == 20
            core["more"] = 1
            assert core["more"] == 1


@POSIX_ONLY
@pytest.mark.usefixtures("unmeasured")
@pytest.mark.parametrize("url", ENGINES.values(), ids=list(ENGINES))
def test_a_compact_that_is_killed_leaves_whole_files(url: str) -> None:
    count = 15_000 if url in SHARED else 500
    grow(url, count)
    items = held(url, "core")
    rng = random.Random(seed := random.randrange(1 << 32))
    started = time.monotonic()
    assert hutch_process("-s", url, "ls").returncode == 0
    start_s = time.monotonic() - started
    for _ in range(3):
        with subprocess.Popen(
            [sys.executable, "-m", "hutch", "-s", url, "compact"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as process:
            time.sleep(start_s * rng.uniform(0.5, 1.5))
            # A killed command, and one that Ctrl-C interrupts.
            process.send_signal(rng.choice([signal.SIGKILL, signal.SIGINT]))
            process.wait(TIMEOUT_S)
        assert held(url, "core") == items, seed
        assert list(hutch.verify(url)) == [], seed
    assert hutch_("-s", url, "compact").code == 0
    assert held(url, "core") == items, seed


def test_a_process_that_opens_an_lmdb_store_in_the_middle_of_a_compact_reads_the_new_file() -> None:
    url = ENGINES["lmdb"]
    grow(url, 30_000)
    for number in range(7):  # the former file has seen more transactions
        fill(url, core={f"n{number}": number})
    items = held(url, "core")
    with subprocess.Popen([sys.executable, "-m", "hutch", "-s", url, "compact"], stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            with contextlib.suppress(hutch.StorageUnavailableError):  # replaced while it was opened
                assert held(url, "core") == items
    assert held(url, "core") == items
    assert list(hutch.verify(url)) == []
