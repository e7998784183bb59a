"""Test the shelf engine: Errbot's files in place, in every dialect of dbm, and what keeps them intact.

The Python that runs the tests determines the dialects. The last test runs the others with a Python that has them, if
one is found.
"""

from __future__ import annotations

import contextlib
import dbm
import importlib.util
import logging
import os
import pickle
import shelve
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, MutableMapping
from contextlib import closing
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

import hutch

ROOT = Path(__file__).parents[2]
HAS = {
    "gnu": importlib.util.find_spec("_gdbm") is not None,
    "ndbm": importlib.util.find_spec("_dbm") is not None,
    "dumb": True,
    "sqlite3": True,
}
# Set for the run within the run.
ASKED = [name for name in os.environ.get("HUTCH_TEST_DIALECTS", "").split(",") if name]
DIALECTS = ASKED or [name for name, here in HAS.items() if here]

VALUES: dict[str, Any] = {
    "plain": {"a": [1, 2.5, None, True], "b": ("x", b"\0\xff")},
    "sets and dates": ({1, 2}, frozenset({"x"}), datetime(2024, 5, 1, tzinfo=UTC)),
    "ключ é \0 '\"\n": Decimal("1.50"),
    "big": "v" * 100_000,
}

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
needs_kill = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")


@pytest.fixture(params=DIALECTS)
def dialect(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# --- Errbot's side, with nothing but the standard library ---


class SqliteDbm(MutableMapping[bytes, bytes]):
    """The statements of Python 3.13's `dbm.sqlite3`, for earlier Pythons."""

    def __init__(self, path: str) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None)
        self._connection.execute("PRAGMA journal_mode = wal")
        self._connection.execute("CREATE TABLE IF NOT EXISTS Dict (key BLOB UNIQUE NOT NULL, value BLOB NOT NULL)")

    def __getitem__(self, key: bytes) -> bytes:
        row = self._connection.execute("SELECT value FROM Dict WHERE key = CAST(? AS BLOB)", (key,)).fetchone()
        if not row:
            raise KeyError(key)
        return bytes(row[0])

    def __setitem__(self, key: bytes, value: bytes) -> None:
        self._connection.execute(
            "REPLACE INTO Dict (key, value) VALUES (CAST(? AS BLOB), CAST(? AS BLOB))", (key, value)
        )

    def __delitem__(self, key: bytes) -> None:
        self._connection.execute("DELETE FROM Dict WHERE key = CAST(? AS BLOB)", (key,))

    def __iter__(self) -> Iterator[bytes]:
        return iter([key for (key,) in self._connection.execute("SELECT key FROM Dict")])

    def __len__(self) -> int:
        return int(self._connection.execute("SELECT COUNT(*) FROM Dict").fetchone()[0])

    def close(self) -> None:
        self._connection.close()


def dbm_open(base: str, dialect: str) -> Any:
    if dialect == "sqlite3" and sys.version_info < (3, 13):
        return SqliteDbm(base)
    return importlib.import_module(f"dbm.{dialect}").open(base, "c")


def errbot_open(folder: Path, namespace: str, dialect: str) -> Any:
    """Open a shelf as Errbot's ShelfStorage does; `dialect` is the one that the bot's Python would have chosen."""
    base = os.path.join(folder, f"{namespace}.db")
    folder.mkdir(exist_ok=True)
    if dialect == "sqlite3" and sys.version_info < (3, 13):
        return shelve.Shelf(SqliteDbm(base), protocol=2)
    dbm_open(base, dialect).close()
    return shelve.DbfilenameShelf(base, protocol=2)


def errbot_writes(folder: Path, dialect: str, namespace: str = "core", /, **values: Any) -> None:
    with closing(errbot_open(folder, namespace, dialect)) as shelf:
        shelf.update(values or VALUES)


def errbot_reads(folder: Path, dialect: str, namespace: str = "core") -> dict[str, Any]:
    with closing(errbot_open(folder, namespace, dialect)) as shelf:
        return dict(shelf)


def connect(folder: Path) -> hutch.Store:
    return hutch.connect({"STORAGE": "Shelf", "STORAGE_CONFIG": {"basedir": str(folder)}})


def files(folder: Path) -> set[str]:
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}


def data_file(folder: Path, dialect: str, namespace: str = "core") -> Path:
    """Return the file that holds the values; its name differs between ndbm libraries."""
    suffixes = {"ndbm": (".db", ".pag"), "dumb": (".dat",)}.get(dialect, ("",))
    return next(file for suffix in suffixes if (file := folder / f"{namespace}.db{suffix}").exists())


def python(
    code: str, *arguments: object, executable: str = sys.executable, packages: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run `code`, with this Python's packages unless the other one has a different version and its own packages."""
    path = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))} if packages else {}
    return subprocess.run(
        [executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, **path},
    )


def succeeded(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode == 0, result.stderr
    return result.stdout


def lacking(what: str) -> None:
    """Skip visibly on a laptop, fail in CI."""
    if os.environ.get("CI"):
        pytest.fail(what)
    pytest.skip(what)


# --- a bot moves in, and back ---


def test_what_errbot_wrote_is_read_in_place_and_what_hutch_writes_errbot_reads(tmp_path: Path, dialect: str) -> None:
    errbot_writes(tmp_path, dialect)
    before = files(tmp_path)
    with connect(tmp_path) as store:
        assert store.namespaces() == ["core"]
        with store.open("core") as core:
            assert dict(core) == VALUES
            assert len(core) == len(VALUES)
            core["new"] = [1]
            core.update(big="w" * 200_000, plain=None)
            del core["sets and dates"]
    expected = {**VALUES, "new": [1], "big": "w" * 200_000, "plain": None}
    del expected["sets and dates"]
    assert errbot_reads(tmp_path, dialect) == expected
    assert {name for name in files(tmp_path) if not name.startswith(".hutch-shelf")} <= before | {"core.db.bak"}


def test_going_back_and_forth_many_times_loses_nothing(tmp_path: Path, dialect: str) -> None:
    expected: dict[str, Any] = {}
    for turn in range(6):
        written = {f"k{turn}-{n}": "x" * (n * 700 + turn) for n in range(8)} | {"same": turn}
        errbot_writes(tmp_path, dialect, **written)
        with connect(tmp_path) as store, store.open("core") as core:
            expected |= written
            assert dict(core) == expected
            for n in range(0, 8, 2):
                core[f"k{turn}-{n}"] = expected[f"k{turn}-{n}"] = ["y" * (900 * turn)]
            del core[f"k{turn}-1"], expected[f"k{turn}-1"]
        assert errbot_reads(tmp_path, dialect) == expected


NEW_NAMESPACE = """
import sys
for blocked in sys.argv[2:]:
    sys.modules[blocked] = None
import dbm, os, shelve, hutch
folder = sys.argv[1]
with hutch.connect("shelf://" + folder) as store, store.open("by hutch") as ns:
    ns["k"] = {"v": 1}
with shelve.DbfilenameShelf(os.path.join(folder, "by shelve.db"), protocol=2) as shelf:
    shelf["k"] = {"v": 1}
with shelve.DbfilenameShelf(os.path.join(folder, "by hutch.db"), protocol=2) as shelf:
    assert dict(shelf) == {"k": {"v": 1}}
with hutch.connect("shelf://" + folder) as store:
    assert store.namespaces() == ["by hutch", "by shelve"]
    with store.open("by shelve") as ns:
        assert dict(ns) == {"k": {"v": 1}}
print(*(dbm.whichdb(os.path.join(folder, name)) for name in ("by hutch.db", "by shelve.db")))
"""


@pytest.mark.parametrize("blocked", [[], ["_gdbm"], ["_gdbm", "_dbm"], ["_gdbm", "_dbm", "_sqlite3"]], ids=str)
def test_a_new_namespace_has_the_dialect_that_shelve_would_choose(tmp_path: Path, blocked: list[str]) -> None:
    by_hutch, by_shelve = succeeded(python(NEW_NAMESPACE, tmp_path, *blocked)).split()
    assert by_hutch == by_shelve


REAL_ERRBOT = """
import sys
from types import SimpleNamespace
from errbot.storage.shelf import ShelfStoragePlugin
plugin = ShelfStoragePlugin(SimpleNamespace(BOT_DATA_DIR=sys.argv[1], STORAGE_CONFIG={}))
storage = plugin.open("core")
WORK
storage.close()
"""


def with_errbot(work: str) -> str:
    return REAL_ERRBOT.replace("WORK", work)


def errbot_python() -> str:
    """Return a Python that has Errbot: this one, that of `errbot` on the PATH, or the one in HUTCH_ERRBOT_PYTHON."""
    named = os.environ.get("HUTCH_ERRBOT_PYTHON")
    if named:
        return named
    if importlib.util.find_spec("errbot"):
        return sys.executable
    command = shutil.which("errbot")
    if command is not None:
        beside = Path(command).resolve().with_name("python")
        if beside.exists():
            return str(beside)
    lacking("no Python with Errbot was found; name one in HUTCH_ERRBOT_PYTHON to run this test")
    raise AssertionError


def test_the_real_errbot_reads_what_hutch_wrote_and_the_other_way_round(tmp_path: Path) -> None:
    if ASKED:
        pytest.skip("this Python writes dialects that Errbot's may not have")
    executable = errbot_python()
    code = with_errbot("storage.set('a', {1, 2}); storage.set('b', 1)")
    succeeded(python(code, tmp_path, executable=executable, packages=False))
    with connect(tmp_path) as store, store.open("core") as core:
        assert dict(core) == {"a": {1, 2}, "b": 1}
        core["a"] = {"night": datetime(2024, 10, 27, 2, 30, fold=1)}
        core.update(b=["x" * 3000], c=None)
    work = "print(sorted(storage.keys()), storage.get('a')['night'].fold, len(storage.get('b')[0]), storage.get('c'))"
    message = succeeded(python(with_errbot(work), tmp_path, executable=executable, packages=False))
    assert message == "['a', 'b', 'c'] 1 3000 None\n"


def test_what_is_written_is_a_pickle_of_protocol_2(tmp_path: Path, dialect: str) -> None:
    dbm_open(str(tmp_path / "core.db"), dialect).close()
    with connect(tmp_path) as store, store.open("core") as core:
        core["k"] = {"a": 1}
    with closing(dbm_open(str(tmp_path / "core.db"), dialect)) as database:
        assert database[b"k"] == pickle.dumps({"a": 1}, 2)


def test_a_namespace_in_errbot_3_s_place_is_listed_and_moved(tmp_path: Path) -> None:
    old = tmp_path / "plugins"
    old.mkdir()
    # One file, as Errbot asks for; so only the dialects that have one.
    with closing(SqliteDbm(str(old / "core.db"))) as database:
        database[b"k"] = pickle.dumps("old", 2)
    with connect(tmp_path) as store:
        assert store.namespaces() == ["core"]
        assert (old / "core.db").exists()
        with store.open("core") as core:
            assert dict(core) == {"k": "old"}
    assert (tmp_path / "core.db").exists()
    assert not (old / "core.db").exists()


def test_of_an_old_and_a_new_file_the_new_one_is_used_and_the_old_one_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    errbot_writes(tmp_path, "dumb", k="new")
    (tmp_path / "plugins").mkdir()
    with closing(SqliteDbm(str(tmp_path / "plugins" / "core.db"))) as database:
        database[b"k"] = pickle.dumps("old", 2)
    with caplog.at_level(logging.WARNING), connect(tmp_path) as store, store.open("core") as core:
        assert dict(core) == {"k": "new"}
    assert "core.db" in caplog.text
    assert (tmp_path / "plugins" / "core.db").exists()


# --- names ---


HOSTILE = [
    "../../etc/passwd",
    "/etc/passwd",
    "a/b",
    "..",
    ".",
    "a:b",
    "a\\b",
    "CON",
    "x" * 255,
    "é" * 127,
    " ",
    "a\nb",
    "%2e",
]


def test_hostile_names_stay_inside_the_folder_and_come_back_as_they_are(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    with connect(folder) as store:
        for number, name in enumerate(HOSTILE):
            with store.open(name) as ns:
                ns["number"] = number
        assert store.namespaces() == sorted(HOSTILE)
    with connect(folder) as store:
        for number, name in enumerate(HOSTILE):
            with store.open(name) as ns:
                assert dict(ns) == {"number": number}
        for name in HOSTILE:
            store.drop(name)
            assert name not in store.namespaces()
    assert [entry.name for entry in tmp_path.iterdir()] == ["data"]
    assert all(name.endswith(".lock") for name in files(folder))


def test_every_name_that_errbot_could_write_is_the_plain_name_of_its_file(tmp_path: Path, dialect: str) -> None:
    names = ["core", "My Plugin", "Über", "a.b", ".hidden", "x.db.y", "n" * 240]
    if os.name != "nt":
        names += ["a:b", "CON", 'quoted "name"', "what?"]
    for name in names:
        errbot_writes(tmp_path, dialect, name, k=name)
    with connect(tmp_path) as store:
        assert store.namespaces() == sorted(names)
        for name in names:
            with store.open(name) as ns:
                assert dict(ns) == {"k": name}
                ns["k"] = name.upper()
    assert {name: errbot_reads(tmp_path, dialect, name) for name in names} == {
        name: {"k": name.upper()} for name in names
    }


def test_namespaces_whose_file_names_overlap_do_not_see_each_other(tmp_path: Path) -> None:
    names = ["a", "a.db", "a.db.db", "a.db.dat", "a.db.dir", "a/b", "a%2Fb", ".hutch-shelf", "plugins"]
    with connect(tmp_path) as store:
        for name in names:
            with store.open(name) as ns:
                ns["name"] = name
        assert store.namespaces() == sorted(names)
        store.drop("a")
        for name in names[1:]:
            with store.open(name) as ns:
                assert dict(ns) == {"name": name}


@pytest.mark.skipif("gnu" not in DIALECTS or "ndbm" not in DIALECTS, reason="this Python lacks gnu or ndbm dbm")
def test_one_file_name_can_be_that_of_two_namespaces_and_its_first_bytes_tell_which(tmp_path: Path) -> None:
    errbot_writes(tmp_path, "gnu", "a.db", k="a.db")
    assert (tmp_path / "a.db.db").exists()
    with connect(tmp_path) as store:
        assert store.namespaces() == ["a.db"]
        with store.open("a") as ns:
            assert len(ns) == 0
    (tmp_path / "a.db.db").unlink()
    errbot_writes(tmp_path, "ndbm", "a", k="a")
    with connect(tmp_path) as store:
        assert store.namespaces() == ["a"]
        with store.open("a.db") as ns:
            assert len(ns) == 0
            ns["k"] = "beside it"
        with store.open("a") as ns:
            assert dict(ns) == {"k": "a"}
        assert store.namespaces() == ["a", "a.db"]


def test_files_of_other_programs_are_not_listed_and_not_touched(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "other.db")) as connection:
        connection.execute("CREATE TABLE Other (x)")
        connection.commit()
    (tmp_path / "notes.db").write_text("not a database")
    (tmp_path / "readme.txt").write_text("hello")
    (tmp_path / "folder.db").mkdir()
    (tmp_path / ".db").write_bytes(b"SQLite format 3\0")
    errbot_writes(tmp_path, "dumb", "core", k=1)
    before = {file: file.read_bytes() for file in tmp_path.iterdir() if file.is_file()}
    with connect(tmp_path) as store:
        assert store.namespaces() == ["core"]
        for name, error in (
            ("other", hutch.CorruptValueError),
            ("notes", hutch.CorruptValueError),
            ("folder", hutch.StorageUnavailableError),
        ):
            with pytest.raises(error, match=name):
                store.open(name)
        with store.open("core") as core:
            assert dict(core) == {"k": 1}
    assert {file: file.read_bytes() for file in tmp_path.iterdir() if file.is_file()} == before


def test_opening_reading_and_listing_create_nothing(tmp_path: Path, dialect: str) -> None:
    with connect(tmp_path / "missing") as store:
        assert store.namespaces() == []
        with store.open("core") as core:
            assert (len(core), list(core), core.get("k"), core.pop("k", None), core.remove_many(["k"])) == (
                0,
                [],
                None,
                None,
                0,
            )
            core.clear()
            core.update({})
        store.drop("core")
    assert not (tmp_path / "missing").exists()
    errbot_writes(tmp_path / "there", dialect, k=1)
    before = files(tmp_path)
    with connect(tmp_path / "there") as store:
        assert store.namespaces() == ["core"]
    assert files(tmp_path) == before


def test_namespaces_lists_those_that_hold_data(tmp_path: Path, dialect: str) -> None:
    for name in ("empty", "full"):
        dbm_open(str(tmp_path / f"{name}.db"), dialect).close()
    with connect(tmp_path) as store:
        assert store.namespaces() == []
        with store.open("full") as ns:
            ns["k"] = 1
            assert store.namespaces() == ["full"]
        assert store.namespaces() == ["full"]
        with store.open("full") as ns:
            ns.clear()
            assert store.namespaces() == []
        assert store.namespaces() == []


def test_drop_removes_the_files_unless_another_store_of_the_process_has_them_open(tmp_path: Path, dialect: str) -> None:
    errbot_writes(tmp_path, dialect)
    with connect(tmp_path) as one, connect(tmp_path) as two:
        with two.open("core") as core:
            one.drop("core")
            assert len(core) == 0
            core["k"] = "again"
        assert errbot_reads(tmp_path, dialect) == {"k": "again"}
        one.drop("core")
        assert {name for name in files(tmp_path) if not name.endswith(".lock")} == set()
        with two.open("core") as core:
            assert len(core) == 0


# --- one process at a time ---


HOLD = """
import sys, hutch
with hutch.connect("shelf://" + sys.argv[1]) as store, store.open("core") as core:
    core["from"] = "the holder"
    print("open", flush=True)
    sys.stdin.read()
"""


def holder(folder: Path, code: str = HOLD, *arguments: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(folder), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "open\n"
    return process


def end(process: subprocess.Popen[str], kill: bool = False) -> None:
    if kill:
        process.kill()
    process.communicate(timeout=60)


def test_the_error_of_a_second_process_names_the_holder_and_it_can_open_later(tmp_path: Path, dialect: str) -> None:
    errbot_writes(tmp_path, dialect, k=1)
    process = holder(tmp_path)
    try:
        with connect(tmp_path) as store:
            assert store.namespaces() == ["core"]
            with pytest.raises(hutch.StoreLockedError, match=rf"pid {process.pid}\b.*\.lock"):
                store.open("core")
            with pytest.raises(hutch.StoreLockedError):
                store.drop("core")
            with store.open("another") as ns:
                ns["k"] = "namespaces are locked one by one"
            end(process)
            with store.open("core") as core:
                assert dict(core) == {"k": 1, "from": "the holder"}
    finally:
        end(process, kill=True)


@needs_kill
def test_the_lock_of_a_killed_process_does_not_block(tmp_path: Path) -> None:
    process = holder(tmp_path)
    end(process, kill=True)
    with connect(tmp_path) as store, store.open("core") as core:
        assert dict(core) == {"from": "the holder"}


def test_a_handle_on_a_namespace_that_another_process_made_since_is_refused_not_wrong(tmp_path: Path) -> None:
    with connect(tmp_path) as store, store.open("core") as core:
        assert len(core) == 0
        process = holder(tmp_path)
        try:
            for use in (lambda: core.get("from"), lambda: core.update(k=1), lambda: len(core)):
                with pytest.raises(hutch.StoreLockedError):
                    use()
        finally:
            end(process)
        assert dict(core) == {"from": "the holder"}
        core["k"] = 1
        assert len(core) == 2


@pytest.mark.skipif("gnu" not in DIALECTS, reason="this Python lacks gnu dbm, the only dialect that Errbot locks")
def test_while_errbot_has_a_gnu_file_open_hutch_is_refused_and_the_other_way_round(tmp_path: Path) -> None:
    errbot_writes(tmp_path, "gnu", k=1)
    bot = """
import os, shelve, sys
with shelve.DbfilenameShelf(os.path.join(sys.argv[1], "core.db"), protocol=2) as shelf:
    print("open", flush=True)
    sys.stdin.read()
"""
    process = holder(tmp_path, bot)
    try:
        with connect(tmp_path) as store, pytest.raises(hutch.StoreLockedError, match="Errbot"):
            store.open("core")
    finally:
        end(process)
    with connect(tmp_path) as store, store.open("core") as core:
        core["k"] = 2
        with pytest.raises(dbm.error):
            errbot_open(tmp_path, "core", "gnu")
        core["k"] = 3
    assert errbot_reads(tmp_path, "gnu") == {"k": 3}


def test_two_stores_of_one_process_share_the_open_files(tmp_path: Path, dialect: str) -> None:
    errbot_writes(tmp_path, dialect, k=1)
    link = tmp_path / "link"
    link.symlink_to(tmp_path)
    with connect(tmp_path) as one, connect(link) as two, one.open("core") as first:
        with two.open("core") as second:
            second["k"] = 2
            assert first["k"] == 2
            # One key is one key to both: what one holds the other waits for.
            waiting = threading.Thread(target=second.modify, args=("k", lambda v: v + 1))
            with first.mutable("k"):
                waiting.start()
                waiting.join(0.1)
                assert waiting.is_alive()
            waiting.join(60)
            assert first["k"] == 3
        first["k"] = 3
    assert errbot_reads(tmp_path, dialect) == {"k": 3}


@pytest.mark.usefixtures("unmeasured")
@needs_fork
def test_a_forked_child_is_refused_while_the_parent_has_it_open_and_harms_nothing(tmp_path: Path, dialect: str) -> None:
    errbot_writes(tmp_path, dialect, k=1)
    with connect(tmp_path) as store, store.open("core") as core:
        core["k"] = 2
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            message = "nothing"
            try:
                core["k"] = "from the child"
            except hutch.StoreLockedError:
                message = "locked"
            except BaseException as error:
                message = repr(error)
            os.write(writer, message.encode())
            os._exit(0)
        os.close(writer)
        os.waitpid(child, 0)
        assert os.read(reader, 1000) == b"locked"
        os.close(reader)
        process = python(HOLD, tmp_path)
        assert "StoreLockedError" in process.stderr  # the child's end did not let go of the parent's lock
        core["k"] = 3
        assert dict(core) == {"k": 3}
    assert errbot_reads(tmp_path, dialect) == {"k": 3}


@pytest.mark.usefixtures("unmeasured")
@needs_fork
def test_a_forked_child_opens_it_anew_once_the_parent_has_closed_it(tmp_path: Path, dialect: str) -> None:
    errbot_writes(tmp_path, dialect, k=1)
    store = connect(tmp_path)
    core = store.open("core")
    core["k"] = 2
    go_reader, go_writer = os.pipe()
    child = os.fork()
    if not child:
        code = 1
        try:
            os.read(go_reader, 1)
            assert core["k"] == 2
            core["k"] = "from the child"
            core.close()
            store.close()
            code = 0
        finally:
            os._exit(code)
    core.close()
    store.close()
    os.write(go_writer, b"x")
    _, status = os.waitpid(child, 0)
    os.close(go_reader)
    os.close(go_writer)
    assert os.waitstatus_to_exitcode(status) == 0
    assert errbot_reads(tmp_path, dialect) == {"k": "from the child"}


# --- killed, full, damaged ---


WRITE = """
import os, sys, hutch
with hutch.connect("shelf://" + sys.argv[1]) as store, store.open("core") as core:
    print("open", flush=True)
    turn = core.get("turn", 0)
    while True:
        turn += 1
        core.update(turn=turn, twin=turn)
        core[f"k{turn % 20}"] = [turn] * (turn * 37 % 400)
        core.pop(f"k{(turn + 7) % 20}", None)
        os.write(1, b"%d\\n" % turn)
"""


@needs_kill
def test_a_writer_killed_at_any_moment_loses_nothing_that_returned(tmp_path: Path, dialect: str) -> None:
    dbm_open(str(tmp_path / "core.db"), dialect).close()
    acknowledged = 0
    for round_ in range(12):
        process = holder(tmp_path, WRITE)
        time.sleep(0.01 + 0.013 * round_)
        process.kill()
        message, _ = process.communicate(timeout=60)
        numbers = [int(line) for line in message.splitlines(keepends=True) if line.endswith("\n")]
        acknowledged = numbers[-1] if numbers else acknowledged
        # What the library itself reads, with no hutch to put anything right.
        left = errbot_reads(tmp_path, dialect) if dialect != "sqlite3" else None
        with connect(tmp_path) as store, store.open("core") as core:
            items = dict(core)
        assert left is None or left == items
        turn = items.get("turn", 0)
        assert turn in (acknowledged, acknowledged + 1)
        assert items.get("twin", 0) == turn, "half of a batch"
        acknowledged = turn
        for key, value in items.items():
            if key.startswith("k") and value:
                assert len(value) == value[0] * 37 % 400
                assert set(value) == {value[0]}


FULL = """
import resource, signal, sys, hutch
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with hutch.connect("shelf://" + sys.argv[1]) as store, store.open("core") as core:
    limit = int(sys.argv[2])
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    refused = 0
    for write in (
        lambda: core.__setitem__("k", "y" * 4_000_000),
        lambda: core.__setitem__("new", "y" * 4_000_000),
        lambda: core.update(k=1, more="z" * 4_000_000),
    ):
        try:
            write()
        except hutch.StorageFullError as error:
            assert isinstance(error, OSError) and "core.db" in str(error), error
            refused += 1
        assert dict(core) == {"k": "old", "other": ["x" * 5000]}, "changed"
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    core["small"] = 1
    print(refused)
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no limit of file size to stand in for a full disk")
def test_without_room_for_a_write_what_was_there_stays_and_small_writes_go_on(tmp_path: Path, dialect: str) -> None:
    errbot_writes(tmp_path, dialect, k="old", other=["x" * 5000])
    assert succeeded(python(FULL, tmp_path, 1_000_000)) == "3\n"
    assert errbot_reads(tmp_path, dialect) == {"k": "old", "other": ["x" * 5000], "small": 1}
    assert not [name for name in files(tmp_path) if ".new" in name]


@pytest.mark.parametrize("cut", [0, 3, 20, 0.3, 0.6])
def test_a_truncated_file_is_an_error_that_names_it_and_other_namespaces_work(
    tmp_path: Path, dialect: str, cut: float
) -> None:
    errbot_writes(tmp_path, dialect, **{f"k{n}": "x" * 1000 for n in range(100)})
    errbot_writes(tmp_path, dialect, "other", k=1)
    file = data_file(tmp_path, dialect)
    size = file.stat().st_size
    with file.open("r+b") as opened:
        opened.truncate(int(cut if cut in (0, 3, 20) else cut * size) + 1 if cut else 0)
    damaged = file.read_bytes()
    with connect(tmp_path) as store:
        # Where the library can tell on opening, it does; of gnu, that is its header and directory.
        with pytest.raises(hutch.CorruptValueError) as raised, store.open("core") as core:
            core.get_many(list(core))
        assert str(tmp_path / "core.db") in str(raised.value)
        with store.open("other") as other:
            assert dict(other) == {"k": 1}
            other["k"] = 2
        assert "other" in store.namespaces()
    assert file.read_bytes() == damaged


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[:-5], "line 3 of"),
        (lambda text: text.replace("512", "-512"), "line 2 of"),
        (lambda text: "'k', __import__('os').abort()\n" + text, "line 1 of"),
        (lambda text: "'k'," + "(" * 5000 + "\n" + text, "line 1 of"),
        (lambda text: "hello" + text, "not an index"),
        (None, "core.db.dir, the other half of its database"),
    ],
    ids=["truncated", "negative", "code", "deep", "foreign", "missing"],
)
def test_a_damaged_index_of_dumb_is_an_error_that_says_which_line(tmp_path: Path, damage: Any, message: str) -> None:
    errbot_writes(tmp_path, "dumb", a=1, b=2, c=3)
    index = tmp_path / "core.db.dir"
    if damage is None:
        index.unlink()
    else:
        index.write_text(damage(index.read_text(encoding="latin-1")), encoding="latin-1")
    with connect(tmp_path) as store, pytest.raises(hutch.CorruptValueError, match=message):
        store.open("core")


def test_dumb_files_do_not_grow_by_writing_the_same_keys_over_and_over(tmp_path: Path) -> None:
    dbm_open(str(tmp_path / "core.db"), "dumb").close()
    with connect(tmp_path) as store, store.open("core") as core:
        for n in range(3000):
            core[f"k{n % 10}"] = "x" * (n * 37 % 2000)
        assert (tmp_path / "core.db.dat").stat().st_size < 100_000
        assert (tmp_path / "core.db.dir").stat().st_size < 100_000
    assert errbot_reads(tmp_path, "dumb") == {f"k{n % 10}": "x" * (n * 37 % 2000) for n in range(2990, 3000)}


class Refused:
    """Can be pickled but not unpickled, like Errbot's identifiers outside a running bot."""

    def __reduce__(self) -> tuple[Any, ...]:
        return int, ("secret text",)


def test_what_cannot_be_unpickled_is_an_error_with_plugin_namespace_and_key_and_is_listed_all_the_same(
    tmp_path: Path, dialect: str
) -> None:
    with closing(dbm_open(str(tmp_path / "core.db"), dialect)) as database:
        database[b"refused"] = pickle.dumps(Refused(), 2)
        database[b"class"] = b"cnosuchmodule\nNoSuchClass\n."
        database[b"bytes"] = b"no pickle"
        database[b"good"] = pickle.dumps(1, 2)
    with connect(tmp_path) as store, store.open("core") as core:
        assert (len(core), sorted(core), "refused" in core) == (4, ["bytes", "class", "good", "refused"], True)
        assert core["good"] == 1
        for key in ("refused", "class", "bytes"):
            with pytest.raises(hutch.CorruptValueError, match=f"'{key}'.*'core'.*shelf") as raised:
                core[key]
            assert "secret" not in str(raised.value)
        core["bytes"] = 2
        del core["class"], core["refused"]
        assert dict(core) == {"good": 1, "bytes": 2}


def test_a_value_that_cannot_be_pickled_is_refused_and_nothing_changes(tmp_path: Path, dialect: str) -> None:
    errbot_writes(tmp_path, dialect, k=1)
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with connect(tmp_path) as store, store.open("core") as core:
        bad_values: tuple[Any, ...] = (lambda: None, threading.Lock(), sys, deep)
        for bad in bad_values:
            with pytest.raises(hutch.ValueTypeError, match=type(bad).__name__):
                core["k"] = bad
            with pytest.raises(hutch.ValueTypeError, match=type(bad).__name__):
                core.update(k=2, other=bad)
        assert dict(core) == {"k": 1}
    while deep:
        deep = deep[0]


def test_keys_that_errbot_stored_and_hutch_would_not_can_be_read(tmp_path: Path, dialect: str) -> None:
    long = "x" * 1500
    errbot_writes(tmp_path, dialect, **{long: "long", "k": 1})
    with connect(tmp_path) as store, store.open("core") as core:
        assert dict(core) == {long: "long", "k": 1}
        with pytest.raises(hutch.KeyLimitError):
            core[long] = 2
        with pytest.raises(hutch.KeyLimitError):
            core[long + "x"]


def test_a_key_that_is_not_utf8_is_an_error_when_listing_and_nothing_else_suffers(tmp_path: Path, dialect: str) -> None:
    with closing(dbm_open(str(tmp_path / "core.db"), dialect)) as database:
        database[b"\xff\xfe"] = pickle.dumps(1, 2)
        database[b"good"] = pickle.dumps(2, 2)
    with connect(tmp_path) as store, store.open("core") as core:
        with pytest.raises(hutch.CorruptValueError, match="not UTF-8"):
            list(core)
        assert (core["good"], len(core)) == (2, 2)
        core["good"] = 3
        assert core["good"] == 3


MISSING_DIALECT = """
import sys
for blocked in ("_gdbm", "_dbm"):
    sys.modules[blocked] = None
import hutch
with hutch.connect("shelf://" + sys.argv[1]) as store:
    print(*store.namespaces())
    for name in ("by gnu", "by ndbm"):
        try:
            store.open(name)
        except hutch.StorageUnavailableError as error:
            print(error)
    with store.open("new") as ns:
        ns["k"] = 1
"""


def test_a_dialect_that_this_python_lacks_is_named_with_its_file_and_what_to_install(tmp_path: Path) -> None:
    gnu, ndbm = tmp_path / "by gnu.db", tmp_path / "by ndbm.db.db"
    gnu.write_bytes((0x13579ACF).to_bytes(4, sys.byteorder) + b"\0" * 100)
    ndbm.write_bytes(b"\0" * 12 + (0x00061561).to_bytes(4, sys.byteorder) + b"\0" * 100)
    before = gnu.read_bytes(), ndbm.read_bytes()
    listed, message_gnu, message_ndbm = succeeded(python(MISSING_DIALECT, tmp_path)).splitlines()
    assert listed == "by gnu by ndbm"
    assert all(part in message_gnu for part in (str(gnu), "gnu", "python3-gdbm"))
    assert all(part in message_ndbm for part in (str(tmp_path / "by ndbm.db"), "ndbm", "_dbm"))
    assert (gnu.read_bytes(), ndbm.read_bytes()) == before


def test_a_folder_that_cannot_be_one_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with connect(tmp_path / "file") as store:
        for use in (store.namespaces, lambda: store.open("core"), lambda: store.drop("core")):
            with pytest.raises(hutch.StorageUnavailableError, match="file"):
                use()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="nothing is forbidden to this user")
def test_without_permission_it_is_unavailable_and_names_the_file(tmp_path: Path, dialect: str) -> None:
    errbot_writes(tmp_path, dialect, k=1)
    file = data_file(tmp_path, dialect)
    file.chmod(0)
    try:
        with connect(tmp_path) as store, pytest.raises(hutch.StorageUnavailableError, match="core"):
            store.open("core")
    finally:
        file.chmod(0o600)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
def test_a_private_file_stays_private(tmp_path: Path, dialect: str) -> None:
    errbot_writes(tmp_path, dialect, k=1)
    private = [file for file in tmp_path.iterdir() if file.is_file()]
    for file in private:
        file.chmod(0o600)
    with connect(tmp_path) as store, store.open("core") as core:
        core.update(a=1, b=2)
        del core["a"]
    assert {oct(file.stat().st_mode & 0o777) for file in private if file.exists()} == {"0o600"}


# --- read as they are, for an import ---


def left_by_errbot(folder: Path, dialect: str) -> dict[tuple[str, str], Any]:
    """Make shelves as bots left them: closed, killed while open, of Errbot 3, empty; and files that are not shelves."""
    items = {"plain": VALUES["plain"], "Ü": None}
    places = {"core": folder}
    if dialect in ("gnu", "sqlite3"):  # those of two files Errbot never moved from there
        places["old"] = folder / "plugins"
    for name, base in places.items():
        with closing(errbot_open(base, name, dialect)) as shelf:
            shelf.update(items)
    errbot_open(folder, "empty", dialect).close()
    live = errbot_open(folder / "killed", "killed", dialect)
    live["k"] = 1
    if dialect == "gnu":
        live.sync()
    elif dialect != "sqlite3":  # which alone leaves more than its own files behind
        live.close()
    for file in (folder / "killed").iterdir():
        shutil.copyfile(file, folder / file.name)
    live.close()
    shutil.rmtree(folder / "killed")
    with closing(sqlite3.connect(folder / "karma.db")) as other:
        other.execute("CREATE TABLE karma (name)")
    (folder / "errbot.log").write_text("")
    wanted: dict[tuple[str, str], Any] = {(name, key): items[key] for name in places for key in items}
    return {**wanted, ("killed", "k"): 1}


def tree(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    return {
        str(file.relative_to(folder)): (
            file.stat().st_mtime_ns,
            file.stat().st_mode,
            file.read_bytes() if file.is_file() else b"",
        )
        for file in (folder, *folder.rglob("*"))
    }


def pickles_in(folder: Path) -> dict[tuple[str, str], Any]:
    with hutch.load_plugin("shelf", {"basedir": str(folder)}) as shelves:
        return {(namespace, key): pickle.loads(data) for namespace, key, data in shelves.pickles()}


def test_pickles_are_read_and_nothing_in_the_folder_is_changed_moved_or_made(tmp_path: Path, dialect: str) -> None:
    wanted = left_by_errbot(tmp_path, dialect)
    before = tree(tmp_path)
    assert pickles_in(tmp_path) == wanted
    assert tree(tmp_path) == before


def test_pickles_are_read_from_a_disk_that_is_read_only(small_disk: Path, dialect: str) -> None:
    wanted = left_by_errbot(small_disk, dialect)
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    assert pickles_in(small_disk) == wanted


def test_any_damaged_schema_of_sqlite_is_a_damaged_file(tmp_path: Path) -> None:
    with closing(errbot_open(tmp_path, "core", "sqlite3")) as shelf:
        shelf["k"] = 1
    file = tmp_path / "core.db"
    whole = file.read_bytes()
    schema = whole.index(b"CREATE TABLE")
    for place in range(schema, schema + 60):
        file.write_bytes(whole[:place] + b"\xea" + whole[place + 1 :])  # sqlite3 may quote it, and that is no UTF-8
        with contextlib.suppress(hutch.CorruptValueError):
            pickles_in(tmp_path)
        with contextlib.suppress(hutch.CorruptValueError), connect(tmp_path) as store:
            store.open("core").close()


@pytest.mark.parametrize("row", ["(NULL, x'00')", "(x'6b', NULL)"])
def test_a_row_of_sqlite_without_key_or_value_is_a_damaged_file(tmp_path: Path, row: str) -> None:
    with closing(sqlite3.connect(tmp_path / "core.db")) as file, file:
        file.execute("CREATE TABLE Dict (key BLOB, value BLOB)")
        file.execute(f"INSERT INTO Dict VALUES {row}")
    with pytest.raises(hutch.CorruptValueError, match=r"core\.db is damaged"):
        pickles_in(tmp_path)
    with connect(tmp_path) as store, store.open("core") as core, pytest.raises(hutch.CorruptValueError):
        dict(core)


def test_pickles_of_a_namespace_that_another_process_has_open_are_not_read(tmp_path: Path, dialect: str) -> None:
    with closing(errbot_open(tmp_path, "core", dialect)) as shelf:
        shelf["k"] = 1
    with connect(tmp_path) as store, store.open("core"):
        message = python(
            "import sys, hutch; list(hutch.load_plugin('shelf', {'basedir': sys.argv[1]}).pickles())", str(tmp_path)
        )
        assert f"StoreLockedError: namespace 'core' in {tmp_path} is open in another process, pid {os.getpid()}" in (
            message.stderr
        )
    assert pickles_in(tmp_path) == {("core", "k"): 1}


def test_pickles_can_be_read_by_two_at_a_time_and_keep_out_who_would_write(tmp_path: Path) -> None:
    with connect(tmp_path) as store, store.open("core") as core:
        core["k"] = 1
    shelves = hutch.load_plugin("shelf", {"basedir": str(tmp_path)})
    reading = shelves.pickles()
    assert next(reading)[:2] == ("core", "k")
    assert pickles_in(tmp_path) == {("core", "k"): 1}
    with connect(tmp_path) as store:
        with pytest.raises(hutch.StoreLockedError):
            store.open("core")
        reading.close()
        with store.open("core") as core:
            assert core["k"] == 1


def test_what_a_stopped_reader_copied_is_removed_though_its_frame_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a traceback keeps it. The sqlite3 dialect of Python 3.13 is read from a copy."""
    copies = tmp_path / "copies"
    copies.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(copies))
    with connect(tmp_path / "shelves") as store, store.open("core") as core:
        core.update(a=1, b=2)
    shelves: Any = hutch.load_plugin("shelf", {"basedir": str(tmp_path / "shelves")})
    reading = shelves.pickles()
    next(reading)
    frame = reading.gi_frame
    reading.close()
    assert not list(copies.iterdir())
    del frame


# --- the dialects that this Python lacks ---


def other_python(dialects: list[str]) -> str | None:
    """Return a Python of this version, which can use this one's packages, with those dialects; skip if not found."""
    modules = {"gnu": "_gdbm", "ndbm": "_dbm"}
    names = ["python3", f"python3.{sys.version_info.minor}"]
    found = [shutil.which(name, path=folder) for folder in (*os.get_exec_path(), "/usr/bin") for name in names]
    have_dialects = False
    for candidate in dict.fromkeys(filter(None, found)):
        imports = ", ".join(modules[name] for name in dialects)
        if python(f"import {imports}", executable=candidate).returncode == 0:
            have_dialects = True
            if (
                python("import pytest, hutch.encoded, hutch.store, pytest_timeout", executable=candidate).returncode
                == 0
            ):
                return candidate
    if have_dialects:
        pytest.skip(
            f"the Python with {' and '.join(dialects)} dbm is of another version; tests run with that one use it"
        )
    lacking(f"no Python with {' and '.join(dialects)} dbm was found; on Debian, apt install python3 python3-gdbm")
    return None


@pytest.mark.skipif(bool(ASKED), reason="this is the run within the run")
@pytest.mark.timeout(600)
def test_the_dialects_that_this_python_lacks_keep_every_promise_in_one_that_has_them(tmp_path: Path) -> None:
    missing = [name for name, here in HAS.items() if not here]
    if not missing:
        return  # they all ran above
    executable = other_python(missing)
    assert executable is not None
    result = subprocess.run(
        [
            *(executable, "-m", "pytest", __file__, str(Path(__file__).with_name("test_shelf_deadlines.py"))),
            *("-v", "-p", "no:cacheprovider", f"--basetemp={tmp_path / 'inner'}"),
        ],
        cwd=ROOT,
        env={
            **os.environ,
            "HUTCH_TEST_DIALECTS": ",".join(missing),
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "PYTHONDONTWRITEBYTECODE": "1",
            "HYPOTHESIS_NO_PLUGINS": "1",  # trio has one, whose import needs the ssl of this Python
        },
        capture_output=True,
        text=True,
        timeout=560,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-5000:]
    for name in missing:
        assert result.stdout.count(f"[{name}] PASSED") > 10, f"{name} was not tested:\n{result.stdout[-2000:]}"
