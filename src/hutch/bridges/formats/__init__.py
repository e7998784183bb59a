"""Files that are not a framework's: Python's shelve, sqlitedict, diskcache, JSON and CSV. See docs/howto/move.md.

Each module reads with ``read(path, **options)``, which yields (namespace, key, value) and changes nothing; `validate`
reads all of it once before anything is written.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TextIO

from hutch import ConfigError, CorruptValueError, KeyLimitError

from ...limits import validate_key, validate_namespace


def validate(items: Iterable[tuple[str, str, Any]]) -> None:
    """Read all `items` and raise before anything is written: for a key outside the limits, or one that occurs twice.

    Raises KeyLimitError and CorruptValueError, which name the namespace and the number of the item. Memory holds a
    hash of each key.
    """
    seen: set[bytes] = set()
    for number, (namespace, key, _) in enumerate(items, 1):
        try:
            encoded = f"{validate_namespace(namespace)}\0{validate_key(key)}".encode()
        except KeyLimitError as error:
            raise KeyLimitError(
                f"item {number:,}, for namespace {namespace!r}: {error}. Nothing was written"
            ) from error
        digest = hashlib.blake2b(encoded, digest_size=12).digest()
        if digest in seen:
            raise CorruptValueError(
                f"item {number:,}: key {key!r} of namespace {namespace!r} occurs a second time: expected each key "
                "once. Nothing was written; remove one of the two"
            )
        seen.add(digest)


def open_text(path: Path, newline: str | None = None) -> TextIO:
    """Open the text file `path` for reading. Raises ConfigError for anything else: it is read more than once."""
    if not path.is_file():
        raise ConfigError(f"{str(path)!r} is not a file: expected a file that can be read twice")
    return path.open(encoding="utf-8-sig", newline=newline)
