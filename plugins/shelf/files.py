"""Locate the files of a namespace and recognise their dbm dialect."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from hutch import CorruptValueError, NamespaceError, StorageFullError, StorageUnavailableError, StoreError
from hutch.filesystem import create_file, flush_folder, hex_digest, open_existing, refuse_link, validate_regular_file
from hutch.fork import ForkSafeLock
from hutch.handlers import raised_by_handler, suppress_own
from hutch.limits import validate_namespace

if TYPE_CHECKING:
    from logging import Logger

Dialect = Literal["gnu", "ndbm", "dumb", "sqlite3"]

#: hutch's own folder inside `basedir`: locks, and the namespaces whose names are not valid file names.
OWN_FOLDER: Final = ".hutch-shelf"

# The suffixes of a dialect's files. These names must be free for a new namespace; the longest suffix limits the length
# of its name, including what Errbot may add.
_SUFFIXES: Final[dict[Dialect, tuple[str, ...]]] = {
    "gnu": ("",),
    "ndbm": (".db", ".pag", ".dir"),
    "dumb": (".dat", ".dir", ".bak"),
    "sqlite3": ("", "-journal", "-wal", "-shm"),
}
_ALL_SUFFIXES: Final = sorted({suffix for suffixes in _SUFFIXES.values() for suffix in suffixes})
#: The suffixes of files that hold data.
_DATA_SUFFIXES: Final = ("", ".db", ".pag", ".dat", ".dir")
_MAX_FILE_NAME_BYTES: Final = 255
_MAX_NAMESPACE_BYTES: Final = 1024
_ON_WINDOWS: Final = os.name == "nt"

_GNU_MAGIC: Final = frozenset(magic.to_bytes(4, sys.byteorder) for magic in (0x13579ACE, 0x13579ACD, 0x13579ACF))
_BERKELEY_MAGIC: Final = frozenset((0x00061561).to_bytes(4, order) for order in ("little", "big"))
_SQLITE_MAGIC: Final = b"SQLite format 3\0"

#: The errno values for a lack of space.
FULL: Final = frozenset({errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)})
_WINDOWS_FORBIDDEN: Final = frozenset('<>:"\\|?*') | {chr(code) for code in range(32)}
_WINDOWS_DEVICES: Final = frozenset(
    {"con", "prn", "aux", "nul", *(f"{port}{digit}" for port in ("com", "lpt") for digit in "0123456789¹²³")}
)

# Held while choosing a place: two namespaces may have the same name to the file system.
creating = ForkSafeLock()


def storage_error(error: OSError, file: Path | str) -> StoreError:
    """Return the StoreError for an error of the operating system about `file`."""
    reason = error.strerror or str(error) or type(error).__name__
    if error.errno in FULL:
        return StorageFullError(f"no room to write {file}: {reason}; what was stored before is intact. Free some space")
    return StorageUnavailableError(f"cannot use {file}: {reason}")


@contextlib.contextmanager
def storage_errors(file: Path | str) -> Iterator[None]:
    """Translate each OSError of the block into a StoreError that names the error's own file, or else `file`."""
    try:
        yield
    except StoreError:
        raise
    except OSError as error:
        if raised_by_handler(error):
            raise
        raise storage_error(error, error.filename or file) from error


@dataclass(frozen=True, slots=True)
class Place:
    """The files of a namespace: `base` is the path for `dbm.open`, to which some dialects add suffixes."""

    base: Path
    dialect: Dialect

    def file(self, suffix: str) -> Path:
        """Return the path of `base` with `suffix` appended."""
        return self.base.with_name(self.base.name + suffix)

    def files(self) -> list[Path]:
        """Return the existing files in a safe order of removal: after each, the rest is never half a database."""
        order = (".bak", ".dat", ".pag", ".dir") if self.dialect == "dumb" else _SUFFIXES[self.dialect]
        return [file for suffix in order if os.path.lexists(file := self.file(suffix))]

    def validate(self) -> None:
        """Raise StorageUnavailableError if one of the files exists and is not a regular file."""
        for suffix in _SUFFIXES[self.dialect]:
            validate_regular_file(self.file(suffix))

    def flush(self) -> None:
        """Flush the data files and their names to the disk. Raises OSError."""
        # Windows flushes only files opened for writing.
        mode = "r+b" if _ON_WINDOWS else "rb"
        for suffix in _SUFFIXES[self.dialect]:
            if suffix in _DATA_SUFFIXES:
                with suppress_own(FileNotFoundError), open_existing(self.file(suffix), mode) as file:
                    os.fsync(file.fileno())
        flush_folder(self.base.parent)

    def identities(self) -> dict[str, tuple[int, int]]:
        """Return (device, inode) of each existing data file, by suffix."""
        identities: dict[str, tuple[int, int]] = {}
        for suffix in _DATA_SUFFIXES:
            if suffix in _SUFFIXES[self.dialect]:
                with suppress_own(OSError):
                    status = self.file(suffix).lstat()
                    identities[suffix] = status.st_dev, status.st_ino
        return identities


class Folder:
    """The folder `basedir`, in Errbot's layout.

    Namespace NS is in ``NS.db``, to which some dialects add a suffix. A name that cannot be a file name here (it holds
    a slash, is too long, holds a colon on Windows, or differs only in case on a case-insensitive file system) gets a
    folder of its own inside ``.hutch-shelf``, named by a hash, with the true name in a file ``name``. Errbot could not
    have written such a namespace, and a plain name cannot be mistaken for it.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(os.path.realpath(path))
        self.own = self.path / OWN_FOLDER

    def lock_path(self, namespace: str) -> Path:
        """Return the path of the file that a process locks while it has `namespace` open."""
        return self.own / f"{_digest(namespace)}.lock"

    def marker(self, namespace: str) -> Path:
        """Return the path of the file that exists if values of `namespace` may have deadlines."""
        return self.own / f"{_digest(namespace)}.ttl"

    def scratch(self, namespace: str) -> Path:
        """Return the path for a new version of a file before it replaces the old one."""
        return self.own / f"{_digest(namespace)}.new"

    def find(self, namespace: str) -> Place | None:
        """Return the place of `namespace`, or None if it has no data.

        Raises CorruptValueError if its files exist but are no database, and StorageUnavailableError.
        """
        with storage_errors(self.path):
            name = f"{namespace}.db"
            plain = _find_place(self.path, name, _names_in(self.path)) if _can_be_file(namespace) else None
            own_folder = self.own / _digest(namespace)
            own = _find_place(own_folder, "data.db", _names_in(own_folder))
            if own is not None:
                self._validate_own(own_folder, namespace)
        if plain is not None and own is not None:
            raise CorruptValueError(
                f"namespace {namespace!r} exists twice, as {plain.base} and as {own.base}: stop all users, keep the "
                "one with your data and move the other away"
            )
        return plain or own

    def shelf(self, name: str) -> Place | None:
        """Return the place of the shelf that ``shelve.open(name)`` would open in the folder, or None."""
        return _find_place(self.path, name, _names_in(self.path))

    def errbot3_place(self, namespace: str) -> Place | None:
        """Return the place where Errbot 3 stored `namespace`, if the files are still there, else None."""
        if not _can_be_file(namespace):
            return None
        folder, name = self.path / "plugins", f"{namespace}.db"
        with storage_errors(folder):
            if name in _names_in(folder) and not (folder / name).is_dir():
                return _find_place(folder, name, {name})
        return None

    def new_place(self, namespace: str, dialect: Dialect) -> Place:
        """Return a place for the new `namespace`. The caller holds `creating` until it has created the files."""
        name = f"{namespace}.db"
        longest = max(len(suffix) for suffix in _SUFFIXES[dialect])
        if _can_be_file(namespace) and len(os.fsencode(name)) + longest <= _MAX_FILE_NAME_BYTES:
            place = Place(self.path / name, dialect)
            names = _names_in(self.path)
            # `find` has already judged files of exactly this name: empty remains of a creation that was killed. A file
            # that exists but is not listed under this name has another name, on a case-insensitive file system.
            taken = [
                file
                for suffix in _SUFFIXES[dialect]
                if os.path.lexists(file := place.file(suffix)) and (file.name not in names or dialect != "dumb")
            ]
            if not taken:
                return place
        folder = self.own / _digest(namespace)
        folder.mkdir(exist_ok=True)
        scratch = self.scratch(namespace)
        scratch.unlink(missing_ok=True)
        with create_file(scratch) as opened:
            opened.write(namespace.encode())
        scratch.replace(folder / "name")
        return Place(folder / "data.db", dialect)

    def places(self) -> Iterator[tuple[str, Place]]:
        """Yield each namespace that has files, with its place; skip files that are no database.

        Raises StorageUnavailableError for a link instead of a file, rather than skip a namespace.
        """
        names = _names_in(self.path)
        seen: set[str] = set()
        for namespace in sorted({one for name in names if (one := _namespace_of(self.path, name, names))}):
            _refuse_links(self.path, f"{namespace}.db", names)
            with suppress_own(StoreError):
                place = self.find(namespace)
                if place is not None and place.base.parent == self.path:
                    seen.add(namespace)
                    yield namespace, place
        old = self.path / "plugins"
        for name in sorted(_names_in(old)):
            namespace = name.removesuffix(".db")
            if namespace not in {*seen, "", name} and _is_name(namespace):
                if _namespace_of(old, name, {name}) is not None:
                    _refuse_links(old, name, {name})
                with suppress_own(StoreError):
                    place = self.errbot3_place(namespace)
                    if place is not None:
                        seen.add(namespace)
                        yield namespace, place
        for name in sorted(_names_in(self.own)):
            folder = self.own / name
            for file in ("name", *(f"data.db{suffix}" for suffix in _ALL_SUFFIXES)):
                with suppress_own(NotADirectoryError):
                    refuse_link(folder / file)
            with suppress_own(OSError, UnicodeDecodeError, StoreError):
                with open_existing(folder / "name") as opened:
                    namespace = opened.read(_MAX_NAMESPACE_BYTES).decode()
                place = self.find(namespace)
                if place is not None and place.base.parent == folder and namespace not in seen:
                    yield namespace, place

    def damaged_places(self) -> Iterator[str]:
        """Return the sorted namespaces whose files `places` skips, except for SQLite databases."""
        listed = {namespace for namespace, _ in self.places()}
        damaged = set()
        for name in _names_in(self.path):
            for suffix in (".db", ".db.dat", ".db.dir", ".db.pag"):
                namespace = name.removesuffix(suffix)
                if namespace in {*listed, "", name} or not _is_name(namespace):
                    continue
                if (self.path / name).is_file() and _head_through_links(self.path / name) != _SQLITE_MAGIC:
                    damaged.add(namespace)
        return iter(sorted(damaged))

    @staticmethod
    def _validate_own(folder: Path, namespace: str) -> None:
        file = folder / "name"
        try:
            with open_existing(file) as opened:
                name = opened.read(_MAX_NAMESPACE_BYTES)
        except FileNotFoundError:
            name = b""
        if name != namespace.encode():
            raise CorruptValueError(
                f"{file} does not name the namespace whose data is beside it, {namespace!r}; write that name into it"
            )


def _refuse_links(folder: Path, name: str, names: set[str]) -> None:
    for suffix in _ALL_SUFFIXES:
        if name + suffix in names:
            refuse_link(folder / (name + suffix))


def _names_in(folder: Path) -> set[str]:
    # List names instead of testing for a file: a case-insensitive file system would find a file of another name.
    try:
        return set(os.listdir(folder))  # noqa: PTH208 - only names are needed
    except FileNotFoundError:
        return set()


def _digest(namespace: str) -> str:
    return hex_digest(namespace.encode())[:32]


def _is_name(namespace: str) -> bool:
    try:
        validate_namespace(namespace)
    except NamespaceError:  # for example a file name that is not UTF-8
        return False
    return True


def _can_be_file(namespace: str) -> bool:
    """Return whether ``NAMESPACE.db`` is a valid file name here, regardless of its length."""
    if "/" in namespace or "\0" in namespace:
        return False
    if not _ON_WINDOWS:
        return True
    device = namespace.partition(".")[0].rstrip().lower()
    return device not in _WINDOWS_DEVICES and not _WINDOWS_FORBIDDEN & set(namespace)


def _head(file: Path) -> bytes:
    """Return the first 16 bytes of `file`. Raises StorageUnavailableError for a link, and OSError."""
    with open_existing(file) as opened:
        return opened.read(16)


def _head_through_links(file: Path) -> bytes:
    """Return the first 16 bytes of `file`, following links; b"" if it is not a regular file. Raises OSError."""
    if not file.is_file():
        return b""
    with file.open("rb") as opened:
        return opened.read(16)


def _is_berkeley(head: bytes) -> bool:
    return head[:4] in _BERKELEY_MAGIC or head[12:16] in _BERKELEY_MAGIC


def _single_file_dialect(head: bytes) -> Dialect | None:
    return "gnu" if head[:4] in _GNU_MAGIC else "sqlite3" if head == _SQLITE_MAGIC else None


def _is_dumb_index(file: Path) -> bool:
    return _head(file)[:1] in (b"", b"'", b'"')


def _find_place(folder: Path, name: str, names: set[str]) -> Place | None:
    """Return the database that `dbm.open` would open as `name`, by the rules of `dbm.whichdb`, in its order.

    `whichdb` itself ignores dialects that this Python lacks, and then a new, empty file would be created beside the
    data.
    """
    base = folder / name

    def has(suffix: str) -> bool:
        return name + suffix in names

    def file(suffix: str) -> Path:
        return folder / (name + suffix)

    if (has(".pag") and has(".dir")) or (has(".db") and _is_berkeley(_head(file(".db")))):
        return Place(base, "ndbm")
    if has(".dat") and has(".dir") and _is_dumb_index(file(".dir")):
        return Place(base, "dumb")
    if has(""):
        head = _head(base)
        dialect = _single_file_dialect(head)
        if dialect is None and name.endswith(".db.db") and _is_berkeley(head):
            return None  # NAME.db.db is the ndbm file of namespace NAME, but NAME.db was requested
        if dialect is None:
            raise CorruptValueError(
                f"{base} is not a database that dbm knows: its first bytes are neither gnu nor sqlite3 dbm. It is "
                "truncated, or was not written by dbm; restore it, or move it away"
            )
        return Place(base, dialect)
    for have, lack in ((".dat", ".dir"), (".dir", ".dat"), (".pag", ".dir")):
        if has(have) and not has(lack) and file(have).stat().st_size:
            bak = f", or copy {name}.bak to it, which may be older" if lack == ".dir" and has(".bak") else ""
            raise CorruptValueError(
                f"{file(have)} exists without {name}{lack}, the other half of its database; restore that{bak}"
            )
    if has(".dat") and has(".dir"):
        raise CorruptValueError(f"{file('.dir')} is not an index of dbm.dumb, but {name}.dat is beside it; restore it")
    # NAME.db.db may also be the namespace NAME.db in another dialect.
    if has(".db") and _single_file_dialect(_head(file(".db"))) is None:
        raise CorruptValueError(
            f"{file('.db')} is not a database that dbm knows: it is truncated, or was not written by dbm; restore it, "
            "or move it away"
        )
    return None


def _namespace_of(folder: Path, name: str, names: set[str]) -> str | None:
    """Return the namespace that the file `name` may belong to, judging by its name and first bytes, or None."""
    namespace = None
    for suffix in (".db.dat", ".db.pag"):
        if name.endswith(suffix) and name[:-4] + ".dir" in names:
            namespace = name.removesuffix(suffix)
    if name.endswith(".db"):
        with suppress_own(OSError):
            head = _head_through_links(folder / name)
            if _single_file_dialect(head):
                namespace = name.removesuffix(".db")
            elif _is_berkeley(head) and name.endswith(".db.db"):
                namespace = name.removesuffix(".db.db")
    return namespace if namespace and _is_name(namespace) else None


@cache
def logger() -> Logger:
    # Once, because `getLogger` before Python 3.13 leaves a lock taken if a signal handler raises in it.
    from logging import getLogger

    return getLogger("hutch.shelf")
