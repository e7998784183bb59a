"""The paths and identities of an SQLite file and of the files that SQLite keeps beside it."""

from __future__ import annotations

import os
import struct
from pathlib import Path

from hutch import StorageUnavailableError
from hutch.filesystem import open_existing, validate_regular_file
from hutch.handlers import raised_by_handler

from .errors import storage_error

# The suffixes of files that SQLite may keep beside the database.
_BESIDE = ("-wal", "-shm", "-journal")

# The trailer of a rollback journal that names another file; see readSuperJournal in SQLite's pager.c.
_NAME_TRAILER = struct.Struct(">II8s")
_JOURNAL_MAGIC = bytes.fromhex("d9d505f920a163d7")
# The characters that a URI need not escape.
_PLAIN = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789/_.-~")


def refuse_foreign_files(path: Path) -> None:
    """Raise StorageUnavailableError if a file beside `path` has the name of an SQLite file but is not one.

    SQLite would write through a link, wait for the other end of a FIFO, and delete the file that a journal names as the
    super-journal of a transaction over several databases, which hutch never uses.
    """
    try:
        for suffix in _BESIDE:
            validate_regular_file(f"{path}{suffix}")
        if names_another_file(f"{path}-journal"):
            raise StorageUnavailableError(
                f"'{path}-journal' names another file, which SQLite would delete, and hutch writes no such "
                "journal; nothing was opened. Move it away if you do not know where it comes from"
            )
    except StorageUnavailableError:
        raise
    except OSError as error:
        if raised_by_handler(error):
            raise
        raise storage_error(path, "the files beside it cannot be opened", error) from error


def identity(path: Path) -> tuple[int, int]:
    status = os.stat(path)  # noqa: PTH116 - one call, in which no signal handler runs
    return status.st_dev, status.st_ino


def identity_or_none(path: str) -> tuple[int, int] | None:
    try:
        status = os.lstat(path)
    except OSError as error:
        if raised_by_handler(error):
            raise
        return None
    return status.st_dev, status.st_ino


def names_another_file(journal: str) -> bool:
    """Return whether the rollback journal `journal` ends with the name of another file; False if there is no journal.

    The format: the name, its length and a checksum (four bytes each, big endian), the magic number.
    """
    try:
        with open_existing(journal) as file:
            size = file.seek(0, os.SEEK_END)
            if size < _NAME_TRAILER.size:
                return False
            file.seek(-_NAME_TRAILER.size, os.SEEK_END)
            length, _, magic = _NAME_TRAILER.unpack(file.read(_NAME_TRAILER.size))
    except FileNotFoundError:
        return False
    return bool(magic == _JOURNAL_MAGIC and 0 < length <= size)


def size_of(path: str) -> int:
    """Return the size of the file `path`; -1 if it is missing."""
    try:
        return os.stat(path).st_size  # noqa: PTH116 - one call, in which no signal handler runs
    except OSError as error:
        if raised_by_handler(error):
            raise
        return -1


def uri_of(path: Path) -> str:
    """Return `path` as a URI for SQLite: without a host, even if a Windows share begins with two slashes."""
    text = path.as_posix()
    text = text if text.startswith("/") else f"/{text}"
    if not _PLAIN.issuperset(text):
        from urllib.parse import quote_from_bytes  # here, because most paths need none of it

        text = quote_from_bytes(os.fsencode(text))
    return f"file://{text}"
