"""Verify integrity of an SQLite store: first SQLite's own integrity check, then names, counts and keys."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from sqlite3 import Connection, DatabaseError

from hutch import Finding, NamespaceError
from hutch.limits import MAX_KEY_BYTES, check_namespace, legible

from .database import Database
from .file import NoDataError

_MOST_DAMAGE = 100


def check(database: Database, fix: bool) -> list[Finding]:
    """Return findings, all read in one snapshot; `fix` repairs them in one transaction."""
    try:
        found = database.read(_in_transaction, "BEGIN", False)
    except NoDataError:
        return []
    if not found or not fix:
        return found
    # Verify again: other processes may have written meanwhile.
    return database.write(_in_transaction, "BEGIN IMMEDIATE", True)


def _in_transaction(connection: Connection, begin: str, fix: bool) -> list[Finding]:
    connection.execute(begin)
    found = list(_integrity(connection, fix))
    if all(finding.kind == "index" for finding in found):
        found += _contents(connection, fix)
    connection.execute("COMMIT")
    return found


def _integrity(connection: Connection, fix: bool) -> Iterator[Finding]:
    told = _faults(connection)
    if told and all(" index " in text for text in told):
        left = told
        if fix:
            # REINDEX fails on duplicates in a unique index, and then changes nothing.
            with suppress(DatabaseError):
                connection.execute("REINDEX")
                left = _faults(connection)
        for text in told:
            yield Finding("index", f"SQLite says {text!r}", fixed=text not in left)
        return
    for text in told:
        yield Finding("structure", f"SQLite says {text!r}. Restore it from a copy")


def _faults(connection: Connection) -> list[str]:
    rows = connection.execute(f"PRAGMA integrity_check({_MOST_DAMAGE})").fetchall()
    # A row may hold several lines.
    return [line for (text,) in rows for line in text.splitlines() if line != "ok"]


def _contents(connection: Connection, fix: bool) -> Iterator[Finding]:
    names: dict[int, str] = {}
    kept: dict[int, object] = {}
    unnamed: list[tuple[int, bytes]] = []
    for number, raw, entries in connection.execute("SELECT id, CAST(name AS BLOB), entries FROM namespaces").fetchall():
        kept[number] = entries
        try:
            names[number] = check_namespace(raw.decode())
        except (UnicodeDecodeError, NamespaceError):
            unnamed.append((number, raw))
    counts: dict[int, int] = dict(connection.execute("SELECT ns, count(*) FROM entries GROUP BY ns").fetchall())
    new = _new_names(set(names.values()))
    for number, raw in unnamed:
        shown = raw.decode(errors="backslashreplace")
        if not fix:
            yield Finding("orphan", f"{raw!a} is no name of a namespace", shown)
            continue
        names[number] = next(new)
        connection.execute("UPDATE namespaces SET name = ? WHERE id = ?", (names[number], number))
        yield Finding("orphan", f"{raw!a} is no name of a namespace; it is {names[number]!r} now", shown, fixed=True)
    for number in sorted(set(counts) - set(kept)):
        told = f"{counts[number]:,} keys under id {number}, which no namespace has"
        if not fix:
            yield Finding("orphan", told)
            continue
        names[number] = next(new)
        connection.execute(
            "INSERT INTO namespaces (id, name, entries) VALUES (?, ?, ?)", (number, names[number], counts[number])
        )
        yield Finding("orphan", f"{told}: they are in {names[number]!r} now", names[number], fixed=True)
    for number, entries in kept.items():
        count = counts.get(number, 0)
        if entries != count:
            if fix:
                connection.execute("UPDATE namespaces SET entries = ? WHERE id = ?", (count, number))
            told = f"the count of its keys is {entries!r}, there are {count:,}"
            yield Finding("count", told, names.get(number), fixed=fix)
    yield from _keys(connection, names, fix)


def _keys(connection: Connection, names: dict[int, str], fix: bool) -> Iterator[Finding]:
    bad = []
    for number, key in connection.execute("SELECT ns, key FROM entries"):
        try:
            if key.decode() and len(key) <= MAX_KEY_BYTES:
                continue
        except (UnicodeDecodeError, AttributeError):
            pass
        bad.append((number, key))
    for number, key in bad:
        told = "a key that is not UTF-8, or too long, or empty: damaged, or written by another program"
        shown = legible(key) if isinstance(key, bytes) else None
        fixed = False
        if fix and isinstance(key, bytes):
            # The original key is unknown. Nothing is lost: the value stays, and the new key spells the old one in hex.
            changed = f"recovered-{key.hex()[: MAX_KEY_BYTES - 20]}"
            fixed = (
                connection.execute(
                    "UPDATE OR IGNORE entries SET key = ? WHERE ns = ? AND key = ?", (changed.encode(), number, key)
                ).rowcount
                == 1
            )
            told += f"; it is {changed!r} now" if fixed else ""
        yield Finding("key", told, names.get(number), shown, fixed)


def _new_names(taken: set[str]) -> Iterator[str]:
    number = 0
    while True:
        number += 1
        if f"recovered-{number}" not in taken:
            yield f"recovered-{number}"
