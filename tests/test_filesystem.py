"""Test that hutch's own files are opened, created and replaced without following links."""

from __future__ import annotations

import os
import socket
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hutch import StorageUnavailableError, filesystem
from tests.refused import refused

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such files, or no such permissions")

OPENERS: dict[str, Callable[[Path], object]] = {
    "validate": filesystem.validate_regular_file,
    "read": filesystem.open_existing,
    "write": lambda path: filesystem.open_existing(path, "r+b"),
    "open or create": filesystem.open_or_create,
    "write atomically": lambda path: filesystem.write_atomically(path, b"new"),
}


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    file = tmp_path / "victim"
    file.write_bytes(b"mine")
    return file


@pytest.mark.parametrize("opener", OPENERS.values(), ids=OPENERS)
def test_a_link_is_refused_and_what_it_leads_to_stays_as_it_is(
    tmp_path: Path, victim: Path, opener: Callable[[Path], object]
) -> None:
    link = tmp_path / "link"
    link.symlink_to(victim)
    with refused(StorageUnavailableError, link, "symbolic link to", victim):
        opener(link)
    assert victim.read_bytes() == b"mine"
    assert link.is_symlink()


@pytest.mark.parametrize("opener", OPENERS.values(), ids=OPENERS)
def test_a_dangling_link_is_refused_and_nothing_appears_where_it_leads(
    tmp_path: Path, opener: Callable[[Path], object]
) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "nowhere")
    with refused(StorageUnavailableError, link, "symbolic link to", tmp_path / "nowhere"):
        opener(link)
    assert os.listdir(tmp_path) == ["link"]


@posix_only
@pytest.mark.parametrize("kind", ["a FIFO", "a folder", "a socket"])
@pytest.mark.parametrize("opener", OPENERS.values(), ids=OPENERS)
def test_what_is_not_a_regular_file_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, opener: Callable[[Path], object]
) -> None:
    monkeypatch.chdir(tmp_path)  # the names of sockets are short
    if kind == "a folder":
        Path("thing").mkdir()
    elif kind == "a FIFO":
        os.mkfifo("thing")
    else:
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind("thing")
    with refused(StorageUnavailableError, f"'thing' is {kind}"):
        opener(Path("thing"))
    assert os.listdir() == ["thing"]


@posix_only
def test_a_device_is_refused() -> None:
    with refused(StorageUnavailableError, "/dev/null", "character device"):
        filesystem.open_or_create("/dev/null")


def test_a_file_that_becomes_a_link_after_it_was_looked_at_is_refused(
    tmp_path: Path, victim: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"hutch's")
    look = filesystem.validate_regular_file

    def look_and_lose(path: Path) -> os.stat_result | None:
        monkeypatch.setattr(filesystem, "validate_regular_file", look)
        status = look(path)
        file.unlink()
        file.symlink_to(victim)
        return status

    monkeypatch.setattr(filesystem, "validate_regular_file", look_and_lose)
    with refused(StorageUnavailableError, file, "symbolic link"):
        filesystem.open_existing(file, "r+b")


def test_a_file_that_another_version_replaces_meanwhile_is_opened_as_it_is_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"old")
    look = filesystem.validate_regular_file

    def look_and_replace(path: Path) -> os.stat_result | None:
        monkeypatch.setattr(filesystem, "validate_regular_file", look)
        status = look(path)
        filesystem.write_atomically(file, b"new")
        return status

    monkeypatch.setattr(filesystem, "validate_regular_file", look_and_replace)
    with filesystem.open_existing(file) as opened:
        assert opened.read() == b"new"


@pytest.mark.parametrize("leads_to", ["victim", "nowhere"])
def test_creating_a_file_never_goes_through_a_link(tmp_path: Path, victim: Path, leads_to: str) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path / leads_to)
    with pytest.raises(FileExistsError):
        filesystem.create_file(link)
    assert victim.read_bytes() == b"mine"
    assert not (tmp_path / "nowhere").exists()


def test_a_folder_that_is_a_link_is_allowed(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder", target_is_directory=True)
    filesystem.write_atomically(tmp_path / "link" / "file", b"1")
    with filesystem.open_or_create(tmp_path / "link" / "file") as file:
        assert file.read() == b"1"


def test_nothing_there_is_no_link_and_no_file(tmp_path: Path, victim: Path) -> None:
    assert filesystem.validate_regular_file(tmp_path / "nothing") is None
    filesystem.refuse_link(tmp_path / "nothing")
    filesystem.refuse_link(tmp_path)
    filesystem.refuse_link(victim)
    with pytest.raises(FileNotFoundError, match="nothing"):
        filesystem.open_existing(tmp_path / "nothing")


def test_a_link_is_refused_where_anything_else_may_be(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("\x1b[31mred")
    with refused(StorageUnavailableError, tmp_path / "link", r"'\x1b[31mred'"):
        filesystem.refuse_link(tmp_path / "link")


@posix_only
@pytest.mark.parametrize("permissions", [0o600, 0o640, 0o666])
def test_an_atomic_write_keeps_the_mode_of_an_existing_file(tmp_path: Path, permissions: int) -> None:
    file = tmp_path / "file"
    file.touch()
    file.chmod(permissions)
    filesystem.write_atomically(file, b"new", permissions=0o644)
    assert stat.S_IMODE(file.stat().st_mode) == permissions
    assert file.read_bytes() == b"new"


@posix_only
def test_a_new_file_has_the_permissions_asked_for_within_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        filesystem.write_atomically(tmp_path / "shared", b"")
        filesystem.write_atomically(tmp_path / "private", b"", permissions=0o600)
    finally:
        os.umask(before)
    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("shared", "private")] == [0o640, 0o600]


def test_an_atomic_write_that_fails_leaves_the_old_file_and_nothing_else(victim: Path) -> None:
    with pytest.raises(ZeroDivisionError), filesystem.atomic_file(victim) as out:
        out.write(bytes(100_000 // out.write(b"half") // 0))
    assert victim.read_bytes() == b"mine"
    assert os.listdir(victim.parent) == ["victim"]


def test_a_name_as_long_as_a_name_can_be_is_written(tmp_path: Path) -> None:
    file = tmp_path / ("n" * 255)
    filesystem.write_atomically(file, b"1")
    filesystem.write_atomically(file, b"2")
    assert file.read_bytes() == b"2"
