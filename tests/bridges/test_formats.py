"""Test `hutch import` of files that shelve, sqlitedict, diskcache, json and csv themselves wrote."""

from __future__ import annotations

import contextlib
import csv
import dbm.dumb
import gc
import importlib.util
import json
import math
import shelve
import signal
import sqlite3
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import diskcache
import pytest
import sqlitedict

import hutch
from hutch import transfer
from hutch.bridges.formats import csv_files, diskcache_files, json_files
from hutch.codec.pickled import Pickled
from hutch.deadlines import Expiring

MODULES = {"dumb": "dbm.dumb", "gnu": "_gdbm", "ndbm": "_dbm", "sqlite3": "dbm.sqlite3"}
DIALECTS = [name for name, module in MODULES.items() if importlib.util.find_spec(module)]
VALUES: dict[str, Any] = {
    "none": None,
    "tuple": (1, 2.5, "three"),
    "nested": {"when": datetime(2024, 2, 29, tzinfo=UTC), "cost": Decimal("1.10"), "tags": {"a"}},
    "schlüssel": b"\0\xff",
    "nan": math.nan,
    "large": "x" * 200_000,
}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def hutch_(*arguments: str, code: int = 0, url: str = "lmdb://store") -> str:
    """Run the command and return what it printed; its exit code must be `code`."""
    done = subprocess.run(
        [sys.executable, "-m", "hutch", "-s", url, *arguments], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def stored(namespace: str, url: str = "lmdb://store") -> dict[str, Any]:
    with hutch.connect(url) as store, store.open(namespace) as items:
        return dict(items)


def same(found: dict[str, Any], expected: dict[str, Any]) -> bool:
    return {key: repr(value) for key, value in found.items()} == {key: repr(value) for key, value in expected.items()}


@contextlib.contextmanager
def a_shelf(name: str, dialect: str = "dumb") -> Iterator[shelve.Shelf[Any]]:
    module = importlib.import_module(f"dbm.{dialect}")
    shelf: shelve.Shelf[Any]
    with contextlib.closing(shelve.Shelf(module.open(name, "c"))) as shelf:
        yield shelf


# --- shelve ---


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_shelf_moves_in_every_dialect_with_its_types(dialect: str) -> None:
    with a_shelf("settings", dialect) as shelf:
        shelf.update(VALUES)
    before = {file: file.read_bytes() for file in Path().iterdir()}
    first = hutch_("import", "shelve", "settings")
    assert first == "imported 6 items, 0 were there already; namespaces: 1\nverified 6 items: all equal\n"
    assert same(stored("settings"), VALUES)
    assert "imported 0 items, 6 were there already" in hutch_("import", "shelve", "settings")
    assert {file: file.read_bytes() for file in Path().iterdir() if file.is_file()} == before


def test_a_shelf_may_be_named_by_one_of_its_files_and_its_namespace_chosen() -> None:
    with a_shelf("settings.db") as shelf:
        shelf["a"] = 1
    hutch_("import", "shelve", "settings.db.dat")
    hutch_("import", "shelve", "./settings.db", "-n", "other")
    assert stored("settings") == stored("other") == {"a": 1}


def test_pickles_of_a_class_move_unread_or_are_loaded_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("theirs.py").write_text(
        "import dataclasses, hutch\n@hutch.register_type\n@dataclasses.dataclass\nclass Thing:\n    name: str\n"
        "print('theirs was loaded')\n"
    )
    write = "import shelve, theirs\nwith shelve.open('s') as s: s['t'] = theirs.Thing('top secret')"
    subprocess.run([sys.executable, "-c", write], check=True, cwd=Path.cwd())
    monkeypatch.setenv("PYTHONPATH", ".")
    refused = hutch_("import", "shelve", "s", code=4)
    assert "'t'" in refused
    assert "codec=passthrough" in refused
    assert "secret" not in refused
    kept = hutch_("import", "shelve", "s", url="lmdb://kept?codec=passthrough")
    assert "all equal" in kept
    assert "theirs was loaded" not in refused + kept
    assert isinstance(stored("s", "lmdb://kept?codec=passthrough")["t"], Pickled)
    assert "Thing(name='top secret')" in run_python("lmdb://kept?codec=pickle")
    loaded = hutch_("import", "shelve", "s", "--unpickle")
    assert "theirs was loaded" in loaded
    assert "verified 1 items: all equal" in loaded
    assert "Thing(name='top secret')" in run_python("lmdb://store")
    Path("theirs.py").rename("theirs.txt")
    lost = hutch_("import", "shelve", "s", "--unpickle", code=4, url="lmdb://lost")
    assert "key 't' cannot be unpickled (ModuleNotFoundError)" in lost
    assert "PYTHONPATH" in lost


def run_python(url: str) -> str:
    """Return the values of the shelf `s` in the store, as a program that has their class prints them."""
    code = f"import theirs, hutch\nwith hutch.connect({url!r}) as store, store.open('s') as s: print(dict(s))"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_a_link_in_place_of_a_file_of_a_shelf_is_refused() -> None:
    with a_shelf("real") as shelf:
        shelf["a"] = 1
    for suffix in (".dat", ".dir"):
        Path(f"real{suffix}").rename(f"moved{suffix}")
        Path(f"real{suffix}").symlink_to(f"moved{suffix}")
    assert "symbolic link" in hutch_("import", "shelve", "real", code=3)
    assert not Path("store").exists()


def test_a_damaged_shelf_and_a_folder_say_what_was_expected() -> None:
    with contextlib.closing(dbm.dumb.open("broken", "c")) as database:
        database["a"] = b"\x80\x04not a pickle"
    message = hutch_("import", "shelve", "broken", code=4)
    assert "key 'a' is not a complete pickle" in message
    assert "errbot-shelf" in hutch_("import", "shelve", ".", code=2)
    assert "does not exist" in hutch_("import", "shelve", "nowhere", code=2)
    assert not Path("store").exists()


# --- sqlitedict ---


def test_the_tables_of_sqlitedict_become_namespaces() -> None:
    with sqlitedict.SqliteDict("my.sqlite", autocommit=True) as unnamed:
        unnamed.update(VALUES)
    with sqlitedict.SqliteDict("my.sqlite", "users", encode=json.dumps, decode=json.loads, autocommit=True) as users:
        users["ada"] = {"n": [1, 2.5, None]}
    gc.collect()
    assert "imported 7 items" in hutch_("import", "sqlitedict", "my.sqlite")
    assert same(stored("unnamed"), VALUES)
    assert stored("users") == {"ada": {"n": [1, 2.5, None]}}
    assert "leave out --namespace" in hutch_("import", "sqlitedict", "my.sqlite", "-n", "x", code=2)


def test_a_row_of_another_encoding_and_another_file_are_refused_without_their_values() -> None:
    with contextlib.closing(sqlite3.connect("own.sqlite", isolation_level=None)) as file:
        file.execute('CREATE TABLE "unnamed" (key TEXT PRIMARY KEY, value BLOB)')
        file.execute("INSERT INTO unnamed VALUES ('k', ?)", (b"top secret",))
        file.execute("CREATE TABLE other (id INTEGER)")
    message = hutch_("import", "sqlitedict", "own.sqlite", code=4)
    assert "row 1" in message
    assert "secret" not in message
    with contextlib.closing(sqlite3.connect("own.sqlite", isolation_level=None)) as file:
        file.execute("UPDATE unnamed SET value = 'top secret'")
    message = hutch_("import", "sqlitedict", "own.sqlite", code=4)
    assert "neither a pickle nor JSON" in message
    assert "secret" not in message
    with contextlib.closing(sqlite3.connect("own.sqlite", isolation_level=None)) as file:
        file.execute("DROP TABLE unnamed")
    assert "no table with the columns key and value" in hutch_("import", "sqlitedict", "own.sqlite", code=2)
    Path("text.sqlite").write_text("not a database, " * 99)
    assert "cannot be read as a file of sqlitedict" in hutch_("import", "sqlitedict", "text.sqlite", code=4)
    assert not Path("store").exists()


# --- diskcache ---


def test_a_cache_moves_with_its_large_values_and_without_what_has_expired() -> None:
    with diskcache.Cache("cache") as cache:
        for key, value in VALUES.items():
            cache[key] = value
        cache["bytes"] = b"y" * 100_000
        cache["objects"] = [b"z" * 100_000]
        cache[7] = 1
        cache["a", 2.5] = "pair"
        cache[2.5] = -1.5
        cache.set("gone", 1, expire=0.01)
        cache.set("later", 1, expire=1000, tag="t")
    time.sleep(0.05)
    gc.collect()
    before = {file: file.read_bytes() for file in Path("cache").rglob("*") if file.is_file()}
    shown = hutch_("import", "diskcache", "cache")
    assert {file: file.read_bytes() for file in Path("cache").rglob("*") if file.is_file()} == before
    with hutch.connect("lmdb://store") as store, store.open("cache") as kept:
        assert 900 < (kept.ttl_s("later") or 0) <= 1000
    assert "have an expiry" not in shown
    assert "verified 12 items: all equal" in shown
    more = {
        "nan": None,
        "bytes": b"y" * 100_000,
        "objects": [b"z" * 100_000],
        "7": 1,
        "('a', 2.5)": "pair",
        "2.5": -1.5,
        "later": 1,
    }
    assert same(stored("cache"), VALUES | more)


def test_what_expires_in_a_cache_expires_at_the_same_moment_where_values_may_expire() -> None:
    with diskcache.Cache("cache") as cache:
        cache.set("later", [1], expire=1000)
        cache["stays"] = 2
        _, at_s = cache.get("later", expire_time=True)
    items = list(diskcache_files.read(Path("cache")))
    assert items == [("cache", "later", Expiring([1], math.ceil(at_s * 1000))), ("cache", "stays", 2)]
    with hutch.connect("memory://") as store:
        assert transfer.copy_items(items, store).written == 2
        assert transfer.verify_items(items, store).ok
        with store.open("cache") as ns:
            assert dict(ns) == {"later": [1], "stays": 2}
            assert 900 < (ns.ttl_s("later") or 0) <= 1000


def test_a_fanout_cache_is_one_namespace() -> None:
    with diskcache.FanoutCache("fan", shards=3) as cache:
        for number in range(30):
            cache[f"k{number}"] = number
    hutch_("import", "diskcache", "fan", "-n", "numbers")
    assert stored("numbers") == {f"k{number}": number for number in range(30)}


def test_a_cache_refuses_what_it_could_only_guess() -> None:
    with diskcache.Cache("cache") as cache:
        cache["1"] = "text"
        cache[1] = "number"
    assert "key '1' of namespace 'cache' occurs a second time" in hutch_("import", "diskcache", "cache", code=4)
    with diskcache.Cache("compressed", disk=diskcache.JSONDisk) as cache:
        cache["a"] = "top secret"
    assert "JSONDisk" in hutch_("import", "diskcache", "compressed", code=4)
    with diskcache.Cache("linked") as cache:
        cache["a"] = "x" * 100_000
    (value,) = Path("linked").rglob("*.val")
    value.rename("elsewhere")
    assert "check(fix=True)" in hutch_("import", "diskcache", "linked", code=4)
    value.symlink_to(Path("elsewhere").absolute())
    assert "symbolic link" in hutch_("import", "diskcache", "linked", code=3)
    with contextlib.closing(sqlite3.connect("linked/cache.db", isolation_level=None)) as file:
        file.execute("UPDATE Cache SET filename = '../elsewhere'")
    assert "does not lie in the folder" in hutch_("import", "diskcache", "linked", code=4)
    assert "no file cache.db" in hutch_("import", "diskcache", ".", code=2)
    assert not Path("store").exists()


# --- JSON ---

FORMS = {
    "object": '\n{"a": 1,\n "b": {"c": [1.5, null, "x"]},\n "": 0}\n'.replace(',\n "": 0', ""),
    "pairs": '["a", 1]\n["b", {"c": [1.5, null, "x"]}]\n',
    "items": '{"key": "a", "value": 1}\n{"value": {"c": [1.5, null, "x"]}, "key": "b"}',
    "with a byte order mark": '\ufeff{"a":1,"b":{"c":[1.5,null,"x"]}}',
}


@pytest.mark.parametrize("text", FORMS.values(), ids=FORMS)
def test_json_is_an_object_or_lines(text: str) -> None:
    Path("data.json").write_text(text, encoding="utf-8")
    assert "all equal" in hutch_("import", "json", "data.json", "-n", "core")
    assert stored("core") == {"a": 1, "b": {"c": [1.5, None, "x"]}}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a": "secret", "a": "secret"}', ("item 2", "'a'", "second time")),
        ('{"a": 1,\n"b": "secret}', ("line 2", "Unterminated")),
        ('{"a": 1}\n{"b": "secret"}', ("line 2", "more text after the object")),
        ('["a", 1]\n["secret"]', ("line 2", "[key, value]")),
        ('[1, "secret"]', ("line 1", "not one of type int")),
        ('{"a": "secret", "": 1}', ("item 2", "key")),
        ('{"a": ' + "9" * 5000 + "}", ("line 1", "not JSON that Python can read")),
        ('{"a": ' + "[" * 100_000, ("line 1",)),
        ('{"a" 1}', ("line 1", "expected ':'")),
        ('{"a": 1', ("line 1", "the file ends")),
        ("secret", ("line 1", "not JSON")),
    ],
)
def test_a_file_that_is_not_such_json_is_refused_before_anything_is_written(text: str, words: tuple[str, ...]) -> None:
    Path("data.json").write_text(text)
    message = hutch_("import", "json", "data.json", code=2 if "item 2, for" in text or '"": 1' in text else 4)
    assert all(word in message for word in words), message
    assert "secret" not in message
    assert not Path("store").exists()


def test_an_object_of_any_size_is_read_in_little_memory() -> None:
    with Path("big.json").open("w") as file:
        file.write("{" + ",\n".join(f'"{number}": "{"x" * 10_000}"' for number in range(3000)) + "}")
    tracemalloc.start()
    try:
        assert sum(1 for _ in json_files.read(Path("big.json"))) == 3000
        assert tracemalloc.get_traced_memory()[1] < 5_000_000  # of 30
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("chunk", [1, 2, 3, 7])
def test_json_is_the_same_wherever_its_pieces_end(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    data = {"a": [12345, -1.5e10, True, None, '\\"\u00e9\U0001f407'], "b": {"": [[]], "k": {}}, "c": -0.0, "d": 7}
    Path("data.json").write_text(json.dumps(data, indent=1))
    monkeypatch.setattr("hutch.bridges.formats.json_text._CHUNK", chunk)
    assert {key: value for _, key, value in json_files.read(Path("data.json"))} == data


# --- CSV ---


def test_rows_of_csv_are_dicts_of_str() -> None:
    Path("people.csv").write_text('\ufeffid,name,age\n1,"Ada, ""A"" L",36\n\n2,"two\nlines",\n', encoding="utf-8")
    assert "all equal" in hutch_("import", "csv", "people.csv", "--key", "id")
    assert stored("people") == {"1": {"name": 'Ada, "A" L', "age": "36"}, "2": {"name": "two\nlines", "age": ""}}


@pytest.mark.parametrize(
    ("text", "words", "code"),
    [
        ("secret,b\n1,2\n", ("none of the 2 columns", "'key'", "--key COLUMN"), 2),
        ("key,a,a\n1,2,3\n", ("same name",), 2),
        ("key,a\n1,2\n2\n", ("line 3", "1 fields: expected 2"), 4),
        ('key,a\n1,"secret', ("line 2", "not CSV"), 4),
        ("key,a\n1,2\n1,secret\n", ("item 2", "second time"), 4),
        ("key,a\n,secret\n", ("item 1",), 2),
    ],
)
def test_a_file_that_is_not_such_csv_is_refused_before_anything_is_written(
    text: str, words: tuple[str, ...], code: int
) -> None:
    Path("data.csv").write_text(text)
    message = hutch_("import", "csv", "data.csv", code=code)
    assert all(word in message for word in words), message
    assert "secret" not in message
    assert not Path("store").exists()


def test_a_field_may_be_longer_than_pythons_csv_reads_by_default() -> None:
    Path("long.csv").write_text(f"key,text\n1,{'x' * 200_000}\n")
    assert [len(value["text"]) for _, _, value in csv_files.read(Path("long.csv"))] == [200_000]


# --- out, again, and killed ---


def test_json_and_csv_are_written_and_read_back() -> None:
    rows = {"1": {"a": 'x,"y"\n', "b": "ü"}, "2": {"b": "", "a": "é"}}
    with hutch.connect("lmdb://store") as store, store.open("rows") as items:
        items.update(rows)
    assert "exported 2 items" in hutch_("export", "json", "out.json", "-n", "rows")
    assert json.loads(Path("out.json").read_text(encoding="utf-8")) == rows
    assert "exported 2 items" in hutch_("export", "csv", "out.csv", "-n", "rows", "--key", "id")
    with Path("out.csv").open(encoding="utf-8", newline="") as text:
        assert next(csv.reader(text)) == ["id", "a", "b"]
    hutch_("import", "json", "out.json", "-n", "j")
    hutch_("import", "csv", "out.csv", "-n", "c", "--key", "id")
    assert stored("j") == stored("c") == rows


def test_an_export_refuses_what_the_file_cannot_hold_and_leaves_no_file() -> None:
    with hutch.connect("lmdb://store") as store:
        for name, value in {"set": {"secret"}, "nan": math.nan, "dict": {1: "secret"}}.items():
            with store.open(name) as items:
                items["k"] = value
            for kind in ("json", "csv"):
                message = hutch_("export", kind, "out", "-n", name, code=4)
                assert "key 'k'" in message
                assert "hutch dump" in message
                assert "secret" not in message
    assert "name it with -n" in hutch_("export", "json", "out", code=2)
    assert "'sett'" in hutch_("export", "json", "out", "-n", "sett", code=3)
    assert [file.name for file in Path().iterdir()] == ["store"]
    Path("out").symlink_to("victim")
    with hutch.connect("lmdb://store") as store, store.open("plain") as items:
        items["k"] = {"a": "b"}
    for kind in ("json", "csv"):
        assert "symbolic link" in hutch_("export", kind, "out", "-n", "plain", code=3)
    assert not Path("victim").exists()


def test_an_option_of_another_format_is_refused() -> None:
    Path("data.json").write_text("{}")
    assert "--key is an option of the formats csv, not of json" in hutch_(
        "import", "json", "data.json", "--key", "id", code=2
    )
    assert "nothing was found" in hutch_("import", "json", "data.json", code=1)


def test_a_killed_import_continues_where_it_stopped() -> None:
    with Path("big.json").open("w") as file:
        file.writelines(f'["{number}", {number}]\n' for number in range(20_000))
    command = [sys.executable, "-m", "hutch", "-s", "lmdb://store?durability=relaxed", "import", "json", "big.json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        end = time.monotonic() + 60
        while not present() and time.monotonic() < end and process.poll() is None:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    killed = present()
    assert killed > 0
    shown = hutch_("import", "json", "big.json")
    assert f"imported {20_000 - killed:,} items, {killed:,} were there already" in shown
    assert "verified 20,000 items: all equal" in shown


def present() -> int:
    if not Path("store/data.mdb").exists():
        return 0
    with contextlib.suppress(hutch.StoreError), hutch.connect("lmdb://store") as store, store.open("big") as items:
        return len(items)
    return 0
