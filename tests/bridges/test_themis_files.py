"""Test import and export of the file of Themis's SQLite store, without Themis.

``themis/runs.sqlite3`` was written by Themis 4.0.2: one run of two cases.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import sqlite3
import tracemalloc
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import hutch
from hutch import transfer
from hutch.bridges.themis.layout import (
    BLOBS,
    RUNS,
    STAGE_CACHE,
    event_key,
    events_prefix,
    run_prefix,
    sequence_of,
    snapshot_key,
    stage_key,
)
from hutch.bridges.themis.sqlite_files import read, write

SAMPLE = Path(__file__).parent / "data" / "themis" / "runs.sqlite3"
RUN = "185a37e9799fcdb6828e24d209510ca044a6fa1f1c53001e56d9d89b18325479"


@pytest.fixture
def store() -> Iterator[hutch.Store]:
    with hutch.connect("memory://") as store:
        yield store


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Return a copy of the sample, to be changed."""
    return Path(shutil.copy(SAMPLE, tmp_path / "runs.sqlite3"))


def changed(file: Path, statement: str, *values: Any) -> Path:
    with closing(sqlite3.connect(file)) as connection, connection:
        assert connection.execute(statement, values).rowcount == 1
    return file


def rows(file: Path, table: str, columns: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(file)) as connection:
        return connection.execute(f"SELECT {columns} FROM {table} ORDER BY 1").fetchall()


def put(store: hutch.Store, namespace: str, key: str, value: Any) -> None:
    with store.open(namespace) as handle:
        handle[key] = value


# --- in ---


def test_the_file_that_themis_wrote_is_read_whole_in_its_order_and_never_changed() -> None:
    before = SAMPLE.read_bytes()
    items = list(read(SAMPLE))
    assert SAMPLE.read_bytes() == before
    assert list(SAMPLE.parent.iterdir()) == [SAMPLE]
    namespaces = [namespace for namespace, _, _ in items]
    assert list(dict.fromkeys(namespaces)) == [RUNS, BLOBS, STAGE_CACHE]
    assert namespaces == sorted(namespaces, key=[RUNS, BLOBS, STAGE_CACHE].index), "those of one come together"

    runs = {key: value for namespace, key, value in items if namespace == RUNS}
    assert runs[snapshot_key(RUN)]["datasets"][0]["cases"][1]["case_id"] == "Zürich 🧀"
    events = [runs[event_key(RUN, number)] for number in range(1, len(runs))]
    assert [event["event_type"] for event in events] == [
        text for _, text in rows(SAMPLE, "run_events", "id, event_type")
    ]
    assert len(events) == 10
    blobs = {key: value for namespace, key, value in items if namespace == BLOBS}
    assert len(blobs) == 2
    for ref, value in blobs.items():
        assert value["media_type"] == "application/json"
        assert ref == f"sha256:{hashlib.sha256(value['payload']).hexdigest()}"
    stages = [value["stage"] for namespace, _, value in items if namespace == STAGE_CACHE]
    assert sorted(stages) == sorted(["generate", "reduce", "parse", "score"] * 2)


def test_reading_again_gives_the_same_so_an_import_can_be_repeated_and_verified(store: hutch.Store) -> None:
    first = transfer.copy_items(read(SAMPLE), store)
    assert (first.namespaces, first.written) == (3, 21)
    assert transfer.copy_items(read(SAMPLE), store).written == 0
    assert transfer.verify_items(read(SAMPLE), store).ok


def test_events_of_interleaved_runs_keep_their_order_and_numbers(file: Path) -> None:
    with closing(sqlite3.connect(file)) as connection, connection:
        for number in range(6):
            event = {"run_id": f"run-{number % 2}", "event_type": "run_started", "n": number}
            connection.execute(
                "INSERT INTO run_events (run_id, event_type, event_json) VALUES (?, 'run_started', ?)",
                (event["run_id"], json.dumps(event)),
            )
    items = {key: value for namespace, key, value in read(file) if namespace == RUNS}
    for run in range(2):
        assert [items[event_key(f"run-{run}", number)]["n"] for number in (1, 2, 3)] == [run, run + 2, run + 4]


def test_one_row_at_a_time_is_held_however_large_the_file(file: Path) -> None:
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.executemany(
            "INSERT INTO run_blobs VALUES (?, 'text/plain', ?)",
            ((f"sha256:{number}", bytes(1_000_000)) for number in range(40)),
        )
    tracemalloc.start()
    try:
        assert sum(1 for _ in read(file)) == 61
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8_000_000


def test_writers_do_not_wait_for_a_paused_reader(file: Path) -> None:
    items = read(file)
    next(items)
    with closing(sqlite3.connect(file, timeout=0)) as connection, connection:
        connection.execute("DELETE FROM run_projections")
    assert sum(1 for _ in items) == 20


@pytest.mark.parametrize(
    ("table", "statement", "values"),
    [
        ("run_events, row 3", "UPDATE run_events SET event_json = '{' WHERE id = 3", ()),
        ("run_events, row 3", "UPDATE run_events SET event_json = '[]' WHERE id = 3", ()),
        ("run_events, row 3", "UPDATE run_events SET run_id = 'other' WHERE id = 3", ()),
        ("run_events, row 3", "UPDATE run_events SET event_json = ? WHERE id = 3", (b"\xff",)),
        ("run_events, row 3", "UPDATE run_events SET run_id = ? WHERE id = 3", (b"\xff",)),
        ("run_events, row -3", "UPDATE run_events SET id = -3, event_json = '' WHERE id = 3", ()),
        ("run_snapshots, row 1", "UPDATE run_snapshots SET run_id = NULL", ()),
        ("run_blobs, row 2", "UPDATE run_blobs SET blob_ref = ? WHERE rowid = 2", (b"\xff",)),
        ("stage_cache, row 5", "UPDATE stage_cache SET cache_key = ? WHERE rowid = 5", (b"\xff",)),
        (
            "stage_cache, row 5",
            "UPDATE stage_cache SET payload_json = CAST(? AS TEXT) WHERE rowid = 5",
            (b'"secret\xff"',),
        ),
        ("run_snapshots, row 1", "UPDATE run_snapshots SET snapshot_json = '' WHERE rowid = 1", ()),
        ("run_blobs, row 2", "UPDATE run_blobs SET payload = 'text' WHERE rowid = 2", ()),
        ("stage_cache, row 5", "UPDATE stage_cache SET payload_json = 'secret' WHERE rowid = 5", ()),
        ("stage_cache, row 5", "UPDATE stage_cache SET payload_json = ? WHERE rowid = 5", ("[" * 100_000,)),
    ],
)
def test_a_row_that_cannot_be_read_is_an_error_that_names_file_table_and_row(
    file: Path, table: str, statement: str, values: tuple[Any, ...]
) -> None:
    changed(file, statement, *values)
    with pytest.raises(hutch.CorruptValueError) as message:
        list(read(file))
    assert f"{str(file)!r}, table {table} cannot be read: " in str(message.value)
    assert "secret" not in str(message.value)


def test_a_file_of_another_kind_is_an_error_that_names_it(tmp_path: Path, file: Path) -> None:
    with pytest.raises(hutch.ConfigError, match="is not a file; expected"):
        next(read(tmp_path))
    text = tmp_path / "text"
    text.write_text("no database at all, however long it may be " * 9)
    with pytest.raises(hutch.CorruptValueError, match="text' cannot be read as the file of Themis's SQLite store"):
        next(read(text))
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("DROP TABLE stage_cache")
    with pytest.raises(hutch.CorruptValueError, match="no such table: stage_cache"):
        list(read(file))


def test_no_damage_of_the_file_is_any_other_error(file: Path) -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    rng, whole, message = random.Random(seed), SAMPLE.read_bytes(), 0
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(rng.choice((1, 5, 50))):
            damaged[rng.randrange(len(whole))] = rng.randrange(256)
        file.write_bytes(damaged[: rng.choice((len(whole), rng.randrange(len(whole))))])
        try:
            list(read(file))
        except hutch.CorruptValueError:
            message += 1
    assert message > 50


def test_rows_whose_numbers_are_out_of_order_are_an_error_and_not_read_for_ever(file: Path) -> None:
    damaged = bytearray(SAMPLE.read_bytes())
    damaged[61459] = 36  # the number of a row
    file.write_bytes(damaged)
    with pytest.raises(hutch.CorruptValueError, match=r"table \w+, row -?\d+ cannot be read: it follows a row"):
        list(read(file))


def test_reading_a_file_with_a_write_ahead_log_creates_no_file_beside_it(file: Path) -> None:
    with closing(sqlite3.connect(file)) as connection:
        assert connection.execute("PRAGMA journal_mode = WAL").fetchone() == ("wal",)
    before = sorted(file.parent.iterdir())
    assert sum(1 for _ in read(file)) == sum(1 for _ in read(SAMPLE))
    assert sorted(file.parent.iterdir()) == before


def test_a_file_left_by_an_unfinished_write_is_not_repaired_unasked(tmp_path: Path) -> None:
    live, left = Path(shutil.copy(SAMPLE, tmp_path / "live")), tmp_path / "left"
    with closing(sqlite3.connect(live, isolation_level=None)) as connection:
        connection.execute("PRAGMA cache_size = 1")  # so that the file itself is written before the commit
        connection.execute("BEGIN")
        connection.execute("UPDATE run_projections SET projection_json = projection_json || ?", (" " * 100_000,))
        shutil.copy(live, left)
        shutil.copy(f"{live}-journal", f"{left}-journal")
    before = left.read_bytes()
    with pytest.raises(hutch.CorruptValueError, match="let it open the file once more, which repairs it"):
        list(read(left))
    assert left.read_bytes() == before
    assert rows(left, "run_projections", "COUNT(*)") == [(6,)]
    assert sum(1 for _ in read(left)) == 21


# --- the layout ---


def test_no_name_of_a_run_gets_into_the_keys_of_another() -> None:
    names = ["", "a", "a/", "a/events", "a/events/000000000001", "a%2F", "=", "é", "\n", "A", "x" * 401, "x" * 402, "~"]
    names += ["%%" + hashlib.sha256(b"").hexdigest(), "🧀" * 200, "\ud800"]
    prefixes = [run_prefix(name) for name in names]
    for prefix in prefixes:
        assert [other for other in prefixes if other.startswith(prefix)] == [prefix]
    keys = [key for name in names for key in (snapshot_key(name), event_key(name, 10**12 - 1))]
    keys += [stage_key(stage, name) for stage in names for name in names]
    assert len(set(keys)) == 2 * len(names) + len(names) ** 2
    assert max(len(key.encode()) for key in keys) <= 1024
    assert event_key("a", 9) < event_key("a", 10)
    assert event_key("a", 10).startswith(events_prefix("a"))
    assert sequence_of(event_key("a", 10)) == 10


# --- out ---


def test_what_came_in_goes_out_again_row_by_row(store: hutch.Store, tmp_path: Path) -> None:
    transfer.copy_items(read(SAMPLE), store)
    out = tmp_path / "out.sqlite3"
    assert write(store, out) == 21
    assert sorted(tmp_path.iterdir()) == [out], "nothing is left beside it"
    for table, columns in [
        ("run_snapshots", "run_id, snapshot_json"),
        ("run_events", "id, run_id, event_type, event_json"),
        ("run_blobs", "blob_ref, media_type, payload"),
        ("stage_cache", "stage_name, cache_key, payload_json"),
    ]:
        theirs, ours = rows(SAMPLE, table, columns), rows(out, table, columns)
        assert ours == theirs
        assert theirs
    assert transfer.verify_items(read(out), store).ok
    assert rows(out, "run_projections", "*") == [], "themis makes them when it reads"


def test_nothing_to_write_writes_nothing_and_a_file_that_is_there_stays(store: hutch.Store, tmp_path: Path) -> None:
    out = tmp_path / "out.sqlite3"
    assert write(store, out) == 0
    assert list(tmp_path.iterdir()) == []
    transfer.copy_items(read(SAMPLE), store)
    out.write_bytes(b"mine")
    with pytest.raises(hutch.ConfigError, match=r"out\.sqlite3' exists; it is not replaced"):
        write(store, out)
    assert out.read_bytes() == b"mine"


def test_where_the_file_cannot_be_written_nothing_of_it_is_left(store: hutch.Store, small_disk: Path) -> None:
    transfer.copy_items(read(SAMPLE), store)
    with pytest.raises(hutch.ConfigError, match="no_folder' is not a folder; create it first"):
        write(store, small_disk / "no_folder" / "out.sqlite3")
    put(store, BLOBS, "sha256:0", {"media_type": "m", "payload": bytes(3 << 20)})
    with pytest.raises(hutch.StorageFullError, match=r"out\.sqlite3' cannot be written: .*full"):
        write(store, small_disk / "out.sqlite3")
    assert list(small_disk.iterdir()) == []


EVENT = {"run_id": "r", "event_type": "run_started"}
STAGE = {"stage": "s", "key": "k", "payload": 1}


@pytest.mark.parametrize(
    ("namespace", "key", "value", "error", "message"),
    [
        (RUNS, "mine", 1, hutch.ValueTypeError, "it is not a dict with the text 'run_id'"),
        (RUNS, "mine", EVENT, hutch.ConfigError, "was not written by the bridge to Themis"),
        (RUNS, "r/events/one", EVENT, hutch.ConfigError, "was not written by the bridge to Themis"),
        (RUNS, event_key("q", 1), EVENT, hutch.ConfigError, "was not written by the bridge to Themis"),
        (RUNS, event_key("r", 1), {"run_id": "r"}, hutch.ValueTypeError, "not a dict with the text 'event_type'"),
        (RUNS, event_key("r", 1), EVENT | {"x": {"y": [(1,)]}}, hutch.ValueTypeError, "a value of type tuple"),
        (RUNS, event_key("r", 1), EVENT | {"x": {1: 2}}, hutch.ValueTypeError, "a key of type int"),
        (RUNS, snapshot_key("\ud800"), {"run_id": "\ud800"}, hutch.ValueTypeError, "'run_id' is not Unicode text"),
        (BLOBS, "sha256:0", {"media_type": "m", "payload": "text"}, hutch.ValueTypeError, "its payload is not bytes"),
        (BLOBS, "sha256:0", b"x", hutch.ValueTypeError, "not a dict with the text 'media_type'"),
        (STAGE_CACHE, "s/other", STAGE, hutch.ConfigError, "was not written by the bridge to Themis"),
        (STAGE_CACHE, "s/k", {"stage": "s", "key": "k"}, hutch.ConfigError, "was not written by the bridge"),
        (STAGE_CACHE, "s/k", STAGE | {"payload": 10**5000}, hutch.ValueTypeError, "a number of more than 4,300 digits"),
        (STAGE_CACHE, "s/k", STAGE | {"payload": {"s3cret"}}, hutch.ValueTypeError, "a value of type set"),
    ],
)
def test_what_the_file_cannot_hold_is_refused_by_key_and_no_file_appears(
    store: hutch.Store, tmp_path: Path, namespace: str, key: str, value: Any, error: type[Exception], message: str
) -> None:
    transfer.copy_items(read(SAMPLE), store)
    put(store, namespace, key, value)
    with pytest.raises(error) as raised:
        write(store, tmp_path / "out.sqlite3")
    assert message in str(raised.value)
    assert repr(key) in str(raised.value)
    assert "s3cret" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_json_s_odd_numbers_and_texts_survive_the_way_out_and_in(store: hutch.Store, tmp_path: Path) -> None:
    payload = {"inf": float("inf"), "big": 2**70, "half": "\ud800", "zero": -0.0, "none": None, "true": True, "": []}
    put(store, STAGE_CACHE, stage_key("", "ключ/"), {"stage": "", "key": "ключ/", "payload": payload})
    put(store, RUNS, event_key("\n" * 500, 1), {"run_id": "\n" * 500, "event_type": "run_started"})
    out = tmp_path / "out.sqlite3"
    assert write(store, out) == 2
    assert transfer.verify_items(read(out), store).ok
