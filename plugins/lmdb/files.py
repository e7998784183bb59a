"""The two files of an LMDB folder: create them completely, identify them, and validate them before LMDB opens them."""

from __future__ import annotations

import io
import mmap
import os
import stat
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path
from struct import Struct
from typing import cast

import lmdb

from hutch import CorruptValueError, StorageUnavailableError
from hutch.filesystem import create_file, flush_folder, open_existing, reason_not_writable, validate_regular_file
from hutch.handlers import raised_by_handler

#: (device, inode) of data.mdb and of lock.mdb.
Files = tuple[tuple[int, int], tuple[int, int]]

#: The format of LMDB 1.0, with keys of up to 1,978 bytes (0.9: 511). Existing folders keep their format.
FORMAT = 1

# lock.mdb is a header, which begins with a magic number, and one slot per reader.
_LOCK_HEADER_BYTES, _READER_BYTES = 192, 64
# Each thread that is reading, in any process, takes one slot. LMDB accepts an existing file of another size.
MAX_READERS = 1024
_LOCK_FILE_BYTES = _LOCK_HEADER_BYTES + _READER_BYTES * (MAX_READERS - 1)
_LONGEST_KEY_BYTES = 1024 + 4
_MAGIC = Struct("=I").pack(0xBEEFC0DE)
# Appended to the name of the folder: os.path.join takes as long as the call that reads the status of a file.
_DATA, _LOCK = f"{os.sep}data.mdb", f"{os.sep}lock.mdb"


def data_file(place: str) -> str:
    """Return the path of data.mdb in the folder `place`."""
    return place + _DATA


def library_version(data_format: int) -> str:
    """Return the version of the LMDB that reads and writes `data_format`."""
    return ".".join(map(str, lmdb.version(lib_version=data_format)))


def is_there(folder: Path) -> bool:
    """Return whether `folder` holds a store, or something else under the name of its file."""
    try:
        status = os.lstat(folder / "data.mdb")
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True  # opening it says what is wrong
    return not stat.S_ISREG(status.st_mode) or status.st_size > 0


def reason_to_read_pages(folder: Path, readonly: bool) -> str | None:
    """Return why LMDB cannot open `folder`, or None if it can, or if there is no store yet.

    It needs permission to write to both files. With `readonly`, a missing lock file is not created either. Raises
    StorageUnavailableError for anything but a regular file under the name of one of them.
    """
    place = str(folder)
    data, lock = place + _DATA, place + _LOCK
    has_lock = _has_file(lock)
    if not _has_file(data):
        return None
    if (reason := reason_not_writable(data)) is not None:
        return reason
    if has_lock:
        return reason_not_writable(lock)
    return f"{lock} does not exist" if readonly else reason_not_writable(folder)


def _has_file(path: str) -> bool:
    try:
        return validate_regular_file(path) is not None
    except NotADirectoryError:
        return False
    except OSError as error:
        if isinstance(error, StorageUnavailableError) or raised_by_handler(error):
            raise
        return True  # opening it says what is wrong


def make_store(folder: Path, lib_version: int) -> None:
    """Create `folder` and `data.mdb`; the file is complete and flushed before it gets its name.

    LMDB itself flushes neither the first pages of a new file nor its name: a full disk or a power cut could leave an
    unreadable file, or none. In a private folder the file is private, too. Raises lmdb.Error, OSError.
    """
    missing = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for parent in reversed(missing):
        flush_folder(parent.parent)
    # Not with tempfile: its import takes longer than this whole function.
    new = folder / f"new-{os.urandom(8).hex()}"
    try:
        new.mkdir(0o700)
        # No lock is needed: no other process knows this file.
        with lmdb.open(lmdb_name(new), map_size=1 << 20, lock=False, lib_version=lib_version) as env:
            env.sync(True)
        if os.name == "posix" and not folder.stat().st_mode & 0o077:
            (new / "data.mdb").chmod(0o600)
        # Fails if another process was faster, or without hard links: then LMDB creates the file itself.
        with suppress(OSError):
            os.link(new / "data.mdb", folder / "data.mdb")
    finally:
        with suppress(FileNotFoundError):
            for file in new.iterdir():
                file.unlink()
            new.rmdir()
    flush_folder(folder)


def prepare_lock_file(folder: Path, maps: list[mmap.mmap]) -> None:
    """Validate lock.mdb, or create it, and let `maps` hold a map of its start.

    The map shows LMDB's writer lock, if its layout is known. It owns a descriptor of the file. Call this and close the
    map only while this process does not have the folder open: closing a descriptor drops the process's locks on the
    file. Raises OSError, and StorageUnavailableError if the file is not regular or was not written by LMDB.
    """
    lock = str(folder) + _LOCK
    with suppress(FileNotFoundError), open_existing(lock) as file:
        status = os.fstat(file.fileno())
        if status.st_size:
            _refuse_foreign_lock_file(lock, file, status)
            _map_lock_file(file, status.st_size, maps)
            return
    _create_lock_file(folder)
    if sys.platform == "linux":
        with open_existing(lock) as file:
            _map_lock_file(file, os.fstat(file.fileno()).st_size, maps)


def _refuse_foreign_lock_file(lock: str, file: io.FileIO, status: os.stat_result) -> None:
    """Raise StorageUnavailableError if lock.mdb was not written by LMDB, which would overwrite its content.

    A power cut may leave any content in a lock file, but keeps its size.
    """
    magic = file.read(len(_MAGIC)) or b""
    has_its_size = status.st_size > _LOCK_HEADER_BYTES and not (status.st_size - _LOCK_HEADER_BYTES) % _READER_BYTES
    if magic != _MAGIC and magic.strip(b"\0") and not (has_its_size and status.st_nlink == 1):
        raise StorageUnavailableError(
            f"{lock!r} is not a lock file of LMDB, which would overwrite it. Nothing was opened; move it away"
        )


def _create_lock_file(folder: Path) -> None:
    """Create lock.mdb with the permissions of data.mdb and all its disk space allocated. Raises OSError.

    LMDB creates a sparse file: on a full disk, the first reader to use a slot in a hole would be killed.
    """
    lock = folder / "lock.mdb"
    existing = validate_regular_file(lock)
    if os.name != "posix" or (existing is not None and existing.st_size):
        return
    data = validate_regular_file(folder / "data.mdb")
    mode = 0o644 if data is None else stat.S_IMODE(data.st_mode)
    try:
        file = open_existing(lock, "r+b") if existing is not None else create_file(lock, mode)
    except FileExistsError:
        return  # another process was faster
    with file:
        if data is not None and existing is None:
            os.fchmod(file.fileno(), mode)  # regardless of the umask
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, _LOCK_FILE_BYTES)


def _map_lock_file(file: io.FileIO, size_bytes: int, maps: list[mmap.mmap]) -> None:
    if (maps and not maps[0].closed) or sys.platform != "linux" or not _is_glibc() or size_bytes < mmap.PAGESIZE:
        return
    with suppress(OSError):  # no address space or descriptor: optional
        maps[:] = map(partial(mmap.mmap, length=mmap.PAGESIZE, prot=mmap.PROT_READ), (file.fileno(),))


def _is_glibc() -> bool:
    try:
        return bool(os.confstr("CS_GNU_LIBC_VERSION"))
    except (ValueError, OSError):
        return False


def lmdb_name(path: Path) -> str:
    """Return `path` in the form that LMDB accepts: as bytes on POSIX, because a name may not be UTF-8."""
    return cast(str, os.fsencode(path)) if os.name == "posix" else str(path)


def identities(place: str) -> Files | None:
    """Return the identities of the two files at `place`, without following links; None unless both exist."""
    try:
        data, lock = os.lstat(place + _DATA), os.lstat(place + _LOCK)
    except OSError as error:
        if raised_by_handler(error):
            raise
        return None
    return (data.st_dev, data.st_ino), (lock.st_dev, lock.st_ino)


def validate_files(folder: Path, env: lmdb.Environment, before: Files | None) -> Files | None:
    """Return the identities of the open files. Raises StoreError for a file that would cause a crash or refuse keys.

    Reading past the end of a truncated file is a SIGBUS. `before` holds the identities of the files, then regular ones,
    just before they were opened; None if one was missing.
    """
    place = str(folder)
    files = identities(place)
    if before is None:
        validate_regular_file(folder / "lock.mdb")
    elif before != files:
        raise StorageUnavailableError(
            f"lmdb {folder}: data.mdb or lock.mdb was replaced while it was opened; nothing was read or written"
        )
    if env.max_key_size() < _LONGEST_KEY_BYTES:
        raise CorruptValueError(f"{folder / 'data.mdb'} is in LMDB's old format (0.9): it was not written by hutch")
    expected_bytes = (env.info()["last_pgno"] + 1) * env.stat()["psize"]
    size = os.stat(place + _DATA).st_size  # noqa: PTH116 - twice as fast
    if size < expected_bytes and _is_truncated(env, folder / "data.mdb"):
        raise CorruptValueError(
            f"{folder / 'data.mdb'} was truncated: it has {size:,} bytes, its own header says {expected_bytes:,}. "
            "Restore it from a copy"
        )
    return files


def _is_truncated(env: lmdb.Environment, data: Path) -> bool:
    """Return whether pages in use lie beyond the end of the file.

    Free pages may: a page taken and freed within one transaction, as in a large `remove_many`, is never written.
    """
    from .pages import DataFile, UnreadableFileError

    try:
        # The transaction keeps LMDB from overwriting the pages of this state.
        with env.begin() as txn, DataFile(data, txn.id()) as file:
            return file.is_truncated()
    except UnreadableFileError:
        return True
