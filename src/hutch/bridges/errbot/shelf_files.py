"""Import and export the shelves of Errbot's own storage: `hutch import errbot-shelf DIR`.

A shelf becomes a namespace with the same name and keys. No pickled code runs: a pickle is read here only if it is made
of types that hutch stores; any other is copied unchanged for the bot that will load it. So it makes no difference which
packages are installed here, or which bot is running.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Final

import hutch
from hutch import ConfigError, NamespaceError, Store

from ...codec.pickled import Pickled
from ...deadlines import Expiring, with_deadline
from ...transfer.frames import read_values
from ..pickles import value_of

_BATCH_ITEMS: Final = 1000
# The suffixes of a shelf's files, of which each kind of database uses one or two.
_SUFFIXES: Final = (".db", ".db.dat", ".db.dir", ".db.bak", ".db.pag", ".db.db")


def read(path: Path) -> Iterator[tuple[str, str, Any]]:
    """Yield each item of the shelves in the folder `path`, as (namespace, key, value).

    The value is the stored object if the default codec takes it, otherwise its pickle (`Pickled`), for a store with
    the codec ``passthrough``. Holds the keys of one shelf and one value at a time. Changes and creates nothing in the
    folder, which may be read-only; also reads shelves in ``plugins``, where Errbot 3 had them.

    Raises ConfigError if `path` is not a folder, CorruptValueError for a damaged value or file, StoreLockedError if
    another process uses a shelf, StorageUnavailableError for a kind of database that this Python lacks.
    """
    if not path.is_dir():
        raise ConfigError(f"{str(path)!r} is not a folder; expected the folder of the bot's shelves, its BOT_DATA_DIR")
    with _shelves(path) as shelves:
        for namespace, key, pickled in shelves.pickles():
            yield namespace, key, value_of(pickled, f"{path}: the value of key {key!r} in the shelf {namespace!r}")


def write(store: Store, path: Path) -> int:
    """Write every namespace of `store` as an Errbot shelf in the folder `path`; return the number of items.

    The shelves are those that `shelve` makes in this Python, with values pickled as Errbot does, and pickles unchanged.
    They are built under temporary names, flushed, and renamed when all are complete. A store whose codec is
    ``passthrough`` gives pickles that cannot be loaded here. Deadlines are kept as the shelf engine keeps them: hutch
    reads them, and Errbot ignores them.

    Raises ConfigError if `path` already has a shelf of that name, NamespaceError for a namespace that cannot be a file
    name, CorruptValueError for a value that the store's codec cannot read.
    """
    path.mkdir(parents=True, exist_ok=True)
    count = 0
    expiring: list[str] = []
    with tempfile.TemporaryDirectory(prefix=".hutch-export-", dir=path) as folder:
        new = Path(folder)
        with _shelves(new) as shelves:
            for namespace in store.namespaces():
                _refuse_existing(namespace, path)
                with store.open(namespace) as handle, shelves.open(namespace) as shelf:
                    written, deadlines = _fill(shelf, read_values(handle))
                count += written
                if deadlines:
                    expiring.append(namespace)
                if not any(os.path.lexists(new / (namespace + suffix)) for suffix in _SUFFIXES):
                    raise NamespaceError(
                        f"namespace {namespace!r} cannot be a shelf of Errbot: no file here can have that name"
                    )
        if expiring:
            with _shelves(path) as target:
                for namespace in expiring:
                    target.mark_expiring(namespace)
        for file in sorted(new.iterdir()):
            if file.is_file():
                file.replace(path / file.name)
    return count


def _shelves(path: Path) -> Any:
    return hutch.load_plugin("shelf", {"basedir": str(path.absolute())})


def _refuse_existing(namespace: str, path: Path) -> None:
    for suffix in _SUFFIXES:
        if os.path.lexists(path / (namespace + suffix)):
            raise ConfigError(
                f"{path / (namespace + suffix)} exists and is not replaced; move it away, or export to an empty folder"
            )


def _fill(shelf: Any, items: Iterable[tuple[str, Any]]) -> tuple[int, int]:
    """Set all `items` and return how many they are, and how many of them have a deadline."""
    count, expiring, rest = 0, 0, iter(items)
    while batch := dict(islice(rest, _BATCH_ITEMS)):
        deadlines_ms = {key: value.deadline_ms for key, value in batch.items() if type(value) is Expiring}
        values = {key: value.value if key in deadlines_ms else value for key, value in batch.items()}
        pickles = {
            key: with_deadline(value.body, deadlines_ms.get(key))
            for key, value in values.items()
            if type(value) is Pickled
        }
        if pickles:
            shelf.set_pickles(pickles)
        if len(pickles) < len(batch):
            others = {key: value for key, value in values.items() if key not in pickles}
            shelf.set_many_until(others, {key: ms for key, ms in deadlines_ms.items() if key in others})
        count, expiring = count + len(batch), expiring + len(deadlines_ms)
    return count, expiring
