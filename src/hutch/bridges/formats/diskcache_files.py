"""Read the folder of a diskcache `Cache`, `FanoutCache` or `Index`: cache.db, and a file for each large value."""

from __future__ import annotations

import math
import os
import sqlite3
import stat
import time
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any, NoReturn

import hutch

from ...codec.frame import MAX_DEADLINE_MS
from ...codec.pickled import Pickled
from ...deadlines import with_deadline
from ...filesystem import open_existing
from ..pickles import value_of
from ..sqlite_rows import columns_of, open_file, refuse, rows

_WHOSE = "cache.db of diskcache"
_COLUMNS = "key, raw, mode, filename, value, expire_time"
# The modes of diskcache.core.
_RAW, _BINARY, _TEXT, _PICKLE = 1, 2, 3, 4
_LIVE = "expire_time IS NULL OR expire_time > ?"


def read(path: Path, *, namespace: str | None = None, unpickle: bool = False) -> Iterator[tuple[str, str, Any]]:
    """Yield each item of the diskcache folder `path` that has not expired, as (namespace, key, value).

    A key that is text stays as it is; any other becomes its `repr`, so the int 7 becomes "7". The namespace is the
    folder's name unless given. Tags are not kept. A value that expires is an `Expiring`. `value_of` says which values
    stay pickles. Holds one value at a time. Raises ConfigError if it is not such a folder, CorruptValueError for a row
    that cannot be read.
    """
    for file in _databases(path):
        with open_file(file, _WHOSE) as database:
            _validate(database, file)
            for row, *columns in rows(database, file, "Cache", _COLUMNS, _LIVE, (time.time(),)):
                key = _key(columns[0], columns[1], file, row)
                value = with_deadline(_value(columns[2:5], file, row, unpickle), _deadline(columns[5], file, row))
                yield namespace or path.resolve().name, key, value


def _deadline(expire_time: Any, file: Path, row: int) -> int | None:
    """Return `expire_time`, seconds since 1970 or None, as a deadline."""
    if expire_time is None:
        return None
    if not isinstance(expire_time, int | float) or not 0 <= expire_time < math.inf:
        refuse(file, "Cache", row, "its expire_time is not a number of seconds")
    deadline_ms = math.ceil(expire_time * 1000)
    return deadline_ms if deadline_ms <= MAX_DEADLINE_MS else None


def _databases(path: Path) -> list[Path]:
    own = path / "cache.db"
    files = [own] if own.exists() else sorted(path.glob("[0-9][0-9][0-9]/cache.db"))
    if not files:
        raise hutch.ConfigError(
            f"{str(path)!r} has no file cache.db, nor have folders in it: expected the folder that diskcache.Cache or "
            "FanoutCache was given"
        )
    return files


def _validate(database: sqlite3.Connection, file: Path) -> None:
    if not {"key", "raw", "mode", "filename", "value", "expire_time"} <= columns_of(database).get("Cache", set()):
        raise hutch.ConfigError(f"{str(file)!r} has no table Cache as diskcache makes it. Name the folder of a cache")


def _key(key: Any, raw: Any, file: Path, row: int) -> str:
    if not raw:
        if not isinstance(key, bytes):
            refuse(file, "Cache", row, "its key is not a pickle")
        key = value_of(key, f"{file}: the key in row {row}")
        if isinstance(key, Pickled):
            refuse(file, "Cache", row, "its key is an object that only its program can load. Copy the items in Python")
    elif isinstance(key, bytes) and _is_compressed(key):
        refuse(file, "Cache", row, "its key is compressed, as JSONDisk does. Copy the items in Python")
    return key if isinstance(key, str) else repr(key)


def _is_compressed(data: bytes) -> bool:
    try:
        zlib.decompress(data)
    except zlib.error:
        return False
    return True


def _value(columns: list[Any], file: Path, row: int, unpickle: bool) -> Any:
    mode, name, value = columns
    if name is not None:
        value = _read_file(file, name, row)
    if mode == _PICKLE and isinstance(value, bytes):
        return value_of(value, f"{file}: the value in row {row}", unpickle=unpickle)
    if mode == _TEXT and name is not None:
        try:
            return value.decode()
        except UnicodeDecodeError:
            refuse(file, "Cache", row, "its file is not UTF-8")
    # SQLite holds NaN as NULL, which diskcache reads as None.
    if mode != (_RAW if name is None else _BINARY):
        refuse(file, "Cache", row, f"mode {mode!r} does not fit its value")
    return value


def _read_file(database: Path, name: Any, row: int) -> bytes:
    """Return the content of a value's file, which must lie in the folder; a link on the way is refused."""
    parts = PurePath(name).parts if isinstance(name, str) and "\0" not in name else ()
    if not parts or PurePath(name).is_absolute() or ".." in parts:
        refuse(database, "Cache", row, "the name of its file does not lie in the folder")
    folder = database.parent
    for part in parts[:-1]:
        folder /= part
        if os.path.lexists(folder) and not stat.S_ISDIR(os.lstat(folder).st_mode):
            refuse(database, "Cache", row, "the folder of its file is a link, or not a folder")
    try:
        with open_existing(folder / parts[-1]) as file:
            return file.readall() or b""
    except FileNotFoundError:
        _refuse_missing(database, row)


def _refuse_missing(database: Path, row: int) -> NoReturn:
    refuse(
        database,
        "Cache",
        row,
        f"its file is missing. Remove the row: diskcache.Cache({str(database.parent)!r}).check(fix=True)",
    )
