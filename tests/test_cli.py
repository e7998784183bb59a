"""Test the `hutch` command: what it prints, what it refuses, its exit codes, and that it does no harm."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import struct
import subprocess
import sys
import textwrap
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ormsgpack
import pytest

import hutch
from tests.cli_calls import (
    POSIX_ONLY,
    TIMEOUT_S,
    Result,
    a_place_of_its_own,
    fill,
    held,
    hutch_,
    hutch_process,
    interrupt,
    url,
)

__all__ = ["a_place_of_its_own", "url"]


# --- looking ---


def test_ls_gives_names_and_counts_as_lines_for_a_pipe_and_as_json(url: str) -> None:
    fill(url, core={"a": 1, "b": 2}, empty={}, **{"a:b": {"x": 0}})
    assert hutch_("-s", url, "ls") == Result(0, "a:b\t1\ncore\t2\n", "")
    assert hutch_("ls", "-s", url, "--json").out == ('{"namespace":"a:b","items":1}\n{"namespace":"core","items":2}\n')


def test_keys_are_in_order_and_can_be_narrowed(url: str) -> None:
    fill(url, core={f"user:{number}": number for number in (3, 1, 2)} | {"z": 0, "a\nb": 0})
    assert hutch_("-s", url, "keys", "core").out == "a\\nb\nuser:1\nuser:2\nuser:3\nz\n"
    assert hutch_("-s", url, "keys", "core", "--prefix", "user:", "--limit", "2").out == "user:1\nuser:2\n"
    assert hutch_("-s", url, "keys", "core", "--limit", "1", "--json").out == '"a\\nb"\n'
    assert hutch_("-s", url, "keys", "core", "--prefix", "nobody") == Result(0, "", "")
    assert hutch_("-s", url, "keys", "core", "--limit", "0") == Result(0, "", "")


def test_what_is_missing_ends_with_1_and_says_what(url: str) -> None:
    fill(url, core={"a": 1})
    for arguments, message in [
        (["rm", "cor", "b"], "hutch: namespace 'cor' is empty; `hutch ls` lists the namespaces with items\n"),
        (["get", "core", "b"], "hutch: namespace 'core' has no key 'b'; `hutch keys core` lists the keys\n"),
        (
            ["rm", "core", "b", "a", "c"],
            "hutch: namespace 'core' has no key 'b', 'c'; `hutch keys core` lists the keys\n",
        ),
        (
            ["rm", "cor", "--all", "--yes"],
            "hutch: namespace 'cor' is empty; `hutch ls` lists the namespaces with items\n",
        ),
    ]:
        assert hutch_("-s", url, *arguments) == Result(1, "", message)
    assert held(url, "core") == {}


def test_a_mistyped_namespace_ends_with_3_and_is_named(url: str, tmp_path: Path) -> None:
    fill(url, core={"a": 1})
    for arguments in [
        ["get", "cor", "a"],
        ["keys", "cor"],
        ["dump", "-n", "cor"],
        ["dump", "-n", "core", "-n", "cor", "-o", "dump"],
    ]:
        result = hutch_("-s", url, *arguments)
        assert (result.code, result.out) == (3, ""), result
        assert result.err == (
            "hutch: there is no namespace 'cor' with items in the lmdb store. Did you mean 'core'? "
            "`hutch ls` lists the namespaces\n"
        )
    result = hutch_("copy", url, "sqlite://copy.db", "-n", "cor")
    assert (result.code, "'cor'" in result.err) == (3, True)
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


@pytest.mark.parametrize("url", ["lmdb://nowhere", "sqlite://nowhere.db", "shelf://nowhere"])
def test_a_mistyped_path_ends_with_3_and_is_named_and_not_created(url: str, tmp_path: Path) -> None:
    for arguments in [
        ["ls"],
        ["keys", "core"],
        ["get", "core", "k"],
        ["stats"],
        ["check"],
        ["check", "--repair"],
        ["dump", "-o", "dump"],
        ["rm", "core", "k"],
        ["rm", "core", "--all", "--yes"],
        ["export", "ragas-jsonl", "out"],
    ]:
        result = hutch_("-s", url, *arguments)
        assert (result.code, result.out) == (3, ""), (arguments, result)
        assert str(tmp_path / "nowhere") in result.err
        assert result.err.count("\n") == 1
    result = hutch_("copy", url, "sqlite://copy.db")
    assert (result.code, str(tmp_path / "nowhere") in result.err) == (3, True)
    # The option says the same in a URL, and the command overrides it.
    assert hutch_("-s", f"{url}?create=true", "ls").code == 3
    assert list(tmp_path.iterdir()) == []


def test_an_existing_store_without_namespaces_is_listed_as_empty(url: str, tmp_path: Path) -> None:
    for existing in (url, "sqlite://kv.db", f"shelf://{tmp_path}"):
        fill(existing, core={"a": 1})
        assert hutch_("-s", existing, "rm", "core", "--all", "--yes").code == 0
        assert hutch_("-s", existing, "ls") == Result(0, "", "")
        assert hutch_("-s", existing, "dump").code == 0
        assert hutch_("-s", existing, "check").code == 0


SHOWN: list[tuple[Any, str]] = [
    (None, "null"),
    (True, "true"),
    (5, "5"),
    (2**70, str(2**70)),
    (float("nan"), "nan"),
    ("text\n", '"text\\n"'),
    (b"\x00a", "b'\\x00a'"),
    ([], "[]"),
    ({}, "{}"),
    (set(), "set()"),
    ((1,), "tuple(1)"),
    ({"a": {1, 2}}, '{"a": set(1, 2)}'),
    ({1: "one", (2,): None}, '{1: "one", tuple(2): null}'),
    ({"$set": 1}, 'dict(["$set", 1])'),
    (Path("/srv"), 'windows_path("\\\\srv")' if os.name == "nt" else 'path("/srv")'),
    (list(range(60)), "[\n" + ",\n".join(f"  {number}" for number in range(60)) + "\n]"),
    (
        {"first": ["x" * 60, "y" * 40], "second": ("z",)},
        '{\n  "first": [\n    "' + "x" * 60 + '",\n    "' + "y" * 40 + '"\n  ],\n  "second": tuple("z")\n}',
    ),
]


@pytest.mark.parametrize(("value", "shown"), SHOWN, ids=lambda one: type(one).__name__)
def test_values_are_readable_text_that_shows_their_types(value: Any, shown: str, url: str) -> None:
    fill(url, core={"k": value})
    assert hutch_("-s", url, "get", "core", "k") == Result(0, shown + "\n", "")


def test_json_of_a_value_is_what_set_takes(url: str) -> None:
    fill(url, core={"k": {"a": {1, "é"}, "b": (b"\x00", 2**80)}})
    text = hutch_("-s", url, "get", "core", "k", "--json").out
    assert hutch_("-s", url, "set", "core", "again", text) == Result(0, "", "")
    assert held(url, "core")["again"] == {"a": {1, "é"}, "b": (b"\x00", 2**80)}


def test_a_text_can_be_printed_without_quotes(url: str) -> None:
    fill(url, core={"k": "two\nlines \x1b[1m", "n": 5})
    assert hutch_("-s", url, "get", "core", "k", "--text").out == "two\nlines \x1b[1m"
    refused = hutch_("-s", url, "get", "core", "n", "--text")
    assert (refused.code, refused.err) == (
        2,
        "hutch: the value is an int, not text; leave out --text. See hutch get --help\n",
    )


def test_stats_names_the_engine_and_counts(url: str) -> None:
    fill(url, core={"a": 1}, more={"b": 1, "c": 2})
    found = json.loads(hutch_("-s", url, "stats", "--json").out)
    assert found["storage"] == "lmdb"
    assert found["namespaces"] == {"core": 1, "more": 2}
    assert found["items"] == 3
    assert "shared" in found["capabilities"]
    assert '"storage": "lmdb"' in hutch_("-s", url, "stats").out


# --- changing ---


@pytest.mark.parametrize(
    ("arguments", "stdin", "stored"),
    [
        (["5"], b"", 5),
        (["-5"], b"", -5),
        (["--", "-0.0"], b"", -0.0),
        (['"text"'], b"", "text"),
        (['{"$set": ["a"]}'], b"", {"a"}),
        (["hello", "--text"], b"", "hello"),
        (["--text", "{}"], b"", "{}"),
        (["-"], b'["from", "a pipe"]\n', ["from", "a pipe"]),
        (["-", "--text"], "wie es ist: ä\n".encode(), "wie es ist: ä\n"),
    ],
)
def test_set_stores_json_or_text_from_the_command_line_or_a_pipe(
    arguments: list[str], stdin: bytes, stored: Any, url: str
) -> None:
    assert hutch_("-s", url, "set", "core", "k", *arguments, stdin=stdin) == Result(0, "", "")
    value = held(url, "core")["k"]
    assert value == stored
    assert type(value) is type(stored)


@pytest.mark.parametrize(
    ("arguments", "stdin"),
    [(["hunter2"], b""), (['{"$sett": [1]}'], b""), (["-"], b"hunter2"), (["-", "--text"], b"\xff"), (["[1,"], b"")],
)
def test_a_value_that_cannot_be_read_is_an_error_that_does_not_show_it(
    arguments: list[str], stdin: bytes, url: str
) -> None:
    result = hutch_("-s", url, "set", "core", "k", *arguments, stdin=stdin)
    assert result.code == 2
    assert result.out == ""
    assert result.err.count("\n") == 1
    assert "hunter2" not in result.err
    assert held(url, "core") == {}
    if arguments == ["hunter2"]:
        assert "For plain text add --text" in result.err


def test_rm_removes_keys_and_asks_before_it_removes_all(url: str) -> None:
    fill(url, core={"a": 1, "b": 2, "c": 3}, other={"a": 1})
    assert hutch_("-s", url, "rm", "core", "a", "b", "a") == Result(0, "", "")
    assert held(url, "core") == {"c": 3}
    refused = hutch_("-s", url, "rm", "core", "--all")
    assert (refused.code, refused.err) == (
        2,
        "hutch: no terminal to ask for confirmation; add --yes. See hutch rm --help\n",
    )
    assert held(url, "core") == {"c": 3}
    for nonsense in (["rm", "core"], ["rm", "core", "--all", "c"]):
        assert hutch_("-s", url, *nonsense).code == 2
    assert hutch_("-s", url, "rm", "core", "--all", "--yes") == Result(0, "", "")
    assert hutch_("-s", url, "ls").out == "other\t1\n"


# --- which store ---


def test_the_store_is_named_by_option_environment_file_or_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "data"))
    config = tmp_path / "conf" / "my.yaml"
    config.parent.mkdir()
    config.write_text("STORAGE: lmdb\nSTORAGE_CONFIG: {path: from_file}\n")

    def stored_where() -> str:
        return hutch_("keys", "core").out.strip()

    fill("lmdb://url", core={"url": 1})
    fill(config, core={"file": 1})
    fill(None, core={"default": 1})
    assert stored_where() == "default"
    (tmp_path / "hutch.yaml").write_text("STORAGE: lmdb\nSTORAGE_CONFIG: {path: here}\n")
    # A config in the working folder is not read; the command says so.
    assert stored_where() == "default"
    assert "to use the config in this folder add: -c hutch.yaml" in hutch_("keys", "core").err
    monkeypatch.setenv("HUTCH_CONFIG", str(config))
    assert stored_where() == "file"
    monkeypatch.setenv("HUTCH_STORAGE", "lmdb://url")
    assert stored_where() == "url"
    assert hutch_("-c", str(config), "keys", "core").out == "file\n"
    assert hutch_("keys", "core", "-c", str(config)).out == "file\n"
    both = hutch_("-s", "lmdb://url", "keys", "core", "-c", str(config))
    assert (both.code, both.out) == (2, "")
    assert "not both" in both.err


def test_a_type_that_the_application_registers_is_read_with_import(
    tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "their_types.py").write_text(
        "import dataclasses, hutch\n@hutch.register_type\n@dataclasses.dataclass\nclass User:\n    name: str\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    value = '{"$type": "their_types.User", "value": {"name": "Ada"}}'
    with_import = ["-s", url, "--import", "their_types"]
    assert hutch_process(*with_import, "set", "core", "k", value, env=environment).returncode == 0
    assert hutch_process(*with_import, "get", "core", "k", env=environment).stdout == (
        'their_types.User({"name": "Ada"})\n'
    )
    dumped = hutch_process(*with_import, "dump", env=environment).stdout
    for arguments in (["-s", url, "get", "core", "k"], ["-s", "lmdb://other", "load"]):
        without = hutch_process(*arguments, input=dumped)
        assert without.returncode == 4
        assert without.stderr.count("\n") == 1
    assert "'their_types.User', which is not registered" in without.stderr
    assert "hutch --import MODULE" in without.stderr
    missing = hutch_process("-s", url, "--import", "nobody_has_this", "ls")
    assert missing.returncode == 2
    assert missing.stderr.startswith("hutch: --import nobody_has_this: ModuleNotFoundError")


# --- plugins and check ---


def test_plugins_says_of_each_whether_it_loads_and_why_not(tmp_path: Path) -> None:
    folder = tmp_path / "more"
    folder.mkdir()
    factory = "class SomePlugin:\n    def __init__(self, config): pass\n    def open(self, n): pass"
    for name, code in {
        "chatty": f"print('imported')\n{factory}",
        "failing": "raise RuntimeError('no luck: redis://user:hunter2@host/')",
        "leaving": "import sys\nsys.exit(5)",
        "twin": factory,
    }.items():
        (folder / f"{name}.plug").write_text(f"[Core]\nName = {name.title()}\nModule = {name}_storage\n")
        (folder / f"{name}_storage.py").write_text(code + "\n")
    (folder / "again.plug").write_text("[Core]\nName = TWIN\nModule = twin_storage\n")
    (folder / "broken.plug").write_text("no section\x1b[2J")
    (tmp_path / "c.yaml").write_text("STORAGE: memory\nEXTRA_PLUGIN_DIRS: [more]\n")
    result = hutch_("-c", "c.yaml", "plugins", "--json")
    assert result.code == 0
    listed = [json.loads(line) for line in result.out.splitlines()]
    states = {(one["name"], one["state"]) for one in listed}
    assert {("memory", "ok"), ("lmdb", "ok"), ("Chatty", "ok"), ("Failing", "broken"), ("Leaving", "broken")} <= states
    assert {("Twin", "conflict"), ("TWIN", "conflict"), ("broken", "broken")} <= states
    by_name = {one["name"]: one for one in listed}
    assert by_name["Chatty"]["found"] == str(folder / "chatty.plug")
    assert "RuntimeError" in by_name["Failing"]["note"]
    assert "hunter2" not in result.out + result.err
    assert result.err == "imported\n"
    plain = hutch_("-c", "c.yaml", "plugins").out
    assert len(plain.splitlines()) == len(listed)
    assert "\x1b" not in plain


def test_an_engine_without_its_driver_is_not_installed_and_the_pip_command_is_shown(tmp_path: Path) -> None:
    (tmp_path / "redis.py").write_text("raise ModuleNotFoundError(\"No module named 'redis'\", name='redis')")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    listed = hutch_process("plugins", "--json", env=environment)
    states = {one["name"]: (one["state"], one["note"]) for one in map(json.loads, listed.stdout.splitlines())}
    state, note = states["redis"]
    assert state == "not installed"
    assert "it needs the package 'redis', which is not installed. Install it: pip install \"hutch[redis]\" (" in note
    assert {state for name, (state, _) in states.items() if name != "redis"} == {"ok"}
    refused = hutch_process("-s", "redis://localhost/0", "ls", env=environment)
    assert (refused.returncode, refused.stdout, refused.stderr) == (2, "", f"hutch: {note}\n")


def test_plugins_are_listed_even_if_the_config_of_the_environment_is_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hutch.yaml").write_text("STORRAGE: memory\n")
    monkeypatch.setenv("HUTCH_CONFIG", "hutch.yaml")
    result = hutch_("plugins")
    assert result.code == 0
    assert "memory\tok\t" in result.out
    assert result.err.startswith("hutch: $HUTCH_CONFIG (hutch.yaml)")
    assert hutch_("-c", "hutch.yaml", "plugins").code == 2


@pytest.mark.timeout(400)  # the whole conformance kit, twice
def test_test_plugin_prints_one_line_per_promise_and_ends_with_1_if_one_is_broken(
    tmp_path: Path, few_signals: None
) -> None:
    passed = hutch_process("test-plugin", "memory", timeout_s=190)
    assert passed.returncode == 0, passed.stdout + passed.stderr
    *promises, summary = passed.stdout.splitlines()
    assert all(line.startswith(("passed  ", "skipped ")) for line in promises)
    assert ", 0 failed, " in summary
    assert len(promises) > 20
    (tmp_path / "deaf.plug").write_text("[Core]\nName = Deaf\nModule = deaf_storage\n")
    (tmp_path / "deaf_storage.py").write_text(
        textwrap.dedent("""
        class Storage:
            def set(self, key, value): pass
            def get(self, key): raise KeyError(key)
            def remove(self, key): raise KeyError(key)
            def len(self): return 0
            def keys(self): return []
            def close(self): pass
        class DeafPlugin:
            def __init__(self, config): pass
            def open(self, namespace): return Storage()
        """)
    )
    failed = hutch_process("test-plugin", "deaf.plug", "--json", timeout_s=190)
    assert failed.returncode == 1
    outcomes = [json.loads(line) for line in failed.stdout.splitlines()]
    assert {one["outcome"] for one in outcomes} >= {"failed"}
    assert all(one["promise"] for one in outcomes)


# --- how it ends ---


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["nonsense"], 2),
        (["get", "core"], 2),
        (["ls", "--nonsense"], 2),
        (["-s", "nonsense", "ls"], 2),
        (["-s", "nobody://x", "ls"], 2),
        (["-s", "lmdb://x?nonsense=1", "ls"], 2),
        (["-c", "missing.yaml", "ls"], 2),
        (["-s", "lmdb://x", "get", "core", ""], 2),
        (["-s", "lmdb://x", "get", "", "k"], 2),
        (["-s", "lmdb://x", "get", "core", "k" * 1025], 2),
        (["-s", "lmdb://blocked/x", "set", "core", "k", "1"], 3),
        (["-s", "redis://127.0.0.1:1/0", "ls"], 3),
        (["-s", "sqlite://foreign.db", "get", "core", "k"], 4),
    ],
)
def test_every_error_is_one_line_with_its_exit_code(arguments: list[str], code: int, tmp_path: Path) -> None:
    fill("lmdb://x", core={"a": 1})
    (tmp_path / "blocked").write_text("a file where a folder should be")
    (tmp_path / "foreign.db").write_bytes(b"not a database " * 1000)
    result = hutch_(*arguments)
    assert (result.code, result.out) == (code, ""), result
    assert result.err.startswith("hutch: ")
    assert result.err.count("\n") == 1
    assert "Traceback" not in result.err


def test_a_damaged_value_ends_with_4_and_names_its_place(url: str) -> None:
    with hutch.connect(url) as store, store.open("core") as handle:
        handle["k"] = 1
        storage = handle._store
        assert isinstance(storage, hutch.EncodedStorage)
        storage.write("k", b"what hutch never writes")
    result = hutch_("-s", url, "get", "core", "k")
    assert result.code == 4
    assert "key 'k' in namespace 'core'" in result.err


def test_an_error_shows_where_it_came_from_when_asked(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = ["-s", "lmdb://x?nonsense=1", "ls"]
    assert "Traceback" in hutch_("--debug", *broken).err
    monkeypatch.setenv("HUTCH_DEBUG", "1")
    assert "Traceback" in hutch_(*broken).err
    monkeypatch.setenv("HUTCH_DEBUG", "0")
    assert "Traceback" not in hutch_(*broken).err


def _put(url: str, body: bytes) -> None:
    """Store a frame of msgpack `body` under core, k."""
    frame = b"\x92" + body + b"\xce"
    with hutch.connect(url) as store, store.open("core") as handle:
        storage = handle._store
        assert isinstance(storage, hutch.EncodedStorage)
        storage.write("k", frame + struct.pack("<I", zlib.crc32(frame, zlib.crc32(b"k"))))


def test_neither_a_message_nor_a_traceback_shows_a_stored_value_or_an_escape_code(tmp_path: Path, url: str) -> None:
    (tmp_path / "quoting.py").write_text(
        "import hutch\nclass User: pass\n"
        "def decode(state):\n"
        "    try:\n        int(state)\n"
        "    except ValueError as error:\n        raise RuntimeError(f'bad {state}') from error\n"
        "hutch.register_type(User, name='User', encode=lambda user: 1, decode=decode)\n"
    )
    secret = "\x1b]0;PWNED\x07" + "SECRET" * 100
    packed = ormsgpack.packb
    bodies = {
        "a registered type": packed(ormsgpack.Ext(17, packed(["User", secret]))),
        "a zone": packed(ormsgpack.Ext(6, packed(["2024-01-01T00:00:00", 0, secret]))),
        "a date": packed(ormsgpack.Ext(7, secret.encode())),
        "a datetime": packed(ormsgpack.Ext(6, packed([secret[:26], 0, None]))),
        "a Decimal": packed(ormsgpack.Ext(10, secret.encode())),
        "a UUID": packed(ormsgpack.Ext(13, secret.encode())),
        "a path": packed(ormsgpack.Ext(14, packed([secret, False, b"x"]))),
        "a name that is not registered": packed(ormsgpack.Ext(17, packed(["\x1b]0;PWNED\x07", 1]))),
    }
    for what, body in bodies.items():
        _put(url, body)
        for debug in ([], ["--debug"]):
            ran = hutch_process(*debug, "--import", "quoting", "-s", url, "get", "core", "k")
            assert ran.returncode == 4, (what, ran)
            assert "SECRET" not in ran.stdout + ran.stderr, (what, ran.stderr)
            assert "\x1b" not in ran.stdout + ran.stderr, what
            assert ("Traceback" in ran.stderr) == bool(debug)


@pytest.mark.parametrize("debug", [[], ["--debug"]])
def test_a_password_in_a_url_is_never_printed(debug: list[str]) -> None:
    for arguments in (
        ["-s", "redis://user:hunter2@127.0.0.1:1/0", "ls"],
        ["-s", "redis://user:hunter2@127.0.0.1:1/0?nonsense=1", "ls"],
        ["copy", "redis://user:hunter2@127.0.0.1:1/0", "memory://"],
        ["ls", "redis://user:hunter2@127.0.0.1:1/0"],
        ["-s", "nobody://user:hunter2@h/", "ls"],
        ["-s", "redis:/user:hunter2@h", "ls"],
    ):
        result = hutch_(*debug, *arguments)
        assert result.code in (2, 3)
        assert "hunter2" not in result.out + result.err


def test_an_error_of_no_known_kind_is_one_line_too(tmp_path: Path) -> None:
    (tmp_path / "odd.plug").write_text("[Core]\nName = Odd\nModule = odd_storage\n")
    (tmp_path / "odd_storage.py").write_text(
        "class OddPlugin:\n    def __init__(self, config): pass\n"
        "    def open(self, n): raise ZeroDivisionError('odd')\n"
    )
    (tmp_path / "c.yaml").write_text("STORAGE: Odd\nEXTRA_PLUGIN_DIRS: ['.']\n")
    result = hutch_("-c", "c.yaml", "get", "core", "k")
    assert result.code == 3
    assert result.err.count("\n") == 1
    assert "odd" in result.err


def test_help_and_version_say_what_there_is() -> None:
    assert hutch_("--version") == Result(0, f"hutch {hutch.__version__}\n", "")
    bare = hutch_()
    assert bare == hutch_("--help")
    assert bare.code == 0
    assert "130" in bare.out
    for name in ("ls", "keys", "get", "set", "rm", "dump", "load", "copy", "stats", "plugins", "check", "test-plugin"):
        assert name in bare.out
        assert hutch_(name, "--help").code == 0


def test_the_installed_command_and_the_module_are_the_same(url: str) -> None:
    program = shutil.which("hutch", path=str(Path(sys.executable).parent))
    assert program is not None
    by_name = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
    assert by_name.stdout == hutch_process("--version").stdout == f"hutch {hutch.__version__}\n"


def test_completion_is_offered_to_shells() -> None:
    environment = {**os.environ, "_HUTCH_COMPLETE": "bash_complete", "COMP_LINE": "hutch pl"}
    assert "plugins" in hutch_process(env=environment).stdout


def test_without_click_it_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "click.py").write_text("raise ModuleNotFoundError(\"No module named 'click'\", name='click')")
    result = hutch_process("ls", env={**os.environ, "PYTHONPATH": str(tmp_path)}, cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == 'hutch: the command line is not installed. Install it: pip install "hutch[cli]"\n'


def test_without_pytest_test_plugin_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "pytest.py").write_text("raise ModuleNotFoundError(\"No module named 'pytest'\", name='pytest')")
    result = hutch_process("test-plugin", "memory", env={**os.environ, "PYTHONPATH": str(tmp_path)}, cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert 'pip install "hutch[testing]"' in result.stderr
    assert result.stderr.count("\n") == 1


def test_output_in_an_encoding_that_lacks_a_character_is_escaped_and_json_is_utf8(url: str) -> None:
    fill(url, core={"schlüssel 😀": 1})
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    plain = hutch_process("-s", url, "keys", "core", env=environment)
    assert (plain.returncode, plain.stdout) == (0, "schl\\xfcssel \\U0001f600\n")
    assert hutch_process("-s", url, "keys", "core", "--json", env=environment).stdout == '"schlüssel 😀"\n'


def test_warnings_stay_out_of_the_output(tmp_path: Path) -> None:
    (tmp_path / "warns.plug").write_text("[Core]\nName = Warns\nModule = warns_storage\n")
    (tmp_path / "warns_storage.py").write_text(
        "import warnings\nwarnings.warn('old', DeprecationWarning)\nwarnings.warn('look')\nopen(__file__)\n"
        "class WarnsPlugin:\n    def __init__(self, config): warnings.warn('built')\n"
        "    def open(self, n): pass\n    def namespaces(self): return []\n"
    )
    (tmp_path / "c.yaml").write_text("STORAGE: Warns\nEXTRA_PLUGIN_DIRS: ['.']\n")
    result = hutch_process("-c", "c.yaml", "ls", env={**os.environ, "PYTHONDEVMODE": ""})
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


# --- while the application runs ---

HOLDER = """
import sys, hutch
with hutch.connect(sys.argv[1]) as store, store.open("core") as core:
    core["state"] = {"since": (1, 2)}
    print("ready", flush=True)
    for line in sys.stdin:
        print(repr(core.get("answer")), flush=True)
"""


@pytest.mark.parametrize("target", ["lmdb://live", "sqlite://live.db", "redis"])
def test_it_reads_and_writes_while_the_application_has_the_store_open(
    target: str, request: pytest.FixtureRequest
) -> None:
    if target == "redis":
        target = f"{request.getfixturevalue('redis_server').url}?prefix=test_cli_live"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, target], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as application:
        assert application.stdin is not None
        assert application.stdout is not None
        assert application.stdout.readline() == "ready\n"
        assert hutch_process("-s", target, "get", "core", "state").stdout == '{"since": tuple(1, 2)}\n'
        assert hutch_process("-s", target, "set", "core", "answer", '{"$set": [42]}').returncode == 0
        print(file=application.stdin, flush=True)
        assert application.stdout.readline() == "{42}\n"
        assert hutch_process("copy", target, "memory://", "--verify").returncode == 0
        application.stdin.close()


# --- pipes, signals, terminals ---


@POSIX_ONLY
@pytest.mark.parametrize("arguments", [["keys", "core"], ["keys", "core", "--json"], ["dump"]])
def test_a_reader_that_goes_away_ends_it_quietly(arguments: list[str], url: str) -> None:
    fill(url, core={f"key {number:06}": "x" * 50 for number in range(20_000)})
    with subprocess.Popen(
        [sys.executable, "-m", "hutch", "-s", url, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(TIMEOUT_S) == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("arguments", [["ls"], ["dump"], ["ls", "--json"], ["dump", "-o", "/dev/full"]])
def test_output_that_cannot_be_written_is_an_error(arguments: list[str], url: str) -> None:
    fill(url, core={"a": 1})
    with open("/dev/full", "wb") as full:
        process = subprocess.run(
            [sys.executable, "-m", "hutch", "-s", url, *arguments],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    assert process.returncode == 3
    assert process.stderr.startswith("hutch: ")
    assert process.stderr.count("\n") == 1
    assert os.strerror(errno.ENOSPC) in process.stderr
    assert Path("/dev/full").is_char_device()


@contextlib.contextmanager
def terminal(*arguments: str, columns: int = 80, **environment: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Run the command on its own terminal; yield the process and the terminal's other end."""
    import fcntl
    import pty
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    with subprocess.Popen(
        [sys.executable, "-m", "hutch", *arguments],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm-256color", **environment},
        start_new_session=True,
    ) as process:
        os.close(theirs)
        try:
            yield process, ours
        finally:
            os.close(ours)


def read_terminal(ours: int, until: bytes | None = None) -> bytes:
    seen = b""
    while until is None or until not in seen:
        try:
            chunk = os.read(ours, 65536)
        except OSError as error:
            if error.errno == errno.EIO:  # Linux: the other side was closed
                break
            raise
        if not chunk:
            break
        seen += chunk
    return seen


def on_terminal(*arguments: str, columns: int = 80, **environment: str) -> str:
    with terminal(*arguments, columns=columns, **environment) as (process, ours):
        seen = read_terminal(ours)
        assert process.wait(TIMEOUT_S) == 0, seen
    return seen.decode().replace("\r\n", "\n")


@POSIX_ONLY
def test_a_terminal_gets_colours_and_layout_to_its_width_and_a_pipe_gets_neither(url: str) -> None:
    fill(url, core={"k": {"a": [1, 2], "b": "x" * 30}})
    wide, narrow = (on_terminal("-s", url, "get", "core", "k", columns=columns) for columns in (80, 30))
    assert "\x1b[" in wide
    assert wide.count("\n") == 1
    assert narrow.count("\n") == 4
    plain = on_terminal("-s", url, "get", "core", "k", columns=80, NO_COLOR="1")
    assert "\x1b[3" not in plain
    table = on_terminal("-s", url, "ls")
    assert "namespace" in table
    assert "core" in table
    assert "\x1b" not in hutch_("-s", url, "get", "core", "k").out


EVIL = "\x1b]0;owned\x07\x9b31m\x1b[2J\r\n\u202e[bold red]not markup[/]:smile:\b"


@POSIX_ONLY
def test_nothing_stored_reaches_a_terminal_as_an_escape_or_as_markup(url: str) -> None:
    with hutch.connect(url) as store, store.open(EVIL) as handle:
        handle[EVIL] = {EVIL: [EVIL]}
        handle["text"] = EVIL
    for arguments in (
        ["ls"],
        ["ls", "--json"],
        ["keys", EVIL],
        ["keys", EVIL, "--json"],
        ["get", EVIL, EVIL],
        ["get", EVIL, EVIL, "--json"],
        ["get", EVIL, "text", "--text"],
        ["stats"],
        ["dump"],
        ["copy", url, "memory://", "--verify"],
        ["get", EVIL, "nobody" + EVIL],
        ["rm", EVIL, "nobody" + EVIL],
        ["keys", "nobody" + EVIL],
        ["-s", "nobody" + EVIL.replace("/", ""), "ls"],
        ["nobody" + EVIL],
    ):
        place = [] if arguments[0] in ("copy", "-s") else ["-s", url]
        with terminal(*place, *arguments, columns=200, NO_COLOR="1") as (process, ours):
            seen = read_terminal(ours).decode()
            process.wait(TIMEOUT_S)
        for harmful in ("\x1b]", "\x07", "\x9b", "\x1b[2J", "\u202e", "\b"):
            assert harmful not in seen, arguments
        assert "not markup" in seen or arguments[0] in ("copy", "-s"), arguments
        assert "[bold red]" in seen or arguments[0] in ("copy", "-s"), arguments
        assert ":smile:" in seen or arguments[0] in ("copy", "-s"), arguments


@POSIX_ONLY
def test_rm_all_asks_on_a_terminal(url: str) -> None:
    for answer, code in ((b"n\n", 1), (b"\x03", 130), (b"y\n", 0)):
        fill(url, core={"a": 1})
        with terminal("-s", url, "rm", "core", "--all") as (process, ours):
            assert b"Remove namespace 'core' with 1 items? [y/N]" in read_terminal(ours, until=b"[y/N]: ")
            if answer == b"\x03":
                interrupt(process)
            else:
                os.write(ours, answer)
            read_terminal(ours)
            assert process.wait(TIMEOUT_S) == code
        assert held(url, "core") == ({} if code == 0 else {"a": 1})


@POSIX_ONLY
def test_a_copy_on_a_terminal_shows_its_progress_and_leaves_no_trace_of_it(tmp_path: Path) -> None:
    fill("lmdb://big", core={f"{number:06}": number for number in range(30_000)})
    with terminal("copy", "lmdb://big", "lmdb://copy") as (process, ours):
        seen = read_terminal(ours).decode()
        assert process.wait(TIMEOUT_S) == 0
    assert "/30000" in seen
    assert "copied 30,000 items" in seen
    assert "\x1b[?25h" in seen, "the cursor is visible again"


# --- data of other frameworks ---

SAMPLES = Path(__file__).parent / "bridges" / "data"


@pytest.fixture(params=["dotevals-json", "errbot-shelf", "ragas-jsonl", "themis-sqlite"])
def sample(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, str]:
    """Return the name of a format, and the path of files in it."""
    paths = {"dotevals-json": "dotevals", "ragas-jsonl": "ragas", "themis-sqlite": "themis/runs.sqlite3"}
    name: str = request.param
    if name != "errbot-shelf":
        return name, str(SAMPLES / paths[name])
    with hutch.connect(f"shelf://{tmp_path}/bot") as store, store.open("core") as core:
        core["plugins"] = {"Help", "Health"}
    return name, f"{tmp_path}/bot"


def test_import_sets_what_the_files_hold_and_verifies_it_and_can_be_run_again(
    sample: tuple[str, str], url: str
) -> None:
    first = hutch_("-s", url, "import", *sample)
    assert (first.code, first.err) == (0, "")
    written = int(first.out.split()[1].replace(",", ""))
    assert written > 0
    assert first.out.splitlines()[1] == f"verified {written:,} items: all equal"
    again = hutch_("import", *sample, "-s", url).out.splitlines()
    assert again[0].startswith(f"imported 0 items, {written:,} were there already; namespaces: ")
    assert again[1:] == [f"verified {written:,} items: all equal"]


def test_what_is_exported_and_imported_elsewhere_is_the_same_data(
    sample: tuple[str, str], url: str, tmp_path: Path
) -> None:
    name, path = sample
    assert hutch_("-s", url, "import", name, path).code == 0
    out = hutch_("-s", url, "export", name, str(tmp_path / "out"))
    assert (out.code, out.err) == (0, "")
    assert int(out.out.split()[1].replace(",", "")) > 0
    assert hutch_("-s", f"sqlite://{tmp_path}/other.db", "import", name, str(tmp_path / "out")).code == 0
    one, other = (hutch_("-s", store, "dump").out for store in (url, f"sqlite://{tmp_path}/other.db"))
    assert len(one.splitlines()) == len(other.splitlines()) > 2
    if name in ("errbot-shelf", "themis-sqlite"):  # the keys of the others have a mark of their files
        assert one == other


def test_an_import_changes_nothing_and_makes_nothing_where_the_files_are_which_may_be_read_only(
    sample: tuple[str, str], url: str, small_disk: Path
) -> None:
    name, path = sample
    files = small_disk / Path(path).name
    shutil.copytree(Path(path).parent, small_disk, dirs_exist_ok=True, ignore=lambda *_: [".hutch-shelf"])
    before = {file: (file.stat().st_mtime_ns, file.is_file() and file.read_bytes()) for file in small_disk.rglob("*")}
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    read_only = hutch_("-s", url, "import", name, str(files))
    subprocess.run(["mount", "-o", "remount,rw", small_disk], check=True)
    assert (read_only.code, read_only.err) == (0, "")
    assert hutch_("-s", url, "import", name, str(files)).code == 0
    after = {file: (file.stat().st_mtime_ns, file.is_file() and file.read_bytes()) for file in small_disk.rglob("*")}
    assert after == before


def test_an_export_to_a_full_disk_names_the_place_and_leaves_no_file(
    sample: tuple[str, str], url: str, small_disk: Path
) -> None:
    name, path = sample
    assert hutch_("-s", url, "import", name, path).code == 0
    (small_disk / "filler").write_bytes(bytes(2 * 1024 * 1024 - 24 * 1024))
    with contextlib.suppress(OSError), (small_disk / "rest").open("wb", buffering=0) as rest:
        while rest.write(bytes(4096)):
            pass
    full = hutch_("-s", url, "export", name, str(small_disk / "out"))
    assert full.code == 3
    assert str(small_disk) in full.err
    assert "\n" not in full.err.strip()
    assert {file.name for file in small_disk.rglob("*") if file.is_file()} == {"filler", "rest"}


@pytest.mark.parametrize("command", ["import", "export"])
def test_help_says_what_path_is_and_which_option_carries_what_only_a_bot_can_load(command: str) -> None:
    message = hutch_(command, "--help").out
    assert "themis-sqlite  the file of its SQLite store" in message
    assert "?codec=passthrough" in message


def test_import_and_export_say_what_was_wrong_and_where(sample: tuple[str, str], url: str, tmp_path: Path) -> None:
    name, _ = sample
    nowhere = hutch_("-s", url, "import", name, "nowhere")
    assert nowhere.code == 2
    assert "'nowhere' does not exist" in nowhere.err
    empty = tmp_path / "empty"
    empty.mkdir()
    nothing = hutch_("-s", url, "import", name, "empty")
    assert nothing.code in (1, 2, 4)
    assert nothing.err.startswith("hutch: ")
    assert "empty" in nothing.err
    assert "\n" not in nothing.err.strip()
    assert not Path("store").exists()
    assert hutch_("-s", url, "export", name, "out").code == 3
    fill(url, core={"a": 1})
    assert hutch_("-s", url, "rm", "core", "--all", "--yes").code == 0
    assert hutch_("-s", url, "export", name, "out").code == 1
    unknown = hutch_("-s", url, "import", "dotevals", "empty")
    assert unknown.code == 2
    assert "dotevals-json" in unknown.err


def test_a_store_that_holds_something_else_than_was_imported_fails_the_verification(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hutch import transfer

    def copy_and_spoil(items: Any, target: hutch.Store, **more: Any) -> transfer.Transferred:
        done = real(items, target, **more)
        with target.open("ragas.datasets") as tables:
            tables[next(iter(tables))] = "something else"
        return done

    real = transfer.copy_items
    monkeypatch.setattr(transfer, "copy_items", copy_and_spoil)
    spoilt = hutch_("-s", url, "import", "ragas-jsonl", str(SAMPLES / "ragas"))
    assert spoilt.code == 1
    assert "1 are different" in spoilt.err
    assert "different: key " in spoilt.out


@pytest.mark.parametrize("verb", [["ls"], ["keys", "core"], ["get", "core", "key"], ["stats"], ["check"], ["dump"]])
def test_a_missing_store_is_reported_without_options_that_nobody_typed(verb: list[str], tmp_path: Path) -> None:
    url = f"lmdb://{(tmp_path / 'nothing').as_posix()}"
    ran = hutch_("-s", url, *verb)
    assert ran.code == 3
    assert "create=false" not in ran.err
    assert "begin a new store there with `hutch set`" in ran.err
    assert hutch_("-s", url, "set", "core", "key", "1").code == 0
    assert hutch_("-s", url, *verb).code == 0
