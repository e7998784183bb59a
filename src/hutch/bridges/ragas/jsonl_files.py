"""Read and write the files of ragas's local/jsonl backend."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from datetime import date, datetime, timezone
from pathlib import Path
from typing import Any, NoReturn

import hutch

from ...filesystem import atomic_file
from .layout import (
    CHUNK_ROWS,
    DATASETS,
    EXPERIMENTS,
    Row,
    TableReplacedError,
    chunk_key,
    file_version,
    read_rows,
    read_table,
    table_key,
    table_names,
    table_of,
)

_FOLDERS = {"datasets": DATASETS, "experiments": EXPERIMENTS}
#: What `write` exports.
NAMESPACES = (DATASETS, EXPERIMENTS)
# A chunk read from a file has at most this many bytes, unless one row is larger.
_CHUNK_BYTES = 4 * 1024 * 1024
# The limit of common file systems.
_LONGEST_FILE_NAME_BYTES = 255


# --- from files ---


def read(path: Path) -> Iterator[tuple[str, str, Any]]:
    """Yield (namespace, key, value) of every table below `path`, the root folder of a local/jsonl backend.

    Values are as in JSON: a text that looks like a date stays a text. The same file always gives the same keys; a file
    with other contents gives other row keys. Blank lines are skipped, as in ragas. Raises ConfigError if both folders
    are missing, CorruptValueError that names file and line for a line that is not a row. Holds one chunk at a time.
    """
    return read_tables(path, "jsonl", _read_lines)


def read_tables(
    path: Path, kind: str, rows_of: Callable[[Path], Iterable[tuple[Row, int]]]
) -> Iterator[tuple[str, str, Any]]:
    """Yield the items of every table below `path`, in files of the suffix `kind`.

    `rows_of` yields the rows of one file, each with its size in bytes.
    """
    folders = [name for name in _FOLDERS if (path / name).is_dir()]
    if not folders:
        raise hutch.ConfigError(
            f"{str(path)!r} has neither a folder 'datasets' nor a folder 'experiments'; name the root_dir of the "
            f"local/{kind} backend"
        )
    for folder in folders:
        for file in sorted((path / folder).glob(f"*.{kind}")):
            for key, value in _read_file(file, rows_of):
                yield _FOLDERS[folder], key, value


def _read_file(file: Path, rows_of: Callable[[Path], Iterable[tuple[Row, int]]]) -> Iterator[tuple[str, Any]]:
    name = file.stem
    with file.open("rb") as data:
        version = file_version(hashlib.file_digest(data, "sha256").hexdigest()[:16])
    rows = chunks = 0
    for chunk in _chunks(rows_of(file)):
        yield chunk_key(name, version, chunks), chunk
        rows += len(chunk)
        chunks += 1
    yield table_key(name), table_of(name, version, rows, chunks)


def _read_lines(file: Path) -> Iterator[tuple[Row, int]]:
    with file.open("rb") as lines:
        yield from _parse_lines(file, lines)


def _parse_lines(file: Path, lines: Iterable[bytes]) -> Iterator[tuple[Row, int]]:
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
                _validate_file_name(target, name, where, made)
                _write_table_of_one_save(tables, name, target, where)
                made.add(_identity(target))
                written += 1
    return written


def _write_table_of_one_save(tables: hutch.Namespace, name: str, target: Path, where: str) -> None:
    while not _write_table(tables, name, target, where):
        pass


def _validate_file_name(target: Path, name: str, where: str, made: set[tuple[int, int]]) -> None:
    """Raise for a name that ragas would not list, or that leads outside the folder, before writing anything for it."""
    reason = None
    if not name or not name.isprintable() or set(name) & set("/\\" + ('<>:"|?*' if os.name == "nt" else "")):
        reason = "no file can have that name"
    elif len(os.fsencode(target.name)) > _LONGEST_FILE_NAME_BYTES:
        reason = f"its file would have a name of more than {_LONGEST_FILE_NAME_BYTES} bytes"
    elif os.path.lexists(target) and _identity(target) in made:
        reason = "this file system takes it for the name of another table that was written already"
    if reason is not None:
        raise hutch.ConfigError(f"{where} cannot become a file: {reason}. Save it in ragas under another name")


def _identity(file: Path) -> tuple[int, int]:
    status = file.lstat()
    return status.st_dev, status.st_ino


def _write_table(tables: hutch.Namespace, name: str, target: Path, where: str) -> bool:
    """Return whether the table was written; False if it was replaced meanwhile."""
    target.parent.mkdir(parents=True, exist_ok=True)
    number = 0
    try:
        with atomic_file(target, 0o600) as out:
            for rows in read_rows(tables, read_table(tables, name)):
                for row in rows:
                    out.write(f"{_json_line(row, f'{where}, row {number}')}\n".encode())
                    number += 1
    except TableReplacedError:
        return False
    return True


def _json_line(row: Row, where: str) -> str:
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
