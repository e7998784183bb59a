"""The two files of an LMDB folder: made so that they are whole, recognised again, and looked at before LMDB is."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import cast

import lmdb

from hutch.filesystem import flush_folder

#: Device and inode of data.mdb and of lock.mdb.
Files = tuple[tuple[int, int], tuple[int, int]]


def make_store(folder: Path, lib_version: int) -> None:
    """Make `folder`, and a `data.mdb` that is whole, and on the disk, from the moment that it has its name.

    LMDB flushes neither the first pages of a new file by themselves nor its name: a full disk, or a power cut,
    would leave a file that nothing can open, or none. Raises lmdb.Error, OSError.
    """
    missing = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for parent in reversed(missing):
        flush_folder(parent.parent)
    # Not by tempfile, whose import takes longer than all of this.
    new = folder / f"new-{os.urandom(8).hex()}"
    new.mkdir(0o700)
    try:
        # Nobody else knows of it, so that it needs no lock.
        with lmdb.open(lmdb_name(new), map_size=1 << 20, lock=False, lib_version=lib_version) as env:
            env.sync(True)
        # Fails if another process was faster, or where there are no links: there LMDB makes the file itself.
        with suppress(OSError):
            os.link(new / "data.mdb", folder / "data.mdb")
    finally:
        for file in new.iterdir():
            file.unlink()
        new.rmdir()
    flush_folder(folder)


def reserve_lock_file(folder: Path, size_bytes: int) -> None:
    """Make lock.mdb, with room on the disk for all of it. Raises OSError.

    LMDB leaves the file full of holes. Were the disk full, the first reader to use a slot in one would be killed.
    """
    lock = folder / "lock.mdb"
    with suppress(FileNotFoundError):
        if lock.stat().st_size:
            # In use, perhaps: whoever closes it again takes this process's locks on it away.
            return
    if not hasattr(os, "posix_fallocate"):
        return
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        os.posix_fallocate(descriptor, 0, size_bytes)
    finally:
        os.close(descriptor)


def lmdb_name(path: Path) -> str:
    """`path` as LMDB takes it: as bytes, for a name that is not UTF-8."""
    return cast(str, os.fsencode(path)) if os.name == "posix" else str(path)


def identities(place: str) -> Files | None:
    """Which files are at `place`; None unless both are there."""
    found = []
    try:
        for name in ("data.mdb", "lock.mdb"):
            status = os.stat(os.path.join(place, name))  # noqa: PTH116, PTH118 - twice as fast as Path.stat
            found.append((status.st_dev, status.st_ino))
    except OSError:
        return None
    return found[0], found[1]


def is_cut_off(env: lmdb.Environment, data: Path) -> bool:
    """Whether pages in use lie beyond the end of the file. Free ones may: what is taken and freed within one
    transaction, as a large `remove_many` does, is never written."""
    from .lmdb_pages import DataFile, UnreadableFileError

    try:
        # The transaction keeps the state that is looked at from being written over.
        with env.begin() as txn, DataFile(data, txn.id()) as file:
            return file.is_cut_off()
    except UnreadableFileError:
        return True
