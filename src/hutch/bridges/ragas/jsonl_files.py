"""Layout of ragas datasets and experiments in a store, and the files of its local/jsonl backend.

A table, which is a dataset or an experiment, is a list of rows, which are dicts. It is in the namespace `DATASETS` or
`EXPERIMENTS`:

    table:NAME                 {"name": ..., "version": ..., "rows": ..., "chunks": ...}: the table's current rows
    rows:NAME:VERSION:NUMBER   a list of at most 256 rows; NUMBER counts from 00000000
    saving:VERSION             the name of a table whose rows of that version are being written

NAME is the table's name as `in_key` makes it part of a key. Each save has its own VERSION, which begins with the time,
and sets ``table:NAME`` last: a reader sees the table as it was before or after the save.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import time
from collections.abc import Iterable, Iterator
from datetime import date, datetime, timezone
from pathlib import Path
from typing import Any, NoReturn

import hutch

from ...filesystem import validate_regular_file
from ..files import close_flushed, unfinished
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

_FOLDERS = {"datasets": DATASETS, "experiments": EXPERIMENTS}
_TABLE, _SAVING = "table:", "saving:"
# Leaves room in a key for its other parts.
_LONGEST_LABEL_BYTES = 900
# A chunk read from a file has at most this many bytes, unless one row is larger.
_CHUNK_BYTES = 4 * 1024 * 1024
# The number of chunks read at once.
_READ_CHUNKS = 16
# The limit of common file systems.
_LONGEST_FILE_NAME_BYTES = 255


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
    return checked_table(namespace, name, namespace[table_key(name)])


def checked_table(namespace: hutch.Namespace, name: str, found: Any) -> Table:
    """Return `found`, stored as the table called `name`, if it is a table; raise CorruptValueError otherwise."""
    if not _is_table(found, name):
        raise hutch.CorruptValueError(
            f"key {table_key(name)!r} of {namespace.namespace!r} is no table of ragas, or that of another name; remove "
            "it with hutch rm"
        )
    table: Table = found
    return table


def _is_table(found: Any, name: str) -> bool:
    if type(found) is not dict or not _TABLE_TYPES.items() <= {key: type(found[key]) for key in found}.items():
        return False
    return bool(found["name"] == name)


def read_rows(namespace: hutch.Namespace, table: Table) -> Iterator[list[Row]]:
    """Yield the rows of `table`, some chunks at a time.

    Raises TableReplacedError if it was replaced meanwhile, CorruptValueError if it was not and rows are missing.
    """
    name, count = table["name"], 0
    keys = [chunk_key(name, table["version"], number) for number in range(table["chunks"])]
    for start in range(0, len(keys), _READ_CHUNKS):
        wanted = keys[start : start + _READ_CHUNKS]
        found = namespace.get_many(wanted)
        if len(found) < len(wanted):
            if namespace.get(table_key(name)) != table:
                raise TableReplacedError(name)
            missing = next(key for key in wanted if key not in found)
            raise hutch.CorruptValueError(
                f"{table_key(name)!r} of {namespace.namespace!r} lacks its rows at {missing!r}"
            )
        for key, rows in found.items():
            if type(rows) is not list:
                raise hutch.CorruptValueError(f"key {key!r} of {namespace.namespace!r} holds no rows of ragas")
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
            raise hutch.CorruptValueError(f"key {key!r} of {namespace.namespace!r} is no table of ragas")
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


# --- from files ---


def read(path: Path) -> Iterator[tuple[str, str, Any]]:
    """Yield (namespace, key, value) of every table below `path`, the root folder of a local/jsonl backend.

    Values are as in JSON: a text that looks like a date stays a text. The same file always gives the same keys; a file
    with other contents gives other row keys. Blank lines are skipped, as in ragas. Raises ConfigError if both folders
    are missing, CorruptValueError that names file and line for a line that is not a row. Holds one chunk at a time.
    """
    folders = [name for name in _FOLDERS if (path / name).is_dir()]
    if not folders:
        raise hutch.ConfigError(
            f"{str(path)!r} holds no folder 'datasets' and none 'experiments'; name the root_dir of the local/jsonl "
            "backend"
        )
    for folder in folders:
        for file in sorted((path / folder).glob("*.jsonl")):
            for key, value in _read_file(file):
                yield _FOLDERS[folder], key, value


def _read_file(file: Path) -> Iterator[tuple[str, Any]]:
    name = file.stem
    with file.open("rb") as lines:
        # Older than any save, so that any save that replaces it may remove it.
        version = f"{_version_at(0)}-{hashlib.file_digest(lines, 'sha256').hexdigest()[:16]}"
        lines.seek(0)
        rows = chunks = 0
        for chunk in _chunks(_read_lines(file, lines)):
            yield chunk_key(name, version, chunks), chunk
            rows += len(chunk)
            chunks += 1
    yield table_key(name), table_of(name, version, rows, chunks)


def _read_lines(file: Path, lines: Iterable[bytes]) -> Iterator[tuple[Row, int]]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode())
        except UnicodeDecodeError as error:
            _refuse_line(file, number, f"not UTF-8: byte {error.start} cannot be read", error)
        except json.JSONDecodeError as error:
            _refuse_line(file, number, f"not JSON: {error.msg} at character {error.pos + 1}", error)
        except RecursionError as error:
            _refuse_line(file, number, "nested too deep", error)
        except ValueError as error:  # a number of more digits than Python reads
            _refuse_line(file, number, "not JSON that Python can read", error)
        if not isinstance(row, dict):
            _refuse_line(file, number, f"a row is an object, and this is a {type(row).__name__}", None)
        yield row, len(line)


def _refuse_line(file: Path, number: int, reason: str, cause: BaseException | None) -> NoReturn:
    raise hutch.CorruptValueError(f"{str(file)!r}, line {number}: {reason}") from cause


def _chunks(rows: Iterable[tuple[Row, int]]) -> Iterator[list[Row]]:
    chunk: list[Row] = []
    size = 0
    for row, length in rows:
        if chunk and (len(chunk) == CHUNK_ROWS or size + length > _CHUNK_BYTES):
            yield chunk
            chunk, size = [], 0
        chunk.append(row)
        size += length
    if chunk:
        yield chunk


# --- to files ---


def write(store: hutch.Store, path: Path) -> int:
    """Write every table of `store` as a file for ragas's local/jsonl backend with the root folder `path`.

    Returns the number of tables. A file appears when it is complete, and replaces any file of its name. Dates and
    datetimes are written as ragas writes them, as texts, which it turns into dates again. Raises ValueTypeError that
    names table, row and column for a value that JSON cannot hold, ConfigError for a table whose name cannot be a file
    name. Files written before the error stay.
    """
    written = 0
    for folder, namespace in _FOLDERS.items():
        made: set[tuple[int, int]] = set()
        with store.open(namespace) as tables:
            for name in table_names(tables):
                target = path / folder / f"{name}.jsonl"
                where = f"table {name!r} of {namespace!r}"
                _check_name(target, name, where, made)
                _write_whole_table(tables, name, target, where)
                made.add(_identity(target))
                written += 1
    return written


def _write_whole_table(tables: hutch.Namespace, name: str, target: Path, where: str) -> None:
    while not _write_table(tables, name, target, where):
        pass


def _check_name(target: Path, name: str, where: str, made: set[tuple[int, int]]) -> None:
    """Raise for a name that ragas would not list, or that leads outside the folder, before writing anything for it."""
    reason = None
    if not name or not name.isprintable() or set(name) & set("/\\" + ('<>:"|?*' if os.name == "nt" else "")):
        reason = "no file can be called so"
    elif len(os.fsencode(target.name)) > _LONGEST_FILE_NAME_BYTES:
        reason = f"its file would have a name of more than {_LONGEST_FILE_NAME_BYTES} bytes"
    elif os.path.lexists(target) and _identity(target) in made:
        reason = "it and one that was written already are one name for this file system"
    if reason is not None:
        raise hutch.ConfigError(f"{where} cannot become a file: {reason}. Save it in ragas by another name")


def _identity(file: Path) -> tuple[int, int]:
    found = file.lstat()
    return found.st_dev, found.st_ino


def _write_table(tables: hutch.Namespace, name: str, target: Path, where: str) -> bool:
    """Return whether the table was written; False if it was replaced meanwhile."""
    target.parent.mkdir(parents=True, exist_ok=True)
    validate_regular_file(target)
    with unfinished(target.parent) as out:
        number = 0
        try:
            for rows in read_rows(tables, read_table(tables, name)):
                for row in rows:
                    out.write(_line(row, f"{where}, row {number}") + "\n")
                    number += 1
        except TableReplacedError:
            return False
        close_flushed(out)
        Path(out.name).replace(target)
    return True


def _line(row: Row, where: str) -> str:
    if type(row) is not dict:
        raise _not_json(where, f"a row of type {type(row).__name__}")
    plain = {_json_key(key, where): _json_value(value, f"{where}, column {key!r}") for key, value in row.items()}
    return json.dumps(plain, ensure_ascii=False, separators=(",", ":"))


def _json_key(key: object, where: str) -> str:
    if type(key) is not str:
        raise _not_json(where, f"a key that is a {type(key).__name__}")
    return _json_text(key, where)


def _json_text(text: str, where: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _not_json(where, "a text with a lone surrogate") from None
    return text


def _json_value(value: Any, where: str) -> Any:
    kind = type(value)
    if value is None or kind is bool or kind is float:
        return value
    if kind is str:
        return _json_text(value, where)
    if kind is int:
        # Python does not read longer numbers back.
        if value.bit_length() > 14_000:
            raise _not_json(where, "an int of more than 4,000 digits")
        return value
    if kind is list:
        return [_json_value(item, where) for item in value]
    if kind is dict:
        return {_json_key(key, where): _json_value(item, where) for key, item in value.items()}
    if kind is date:
        return value.isoformat()
    if kind is datetime:
        # ragas reads it back with the same type of zone.
        if value.fold or type(value.tzinfo) not in (type(None), timezone):
            raise _not_json(where, "a datetime with a zone that is not a fixed offset")
        return value.isoformat()
    raise _not_json(where, f"a {kind.__module__}.{kind.__qualname__}".replace("builtins.", ""))


def _not_json(where: str, what: str) -> hutch.ValueTypeError:
    return hutch.ValueTypeError(
        f"{where}: it is or holds {what}, which local/jsonl cannot hold; convert it and save again"
    )
