"""Open, create and replace hutch's own files without following links, and flush folders to the disk.

A shared or unpacked folder may contain a symbolic link, a FIFO or a device under the name of one of hutch's files.
Opening it would write somewhere else, or wait for ever. Every function here examines the name itself (`lstat`), refuses
anything but a regular file, opens with ``O_NOFOLLOW``, creates with ``O_EXCL``, and verifies that the opened file is
the one it examined. The folders in the path may be links.

Every function raises the operating system's OSError, and StorageUnavailableError if it refuses a file.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import io
import os
import stat
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from .errors import StorageUnavailableError
from .handlers import raised_by_handler

# Windows lacks the first two flags and needs O_BINARY. O_NONBLOCK because a FIFO in place of a file must not block.
_FLAGS = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISBLK, "a block device"),
    (stat.S_ISCHR, "a character device"),
)
_ATTEMPTS = 100


def validate_regular_file(path: str | os.PathLike[str]) -> os.stat_result | None:
    """Return the status of the regular file `path`, or None if nothing has that name.

    Raises StorageUnavailableError for anything else, including a symbolic link, even a dangling one.
    """
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(status.st_mode):
        raise _refusal(path, status)
    return status


def is_missing(path: str | os.PathLike[str]) -> bool:
    """Return whether nothing has the name `path`; False if that cannot be determined."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        pass
    return False


def reason_not_writable(path: str | os.PathLike[str]) -> str | None:
    """Return why this process may not write to the file or folder `path`, with its name; None if it may."""
    effective = os.access in os.supports_effective_ids
    if os.access(path, os.W_OK, effective_ids=effective):
        return None
    reason = os.strerror(errno.EACCES)
    with contextlib.suppress(AttributeError, OSError):
        if os.statvfs(path).f_flag & os.ST_RDONLY:
            reason = os.strerror(errno.EROFS)
    return f"no permission to write to {os.fspath(path)} ({reason})"


def refuse_link(path: str | os.PathLike[str]) -> None:
    """Raise StorageUnavailableError if `path` is a symbolic link. Accepts anything else, and a missing file."""
    with contextlib.suppress(FileNotFoundError):
        status = os.lstat(path)
        if stat.S_ISLNK(status.st_mode):
            raise _refusal(path, status)


def open_existing(path: str | os.PathLike[str], mode: str = "rb") -> io.FileIO:
    """Open the regular file `path` unbuffered; `mode` is ``"rb"`` or ``"r+b"``. Never creates or truncates a file.

    Raises FileNotFoundError, or StorageUnavailableError for anything but a regular file.
    """
    looked_at = validate_regular_file(path)
    if looked_at is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.fspath(path))
    try:
        file = _open(path, mode, os.O_RDONLY if mode == "rb" else os.O_RDWR, 0)
    except OSError:
        validate_regular_file(path)  # just replaced by a link: the refusal is clearer than ELOOP
        raise
    if not os.path.samestat(looked_at, os.fstat(file.fileno())) and not _is_at(path, file):
        file.close()
        raise StorageUnavailableError(
            f"{os.fspath(path)!r} was replaced while it was opened; nothing was read or written"
        )
    return file


def create_file(path: str | os.PathLike[str], permissions: int = 0o666) -> io.FileIO:
    """Create the file `path` and open it for reading and writing, unbuffered; the umask limits `permissions`.

    Raises FileExistsError if anything has that name, even a dangling link.
    """
    return _open(path, "r+b", os.O_RDWR | os.O_CREAT | os.O_EXCL, permissions)


def open_or_create(path: str | os.PathLike[str], permissions: int = 0o666) -> io.FileIO:
    """Open the regular file `path` for reading and writing, unbuffered; create it if nothing has that name.

    Raises StorageUnavailableError for anything but a regular file.
    """
    for _ in range(_ATTEMPTS):
        try:
            return open_existing(path, "r+b")
        except FileNotFoundError:
            pass
        try:
            return create_file(path, permissions)
        except FileExistsError:
            pass  # another process has just created it
    raise StorageUnavailableError(f"{os.fspath(path)!r} appears and disappears; nothing was read or written")


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike[str], permissions: int = 0o666) -> Iterator[io.BufferedRandom]:
    """Replace the regular file `path` atomically by what the block writes, flushed to the disk when the block ends.

    The permissions of an existing file are kept; a new one has `permissions`, limited by the umask. If the block
    raises, nothing has changed. Raises StorageUnavailableError if `path` is anything but a regular file.
    """
    path = Path(path)
    existing = validate_regular_file(path)
    # The temporary name contains no part of the final one, which may be as long as a name can be.
    temporary = path.with_name(f".hutch-{os.urandom(8).hex()}.tmp")
    try:
        with io.BufferedRandom(create_file(temporary, permissions if existing is None else 0o600)) as file:
            yield file
            file.flush()
            if existing is not None:
                copy_permissions(existing, temporary)
            os.fsync(file.fileno())
        validate_regular_file(path)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    flush_folder(path.parent)


def write_atomically(path: str | os.PathLike[str], data: bytes, permissions: int = 0o666) -> None:
    """Replace the content of the regular file `path` by `data` atomically, as `atomic_file` does."""
    with atomic_file(path, permissions) as file:
        file.write(data)


def write_all(file: io.FileIO, data: bytes) -> None:
    """Write all of `data` to the unbuffered `file`."""
    # `write` may write only a part and returns how much; an error then surfaces at the next call.
    view = memoryview(data)
    while view:
        view = view[file.write(view) or 0 :]


def copy_permissions(source: os.stat_result, target: str | os.PathLike[str]) -> None:
    """Set the mode of the file `target` from `source`, and its owner and group if this process is permitted to."""
    if hasattr(os, "chown"):
        with contextlib.suppress(PermissionError):
            os.chown(target, source.st_uid, source.st_gid, follow_symlinks=False)
    os.chmod(target, stat.S_IMODE(source.st_mode))  # noqa: PTH101 - last: chown clears the set-id bits


def flush_folder(folder: str | os.PathLike[str]) -> None:
    """Flush the file names in `folder` to the disk. Windows does so by itself.

    Does nothing if the folder is writable but not readable, or the file system cannot flush folders.
    """
    if os.name != "posix":
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def make_private_folder(folder: str | os.PathLike[str], parents: int = 0) -> None:
    """Create `folder` and up to `parents` of its nearest parents with mode 0700, regardless of the umask.

    Parents further up are created with the default mode. Existing folders keep their mode. Raises OSError.
    """
    missing = []
    path = Path(folder)
    for number, each in enumerate((path, *path.parents)):
        if each.exists():
            break
        missing.append((each, number <= parents))
    for each, private in reversed(missing):
        try:
            each.mkdir(0o700 if private else 0o777)
        except FileExistsError:
            continue  # another process has just created it
        if private:
            each.chmod(0o700)  # the umask may have cleared owner bits
        flush_folder(each.parent)


def _open(path: str | os.PathLike[str], mode: str, flags: int, permissions: int) -> io.FileIO:
    # One call, so that if a signal handler raises there is either no descriptor or a file that closes itself.
    return next(map(io.FileIO, map(os.open, (path,), (flags | _FLAGS,), (permissions,)), (mode,)))


def _is_at(path: str | os.PathLike[str], file: io.FileIO) -> bool:
    """Return whether `file` is the regular file that `path` names now."""
    status = validate_regular_file(path)
    return status is not None and os.path.samestat(status, os.fstat(file.fileno()))


def _refusal(path: str | os.PathLike[str], status: os.stat_result) -> StorageUnavailableError:
    if stat.S_ISLNK(status.st_mode):
        with contextlib.suppress(OSError):
            leads_to = os.readlink(path)  # noqa: PTH115
            return StorageUnavailableError(
                f"{os.fspath(path)!r} is a symbolic link to {leads_to!r}, and hutch follows no link in the place of "
                "one of its files: expected a regular file. Nothing was opened; remove the link, or move the file there"
            )
    kind = next((kind for is_kind, kind in _KINDS if is_kind(status.st_mode)), "a special file")
    return StorageUnavailableError(
        f"{os.fspath(path)!r} is {kind}: expected a regular file. Nothing was opened; move it away"
    )


def hex_digest(data: bytes) -> str:
    """Return the SHA-256 of `data`, as a name that holds in every process, in hexadecimal digits.

    By CPython's own module if available, as in `random`: importing hashlib would load OpenSSL.
    """
    try:
        module = importlib.import_module("_sha2" if sys.version_info >= (3, 12) else "_sha256")
    except ImportError as error:
        if raised_by_handler(error):
            raise
        module = importlib.import_module("hashlib")
    return str(module.sha256(data).hexdigest())


def total_bytes(paths: Iterable[Path]) -> int:
    """Return the size of the regular files among `paths`; one that is missing counts as empty."""
    total = 0
    for path in paths:
        try:
            status = path.lstat()
        except FileNotFoundError:
            continue
        if stat.S_ISREG(status.st_mode):
            total += status.st_size
    return total


def error_of_new_file(folder: Path) -> OSError | None:
    """Write a new file in `folder` and return the system's error, or None: SQLite does not say why a write failed."""
    import tempfile

    try:
        with tempfile.TemporaryFile(dir=folder, buffering=0) as trial:
            trial.write(bytes(64 * 1024))
    except OSError as error:
        if raised_by_handler(error):
            raise
        return error
    return None
