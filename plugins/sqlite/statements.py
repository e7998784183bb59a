"""The SQL statements of one namespace, and how batches of keys run them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import chain, repeat
from sqlite3 import Connection
from typing import TypeVar

T = TypeVar("T")

# A key is bound as text and cast to a blob by SQLite: for bytes, Python 3.11 first searches an adapter that does not
# exist, which costs a tenth of a read. (Values are bound as bytearrays, which skip the search.)
GET = "SELECT value FROM entries WHERE ns = ? AND key = CAST(? AS BLOB)"
_GET_SOME = "SELECT key, value FROM entries WHERE ns = ? AND key IN ({})"
_INSERT = "INSERT INTO entries (ns, key, value) "
_ROW = "VALUES (?, CAST(? AS BLOB), ?) "
_OR_REPLACE = "ON CONFLICT (ns, key) DO UPDATE SET value = excluded.value"
SET = _INSERT + _ROW + _OR_REPLACE
ADD = _INSERT + _ROW + "ON CONFLICT (ns, key) DO NOTHING"
REPLACE = "UPDATE entries SET value = ? WHERE ns = ? AND key = CAST(? AS BLOB) AND value = ?"
REMOVE = "DELETE FROM entries WHERE ns = ? AND key = CAST(? AS BLOB)"
REMOVE_EQUAL = REMOVE + " AND value = ?"
REMOVE_ALL = "DELETE FROM entries WHERE ns = ?"
RANGE = "SELECT key, value FROM entries WHERE ns = ? AND key >= ? AND key < ? ORDER BY key {} LIMIT ?"

# Larger than every key: no byte of UTF-8 is 0xFF.
AFTER_ALL_KEYS = b"\xff"

# Keys per statement of a batch: running a statement costs as much as writing half a row.
_TOGETHER = 64
# `WHERE true` keeps SQLite from parsing the `ON` after it as part of a join.
_ROWS = "SELECT ?, CAST(column1 AS BLOB), column2 FROM (VALUES {}) WHERE true "
_SET_TOGETHER = _INSERT + _ROWS.format(", ".join(["(?, ?)"] * _TOGETHER)) + _OR_REPLACE

# Copying a value shorter than this takes less time than the search for an adapter.
COPIED_BYTES = 4096


def read_all(connection: Connection, number: int, keys: list[str]) -> dict[bytes, bytes]:
    """Return the values of those `keys` that exist, by encoded key, read in one snapshot."""
    if connection.in_transaction:  # that of a `store.snapshot()`
        return values_of(connection, number, keys)
    connection.execute("BEGIN")
    frames_by_key = values_of(connection, number, keys)
    connection.execute("COMMIT")
    return frames_by_key


def values_of(connection: Connection, number: int, keys: list[str]) -> dict[bytes, bytes]:
    """Return the values of those `keys` that exist, by encoded key, in the transaction that is open."""
    frames_by_key: dict[bytes, bytes] = {}
    for at in range(0, len(keys), _TOGETHER):
        some = keys[at : at + _TOGETHER]
        sql = _GET_SOME.format(", ".join(["CAST(? AS BLOB)"] * len(some)))
        frames_by_key.update(connection.execute(sql, (number, *some)))
    return frames_by_key


def replace(
    connection: Connection, number: int, key: str, step: Callable[..., tuple[bytes, T] | None], *arguments: object
) -> T | None:
    """Replace the value of `key` by the first of what ``step(key, *arguments, value)`` returns; return the second.

    Reads and writes in one transaction. The value is None if `key` is missing; a result of None writes nothing.
    """
    connection.execute("BEGIN IMMEDIATE")
    row = connection.execute(GET, (number, key)).fetchone()
    result = step(key, *arguments, None if row is None else row[0])
    if result is not None:
        connection.execute(SET, (number, key, bytearray(result[0])))
    connection.execute("COMMIT")
    return None if result is None else result[1]


def write_all(connection: Connection, number: int, items: Mapping[str, bytes]) -> None:
    """Set all `items` in one transaction."""
    connection.execute("BEGIN IMMEDIATE")
    put_all(connection, number, items)
    connection.execute("COMMIT")


def put_all(connection: Connection, number: int, items: Mapping[str, bytes]) -> None:
    """Set all `items` in the transaction that is open."""
    # Sorted, so that pages fill one after the other. (Python sorts text as SQLite sorts its UTF-8.)
    keys = sorted(items)
    together = len(keys) // _TOGETHER * _TOGETHER
    bindable = bytearray if max(map(len, items.values()), default=0) < COPIED_BYTES else bytes
    # Only C iterators: no Python code, and so no signal handler, runs while SQLite reads them.
    frames = map(bindable, map(items.__getitem__, keys))
    if together:
        fields = chain.from_iterable(zip(keys[:together], frames, strict=False))
        connection.executemany(_SET_TOGETHER, zip(repeat(number), *[fields] * (2 * _TOGETHER), strict=False))
    connection.executemany(SET, zip(repeat(number), keys[together:], frames, strict=False))
