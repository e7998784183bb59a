"""Test hutch.discovery.entry_points: it finds every entry point of importlib.metadata, and rarely imports that."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

GROUPS = ("hutch", "hutch.plugins")
LONG_AGO_S = 1_000_000_000

REPORT = """
import json, sys
from hutch.discovery.entry_points import may_have_entry_points
{before}
may = [may_have_entry_points(group) for group in ("hutch", "hutch.plugins")]
imported = "importlib.metadata" in sys.modules
from importlib.metadata import entry_points
{after}
print(json.dumps([may, [bool(entry_points(group=group)) for group in ("hutch", "hutch.plugins")], imported]))
"""


def message(
    *path: Path | str, before: str = "", after: str = "", cwd: Path | None = None
) -> tuple[list[bool], list[bool], bool]:
    """What hutch says of both groups, what importlib.metadata finds, and whether hutch imported that for its answer.

    In a new process with `path` on its sys.path, which runs `before` first.
    """
    # Coverage too looks at sys.path, and expects nothing but text there.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_PROCESS")}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, path))
    program = REPORT.format(before=before, after=after)
    run = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False, cwd=cwd
    )
    assert run.returncode == 0, run.stderr
    may, found, imported = json.loads(run.stdout)
    return may, found, imported


def metadata(folder: Path, text: str | bytes, project: str = "tables") -> Path:
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project}\nVersion: 1.0\n", "utf-8")
    (folder / "PKG-INFO").write_text(f"Metadata-Version: 1.1\nName: {project}\nVersion: 1.0\n", "utf-8")
    (folder / "entry_points.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


def section(group: str) -> str:
    return f"[console_scripts]\ntables = tables:main\n\n[{group}]\nTables = tables:Plugin\n"


def in_dist_info(site: Path, text: str | bytes) -> Path:
    metadata(site / "tables-1.0.dist-info", text)
    return site


def in_dist_info_in_upper_case(site: Path, text: str) -> Path:
    metadata(site / "Tables-1.0.DIST-INFO", text)
    return site


def in_egg_info(site: Path, text: str) -> Path:
    metadata(site / "tables.egg-info", text)
    return site


def in_egg(site: Path, text: str) -> Path:
    metadata(site / "tables-1.0-py3.egg" / "EGG-INFO", text)
    return site / "tables-1.0-py3.egg"


def in_wheel(site: Path, text: str) -> Path:
    site.mkdir()
    with zipfile.ZipFile(site / "tables-1.0.whl", "w") as wheel:
        wheel.writestr("tables-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tables\nVersion: 1.0\n")
        wheel.writestr("tables-1.0.dist-info/entry_points.txt", text)
    return site / "tables-1.0.whl"


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("place", [in_dist_info, in_dist_info_in_upper_case, in_egg_info, in_egg, in_wheel])
def test_an_entry_point_is_not_missed_wherever_it_is(
    tmp_path: Path, place: Callable[[Path, str], Path], group: str
) -> None:
    may, found, _ = message(place(tmp_path / "site", section(group)))
    assert found == [group == one for one in GROUPS]
    assert may[GROUPS.index(group)]


@pytest.mark.parametrize("text", ["[[hutch]]\na = b:c\n", "  [hutch]  \na = b:c\n", "\n[hutch]\r\na = b:c\r\n"])
def test_an_entry_point_is_not_missed_however_its_section_is_written(tmp_path: Path, text: str) -> None:
    metadata(tmp_path / "tables-1.0.dist-info", text)
    may, found, _ = message(tmp_path)
    assert found[0]
    assert may[0]


def test_nothing_is_imported_without_an_entry_point_for_hutch(tmp_path: Path) -> None:
    # hutch itself has some, of the groups of others.
    metadata(tmp_path / "a-1.dist-info", "[console_scripts]\nhutch = hutch.cli:main\nhutch.plugins = hutch:x\n", "a")
    metadata(tmp_path / "b-1.dist-info", "[hutchlike]\na = b:c\n[hutch.plugins.more]\na = b:c\n", "b")
    (tmp_path / "c.egg-info").write_text("Name: c\nVersion: 1\n", "utf-8")
    (tmp_path / "d-1.dist-info").mkdir()
    (tmp_path / "e-1.dist-info" / "entry_points.txt").mkdir(parents=True)
    assert message(tmp_path, tmp_path / "missing") == ([False, False], [False, False], False)


def test_an_entry_point_is_found_through_relative_paths_and_path_objects(tmp_path: Path) -> None:
    in_dist_info(tmp_path / "site", section("hutch"))
    home = tmp_path / "site"
    for entry, cwd in (("''", home), ("'site'", tmp_path), ("__import__('pathlib').Path('site')", tmp_path)):
        may, found, _ = message(before=f"sys.path.append({entry})", cwd=cwd)
        assert (may[0], found[0]) == (True, True), entry
    # A relative entry is another folder in another working folder.
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "site").mkdir(parents=True)
    before = f"""
import os
sys.path.append("site")
assert not may_have_entry_points("hutch")
os.chdir({str(tmp_path)!r})"""
    for folder in (elsewhere / "site", home):
        os.utime(folder, (LONG_AGO_S, LONG_AGO_S))
    assert message(before=before, cwd=elsewhere)[0] == [True, False]


def test_a_finder_of_distributions_that_is_not_pythons_own_is_asked(tmp_path: Path) -> None:
    home = in_dist_info(tmp_path / "site", section("hutch.plugins"))
    finder = f"""
import importlib.metadata
class Finder(importlib.metadata.DistributionFinder):
    def find_spec(self, name, path=None, target=None):
        return None
    def find_distributions(self, context=importlib.metadata.DistributionFinder.Context()):
        return importlib.metadata.MetadataPathFinder.find_distributions(
            importlib.metadata.DistributionFinder.Context(path=[{str(home)!r}]))
sys.meta_path.append(Finder())"""
    assert message(before=finder)[:2] == ([True, True], [False, True])


@pytest.mark.parametrize("in_one_tick", [False, True])
def test_a_package_that_is_installed_while_the_process_runs_is_found(tmp_path: Path, in_one_tick: bool) -> None:
    if not in_one_tick:
        os.utime(tmp_path, (LONG_AGO_S, LONG_AGO_S))
    before = f"""
import os, pathlib
site = pathlib.Path({str(tmp_path)!r})
looked_at = site.stat()
assert not may_have_entry_points("hutch")
info = site / "tables-1.0.dist-info"
info.mkdir()
(info / "METADATA").write_text("Name: tables\\nVersion: 1.0\\n")
(info / "entry_points.txt").write_text("[hutch]\\na = b:c\\n")
if {in_one_tick}:
    os.utime(site, ns=(looked_at.st_atime_ns, looked_at.st_mtime_ns))"""
    assert message(tmp_path, before=before)[:2] == ([True, False], [True, False])


def test_a_folder_added_to_the_path_while_the_process_runs_is_searched(tmp_path: Path) -> None:
    home = in_dist_info(tmp_path / "site", section("hutch"))
    before = f"assert not may_have_entry_points('hutch')\nsys.path.append({str(home)!r})"
    assert message(before=before)[:2] == ([True, False], [True, False])
    before = f"assert may_have_entry_points('hutch')\nsys.path.remove({str(home)!r})"
    assert message(home, before=before) == ([False, False], [False, False], False)


def test_a_folder_that_has_not_changed_is_read_once(tmp_path: Path) -> None:
    metadata(tmp_path / "tables-1.0.dist-info", "[console_scripts]\na = b:c\n")
    os.utime(tmp_path, (LONG_AGO_S, LONG_AGO_S))
    before = f"""
read = []
sys.addaudithook(lambda event, args: read.append(args[0]) if event == "os.scandir" else None)
may_have_entry_points("hutch")
may_have_entry_points("hutch.plugins")
assert read.count({str(tmp_path)!r}) == 1, read"""
    assert message(tmp_path, before=before)[0] == [False, False]


def test_what_cannot_be_read_is_left_to_who_can_tell_of_it(tmp_path: Path) -> None:
    garbled = in_dist_info(tmp_path / "garbled", b"\xff\xfe[\0h\0")
    after = "entry_points = lambda group: ()"
    assert message(garbled, after=after)[0] == [True, True]
    assert message(before="sys.path.append(b'bytes-on-the-path')\nsys.path.append(None)", after=after)[0] == [
        True,
        True,
    ]
    (tmp_path / "file").write_text("no folder", "utf-8")
    assert message(tmp_path / "file", after=after)[0] == [True, True]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give up its rights")
def test_an_unreadable_folder_has_no_entry_points(tmp_path: Path) -> None:
    home = in_dist_info(tmp_path / "site", section("hutch"))
    home.chmod(0o700)
    before = """
import importlib.metadata, zipfile, tempfile, os  # which may not be readable afterwards
os.setgid(65534)
os.setuid(65534)"""
    assert message(home, before=before)[:2] == ([False, False], [False, False])
    tmp_path.chmod(0o700)
    assert message(home, before=before)[:2] == ([False, False], [False, False])
