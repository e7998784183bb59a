"""Read the rows of another program's SQLite file, one at a time, without changing the file."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NoReturn

import hutch


@contextmanager
def open_file(path: Path, whose: str) -> Iterator[sqlite3.Connection]:
    """Open the file `path` for reading; `whose` says in an error what was expected. Raises CorruptValueError."""
    if not path.is_file():
        raise hutch.ConfigError(f"{str(path)!r} is not a file; expected {whose}")
    try:
        # A path can have any character; `as_uri` quotes it. To read a file in WAL mode, SQLite creates a missing
        # log. Without a log all data is in the file itself, and "immutable" keeps SQLite from creating a log.
        place = path.resolve()
        has_log = place.with_name(f"{place.name}-wal").exists()
        mode = "immutable=1" if _is_in_wal_mode(place) and not has_log else "mode=ro"
        with closing(sqlite3.connect(f"{place.as_uri()}?{mode}", uri=True, isolation_level=None)) as file:
            file.text_factory = _decode_or_none
            yield file
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:  # the latter for damaged names of tables
        message = f"{str(path)!r} cannot be read as {whose}: {error}"
        if "readonly" in str(error) or "unable to open" in str(error):
            # A writer was killed. Rolling its transaction back would change the file.
            message += ". If its program was killed, let it open the file once more, which repairs it"
        raise hutch.CorruptValueError(message) from error


def _is_in_wal_mode(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(20)[18:] == b"\x02\x02"


def columns_of(file: sqlite3.Connection) -> dict[str, set[str]]:
    """Return the columns of each table, by its name."""
    tables = [name for (name,) in file.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")]
    return {
        name: {row[1] for row in file.execute(f"PRAGMA table_info({quoted(name)})")}
        for name in tables
        if isinstance(name, str) and not name.startswith("sqlite_")
    }


def rows(
    file: sqlite3.Connection, path: Path, table: str, columns: str, where: str = "1", arguments: tuple[Any, ...] = ()
) -> Iterator[tuple[Any, ...]]:
    """Yield each row of `table`, its number first. `columns` and `where` are SQL.

    Each row is a query of its own, so that no lock makes a writer wait meanwhile.
    """
    query = (
        f"SELECT rowid, {columns} FROM {quoted(table)} "  # noqa: S608
        f"WHERE rowid > ? AND ({where}) ORDER BY rowid LIMIT 1"
    )
    last = -(2**63)
    while row := file.execute(query, (last, *arguments)).fetchone():
        if row[0] <= last:  # a damaged file: the same rows would repeat forever
            refuse(path, table, row[0], "it follows a row with a greater number")
        last = row[0]
        yield row


def quoted(name: str) -> str:
    """Return `name` as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def refuse(path: Path, table: str, row: int, reason: str) -> NoReturn:
    """Raise CorruptValueError for a row."""
    shown = table if table.isidentifier() else repr(table)
    raise hutch.CorruptValueError(f"{str(path)!r}, table {shown}, row {row} cannot be read: {reason}")


def _decode_or_none(text: bytes) -> str | None:
    # The error of sqlite3 would show the text but not the row.
    try:
        return text.decode()
    except UnicodeDecodeError:
        return None
