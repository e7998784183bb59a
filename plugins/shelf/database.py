"""What every dialect of dbm is to the engine: a small database of bytes that is never half written."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Final

from hutch.filesystem import copy_permissions, create_file, open_existing, validate_regular_file, write_all

_CHUNK_BYTES: Final = 1 << 20


class Database(ABC):
    """One open database. Whoever uses it holds a lock: no dialect is safe for threads.

    A call of the same thread may interrupt any other, as a signal handler does, and then only reads: until `write` is
    done, reading gives what was there before. A `write` or `clear` that raises a StoreError has changed nothing. After
    any other exception, such as what a handler raised, the files are whole, and what is in memory may not be what they
    say: the database is released and opened again.
    """

    #: Let go of the files. A C function, so that a signal handler finds it either done or not begun.
    release: Callable[[], object]

    @abstractmethod
    def get(self, key: bytes) -> bytes | None:
        """The value of `key`."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def keys(self) -> list[bytes]:
        """All keys."""

    @abstractmethod
    def write(self, changes: Mapping[bytes, bytes | None]) -> None:
        """Set each key, or remove it where the value is None: all, or none if this raises or the process is killed."""

    @abstractmethod
    def clear(self) -> None:
        """Remove every key, in one step."""

    def close(self) -> None:
        """Let go of the files."""
        self.release()

    def contains(self, key: bytes) -> bool:
        """Whether `key` is there."""
        return self.get(key) is not None

    def abandon(self) -> None:
        """In a forked child: forget what is the parent's, without closing it."""
        # A driver that closed would let go of the parent's locks, so it must not be collected either.
        _abandoned.append(self)


_abandoned: list[Database] = []


def take_place(new: Path, target: Path) -> None:
    """Rename `new` to `target`, whose owner and mode it inherits, when its bytes have reached the disk."""
    status = validate_regular_file(target)
    if status is not None:
        copy_permissions(status, new)
    with open_existing(new, "r+b") as file:
        os.fsync(file.fileno())
    new.replace(target)


def copy_file(source: Path, target: Path) -> None:
    """Copy the bytes of the file `source` to the new file `target`; what `shutil` has swallows what handlers raise."""
    with open_existing(source) as origin, create_file(target) as copy:
        for chunk in iter(partial(origin.read, _CHUNK_BYTES), b""):
            write_all(copy, chunk)


def remove(base: Path, *suffixes: str) -> None:
    """Remove the files whose names are that of `base` with each of `suffixes`, where there are any."""
    for suffix in suffixes:
        base.with_name(base.name + suffix).unlink(missing_ok=True)
