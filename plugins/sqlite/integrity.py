"""Verify integrity of an SQLite store: first SQLite's own integrity check, then names, counts and keys."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from sqlite3 import Connection, DatabaseError

from hutch import Finding, NamespaceError
from hutch.limits import MAX_KEY_BYTES, legible, validate_namespace

from . import deadlines
from .database import Database
from .file import NoDataError

_MOST_DAMAGE = 100


def verify(database: Database, repair: bool) -> list[Finding]:
    """Return findings, all read in one snapshot; `repair` repairs them in one transaction."""
    try:
        findings = database.read(_in_transaction, "BEGIN", False)
    except NoDataError:
        return []
    if not findings or not repair:
        return findings
    # Verify again: other processes may have written meanwhile.
    return database.write(_in_transaction, "BEGIN IMMEDIATE", True)


def _in_transaction(connection: Connection, begin: str, repair: bool) -> list[Finding]:
    connection.execute(begin)
    findings = list(_integrity(connection, repair))
    if all(finding.kind == "index" for finding in findings):
        findings += _contents(connection, repair)
    connection.execute("COMMIT")
    return findings


def _integrity(connection: Connection, repair: bool) -> Iterator[Finding]:
    faults = _faults(connection)
    if faults and all(" index " in text for text in faults):
        left = faults
        if repair:
            # REINDEX fails on duplicates in a unique index, and then changes nothing.
            with suppress(DatabaseError):
                connection.execute("REINDEX")
                left = _faults(connection)
        for text in faults:
            yield Finding("index", f"SQLite says {text!r}", repaired=text not in left)
        return
    for text in faults:
        yield Finding("structure", f"SQLite says {text!r}. Restore it from a copy")


def _faults(connection: Connection) -> list[str]:
    rows = connection.execute(f"PRAGMA integrity_check({_MOST_DAMAGE})").fetchall()
    # A row may hold several lines.
    return [line for (text,) in rows for line in text.splitlines() if line != "ok"]


def _contents(connection: Connection, repair: bool) -> Iterator[Finding]:
    names: dict[int, str] = {}
    stored: dict[int, object] = {}
    unnamed: list[tuple[int, bytes]] = []
    for number, raw, entries in connection.execute("SELECT id, CAST(name AS BLOB), entries FROM namespaces").fetchall():
        stored[number] = entries
        try:
            names[number] = validate_namespace(raw.decode())
        except (UnicodeDecodeError, NamespaceError):
            unnamed.append((number, raw))
    counts: dict[int, int] = dict(connection.execute("SELECT ns, count(*) FROM entries GROUP BY ns").fetchall())
    new = _new_names(set(names.values()))
    for number, raw in unnamed:
        shown = raw.decode(errors="backslashreplace")
        if not repair:
            yield Finding("orphan", f"{raw!a} is not a valid namespace name", shown)
            continue
        names[number] = next(new)
        connection.execute("UPDATE namespaces SET name = ? WHERE id = ?", (names[number], number))
        yield Finding(
            "orphan", f"{raw!a} is not a valid namespace name; it is {names[number]!r} now", shown, repaired=True
        )
    for number in sorted(set(counts) - set(stored)):
        message = f"{counts[number]:,} keys under id {number}, which no namespace has"
        if not repair:
            yield Finding("orphan", message)
            continue
        names[number] = next(new)
        connection.execute(
            "INSERT INTO namespaces (id, name, entries) VALUES (?, ?, ?)", (number, names[number], counts[number])
        )
        yield Finding("orphan", f"{message}: they are in {names[number]!r} now", names[number], repaired=True)
    for number, entries in stored.items():
        count = counts.get(number, 0)
        if entries != count:
            if repair:
                connection.execute("UPDATE namespaces SET entries = ? WHERE id = ?", (count, number))
            message = f"its stored number of keys is {entries!r}, but it has {count:,}"
            yield Finding("count", message, names.get(number), repaired=repair)
    for message in deadlines.verify(connection, repair):
        yield Finding("index", message, repaired=repair)
    yield from _keys(connection, names, repair)


def _keys(connection: Connection, names: dict[int, str], repair: bool) -> Iterator[Finding]:
    bad = []
    for number, key in connection.execute("SELECT ns, key FROM entries"):
        try:
            if key.decode() and len(key) <= MAX_KEY_BYTES:
                continue
        except (UnicodeDecodeError, AttributeError):
            pass
        bad.append((number, key))
    for number, key in bad:
        message = "a key that is not UTF-8, or too long, or empty: damaged, or written by another program"
        shown = legible(key) if isinstance(key, bytes) else None
        repaired = False
        if repair and isinstance(key, bytes):
            # The original key is unknown. Nothing is lost: the value stays, and the new key spells the old one in hex.
            changed = f"recovered-{key.hex()[: MAX_KEY_BYTES - 20]}"
            repaired = (
                connection.execute(
                    "UPDATE OR IGNORE entries SET key = ? WHERE ns = ? AND key = ?", (changed.encode(), number, key)
                ).rowcount
                == 1
            )
            message += f"; it is {changed!r} now" if repaired else ""
        yield Finding("key", message, names.get(number), shown, repaired)


def _new_names(taken: set[str]) -> Iterator[str]:
    number = 0
    while True:
        number += 1
        if f"recovered-{number}" not in taken:
            yield f"recovered-{number}"
