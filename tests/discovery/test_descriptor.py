"""Test hutch.discovery.descriptor: a .plug file is read as text, and a bad one is refused with its reason."""

from __future__ import annotations

import os
import socket
import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import hutch
from hutch.discovery.descriptor import (
    BrokenPlugin,
    PluginInfo,
    _Malformed,
    _parse_any,
    _parse_simple,
    parse_descriptor,
    read_descriptor,
)
from hutch.discovery.search import builtin_dir
from hutch.errors import PluginLoadError

MINIMAL = "[Core]\nName = Files\nModule = files_storage\n"

# As Errbot 6.2 ships them.
ERRBOT_SHELF = """\
[Core]
Name = Shelf
Module = shelf

[Documentation]
Description = This is the storage plugin for the traditional shelf store for errbot.
"""
ERRBOT_MEMORY = """\
[Core]
Name = Memory
Module = memory

[Documentation]
Description = This is the storage plugin for an in-memory store (non-persistent).
"""
# The shape of a third party's plugin for Errbot, with all that Errbot knows.
ERRBOT_FULL = """\
[Core]
Name = Helper
Module = helper
DependsOn = Shelf, Memory
Core = True
[Python]
Version = 2+
[Errbot]
Min = 4.2.0
Max = 9.9.9
[Documentation]
Description = 100%% of it: %(Core)s
[Author]
Anything = goes
"""


def written(folder: Path, text: str | bytes, modules: tuple[str, ...] = ("files_storage",)) -> Path:
    """Write a descriptor in `folder`, with modules beside it that must never run; return its path."""
    for module in modules:
        (folder / f"{module}.py").write_text("raise SystemExit('a descriptor is text')\n", "utf-8")
    path = folder / "files.plug"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def refusal(path: Path) -> str:
    """Return the message with which `path` is refused."""
    with pytest.raises(PluginLoadError) as caught:
        read_descriptor(path)
    assert str(path) in str(caught.value), "the message names the file"
    assert caught.value.path == str(path)
    broken = parse_descriptor(path)
    assert isinstance(broken, BrokenPlugin)
    assert broken.reason in str(caught.value)
    return str(caught.value)


def link(path: Path, target: Path | str) -> None:
    try:
        path.symlink_to(target)
    except OSError as error:  # Windows without developer mode
        pytest.skip(f"no symbolic links here: {error}")


# --- what is read ---


def test_two_lines_are_a_descriptor(tmp_path: Path) -> None:
    path = written(tmp_path, MINIMAL)
    assert read_descriptor(path) == PluginInfo(
        name="Files",
        path=path,
        module="files_storage",
        class_name=None,
        python_min=None,
        description="",
        extra=None,
        schemes=("files",),
        url_option="path",
        whole_url=False,
        module_file=path.parent / "files_storage.py",
    )
    assert read_descriptor(path).module_file == tmp_path.resolve() / "files_storage.py"


def test_every_option_is_read(tmp_path: Path) -> None:
    info = read_descriptor(
        written(
            tmp_path,
            "; a comment\n[Core]\nName = Files\nModule = files_storage\nClass = FilesPlugin\nExtra = redis\n"
            "[Python]\nVersion = 3.11\n[URL]\nSchemes = Files, files+zip,files\nWhole = url\n"
            "[Documentation]\nDescription = One JSON file a key.\n  Or two.\n",
        )
    )
    assert (info.class_name, info.extra, info.python_min) == ("FilesPlugin", "redis", (3, 11))
    assert (info.schemes, info.url_option, info.whole_url) == (("files", "files+zip"), "url", True)
    assert info.description == "One JSON file a key. Or two."


def test_a_descriptor_may_say_that_its_engine_unpickles(tmp_path: Path) -> None:
    for text, unpickles in (("", False), ("Unpickles = no\n", False), ("Unpickles = Yes\n", True)):
        assert read_descriptor(written(tmp_path, MINIMAL + text)).unpickles is unpickles
    engines = {info.name: info.unpickles for info in hutch.find_plugins().plugins}
    assert engines == {"lmdb": False, "memory": False, "redis": False, "sqlite": False, "shelf": True}


def test_a_url_s_path_goes_to_the_option_that_the_descriptor_names(tmp_path: Path) -> None:
    info = read_descriptor(written(tmp_path, MINIMAL + "[URL]\nPath = basedir\n"))
    assert (info.url_option, info.whole_url) == ("basedir", False)


@pytest.mark.parametrize(("text", "name"), [(ERRBOT_SHELF, "Shelf"), (ERRBOT_MEMORY, "Memory")])
def test_errbot_s_own_descriptors_parse_unchanged(tmp_path: Path, text: str, name: str) -> None:
    info = read_descriptor(written(tmp_path, text, ("shelf", "memory")))
    assert (info.name, info.module, info.schemes) == (name, name.lower(), (name.lower(),))
    assert info.description.startswith("This is the storage plugin for ")


def test_errbot_s_other_sections_are_left_alone(tmp_path: Path) -> None:
    info = read_descriptor(written(tmp_path, ERRBOT_FULL, ("helper",)))
    assert (info.name, info.python_min, info.description) == ("Helper", (3,), "100%% of it: %(Core)s")


def test_options_are_named_in_any_case(tmp_path: Path) -> None:
    assert read_descriptor(written(tmp_path, "[Core]\nNAME: Files\nmodule=files_storage\n")).name == "Files"


@pytest.mark.parametrize("text", ["\N{ZERO WIDTH NO-BREAK SPACE}" + MINIMAL, MINIMAL.replace("\n", "\r\n")])
def test_files_written_on_windows_are_read(tmp_path: Path, text: str) -> None:
    assert read_descriptor(written(tmp_path, text)).module == "files_storage"


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("", None),
        ("2+", (3,)),
        ("2.7+", (3,)),
        ("2", (2,)),
        ("3", (3,)),
        ("3+", (3,)),
        ("3.11", (3, 11)),
        ("3.6.1-beta", (3, 6, 1)),
        ("3.13.0-rc1", (3, 13, 0)),
    ],
)
def test_python_versions_are_read_as_errbot_writes_them(
    tmp_path: Path, text: str, version: tuple[int, ...] | None
) -> None:
    assert read_descriptor(written(tmp_path, f"{MINIMAL}[Python]\nVersion = {text}\n")).python_min == version


def test_a_description_is_one_line_that_a_terminal_can_show(tmp_path: Path) -> None:
    info = read_descriptor(written(tmp_path, MINIMAL + "[Documentation]\nDescription = red \x1b[31m\x07 fish\n"))
    assert info.description.isprintable()
    assert "fish" in info.description


def test_a_linked_descriptor_finds_the_module_beside_the_real_one(tmp_path: Path) -> None:
    # Installers that link instead of copying make trees of such links.
    real = tmp_path / "cache"
    real.mkdir()
    written(real, MINIMAL)
    link(tmp_path / "files.plug", real / "files.plug")
    link(tmp_path / "folder", real)
    for path in (tmp_path / "files.plug", tmp_path / "folder" / "files.plug"):
        info = read_descriptor(path)
        assert info.path == path
        assert info.module_file == real.resolve() / "files_storage.py"


def test_a_link_within_the_folder_is_a_module(tmp_path: Path) -> None:
    path = written(tmp_path, MINIMAL.replace("files_storage", "latest"))
    link(tmp_path / "latest.py", "files_storage.py")
    assert read_descriptor(path).module == "latest"


# --- what is refused ---


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no section [Core]"),
        ("[core]\nName = Files\n", "no section [Core] (sections: 'core')"),
        ("[Documentation]\nDescription = x\n", "no section [Core] (sections: 'Documentation')"),
        ("Name = Files\n", "line 1: expected a section"),
        ("[Core]\nName\n", "line 2: expected NAME = VALUE"),
        ("[Core\nName = x\n", "line 1: expected a section"),
        ("[Core]\nName = a\nname = b\n", "line 3: option 'name' of section ['Core'] is there twice"),
        (MINIMAL + "[Core]\n", "line 4: section ['Core'] is there twice"),
        ("[Core]\nModule = files_storage\n", "[Core] has no Name"),
        ("[Core]\nName =\nModule = files_storage\n", "[Core] has no Name"),
        ("[Core]\nName = a/b\nModule = files_storage\n", "Name = 'a/b': expected 1 to 100 printable"),
        ("[Core]\nName = a\\b\nModule = files_storage\n", "expected 1 to 100 printable"),
        ("[Core]\nName = a\n  b\nModule = files_storage\n", "Name = 'a\\nb'"),
        ("[Core]\nName = \x1b[2J\nModule = files_storage\n", "Name = '\\x1b[2J'"),
        (f"[Core]\nName = {'x' * 101}\nModule = files_storage\n", "expected 1 to 100 printable"),
        ("[Core]\nName = Files\n", "[Core] has no Module"),
        (MINIMAL + "Class = a.b\n", "Class = 'a.b': expected the name of a class"),
        (MINIMAL + "Extra = redis] ; rm -rf\n", "Extra = 'redis] ; rm -rf': expected the name of an extra"),
        (MINIMAL + "Unpickles = perhaps\n", "Unpickles = 'perhaps': expected yes or no"),
        (MINIMAL + "[Python]\nVersion = new\n", "[Python] Version = 'new': expected the oldest Python"),
        (MINIMAL + "[Python]\nVersion = 3.1.2.3\n", "[Python] Version = '3.1.2.3'"),
        (MINIMAL + f"[Python]\nVersion = {'9' * 10_000}\n", "[Python] Version = '999"),
        (MINIMAL + "[URL]\nSchemes = a b\n", "[URL] Schemes has 'a b': expected names such as redis"),
        (MINIMAL + "[URL]\nSchemes = a,,b\n", "[URL] Schemes has ''"),
        (MINIMAL + "[URL]\nPath = a\nWhole = b\n", "both Path and Whole"),
        (MINIMAL + "[URL]\nPath = a b\n", "[URL] Path = 'a b': expected the name of an option"),
        (MINIMAL + "[URL]\nPath =\n", "[URL] Path = '': expected the name of an option"),
    ],
)
def test_a_malformed_descriptor_is_refused_with_its_reason(tmp_path: Path, text: str, reason: str) -> None:
    assert reason in refusal(written(tmp_path, text))


@pytest.mark.parametrize(
    "module", ["../../x", "/etc/x", "a/b", "a.b", "C:\\x", "..", "files_storage.py", "files storage", "$x", "1st"]
)
def test_a_module_is_a_bare_name_beside_the_descriptor(tmp_path: Path, module: str) -> None:
    message = refusal(written(tmp_path, f"[Core]\nName = Files\nModule = {module}\n"))
    assert f"[Core] Module = {module!r}: expected the bare name of a .py file beside the descriptor" in message
    assert ("leave out .py" in message) == module.endswith(".py")


def test_a_module_that_is_not_there_is_named(tmp_path: Path) -> None:
    message = refusal(written(tmp_path, MINIMAL, ()))
    assert f"its module {tmp_path.resolve() / 'files_storage.py'} cannot be read: " in message


def test_a_folder_is_not_a_module(tmp_path: Path) -> None:
    (tmp_path / "files_storage.py").mkdir()
    assert "files_storage.py is not a regular file" in refusal(written(tmp_path, MINIMAL, ()))


def test_a_module_linked_from_outside_is_refused(tmp_path: Path) -> None:
    inside = tmp_path / "plugins"
    inside.mkdir()
    (tmp_path / "outside.py").write_text("", "utf-8")
    link(inside / "files_storage.py", tmp_path / "outside.py")
    message = refusal(written(inside, MINIMAL, ()))
    assert f"is a link out of its folder, to {tmp_path.resolve() / 'outside.py'}" in message


def test_links_in_a_loop_are_refused(tmp_path: Path) -> None:
    link(tmp_path / "files_storage.py", "files_storage.py")
    assert "files_storage.py cannot be read: " in refusal(written(tmp_path, MINIMAL, ()))
    link(tmp_path / "a.plug", "b.plug")
    link(tmp_path / "b.plug", "a.plug")
    assert "cannot be read: " in refusal(tmp_path / "a.plug")


def test_a_missing_descriptor_is_refused(tmp_path: Path) -> None:
    assert "cannot be read: " in refusal(tmp_path / "none.plug")


def test_a_directory_named_like_a_descriptor_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.plug").mkdir()
    assert "is a directory; expected a file" in refusal(tmp_path / "x.plug")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs on this system")
@pytest.mark.timeout(10)
def test_a_fifo_is_refused_without_waiting_for_a_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.plug")
    assert "is not a regular file" in refusal(tmp_path / "x.plug")
    os.mkfifo(tmp_path / "files_storage.py")
    assert "files_storage.py is not a regular file" in refusal(written(tmp_path, MINIMAL, ()))


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="no unix sockets on this system")
def test_a_socket_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)  # the name of a socket must be short
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind("x.plug")
        assert "is not a regular file" in refusal(tmp_path / "x.plug")


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="no /dev/zero on this system")
@pytest.mark.timeout(10)
def test_a_device_is_refused(tmp_path: Path) -> None:
    link(tmp_path / "x.plug", "/dev/zero")
    assert "is not a regular file" in refusal(tmp_path / "x.plug")


def test_a_huge_file_is_refused_unread(tmp_path: Path) -> None:
    at_limit = MINIMAL + ";" * (64 * 1024 - len(MINIMAL))
    assert read_descriptor(written(tmp_path, at_limit)).name == "Files"
    assert "larger than 64 KiB" in refusal(written(tmp_path, at_limit + ";"))


def test_bytes_that_are_not_utf_8_are_refused(tmp_path: Path) -> None:
    assert "is not UTF-8: byte 0xff at offset 14" in refusal(written(tmp_path, b"[Core]\nName = \xff\xfe\n"))


def test_a_path_with_nul_is_refused(tmp_path: Path) -> None:
    broken = parse_descriptor(tmp_path / "a\0b.plug")
    assert isinstance(broken, BrokenPlugin)
    assert broken.reason.startswith("cannot be read: ")


def test_a_broken_descriptor_keeps_its_name_if_readable(tmp_path: Path) -> None:
    readable = parse_descriptor(written(tmp_path, "[Core]\nName = Tables\nModule = ../x\n"))
    assert isinstance(readable, BrokenPlugin)
    assert readable.name == "Tables"
    guessed = parse_descriptor(written(tmp_path, b"\xff"))
    assert isinstance(guessed, BrokenPlugin)
    assert guessed.name == "files"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such file names")
def test_a_file_name_cannot_forge_a_line_of_the_message(tmp_path: Path) -> None:
    path = tmp_path / "x\nall is well\x1b[2K.plug"
    path.write_text("[Core]\n", "utf-8")
    with pytest.raises(PluginLoadError) as caught:
        read_descriptor(path)
    assert str(caught.value).isprintable()
    assert caught.value.name is None


# --- anything at all ---

LINES = st.sampled_from(
    [
        *("[Core]", "[URL]", "[Python]", "[DEFAULT]", "[]", "[Core", "Name = Files", "Name", "= x", " continued"),
        *("Module = m", "Module = ../m", "Class = C", "Extra = e", "Version = 3.11", "Schemes = a,b", "Path = p"),
        *("Whole = w", "; note", "# note", "", " ", "\x0c", "\x85", "\u2028Name = x", "%(Name)s = %(x)s", "\0", "\r"),
    ]
)


@given(st.one_of(st.binary(max_size=400), st.lists(LINES | st.text(max_size=20), max_size=20).map("\n".join)))
@example("[Core]\nName = Files\nModule = m\n")
@example("[Core]\n continued\nName\n more\n")
def test_any_bytes_are_a_plugin_or_a_plugin_load_error(content: bytes | str) -> None:
    data = content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.plug")
        path.write_bytes(data)
        Path(folder, "m.py").touch()
        try:
            info = read_descriptor(path)
        except PluginLoadError as error:
            assert str(error).isprintable()  # noqa: PT017 - half of what may happen
        else:
            assert info.name.isprintable()
            assert info.module == "m"
            assert info.description.isprintable()
            assert info.schemes


SIMPLE_LINES = st.sampled_from(
    [
        *(
            "",
            "[Core]",
            "[URL]",
            "[core]",
            "[DEFAULT]",
            "[Two Words]",
            "[a]b]",
            "; no",
            "# no",
            "Name = a",
            "name=b = c",
        ),
        *(
            "NAME =",
            "k : v",
            " x = y",
            "\tindented",
            "Path = ; x # y",
            "k\x0b= v\x0b",
            "\u0130 = \u0130",
            "= v",
            "e v = w",
        ),
        *("plain", "\ufeffk = v", "k=\x1cv\x85"),
    ]
)


@given(
    st.lists(SIMPLE_LINES | st.text("[]=:;#aB \t\r\x0b\x0c\x1c\x85\u2028\u00df\u0130", max_size=12), max_size=12).map(
        "\n".join
    )
    | st.text(max_size=60)
)
@example(MINIMAL)
@example(ERRBOT_FULL)
@example(MINIMAL.replace("\n", "\r\n"))
@example(MINIMAL.replace("\n", "\r"))
@example("[DEFAULT]\nModule = m\n[Core]\nName = a\n")
@example(";\r0")
def test_a_descriptor_is_read_in_the_short_way_as_configparser_reads_it_or_not_at_all(text: str) -> None:
    simple = _parse_simple(text)
    if simple is None:
        return
    try:
        assert _parse_any(text) == simple
    except _Malformed as error:
        raise AssertionError(f"read, but {error}") from None


def test_the_built_in_descriptors_are_read_in_the_short_way() -> None:
    files = sorted(builtin_dir().rglob("*.plug"))
    assert len(files) >= 5
    assert [file for file in files if _parse_simple(file.read_text("utf-8")) is None] == []
