"""Apply the commits of transactions: check what was read and write what was changed, in one transaction of SQLite."""

from __future__ import annotations

from collections.abc import Mapping
from sqlite3 import Connection
from typing import TYPE_CHECKING

from hutch import Commit, KeyRange, deadlines

from .deadlines import NUMBER, mark, take_some
from .file import NoDataError, fetch
from .statements import AFTER_ALL_KEYS, COPIED_BYTES, REMOVE, SET, put_all, values_of

if TYPE_CHECKING:
    from .database import Database

_MAKE = "INSERT INTO namespaces (name) VALUES (?) ON CONFLICT DO NOTHING"
_KEYS = "SELECT key FROM entries WHERE ns = ? AND key >= ? AND key < ? ORDER BY key"


def apply(database: Database, commits: Mapping[str, Commit]) -> bool:
    """Apply `commits`, by namespace, if everything they expect holds; return whether it does."""
    if _writes(commits):
        return database.write(_apply_all, commits, database)
    try:
        return database.read(_check_all, commits)
    except NoDataError:
        return _holds_without_data(commits)


def _writes(commits: Mapping[str, Commit]) -> bool:
    """Return whether any of `commits` changes something."""
    return any(commit.changes for commit in commits.values())


def _apply_all(connection: Connection, commits: Mapping[str, Commit], database: Database) -> bool:
    """Apply `commits`, by namespace, if everything they expect holds; return whether it does."""
    with_deadlines: set[int] = set()
    known = database.numbers
    connection.execute("BEGIN IMMEDIATE")
    numbers = {name: known.get(name) or _number_of(connection, name, with_deadlines) for name in commits}
    if not all(_holds(connection, numbers[name], commit) for name, commit in commits.items()):
        connection.execute("ROLLBACK")
        return False
    for name, commit in commits.items():
        if commit.changes:
            number = numbers[name] = numbers[name] or _make(connection, name, with_deadlines)
            if number in database.expiring:
                with_deadlines.add(number)
            _write(connection, number, commit, with_deadlines)
    connection.execute("COMMIT")
    database.expiring.update(with_deadlines)
    known.update((name, number) for name, number in numbers.items() if number is not None)
    return True


def _check_all(connection: Connection, commits: Mapping[str, Commit]) -> bool:
    """Return whether everything that `commits` expect holds, in one snapshot."""
    connection.execute("BEGIN")
    holds = all(_holds(connection, _number_of(connection, name, set()), commit) for name, commit in commits.items())
    connection.execute("COMMIT")
    return holds


def _holds_without_data(commits: Mapping[str, Commit]) -> bool:
    """Return whether everything that `commits` expect holds if there is no file."""
    return all(_holds_nothing(commit) for commit in commits.values())


def _number_of(connection: Connection, name: str, with_deadlines: set[int]) -> int | None:
    """Return the id of the namespace, None if it was never written to; add it to `with_deadlines` if it has some."""
    for number, expiring in fetch(connection, NUMBER, (name,)):
        if expiring:
            with_deadlines.add(number)
        return int(number)
    return None


def _holds_nothing(commit: Commit) -> bool:
    return all(frame is None for frame in commit.expected.values()) and not any(keys for _, _, keys in commit.ranges)


def _holds(connection: Connection, number: int | None, commit: Commit) -> bool:
    if number is None:
        return _holds_nothing(commit)
    frames = values_of(connection, number, list(commit.expected)) if commit.expected else {}
    if any(frames.get(key.encode()) != frame for key, frame in commit.expected.items()):
        return False
    return all(_holds_keys(connection, number, range_) for range_ in commit.ranges)


def _holds_keys(connection: Connection, number: int, range_: KeyRange) -> bool:
    start, stop, keys = range_
    low = b"" if start is None else start.encode("utf-8", "surrogatepass")
    high = AFTER_ALL_KEYS if stop is None else stop.encode("utf-8", "surrogatepass")
    stored = [key for (key,) in fetch(connection, _KEYS, (number, low, high))]
    return stored == sorted(map(str.encode, keys))


def _make(connection: Connection, name: str, with_deadlines: set[int]) -> int:
    """Create the namespace `name` and return its id."""
    connection.execute(_MAKE, (name,))
    number = _number_of(connection, name, with_deadlines)
    assert number is not None, "the row above"
    return number


def _write(connection: Connection, number: int, commit: Commit, with_deadlines: set[int]) -> None:
    items = {key: frame for key, frame in commit.changes.items() if frame is not None}
    if number not in with_deadlines and any(frame[:1] == b"T" for frame in items.values()):
        mark(connection, number)
        with_deadlines.add(number)
    if len(items) == 1:
        ((key, frame),) = items.items()
        connection.execute(SET, (number, key, bytearray(frame) if len(frame) < COPIED_BYTES else frame))
    elif items:
        put_all(connection, number, items)
    if len(items) < len(commit.changes):
        removed = [(number, key) for key, frame in commit.changes.items() if frame is None]
        connection.executemany(REMOVE, removed)
    if number in with_deadlines:
        take_some(connection, number, deadlines.now_ms())
