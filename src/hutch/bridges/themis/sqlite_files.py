"""Read and write the file of Themis 4's SQLite store."""

from __future__ import annotations

import json
import os
import sqlite3
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NoReturn

import hutch

from ..json_types import reason_not_json
from ..sqlite_rows import open_file, refuse, rows
from .layout import BLOBS, RUNS, STAGE_CACHE, event_key, events_prefix, snapshot_key, stage_key

#: What `write` exports.
NAMESPACES = (RUNS, BLOBS, STAGE_CACHE)
_TABLES = """
CREATE TABLE run_snapshots (run_id TEXT PRIMARY KEY, snapshot_json TEXT NOT NULL);
CREATE TABLE run_events (
    id INTEGER PRIMARY KEY AUTOINCREMENT, run_id TEXT NOT NULL, event_type TEXT NOT NULL, event_json TEXT NOT NULL
);
CREATE TABLE run_blobs (blob_ref TEXT PRIMARY KEY, media_type TEXT NOT NULL, payload BLOB NOT NULL);
CREATE TABLE run_projections (
    run_id TEXT NOT NULL, projection_name TEXT NOT NULL, projection_json TEXT NOT NULL,
    PRIMARY KEY (run_id, projection_name)
);
CREATE TABLE stage_cache (
    stage_name TEXT NOT NULL, cache_key TEXT NOT NULL, payload_json TEXT NOT NULL, PRIMARY KEY (stage_name, cache_key)
);
"""


# --- from the file ---


def read(path: Path) -> Iterator[tuple[str, str, Any]]:
    """Yield the items of the SQLite store in the file `path`: namespace, key, value. The file is not changed.

    Holds one row at a time, however large the file. Items come in row order, so the same file gives the same keys.
    Raises hutch.ConfigError if the file cannot be opened, CorruptValueError if it is not such a store, or for a row
    that cannot be read, with file, table and row.
    """
    with open_file(path, "the file of Themis's SQLite store") as file:
        yield from _runs(file, path)
        for row, ref, media_type, payload in _rows(file, path, "run_blobs", "blob_ref", "media_type", "payload"):
            if not isinstance(payload, bytes):
                refuse(path, "run_blobs", row, "its payload is not bytes")
            yield BLOBS, ref, {"media_type": media_type, "payload": payload}
        for row, stage, key, payload in _rows(file, path, "stage_cache", "stage_name", "cache_key", "payload_json"):
            value = {"stage": stage, "key": key, "payload": _parse_json(payload, path, "stage_cache", row)}
            yield STAGE_CACHE, stage_key(stage, key), value


def _runs(file: sqlite3.Connection, path: Path) -> Iterator[tuple[str, str, Any]]:
    for row, run_id, text in _rows(file, path, "run_snapshots", "run_id", "snapshot_json"):
        yield RUNS, snapshot_key(run_id), _parse_run_row(run_id, text, path, "run_snapshots", row)
    events: dict[str, int] = {}
    for row, run_id, text in _rows(file, path, "run_events", "run_id", "event_json"):
        events[run_id] = events.get(run_id, 0) + 1
        yield RUNS, event_key(run_id, events[run_id]), _parse_run_row(run_id, text, path, "run_events", row)


def _rows(file: sqlite3.Connection, path: Path, table: str, *columns: str) -> Iterator[tuple[Any, ...]]:
    """Yield each row, its number first; every selected column but the last is a name."""
    for row in rows(file, path, table, ", ".join(columns)):
        for column, name in zip(columns[:-1], row[1:-1], strict=True):
            if not isinstance(name, str):
                refuse(path, table, row[0], f"its {column} is not text")
        yield row


def _parse_run_row(run_id: str, text: Any, path: Path, table: str, row: int) -> dict[str, Any]:
    value = _parse_json(text, path, table, row)
    if not isinstance(value, dict) or value.get("run_id") != run_id:
        refuse(path, table, row, "it is not a JSON object with the run_id of its row")
    return value


def _parse_json(text: Any, path: Path, table: str, row: int) -> Any:
    try:
        return json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        # The message of a JSON error gives the position and shows nothing of the text.
        refuse(path, table, row, f"it is not JSON: {error}" if isinstance(text, str) else "it is not text")


# --- to the file ---


def write(store: hutch.Store, path: Path) -> int:
    """Write the Themis 4 data of `store` as a new SQLite file `path` for Themis; return the number of items.

    The file appears when it is complete, and not at all if there is nothing to write. Projections are left out: Themis
    creates them when it first reads them. Raises hutch.ConfigError if `path` exists, or for a key that the bridge did
    not write; ValueTypeError for a value that JSON cannot hold; both name the key. StorageFullError where the disk is
    full, StorageUnavailableError where the file cannot be written.
    """
    if os.path.lexists(path):
        raise hutch.ConfigError(f"{str(path)!r} exists; it is not replaced: name a new file")
    if not path.parent.is_dir():
        raise hutch.ConfigError(f"{str(path.parent)!r} is not a folder; create it first, or name a file elsewhere")
    try:
        return _write_file(store, path)
    except sqlite3.Error as error:
        kind = hutch.StorageFullError if "full" in str(error) else hutch.StorageUnavailableError
        raise kind(f"{str(path)!r} cannot be written: {error}. No part of it is left") from error


def _write_file(store: hutch.Store, path: Path) -> int:
    count = 0
    # In a folder of its own, so that nothing is left if this fails.
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.", ignore_cleanup_errors=True) as folder:
        whole = Path(folder) / path.name
        with closing(sqlite3.connect(whole, isolation_level=None)) as file:
            file.executescript(_TABLES)
            file.execute("BEGIN")
            for namespace, insert in ((RUNS, _insert_run), (BLOBS, _insert_blob), (STAGE_CACHE, _insert_stage)):
                with store.open(namespace) as items:
                    for key, value in items.scan():
                        insert(file, key, value)
                        count += 1
            file.execute("COMMIT")  # and flushes to the disk
        if count:
            whole.replace(path)
    return count


def _insert_run(file: sqlite3.Connection, key: str, value: Any) -> None:
    run_id = _text_of(RUNS, key, value, "run_id")
    text = _json(RUNS, key, value)
    if key == snapshot_key(run_id):
        file.execute("INSERT INTO run_snapshots VALUES (?, ?)", (run_id, text))
        return
    prefix, _, digits = key.rpartition("/")
    if prefix + "/" != events_prefix(run_id) or not digits.isdecimal():
        _refuse_key(RUNS, key)
    event_type = _text_of(RUNS, key, value, "event_type")
    row = (run_id, event_type, text)
    file.execute("INSERT INTO run_events (run_id, event_type, event_json) VALUES (?, ?, ?)", row)


def _insert_blob(file: sqlite3.Connection, key: str, value: Any) -> None:
    media_type = _text_of(BLOBS, key, value, "media_type")
    payload = value.get("payload")
    if type(payload) is not bytes:
        _refuse_value(BLOBS, key, "its payload is not bytes")
    file.execute("INSERT INTO run_blobs VALUES (?, ?, ?)", (key, media_type, payload))


def _insert_stage(file: sqlite3.Connection, key: str, value: Any) -> None:
    stage, cache_key = _text_of(STAGE_CACHE, key, value, "stage"), _text_of(STAGE_CACHE, key, value, "key")
    if key != stage_key(stage, cache_key) or "payload" not in value:
        _refuse_key(STAGE_CACHE, key)
    file.execute(
        "INSERT INTO stage_cache VALUES (?, ?, ?)", (stage, cache_key, _json(STAGE_CACHE, key, value["payload"]))
    )


def _text_of(namespace: str, key: str, value: Any, field: str) -> str:
    text = value.get(field) if type(value) is dict else None
    if type(text) is not str:
        _refuse_value(namespace, key, f"it is not a dict with the text {field!r}")
    try:
        text.encode()
    except UnicodeEncodeError:
        _refuse_value(namespace, key, f"its {field!r} is not Unicode text")
    return text


def _json(namespace: str, key: str, value: Any) -> str:
    if reason := reason_not_json(value):
        _refuse_value(namespace, key, reason)
    try:
        return json.dumps(value)  # in the value's order: Themis sorts the names, and reads any order
    except ValueError:
        _refuse_value(namespace, key, f"it holds a number of more than {sys.get_int_max_str_digits():,} digits")


def _refuse_key(namespace: str, key: str) -> NoReturn:
    raise hutch.ConfigError(
        f"key {key!r} of namespace {namespace!r} was not written by the bridge to Themis; remove it, or move it "
        "elsewhere, to export the rest"
    )


def _refuse_value(namespace: str, key: str, reason: str) -> NoReturn:
    raise hutch.ValueTypeError(
        f"key {key!r} of namespace {namespace!r} cannot be written to a file of Themis's SQLite store: {reason}"
    )
