"""Test `copy`, `dump` and `load` of the `hutch` command: what moves, what is refused, and interruptions."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import hutch
from hutch import transfer
from hutch.codec import frame
from tests.cli_calls import (
    POSIX_ONLY,
    TIMEOUT_S,
    Result,
    a_place_of_its_own,
    fill,
    held,
    hutch_,
    hutch_process,
    url,
    wait_until,
)

__all__ = ["a_place_of_its_own", "url"]


def test_a_dump_through_a_pipe_into_another_engine_keeps_all(url: str) -> None:
    items = {"a": {1, 2}, "b": (1, b"x"), "c": {"$": None}}
    fill(url, core=items, other={"k": "v"})
    text = hutch_("-s", url, "dump").out
    loaded = hutch_("-s", "sqlite://copy.db", "load", stdin=text.encode())
    assert loaded == Result(0, "loaded 4 items, 0 were there already; namespaces: 2\n", "")
    assert held("sqlite://copy.db", "core") == items
    assert hutch_("-s", "sqlite://copy.db", "load", stdin=text.encode()).out.startswith("loaded 0 items, 4 were there")
    assert hutch_("-s", "sqlite://copy.db", "dump").out == text
    assert hutch_("-s", url, "dump", "-n", "o*", "-n", "other").out.count("\n") == 3


@POSIX_ONLY
def test_a_dump_into_a_file_appears_when_it_is_whole_and_is_private(url: str, tmp_path: Path) -> None:
    class Unknown:
        pass

    fill(url, core={"a": 1})
    assert hutch_("-s", url, "dump", "-o", "dump") == Result(0, "", "")
    assert stat.S_IMODE((tmp_path / "dump").stat().st_mode) == 0o600
    whole = (tmp_path / "dump").read_bytes()
    pickled = {"STORAGE": "lmdb", "STORAGE_CONFIG": {"path": str(tmp_path / "store")}, "CODEC": "pickle"}
    (tmp_path / "p.yaml").write_text(json.dumps(pickled))
    fill(pickled, core={"b": io.UnsupportedOperation("only pickle holds this")})
    failed = hutch_("-c", "p.yaml", "dump", "-o", "dump")
    assert failed.code == 4
    assert "the value of key 'b' in namespace 'core' cannot be dumped" in failed.err
    assert (tmp_path / "dump").read_bytes() == whole
    assert {path.name for path in tmp_path.iterdir()} == {"dump", "p.yaml", "store"}
    assert hutch_("-c", "p.yaml", "get", "core", "b").out == "UnsupportedOperation('only pickle holds this')\n"
    assert hutch_("-c", "p.yaml", "get", "core", "b", "--json").code == 4


@POSIX_ONLY
@pytest.mark.parametrize("leads_to", ["victim", "nowhere"])
def test_a_dump_into_a_link_is_refused_and_nothing_is_written(url: str, tmp_path: Path, leads_to: str) -> None:
    fill(url, core={"a": 1})
    (tmp_path / "victim").write_text("mine")
    (tmp_path / "link").symlink_to(leads_to)
    before = {path.name for path in tmp_path.iterdir()}
    refused = hutch_("-s", url, "dump", "-o", "link")
    assert (refused.code, refused.out) == (2, "")
    assert f"'link' is a symbolic link to {leads_to!r}" in refused.err
    assert (tmp_path / "victim").read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} == before


@POSIX_ONLY
def test_a_dump_replaces_a_file_and_keeps_its_mode(url: str, tmp_path: Path) -> None:
    fill(url, core={"a": 1})
    (tmp_path / "dump").write_text("before")
    (tmp_path / "dump").chmod(0o640)
    assert hutch_("-s", url, "dump", "-o", "dump").code == 0
    assert stat.S_IMODE((tmp_path / "dump").stat().st_mode) == 0o640
    assert b'"core"' in (tmp_path / "dump").read_bytes()


@POSIX_ONLY
@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "FIFO"])
def test_a_dump_into_a_pipe_is_written_as_it_is(url: str, tmp_path: Path, name: str) -> None:
    fill(url, core={"a": 1})
    command = [sys.executable, "-m", "hutch", "-s", url, "dump"]
    dumped = subprocess.run(command, capture_output=True, timeout=TIMEOUT_S, check=True).stdout
    if name == "FIFO":
        os.mkfifo(tmp_path / "FIFO")
    with subprocess.Popen([*command, "-o", name], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        written = (tmp_path / name).read_bytes() if name == "FIFO" else process.stdout.read()
        assert process.wait(TIMEOUT_S) == 0
    assert written == dumped


def test_files_that_cannot_be_opened_are_wrong_usage(url: str, tmp_path: Path) -> None:
    fill(url, core={"a": 1})
    for arguments in (["load", "missing"], ["load", str(tmp_path)], ["dump", "-o", "no/such/folder/dump"]):
        result = hutch_("-s", url, *arguments)
        assert result.code == 2
        assert result.err.count("\n") == 1
        assert result.err.startswith("hutch: cannot ")


def test_a_truncated_dump_is_an_error(url: str) -> None:
    fill(url, core={"a": 1, "b": 2})
    lines = hutch_("-s", url, "dump").out.splitlines(keepends=True)
    result = hutch_("-s", "lmdb://other", "load", stdin="".join(lines[:-1]).encode())
    assert result.code == 4
    assert result.err.startswith("hutch: the dump ends after line 3 without its last line")
    assert held("lmdb://other", "core") == {"a": 1, "b": 2}


@pytest.mark.parametrize("target", ["lmdb://copy", "sqlite://copy.db", "shelf://copy", "redis"])
def test_copy_moves_to_any_engine_and_verifies(target: str, url: str, request: pytest.FixtureRequest) -> None:
    if target == "redis":
        target = f"{request.getfixturevalue('redis_server').url}?prefix=test_cli"
    items = {f"k{number}": {number, (number,)} for number in range(2500)}
    fill(url, core=items, other={"a": float("nan")})
    done = hutch_("copy", url, target, "--verify")
    assert done == Result(
        0,
        "copied 2,501 items, 0 were there already; namespaces: 2\nverified 2,501 items: all equal\n",
        "",
    )
    assert held(target, "core") == items
    fill(target, core={"k0": [0], "mine": 1})
    again = hutch_("copy", url, target, "--verify", "-n", "core")
    assert again.out == (
        "copied 1 items, 2,499 were there already; namespaces: 1\nverified 2,500 items: all equal; DST holds 1 more\n"
    )


def test_a_verify_that_finds_a_fault_ends_with_1_and_names_it(tmp_path: Path) -> None:
    (tmp_path / "lossy").mkdir()
    (tmp_path / "lossy" / "lossy.plug").write_text("[Core]\nName = Lossy\nModule = lossy_storage\n")
    (tmp_path / "lossy" / "lossy_storage.py").write_text(
        textwrap.dedent("""
        class Storage:
            data = {}
            def set(self, key, value):
                if key != "dropped":
                    self.data[key] = 2 if key == "bent" else value
            def get(self, key): return self.data[key]
            def remove(self, key): del self.data[key]
            def len(self): return len(self.data)
            def keys(self): return list(self.data)
            def close(self): pass
        class LossyPlugin:
            def __init__(self, config): pass
            def open(self, namespace): return Storage()
            def namespaces(self): return ["core"] if Storage.data else []
        """)
    )
    (tmp_path / "lossy.yaml").write_text("STORAGE: Lossy\nEXTRA_PLUGIN_DIRS: [lossy]\n")
    fill("lmdb://source", core={"kept": 1, "bent": 1, "dropped": 1})
    result = hutch_("copy", "lmdb://source", "lossy.yaml", "--verify")
    assert result.code == 1
    assert result.out.splitlines()[1:] == [
        "different: key 'bent' in namespace 'core'",
        "missing: key 'dropped' in namespace 'core'",
    ]
    assert result.err.startswith("hutch: of 3 items 1 are missing in DST and 1 are different.")
    assert hutch_("copy", "lmdb://source", "lmdb://target", "-n", "nobody").code == 3
    refused = hutch_("-s", "lmdb://source", "copy", "lmdb://source", "lmdb://target")
    assert (refused.code, "SRC and DST" in refused.err) == (2, True)


# --- interruptions ---


@POSIX_ONLY
@pytest.mark.usefixtures("unmeasured")
def test_ctrl_c_during_a_copy_exits_with_130_and_a_second_run_continues(tmp_path: Path) -> None:
    count = 150_000
    fill("lmdb://big", core={f"{number:06}": {"n": number, "s": [number]} for number in range(count)})
    with (
        hutch.connect("lmdb://copy") as store,
        store.open("core") as copied_so_far,
        subprocess.Popen(
            [sys.executable, "-m", "hutch", "copy", "lmdb://big", "lmdb://copy"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process,
    ):
        wait_until(lambda: len(copied_so_far) >= 2000)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=TIMEOUT_S)
    assert (process.returncode, out) == (130, "")
    assert err == ("hutch: what was written so far stays; run the same command again to continue\nhutch: interrupted\n")
    copied = len(held("lmdb://copy", "core"))
    assert 2000 <= copied < count
    assert copied % 1000 == 0, "whole batches"
    again = hutch_("copy", "lmdb://big", "lmdb://copy", "--verify")
    assert again.out == (
        f"copied {count - copied:,} items, {copied:,} were there already; namespaces: 1\n"
        f"verified {count:,} items: all equal\n"
    )


@POSIX_ONLY
@pytest.mark.usefixtures("unmeasured")
def test_ctrl_c_during_a_dump_leaves_no_part_of_a_file(tmp_path: Path) -> None:
    fill("lmdb://big", core={f"{number:06}": {"n": number, "s": [number]} for number in range(60_000)})
    before = {path.name for path in tmp_path.iterdir()}
    with subprocess.Popen(
        [sys.executable, "-m", "hutch", "-s", "lmdb://big", "dump", "-o", "dump"],
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        wait_until(lambda: any(path.name.startswith(".hutch-") and path.stat().st_size for path in tmp_path.iterdir()))
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=TIMEOUT_S)
    assert (process.returncode, err) == (130, "hutch: interrupted\n")
    assert {path.name for path in tmp_path.iterdir()} == before


# --- stored bytes, and what cannot be read ---

THEIR_TYPES = """
import dataclasses, hutch
@hutch.register_type
@dataclasses.dataclass
class User:
    name: str
"""


@pytest.fixture
def users(tmp_path: Path) -> str:
    """Return the URL of a store whose values are of a type that is registered only with --import their_types."""
    (tmp_path / "types").mkdir()
    (tmp_path / "types" / "their_types.py").write_text(THEIR_TYPES)
    for key in ("ada", "eve"):
        value = f'{{"$type": "their_types.User", "value": {{"name": "{key}"}}}}'
        assert with_types("-s", "lmdb://users", "set", "core", key, value).returncode == 0
    fill("lmdb://users", core={"plain": 1})
    return "lmdb://users"


def with_types(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd() / "types")}
    return hutch_process("--import", "their_types", *arguments, env=environment)


@pytest.mark.parametrize("target", ["sqlite://copy.db", "lmdb://copy", "redis"])
def test_copy_between_stores_of_one_codec_needs_no_class(
    target: str, users: str, request: pytest.FixtureRequest
) -> None:
    if target == "redis":
        target = f"{request.getfixturevalue('redis_server').url}?prefix=test_cli_frames"
    done = hutch_("copy", users, target, "--verify")
    assert done == Result(0, "copied 3 items, 0 were there already; namespaces: 1\nverified 3 items: all equal\n", "")
    assert hutch_("copy", users, target).out.startswith("copied 0 items, 3 were there")
    assert with_types("-s", target, "get", "core", "ada").stdout == 'their_types.User({"name": "ada"})\n'
    assert hutch_("-s", target, "check").code == 1, "the type is not registered here"
    fill(target, core={"plain": 2})
    different = hutch_("copy", users, "memory://", "--verify")
    assert different.code == 0
    with hutch.connect(users) as source, hutch.connect(target) as store:
        assert transfer.verify(source, store).different == 1


def test_a_dump_holds_the_bytes_of_a_value_without_its_class_and_load_takes_them(users: str) -> None:
    dumped = hutch_("-s", users, "dump")
    assert (dumped.code, dumped.err) == (0, "")
    lines = [json.loads(line) for line in dumped.out.splitlines()]
    assert [sorted(line) for line in lines[1:4]] == [
        ["frame", "key", "namespace"],
        ["frame", "key", "namespace"],
        ["key", "namespace", "value"],
    ]
    loaded = hutch_("-s", "sqlite://copy.db", "load", stdin=dumped.out.encode())
    assert loaded == Result(0, "loaded 3 items, 0 were there already; namespaces: 1\n", "")
    assert hutch_("-s", "sqlite://copy.db", "load", stdin=dumped.out.encode()).out.startswith("loaded 0 items, 3 were")
    assert with_types("-s", "sqlite://copy.db", "get", "core", "eve").stdout == 'their_types.User({"name": "eve"})\n'
    readable = with_types("-s", "sqlite://copy.db", "dump").stdout
    assert "frame" not in readable
    assert readable == with_types("-s", users, "dump").stdout
    refused = hutch_("-s", "shelf://shelf", "load", stdin=dumped.out.encode())
    assert refused.code == 4
    assert "key 'ada' in namespace 'core'" in refused.err
    assert "a store of the same codec" in refused.err


@pytest.mark.parametrize("frame", ["AAAA", "????", 5, base64.b64encode(frame.seal(b"P\x80\x05N.")).decode()])
def test_a_frame_that_is_damaged_or_a_pickle_is_refused(frame: object) -> None:
    line = json.dumps({"namespace": "core", "key": "k", "frame": frame})
    text = f'{{"hutch_dump":1}}\n{line}\n{{"count":1}}\n'
    refused = hutch_("-s", "lmdb://target", "load", stdin=text.encode())
    assert refused.code == 4
    assert refused.err.startswith("hutch: line 2 of the dump: ")
    assert held("lmdb://target", "core") == {}


def damage(path: Path, text: bytes) -> None:
    """Flip one bit in `text`, wherever the closed file `path` holds it."""
    data = path.read_bytes()
    assert text in data
    path.write_bytes(data.replace(text, bytes([text[0] ^ 1]) + text[1:]))


@pytest.mark.parametrize("target", ["lmdb://copy", "shelf://copy"])
def test_skip_errors_names_and_counts_what_cannot_be_read(target: str, tmp_path: Path) -> None:
    fill("lmdb://source", core={"a": 1, "bad": "a marked text", "c": {3}}, other={"d": 4})
    damage(tmp_path / "source" / "data.mdb", b"a marked text")
    for command in (["copy", "lmdb://source", target], ["-s", "lmdb://source", "dump", "-o", "dump"]):
        stopped = hutch_(*command)
        assert stopped.code == 4
        assert "key 'bad' in namespace 'core'" in stopped.err
        skipped = hutch_(*command, "--skip-errors")
        assert skipped.code == 1
        first, last = skipped.err.splitlines()
        assert first.startswith("hutch: skipped: the value of key 'bad' in namespace 'core' of the lmdb storage: ")
        assert last == "hutch: 1 items could not be read or written, and were skipped"
        assert "marked" not in skipped.err
    assert held(target, "core") == {"a": 1, "c": {3}}
    assert held(target, "other") == {"d": 4}
    assert hutch_("-s", "lmdb://loaded", "load", "dump").out.startswith("loaded 3 items")
    verified = hutch_("copy", "lmdb://source", target, "--verify", "--skip-errors")
    assert (verified.code, "verified 3 items: all equal" in verified.out) == (1, True)


def test_signed_pickles_move_without_the_key_and_keep_their_signature() -> None:
    def signed(path: str) -> dict[str, object]:
        codec = {"name": "pickle", "key": "0123456789abcdef"}
        return {"STORAGE": "lmdb", "STORAGE_CONFIG": {"path": path}, "CODEC": codec}

    fill(signed("source"), core={"k": io.UnsupportedOperation("only pickle holds this")})
    done = hutch_("copy", "lmdb://source?codec=pickle", "lmdb://target?codec=pickle", "--verify")
    assert (done.code, done.err) == (0, "")
    assert str(held(signed("target"), "core")["k"]) == "only pickle holds this"


def test_a_layer_of_the_target_is_not_passed_by(tmp_path: Path) -> None:
    fill("lmdb://source", core={"k": 1})
    config = {"STORAGE": "lmdb", "STORAGE_CONFIG": {"path": str(tmp_path / "target")}, "LAYERS": ["read-only"]}
    (tmp_path / "target.yaml").write_text(json.dumps(config))
    refused = hutch_("copy", "lmdb://source", "target.yaml")
    assert refused.code == 2
    assert "read-only" in refused.err
    assert held("lmdb://target", "core") == {}
