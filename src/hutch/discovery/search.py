"""Search all places for plugins. Descriptors are read as text; nothing here imports a plugin's code.

An unusable file, folder or entry point never stops the search: it is reported as a `BrokenPlugin` with the reason.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..errors import a_or_an
from ..handlers import passes_through
from .descriptor import BrokenPlugin, PluginInfo, is_name, parse_if_wanted, shown
from .discovery import Discovery
from .entry_points import CODECS_GROUP, PLUGINS_GROUP, may_have_entry_points

if TYPE_CHECKING:
    from importlib.metadata import Distribution

    from .search_cache import Evidence

__all__ = ["BrokenPlugin", "Discovery", "builtin_dir", "discover"]

PATH_VARIABLE = "HUTCH_PLUGIN_PATH"

# Limits on the search of one place, so that "/" as a plugin folder gives an error instead of a hang.
MAX_DESCRIPTORS = 10_000
MAX_ENTRIES = 100_000
_Kind = Literal["engine", "codec"]
# The searches that this process has made, and how many it remembers.
_made: set[object] = set()
_MOST_MADE = 64


def discover(
    extra_dirs: Iterable[Path] = (),
    *,
    hooked: Iterable[Path | type] = (),
    environ: Mapping[str, str] | None = None,
    wanted: str = "",
    groups: tuple[str, ...] = (PLUGINS_GROUP, CODECS_GROUP),
) -> Discovery:
    """Search all places for plugins, in order, and return the result; it never raises because of what it finds.

    The places are the built-in plugins, `extra_dirs`, the folders in ``$HUTCH_PLUGIN_PATH`` (from `environ`, default
    `os.environ`), entry points of `groups`, and `hooked`: folders, descriptors or factory classes that
    hooks returned. Folders are searched recursively. A file reached twice counts once. If `wanted`, the name or scheme
    of a plugin, is given, descriptors that cannot match it may be left out. From the second time on, the same search is
    answered from `search_cache` while nothing that it looked at has changed.
    """
    extra_dirs, hooked = tuple(extra_dirs), tuple(hooked)
    named = (os.environ if environ is None else environ).get(PATH_VARIABLE, "")
    used_groups = tuple(group for group in groups if may_have_entry_points(group))
    # Entry points and hooks say for themselves what they name: these are asked at every search.
    key = None if used_groups or hooked else (__file__, wanted, groups, named, extra_dirs)
    evidence = None
    if key in _made:  # a process that searches once need not import the cache
        from .search_cache import Evidence, cached_search

        if (cached := cached_search(key)) is not None:
            return cached
        evidence = Evidence()
    search = _Search(wanted.casefold(), evidence)
    search.folder("built-in", builtin_dir())
    for folder in extra_dirs:
        search.folder("EXTRA_PLUGIN_DIRS", folder)
    for part in filter(None, named.split(os.pathsep)):
        search.folder(f"${PATH_VARIABLE}", Path(part))
    if not named:
        search.places.append(f"${PATH_VARIABLE} (not set)")
    search.entry_points(groups, used_groups)
    for item in hooked:
        search.hooked(item)
    discovery = search.result()
    if evidence is not None:
        from .search_cache import cache_search

        cache_search(key, discovery, evidence)
    elif key is not None:
        if len(_made) >= _MOST_MADE:
            _made.clear()
        _made.add(key)
    return discovery


def builtin_dir() -> Path:
    """Return the folder of hutch's own plugins: inside an installed package, or beside ``src`` in a checkout."""
    package = Path(__file__).parents[1]
    checkout = package.parent
    inside = package / "plugins"
    return checkout.parent / "plugins" if checkout.name == "src" and not inside.is_dir() else inside


class _Search:
    """The state of one running search."""

    def __init__(self, wanted: str, evidence: Evidence | None) -> None:
        self._wanted = wanted
        self.plugins: list[PluginInfo] = []
        self.broken: list[BrokenPlugin] = []
        self.places: list[str] = []
        #: Remembers what is looked at, for a search that will be cached.
        self._evidence = evidence
        self._seen: set[tuple[str, object]] = set()

    def result(self) -> Discovery:
        engines = tuple(info for info in self.plugins if info.kind == "engine")
        codecs = tuple(info for info in self.plugins if info.kind == "codec")
        return Discovery(engines, tuple(self.broken), tuple(self.places), codecs)

    def folder(self, label: str, folder: Path) -> None:
        try:
            if self._evidence is not None:
                self._evidence.begin_with(folder, is_builtin=label == "built-in")
            folder = folder.absolute()
            note = "" if folder.is_dir() else " (not a folder)" if folder.exists() else " (does not exist)"
        except (OSError, ValueError) as error:  # no current directory, no permission, NUL in the path
            if passes_through(error):
                raise
            self.broken.append(BrokenPlugin(folder, None, f"cannot be searched: {_reason(error)}"))
            note = " (cannot be searched)"
        self.places.append(f"{label}: {shown(folder)}{note}")
        if note:
            self._doubt()
        else:
            for count, descriptor in enumerate(self._descriptors(folder)):
                if count == MAX_DESCRIPTORS:
                    reason = f"holds more than {MAX_DESCRIPTORS:,} descriptors; the rest was not read"
                    self.broken.append(BrokenPlugin(folder, None, reason))
                    break
                self.descriptor(descriptor)

    def _look_at(self, path: Path) -> None:
        """Remember the status of `path`, which is about to be read."""
        if self._evidence is not None:
            self._evidence.add(str(path))

    def _doubt(self) -> None:
        """Keep the search from being cached."""
        if self._evidence is not None:
            self._evidence.is_complete = False

    def descriptor(self, path: Path) -> None:
        self._look_at(path)
        plugin = parse_if_wanted(path, self._wanted)
        if plugin is not None and self._is_new("file", _real(path)):
            self._add(plugin)

    def entry_points(self, groups: tuple[str, ...], used: tuple[str, ...]) -> None:
        """Search the entry points of the `used` ones of `groups`."""
        self.places.extend(f"entry points of group {group}" for group in groups)
        if used:
            for distribution, group, name, value in self._entry_points(used):
                self._entry_point(distribution, group, name, value)

    def hooked(self, item: object) -> None:
        if isinstance(item, type):
            # Without a descriptor, the class names the plugin: FilesPlugin and FilesStoragePlugin are "Files".
            name = item.__name__.removesuffix("Plugin").removesuffix("Storage") or item.__name__
            place = f"hook hutch_plugins: class {item.__module__}.{item.__qualname__}"
            self.places.append(place)
            if self._is_new("class", item):
                self._add(_class_info(name, Path(place), "engine", factory=item))
        elif isinstance(item, str | os.PathLike):
            path = Path(os.fsdecode(item))
            if path.suffix == ".plug":
                self.places.append(f"hook hutch_plugins: {shown(path)}")
                self.descriptor(path)
            else:
                self.folder("hook hutch_plugins", path)
        else:
            reason = f"returned {a_or_an(type(item).__name__)}; expected a folder (a Path) or a factory class"
            self.broken.append(BrokenPlugin(Path("hook hutch_plugins"), None, reason))

    def _descriptors(self, top: Path) -> Iterator[Path]:
        """Yield every ``*.plug`` under `top`, sorted, a folder's own files before its subfolders."""
        pending = [top]
        entries = 0
        while pending:
            folder = pending.pop()
            self._look_at(folder)
            # Links to folders are followed, so a folder may be reached twice or contain a link to itself.
            if not self._is_new("folder", _identity(folder)):
                continue
            descriptors, folders = [], []
            try:
                with os.scandir(folder) as listing:
                    for entry in listing:
                        entries += 1
                        if entries > MAX_ENTRIES:
                            reason = f"holds more than {MAX_ENTRIES:,} files; the rest was not searched"
                            self.broken.append(BrokenPlugin(top, None, reason))
                            return
                        if entry.name.startswith(".") or entry.name == "__pycache__":
                            continue
                        if entry.is_symlink():  # a folder's status says nothing about where its links lead
                            self._doubt()
                        if entry.name.endswith(".plug"):
                            descriptors.append(entry.name)
                        elif _is_dir(entry):
                            folders.append(entry.name)
            except OSError as error:
                if passes_through(error):
                    raise
                self.broken.append(BrokenPlugin(folder, None, f"cannot be searched: {_reason(error)}"))
            yield from (folder / name for name in sorted(descriptors))
            pending.extend(folder / name for name in sorted(folders, reverse=True))

    def _entry_points(self, groups: tuple[str, ...]) -> Iterator[tuple[Distribution, str, str, str]]:
        # Imported here because it imports half of the standard library, which most programs do not need.
        try:
            from importlib.metadata import distributions

            installed = list(distributions())
        except Exception as error:  # a third-party finder may raise anything
            if passes_through(error):
                raise
            place = Path(f"entry points of group {groups[0]}")
            self.broken.append(BrokenPlugin(place, None, f"cannot be searched: {_reason(error)}"))
            return
        for distribution in installed:
            try:
                # Search the text first: parsing every package's entry points would be the slowest step.
                text = distribution.read_text("entry_points.txt") or ""
                for group in groups:
                    if group in text:
                        for entry_point in distribution.entry_points.select(group=group):
                            yield distribution, group, entry_point.name, entry_point.value
            except Exception as error:  # site-packages may contain anything
                if passes_through(error):
                    raise
                where = Path(str(distribution.locate_file("")))
                self.broken.append(BrokenPlugin(where, None, f"entry points cannot be read: {_reason(error)}"))

    def _entry_point(self, distribution: Distribution, group: str, name: str, value: str) -> None:
        if not self._is_new("entry point", (name, value)):
            return  # a checkout and its installed metadata may both be on sys.path
        place = f"entry point {name} = {value}"
        module, colon, attribute = value.partition(":")
        try:
            if not _is_dotted(module) or (colon and not _is_dotted(attribute)):
                raise _BadEntryPoint("expected package.folder (of descriptors) or package.module:Class")
            if colon:
                kind: _Kind = "codec" if group == CODECS_GROUP else "engine"
                self._add(_class_info(name, Path(place), kind, module, attribute, value))
            else:
                self.folder(place, _package_dir(distribution, module))
        except _BadEntryPoint as error:
            self.broken.append(BrokenPlugin(Path(place), name if is_name(name) else None, str(error)))

    def _add(self, plugin: PluginInfo | BrokenPlugin) -> None:
        if isinstance(plugin, PluginInfo):
            self.plugins.append(plugin)
            if (file := plugin.module_file) is not None:
                self._look_at(file)
        else:
            self.broken.append(plugin)

    def _is_new(self, kind: str, thing: object) -> bool:
        new = (kind, thing) not in self._seen
        self._seen.add((kind, thing))
        return new


class _BadEntryPoint(Exception):
    """The reason why an entry point cannot be used."""


def _class_info(
    name: str,
    path: Path,
    kind: _Kind,
    module: str | None = None,
    class_name: str | None = None,
    entry_point: str | None = None,
    factory: type | None = None,
) -> PluginInfo | BrokenPlugin:
    """Return the description of a plugin without a descriptor, or the reason why it cannot be used."""
    if not is_name(name):
        return BrokenPlugin(path, None, f"{name!r} cannot be the name of a plugin")
    return PluginInfo(
        name=name,
        path=path,
        module=module,
        class_name=class_name,
        python_min=None,
        description="",
        extra=None,
        schemes=(name.lower(),),
        url_option="path",
        whole_url=False,
        entry_point=entry_point,
        factory=factory,
        kind=kind,
    )


def _package_dir(distribution: Distribution, package: str) -> Path:
    """Return the folder of `package` without importing it or its parents. Raises _BadEntryPoint."""
    top, *rest = package.split(".")
    installed = Path(str(distribution.locate_file(top))).joinpath(*rest)
    if installed.is_dir():
        return installed
    # In an editable install the files are elsewhere. Finding the spec of a top-level name imports nothing.
    from importlib.util import find_spec

    try:
        spec = find_spec(top)
    except Exception as error:  # third-party finders may raise anything
        if passes_through(error):
            raise
        raise _BadEntryPoint(f"the package {top} cannot be found: {_reason(error)}") from None
    if spec is None:
        raise _BadEntryPoint(f"there is no package {top}")
    folders = [Path(location).joinpath(*rest) for location in spec.submodule_search_locations or ()]
    for folder in folders:
        if folder.is_dir():
            return folder
    raise _BadEntryPoint(
        f"{package} is not a folder; expected a package that holds descriptors. A class is written {package}:Class"
    )


def _is_dotted(text: str) -> bool:
    return all(part.isidentifier() for part in text.split("."))


def _real(path: Path) -> str:
    try:
        return os.path.realpath(path)
    except (OSError, ValueError) as error:  # NUL in the path; opening it raises a clear error
        if passes_through(error):
            raise
        return str(path)


def _identity(folder: Path) -> object:
    try:
        status = folder.stat()
    except OSError as error:  # listing the folder reports the error
        if passes_through(error):
            raise
        return folder
    return status.st_dev, status.st_ino


def _is_dir(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:  # a link to itself
        if passes_through(error):
            raise
        return False


def _reason(error: Exception) -> str:
    return (isinstance(error, OSError) and error.strerror) or f"{type(error).__name__}: {error}"
