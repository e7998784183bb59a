"""What every dialect of dbm is to the engine: a small database of bytes that is never half written."""

from __future__ import annotations

import contextlib
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path


class Database(ABC):
    """One open database. Whoever uses it holds a lock: no dialect is safe for threads."""

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

    @abstractmethod
    def close(self) -> None:
        """Let go of the files. What was written has reached the disk, as far as the dialect can tell."""

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
    target = Path(os.path.realpath(target))  # a link stays a link
    with open(new, "r+b") as file:  # noqa: PTH123
        os.fsync(file.fileno())
    with contextlib.suppress(FileNotFoundError):
        shutil.copymode(target, new)
        if hasattr(os, "chown"):
            status = target.stat()
            with contextlib.suppress(PermissionError):
                os.chown(new, status.st_uid, status.st_gid)
    new.replace(target)


def flush_folder(folder: Path) -> None:
    """Wait until the disk has the names in `folder`: what took the place of another file is it by its name alone."""
    if os.name == "nt":
        return  # nobody can open a folder there
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(base: Path, *suffixes: str) -> None:
    """Remove the files whose names are that of `base` with each of `suffixes`, where there are any."""
    for suffix in suffixes:
        base.with_name(base.name + suffix).unlink(missing_ok=True)
