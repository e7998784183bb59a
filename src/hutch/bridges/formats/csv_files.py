"""Read and write CSV files: one column holds the key, the others are the value, a dict of str."""

from __future__ import annotations

import codecs
import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import hutch

from ...filesystem import atomic_file
from . import open_text

_LONGEST_FIELD = 1 << 29


def read(path: Path, *, namespace: str | None = None, key_column: str = "key") -> Iterator[tuple[str, str, Any]]:
    """Yield each row of the CSV file `path`, as (namespace, key, value); the first row names the columns.

    The key is the text in the column `key_column`, the value a dict of the other columns, in their order. The
    namespace is the file's name without its suffix unless given. Blank lines are skipped. Holds one row at a time.

    Raises ConfigError without such a column, CorruptValueError that names the line for a row that cannot be read.
    """
    for row in read_rows(path):
        # The names are not shown: in a file without a header they are values.
        if key_column not in row:
            raise hutch.ConfigError(
                f"{str(path)!r}: none of the {len(row)} columns in its first row is called {key_column!r}. Name the "
                "column of the key: --key COLUMN"
            )
        key = row.pop(key_column)
        yield namespace or path.stem, key, row


def read_rows(path: Path) -> Iterator[dict[str, str]]:
    """Yield each row of the CSV file `path` after the first, which names the columns, as a dict of str.

    Raises ConfigError if two columns have one name, CorruptValueError that names the line.
    """
    # The default, 128 KiB, is less than hutch holds. It is a setting of the whole process.
    csv.field_size_limit(max(csv.field_size_limit(), _LONGEST_FIELD))
    with open_text(path, newline="") as text:
        lines = csv.reader(text, strict=True)
        header = next(_rows(lines, path), [])
        if len(set(header)) < len(header):
            raise hutch.ConfigError(f"{str(path)!r}: two columns in its first row have the same name. Rename one")
        for row in _rows(lines, path):
            if len(row) != len(header):
                _refuse(path, lines.line_num, f"it has {len(row)} fields: expected {len(header)}, as in the first row")
            yield dict(zip(header, row, strict=True))


def _rows(lines: Any, path: Path) -> Iterator[list[str]]:
    while True:
        try:
            row = next(lines, None)
        except csv.Error as error:
            _refuse(path, lines.line_num, f"it is not CSV: {error}")
        except UnicodeDecodeError:
            _refuse(path, lines.line_num + 1, "this line, or one soon after it, is not UTF-8")
        if row is None:
            return
        if row:
            yield row


def _refuse(path: Path, line: int, reason: str) -> NoReturn:
    raise hutch.CorruptValueError(f"{str(path)!r}, line {line}: {reason}. Nothing was written")


def write(store: hutch.Store, path: Path, *, namespace: str, key_column: str = "key") -> int:
    """Write a namespace of `store` as the CSV file `path`, in key order; return the number of items.

    The file appears when it is complete. Raises ValueTypeError that names the key for a value that is not a dict of
    str with the columns of the first, StorageUnavailableError for a link in place of the file.
    """
    count = 0
    with store.open(namespace) as items:
        header: list[str] | None = None
        if not items:
            return 0
        with atomic_file(path, 0o600) as out:
            lines = csv.writer(codecs.getwriter("utf-8")(out))
            for key, value in items.scan():
                if header is None:
                    header = _columns(key, value, key_column)
                    lines.writerow([key_column, *header])
                _validate_row(key, value, header)
                lines.writerow([key, *(value[column] for column in header)])
                count += 1
    return count


def _columns(key: str, value: Any, key_column: str) -> list[str]:
    if type(value) is not dict:
        raise _not_csv(key, "it is not a dict")
    if key_column in value:
        raise _not_csv(key, f"it has a column {key_column!r} too; name the column of the key: --key COLUMN")
    return list(value)


def _validate_row(key: str, value: Any, header: list[str]) -> None:
    if type(value) is not dict or value.keys() != set(header):
        raise _not_csv(key, "it is not a dict with the same columns as the value of the first key")
    for column, field in value.items():
        if type(column) is not str or type(field) is not str:
            raise _not_csv(key, "a column or field in it is not a str")


def _not_csv(key: str, reason: str) -> hutch.ValueTypeError:
    return hutch.ValueTypeError(
        f"the value of key {key!r} cannot be a row of CSV: {reason}. `hutch dump` writes any value"
    )
