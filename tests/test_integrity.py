"""Test hutch.verify and `hutch check`: what they find, what they repair, and what they leave alone."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sqlite3
import stat
import subprocess
import sys
from base64 import b64decode
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import lmdb
import pytest

import hutch
from hutch.cli.run import run as run_command
from hutch.codec.select import frame_codec_of
from tests.servers import RedisServer

DATA: dict[str, dict[str, Any]] = {
    "core": {f"k{n}": n for n in range(10)},
    "a:b": {"x": "tell nobody"},
    "ü": {"y": [1], "z": b"z" * 20_000},
}
ENGINES = ("lmdb", "sqlite")


@pytest.fixture(params=ENGINES)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return the URL of a closed store that holds `DATA`."""
    url = f"{request.param}://{tmp_path / 'store'}"
    fill(url)
    return url


@pytest.fixture
def lmdb_url(tmp_path: Path) -> str:
    url = f"lmdb://{tmp_path / 'store'}"
    fill(url)
    return url


def fill(url: str) -> None:
    with hutch.connect(url) as store:
        for namespace, items in DATA.items():
            with store.open(namespace) as handle:
                handle.update(items)


def content(url: str) -> dict[str, dict[str, Any]]:
    with hutch.connect(url) as store:
        found = {}
        for name in store.namespaces():
            with store.open(name) as handle:
                found[name] = dict(handle)
                assert len(handle) == len(found[name])
        return found


def id_of(txn: lmdb.Transaction[bytes], namespace: str) -> bytes:
    id_ = txn.get(b"\0\0\0\0n" + namespace.encode())
    assert id_ is not None
    return id_


@contextmanager
def changed(url: str) -> Iterator[Callable[[str, bytes, bytes | None], None]]:
    """Change a store behind hutch's back: ``change(namespace, key, value)``, where None removes."""
    engine, _, path = url.partition("://")
    if engine == "lmdb":
        with lmdb.open(path) as env, env.begin(write=True) as txn:

            def change(namespace: str, key: bytes, value: bytes | None) -> None:
                name = id_of(txn, namespace) + key
                if value is None:
                    txn.delete(name)
                else:
                    txn.put(name, value)

            yield change
        return
    with closing(sqlite3.connect(path)) as connection:

        def change(namespace: str, key: bytes, value: bytes | None) -> None:
            (number,) = connection.execute("SELECT id FROM namespaces WHERE name = ?", (namespace,)).fetchone()
            connection.execute("DELETE FROM entries WHERE ns = ? AND key = ?", (number, key))
            if value is not None:
                connection.execute("INSERT INTO entries (ns, key, value) VALUES (?, ?, ?)", (number, key, value))

        yield change
        connection.commit()


def lose_name(url: str, name: str) -> None:
    engine, _, path = url.partition("://")
    if engine == "lmdb":
        with lmdb.open(path) as env, env.begin(write=True) as txn:
            assert txn.delete(b"\0\0\0\0n" + name.encode())
        return
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("DELETE FROM namespaces WHERE name = ?", (name,))
        connection.commit()


def set_count(url: str, name: str, count: int) -> None:
    engine, _, path = url.partition("://")
    if engine == "lmdb":
        with lmdb.open(path) as env, env.begin(write=True) as txn:
            txn.put(id_of(txn, name), count.to_bytes(8, "big"))
        return
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE namespaces SET entries = ? WHERE name = ?", (count, name))
        connection.commit()


def found(url: Any, **options: Any) -> list[tuple[str, str | None, str | None, bool]]:
    findings = url.verify(**options) if isinstance(url, hutch.Store) else hutch.verify(url, **options)
    return [(one.kind, one.namespace, one.key, one.repaired) for one in findings]


# --- findings and repairs ---


def test_a_sound_store_has_no_findings_and_a_missing_one_is_an_error_and_not_made(url: str, tmp_path: Path) -> None:
    assert found(url) == []
    assert found(url, repair=True, salvage=tmp_path / "out") == []
    assert not (tmp_path / "out").exists()
    assert content(url) == DATA
    with pytest.raises(hutch.StoreMissingError, match="none"):
        found(url.replace("store", "none"))
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("url", ["memory://", "shelf://{}/shelf"])
def test_every_engine_can_be_checked(url: str, tmp_path: Path) -> None:
    with hutch.connect(url.format(tmp_path)) as store:
        for namespace, items in DATA.items():
            with store.open(namespace) as handle:
                handle.update(items)
                # Also while it is open.
                assert found(store, repair=True) == []


def test_a_damaged_value_is_named_and_stays(url: str) -> None:
    with changed(url) as change:
        change("core", b"k3", b"\x92\x03 tell nobody \xce1234")
    for repair in (False, True):
        assert found(url, repair=repair) == [("value", "core", "k3", False)]
    with hutch.connect(url) as store, store.open("core") as core:
        assert len(core) == 10
        with pytest.raises(hutch.CorruptValueError):
            core["k3"]


def test_a_damaged_value_is_salvaged_before_it_is_removed(url: str, tmp_path: Path) -> None:
    stored = b"\x92\x03 tell nobody \xce1234"
    with changed(url) as change:
        change("core", b"k3", stored)
        change("ü", b"y", b"")
    file = tmp_path / "salvaged"
    assert found(url, salvage=file) == [("value", "core", "k3", True), ("value", "ü", "y", True)]
    lines = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    assert [(line["namespace"], line["key"], b64decode(line["data"])) for line in lines] == [
        ("core", "k3", stored),
        ("ü", "y", b""),
    ]
    if os.name == "posix":
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert found(url) == []
    kept = content(url)
    assert kept["core"] == {key: value for key, value in DATA["core"].items() if key != "k3"}
    assert kept["ü"] == {"z": b"z" * 20_000}
    with pytest.raises(FileExistsError):
        list(hutch.verify(url, salvage=file))


class Point:
    def __init__(self, x: int) -> None:
        self.x = x


def test_a_value_that_needs_a_class_or_a_key_is_reported_and_never_removed(url: str, tmp_path: Path) -> None:
    hutch.register_type(Point, name="test.Point.checked", encode=lambda point: point.x, decode=Point)
    with hutch.connect(url) as store, store.open("core") as core:
        core["point"] = Point(5)
    message = subprocess.run(
        [sys.executable, "-m", "hutch", "-s", url, "check", "--salvage", tmp_path / "out"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert message.returncode == 1, message.stderr
    assert "value: namespace 'core', key 'point'" in message.stdout
    assert "test.Point.checked" in message.stdout
    assert not (tmp_path / "out").exists()
    assert found(url) == []
    signed = {"STORAGE": url, "CODEC": {"name": "pickle", "key": "another key, long enough to be taken"}}
    assert ("value", "core", "k1", False) in found(signed, salvage=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_wrong_count_is_reported_and_repaired(url: str) -> None:
    set_count(url, "core", 7)
    set_count(url, "ü", 900)
    assert found(url) == [("count", "core", None, False), ("count", "ü", None, False)]
    with hutch.connect(url) as store, store.open("core") as core:
        assert len(core) == 7, "looking changes nothing"
    assert found(url, repair=True) == [("count", "core", None, True), ("count", "ü", None, True)]
    assert found(url) == []
    assert content(url) == DATA


def test_data_without_a_namespace_gets_one(url: str) -> None:
    with hutch.connect(url) as store, store.open("recovered-1") as taken:
        taken["mine"] = 1
    lose_name(url, "core")
    lose_name(url, "ü")
    assert found(url) == [("orphan", None, None, False)] * 2
    assert found(url, repair=True) == [("orphan", f"recovered-{number}", None, True) for number in (2, 3)]
    assert found(url) == []
    assert content(url) == {
        "a:b": DATA["a:b"],
        "recovered-1": {"mine": 1},
        "recovered-2": DATA["core"],
        "recovered-3": DATA["ü"],
    }
    # New namespaces do not get an id that is in use.
    with hutch.connect(url) as store, store.open("new") as new:
        assert not new
        new["k"] = 1
    assert found(url) == []


@pytest.mark.parametrize("key", [b"k\xff\xfe", b"k\x80" * 600, b"k" * 1500])
def test_an_invalid_key_is_reported_and_repair_renames_it(url: str, key: bytes) -> None:
    with changed(url) as change:
        change("core", b"k4", None)
        change("core", key, frame_codec_of(None).encode(4))  # bound to no key
    kinds = {(kind, namespace) for kind, namespace, _, _ in found(url)}
    assert kinds == {("key", "core")}
    with hutch.connect(url) as store, store.open("core") as core:
        # Everything but the listing works, and that tells.
        assert core["k9"] == 9
        if not key.isascii():
            with pytest.raises(hutch.CorruptValueError, match="UTF-8"):
                list(core)
    assert {repaired for _, _, _, repaired in found(url, repair=True)} == {True}
    assert found(url) == []
    (new,) = content(url)["core"].keys() - DATA["core"].keys()
    assert new.startswith("recovered-6b")
    assert content(url)["core"][new] == 4


def test_names_of_lmdb_that_cannot_be_are_repaired(lmdb_url: str) -> None:
    with lmdb.open(lmdb_url.partition("://")[2]) as env, env.begin(write=True) as txn:
        id_ = id_of(txn, "core")
        txn.delete(b"\0\0\0\0ncore")
        txn.put(b"\0\0\0\0n\xff\xff", id_)
        txn.put(b"\0\0\0\0nshort", b"\1")
        txn.put(b"\0\0\0\0i", b"\0\0\0\1")
        txn.put(b"\0\0\0\x63", bytes(8))
    assert [kind for kind, *_ in found(lmdb_url)].count("orphan") == 3
    assert all(repaired for *_, repaired in found(lmdb_url, repair=True))
    assert found(lmdb_url) == []
    assert content(lmdb_url) == {"a:b": DATA["a:b"], "recovered-1": DATA["core"], "ü": DATA["ü"]}


def test_two_names_with_one_id_are_reported_and_not_repaired(lmdb_url: str) -> None:
    with lmdb.open(lmdb_url.partition("://")[2]) as env, env.begin(write=True) as txn:
        txn.put(b"\0\0\0\0nsame", id_of(txn, "core"))
    for repair in (False, True):
        assert found(lmdb_url, repair=repair) == [("orphan", "same", None, False)]


def test_what_redis_lists_is_made_to_fit_what_it_holds(redis_server: RedisServer) -> None:
    prefix = f"check*[{os.getpid()}]"
    url = f"{redis_server.url}?prefix={quote(prefix)}"
    fill(url)
    assert found(url) == []
    with hutch.connect(url) as store:
        call = store._factory.server.call
        call("ZREM", f"{prefix}:{{core}}:order", "k3")
        call("ZADD", f"{prefix}:{{core}}:order", 0, "ghost")
        call("SREM", f"{prefix}:namespaces", "ü")
        call("HSET", f"{prefix}:{{a%3Ab}}:values", "x", b"nonsense")
        wrong = [("index", "core", "k3"), ("index", "core", "ghost"), ("orphan", "ü", None)]
        damaged = ("value", "a:b", "x", False)
        assert found(url) == [*((*one, False) for one in wrong), damaged]
        assert found(url, repair=True) == [*((*one, True) for one in wrong), damaged]
        assert found(url) == [damaged]
        with store.open("core") as core, store.open("ü") as other:
            assert sorted(core) == sorted(DATA["core"])
            assert dict(other) == DATA["ü"]


# --- in use ---

_WRITER = """
import sys, hutch
with hutch.connect(sys.argv[1] + "?durability=relaxed") as store:
    spaces = [store.open(f"w{n}") for n in range(3)]
    print("writing", flush=True)
    number = 0
    while True:
        for space in spaces:
            space.update({f"k{n}": [number] * 50 for n in range(number % 7, 200, 3)})
            space.remove_many([f"k{n}" for n in range(number % 5, 200, 2)])
            space["large"] = bytes(10_000 + number % 9000)
        number += 1
"""


def test_verify_reports_no_false_finding_in_a_store_in_use(url: str) -> None:
    with subprocess.Popen([sys.executable, "-c", _WRITER, url], stdout=subprocess.PIPE) as writer:
        try:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"writing\n"
            for turn in range(20):
                assert found(f"{url}?durability=relaxed", repair=turn % 2 == 1) == []
            assert writer.poll() is None
        finally:
            writer.kill()
    assert found(url) == []


def test_a_store_that_is_open_here_is_checked_through_it(url: str) -> None:
    set_count(url, "core", 3)
    with hutch.connect(url) as store, store.open("core") as core:
        assert found(store) == found(url) == [("count", "core", None, False)]
        core["new"] = 1
        assert found(store, repair=True) == [("count", "core", None, True)]
        assert len(core) == 11
    with pytest.raises(hutch.StoreNotOpenError):
        found(store)


def test_what_layers_make_read_only_is_looked_at_and_not_changed(url: str, tmp_path: Path) -> None:
    set_count(url, "core", 3)
    config = {"STORAGE": url, "NAMESPACES": {"c*": {"LAYERS": ["read-only"]}}}
    assert found(config) == [("count", "core", None, False)]
    for change in ({"repair": True}, {"salvage": tmp_path / "out"}):
        with pytest.raises(hutch.CapabilityError):
            found(config, **change)
    assert found(url) == [("count", "core", None, False)]


def test_a_plugin_without_verify_has_its_values_keys_and_count_verified() -> None:
    with hutch.connect("memory://") as store, store.open("core") as core:
        core.update(good=1, bad=2)
        frames = store._factory._root["core"].frames
        frames["bad"] = b"nonsense"
        assert found(store) == [("value", "core", "bad", False)]
        frames[""] = frames["good"]
        assert ("key", "core", "", False) in found(store)


# --- the command ---


def command(*arguments: str) -> tuple[int, str, str]:
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run_command(list(arguments))
    texts = []
    for stream in (out, err):
        stream.seek(0)
        texts.append(stream.read())
    return code, texts[0], texts[1]


def test_the_command_says_one_line_a_finding_and_ends_with_1_while_something_is_left(url: str) -> None:
    assert command("-s", url, "check") == (0, "nothing wrong was found\n", "")
    set_count(url, "core", 3)
    with changed(url) as change:
        change("a:b", b"x\x1b[31m", b"nonsense that nobody shall see")
    code, out, err = command("check", "-s", url)
    assert (code, err) == (1, "")
    lines = out.splitlines()
    assert lines[-1].endswith("found, 0 of them repaired")
    counts = "count: namespace 'core': its stored number of keys is 3, but it has 10"
    assert any(line.startswith(counts) for line in lines)
    assert any(line.startswith(r"value: namespace 'a:b', key 'x\x1b[31m': ") for line in lines)
    assert "nobody" not in out
    assert "\x1b" not in out
    code, out, _ = command("-s", url, "check", "--repair")
    assert code == 1
    assert "but it has 10 (repaired)" in out
    code, out, _ = command("-s", url, "check", "--json")
    (line,) = out.splitlines()
    assert code == 1
    message = json.loads(line)
    assert (message.pop("message") != "", message) == (
        True,
        {"kind": "value", "namespace": "a:b", "key": "x\x1b[31m", "repaired": False},
    )


@pytest.mark.parametrize("leads_to", ["victim", "nowhere"])
def test_values_are_not_salvaged_through_a_link(url: str, tmp_path: Path, leads_to: str) -> None:
    (tmp_path / "victim").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / leads_to)
    with pytest.raises(FileExistsError, match="link"):
        found(url, salvage=tmp_path / "link")
    assert (tmp_path / "victim").read_text() == "mine"
    assert not (tmp_path / "nowhere").exists()


def test_the_command_salvages_and_then_finds_nothing(url: str, tmp_path: Path) -> None:
    with changed(url) as change:
        change("core", b"k3", b"nonsense")
    file = str(tmp_path / "salvaged")
    assert command("-s", url, "check", "--salvage", file)[0] == 0
    assert command("-s", url, "check")[:2] == (0, "nothing wrong was found\n")
    code, out, err = command("-s", url, "check", "--salvage", file)
    assert (code, out) == (3, "")
    assert "salvaged" in err


def test_the_command_distinguishes_an_invalid_file_from_an_unreachable_store(tmp_path: Path) -> None:
    for engine, file in (("lmdb", tmp_path / "data.mdb"), ("sqlite", tmp_path / "data.mdb")):
        file.write_bytes(b"not a database, " * 1000)
        code, out, _ = command("-s", f"{engine}://{tmp_path if engine == 'lmdb' else file}", "check")
        assert code == 1
        assert out.startswith("structure: ")
    assert command("-s", "redis://localhost:1", "check")[0] == 3


def test_a_value_that_became_a_text_is_not_quoted_by_any_error(tmp_path: Path) -> None:
    """Python's own message for a text that is not UTF-8 holds that text."""
    url = f"sqlite://{tmp_path / 'store'}"
    fill(url)
    with closing(sqlite3.connect(tmp_path / "store")) as connection:
        connection.execute("PRAGMA ignore_check_constraints = ON")
        connection.execute("UPDATE entries SET value = CAST(value || x'ff' AS TEXT) WHERE key = CAST('x' AS BLOB)")
        connection.commit()
    with hutch.connect(url) as store, store.open("a:b") as space:
        for read in (lambda: space["x"], lambda: dict(space), lambda: space.get_many(["x"])):
            with pytest.raises(hutch.CorruptValueError) as raised:
                read()
            assert "nobody" not in str(raised.value)
    messages = [one.message for one in hutch.verify(url)]
    assert messages
    assert "nobody" not in " ".join(messages)
