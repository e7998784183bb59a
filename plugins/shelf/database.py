"""The interface of every dbm dialect to the engine: a small database of bytes that is never half written.

The libraries cannot write safely by themselves: gnu and ndbm can be unreadable after a kill, `dbm.dumb` overwrites
values in place and consists of two files, which no single rename replaces, and Python below 3.13 lacks `dbm.sqlite3`.
Replacing the file by a changed copy is safe, but a write takes 8 to 34 ms (gnu, ndbm; 100 to 10,000 keys) instead of
0.1 to 0.4 ms (sqlite3, dumb). So only gnu and ndbm do it.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Final

from hutch.filesystem import copy_permissions, create_file, open_existing, validate_regular_file, write_all

from .deadline_index import DeadlineIndex

_CHUNK_BYTES: Final = 1 << 20


class Database(ABC):
    """One open database. Not thread-safe in any dialect: the caller holds a lock.

    A nested call of the same thread, as from a signal handler, only reads: until `write` is done, it reads the state
    before it. A `write` or `clear` that raises a StoreError has changed nothing. After any other exception, such as one
    from a handler, the files are whole but the state in memory may differ from them: the caller releases the database
    and opens it again.
    """

    #: Release the files. A C function, so that to a signal handler it is atomic.
    release: Callable[[], object]
    #: The deadlines of its values, once they have been read.
    index: DeadlineIndex | None = None

    @abstractmethod
    def get(self, key: bytes) -> bytes | None:
        """Return the value of `key`, or None if it is missing."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def keys(self) -> list[bytes]:
        """Return all keys."""

    @abstractmethod
    def write(self, changes: Mapping[bytes, bytes | None]) -> None:
        """Set each key, or remove it if its value is None: all, or none if this raises or the process is killed."""

    def write_and_expire(self, changes: Mapping[bytes, bytes | None], expired: Mapping[bytes, bytes]) -> None:
        """Do what `write` does, and in the same step remove the keys of `expired` whose values are still those."""
        self.write({**dict.fromkeys(expired), **changes})

    @abstractmethod
    def clear(self) -> None:
        """Remove every key, atomically."""

    def compact(self) -> None:  # noqa: B027 - optional
        """Rewrite the files without free space, atomically; do nothing if the dialect has no safe way."""

    def close(self) -> None:
        """Release the files."""
        self.release()

    def is_empty(self) -> bool:
        """Return whether nothing is stored."""
        return not len(self)

    def contains(self, key: bytes) -> bool:
        """Return whether `key` exists."""
        return self.get(key) is not None

    def abandon(self) -> None:
        """Abandon the parent's database in a forked child, without closing it."""
        # Closing, also by garbage collection, would release the parent's locks.
        _abandoned.append(self)


_abandoned: list[Database] = []


def replace_file(new: Path, target: Path) -> None:
    """Flush `new`, give it the owner and mode of `target`, and rename it to `target`."""
    status = validate_regular_file(target)
    if status is not None:
        copy_permissions(status, new)
    with open_existing(new, "r+b") as file:
        os.fsync(file.fileno())
    new.replace(target)


def copy_file(source: Path, target: Path) -> None:
    """Copy the bytes of `source` to the new file `target`. Not with `shutil`: it swallows exceptions of handlers."""
    with open_existing(source) as origin, create_file(target) as copy:
        for chunk in iter(partial(origin.read, _CHUNK_BYTES), b""):
            write_all(copy, chunk)


def remove(base: Path, *suffixes: str) -> None:
    """Remove the files named like `base` plus each of `suffixes`, if they exist."""
    for suffix in suffixes:
        base.with_name(base.name + suffix).unlink(missing_ok=True)
