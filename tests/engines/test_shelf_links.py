"""Test the shelf engine in a folder prepared by an attacker: links in place of its files are never followed."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

import hutch
from tests.engines.test_shelf import DIALECTS, dbm_open, errbot_writes
from tests.refused import refused

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="on Windows a link takes a right of its own")


@pytest.fixture(params=DIALECTS)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    errbot_writes(tmp_path / "data", request.param, k=1)
    with hutch.connect(f"shelf://{tmp_path / 'data'}") as store, store.open("core") as core:
        core["k"] = 1
    return tmp_path / "data"


def data_files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.name.startswith("core.db"))


def is_intact(victim: Path, content: bytes) -> bool:
    return victim.read_bytes() == content and not (victim.parent / "nowhere").exists()


@pytest.mark.parametrize("dangling", [False, True])
def test_a_link_in_the_place_of_a_data_file_is_refused_by_every_call(folder: Path, dangling: bool) -> None:
    for file in data_files(folder):
        # Just what a victim would look like whose file was meant to be changed: a file that is a whole database.
        victim = folder.parent / "victim"
        shutil.move(file, victim)
        content = victim.read_bytes()
        file.symlink_to(folder.parent / "nowhere" if dangling else victim)
        with hutch.connect(f"shelf://{folder}") as store:
            if not dangling:
                with refused(hutch.StorageUnavailableError, file, "symbolic link"):
                    store.namespaces()
            for use in (lambda: store.open("core"), lambda: store.drop("core")):
                with pytest.raises(hutch.StoreError) as raised:
                    use()
                assert str(file) in str(raised.value)
        assert is_intact(victim, content)
        file.unlink()
        shutil.move(victim, file)
    with hutch.connect(f"shelf://{folder}") as store, store.open("core") as core:
        assert dict(core) == {"k": 1}


@pytest.mark.parametrize("leads_to", ["victim", "nowhere"])
def test_a_link_in_the_place_of_the_lock_is_refused_and_not_written_to(folder: Path, leads_to: str) -> None:
    victim = folder.parent / "victim"
    victim.write_bytes(b"ssh-ed25519 AAAA mine\n")
    (lock,) = (folder / ".hutch-shelf").glob("*.lock")
    lock.unlink()
    lock.symlink_to(folder.parent / leads_to)
    plugin = hutch.load_plugin("shelf", {"basedir": str(folder)})
    for use in (lambda: plugin.open("core"), lambda: plugin.drop("core"), lambda: list(plugin.pickles())):
        with refused(hutch.StorageUnavailableError, lock, "symbolic link to", leads_to):
            use()
    assert is_intact(victim, b"ssh-ed25519 AAAA mine\n")


def test_a_fifo_in_the_place_of_the_lock_is_refused_at_once(folder: Path) -> None:
    (lock,) = (folder / ".hutch-shelf").glob("*.lock")
    lock.unlink()
    os.mkfifo(lock)
    with hutch.connect(f"shelf://{folder}") as store, refused(hutch.StorageUnavailableError, lock, "a FIFO"):
        store.open("core")


def test_links_where_new_versions_are_written_are_removed_and_not_followed(folder: Path) -> None:
    victim = folder.parent / "victim"
    victim.write_bytes(b"mine")
    (lock,) = (folder / ".hutch-shelf").glob("*.lock")
    with hutch.connect(f"shelf://{folder}") as store, store.open("core") as core:
        changes: list[Callable[[], object]] = [lambda: core.update(a=1, b=2), lambda: core.pop("a"), core.clear]
        for change in changes:
            for suffix in ("", ".db", ".pag", ".dir", "-journal"):
                new = lock.with_name(f"{lock.stem}.new{suffix}")
                new.unlink(missing_ok=True)
                new.symlink_to(victim)
            change()
            assert is_intact(victim, b"mine")
        assert dict(core) == {}


def test_links_in_the_folder_of_a_namespace_whose_name_is_no_file_name_are_refused(tmp_path: Path) -> None:
    url = f"shelf://{tmp_path / 'data'}"
    with hutch.connect(url) as store, store.open("a/b") as ns:
        ns["k"] = 1
    (named,) = (tmp_path / "data" / ".hutch-shelf").glob("*/name")
    victim = tmp_path / "victim"
    shutil.move(named, victim)
    named.symlink_to(victim)
    with hutch.connect(url) as store:
        for use in (store.namespaces, lambda: store.open("a/b"), lambda: store.drop("a/b")):
            with refused(hutch.StorageUnavailableError, named, "symbolic link"):
                use()
    assert is_intact(victim, b"a/b")


def test_links_of_other_programs_are_passed_over(tmp_path: Path) -> None:
    errbot_writes(tmp_path, "dumb", k=1)
    (tmp_path / "notes.db").symlink_to(tmp_path / "core.db.dat")
    (tmp_path / "gone.db").symlink_to(tmp_path / "nowhere")
    (tmp_path / "log").symlink_to("/dev/zero")
    (tmp_path / "tty.db").symlink_to("/dev/zero")
    with hutch.connect(f"shelf://{tmp_path}") as store:
        assert store.namespaces() == ["core"]
        for name in ("notes", "gone", "tty"):
            with refused(hutch.StorageUnavailableError, f"{name}.db", "symbolic link"):
                store.open(name)


def test_a_folder_that_is_a_link_is_allowed(tmp_path: Path) -> None:
    errbot_writes(tmp_path / "data", "dumb", k=1)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "data" / ".hutch-shelf").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "link").symlink_to("data", target_is_directory=True)
    with hutch.connect(f"shelf://{tmp_path / 'link'}") as store, store.open("core") as core:
        core["k"] = 2
    with closing(dbm_open(str(tmp_path / "data" / "core.db"), "dumb")) as file:
        assert len(file) == 1


def test_an_old_file_of_errbot_3_that_is_a_link_is_not_moved(tmp_path: Path) -> None:
    errbot_writes(tmp_path / "elsewhere", "sqlite3", k=1)
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "core.db").symlink_to(tmp_path / "elsewhere" / "core.db")
    with hutch.connect(f"shelf://{tmp_path}") as store:
        for use in (store.namespaces, lambda: store.open("core")):
            with refused(hutch.StorageUnavailableError, tmp_path / "plugins" / "core.db", "symbolic link"):
                use()
    assert (tmp_path / "plugins" / "core.db").is_symlink()
