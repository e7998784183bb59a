"""Read a file of sqlitedict: each table is a namespace; values are pickles, or JSON where ``encode=json.dumps``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hutch

from ..pickles import value_of
from ..sqlite_rows import columns_of, open_file, refuse, rows

_WHOSE = "a file of sqlitedict"


def read(path: Path, *, namespace: str | None = None, unpickle: bool = False) -> Iterator[tuple[str, str, Any]]:
    """Yield each item of the sqlitedict file `path`, as (namespace, key, value).

    A table with the columns key and value is a namespace of its name; `namespace` renames it if it is the only one. A
    text is read as JSON, bytes as a pickle; `value_of` says which stay pickles. Other tables are ignored. Holds one
    row at a time. Raises ConfigError if there is no such table, CorruptValueError for a row that cannot be read.
    """
    with open_file(path, _WHOSE) as file:
        tables = [name for name, columns in columns_of(file).items() if columns == {"key", "value"}]
        if not tables:
            raise hutch.ConfigError(
                f"{str(path)!r} has no table with the columns key and value, so it is not {_WHOSE}. Name another file"
            )
        if namespace is not None and len(tables) > 1:
            raise hutch.ConfigError(
                f"{str(path)!r} has {len(tables)} tables, which become a namespace each: leave out --namespace"
            )
        for table in tables:
            for row, key, value in rows(file, path, table, "key, value"):
                if not isinstance(key, str):
                    refuse(path, table, row, "its key is not text; encode_key made it. Copy the items in Python")
                yield namespace or table, key, _value(value, path, table, row, unpickle)


def _value(value: Any, path: Path, table: str, row: int, unpickle: bool) -> Any:
    if isinstance(value, bytes):
        where = f"{path}: the value in row {row} of table {table!r}, if sqlitedict's own encoding wrote it,"
        return value_of(value, where, unpickle=unpickle)
    try:
        return json.loads(value)
    except (TypeError, ValueError, RecursionError):
        refuse(path, table, row, "its value is neither a pickle nor JSON. Copy items of another encode= in Python")
