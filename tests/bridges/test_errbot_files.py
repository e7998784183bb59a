"""Test import and export of Errbot's shelves, with shelves that the real Errbot wrote and reads."""

from __future__ import annotations

import ast
import importlib
import os
import pickle
import re
import shelve
import shutil
import sqlite3
import subprocess
import sys
import tracemalloc
import uuid
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any
from zoneinfo import ZoneInfo

import pytest

import hutch
from hutch import transfer
from hutch.bridges.errbot.shelf_files import read, write
from hutch.codec.pickled import Pickled
from tests.bridges.bot import Bot, BotFolder, environment, errbot_python, hutch_command
from tests.bridges.conftest import url_of
from tests.bridges.processes import run_until
from tests.bridges.test_errbot import BENCH, with_hutch

# All tests here use the shelves of one bot.
pytestmark = [pytest.mark.timeout(120), pytest.mark.xdist_group("errbot")]

PLAIN = {
    "roles": {"admins": {"ada"}, "limits": (1, 2.5), "raw": b"\x00\xff"},
    "since": datetime(2024, 2, 29, 23, 59),
    "wait": timedelta(days=1),
    "text": "Über\n\U0001f916",
}
STORE = f"""self.update({PLAIN!r}, ordered=OrderedDict(a=1), thing=Thing(3), who=msg.frm)""".replace("datetime.", "")
CHECK = "[self['who'] == msg.frm, type(self['ordered']).__name__, self['thing'].size, self['since'].year, len(self)]"
CHECKED = "[True, 'OrderedDict', 3, 2024, 7]"


@pytest.fixture(scope="module")
def written_by_errbot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a bot's data in Errbot's own Shelf. It contains identifiers, which load only in a bot."""
    folder = BotFolder(tmp_path_factory.mktemp("shelves"))
    with Bot(folder.config) as bot:
        assert bot.do(STORE) == "None"
        assert bot.do(CHECK) == CHECKED
    return folder.data


@pytest.fixture
def shelves(written_by_errbot: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(written_by_errbot, tmp_path / "shelves"))


@pytest.fixture(params=["lmdb", "sqlite", "redis"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return url_of(request, tmp_path)


def carrying(url: str) -> str:
    return f"{url}{'&' if '?' in url else '?'}codec=passthrough"


def failed(*arguments: str) -> str:
    """Return the error of a `hutch` command that must fail."""
    command = [sys.executable, "-m", "hutch", *arguments]
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, encoding="utf-8", timeout=60, env={**os.environ}
    )
    assert done.returncode > 0, done.stdout
    return done.stderr


EVERY_TYPE: list[Any] = [
    *(None, True, 2**70, -1.5, "\U0001f916", b"", b"\x00\xff", [1, (2, [])], {1: {"a": None}}, {1}, frozenset([(1,)])),
    *(
        datetime(2024, 2, 29, 1),
        datetime(2024, 2, 29, tzinfo=UTC),
        datetime(2024, 2, 29, tzinfo=ZoneInfo("Europe/Berlin")),
    ),
    *(date(2024, 2, 29), time(1, 2), timedelta(-1), Decimal("1.10"), Fraction(1, 3), 1 + 2j, range(1, 9, 2)),
    *(uuid.UUID(int=7), Path("a/b"), PurePosixPath("/x"), PureWindowsPath("c:/x")),
]
HOLDS_ITSELF: list[Any] = []
HOLDS_ITSELF.append(HOLDS_ITSELF)


def contents(folder: Path) -> dict[str, bytes]:
    """Return the content of every file below `folder`, by name."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def opened(folder: Path, namespace: str, protocol: int = 2) -> shelve.Shelf[Any]:
    return shelve.DbfilenameShelf(str(folder / f"{namespace}.db"), protocol=protocol)


def shelf(folder: Path, namespace: str, items: dict[str, Any]) -> None:
    """Write a shelf as Errbot does, with whichever kind of database this Python has."""
    with opened(folder, namespace) as file:
        file.update(items)


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


# --- in ---


def test_a_bot_continues_with_all_values_of_its_shelf_including_identifiers(
    shelves: Path, url: str, tmp_path: Path
) -> None:
    before = contents(shelves)
    lines = hutch_command("import", "errbot-shelf", str(shelves), "-s", carrying(url)).splitlines()
    items = int(re.findall(r"imported (\d+) items", lines[0])[0])
    assert items > len(PLAIN)
    assert lines[1] == f"verified {items} items: all equal"
    assert contents(shelves) == before

    with hutch.connect(url) as store, store.open(BENCH) as bench:
        assert bench.get_many(PLAIN) == PLAIN
        assert {key: type(bench[key]) for key in PLAIN} == {key: type(value) for key, value in PLAIN.items()}
        assert {*store.namespaces()} >= {"core", BENCH}
    with Bot(with_hutch(tmp_path / "bot", {"url": url}).config) as bot:
        assert bot.do(CHECK) == CHECKED

    again = hutch_command("import", "errbot-shelf", str(shelves), "-s", carrying(url))
    assert f"imported 0 items, {items} were there already" in again
    assert "all equal" in again


def test_a_value_that_needs_passthrough_is_refused_with_its_key_and_that_option(shelves: Path, tmp_path: Path) -> None:
    message = failed("import", "errbot-shelf", str(shelves), "-s", f"lmdb://{tmp_path / 'state'}")
    assert f"in namespace '{BENCH}'" in message
    assert re.search("'(ordered|thing|who)'", message)
    assert "codec=passthrough" in message
    assert len(message.splitlines()) == 1


def test_a_store_that_unpickles_takes_no_pickle_as_it_is(shelves: Path, tmp_path: Path) -> None:
    message = failed("import", "errbot-shelf", str(shelves), "-s", f"lmdb://{tmp_path / 'state'}?codec=pickle")
    assert "choose CODEC: passthrough" in message


def test_a_killed_import_continues_where_it_stopped(tmp_path: Path, url: str) -> None:
    (tmp_path / "shelves").mkdir()
    shelf(tmp_path / "shelves", "big", {str(number): OrderedDict(n=number) for number in range(3000)})
    script = """
import sys
from pathlib import Path
import hutch
from hutch import transfer
from hutch.bridges.errbot.shelf_files import read

with hutch.connect(sys.argv[1]) as store:
    transfer.copy_items(read(Path("shelves")), store, progress=lambda progress: print(progress.done))
    print("not killed")
    sys.stdin.read()
"""
    lines = run_until("1000", script, carrying(url), folder=tmp_path)
    done = int(lines[-1])
    message = hutch_command("import", "errbot-shelf", str(tmp_path / "shelves"), "-s", carrying(url))
    written, unchanged = map(int, re.findall(r"[\d,]+", message.replace(",", ""))[:2])
    assert written + unchanged == 3000
    assert unchanged >= min(done, 2000)
    assert "verified 3,000 items: all equal" in message


def test_nothing_is_run_and_nothing_but_the_shelf_s_own_types_is_made(tmp_path: Path) -> None:
    (tmp_path / "shelves").mkdir()
    trap = Trap(tmp_path / "sprung")
    shelf(tmp_path / "shelves", "traps", {"trap": trap, "in a list": [{1: trap}], "class": Trap})
    url = f"lmdb://{tmp_path / 'state'}?codec=passthrough"
    assert "verified 3 items" in hutch_command("import", "errbot-shelf", str(tmp_path / "shelves"), "-s", url)
    assert "exported 3 items" in hutch_command("export", "errbot-shelf", str(tmp_path / "out"), "-s", url)
    assert not (tmp_path / "sprung").exists()
    found = {key: value for _, key, value in read(tmp_path / "out")}
    assert {key: type(value) for key, value in found.items()} == dict.fromkeys(["trap", "in a list", "class"], Pickled)
    pickle.loads(found["trap"].body)
    assert (tmp_path / "sprung").exists(), "the trap never worked"


@pytest.mark.parametrize("protocol", range(2, 6))
def test_every_type_of_the_default_codec_is_read_from_a_pickle_of_any_protocol(tmp_path: Path, protocol: int) -> None:
    with opened(tmp_path, "types", protocol) as file:
        file.update({str(number): value for number, value in enumerate(EVERY_TYPE)})
    found = {key: value for _, key, value in read(tmp_path)}
    for number, value in enumerate(EVERY_TYPE):
        assert (found[str(number)], type(found[str(number)])) == (value, type(value))


@pytest.mark.parametrize(
    "value",
    [OrderedDict(a=1), bytearray(b"x"), [HOLDS_ITSELF], print, [timezone(timedelta(hours=1))], Path, getattr],
    ids=lambda value: type(value).__name__,
)
def test_every_other_value_is_copied_as_its_pickle(tmp_path: Path, value: Any) -> None:
    shelf(tmp_path, "others", {"k": value})
    assert list(read(tmp_path)) == [("others", "k", Pickled(pickle.dumps(value, 2)))]


def test_a_shelf_is_read_value_by_value(tmp_path: Path) -> None:
    shelf(tmp_path, "large", {str(number): os.urandom(1_000_000) for number in range(20)})
    tracemalloc.start()
    try:
        assert sum(len(value) for _, _, value in read(tmp_path)) == 20_000_000
        assert tracemalloc.get_traced_memory()[1] < 8_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("dialect", ["gnu", "ndbm", "dumb", "sqlite3"])
def test_every_kind_of_database_that_errbot_may_have_used_is_read(tmp_path: Path, dialect: str) -> None:
    items = {"a": {1}, "b": OrderedDict(x=1), "Ü": None}
    pickled = {key: pickle.dumps(value, 2) for key, value in items.items()}
    base = str(tmp_path / "a bot's plugin.db")
    if dialect == "sqlite3":  # as dbm.sqlite3 of Python 3.13 does
        with closing(sqlite3.connect(base)) as file, file:
            file.execute("CREATE TABLE Dict (key BLOB UNIQUE NOT NULL, value BLOB NOT NULL)")
            file.executemany("INSERT INTO Dict VALUES (?, ?)", [(key.encode(), p) for key, p in pickled.items()])
    else:
        try:
            module = importlib.import_module(f"dbm.{dialect}")
        except ImportError:
            pytest.skip(f"this Python lacks {dialect} dbm")
        with module.open(base, "c") as db:
            for key, data in pickled.items():
                db[key.encode()] = data
    found = sorted(read(tmp_path), key=lambda item: item[1])
    assert found == [
        ("a bot's plugin", "a", {1}),
        ("a bot's plugin", "b", Pickled(pickled["b"])),
        ("a bot's plugin", "Ü", None),
    ]


# --- damage, and what hutch cannot hold ---


def test_a_damaged_pickle_is_an_error_with_its_key_and_what_came_before_it_is_imported(tmp_path: Path) -> None:
    with opened(tmp_path, "n") as file:
        file["good"] = {1}
        file.dict[b"bad"] = pickle.dumps(OrderedDict(a="secret" * 9), 2)[:-20]  # type: ignore[attr-defined]
    with pytest.raises(
        hutch.CorruptValueError, match="value of key 'bad' in the shelf 'n' is not a complete pickle"
    ) as error:
        list(read(tmp_path))
    assert "secret" not in str(error.value)
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize("damaged", ["core.db", "core.db.dat"])
def test_a_damaged_shelf_file_is_reported(tmp_path: Path, damaged: str) -> None:
    shelf(tmp_path, "whole", {"k": 1})
    (tmp_path / damaged).write_bytes(b"\0" * 4096)
    with pytest.raises(hutch.CorruptValueError, match=r"core\.db"):
        list(read(tmp_path))


def test_a_bot_s_own_files_are_no_shelves(tmp_path: Path) -> None:
    shelf(tmp_path, "core", {"k": 1})
    (tmp_path / "errbot.log").write_text("")
    (tmp_path / "plugins").mkdir()
    with closing(sqlite3.connect(tmp_path / "karma.db")) as file:
        file.execute("CREATE TABLE karma (name)")
    assert list(read(tmp_path)) == [("core", "k", 1)]


def test_keys_that_hutch_has_not_are_refused_by_name(tmp_path: Path) -> None:
    for name, key in (("long", "k" * 1025), ("empty", "")):
        folder = tmp_path / name
        folder.mkdir()
        shelf(folder, "core", {key: 1})
        with hutch.connect("memory://") as store, pytest.raises(hutch.KeyLimitError):
            transfer.copy_items(read(folder), store)


def test_a_missing_or_empty_folder_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    url = f"lmdb://{tmp_path / 'state'}"
    assert "does not exist" in failed("import", "errbot-shelf", str(tmp_path / "none"), "-s", url)
    assert "nothing was found" in failed("import", "errbot-shelf", str(tmp_path / "empty"), "-s", url)
    assert "is not a folder" in failed("import", "errbot-shelf", str(tmp_path / "file"), "-s", url)


# --- out ---


READ_BY_ERRBOT = """
import sys
from types import SimpleNamespace
from collections import OrderedDict
from errbot.storage.shelf import ShelfStoragePlugin

plugin = ShelfStoragePlugin(SimpleNamespace(BOT_DATA_DIR=sys.argv[1], STORAGE_CONFIG={}))
for namespace in sys.argv[2:]:
    storage = plugin.open(namespace)
    print(repr({key: storage.get(key) for key in storage.keys()}))
    storage.close()
"""


# A bot's Python must know the kind of database; docs/bridges/errbot.md has users export with the bot's own.
read_by_errbot = pytest.mark.skipif(
    sys.version_info >= (3, 13), reason="since Python 3.13 shelves are SQLite's, which Errbot's Python does not know"
)


@read_by_errbot
def test_errbot_reads_an_export_and_a_bot_continues_with_it(shelves: Path, tmp_path: Path) -> None:
    url = f"lmdb://{tmp_path / 'state'}?codec=passthrough"
    hutch_command("import", "errbot-shelf", str(shelves), "-s", url)
    folder = BotFolder(tmp_path / "bot")
    message = hutch_command("export", "errbot-shelf", str(folder.data), "-s", url)
    items = sum(1 for _ in read(shelves))
    assert message == f"exported {items} items to {str(folder.data)!r}\n"
    by_key = sorted(read(shelves), key=lambda item: item[:2])
    assert sorted(read(folder.data), key=lambda item: item[:2]) == by_key
    with Bot(folder.config) as bot:
        assert bot.do(CHECK) == CHECKED
        assert bot.do("type(self._store).__module__") == "'errbot.storage.shelf'"


@read_by_errbot
def test_errbot_s_own_storage_reads_what_hutch_stored_with_its_types(tmp_path: Path) -> None:
    items = {"a": {"on": {1, 2}, "t": (1, b"x")}, "Ü ": None, "n": 10**30}
    with hutch.connect("memory://") as store:
        for name in ("core", "Test Bench", "..", "Über"):
            with store.open(name) as namespace:
                namespace.update(items)
        assert write(store, tmp_path / "out") == 12
    command = [errbot_python(), "-c", READ_BY_ERRBOT, str(tmp_path / "out"), "core", "Test Bench", "..", "Über"]
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, encoding="utf-8", timeout=60, env=environment()
    )
    assert [ast.literal_eval(line) for line in done.stdout.splitlines()] == [items] * 4, done.stderr


@pytest.fixture
def store() -> Iterator[hutch.Store]:
    with hutch.connect("memory://") as store:
        yield store


def test_a_shelf_that_is_there_is_never_replaced(tmp_path: Path, store: hutch.Store) -> None:
    shelf(tmp_path, "core", {"k": "mine"})
    before = contents(tmp_path)
    for name in ("a", "core"):
        with store.open(name) as namespace:
            namespace["k"] = 1
    with pytest.raises(hutch.ConfigError, match=r"core\.db.* exists and is not replaced"):
        write(store, tmp_path)
    assert contents(tmp_path) == before
    assert {file.name for file in tmp_path.iterdir()} == set(before)


@pytest.mark.parametrize("name", ["a/b", "x" * 255])
def test_a_namespace_whose_name_errbot_could_not_open_is_refused_and_nothing_appears(
    tmp_path: Path, store: hutch.Store, name: str
) -> None:
    for namespace in ("a", name):
        with store.open(namespace) as handle:
            handle["k"] = 1
    with pytest.raises(hutch.NamespaceError, match="cannot be a shelf of Errbot"):
        write(store, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_pickle_that_the_store_s_codec_does_not_read_stops_the_export_with_its_key(tmp_path: Path) -> None:
    url = f"sqlite://{(tmp_path / 's').as_posix()}"
    with hutch.connect(f"{url}?codec=pickle") as store, store.open("core") as core:
        core["k"] = OrderedDict(a=1)
    message = failed("export", "errbot-shelf", str(tmp_path / "out"), "-s", url)
    assert "key 'k' in namespace 'core'" in message
    assert "passthrough" in message
    assert list((tmp_path / "out").iterdir()) == []
    assert "exported 1 items" in hutch_command("export", "errbot-shelf", str(tmp_path / "out"), "-s", carrying(url))
    assert list(read(tmp_path / "out")) == [("core", "k", Pickled(pickle.dumps(OrderedDict(a=1), 5)))]


# --- between engines ---


def test_a_bot_s_state_is_copied_from_engine_to_engine_identifiers_and_all(
    shelves: Path, url: str, tmp_path: Path
) -> None:
    first = f"lmdb://{(tmp_path / uuid.uuid4().hex).as_posix()}"
    hutch_command("import", "errbot-shelf", str(shelves), "-s", carrying(first))
    assert "all equal" in hutch_command("copy", carrying(first), carrying(url), "--verify")
    with hutch.connect(carrying(url)) as store, store.open(BENCH) as bench:
        assert type(bench["who"]) is Pickled
        assert bench["wait"] == timedelta(days=1)
        with pytest.raises(hutch.ValueTypeError):
            bench["new"] = bytearray()
