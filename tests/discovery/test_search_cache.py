"""Test hutch.discovery.search_cache: a repeated search reads nothing, and notices every change since the last."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import hutch
from hutch.discovery import entry_points, search, search_cache
from hutch.discovery.search import discover
from hutch.errors import PluginConflictError, PluginLoadError, PluginNotFoundError


@pytest.fixture(autouse=True)
def no_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cache what was written just now: the tests wait for another tick of the clock themselves."""
    for module in (search_cache, entry_points):
        monkeypatch.setattr(module, "_SETTLED_NS", -(10**18))
    monkeypatch.setattr(search_cache, "_cached", {})
    monkeypatch.setattr(search, "_made", set())


def plugin(folder: Path, name: str, stem: str = "one") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{stem}_storage.py").write_text("raise SystemExit('imported')\n", "utf-8")
    path = folder / f"{stem}.plug"
    path.write_text(f"[Core]\nName = {name}\nModule = {stem}_storage\n", "utf-8")
    return path


def searched(folder: Path, wanted: str = "Files") -> Path:
    """Return the descriptor of the plugin `wanted`, as a search for it finds it."""
    return discover([folder], environ={}, wanted=wanted).find(wanted).path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with one plugin, found twice before: the first search is not cached."""
    plugin(tmp_path / "plugins", "Files")
    assert searched(tmp_path / "plugins") == searched(tmp_path / "plugins")
    assert len(search_cache._cached) == 1
    _next_tick()
    return tmp_path / "plugins"


def _next_tick() -> None:
    time.sleep(0.02)  # longer than a tick of the file system's clock


def recorded(monkeypatch: pytest.MonkeyPatch, call: Callable[[], object]) -> list[str]:
    """Return the names of the functions of `os` that `call` runs, once per call of theirs."""
    calls: list[str] = []
    wanted = {os.stat: "stat", os.lstat: "lstat", os.scandir: "scandir", os.open: "open", os.access: "access"}

    def profile(_: object, event: str, function: Any) -> None:
        if event == "c_call" and function in wanted:
            calls.append(wanted[function])

    sys.setprofile(profile)
    try:
        call()
    finally:
        sys.setprofile(None)
    return calls


def test_a_repeated_search_looks_at_statuses_only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(5):
        # The first import of a plugin by another test's process changes a folder: then the search is made again.
        calls = recorded(monkeypatch, lambda: searched(folder))
        if not {"open", "scandir"} & set(calls):
            break
    assert not {"open", "scandir"} & set(calls)
    # The folders of sys.path are looked at once for each of two groups of entry points.
    assert calls.count("stat") <= 20 + 2 * len(sys.path)


def test_a_second_connect_reads_no_descriptor_and_lists_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def use() -> None:
        with hutch.connect(f"lmdb://{tmp_path}/store") as store, store.open("core") as core:
            core.get("key")

    monkeypatch.chdir(tmp_path)
    with hutch.connect(f"lmdb://{tmp_path}/store") as store, store.open("core") as core:
        core["key"] = "value"
    use()
    use()
    calls = recorded(monkeypatch, use)
    assert "scandir" not in calls
    # 13 of the search, one per folder of sys.path, and 2 or 3 per folder in the path of the store.
    assert calls.count("stat") + calls.count("lstat") <= 32 + len(sys.path) + 3 * len(tmp_path.parts)
    # The lock file alone: a reader needs neither the gate nor its folder.
    assert calls.count("open") <= 1


def test_a_second_plugin_of_the_name_is_a_conflict(folder: Path) -> None:
    plugin(folder, "files", "two")
    with pytest.raises(PluginConflictError, match="2 plugins are named"):
        searched(folder)


def test_a_second_plugin_of_the_name_in_a_subfolder_is_a_conflict(folder: Path) -> None:
    plugin(folder / "sub" / "folder", "files", "two")
    with pytest.raises(PluginConflictError, match="2 plugins are named"):
        searched(folder)


def test_a_plugin_beside_a_built_in_engine_of_its_name_is_a_conflict(folder: Path) -> None:
    for _ in range(2):
        assert discover([folder], environ={}, wanted="lmdb").find("lmdb").name
    plugin(folder, "LMDB", "two")
    with pytest.raises(PluginConflictError, match="2 plugins are named"):
        discover([folder], environ={}, wanted="lmdb").find("lmdb")


def test_an_added_plugin_is_found(folder: Path) -> None:
    for _ in range(2):
        with pytest.raises(PluginNotFoundError):
            searched(folder, "Tables")
    _next_tick()
    path = plugin(folder, "Tables", "two")
    assert searched(folder, "Tables") == path


def test_a_removed_plugin_is_not_found(folder: Path) -> None:
    (folder / "one.plug").unlink()
    with pytest.raises(PluginNotFoundError):
        searched(folder)


def test_a_changed_descriptor_is_read_again(folder: Path) -> None:
    path = folder / "one.plug"
    path.write_text(path.read_text("utf-8").replace("Files", "Filed"), "utf-8")
    with pytest.raises(PluginNotFoundError):
        searched(folder)


def test_a_change_that_keeps_size_and_time_is_noticed(folder: Path) -> None:
    path = folder / "one.plug"
    before = path.stat()
    path.write_text(path.read_text("utf-8").replace("Files", "Filed"), "utf-8")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(PluginNotFoundError):
        searched(folder)


def test_a_replaced_descriptor_is_read_again(folder: Path) -> None:
    other = plugin(folder.parent / "other", "Filed")
    other.replace(folder / "one.plug")
    with pytest.raises(PluginNotFoundError):
        searched(folder)


def test_a_removed_module_is_noticed(folder: Path) -> None:
    (folder / "one_storage.py").unlink()
    with pytest.raises(PluginLoadError, match="cannot be read"):
        searched(folder)


def test_a_module_that_became_a_link_out_of_its_folder_is_refused(folder: Path) -> None:
    module = folder / "one_storage.py"
    module.rename(folder.parent / "one_storage.py")
    try:
        module.symlink_to(folder.parent / "one_storage.py")
    except OSError as error:  # Windows without developer mode
        pytest.skip(f"no symbolic links here: {error}")
    with pytest.raises(PluginLoadError, match="a link out of its folder"):
        searched(folder)


def test_a_folder_moved_elsewhere_and_linked_is_searched_again(folder: Path) -> None:
    moved = folder.parent / "moved"
    folder.rename(moved)
    try:
        folder.symlink_to(moved, target_is_directory=True)
    except OSError as error:  # Windows without developer mode
        pytest.skip(f"no symbolic links here: {error}")
    found = discover([folder], environ={}, wanted="Files").find("Files")
    assert found.module_file == moved.resolve() / "one_storage.py"


def test_a_folder_with_links_is_searched_each_time(tmp_path: Path) -> None:
    target = plugin(tmp_path / "elsewhere", "Files").parent
    (tmp_path / "plugins").mkdir()
    try:
        (tmp_path / "plugins" / "link").symlink_to(target, target_is_directory=True)
    except OSError as error:  # Windows without developer mode
        pytest.skip(f"no symbolic links here: {error}")
    assert searched(tmp_path / "plugins") == searched(tmp_path / "plugins")
    shutil.rmtree(target)
    with pytest.raises(PluginNotFoundError):
        searched(tmp_path / "plugins")


def test_a_broken_plugin_is_not_remembered(tmp_path: Path) -> None:
    path = plugin(tmp_path, "Files")
    (tmp_path / "one_storage.py").unlink()
    for _ in range(2):
        with pytest.raises(PluginLoadError):
            searched(tmp_path)
    plugin(tmp_path, "Files")
    assert searched(tmp_path) == path


def test_a_folder_that_appears_is_searched(tmp_path: Path) -> None:
    with pytest.raises(PluginNotFoundError):
        searched(tmp_path / "later")
    path = plugin(tmp_path / "later", "Files")
    assert searched(tmp_path / "later") == path


def test_what_has_just_changed_is_not_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_cache, "_SETTLED_NS", 3600 * 10**9)
    plugin(tmp_path, "Files")
    assert searched(tmp_path) == searched(tmp_path)
    assert not search_cache._cached


def test_the_cache_is_bounded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_cache, "_MOST_SEARCHES", 3)
    for number in range(10):
        plugin(folder / str(number), f"Files{number}")
        for _ in range(2):
            searched(folder / str(number), f"Files{number}")
    assert 0 < len(search_cache._cached) <= 3
