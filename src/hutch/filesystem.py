"""Open, create and replace hutch's own files without following links, and flush folders to the disk.

A folder that somebody unpacked or shares may hold a symbolic link, a FIFO or a device under the name of one of hutch's
files. Opening such a file writes somewhere else, or waits for ever. Every function here looks at the name itself
(`lstat`), refuses whatever is not a regular file, opens with ``O_NOFOLLOW``, creates with ``O_EXCL``, and compares the
file that was opened with the one that was looked at. A folder on the way to the file may be a link.

Each function raises OSError as the operating system does, and StorageUnavailableError where a file is refused.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from .errors import StorageUnavailableError

# Windows has neither flag, and needs O_BINARY; a FIFO that took the place of a file must not block.
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
    """Return the status of the regular file `path`, or None if nothing is there.

    Raises StorageUnavailableError for anything else, a symbolic link (also a dangling one) included.
    """
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(status.st_mode):
        raise _refusal(path, status)
    return status


def refuse_link(path: str | os.PathLike[str]) -> None:
    """Raise StorageUnavailableError if `path` is a symbolic link. Anything else, or nothing, may be there."""
    with contextlib.suppress(FileNotFoundError):
        status = os.lstat(path)
        if stat.S_ISLNK(status.st_mode):
            raise _refusal(path, status)


def open_existing(path: str | os.PathLike[str], mode: str = "rb") -> io.FileIO:
    """Open the regular file `path`, unbuffered; `mode` is ``"rb"`` or ``"r+b"``. Nothing is created or cut short.

    Raises FileNotFoundError, or StorageUnavailableError for anything but a regular file.
    """
    looked_at = validate_regular_file(path)
    if looked_at is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.fspath(path))
    try:
        file = _open(path, mode, os.O_RDONLY if mode == "rb" else os.O_RDWR, 0)
    except OSError:
        validate_regular_file(path)  # replaced by a link a moment ago: the refusal says more than ELOOP
        raise
    if not os.path.samestat(looked_at, os.fstat(file.fileno())) and not _is_at(path, file):
        file.close()
        raise StorageUnavailableError(
            f"{os.fspath(path)!r} was replaced while it was opened; nothing was read or written"
        )
    return file


def create_file(path: str | os.PathLike[str], permissions: int = 0o666) -> io.FileIO:
    """Create the file `path` and open it to read and write, unbuffered; the umask limits `permissions`.

    Raises FileExistsError if anything has that name, a dangling link included.
    """
    return _open(path, "r+b", os.O_RDWR | os.O_CREAT | os.O_EXCL, permissions)


def open_or_create(path: str | os.PathLike[str], permissions: int = 0o666) -> io.FileIO:
    """Open the regular file `path` to read and write, unbuffered, and create it if nothing is there.

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
            pass  # another process was faster
    raise StorageUnavailableError(f"{os.fspath(path)!r} appears and disappears; nothing was read or written")


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike[str], permissions: int = 0o666) -> Iterator[io.BufferedRandom]:
    """Write a new version of the regular file `path`, which appears whole when the block ends, flushed to the disk.

    The permissions of an existing file are kept; a new one has `permissions`, limited by the umask. If the block
    raises, nothing has changed. Raises StorageUnavailableError if `path` is anything but a regular file.
    """
    path = Path(path)
    existing = validate_regular_file(path)
    # The final name may be as long as a name can be, so that the temporary one has none of it.
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
    """Replace the content of the regular file `path` by `data`, as `atomic_file` does."""
    with atomic_file(path, permissions) as file:
        file.write(data)


def write_all(file: io.FileIO, data: bytes) -> None:
    """Write all of `data` to `file`, which is unbuffered."""
    # It may write a part, and says so; the next call then has the error, if there was one.
    view = memoryview(data)
    while view:
        view = view[file.write(view) or 0 :]


def copy_permissions(source: os.stat_result, target: str | os.PathLike[str]) -> None:
    """Give the file `target` the mode of `source`, and its owner and group where this process may."""
    if hasattr(os, "chown"):
        with contextlib.suppress(PermissionError):
            os.chown(target, source.st_uid, source.st_gid, follow_symlinks=False)
    os.chmod(target, stat.S_IMODE(source.st_mode))  # noqa: PTH101 - last: chown clears the set-id bits


def flush_folder(folder: str | os.PathLike[str]) -> None:
    """Flush the names in `folder` to the disk. Windows does so by itself.

    Nothing is done where the folder may be written to but not read, or the file system cannot flush folders.
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
    """Make `folder`, and the last `parents` of its parents, for their owner alone, whatever the umask is.

    Parents above are made as usual. A folder that exists already keeps its mode. Raises OSError.
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
            continue  # another process was faster
        if private:
            each.chmod(0o700)  # the umask may have taken bits of the owner
        flush_folder(each.parent)


def _open(path: str | os.PathLike[str], mode: str, flags: int, permissions: int) -> io.FileIO:
    # One call, so that a signal handler that raises finds either no descriptor or a file that closes itself.
    return next(map(io.FileIO, map(os.open, (path,), (flags | _FLAGS,), (permissions,)), (mode,)))


def _is_at(path: str | os.PathLike[str], file: io.FileIO) -> bool:
    """Whether `file` is the regular file that `path` names now."""
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
