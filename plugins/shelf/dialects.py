"""Open, create and inspect the database at a place, by the class of its dialect."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Final

from hutch import StorageUnavailableError
from hutch.filesystem import open_or_create
from hutch.handlers import raised_by_handler

from .copied import CopiedDatabase, copy_and_change, driver
from .database import Database
from .dumb import DumbDatabase
from .files import Dialect, Place, storage_errors

_MODULES: Final[dict[Dialect, str]] = {"gnu": "_gdbm", "ndbm": "_dbm", "dumb": "dbm.dumb", "sqlite3": "sqlite3"}
_PACKAGES: Final[dict[Dialect, str]] = {
    "gnu": "the _gdbm module (on Debian the package python3-gdbm; a Python built from source needs libgdbm-dev first)",
    "ndbm": "the _dbm module (Debian's own python3 has it; a Python built from source needs libdb-dev first)",
    "dumb": "the dbm.dumb module of the standard library",
    "sqlite3": "the sqlite3 module (a Python built from source needs libsqlite3-dev first)",
}


def has_dialect(dialect: Dialect) -> bool:
    """Return whether this Python has the module for `dialect`."""
    try:
        importlib.import_module(_MODULES[dialect])
    except ImportError:
        return False
    return True


def default_dialect() -> Dialect:
    """Return the dialect that `shelve` uses for a new file in this Python."""
    if sys.version_info >= (3, 13) and has_dialect("sqlite3"):
        return "sqlite3"
    return next(dialect for dialect in _MODULES if has_dialect(dialect))


def open_database(place: Place, scratch: Path) -> Database:
    """Return the open database of the existing `place`. New versions of its files are written to `scratch` first.

    Raises StorageUnavailableError if this Python lacks the dialect, CorruptValueError if the files are no database.
    """
    _need(place)
    if place.dialect == "dumb":
        return DumbDatabase(place, scratch)
    if place.dialect == "sqlite3":
        from .sqlite import SqliteDatabase

        return SqliteDatabase(place)
    return CopiedDatabase(place, scratch)


def open_to_read(place: Place) -> Database | None:
    """Return the database at `place` for reading only, or None if another program wrote it.

    Neither changes a file nor creates one in that folder.
    """
    _need(place)
    if place.dialect == "dumb":
        return DumbDatabase(place, place.base, to_read=True)
    if place.dialect == "sqlite3":
        from .sqlite import open_copy

        return open_copy(place)
    return CopiedDatabase(place, place.base)


def create_database(place: Place, scratch: Path) -> None:
    """Create the empty files of a new database at `place`."""
    _need(place)
    with storage_errors(place.base):
        if place.dialect == "dumb":
            # Index first: an empty index without values is a new database, values without an index are damage.
            open_or_create(place.file(".dir")).close()
            open_or_create(place.file(".dat")).close()
        elif place.dialect == "sqlite3":
            from .sqlite import create

            create(place.base, scratch)
        else:
            copy_and_change(place, scratch, {}, fresh=True).close()


def holds_data(place: Place) -> bool:
    """Return whether there is a key at `place`, without taking a lock; True if that cannot be determined."""
    if not has_dialect(place.dialect):
        return True
    if place.dialect == "sqlite3":
        from . import sqlite

        return sqlite.holds_data(place)
    try:
        if place.dialect == "dumb":
            return place.file(".dir").stat().st_size > 0
        db = driver(place).open(str(place.base), "r")
        try:
            return bool(db.firstkey() is not None if place.dialect == "gnu" else len(db))
        finally:
            db.close()
    except OSError as error:
        if raised_by_handler(error):
            raise
        return True


def _need(place: Place) -> None:
    if not has_dialect(place.dialect):
        raise StorageUnavailableError(
            f"{place.base} is a {place.dialect} dbm file, and this Python cannot read those: it lacks "
            f"{_PACKAGES[place.dialect]}. Or run the application with the Python that wrote the file"
        )
