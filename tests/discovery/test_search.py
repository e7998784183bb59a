"""Test hutch.discovery: every place is searched, no content stops the search, no plugin code is imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hutch.contract import StorageBase, StoragePluginBase
from hutch.discovery import search
from hutch.discovery.descriptor import PluginInfo
from hutch.discovery.search import BrokenPlugin, Discovery, builtin_dir, discover
from hutch.errors import PluginConflictError, PluginLoadError, PluginNotFoundError

NO_VARIABLES: dict[str, str] = {}


def plugin(folder: Path, name: str, extra: str = "", stem: str | None = None) -> Path:
    """Write a descriptor in `folder`, and a module that must not be imported."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "never_storage.py").write_text("raise SystemExit('imported')\n", "utf-8")
    path = folder / f"{stem or name.lower()}.plug"
    path.write_text(f"[Core]\nName = {name}\nModule = never_storage\n{extra}", "utf-8")
    return path


def link(path: Path, target: Path) -> None:
    try:
        path.symlink_to(target, target_is_directory=True)
    except OSError as error:  # Windows without developer mode
        pytest.skip(f"no symbolic links here: {error}")


def found(*folders: Path) -> Discovery:
    return discover(folders, environ=NO_VARIABLES)


def names(discovery: Discovery) -> list[str]:
    """Return the plugins' names, without the built-in ones."""
    return [info.name for info in discovery.plugins if not info.path.is_relative_to(builtin_dir())]


def broken(discovery: Discovery) -> list[BrokenPlugin]:
    return [one for one in discovery.broken if not one.path.is_relative_to(builtin_dir())]


# --- places ---


def test_the_built_in_plugins_are_found_first_and_none_is_broken(tmp_path: Path) -> None:
    plugin(tmp_path, "Files")
    discovery = found(tmp_path)
    assert builtin_dir().is_dir()
    assert discovery.plugins[0].path.is_relative_to(builtin_dir())
    assert discovery.find("MEMORY").path == builtin_dir() / "memory" / "memory.plug"
    assert discovery.broken == ()


def test_places_are_searched_in_order_and_listed(tmp_path: Path) -> None:
    class HookedPlugin(StoragePluginBase):
        def open(self, namespace: str) -> StorageBase:
            raise NotImplementedError

    for place in ("extra", "variable", "hook"):
        plugin(tmp_path / place, place.title())
    single = plugin(tmp_path / "single", "Single")
    (tmp_path / "file").touch()
    discovery = discover(
        [tmp_path / "extra", tmp_path / "gone", tmp_path / "file"],
        environ={"HUTCH_PLUGIN_PATH": f"{tmp_path / 'variable'}{os.pathsep}{os.pathsep}{tmp_path / 'lost'}"},
        hooked=[tmp_path / "hook", single, HookedPlugin, HookedPlugin],
    )
    assert names(discovery) == ["Extra", "Variable", "Hook", "Single", "Hooked"]
    assert broken(discovery) == []
    assert discovery.find("hooked").factory is HookedPlugin
    where = f"hook hutch_plugins: class {__name__}.{HookedPlugin.__qualname__}"
    assert discovery.places == (
        f"built-in: {builtin_dir()}",
        f"EXTRA_PLUGIN_DIRS: {tmp_path / 'extra'}",
        f"EXTRA_PLUGIN_DIRS: {tmp_path / 'gone'} (does not exist)",
        f"EXTRA_PLUGIN_DIRS: {tmp_path / 'file'} (not a folder)",
        f"$HUTCH_PLUGIN_PATH: {tmp_path / 'variable'}",
        f"$HUTCH_PLUGIN_PATH: {tmp_path / 'lost'} (does not exist)",
        "entry points of group hutch.plugins",
        "entry points of group hutch.codecs",
        f"hook hutch_plugins: {tmp_path / 'hook'}",
        f"hook hutch_plugins: {single}",
        where,
        where,
    )


def test_the_variable_is_that_of_the_process_unless_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin(tmp_path, "Files")
    monkeypatch.setenv("HUTCH_PLUGIN_PATH", str(tmp_path))
    assert names(discover()) == ["Files"]
    assert names(found()) == []
    assert "$HUTCH_PLUGIN_PATH (not set)" in found().places


def test_relative_folders_are_those_of_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = plugin(tmp_path / "plugins", "Files")
    monkeypatch.chdir(tmp_path)
    assert discover(environ={"HUTCH_PLUGIN_PATH": "plugins"}).find("files").path == path


def test_folders_are_searched_in_depth_and_in_order(tmp_path: Path) -> None:
    plugin(tmp_path / "b" / "deep" / "deeper", "Deep")
    plugin(tmp_path / "b", "Two")
    plugin(tmp_path / "a", "One")
    plugin(tmp_path, "Zero")
    assert names(found(tmp_path)) == ["Zero", "One", "Two", "Deep"]


def test_hidden_and_cached_files_are_not_searched(tmp_path: Path) -> None:
    for folder in (".git", "__pycache__", ".venv/deep"):
        plugin(tmp_path / folder, "Hidden")
    plugin(tmp_path, "Hidden", stem="._files")
    assert (names(found(tmp_path)), broken(found(tmp_path))) == ([], [])


def test_a_file_reached_twice_counts_once(tmp_path: Path) -> None:
    plugin(tmp_path / "a", "Files")
    link(tmp_path / "again", tmp_path / "a")
    (tmp_path / "b").mkdir()
    link(tmp_path / "b" / "same.plug", tmp_path / "a" / "files.plug")
    discovery = found(tmp_path, tmp_path / "a", tmp_path / "a" / ".." / "a", tmp_path / "b")
    assert names(discovery) == ["Files"]
    assert discovery.find("files").name == "Files"


def test_a_plugin_folder_may_be_a_link(tmp_path: Path) -> None:
    plugin(tmp_path / "checkout", "Files")
    (tmp_path / "plugins").mkdir()
    link(tmp_path / "plugins" / "files", tmp_path / "checkout")
    assert names(found(tmp_path / "plugins")) == ["Files"]


@pytest.mark.timeout(20)
def test_links_in_a_loop_end(tmp_path: Path) -> None:
    plugin(tmp_path / "a", "Files")
    link(tmp_path / "a" / "up", tmp_path)
    link(tmp_path / "a" / "self", tmp_path / "a" / "self")
    assert names(found(tmp_path)) == ["Files"]


# --- what is wrong there ---


def test_a_bad_descriptor_stops_nothing_and_keeps_its_reason(tmp_path: Path) -> None:
    plugin(tmp_path / "a", "Files")
    plugin(tmp_path / "z", "Tables")
    (tmp_path / "b").mkdir()
    bad = {
        "bytes": b"\xff\xfe",
        "empty": b"",
        "nocore": b"[Documentation]\nDescription = x\n",
        "upwards": b"[Core]\nName = Upwards\nModule = ../../x\n",
        "absolute": b"[Core]\nName = Absolute\nModule = /etc/x\n",
    }
    for stem, content in bad.items():
        (tmp_path / "b" / f"{stem}.plug").write_bytes(content)
    (tmp_path / "b" / "directory.plug").mkdir()
    link(tmp_path / "b" / "loop.plug", tmp_path / "b" / "loop.plug")
    discovery = found(tmp_path)
    assert names(discovery) == ["Files", "Tables"]
    assert {one.path.stem for one in broken(discovery)} == {*bad, "directory", "loop"}
    for one in broken(discovery):
        assert one.name is not None
        with pytest.raises(PluginLoadError) as caught:
            discovery.find(one.name.upper())
        assert one.reason in str(caught.value)
        assert str(one.path) in str(caught.value)
    more = rf"Plugins found: .*Files.* \({len(discovery.broken)} more cannot be used\)"
    with pytest.raises(PluginNotFoundError, match=more):
        discovery.find("none")


def test_a_broken_descriptor_does_not_affect_other_plugins(tmp_path: Path) -> None:
    plugin(tmp_path / "a", "Files", "[URL]\nSchemes = file\n")
    for stem in ("files", "file"):
        (tmp_path / f"{stem}.plug").write_bytes(b"")
    discovery = found(tmp_path)
    assert len(broken(discovery)) == 2
    assert discovery.find("files").path == discovery.find("file").path == tmp_path / "a" / "files.plug"


@pytest.mark.timeout(120)
def test_ten_thousand_descriptors_are_read_and_no_more(tmp_path: Path) -> None:
    many, other = tmp_path / "many", tmp_path / "other"
    plugin(other, "Files")
    many.mkdir()
    for number in range(10_001):
        (many / f"{number:05}.plug").touch()
    discovery = found(many, other)
    assert names(discovery) == ["Files"], "what comes after is found all the same"
    assert len(broken(discovery)) == 10_001
    last = broken(discovery)[-1]
    assert (last.path, last.reason) == (many, "holds more than 10,000 descriptors; the rest was not read")
    with pytest.raises(PluginLoadError):
        discovery.find("09999")
    with pytest.raises(PluginNotFoundError) as caught:
        discovery.find("10000")
    assert len(str(caught.value)) < 2_000


def test_the_whole_disk_is_not_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "MAX_ENTRIES", 50)
    for number in range(60):
        (tmp_path / "big" / f"{number:02}").mkdir(parents=True)
    plugin(tmp_path / "small", "Files")
    discovery = found(tmp_path / "big", tmp_path / "small")
    assert names(discovery) == ["Files"]
    assert [(one.path, one.reason) for one in broken(discovery)] == [
        (tmp_path / "big", "holds more than 50 files; the rest was not searched")
    ]


@pytest.fixture
def locked() -> Iterator[Path]:
    """Yield a folder that this process can see but not list."""
    if os.name == "nt":
        pytest.skip("Windows has no such permission bits")
    # Not tmp_path, whose parents are closed to the user that root becomes here.
    with tempfile.TemporaryDirectory() as name:
        top = Path(name)
        top.chmod(0o755)
        (top / "locked").mkdir(mode=0o000)
        am_root = os.geteuid() == 0
        if am_root:
            os.seteuid(65534)
        try:
            yield top
        finally:
            if am_root:
                os.seteuid(0)
            (top / "locked").chmod(0o700)


def test_a_folder_that_cannot_be_listed_is_reported(locked: Path) -> None:
    for top in (locked, locked / "locked"):
        discovery = found(top)
        reasons = [(one.path, one.name, one.reason) for one in discovery.broken if one.path.is_relative_to(locked)]
        assert reasons == [(locked / "locked", None, "cannot be searched: Permission denied")]
    # One that cannot even be asked about is reported too, or not there, as the version of Python has it.
    discovery = found(locked / "locked" / "deeper")
    assert "(cannot be searched)" in discovery.places[1] or "(does not exist)" in discovery.places[1]


def test_paths_that_are_none_are_reported(tmp_path: Path) -> None:
    discovery = discover([Path("a\0b")], environ=NO_VARIABLES, hooked=[Path("a\0b.plug"), tmp_path / "no.plug"])
    assert discovery.places[1].endswith("(does not exist)")
    assert all(place.isprintable() for place in discovery.places)
    assert [one.reason.startswith("cannot be read: ") for one in broken(discovery)] == [True, True]


def test_a_working_directory_that_is_gone_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.name == "nt":
        pytest.skip("Windows keeps a working directory")
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    discovery = discover([Path("plugins")], environ=NO_VARIABLES)
    assert discovery.places[1] == "EXTRA_PLUGIN_DIRS: plugins (cannot be searched)"
    assert [one.path for one in broken(discovery)] == [Path("plugins")]
    assert discovery.find("memory").name == "memory"


def test_a_hook_that_gives_nonsense_is_reported() -> None:
    nonsense: Any = [42, None]
    discovery = discover(environ=NO_VARIABLES, hooked=nonsense)
    assert [one.reason for one in broken(discovery)] == [
        "returned an int; expected a folder (a Path) or a factory class",
        "returned a NoneType; expected a folder (a Path) or a factory class",
    ]


def test_a_class_is_called_as_it_is_named() -> None:
    class FilesStoragePlugin: ...

    class Plugin: ...

    unprintable = type("a\nb", (), {})
    discovery = discover(environ=NO_VARIABLES, hooked=[FilesStoragePlugin, Plugin, unprintable])
    assert [info.name for info in discovery.plugins if info.factory] == ["Files", "Plugin"]
    assert [one.reason for one in broken(discovery)] == ["'a\\nb' cannot be the name of a plugin"]


# --- find ---


def test_a_plugin_is_found_by_name_or_scheme_in_any_case(tmp_path: Path) -> None:
    path = plugin(tmp_path, "Files", "[URL]\nSchemes = file, file+zip\n")
    for wanted in ("Files", "files", "FILES", "file", "File+Zip"):
        assert found(tmp_path).find(wanted).path == path


def test_a_name_wins_over_a_scheme(tmp_path: Path) -> None:
    plugin(tmp_path / "a", "Files", "[URL]\nSchemes = tables\n")
    path = plugin(tmp_path / "b", "Tables")
    assert found(tmp_path).find("tables").path == path


def test_two_plugins_of_one_name_conflict_when_it_is_asked_for(tmp_path: Path) -> None:
    paths = [plugin(tmp_path / "a", "Files"), plugin(tmp_path / "b", "FILES"), plugin(tmp_path / "c", "Tables")]
    discovery = found(tmp_path)
    assert discovery.find("tables").path == paths[2]
    with pytest.raises(PluginConflictError) as caught:
        discovery.find("files")
    assert str(paths[0]) in str(caught.value)
    assert str(paths[1]) in str(caught.value)
    assert str(paths[2]) not in str(caught.value)


def test_two_plugins_of_one_scheme_conflict_when_it_is_asked_for(tmp_path: Path) -> None:
    plugin(tmp_path, "Files", "[URL]\nSchemes = file\n")
    plugin(tmp_path, "Tables", "[URL]\nSchemes = file\n")
    discovery = found(tmp_path)
    assert discovery.find("tables").name == "Tables"
    with pytest.raises(PluginConflictError, match="2 plugins have the URL scheme 'file'"):
        discovery.find("file")


def test_an_unknown_name_is_answered_with_names_places_and_the_nearest(tmp_path: Path) -> None:
    plugin(tmp_path, "Files")
    discovery = found(tmp_path, tmp_path / "gone")
    with pytest.raises(PluginNotFoundError) as caught:
        discovery.find("filez")
    message = str(caught.value)
    assert "no storage plugin 'filez'. Did you mean 'Files'?" in message
    assert "memory" in message
    assert f"built-in: {builtin_dir()}" in message
    assert f"{tmp_path / 'gone'} (does not exist)" in message
    assert ("cannot be used" in message) == bool(discovery.broken)
    assert "\n" not in message


# --- entry points, and what a search leaves behind: in a process of its own ---


def site(folder: Path, project: str, entry_points: str | bytes) -> Path:
    """Make `folder` look like a site-packages into which `project` was installed."""
    info = folder / f"{project}-1.0.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project}\nVersion: 1.0\n", "utf-8")
    content = entry_points if isinstance(entry_points, bytes) else f"[hutch.plugins]\n{entry_points}\n".encode()
    (info / "entry_points.txt").write_bytes(content)
    return folder


def test_a_search_for_one_plugin_ends_as_a_search_for_all_does(tmp_path: Path) -> None:
    plugin(tmp_path, "Files", "[Documentation]\nDescription = not memory, nor twice\n")
    plugin(tmp_path, "Twice", stem="one")
    plugin(tmp_path, "TWICE", stem="two")
    plugin(tmp_path, "Named", "[URL]\nSchemes = Alpha, beta, files\n", stem="unlike")
    plugin(tmp_path, "Second", "[URL]\nSchemes = BETA\n")
    plugin(tmp_path, "Stra\u00dfe")
    plugin(tmp_path, "\u0130stanbul", stem="i")
    plugin(tmp_path, "Older", "[Python]\nVersion = old\n", stem="bad_version")
    (tmp_path / "wordless.plug").write_text("no section\n", "utf-8")
    (tmp_path / "Binary.plug").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "folder.plug").mkdir()

    def end_of(wanted: str, searched_for: str) -> object:
        try:
            return discover([tmp_path], environ=NO_VARIABLES, wanted=searched_for).find(wanted)
        except PluginNotFoundError:
            return PluginNotFoundError
        except (PluginConflictError, PluginLoadError) as error:
            return str(error)

    names_and_schemes = ["files", "FILES", "twice", "alpha", "Beta", "named", "memory", "redis", "rediss", "lmdb"]
    odd = [
        "STRASSE",
        "stra\u00dfe",
        "\u0130STANBUL",
        "i",
        "older",
        "bad_version",
        "wordless",
        "binary",
        "folder",
        "nor",
        "",
    ]
    ends = {name: (end_of(name, name), end_of(name, "")) for name in names_and_schemes + odd}
    assert [name for name, (one, all_) in ends.items() if one != all_] == []
    kinds = {type(end) for end, _ in ends.values()}
    assert kinds == {PluginInfo, str, type}, "not every kind of end was reached"
    assert names(discover([tmp_path], environ=NO_VARIABLES, wanted="alpha")) == ["Named"]


def package(folder: Path) -> Path:
    """A package that must not be imported."""
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise SystemExit('imported')\n", "utf-8")
    return folder


REPORT = """
import json, sys
before = list(sys.path), set(sys.modules)
from hutch.discovery.search import discover
found = discover(environ={})
json.dump({
    "plugins": [[p.name, str(p.path), p.entry_point, p.class_name] for p in found.plugins],
    "broken": [[str(b.path), b.name, b.reason] for b in found.broken],
    "places": found.places,
    "sys_path_kept": sys.path == before[0],
    "modules": sorted(set(sys.modules) - before[1]),
}, sys.stdout)
"""


def searched(*sites: Path, program: str = REPORT) -> dict[str, Any]:
    """Return what a new process with `sites` on its sys.path finds."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, sites))}
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    report: dict[str, Any] = json.loads(run.stdout)
    for kind, place in (("plugins", 1), ("broken", 0)):
        report[kind] = [one for one in report[kind] if not Path(one[place]).is_relative_to(builtin_dir())]
    return report


def test_an_entry_point_names_a_folder_of_descriptors(tmp_path: Path) -> None:
    site(tmp_path, "tables", "tables = tables_pkg.storage.plugins")
    package(tmp_path / "tables_pkg")
    path = plugin(tmp_path / "tables_pkg" / "storage" / "plugins", "Tables")
    report = searched(tmp_path)
    assert report["plugins"] == [["Tables", str(path), None, None]]
    assert report["broken"] == []
    assert f"entry point tables = tables_pkg.storage.plugins: {path.parent}" in report["places"]


def test_an_entry_point_names_a_factory_class_that_is_not_imported(tmp_path: Path) -> None:
    site(tmp_path, "tables", "Tables = tables_pkg.storage:Outer.Plugin")
    package(tmp_path / "tables_pkg")
    report = searched(tmp_path)
    value = "tables_pkg.storage:Outer.Plugin"
    assert report["plugins"] == [["Tables", f"entry point Tables = {value}", value, "Outer.Plugin"]]


def test_an_editable_install_is_found_where_its_source_is(tmp_path: Path) -> None:
    installed = site(tmp_path / "site", "tables", "tables = tables_pkg.plugins")
    source = tmp_path / "checkout" / "src"
    package(source / "tables_pkg")
    path = plugin(source / "tables_pkg" / "plugins", "Tables")
    assert searched(installed, source)["plugins"] == [["Tables", str(path), None, None]]


def test_an_editable_install_by_an_import_finder_is_found(tmp_path: Path) -> None:
    # As setuptools makes it: nothing on sys.path, a finder that knows where each top-level package lives.
    installed = site(tmp_path / "site", "tables", "tables = tables_pkg.plugins")
    home = package(tmp_path / "checkout" / "lib")
    path = plugin(home / "plugins", "Tables")
    program = f"""
import importlib.machinery, importlib.util, sys
class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "tables_pkg":
            return importlib.util.spec_from_file_location(
                name, {str(home / "__init__.py")!r}, submodule_search_locations=[{str(home)!r}])
sys.meta_path.append(Finder)
{REPORT}"""
    assert searched(installed, program=program)["plugins"] == [["Tables", str(path), None, None]]


def test_a_namespace_package_holds_descriptors(tmp_path: Path) -> None:
    first = site(tmp_path / "site", "tables", "tables = company.tables")
    (first / "company").mkdir()
    path = plugin(tmp_path / "other" / "company" / "tables", "Tables")
    assert searched(first, tmp_path / "other")["plugins"] == [["Tables", str(path), None, None]]


def test_one_distribution_seen_twice_counts_once(tmp_path: Path) -> None:
    sites = [site(tmp_path / name, "tables", "Tables = tables_pkg:Plugin") for name in ("a", "b")]
    assert len(searched(*sites)["plugins"]) == 1


def test_broken_entry_points_are_reported_and_stop_nothing(tmp_path: Path) -> None:
    site(
        tmp_path,
        "broken",
        "gone = no_such_package.plugins\nfile = single_file\ndeep = good_pkg.no.such\n"
        "odd = ../../etc\nodder = good_pkg:\n\x1b = good_pkg:Class\nstrange = strange_pkg.plugins",
    )
    (tmp_path / "single_file.py").write_text("raise SystemExit\n", "utf-8")
    site(tmp_path, "garbled", b"[hutch.plugins]\n\xff\xfe = x\n")
    site(tmp_path, "zgood", "good = good_pkg.plugins")
    package(tmp_path / "good_pkg")
    plugin(tmp_path / "good_pkg" / "plugins", "Good")
    program = f"""
import sys
class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "strange_pkg":
            raise RuntimeError("this finder is broken")
sys.meta_path.append(Finder)
{REPORT}"""
    report = searched(tmp_path, program=program)
    assert [name for name, *_ in report["plugins"]] == ["Good"]
    reasons = {(name or path): reason for path, name, reason in report["broken"]}
    assert reasons["gone"] == "there is no package no_such_package"
    assert reasons["file"].startswith("single_file is not a folder; expected a package that holds descriptors")
    assert reasons["deep"].startswith("good_pkg.no.such is not a folder")
    assert reasons["odd"] == reasons["odder"] == "expected package.folder (of descriptors) or package.module:Class"
    assert reasons["strange"] == "the package strange_pkg cannot be found: RuntimeError: this finder is broken"
    assert reasons["entry point \x1b = good_pkg:Class"] == "'\\x1b' cannot be the name of a plugin"
    assert "entry points cannot be read: UnicodeDecodeError" in reasons[str(tmp_path)]
    assert len(reasons) == 8


def test_a_broken_finder_of_distributions_is_reported(tmp_path: Path) -> None:
    program = f"""
import sys
class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        return None
    @staticmethod
    def find_distributions(context):
        raise RuntimeError("no distributions today")
sys.meta_path.append(Finder)
{REPORT}"""
    report = searched(tmp_path, program=program)
    assert [reason for *_, reason in report["broken"]] == [
        "cannot be searched: RuntimeError: no distributions today",
    ]


def test_a_path_object_on_sys_path_does_no_harm(tmp_path: Path) -> None:
    # Errbot puts them there.
    site(tmp_path, "tables", "Tables = tables_pkg:Plugin")
    program = f"import sys, pathlib; sys.path.append(pathlib.Path({str(tmp_path)!r}))\n{REPORT}"
    assert [name for name, *_ in searched(program=program)["plugins"]] == ["Tables"]


def test_a_search_imports_no_plugin_and_no_driver_and_leaves_sys_path_alone(tmp_path: Path) -> None:
    site(tmp_path, "tables", "tables = tables_pkg.plugins\nTable = tables_pkg.module:Plugin")
    package(tmp_path / "tables_pkg")
    plugin(tmp_path / "tables_pkg" / "plugins", "Tables")
    report = searched(tmp_path)
    assert len(report["plugins"]) == 2
    assert report["sys_path_kept"]
    ours = [name for name in report["modules"] if name.partition(".")[0] == "hutch"]
    assert sorted(ours) == [
        "hutch",
        "hutch.discovery",
        "hutch.discovery.descriptor",
        "hutch.discovery.discovery",
        "hutch.discovery.entry_points",
        "hutch.discovery.search",
        "hutch.errors",
        "hutch.handlers",
    ]
    others = {name.partition(".")[0] for name in report["modules"]} - {"hutch"}
    assert others <= sys.stdlib_module_names, others - sys.stdlib_module_names


def test_a_checkout_and_a_wheel_each_have_the_built_in_plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_wheel = tmp_path / "site-packages" / "hutch"
    in_checkout = tmp_path / "src" / "hutch"
    monkeypatch.setattr(search, "__file__", str(in_wheel / "discovery" / "search.py"))
    assert builtin_dir() == in_wheel / "plugins"
    monkeypatch.setattr(search, "__file__", str(in_checkout / "discovery" / "search.py"))
    assert builtin_dir() == tmp_path / "plugins"
    (in_checkout / "plugins").mkdir(parents=True)
    assert builtin_dir() == in_checkout / "plugins"
