"""Read the files of ragas's local/csv backend."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..formats.csv_files import read_rows
from .jsonl_files import read_tables
from .layout import Row


def read(path: Path) -> Iterator[tuple[str, str, Any]]:
    """Yield (namespace, key, value) of every table below `path`, the root folder of a local/csv backend.

    Each field is a text, as ragas reads it. The same file always gives the same keys. Raises ConfigError if both
    folders are missing, CorruptValueError that names file and line for a line that is not a row.
    """
    return read_tables(path, "csv", _sized_rows)


def _sized_rows(file: Path) -> Iterator[tuple[Row, int]]:
    for row in read_rows(file):
        yield dict(row), sum(map(len, row.values()))
