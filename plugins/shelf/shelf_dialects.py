"""The dialects of dbm, each as a small database of bytes that is never half written.

The standard library's own writers are not used for two of them, since a process killed inside them can leave files
that they cannot read: `dbm.dumb` overwrites values in place and is without an index for a moment. What is written
here is what they read, byte for byte in their formats.
"""

from __future__ import annotations

import ast
import contextlib
import errno
import importlib
import os
import shutil
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from hutch import (
    CorruptValueError,
    StorageFullError,
    StorageTimeoutError,
    StorageUnavailableError,
    StoreError,
    StoreLockedError,
)

from .shelf_files import FULL, Dialect, Place, has_dialect, storage_error, storage_errors

_BLOCK_BYTES: Final = 512
_BUSY_PATIENCE_S: Final = 5.0
# The index of dumb grows by a line a write; it is written anew when this many more lines than keys are in it.
_SPARE_LINES: Final = 1000
_PACKAGES: Final[dict[Dialect, str]] = {
    "gnu": "the _gdbm module (on Debian the package python3-gdbm; a Python built from source needs libgdbm-dev first)",
    "ndbm": "the _dbm module (Debian's own python3 has it; a Python built from source needs libdb-dev first)",
    "dumb": "the dbm.dumb module of the standard library",
    "sqlite3": "the sqlite3 module (a Python built from source needs libsqlite3-dev first)",
}


class Database(ABC):
    """One open database. Whoever uses it holds a lock: no dialect is safe for threads."""

    @abstractmethod
    def get(self, key: bytes) -> bytes | None:
        """The value of `key`."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def keys(self) -> list[bytes]:
        """All keys."""

    @abstractmethod
    def write(self, changes: Mapping[bytes, bytes | None]) -> None:
        """Set each key, or remove it where the value is None: all, or none if this raises or the process is killed."""

    @abstractmethod
    def clear(self) -> None:
        """Remove every key, in one step."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the files. What was written has reached the disk, as far as the dialect can tell."""

    def contains(self, key: bytes) -> bool:
        """Whether `key` is there."""
        return self.get(key) is not None

    def abandon(self) -> None:
        """In a forked child: forget what is the parent's, without closing it."""
        # A driver that closed would let go of the parent's locks, so it must not be collected either.
        _abandoned.append(self)


_abandoned: list[Database] = []


def open_database(place: Place, scratch: Path) -> Database:
    """Open the database at `place`, which exists. New versions of its files are written at `scratch` first.

    Raises StorageUnavailableError if this Python lacks the dialect, CorruptValueError for files that are none.
    """
    _need(place)
    if place.dialect == "dumb":
        return DumbDatabase(place, scratch)
    if place.dialect == "sqlite3":
        return SqliteDatabase(place)
    return CopiedDatabase(place, scratch)


def create_database(place: Place, scratch: Path) -> None:
    """Make the empty files of a new database at `place`."""
    _need(place)
    with storage_errors(place.base):
        if place.dialect == "dumb":
            # In this order: an index without values is new if it is empty, values without an index are not.
            place.file(".dir").touch()
            place.file(".dat").touch()
        elif place.dialect == "sqlite3":
            _remove(scratch, "-journal", "")
            connection = sqlite3.connect(scratch, isolation_level=None)
            with contextlib.closing(connection), _sqlite_errors(place.base):
                connection.execute("CREATE TABLE IF NOT EXISTS Dict (key BLOB UNIQUE NOT NULL, value BLOB NOT NULL)")
            scratch.replace(place.base)
        else:
            _copy_and_change(place, scratch, {}, fresh=True).close()


def holds_data(place: Place) -> bool:
    """Whether there is a key at `place`, asked without a lock; True where that cannot be found out."""
    try:
        if place.dialect == "dumb":
            return place.file(".dir").stat().st_size > 0
        if place.dialect == "sqlite3":
            # Without a log everything is in the file itself, and "immutable" keeps SQLite from making one.
            mode = "mode=ro" if place.file("-wal").exists() else "immutable=1"
            connection = sqlite3.connect(f"{place.base.as_uri()}?{mode}", uri=True)
            with contextlib.closing(connection):
                return connection.execute("SELECT 1 FROM Dict LIMIT 1").fetchone() is not None
        db = _driver(place).open(str(place.base), "r")
        try:
            return bool(db.firstkey() is not None if place.dialect == "gnu" else len(db))
        finally:
            db.close()
    except sqlite3.Error as error:
        return "no such table" not in str(error)  # another program's database
    except (OSError, ImportError):
        return True


def _need(place: Place) -> None:
    if not has_dialect(place.dialect):
        raise StorageUnavailableError(
            f"{place.base} is a {place.dialect} dbm file, and this Python cannot read those: it lacks "
            f"{_PACKAGES[place.dialect]}. Or run the application with the Python that wrote the file"
        )


# --- gnu and ndbm ---


class CopiedDatabase(Database):
    """A gnu or ndbm file: read where it is; to write, a changed copy takes its place.

    Written in place, either can be left unreadable by a process killed at the wrong moment, and ndbm tells nobody
    that the disk was full. A copy costs time in proportion to the file, which is small beside one `fsync` for files
    of some megabytes. While open, a gnu file is locked by its library against writers that know nothing of hutch.
    """

    def __init__(self, place: Place, scratch: Path) -> None:
        self._place, self._scratch = place, scratch
        self._db = _open_driver(place, place.base, "r")
        try:
            self._count: int = self._reading(lambda: len(self._db))
        except BaseException:
            self._db.close()
            raise

    def get(self, key: bytes) -> bytes | None:
        try:
            value: bytes = self._reading(lambda: self._db[key])
        except KeyError:
            return None
        return value

    def contains(self, key: bytes) -> bool:
        return bool(self._reading(lambda: key in self._db))

    def __len__(self) -> int:
        return self._count

    def keys(self) -> list[bytes]:
        found: list[bytes] = self._reading(self._db.keys)
        if len(found) != self._count:  # ndbm ends a walk early, without a word, where it meets damage
            raise CorruptValueError(
                f"{self._place.base}: a walk over its keys gave {len(found):,} of {self._count:,}; the "
                f"{self._place.dialect} file is damaged, restore it from a backup"
            )
        return found

    def write(self, changes: Mapping[bytes, bytes | None]) -> None:
        self._replace(changes, fresh=False)

    def clear(self) -> None:
        self._replace({}, fresh=True)

    def close(self) -> None:
        self._db.close()

    def _replace(self, changes: Mapping[bytes, bytes | None], fresh: bool) -> None:
        before = sum(map(self.contains, changes))
        count = 0 if fresh else self._count - before + sum(value is not None for value in changes.values())
        with storage_errors(self._place.base):
            db = _copy_and_change(self._place, self._scratch, changes, fresh, count)
        self._db.close()
        self._db, self._count = db, count

    def _reading(self, read: Callable[[], Any]) -> Any:
        try:
            return read()
        except OSError as error:
            raise _driver_error(error, self._place) from error


def _driver(place: Place) -> Any:
    return importlib.import_module(f"dbm.{place.dialect}")


def _open_driver(place: Place, base: Path, flag: str) -> Any:
    try:
        return _driver(place).open(str(base), flag)
    except OSError as error:
        raise _driver_error(error, place) from error


def _driver_error(error: OSError, place: Place) -> StoreError:
    if error.errno in (errno.EAGAIN, errno.EACCES):
        # Permissions fail earlier, when the first bytes of the file are looked at.
        return StoreLockedError(f"{place.base} is open in another process, which may be Errbot itself; stop that first")
    if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.EROFS, errno.EPERM, errno.ENOENT):
        return storage_error(error, place.base)
    return CorruptValueError(
        f"{place.base} is no {place.dialect} dbm file that can be read ({error}); it was cut short or damaged, restore "
        "it from a backup"
    )


def _copy_and_change(
    place: Place, scratch: Path, changes: Mapping[bytes, bytes | None], fresh: bool, count: int = 0
) -> Any:
    """Put a changed copy of the database in the place of it and return that, open for reading, with `count` keys."""
    copies = {suffix: scratch.with_name(scratch.name + suffix) for suffix in ("", ".db", ".pag", ".dir")}
    _remove(scratch, *copies)
    db = None
    try:
        if not fresh:
            for suffix, copy in copies.items():
                if _is_of(place, suffix):
                    shutil.copyfile(place.file(suffix), copy)
        db = _driver(place).open(str(scratch), "n" if fresh else "w")
        for key, value in changes.items():
            if value is not None:
                db[key] = value
            elif key in db:
                del db[key]
        if hasattr(db, "sync"):
            db.sync()
        db.close()
        db = _driver(place).open(str(scratch), "r")
        # The drivers do not say when closing fails.
        if len(db) != count or any(db.get(key) != value for key, value in changes.items()):
            raise StorageFullError(
                f"{place.base} could not be written in full, most likely for want of space; what was stored before is "
                "intact"
            )
        # The directory of .pag and .dir first: it is the same in both versions, or the values would not be found.
        for suffix in (".dir", ".pag", ".db", ""):
            if copies[suffix].exists():
                _take_place(copies[suffix], place.file(suffix))
        return db
    except BaseException as error:
        if db is not None:
            db.close()
        with contextlib.suppress(OSError):
            _remove(scratch, *copies)
        if not isinstance(error, OSError) or not isinstance(error, _driver(place).error) or error.errno in FULL:
            raise
        if place.dialect == "gnu":
            raise _driver_error(error, place) from error
        raise StorageFullError(  # "cannot add item to database" is all that it ever says
            f"{place.base} could not be written ({error}): no space, an item too large for this ndbm library, or a "
            "damaged file; what was stored before is intact"
        ) from error


def _is_of(place: Place, suffix: str) -> bool:
    return (suffix == "") == (place.dialect == "gnu") and place.file(suffix).is_file()


def _take_place(new: Path, target: Path) -> None:
    """Rename `new` to `target`, whose owner and mode it inherits, when its bytes have reached the disk."""
    target = Path(os.path.realpath(target))  # a link stays a link
    with open(new, "r+b") as file:  # noqa: PTH123
        os.fsync(file.fileno())
    with contextlib.suppress(FileNotFoundError):
        shutil.copymode(target, new)
        if hasattr(os, "chown"):
            status = target.stat()
            with contextlib.suppress(PermissionError):
                os.chown(new, status.st_uid, status.st_gid)
    new.replace(target)


def _remove(base: Path, *suffixes: str) -> None:
    for suffix in suffixes:
        base.with_name(base.name + suffix).unlink(missing_ok=True)


# --- dumb ---


class DumbDatabase(Database):
    """The files of `dbm.dumb`: values in ``.dat``, an index of lines ``'key', (position, size)`` in ``.dir``.

    A value is never overwritten. A new one goes to blocks that no key uses, then a line is added to the index: of
    two lines for one key the last counts, for every version of `dbm.dumb`. Removing, and setting several keys in one
    step, put a new index in the place of the old one.
    """

    def __init__(self, place: Place, scratch: Path) -> None:
        self._dat, self._dir, self._bak = (place.file(suffix) for suffix in (".dat", ".dir", ".bak"))
        self._scratch = scratch
        self._index: dict[bytes, tuple[int, int]] = {}
        self._lines = 0
        self._wrote = False
        with storage_errors(self._dat):
            self._file = open(self._dat, "r+b", buffering=0)  # noqa: SIM115, PTH123 - closed in close()
        try:
            with storage_errors(self._dir):
                self._load()
            self._find_free()
        except BaseException:
            self._file.close()
            raise

    def get(self, key: bytes) -> bytes | None:
        place = self._index.get(key)
        if place is None:
            return None
        position, size = place
        with storage_errors(self._dat):
            self._file.seek(position)
            data = self._file.read(size) or b""
            while len(data) < size and (more := self._file.read(size - len(data))):
                data += more
        if len(data) != size:
            raise self._cut_short(position + size)
        return data

    def contains(self, key: bytes) -> bool:
        return key in self._index

    def __len__(self) -> int:
        return len(self._index)

    def keys(self) -> list[bytes]:
        return list(self._index)

    def write(self, changes: Mapping[bytes, bytes | None]) -> None:
        end = self._end
        index = self._index
        try:
            with storage_errors(self._dat):
                placed = {key: self._put(value) for key, value in changes.items() if value is not None}
            removed = {key for key, value in changes.items() if value is None and key in index}
            if len(placed) == 1 and not removed and self._lines < 2 * len(index) + _SPARE_LINES:
                self._add_line(*next(iter(placed.items())))
            elif placed or removed:
                index = {key: at for key, at in {**index, **placed}.items() if key not in removed}
                self._write_index(index)
        except BaseException:
            self._find_free()
            with contextlib.suppress(OSError):
                if os.fstat(self._file.fileno()).st_size > end:
                    self._file.truncate(end)
            raise
        if self._is_tidy:
            freed = (self._index[key] for key in changes if key in self._index)
            self._free += [(position, _blocks(size)) for position, size in freed]
        index.update(placed)
        self._index = index

    def clear(self) -> None:
        self._write_index({})
        self._index = {}
        with storage_errors(self._dat):
            self._file.truncate(0)
        self._find_free()

    def close(self) -> None:
        try:
            if self._wrote:
                with storage_errors(self._dat):
                    os.fsync(self._file.fileno())
                with storage_errors(self._dir), self._dir.open("r+b") as file:
                    os.fsync(file.fileno())
        finally:
            self._file.close()

    def abandon(self) -> None:
        self._file.close()

    def _load(self) -> None:
        with self._dir.open(encoding="latin-1") as file:
            self._ends_with_newline = True
            for number, line in enumerate(file, 1):
                try:
                    key, (position, size) = ast.literal_eval(line.rstrip())
                    encoded = key.encode("latin-1")
                    if type(position) is not int or type(size) is not int or position < 0 or size < 0:
                        raise ValueError("expected a position and a size")
                except (ValueError, SyntaxError, TypeError, AttributeError, MemoryError, RecursionError) as error:
                    raise CorruptValueError(
                        f"line {number} of {self._dir} is no entry of an index of dbm.dumb; it was cut short or "
                        "damaged. Restore it, or remove that line and with it one key"
                    ) from error
                self._index[encoded] = position, size
                self._lines = number
                self._ends_with_newline = line.endswith("\n")
        needed = max((position + size for position, size in self._index.values()), default=0)
        if os.fstat(self._file.fileno()).st_size < needed:
            raise self._cut_short(needed)

    def _cut_short(self, needed: int) -> CorruptValueError:
        return CorruptValueError(
            f"{self._dat} was cut short: by its index {self._dir.name} it has at least {needed:,} bytes, and it has "
            f"{os.fstat(self._file.fileno()).st_size:,}; restore it from a backup"
        )

    def _find_free(self) -> None:
        """Find the runs of blocks that no key uses, from the index."""
        self._free: list[tuple[int, int]] = []
        # Nothing that dbm.dumb writes is otherwise; if it is, what one key leaves may still be another's.
        self._is_tidy = True
        end = 0
        for position, size in sorted(self._index.values()):
            start = position - position % _BLOCK_BYTES
            if start > end:
                self._free.append((end, (start - end) // _BLOCK_BYTES))
            if start < end or start != position:
                self._is_tidy = False
            end = max(end, start + _blocks(position - start + size) * _BLOCK_BYTES)
        self._end = end

    def _put(self, value: bytes) -> tuple[int, int]:
        """Write `value` to free blocks."""
        wanted = _blocks(len(value))
        for i, (position, blocks) in enumerate(self._free):
            if blocks >= wanted:
                self._free[i : i + 1] = [(position + wanted * _BLOCK_BYTES, blocks - wanted)] if blocks > wanted else []
                break
        else:
            position = self._end
            self._end += wanted * _BLOCK_BYTES
        if not self._wrote:
            self._bak.unlink(missing_ok=True)  # it speaks of blocks that others use from now on
            self._wrote = True
        self._file.seek(position)
        _write_all(self._file, value)
        return position, len(value)

    def _add_line(self, key: bytes, place: tuple[int, int]) -> None:
        line = _line(key, place) if self._ends_with_newline else f"\n{_line(key, place)}"
        with storage_errors(self._dir), open(self._dir, "ab", buffering=0) as file:  # noqa: PTH123
            end = file.seek(0, os.SEEK_END)
            try:
                _write_all(file, line.encode("latin-1"))
            except BaseException:
                file.truncate(end)
                raise
        self._lines += 1
        self._ends_with_newline = True

    def _write_index(self, index: Mapping[bytes, tuple[int, int]]) -> None:
        with storage_errors(self._dir):
            self._bak.unlink(missing_ok=True)
            try:
                with self._scratch.open("w", encoding="latin-1", newline="\n") as file:
                    file.writelines(_line(key, place) for key, place in index.items())
                _take_place(self._scratch, self._dir)
            except BaseException:
                with contextlib.suppress(OSError):
                    self._scratch.unlink(missing_ok=True)
                raise
        self._wrote = True
        self._lines = len(index)
        self._ends_with_newline = True


def _line(key: bytes, place: tuple[int, int]) -> str:
    return f"{key.decode('latin-1')!r}, {place!r}\n"


def _blocks(size: int) -> int:
    return max(1, -(-size // _BLOCK_BYTES))


def _write_all(file: Any, data: bytes) -> None:
    # An unbuffered file may write a part, and says so; the next call then has the error, if there was one.
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


# --- sqlite3 ---


class SqliteDatabase(Database):
    """The file of Python 3.13's `dbm.sqlite3`, through sqlite3 itself, so that older Pythons read and write it too."""

    def __init__(self, place: Place) -> None:
        self._base = place.base
        with storage_errors(self._base), self._base.open("r+b"):
            pass  # sqlite3 would not say what is wrong
        with self._errors():
            self._connection = sqlite3.connect(
                f"{self._base.as_uri()}?mode=rw",
                uri=True,
                isolation_level=None,
                check_same_thread=False,
                timeout=_BUSY_PATIENCE_S,
            )
        try:
            with self._errors():
                self._connection.execute("SELECT key, value FROM Dict LIMIT 1").fetchone()
                # As dbm.sqlite3 has it. With it NORMAL is enough to lose nothing to a killed process.
                self._connection.execute("PRAGMA journal_mode = wal").fetchone()
                self._connection.execute("PRAGMA synchronous = NORMAL")
        except BaseException:
            self._connection.close()
            raise

    def get(self, key: bytes) -> bytes | None:
        row = self._row("SELECT CAST(value AS BLOB) FROM Dict WHERE key = ?", key)
        return None if row is None else bytes(row[0])

    def contains(self, key: bytes) -> bool:
        return self._row("SELECT 1 FROM Dict WHERE key = ?", key) is not None

    def __len__(self) -> int:
        return int(self._row("SELECT COUNT(*) FROM Dict")[0])

    def keys(self) -> list[bytes]:
        with self._errors():
            return [key for (key,) in self._connection.execute("SELECT CAST(key AS BLOB) FROM Dict")]

    def write(self, changes: Mapping[bytes, bytes | None]) -> None:
        with self._transaction():
            for key, value in changes.items():
                if value is None:
                    self._connection.execute("DELETE FROM Dict WHERE key = ?", (key,))
                else:
                    self._connection.execute("REPLACE INTO Dict (key, value) VALUES (?, ?)", (key, value))

    def clear(self) -> None:
        with self._transaction():
            self._connection.execute("DELETE FROM Dict")

    def close(self) -> None:
        with self._errors():
            self._connection.close()

    def _row(self, statement: str, *parameters: bytes) -> Any:
        with self._errors():
            return self._connection.execute(statement, parameters).fetchone()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._errors():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    with contextlib.suppress(sqlite3.Error):
                        self._connection.execute("ROLLBACK")
                raise

    def _errors(self) -> contextlib.AbstractContextManager[None]:
        return _sqlite_errors(self._base)


@contextlib.contextmanager
def _sqlite_errors(file: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0)
        if code & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise StorageTimeoutError(
                f"{file} stayed busy for {_BUSY_PATIENCE_S:.0f} s; another process, which may be Errbot itself, writes "
                "to it. Stop that first"
            ) from error
        if code & 0xFF == sqlite3.SQLITE_FULL or code in (
            # Quotas and limits of file size end in these.
            sqlite3.SQLITE_IOERR_WRITE,
            sqlite3.SQLITE_IOERR_TRUNCATE,
            sqlite3.SQLITE_IOERR_SHMSIZE,
        ):
            raise StorageFullError(f"no room to write {file}: {error}; what was stored before is intact") from error
        if code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR):
            raise CorruptValueError(
                f"{file} is no sqlite3 dbm file that can be read ({error}): expected a table Dict of key and value. It "
                "was cut short, damaged, or is another program's; restore it, or move it away"
            ) from error
        raise StorageUnavailableError(f"cannot use {file}: {error}") from error
