"""Test config files: YAML and TOML, well meant and hostile."""

from __future__ import annotations

import datetime
import os
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from hutch.config import StoreConfig, read_config
from hutch.config.file import MAX_FILE_BYTES
from hutch.errors import ConfigError

SECRET = "s3cr3t"
# Hostile input is refused in well under a second; a loaded machine gets ten.
PROMPTLY_S = 10.0


def write(folder: Path, text: str | bytes, name: str = "app.yaml") -> Path:
    file = folder / name
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return file


def read(folder: Path, config: object = None, **environ: str) -> StoreConfig:
    return read_config(config, environ=environ, cwd=folder)


def error_of(folder: Path, config: object = None, **environ: str) -> str:
    start = time.monotonic()
    with pytest.raises(ConfigError) as caught:
        read(folder, config, **environ)
    assert time.monotonic() - start < PROMPTLY_S
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    return str(caught.value)


YAML = """\
# One store for the whole bot.
STORAGE: lmdb
STORAGE_CONFIG:
  path: ${DATA:-data}/state
  map_size_bytes: 1000000
  ratio: 0.5
  sync: yes
  hosts: [a, "2"]
extra_plugin_dirs: [plugins, /srv/plugins]
codec: {name: pickle, key: "${KEY}"}
LAYERS:
  - read-only
  - name: cache
    max_bytes: 1000
NAMESPACES:
  tmp-*: {CODEC: json}
  "*": {LAYERS: []}
"""
TOML = """\
STORAGE = "lmdb"
extra_plugin_dirs = ["plugins", "/srv/plugins"]
codec = {name = "pickle", key = "${KEY}"}
LAYERS = ["read-only", {name = "cache", max_bytes = 1000}]

[STORAGE_CONFIG]
path = "${DATA:-data}/state"
map_size_bytes = 1_000_000
ratio = 0.5
sync = true
hosts = ["a", "2"]

[NAMESPACES."tmp-*"]
CODEC = "json"
[NAMESPACES."*"]
LAYERS = []
"""


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (YAML, "app.yaml"),
        (YAML, "app.YML"),
        ("\ufeff" + YAML.replace("\n", "\r\n"), "app.yml"),
        (TOML, "app.toml"),
        ("\ufeff" + TOML.replace("\n", "\r\n"), "app.toml"),
    ],
)
def test_yaml_and_toml_say_the_same(text: str, name: str, tmp_path: Path) -> None:
    file = write(tmp_path, text, name)
    for form in (file, str(file)):
        config = read(Path("elsewhere"), form, KEY="k")
        assert config.storage == "lmdb"
        assert config.options == {
            "path": "data/state",
            "map_size_bytes": 1_000_000,
            "ratio": 0.5,
            "sync": True,
            "hosts": ["a", "2"],
        }
        assert config.extra_plugin_dirs == (tmp_path / "plugins", tmp_path / "/srv/plugins")
        assert (config.codec.name, config.codec.options) == ("pickle", {"key": "k"})
        assert [(layer.name, dict(layer.options)) for layer in config.layers] == [
            ("read-only", {}),
            ("cache", {"max_bytes": 1000}),
        ]
        assert [rule.pattern for rule in config.namespaces] == ["tmp-*", "*"]
        assert (config.base_dir, config.source, config.url) == (tmp_path, str(file), None)


def test_relative_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    folder = tmp_path / "etc"
    folder.mkdir()
    write(folder, "STORAGE: lmdb://data\nEXTRA_PLUGIN_DIRS: plugins")
    for form, environ in (("etc/app.yaml", {}), (None, {"HUTCH_CONFIG": "etc/app.yaml"})):
        config = read(tmp_path, form, **environ)
        assert (config.base_dir, config.url) == (folder, "lmdb://data")
        assert config.extra_plugin_dirs == (folder / "plugins",)


def test_an_environment_variable_may_name_the_file(tmp_path: Path) -> None:
    file = write(tmp_path, "STORAGE: ${ENGINE}\nCODEC: pickle")
    write(tmp_path, "STORAGE: other", "hutch.yaml")
    config = read(tmp_path, HUTCH_CONFIG=str(file), ENGINE="shelf")
    assert (config.storage, config.codec.name) == ("shelf", "pickle")
    assert config.source == f"$HUTCH_CONFIG ({file})"


def test_a_mistake_in_a_file_is_named_with_the_file(tmp_path: Path) -> None:
    write(tmp_path, "STORAGE: x\nSTORAGE_CONFG: {}")
    assert error_of(tmp_path, "app.yaml").startswith(
        "app.yaml: unknown key 'STORAGE_CONFG'. Did you mean 'STORAGE_CONFIG'?"
    )


def test_yaml_anchors_and_merge_keys_work(tmp_path: Path) -> None:
    text = """
STORAGE: x
STORAGE_CONFIG:
  one: &one {a: 1, b: 2, c: 3}
  two: &two {b: 20, d: 40}
  both: {<<: [*one, *two], a: 100}
  again: {a: 0, <<: *two}
  list: [*two, *two]
"""
    options = read(tmp_path, write(tmp_path, text)).options
    assert options["both"] == {"a": 100, "b": 2, "c": 3, "d": 40}
    assert options["again"] == {"a": 0, "b": 20, "d": 40}
    options["list"][0]["b"] = "changed"
    assert options["list"][1] == options["two"] == {"b": 20, "d": 40}


def test_yaml_scalars_are_what_safe_load_makes_of_them(tmp_path: Path) -> None:
    text = """
STORAGE: x
STORAGE_CONFIG: {i: -0x1F, f: 1e3, n: ~, t: on, s: '1', d: 2024-02-29, b: !!binary aGk=, e: !!str 5, 7: seven, j: .inf}
"""
    assert read(tmp_path, write(tmp_path, text.replace(", 7: seven", ""))).options == {
        "i": -31, "f": "1e3", "n": None, "t": True, "s": "1", "d": datetime.date(2024, 2, 29), "b": b"hi", "e": "5",
        "j": float("inf"),
    }  # fmt: skip
    assert "STORAGE_CONFIG: a key must be text, not a number; quote it" in error_of(tmp_path, write(tmp_path, text))


# --- files that are not a config ---


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "app.yaml: the file is empty"),
        ("# nothing\n---\n", "app.yaml: the file is empty"),
        ("- STORAGE", "app.yaml: the file must hold a mapping of keys"),
        ("lmdb:///srv/state", "app.yaml: the file must hold a mapping of keys"),
        ("STORAGE: x\nSTORAGE: y", "app.yaml, line 2: the key 'STORAGE' comes twice"),
        ("STORAGE: x\nSTORAGE_CONFIG:\n  a: {b: 1,\n   b: 2}", "app.yaml, line 4: the key 'b' comes twice"),
        ("STORAGE: x\n---\nSTORAGE: y", "app.yaml, line 2: not well-formed YAML: but found another document"),
        ("STORAGE: [x\nb: 1", "app.yaml, line 2: not well-formed YAML: expected"),
        (
            "STORAGE: x\n\tCODEC: json",
            "app.yaml, line 2: not well-formed YAML: found character '\\t' that",
        ),
        ("STORAGE: x\nCODEC: *s3cr3t", "app.yaml, line 2: not well-formed YAML: found undefined alias (...)"),
        ("STORAGE: x\nCODEC: !s3cr3t y", "app.yaml, line 2: a tag that no config uses"),
        ("STORAGE: x\nCODEC: !u!s3cr3t y", "app.yaml, line 2: not well-formed YAML: found undefined tag handle (...)"),
        ("a: &s3cr3t 1\nb: &s3cr3t 1\nc: 's3cr3t", "app.yaml, line 3: not well-formed YAML"),
        ("STORAGE: !!python/object/apply:os.system [s3cr3t]", "app.yaml, line 1: a tag that no config uses"),
        ("STORAGE: !!set {a, b}", "app.yaml, line 1: a tag that no config uses"),
        ("STORAGE: !!map x", "app.yaml, line 1: a tag that no config uses"),
        ("a: !!int s3cr3t", "app.yaml, line 1: not a valid int; quote the value"),
        ("a: !!int ''", "app.yaml, line 1: not a valid int; quote the value"),
        ("a: !!bool s3cr3t", "app.yaml, line 1: not a valid bool; quote the value"),
        ("a: !!timestamp s3cr3t", "app.yaml, line 1: not a valid timestamp; quote the value"),
        ("a: 2024-02-30", "app.yaml, line 1: not a valid timestamp; quote the value"),
        ("a: " + "9" * 999, "app.yaml: unknown key 'a'"),
        ("a: " + "9" * 1001, "app.yaml, line 1: a number or date of that length"),
        ("a: 1" + ":1" * 300_000, "app.yaml, line 1: a number or date of that length"),
        ("? [s3cr3t]\n: 1", "app.yaml, line 1: a key must be text"),
        ("a: {<<: s3cr3t}", "app.yaml, line 1: '<<' takes a mapping, or a list of mappings"),
        ("a: {<<: [{}, s3cr3t]}", "app.yaml, line 1: '<<' takes a mapping, or a list of mappings"),
        ('a: "\\UFFFFFFFF"', "app.yaml: not well-formed YAML: a number is out of range"),
        ("a: 1\n\x07", "app.yaml, line 2: not well-formed YAML: a control character"),
        (b"a: 1\nb: \xff", "app.yaml, line 2: the file is not UTF-8"),
        ("a: 1".encode("utf-16"), "app.yaml, line 1: the file is not UTF-8"),
        ("a: &a [*a]", "app.yaml, line 1: values nest deeper than 32"),
        ("a: &a {<<: *a}", "app.yaml, line 1: values nest deeper than 32"),
        ("a: " + "[" * 500_000, "app.yaml, line 1: values nest deeper than 32"),
        ("- " * 500_000, "app.yaml, line 1: values nest deeper than 32"),
        ("a:\n" + "- 1\n" * 200_000, "app.yaml, line 9999: more than 10,000 values"),
        ("x" * (MAX_FILE_BYTES + 1), "app.yaml: the file is larger than 1,048,576 bytes"),
    ],
)
def test_an_invalid_yaml_config_is_refused_with_its_line(text: str | bytes, problem: str, tmp_path: Path) -> None:
    write(tmp_path, text)
    assert problem in error_of(tmp_path, "app.yaml")


@pytest.mark.parametrize("join", ["[{}]", "{{<<: [{}]}}"])
def test_a_billion_laughs_are_refused(join: str, tmp_path: Path) -> None:
    lines = ["a0: &a0 {ha: ha}"]
    lines += [f"a{i}: &a{i} {join.format(', '.join([f'*a{i - 1}'] * 10))}" for i in range(1, 10)]
    write(tmp_path, "\n".join(lines))
    assert "more than 10,000 values" in error_of(tmp_path, "app.yaml")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "app.toml: STORAGE: it is missing"),
        ("STORAGE = 'x'\nSTORAGE = 'y'\n", "app.toml: not well-formed TOML: Cannot overwrite a value (at line 2"),
        ("STORAGE = s3cr3t", "app.toml: not well-formed TOML: Invalid value (at line 1, column 11)"),
        ("STORAGE 's3cr3t'", "app.toml: not well-formed TOML: Expected '=' after a key"),
        ("a = {s3cr3t = 1, s3cr3t = 2}", "app.toml: not well-formed TOML: Duplicate inline table key (...) (at line 1"),
        ("a = " + "9" * 5_000, "app.toml: not well-formed TOML"),
        ("a = " + "[" * 500_000, "app.toml: values nest deeper than 32"),
        ("a = " + "[" * 40 + "]" * 40, "app.toml: unknown key 'a'"),
        ("STORAGE='x'\nSTORAGE_CONFIG.a = " + "[" * 40 + "]" * 40, "values nest deeper than 32"),
        ("STORAGE='x'\nSTORAGE_CONFIG.a = [" + "1," * 10_000 + "]", "STORAGE_CONFIG.a[9999]: more than 10,000 values"),
        ("# " + "." * 2000 + "\n" + "a." * 400_000 + "a = 1", "app.toml, line 2: a line with more than 1,000 dots"),
        ('"\u2028".' * 100_000 + "a = 1", "app.toml, line 1: a line with more than 1,000 dots"),
        (b"a = 1\nb = '\xff'", "app.toml, line 2: the file is not UTF-8"),
    ],
)
def test_an_invalid_toml_config_is_refused_with_its_line(text: str | bytes, problem: str, tmp_path: Path) -> None:
    write(tmp_path, text, "app.toml")
    assert problem in error_of(tmp_path, "app.toml")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert error_of(tmp_path, "no.yaml") == f"no.yaml: there is no such file ({str(tmp_path / 'no.yaml')!r})"
    assert "there is no such file" in error_of(tmp_path, tmp_path / "no" / "no.toml")


@pytest.mark.parametrize("name", ["app.json", "app", "app.yaml.bak"])
def test_a_file_of_another_kind_is_refused(name: str, tmp_path: Path) -> None:
    file = write(tmp_path, "STORAGE: x", name)
    assert "ends in .yaml, .yml or .toml" in error_of(tmp_path, file)
    assert "ends in .yaml, .yml or .toml" in error_of(tmp_path, HUTCH_CONFIG=name)


def test_python_is_not_run(tmp_path: Path) -> None:
    file = write(tmp_path, "raise SystemExit", "config.py")
    for config, environ in ((file, {}), (str(file), {}), (None, {"HUTCH_CONFIG": str(file)})):
        assert "import config; hutch.connect(config)" in error_of(tmp_path, config, **environ)


@pytest.mark.parametrize("name", ["\0.yaml", "\ud800.toml"])
def test_an_impossible_name_is_refused(name: str, tmp_path: Path) -> None:
    assert "no file can have that name" in error_of(tmp_path, name)


def test_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "hutch.yaml").mkdir()
    assert "hutch.yaml is a folder" in error_of(tmp_path, "hutch.yaml")


@pytest.mark.skipif(sys.platform == "win32", reason="no FIFO, no device files")
def test_a_path_that_is_not_a_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.yaml")
    (tmp_path / "zero.toml").symlink_to("/dev/zero")
    for name in ("fifo.yaml", "zero.toml"):
        assert "is not a regular file" in error_of(tmp_path, name)


@pytest.mark.skipif(sys.platform == "win32", reason="symbolic links need a privilege")
def test_a_file_that_cannot_be_opened_says_why(tmp_path: Path) -> None:
    (tmp_path / "loop.yaml").symlink_to("loop.yaml")
    (tmp_path / "hutch.yaml").symlink_to("gone.yaml")
    assert "loop.yaml: the file cannot be read: " in error_of(tmp_path, "loop.yaml")
    assert "the file cannot be read: File name too long" in error_of(tmp_path, "x" * 1000 + ".yaml")
    assert "hutch.yaml: there is no such file" in error_of(tmp_path, "hutch.yaml")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no mode bits")
def test_a_file_without_permission_is_named(tmp_path: Path) -> None:
    file = write(tmp_path, "STORAGE: x")
    file.chmod(0)
    if os.geteuid() != 0:
        assert "app.yaml: the file cannot be read: Permission denied" in error_of(tmp_path, "app.yaml")
        return
    # Root can read everything: drop the privileges permanently, in a separate process.
    code = f"import os; from hutch.config import read_config; os.setuid(65534); read_config({str(file)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert "the file cannot be read: Permission denied" in done.stderr


def test_reading_leaves_no_file_open(tmp_path: Path) -> None:
    file = write(tmp_path, "STORAGE: x")
    read(tmp_path, file)
    file.replace(tmp_path / "moved.yaml")  # Windows refuses this while the file is open; elsewhere a warning would


# --- a file that is not named ---


@pytest.mark.parametrize("name", ["hutch.yaml", "hutch.toml", "config.yaml"])
def test_no_file_is_looked_for_in_the_working_folder(name: str, tmp_path: Path) -> None:
    write(tmp_path, "STORAGE: shelf\nEXTRA_PLUGIN_DIRS: .\n", name)
    config = read(tmp_path)
    assert (config.source, config.storage) == ("default", "lmdb")
    assert config.extra_plugin_dirs == ()


# --- anything at all ---

PIECES = st.sampled_from(
    ["STORAGE", "CODEC", "NAMESPACES", ":", ": ", "\n", "\n  ", "- ", "[", "]", "{", "}", "&a ", "*a", "<<: ", "!!int ",
     "!!binary ", "? ", "'", '"', "| \n", "> ", "${A}", "lmdb", "1", "1:1", "2024-01-01", "~", "= ", "%YAML 1.1\n",
     "---\n", "#", "\\U", "\\x", "\t", "\r", ".", "0x", "0o", "_", "e9", "inf", "nan"]
)  # fmt: skip
DOCUMENTS = st.one_of(
    st.binary(max_size=60),
    st.lists(st.one_of(PIECES, st.text(max_size=2)), max_size=25).map(
        lambda pieces: "".join(pieces).encode("utf-8", "replace")
    ),
)


@pytest.mark.parametrize("name", ["hutch.yaml", "hutch.toml"])
@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=DOCUMENTS)
@example(data=b"a: !!timestamp ''")
@example(data=b"%YAML 1." + b"9" * 5000 + b"\n--- a")
@example(data=b"a: = ")
@example(data=b"a: 0x_")
@example(data=b"? !!binary ''\n: 1")
def test_any_file_is_a_config_or_a_config_error(name: str, data: bytes, tmp_path: Path) -> None:
    file = write(tmp_path, data, name)
    try:
        shown = repr(read(tmp_path, file, A="a"))
    except ConfigError as caught:
        shown = str(caught)
    assert len(shown.splitlines()) == 1


NESTED: st.SearchStrategy[Any] = st.recursive(
    st.one_of(st.integers(-(2**63), 2**63 - 1), st.booleans(), st.text(st.characters(exclude_categories=["Cs"]))),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text("abc", min_size=1), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(options=st.dictionaries(st.text("abcXYZ_-.${ üé'\"", min_size=1), NESTED))
def test_options_arrive_as_they_were_dumped(tmp_path: Path, options: dict[str, Any]) -> None:
    import yaml

    escaped = yaml.safe_dump({"STORAGE": "x", "STORAGE_CONFIG": _escaped(options)})
    assert read(tmp_path, write(tmp_path, escaped)).options == options


def _escaped(value: Any) -> Any:
    if isinstance(value, str):
        return value.replace("${", "$${")
    if isinstance(value, dict):
        return {key: _escaped(item) for key, item in value.items()}
    return [_escaped(item) for item in value] if isinstance(value, list) else value


def test_yaml_is_imported_only_to_read_yaml(tmp_path: Path) -> None:
    file = write(tmp_path, "STORAGE = 'memory'", "app.toml")
    code = (
        "import sys; from hutch.config import read_config; read_config('memory://'); read_config({'STORAGE': 'x'}); "
        f"read_config({str(file)!r}); sys.exit('yaml' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0
