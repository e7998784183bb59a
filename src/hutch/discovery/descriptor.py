"""Read one ``.plug`` file as text into a `PluginInfo`; no plugin code is imported.

A descriptor is found by searching folders, so it is untrusted: a bounded number of bytes is read, from a regular
file only, and the module it names must be a file beside it. Errbot's descriptors are valid; sections and options
that are unknown here are ignored, because Errbot has its own.
"""

from __future__ import annotations

import os
import re
import stat
from codecs import BOM_UTF8
from pathlib import Path
from typing import Literal, NamedTuple

from ..errors import PluginLoadError
from ..handlers import passes_through

_MAX_BYTES = 64 * 1024
_MAX_NAME = 100
# The options of each section, under lower-case names.
_Sections = dict[str, dict[str, str]]
_SCHEME = r"[a-z][a-z0-9+.-]*"  # RFC 3986
_EXTRA = r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?"  # PEP 508
# "3", "3.11", "3.11+", Errbot's "2+" and "3.6.1-beta"; the part after the dash is ignored.
_VERSION = r"([0-9]{1,4}(?:\.[0-9]{1,4}){0,2})(\+?)(?:-\S*)?"


class PluginInfo(NamedTuple):
    """The description of a plugin, known before any of its code runs."""

    #: The name as its author writes it, 1 to 100 printable characters. Looked up without regard to case.
    name: str
    #: The absolute path of the descriptor; for a class from an entry point or a hook, a text that names the origin.
    path: Path
    #: The module beside the descriptor, without ``.py``; for an entry point, the dotted name of its module.
    module: str | None
    #: The name of the factory class; None means the only factory in the module.
    class_name: str | None
    #: The oldest supported Python version, as in ``(3, 11)``.
    python_min: tuple[int, ...] | None
    #: One line for people; may be empty.
    description: str
    #: ``[Core] Extra``: the extra of hutch that installs the driver.
    extra: str | None
    #: ``[URL] Schemes``, in lower case; the name in lower case if the descriptor has none.
    schemes: tuple[str, ...]
    #: ``[URL] Path`` or ``Whole``: the option that receives the path or the whole URL.
    url_option: str
    #: True if the option gets the URL without its query; False if it gets everything after ``://``.
    whole_url: bool
    #: ``package.module:Class`` of an entry point that names a class; imported only when the plugin is loaded.
    entry_point: str | None = None
    #: The class itself, if a hook returned one.
    factory: type | None = None
    #: ``[Core] Unpickles = yes``: reading a value may run code that the value's writer chose.
    unpickles: bool = False
    #: Whether the plugin is an engine or, with a section ``[Codec]``, a codec.
    kind: Literal["engine", "codec"] = "engine"
    #: ``[Codec] Headers``: the header bytes of a codec's bodies; empty for an engine, or without a descriptor.
    headers: bytes = b""
    #: The module's file in the descriptor's real folder; None if the plugin has no descriptor.
    module_file: Path | None = None


class BrokenPlugin(NamedTuple):
    """An unusable descriptor, folder, entry point or hook result found in a search."""

    #: The descriptor, or the folder that cannot be searched; for an entry point or a hook, a text that names it.
    path: Path
    #: The name in the descriptor; the file's stem if it cannot be read; None if unknown.
    name: str | None
    #: What is wrong and what was expected.
    reason: str


def read_descriptor(path: Path) -> PluginInfo:
    """Read one ``.plug`` file and return its `PluginInfo`.

    Raises PluginLoadError, which names the file and the reason, if it is not a readable descriptor of at most
    64 KiB with its module beside it.
    """
    plugin = parse_descriptor(path)
    if isinstance(plugin, BrokenPlugin):
        raise PluginLoadError(f"descriptor {shown(path)}: {plugin.reason}", name=plugin.name, path=str(plugin.path))
    return plugin


def parse_descriptor(path: Path) -> PluginInfo | BrokenPlugin:
    """Return the contents of one ``.plug`` file, or the reason why it is unusable; never raises."""
    plugin = parse_if_wanted(path, "")
    assert plugin is not None
    return plugin


def parse_if_wanted(path: Path, wanted: str) -> PluginInfo | BrokenPlugin | None:
    """Return the result of `parse_descriptor`, or None if neither the text nor the file name contains `wanted`.

    `wanted` is a casefolded plugin name or scheme. A matching plugin, even a broken one, is never left out.
    """
    name = path.stem if is_name(path.stem) else None
    try:
        path = path.absolute()
        text = _read_text(path)
        if wanted not in text.casefold() and wanted != path.stem.casefold():
            return None
        sections = _parse(text)
        name = _name(sections)
        return _plugin_info(path, name, sections)
    except _Malformed as error:
        return BrokenPlugin(path, name, str(error))
    except OSError as error:
        if passes_through(error):
            raise
        return BrokenPlugin(path, name, f"cannot be read: {error.strerror or error}")
    except ValueError as error:  # a path with NUL in it
        if passes_through(error):
            raise
        return BrokenPlugin(path, name, f"cannot be read: {error}")


def is_name(text: str) -> bool:
    """Return whether `text` can be the name of a plugin: printable, so that it cannot forge a line of output."""
    return 0 < len(text) <= _MAX_NAME and text.isprintable() and not set(text) & {"/", "\\"} and text == text.strip()


def shown(path: Path | str) -> str:
    """Return `path` for a message; file names may contain newlines, escape codes and bytes that are not text."""
    text = str(path)
    return text if text.isprintable() else ascii(text)[1:-1]


class _Malformed(Exception):
    """The reason why a descriptor cannot be used."""


def _read_text(path: Path) -> str:
    # Tested before opening, because opening a device can have effects, and again afterwards, because files change.
    _check_regular(path.stat().st_mode)
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    opened: list[int] = []
    try:
        # `extend` and `map` run no Python code, so no signal handler can run between opening and the list.
        opened.extend(map(os.open, [path], [flags]))
        _check_regular(os.fstat(opened[0]).st_mode)
        with open(opened[0], "rb", closefd=False) as file:
            data = file.read(_MAX_BYTES + 1)
    finally:
        for descriptor in opened:
            os.close(descriptor)
    if len(data) > _MAX_BYTES:
        raise _Malformed(f"is larger than {_MAX_BYTES // 1024} KiB; a descriptor is a few lines")
    text = data.removeprefix(BOM_UTF8)
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        offset = error.start + len(data) - len(text)
        raise _Malformed(f"is not UTF-8: byte {data[offset]:#04x} at offset {offset}") from None


def _check_regular(mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise _Malformed("is a directory; expected a file")
    if not stat.S_ISREG(mode):
        raise _Malformed("is not a regular file")


def _parse(text: str) -> _Sections:
    simple = _parse_simple(text)
    return _parse_any(text) if simple is None else simple


def _parse_any(text: str) -> _Sections:
    import configparser
    import io

    parser = configparser.ConfigParser(interpolation=None, strict=True)
    try:
        # newline=None: the same line endings as in a file opened as text.
        parser.read_file(io.StringIO(text, newline=None))
    except configparser.MissingSectionHeaderError as error:
        raise _Malformed(f"line {error.lineno}: expected a section such as [Core] first") from None
    except configparser.DuplicateSectionError as error:
        raise _Malformed(f"line {error.lineno}: section [{_quoted(error.section)}] is there twice") from None
    except configparser.DuplicateOptionError as error:
        raise _Malformed(
            f"line {error.lineno}: option {_quoted(error.option)} of section [{_quoted(error.section)}] is there twice"
        ) from None
    except configparser.ParsingError as error:
        lines = ", ".join(str(line) for line, _ in error.errors[:3])
        raise _Malformed(f"line {lines}: expected NAME = VALUE, [SECTION] or a comment") from None
    return {section: dict(parser[section]) for section in parser.sections()}


def _parse_simple(text: str) -> _Sections | None:
    """Return the sections that `configparser` would read from a simple `text`, else None.

    Simple means that each line is empty, a comment, ``[Section]`` or ``Name = Value``, without duplicates. Most
    descriptors are, and importing configparser takes longer than opening LMDB.
    """
    sections: _Sections = {}
    options: dict[str, str] | None = None
    text = text.replace("\r\n", "\n")
    if "\r" in text:  # a line end of its own, to configparser
        return None
    for line in text.split("\n"):
        if not line or line[0] in "#;":
            continue
        if line[0] == "[":
            section = line[1:-1]
            if line[-1] != "]" or not section.isalnum() or section in sections or section == "DEFAULT":
                return None
            options = sections[section] = {}
            continue
        option, equals, value = line.partition("=")
        option = option.rstrip(" ").lower()
        if not equals or not option.isalnum() or options is None or option in options:
            return None
        options[option] = value.strip()
    return sections


def _name(sections: _Sections) -> str:
    if "Core" not in sections:
        others = ", ".join(_quoted(section) for section in list(sections)[:5]) or "none"
        raise _Malformed(f"has no section [Core] (sections: {others}); expected [Core] with Name and Module")
    name = sections["Core"].get("name", "")
    if not name:
        raise _Malformed("[Core] has no Name")
    if not is_name(name):
        raise _Malformed(
            f"[Core] Name = {_quoted(name)}: expected 1 to {_MAX_NAME} printable characters without / and \\"
        )
    return name


def _plugin_info(path: Path, name: str, sections: _Sections) -> PluginInfo:
    def option(section: str, key: str) -> str:
        return sections.get(section, {}).get(key.lower(), "")

    module = option("Core", "Module")
    if not module:
        raise _Malformed("[Core] has no Module")
    if not module.isidentifier():
        hint = "; leave out .py" if module.endswith(".py") else ""
        raise _Malformed(
            f"[Core] Module = {_quoted(module)}: expected the bare name of a .py file beside the descriptor{hint}"
        )
    class_name = option("Core", "Class")
    if class_name and not class_name.isidentifier():
        raise _Malformed(f"[Core] Class = {_quoted(class_name)}: expected the name of a class in the module")
    extra = option("Core", "Extra")
    if extra and not re.fullmatch(_EXTRA, extra):
        raise _Malformed(f"[Core] Extra = {_quoted(extra)}: expected the name of an extra of hutch, such as redis")
    unpickles = option("Core", "Unpickles").lower()
    if unpickles not in ("", "yes", "no"):
        raise _Malformed(f"[Core] Unpickles = {_quoted(unpickles)}: expected yes or no")
    url_option, whole_url = _url_option(sections.get("URL", {}))
    info = PluginInfo(
        name=name,
        path=path,
        module=module,
        class_name=class_name or None,
        python_min=_python_min(option("Python", "Version")),
        # One printable line, because `hutch plugins` shows it on a terminal.
        description="".join(c if c.isprintable() else " " for c in option("Documentation", "Description")).strip(),
        extra=extra or None,
        schemes=_schemes(option("URL", "Schemes")) or (name.lower(),),
        url_option=url_option,
        whole_url=whole_url,
        unpickles=unpickles == "yes",
        kind="codec" if "Codec" in sections else "engine",
        headers=_headers(option("Codec", "Headers")) if "Codec" in sections else b"",
        module_file=Path(os.path.realpath(path)).parent / f"{module}.py",
    )
    assert info.module_file is not None
    _check_module(info.module_file)
    return info


def _python_min(text: str) -> tuple[int, ...] | None:
    if not text:
        return None
    numbers = text.split(".")
    if len(numbers) <= 3 and all(one.isascii() and one.isdigit() and len(one) <= 4 for one in numbers):
        return tuple(map(int, numbers))  # without compiling the pattern
    match = re.fullmatch(_VERSION, text)
    if match is None:
        raise _Malformed(f"[Python] Version = {_quoted(text)}: expected the oldest Python that will do, such as 3.11")
    version = tuple(int(number) for number in match[1].split("."))
    # Errbot's "2+" means Python 2 or 3; its "2" means Python 2 alone, which the loader refuses.
    return (3,) if match[2] and version < (3,) else version


def _headers(text: str) -> bytes:
    numbers = [number.strip() for number in text.split(",")]
    if not all(re.fullmatch(r"0x[0-9A-Fa-f]{2}", number) for number in numbers):
        raise _Malformed(f"[Codec] Headers = {_quoted(text)}: expected bytes such as 0x80, separated by commas")
    return bytes(dict.fromkeys(int(number, 16) for number in numbers))


def _schemes(text: str) -> tuple[str, ...]:
    schemes = [scheme.strip().lower() for scheme in text.split(",")] if text else []
    for scheme in schemes:
        if not re.fullmatch(_SCHEME, scheme):
            raise _Malformed(
                f"[URL] Schemes has {_quoted(scheme)}: expected names such as redis, rediss, separated by commas"
            )
    return tuple(dict.fromkeys(schemes))


def _url_option(options: dict[str, str]) -> tuple[str, bool]:
    given = [key for key in ("Path", "Whole") if key.lower() in options]
    if len(given) == 2:
        raise _Malformed("[URL] has both Path and Whole; expected one: a URL goes to one option")
    if not given:
        return "path", False
    option = options[given[0].lower()]
    if not option.isidentifier():
        raise _Malformed(f"[URL] {given[0]} = {_quoted(option)}: expected the name of an option")
    return option, given[0] == "Whole"


def _check_module(file: Path) -> None:
    """Raise _Malformed unless the module is a regular file whose real path is inside its descriptor's folder."""
    try:
        real = Path(os.path.realpath(file, strict=True))
        regular = stat.S_ISREG(real.stat().st_mode)
    except OSError as error:
        if passes_through(error):
            raise
        raise _Malformed(f"its module {shown(file)} cannot be read: {error.strerror or error}") from None
    if file.parent not in real.parents:  # `is_relative_to` would swallow a ValueError that a handler raises
        raise _Malformed(f"its module {shown(file)} is a link out of its folder, to {shown(real)}")
    if not regular:
        raise _Malformed(f"its module {shown(file)} is not a regular file")


def _quoted(text: str) -> str:
    return repr(text) if len(text) <= 60 else f"{text[:60]!r}..."
