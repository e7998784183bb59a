"""Layout of ragas datasets and experiments in hutch.

A table, which is a dataset or an experiment, is a list of rows, which are dicts. It is in the namespace `DATASETS` or
`EXPERIMENTS`:

    table:NAME                 {"name": ..., "version": ..., "rows": ..., "chunks": ...}: the table's current rows
    rows:NAME:VERSION:NUMBER   a list of at most 256 rows; NUMBER counts from 00000000
    saving:VERSION             the name of a table whose rows of that version are being written

NAME is the table's name as `in_key` makes it part of a key. Each save has its own VERSION, which begins with the time,
and sets ``table:NAME`` last: a reader sees the table as it was before or after the save.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from typing import Any

import hutch

from ..names import HASHED, in_key, named

DATASETS, EXPERIMENTS = "ragas.datasets", "ragas.experiments"
#: The most rows in one chunk.
CHUNK_ROWS = 256
#: Rows older than this without a table belong to a writer that was killed.
ABANDONED_S = 7 * 24 * 3600

Row = dict[str, Any]
#: The value of `table:NAME`.
Table = dict[str, Any]
_TABLE_TYPES = {"name": str, "version": str, "rows": int, "chunks": int}

_TABLE, _SAVING = "table:", "saving:"
# Leaves room in a key for its other parts.
_LONGEST_LABEL_BYTES = 900
# The number of chunks read at once.
_READ_CHUNKS = 16


class TableReplacedError(LookupError):
    """The rows of a table are gone because another version replaced them while they were read."""


# --- the layout ---


def label(name: str) -> str:
    """Return `name` as a part of a key."""
    return in_key(name, _LONGEST_LABEL_BYTES)


def table_key(name: str) -> str:
    """Return the key of the table called `name`."""
    return _TABLE + label(name)


def saving_key(version: str) -> str:
    """Return the key that exists while `version` of a table is being written."""
    return _SAVING + version


def new_version() -> str:
    """Return a unique version that sorts by time."""
    return _version_at(time.time()) + f"-{secrets.token_hex(8)}"


def file_version(digest: str) -> str:
    """Return the version of a table read from a file: older than any save, so that any later save may remove it."""
    return f"{_version_at(0)}-{digest}"


def _version_at(seconds: float) -> str:
    return f"{max(0, int(seconds * 1e9)):016x}"


def chunk_key(name: str, version: str, number: int) -> str:
    """Return the key of one chunk of rows."""
    return f"{_prefix(name)}{version}:{number:08}"


def _prefix(name: str) -> str:
    return f"rows:{label(name)}:"


def table_of(name: str, version: str, rows: int, chunks: int) -> Table:
    """Return the value of `table_key(name)` for a table of this many rows and chunks."""
    return {"name": name, "version": version, "rows": rows, "chunks": chunks}


def read_table(namespace: hutch.Namespace, name: str) -> Table:
    """Return the record of the table called `name`. Raises KeyError if it is missing, CorruptValueError."""
    return validate_table(namespace, name, namespace[table_key(name)])


def validate_table(namespace: hutch.Namespace, name: str, value: Any) -> Table:
    """Return `found`, stored as the table called `name`, if it is a table; raise CorruptValueError otherwise."""
    if not _is_table(value, name):
        raise hutch.CorruptValueError(
            f"key {table_key(name)!r} of {namespace.namespace!r} is not a table of ragas, or has another name; "
            "remove it with hutch rm"
        )
    table: Table = value
    return table


def _is_table(value: Any, name: str) -> bool:
    if type(value) is not dict or not _TABLE_TYPES.items() <= {key: type(value[key]) for key in value}.items():
        return False
    return bool(value["name"] == name)


def read_rows(namespace: hutch.Namespace, table: Table) -> Iterator[list[Row]]:
    """Yield the rows of `table`, some chunks at a time.

    Raises TableReplacedError if it was replaced meanwhile, CorruptValueError if it was not and rows are missing.
    """
    name, count = table["name"], 0
    keys = [chunk_key(name, table["version"], number) for number in range(table["chunks"])]
    for start in range(0, len(keys), _READ_CHUNKS):
        wanted = keys[start : start + _READ_CHUNKS]
        chunks = namespace.get_many(wanted)
        if len(chunks) < len(wanted):
            if namespace.get(table_key(name)) != table:
                raise TableReplacedError(name)
            missing = next(key for key in wanted if key not in chunks)
            raise hutch.CorruptValueError(
                f"{table_key(name)!r} of {namespace.namespace!r} has lost its rows at {missing!r}"
            )
        for key, rows in chunks.items():
            if type(rows) is not list:
                raise hutch.CorruptValueError(f"key {key!r} of {namespace.namespace!r} does not hold rows of ragas")
            count += len(rows)
            yield rows
    if count != table["rows"]:
        raise hutch.CorruptValueError(
            f"{table_key(name)!r} of {namespace.namespace!r} should have {table['rows']:,} rows and has {count:,}"
        )


def table_names(namespace: hutch.Namespace) -> list[str]:
    """Return the names of all tables, sorted."""
    labels = [key.removeprefix(_TABLE) for key in namespace.scan_keys(_TABLE)]
    hashed = namespace.get_many(_TABLE + label for label in labels if label.startswith(HASHED))
    for key, table in hashed.items():
        if type(table) is not dict or type(table.get("name")) is not str or table_key(table["name"]) != key:
            raise hutch.CorruptValueError(f"key {key!r} of {namespace.namespace!r} is not a table of ragas")
    names = [named(label) for label in labels if not label.startswith(HASHED)]
    return sorted(names + [table["name"] for table in hashed.values()])


def remove_stale(namespace: hutch.Namespace, name: str, *versions: str) -> None:
    """Remove those `versions` of the table `name` that are not its current rows, and abandoned rows.

    Removes the note that they were being written, too.
    """
    table = namespace.get(table_key(name))
    # The rows of a foreign table record are unknown: then remove only `versions`.
    is_known = table is None or _is_table(table, name)
    current = table["version"] if table is not None and is_known else None
    horizon = _version_at(time.time() - ABANDONED_S) if is_known else ""
    prefix = _prefix(name)
    stale = [saving_key(version) for version in versions]
    for key in namespace.scan_keys(prefix):
        version = key.removeprefix(prefix).partition(":")[0]
        if version != current and (version in versions or version < horizon):
            stale.append(key)
    namespace.remove_many(stale)


def remove_abandoned(namespace: hutch.Namespace) -> None:
    """Remove the rows of writers that were killed at least `ABANDONED_S` ago, before they set the table."""
    horizon = saving_key(_version_at(time.time() - ABANDONED_S))
    for key, name in list(namespace.scan(_SAVING, stop=horizon)):
        if type(name) is str:
            remove_stale(namespace, name, key.removeprefix(_SAVING))
