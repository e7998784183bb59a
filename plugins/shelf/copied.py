"""The dialects gnu and ndbm: read files in place, and write by replacing them with a changed copy."""

from __future__ import annotations

import errno
import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hutch import CorruptValueError, StorageFullError, StoreError, StoreLockedError
from hutch.handlers import raised_by_handler, suppress_own

from .database import Database, copy_file, remove, replace_file
from .files import FULL, Place, storage_error, storage_errors


class CopiedDatabase(Database):
    """A gnu or ndbm file, read in place and replaced by a changed copy on every write.

    A process killed while writing in place could leave either unreadable, and ndbm does not report a full disk. A copy
    takes time in proportion to the file; up to a few megabytes that is little compared with one `fsync`. While a gnu
    file is open, its library locks it against writers other than hutch.
    """

    def __init__(self, place: Place, scratch: Path) -> None:
        self._place, self._scratch = place, scratch
        self._db = _open_driver(place, place.base, "r")
        self.release = self._db.close
        try:
            self._count: int = self._reading(self._db.__len__)
        except BaseException:
            self.release()
            raise

    def get(self, key: bytes) -> bytes | None:
        value: bytes | None = self._reading(self._db.get, key)
        return value

    def contains(self, key: bytes) -> bool:
        return bool(self._reading(self._db.__contains__, key))

    def __len__(self) -> int:
        return self._count

    def keys(self) -> list[bytes]:
        keys: list[bytes] = self._reading(self._db.keys)
        if len(keys) != self._count:  # ndbm silently ends a walk at damage
            raise CorruptValueError(
                f"{self._place.base}: a walk over its keys gave {len(keys):,} of {self._count:,}; the "
                f"{self._place.dialect} file is damaged, restore it from a backup"
            )
        return keys

    def write(self, changes: Mapping[bytes, bytes | None]) -> None:
        self._replace(changes, fresh=False)

    def clear(self) -> None:
        self._replace({}, fresh=True)

    def compact(self) -> None:
        # Only one file can be replaced atomically; ndbm may have two.
        if self._place.dialect == "gnu":
            self._replace({key: self.get(key) for key in self.keys()}, fresh=True)

    def _replace(self, changes: Mapping[bytes, bytes | None], fresh: bool) -> None:
        added = sum(value is not None for value in changes.values())
        count = added if fresh else self._count - sum(map(self.contains, changes)) + added
        with storage_errors(self._place.base):
            db = copy_and_change(self._place, self._scratch, changes, fresh, count)
        release = self.release
        self._db, self._count, self.release = db, count, db.close
        release()

    def _reading(self, read: Callable[..., Any], *args: bytes) -> Any:
        try:
            return read(*args)
        except OSError as error:
            if raised_by_handler(error):
                raise
            raise _driver_error(error, self._place) from error


def driver(place: Place) -> Any:
    return importlib.import_module(f"dbm.{place.dialect}")


def _open_driver(place: Place, base: Path, flag: str) -> Any:
    try:
        return driver(place).open(str(base), flag)
    except OSError as error:
        if raised_by_handler(error):
            raise
        raise _driver_error(error, place) from error


def _driver_error(error: OSError, place: Place) -> StoreError:
    if error.errno in (errno.EAGAIN, errno.EACCES):
        # Not a permission problem: that fails earlier, when the file's first bytes are read.
        return StoreLockedError(f"{place.base} is open in another process, which may be Errbot itself; stop that first")
    if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.EROFS, errno.EPERM, errno.ENOENT):
        return storage_error(error, place.base)
    return CorruptValueError(
        f"{place.base} is not a readable {place.dialect} dbm file ({error}); it is truncated or damaged, restore it "
        "from a backup"
    )


def copy_and_change(
    place: Place, scratch: Path, changes: Mapping[bytes, bytes | None], fresh: bool, count: int = 0
) -> Any:
    """Replace the database with a changed copy of `count` keys, and return the copy, open for reading."""
    copies = {suffix: scratch.with_name(scratch.name + suffix) for suffix in ("", ".db", ".pag", ".dir")}
    remove(scratch, *copies)
    db = None
    try:
        if not fresh:
            for suffix, copy in copies.items():
                if _is_data_file(place, suffix):
                    copy_file(place.file(suffix), copy)
        db = driver(place).open(str(scratch), "n" if fresh else "w")
        for key, value in changes.items():
            if value is not None:
                db[key] = value
            elif key in db:
                del db[key]
        if hasattr(db, "sync"):
            db.sync()
        db.close()
        db = driver(place).open(str(scratch), "r")
        # The drivers do not report a failed close.
        if len(db) != count or any(db.get(key) != value for key, value in changes.items()):
            raise StorageFullError(
                f"{place.base} could not be written in full, most likely because the disk is full; what was stored "
                "before is intact"
            )
        # .dir before .pag: it is the same in both versions, otherwise the values would not be found.
        for suffix in (".dir", ".pag", ".db", ""):
            if copies[suffix].exists():
                replace_file(copies[suffix], place.file(suffix))
        return db
    except BaseException as error:
        if db is not None:
            db.close()
        with suppress_own(OSError):
            remove(scratch, *copies)
        if not isinstance(error, OSError) or not isinstance(error, driver(place).error) or error.errno in FULL:
            raise
        if raised_by_handler(error):
            raise
        if place.dialect == "gnu":
            raise _driver_error(error, place) from error
        raise StorageFullError(  # its only error text is "cannot add item to database"
            f"{place.base} could not be written ({error}): no space, an item too large for this ndbm library, or a "
            "damaged file; what was stored before is intact"
        ) from error


def _is_data_file(place: Place, suffix: str) -> bool:
    return (suffix == "") == (place.dialect == "gnu") and place.file(suffix).is_file()
