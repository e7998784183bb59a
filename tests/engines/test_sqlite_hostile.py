"""Test what an attacker may put beside an SQLite file: links, FIFOs, a journal that names a victim; and file modes."""

from __future__ import annotations

import os
import sqlite3
import stat
import struct
from pathlib import Path
from typing import Any

import pytest

import hutch

needs_posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX files")
SUFFIXES = ("-wal", "-shm", "-journal")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return a file with a key, in its own folder, beside which lies a file that nothing may touch."""
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "folder").mkdir()
    path = tmp_path / "folder" / "kv.db"
    with hutch.connect(f"sqlite://{path.as_posix()}") as store, store.open("core") as ns:
        ns["k"] = 1
    return path


def every_use_is_refused(path: Path, message: str) -> None:
    before = path.read_bytes() if path.exists() else None
    uses: list[Any] = [
        lambda store: store.namespaces(),
        lambda store: store.open("core"),
        lambda store: store.drop("core"),
        lambda store: store.open("core").__setitem__("k", 2),
    ]
    for use in uses:
        with (
            hutch.connect(f"sqlite://{path.as_posix()}") as store,
            pytest.raises(hutch.StorageUnavailableError, match=message),
        ):
            use(store)
    refusal = pytest.raises(hutch.StorageUnavailableError, match=message)
    for repair in (False, True):
        with refusal if before is not None else pytest.raises(hutch.StoreMissingError):
            list(hutch.verify(f"sqlite://{path.as_posix()}", repair=repair))
    assert (path.read_bytes() if path.exists() else None) == before


@needs_posix
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_link_beside_the_file_is_refused_before_anything_is_opened(path: Path, suffix: str) -> None:
    victim = path.parent.parent / "victim"
    link = path.with_name(path.name + suffix)
    for target in (victim, victim.with_name("nothing"), link):  # a dangling one, and one to itself
        link.symlink_to(target)
        every_use_is_refused(path, f"kv.db{suffix}' is a symbolic link to .*Nothing was opened")
        link.unlink()
    assert victim.read_text() == "precious"
    assert not victim.with_name("nothing").exists()


@needs_posix
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_link_beside_a_file_that_is_yet_to_be_made_is_refused(path: Path, suffix: str) -> None:
    path.unlink()
    victim = path.parent.parent / "nothing"
    path.with_name(path.name + suffix).symlink_to(victim)
    every_use_is_refused(path, f"kv.db{suffix}' is a symbolic link")
    assert not victim.exists()
    assert not path.exists()


@needs_posix
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_fifo_beside_the_file_is_refused_and_not_waited_for(path: Path, suffix: str) -> None:
    os.mkfifo(path.with_name(path.name + suffix))
    every_use_is_refused(path, f"kv.db{suffix}' is a FIFO")


@needs_posix
def test_the_data_file_may_be_a_link_and_its_log_lies_beside_what_it_leads_to(path: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.db"
    link.symlink_to(path)
    with hutch.connect(f"sqlite://{link.as_posix()}") as store, store.open("core") as ns:
        ns["k"] = 2
        assert path.with_name("kv.db-wal").exists()
        assert not tmp_path.joinpath("link.db-wal").exists()
    assert link.is_symlink()
    path.with_name("kv.db-wal").symlink_to(tmp_path / "victim")
    every_use_is_refused(link, "kv.db-wal' is a symbolic link")


def journal_of(path: Path, name: str) -> bytes:
    """Return a journal without a page that names another file, as a transaction over several databases leaves one."""
    magic = bytes.fromhex("d9d505f920a163d7")
    pages = path.stat().st_size // 4096
    head = struct.pack(">8sIIIII", magic, 0, 0, pages, 512, 4096).ljust(512, b"\0")
    written = name.encode()
    place = (1 << 30) // 4096 + 1
    return head + struct.pack(f">I{len(written)}sII8s", place, written, len(written), sum(written), magic)


def test_a_journal_that_names_another_file_is_refused_since_sqlite_would_delete_that(path: Path) -> None:
    victim = path.parent.parent / "victim"
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA journal_mode = DELETE")
    database.close()
    journal = path.with_name("kv.db-journal")
    journal.write_bytes(journal_of(path, str(victim)))
    every_use_is_refused(path, "kv.db-journal' names another file, which SQLite would delete")
    assert victim.read_text() == "precious"
    # SQLite accepts it as a journal: the file is gone once it opens the database.
    with sqlite3.connect(path) as database:
        database.execute("SELECT count(*) FROM entries").fetchone()
    database.close()
    assert not victim.exists()


@needs_posix
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664])
def test_the_log_takes_the_mode_of_the_file_and_no_mode_is_ever_changed(path: Path, mode: int) -> None:
    path.chmod(mode)
    path.parent.chmod(0o755)
    with hutch.connect(f"sqlite://{path.as_posix()}") as store, store.open("core") as ns:
        ns["k"] = 2
        modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
        assert modes == {"kv.db": mode, "kv.db-wal": mode, "kv.db-shm": mode}
    assert stat.S_IMODE(path.stat().st_mode) == mode
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o755
