"""The dialect sqlite3. Imported only when needed, because not every Python has sqlite3."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from hutch import CorruptValueError, StorageFullError, StorageTimeoutError, StorageUnavailableError
from hutch.filesystem import error_of_new_file, flush_folder, open_existing, validate_regular_file
from hutch.handlers import raised_by_handler

from .database import Database, copy_file, remove
from .files import Place, storage_error, storage_errors

# How long a call waits for programs other than hutch; the process lock excludes hutch's own processes.
_BUSY_WAIT_S: Final = 5.0
_BUSY_RETRY_S: Final = 0.005


class SqliteDatabase(Database):
    """A file of Python 3.13's `dbm.sqlite3`, accessed through sqlite3, so that older Pythons read and write it too."""

    def __init__(self, place: Place, shown_path: Path | None = None) -> None:
        """Open the file at `place`; errors name `shown_path` instead, if given."""
        self._file, self._base = place.base, shown_path or place.base
        with storage_errors(self._base), open_existing(place.base, "r+b"):
            pass  # its OSError says what is wrong; sqlite3 would not
        with self._errors():
            self._connection = sqlite3.connect(
                f"{place.base.as_uri()}?mode=rw",
                uri=True,
                isolation_level=None,
                check_same_thread=False,
                timeout=0,  # SQLite's own wait ignores Ctrl-C
            )
        self.release = self._connection.close
        try:
            with self._errors():
                self._execute("SELECT key, value FROM Dict LIMIT 1").fetchone()
                # WAL as in dbm.sqlite3. With WAL, a killed process loses nothing even with NORMAL.
                self._execute("PRAGMA journal_mode = wal").fetchone()
                self._execute("PRAGMA synchronous = NORMAL")
        except BaseException:
            self.release()
            raise

    def get(self, key: bytes) -> bytes | None:
        row = self._row("SELECT CAST(value AS BLOB) FROM Dict WHERE key = ?", key)
        return None if row is None else self._not_null(row[0])

    def contains(self, key: bytes) -> bool:
        return self._row("SELECT 1 FROM Dict WHERE key = ?", key) is not None

    def __len__(self) -> int:
        return int(self._row("SELECT COUNT(*) FROM Dict")[0])

    def keys(self) -> list[bytes]:
        with self._errors():
            return [self._not_null(key) for (key,) in self._rows("SELECT CAST(key AS BLOB) FROM Dict")]

    def write(self, changes: Mapping[bytes, bytes | None]) -> None:
        self.write_and_expire(changes, {})

    def write_and_expire(self, changes: Mapping[bytes, bytes | None], expired: Mapping[bytes, bytes]) -> None:
        with self._transaction():
            # Another program may have set a value since it was read.
            for row in expired.items():
                self._connection.execute("DELETE FROM Dict WHERE key = ? AND CAST(value AS BLOB) = ?", row)
            for key, value in changes.items():
                if value is None:
                    self._connection.execute("DELETE FROM Dict WHERE key = ?", (key,))
                else:
                    self._connection.execute("REPLACE INTO Dict (key, value) VALUES (?, ?)", (key, value))

    def clear(self) -> None:
        with self._transaction():
            self._connection.execute("DELETE FROM Dict")

    def compact(self) -> None:
        with self._errors():
            self._execute("VACUUM")
            self._execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def _not_null(self, blob: bytes | None) -> bytes:
        if blob is None:  # forbidden by the table, but SQLite does not validate when it reads
            raise CorruptValueError(
                f"{self._base} is damaged: it has a row without key or value; restore it from a backup"
            )
        return blob

    def _row(self, statement: str, *parameters: bytes) -> Any:
        with self._errors():
            return next(iter(self._rows(statement, parameters)), None)

    def _rows(self, statement: str, parameters: tuple[bytes, ...] = ()) -> list[Any]:
        if not self._connection.in_transaction:
            return self._execute(statement, parameters).fetchall()
        # A signal handler interrupted a write: through this connection it would read half-written data.
        with contextlib.closing(sqlite3.connect(f"{self._file.as_uri()}?mode=ro", uri=True)) as reader:
            return reader.execute(statement, parameters).fetchall()

    def _execute(self, statement: str, parameters: tuple[bytes, ...] = ()) -> sqlite3.Cursor:
        deadline_s = None
        while True:
            try:
                return self._connection.execute(statement, parameters)
            except sqlite3.OperationalError as error:
                if raised_by_handler(error) or not _is_busy(error):
                    raise
                now_s = time.monotonic()
                deadline_s = deadline_s or now_s + _BUSY_WAIT_S
                if now_s >= deadline_s:
                    raise
            time.sleep(_BUSY_RETRY_S)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._errors():
            self._execute("BEGIN IMMEDIATE")
            try:
                yield
                self._execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    with contextlib.suppress(sqlite3.Error):
                        self._connection.execute("ROLLBACK")
                raise

    def _errors(self) -> contextlib.AbstractContextManager[None]:
        return _sqlite_errors(self._base)


class SqliteCopy(SqliteDatabase):
    """A copy of the file in another folder: SQLite cannot read a killed process's files without creating files."""

    def __init__(self, place: Place) -> None:
        from tempfile import TemporaryDirectory  # here, because it takes longer than opening a shelf

        self._folder = TemporaryDirectory(prefix="hutch-shelf-", ignore_cleanup_errors=True)
        try:
            copy = Place(Path(self._folder.name, "copy.db"), place.dialect)
            for suffix in ("", "-journal", "-wal"):
                with storage_errors(copy.file(suffix)):
                    if validate_regular_file(place.file(suffix)) is not None:
                        copy_file(place.file(suffix), copy.file(suffix))
            super().__init__(copy, place.base)
        except BaseException:
            self._folder.cleanup()
            raise

    def close(self) -> None:
        try:
            self.release()
        finally:
            self._folder.cleanup()


def open_copy(place: Place) -> SqliteCopy | None:
    """Return a readable copy of the file at `place`, or None if it is not a shelf."""
    try:
        return SqliteCopy(place)
    except CorruptValueError as error:
        if _is_foreign(error.__cause__):
            return None
        raise


def _is_foreign(error: BaseException | None) -> bool:
    return "no such table" in str(error)


def _is_busy(error: sqlite3.Error) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


@contextlib.contextmanager
def _sqlite_errors(file: Path) -> Iterator[None]:
    try:
        yield
    except UnicodeDecodeError as error:  # sqlite3 fails to decode a damaged schema for its error text
        if raised_by_handler(error):
            raise
        raise CorruptValueError(f"{file} is damaged; restore it from a backup, or move it away") from error
    except sqlite3.Error as error:
        if raised_by_handler(error):
            raise
        code = getattr(error, "sqlite_errorcode", 0)
        if _is_busy(error):
            raise StorageTimeoutError(
                f"{file} stayed busy for {_BUSY_WAIT_S:.0f} s; another process, which may be Errbot itself, writes "
                "to it. Stop that first"
            ) from error
        if code & 0xFF in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN) and (
            reason := error_of_new_file(file.parent)
        ):
            raise storage_error(reason, file) from error
        if code & 0xFF == sqlite3.SQLITE_FULL or code in (
            # Quotas and file size limits end in these.
            sqlite3.SQLITE_IOERR_WRITE,
            sqlite3.SQLITE_IOERR_TRUNCATE,
            sqlite3.SQLITE_IOERR_SHMSIZE,
        ):
            raise StorageFullError(f"no room to write {file}: {error}; what was stored before is intact") from error
        if code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR):
            raise CorruptValueError(
                f"{file} is not a readable sqlite3 dbm file ({error}): expected a table Dict with the columns key and "
                "value. It is truncated, damaged, or was not written by dbm; restore it, or move it away"
            ) from error
        raise StorageUnavailableError(f"cannot use {file}: {error}") from error


def create(file: Path, scratch: Path) -> None:
    """Create an empty database at `file`, atomically."""
    remove(scratch, "-journal", "")
    with _sqlite_errors(file), contextlib.closing(sqlite3.connect(scratch, isolation_level=None)) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS Dict (key BLOB UNIQUE NOT NULL, value BLOB NOT NULL)")
    scratch.replace(file)
    flush_folder(file.parent)


def holds_data(place: Place) -> bool:
    """Return whether there is a row; True if that cannot be determined."""
    # Without a log all data is in the file itself, and "immutable" keeps SQLite from creating a log.
    mode = "mode=ro" if place.file("-wal").exists() else "immutable=1"
    try:
        with contextlib.closing(sqlite3.connect(f"{place.base.as_uri()}?{mode}", uri=True)) as connection:
            return connection.execute("SELECT 1 FROM Dict LIMIT 1").fetchone() is not None
    except sqlite3.Error as error:
        if raised_by_handler(error):
            raise
        return not _is_foreign(error)
