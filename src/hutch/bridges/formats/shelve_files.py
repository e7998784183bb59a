"""Read a shelf of Python's `shelve`, in any dialect of dbm that this Python can read."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hutch

from ..pickles import value_of

# What a user may name in place of the name that `shelve.open` was given.
_SUFFIXES = (".db", ".dat", ".dir", ".pag", ".bak")


def exists(path: Path) -> bool:
    """Return whether there is a file with the name `path`, or with a suffix that dbm adds to it."""
    return path.exists() or any(path.with_name(path.name + suffix).exists() for suffix in _SUFFIXES if path.name)


def read(path: Path, *, namespace: str | None = None, unpickle: bool = False) -> Iterator[tuple[str, str, Any]]:
    """Yield each item of the shelf that ``shelve.open(path)`` opens, as (namespace, key, value).

    `path` may also be one of the files of the shelf. The namespace is the shelf's name unless given. `value_of` says
    which values are pickles. Holds the keys and one value at a time. Changes and creates nothing beside the files.

    Raises ConfigError if there is no shelf, CorruptValueError for a damaged file or value, StorageUnavailableError for
    a link and for a dialect that this Python lacks, StoreLockedError if another process has the shelf open.
    """
    if path.is_dir():
        raise hutch.ConfigError(
            f"{str(path)!r} is a folder: expected the name that shelve.open was given. For a bot's folder of shelves: "
            "hutch import errbot-shelf"
        )
    plugin: Any = hutch.load_plugin("shelf", {"basedir": str(path.absolute().parent)})
    for name, is_last in _names(path):
        pickles = plugin.pickles_at(name)
        try:
            first = next(pickles, None)
        except hutch.CorruptValueError:
            if is_last:
                raise
            continue  # settings.db may be the ndbm file of the shelf settings
        if first is None:
            continue
        target = namespace or name.removesuffix(".db")
        for key, pickled in itertools.chain([first], pickles):
            yield target, key, value_of(pickled, f"{path}: the value of key {key!r}", unpickle=unpickle)
        return


def _names(path: Path) -> list[tuple[str, bool]]:
    """Return the names of the shelves that `path` may mean, and whether each is the last to try."""
    names = [path.name, *(path.stem for suffix in _SUFFIXES if path.suffix == suffix and path.stem)]
    return [(name, name == names[-1]) for name in names]
