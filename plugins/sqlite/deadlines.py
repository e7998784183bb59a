"""The index of deadlines, which a file gets with its first one: a table, and triggers that keep it right.

SQLite runs the triggers in every transaction that changes an entry, also of another process, an older hutch or another
program. So no writer must know of the index, and no frame can miss its entry. The frame is the truth: `get`
reads it alone. A table costs the first deadline the same in a file of any size, while an index of SQLite on `entries`
would read all of them.
"""

# ruff: noqa: S608 - only constants of this module are formatted into its statements

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from itertools import repeat
from sqlite3 import Connection

from hutch.codec.frame import crc32
from hutch.deadlines import is_expired

from .errors import is_from_sqlite
from .file import fetch
from .statements import GET, REMOVE, put_all

# How many expired keys each write of a namespace with deadlines removes.
_PER_WRITE = 2

# NULL unless a namespace (its id is to be formatted in) has ever had a deadline. A file without deadlines has no column
# `expiring`: then the word in the condition is the name of the result, 0, and SQLite looks for no row. So one statement
# serves both, also when another process has just written the first deadline: SQLite then compiles it again.
_FLAG = "(SELECT 0 AS expiring FROM namespaces AS n WHERE expiring AND n.id = {})"
_IS_FLAGGED = f"{_FLAG} IS NOT NULL"
#: The row (None,) if the key exists; (0,) if it exists in a namespace that has had deadlines.
EXISTS = f"SELECT {_FLAG.format('entries.ns')} FROM entries WHERE ns = ? AND key = CAST(? AS BLOB)"
#: The id of a namespace by its name, and whether it has had deadlines.
NUMBER = f"SELECT id, {_IS_FLAGGED.format('namespaces.id')} FROM namespaces WHERE name = ?"
#: The number of keys, expired ones too, and the flag.
COUNT = f"SELECT entries, {_FLAG.format('namespaces.id')} FROM namespaces WHERE id = ?"
#: The namespaces that hold keys, expired ones too, and whether they have had deadlines.
NAMES = f"SELECT name, {_IS_FLAGGED.format('namespaces.id')} FROM namespaces WHERE entries > 0"
#: A page of keys, expired ones too, and the flag. The id comes twice, so that SQLite reads the flag once for all rows.
KEYS = f"SELECT key, {_FLAG.format('?')} FROM entries WHERE ns = ? AND key >= ? AND key < ? ORDER BY key {{}} LIMIT ?"

# For a file with deadlines. "Expired" is by the time that the caller passes, as the eight bytes of a frame.
_IS_EXPIRED = (
    "EXISTS (SELECT 1 FROM deadlines AS d WHERE d.ns = entries.ns AND d.key = entries.key AND d.expires <= {})"
)
LIVE_KEYS = (
    "SELECT key, NULL FROM entries WHERE ns = ? AND key >= ? AND key < ?"
    f" AND NOT {_IS_EXPIRED.format('?')} ORDER BY key {{}} LIMIT ?"
)
LIVE_COUNT = (
    "SELECT entries - (SELECT count(*) FROM deadlines WHERE ns = namespaces.id AND expires <= ?)"
    " FROM namespaces WHERE id = ?"
)
LIVE_NAMES = (
    "SELECT name FROM namespaces"
    " WHERE entries > (SELECT count(*) FROM deadlines WHERE ns = namespaces.id AND expires <= ?)"
)
_DUE = "SELECT key FROM deadlines WHERE ns = ? AND expires <= ? ORDER BY expires LIMIT ? OFFSET ?"
_REMOVE_EXPIRED = f"{REMOVE} AND {_IS_EXPIRED.format('?')}"
# The absolute value of -2^63 is an error in SQLite: so a namespace with deadlines refuses this statement.
_REMOVE_IF_NONE_EXPIRE = (
    "DELETE FROM entries WHERE ns = ? AND key = CAST(? AS BLOB)"
    f" AND abs(-9223372036854775807 - ({_IS_FLAGGED.format('entries.ns')})) > 0"
)
_REFUSAL = "integer overflow"
# As GET and REMOVE, for a key that is bytes, maybe not of UTF-8.
_GET_BYTES, _REMOVE_BYTES = (sql.replace("CAST(? AS BLOB)", "?") for sql in (GET, REMOVE))

_COLUMN = "ALTER TABLE namespaces ADD COLUMN expiring INTEGER NOT NULL DEFAULT 0"
_INSERT = (
    "INSERT OR REPLACE INTO deadlines SELECT new.ns, new.key, substr(new.value, 2, 8)"
    " WHERE substr(new.value, 1, 1) = x'54';"
)
_DELETE = "DELETE FROM deadlines WHERE ns = old.ns AND key = old.key;"
_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS deadlines (ns INTEGER NOT NULL, key BLOB NOT NULL, expires BLOB NOT NULL,"
    " PRIMARY KEY (ns, key)) WITHOUT ROWID",
    "CREATE INDEX IF NOT EXISTS deadlines_in_order ON deadlines (ns, expires)",
    f"CREATE TRIGGER IF NOT EXISTS deadline_added AFTER INSERT ON entries BEGIN {_INSERT} END",
    f"CREATE TRIGGER IF NOT EXISTS deadline_changed AFTER UPDATE ON entries BEGIN {_DELETE} {_INSERT} END",
    f"CREATE TRIGGER IF NOT EXISTS deadline_removed AFTER DELETE ON entries BEGIN {_DELETE} END",
)


def time_bytes(now_ms: int) -> bytes:
    """Return `now_ms` as frames hold their deadlines, whose order as bytes is that of the times."""
    return max(now_ms, 0).to_bytes(8, "big")


def has_index(connection: Connection) -> bool:
    """Return whether the file has ever had a deadline."""
    return bool(fetch(connection, "SELECT 1 FROM sqlite_master WHERE name = 'deadlines'"))


def make_index(connection: Connection) -> None:
    """Make what the index lacks, in the transaction that is open. It knows nothing of values written before."""
    if "expiring" not in {row[1] for row in fetch(connection, "PRAGMA table_info(namespaces)")}:
        connection.execute(_COLUMN)
    for statement in _SCHEMA:
        connection.execute(statement)


def mark(connection: Connection, number: int) -> None:
    """Flag the namespace as one with deadlines, before its first one is written in the transaction that is open."""
    if not has_index(connection):
        make_index(connection)
    connection.execute("UPDATE namespaces SET expiring = 1 WHERE id = ? AND expiring = 0", (number,))


# --- writes; each is a transaction of a namespace with deadlines, or of one that gets its first ---


def change(
    connection: Connection, number: int, now_ms: int, marks: bool, sql: str, parameters: Sequence[object]
) -> int:
    """Run one writing statement and return how many rows it changed; if none, change nothing at all."""
    connection.execute("BEGIN IMMEDIATE")
    if marks:
        mark(connection, number)
    changed = connection.execute(sql, parameters).rowcount
    if not changed:
        connection.execute("ROLLBACK")
        return 0
    take_some(connection, number, now_ms)
    connection.execute("COMMIT")
    return changed


def write_all(connection: Connection, number: int, now_ms: int, marks: bool, items: Mapping[str, bytes]) -> None:
    """Set all `items`."""
    connection.execute("BEGIN IMMEDIATE")
    if marks:
        mark(connection, number)
    put_all(connection, number, items)
    take_some(connection, number, now_ms)
    connection.execute("COMMIT")


def remove_all_live(connection: Connection, number: int, now_ms: int, keys: list[str]) -> int:
    """Remove `keys`, and return how many had not expired."""
    now = time_bytes(now_ms)
    connection.execute("BEGIN IMMEDIATE")
    connection.executemany(_REMOVE_EXPIRED, zip(repeat(number), keys, repeat(now), strict=False))
    removed = connection.executemany(REMOVE, zip(repeat(number), keys, strict=False)).rowcount
    take_some(connection, number, now_ms)
    connection.execute("COMMIT")
    return removed


def take(connection: Connection, number: int, now_ms: int, limit: int) -> int:
    """Remove at most `limit` expired keys and return how many; fewer only if no more have expired."""
    connection.execute("BEGIN IMMEDIATE")
    taken = damaged = 0
    while taken < limit and (due := _due(connection, number, now_ms, limit - taken, damaged)):
        removed = sum(_take_one(connection, number, now_ms, key) for key in due)
        taken += removed
        damaged += len(due) - removed
    connection.execute("COMMIT")
    return taken


def take_some(connection: Connection, number: int, now_ms: int) -> None:
    """Remove a few expired keys in the transaction that is open."""
    for key in _due(connection, number, now_ms, _PER_WRITE, 0):
        _take_one(connection, number, now_ms, key)


def _due(connection: Connection, number: int, now_ms: int, limit: int, offset: int) -> list[bytes]:
    return [key for (key,) in fetch(connection, _DUE, (number, time_bytes(now_ms), limit, offset))]


def _take_one(connection: Connection, number: int, now_ms: int, key: bytes) -> bool:
    """Remove `key`, which has expired as the index says, and return whether it did.

    A damaged frame stays, so that reading it remains an error.
    """
    values = fetch(connection, _GET_BYTES, (number, bytearray(key)))
    if not values or not is_expired(values[0][0], now_ms, crc32(key)):
        return False
    connection.execute(_REMOVE_BYTES, (number, bytearray(key)))
    return True


# --- removing where the caller knows of no deadline: by one statement, which a namespace with deadlines refuses ---


def remove(connection: Connection, number: int, key: str) -> int | None:
    """Remove `key` and return how many keys were removed; None, and nothing changes, if the namespace has deadlines."""
    try:
        removed = connection.execute(_REMOVE_IF_NONE_EXPIRE, (number, key)).rowcount
    except sqlite3.OperationalError as error:
        if not _is_refusal(error):
            raise
        return None
    return removed


def remove_all(connection: Connection, number: int, keys: list[str]) -> int | None:
    """Remove `keys` in one transaction, and return as `remove` does."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        removed = connection.executemany(_REMOVE_IF_NONE_EXPIRE, zip(repeat(number), keys, strict=False)).rowcount
    except sqlite3.OperationalError as error:
        if not _is_refusal(error):
            raise
        connection.rollback()
        return None
    connection.execute("COMMIT")
    return removed


def _is_refusal(error: sqlite3.Error) -> bool:
    return is_from_sqlite(error) and str(error) == _REFUSAL


# --- verify ---

_INDEXED = "SELECT ns, key, expires FROM deadlines"
_IN_FRAMES = "SELECT ns, key, substr(value, 2, 8) FROM entries WHERE substr(value, 1, 1) = x'54'"
_UNFLAGGED = f"SELECT id FROM namespaces WHERE expiring = 0 AND id IN (SELECT ns FROM ({_IN_FRAMES}))"
_PARTS = {"deadlines", "deadlines_in_order", "deadline_added", "deadline_changed", "deadline_removed"}


def verify(connection: Connection, repair: bool) -> list[str]:
    """Return what the index has wrong; with `repair`, make it anew from the frames, in the transaction that is open."""
    lacking = sorted(_PARTS - {name for (name,) in fetch(connection, "SELECT name FROM sqlite_master")})
    if "deadlines" in lacking:
        count = _count(connection, _IN_FRAMES)
        faults = [f"{count:,} values have a deadline, and the file has no index of deadlines"] if count else []
    else:
        faults = [f"the index of deadlines lacks its part {name!r}" for name in lacking]
        missing, left = (
            _count(connection, f"{_IN_FRAMES} EXCEPT {_INDEXED}"),
            _count(connection, f"{_INDEXED} EXCEPT {_IN_FRAMES}"),
        )
        faults += [f"the index of deadlines lacks {missing:,} deadlines of values"] if missing else []
        faults += [f"the index of deadlines has {left:,} entries that are of no value"] if left else []
        unflagged = _count(connection, _UNFLAGGED)
        faults += [f"{unflagged:,} namespaces have deadlines, and their flag says none"] if unflagged else []
    if faults and repair:
        make_index(connection)
        connection.execute("DELETE FROM deadlines")
        connection.execute(f"INSERT INTO deadlines {_IN_FRAMES}")
        connection.execute(f"UPDATE namespaces SET expiring = 1 WHERE id IN ({_UNFLAGGED})")
    return faults


def _count(connection: Connection, sql: str) -> int:
    return int(fetch(connection, f"SELECT count(*) FROM ({sql})")[0][0])
