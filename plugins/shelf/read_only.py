"""Read a namespace without permission to write, and without changing, creating or moving a file."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import NoReturn, TypeVar

from hutch import CorruptValueError, StorageUnavailableError, StoreError
from hutch.filesystem import is_missing, reason_not_writable
from hutch.fork import run_in_child
from hutch.handlers import raised_by_handler

from .database import Database
from .deadlines import is_marked
from .dialects import open_to_read
from .files import Folder, Place, storage_errors
from .lock import ReaderLock
from .shared import SharedShelf

T = TypeVar("T")

# How often a namespace without a lock file is read again because another program changed it.
_TRIES = 20


def reason_to_only_read(folder: Folder, namespace: str, readonly: bool) -> str | None:
    """Return why this process only reads `namespace`; None if it may write, or if there is no data."""
    if readonly:
        return "the store was connected with readonly=true"
    try:
        place = folder.find(namespace) or folder.errbot3_place(namespace)
    except StoreError as error:
        if raised_by_handler(error):
            raise
        return None  # opening it raises the same
    if place is None:
        return None
    lock = folder.lock_path(namespace)
    nearest = next(path for path in (lock, folder.own, folder.path) if not is_missing(path))
    return next(filter(None, map(reason_not_writable, [*place.files(), nearest])), None)


class ReadOnlyShelf(SharedShelf):
    """The files of one namespace for one storage that only reads, because of `reason`.

    A shared lock keeps other processes of hutch from writing. Where hutch has left no lock file, and none can be
    created, what was read counts only if the files are afterwards the same as before.
    """

    def __init__(self, folder: Folder, namespace: str, reason: str) -> None:
        super().__init__(folder, namespace)
        self._reason = reason
        self._reader_lock: ReaderLock | None = None
        self._state: object = None
        _readers.append(weakref.ref(self, _readers.remove))

    def abandon(self) -> None:
        self._reader_lock = None
        super().abandon()

    def _write(
        self, create: bool, fn: Callable[..., T], args: tuple[object, ...], has_deadlines: bool = False
    ) -> NoReturn:
        raise StorageUnavailableError(
            f"namespace {self._namespace!r} in {self._folder.path} can only be read here: {self._reason}; nothing was "
            "written. Permit this process to write to the folder and its files, and connect again"
        )

    def _empty(self) -> NoReturn:
        self._write(False, lambda: None, ())

    def _lock_is_missing(self) -> bool:
        return is_missing(self._folder.lock_path(self._namespace))

    def _must_be_in_place(self) -> None:
        """Do nothing: a reader cannot write to files that were moved."""

    def _read_now(self, fn: Callable[[Database], T]) -> T | None:
        for _ in range(_TRIES):
            failure: StoreError | None = None
            result: T | None = None
            try:
                result = super()._read_now(fn)
            except StoreError as error:
                if raised_by_handler(error):
                    raise
                failure = error
            lock, place = self._reader_lock, self._place
            if (lock is not None and lock.is_held) or place is None or _state_of(place) == self._state:
                if failure is not None:
                    raise failure
                return result
            self._release()
        raise StorageUnavailableError(
            f"namespace {self._namespace!r} in {self._folder.path} is changed again and again by another program, "
            "and there is no lock file to prevent that. Stop that program first, or read a copy"
        )

    def _database(self, create: bool = False) -> Database | None:
        if self._opened is not None:
            return self._opened
        if self._reader_lock is None:
            self._reader_lock = ReaderLock(self._folder.lock_path(self._namespace), self._namespace)
        place = self._folder.find(self._namespace) or self._folder.errbot3_place(self._namespace)
        if place is None:
            return None
        with storage_errors(place.base):
            place.validate()
            state = _state_of(place)
            # Without a lock file, the marker may be lost too.
            self.expires = is_marked(self._folder.marker(self._namespace)) or self._lock_is_missing()
            database = open_to_read(place)
        if database is None:
            raise CorruptValueError(
                f"{place.base} was not written by dbm: expected a table Dict with the columns key and "
                "value. Move it away"
            )
        self._place, self._state = place, state
        self._opened = database
        return database

    def _release(self) -> None:
        database, self._opened = self._opened, None
        if database is not None:
            database.close()

    def _close(self) -> None:
        lock, self._reader_lock = self._reader_lock, None
        try:
            self._release()
        finally:
            if lock is not None:
                lock.release()


def _state_of(place: Place) -> object:
    """Return what changes when one of the files is written or replaced. It differs from itself if one disappears."""
    try:
        return [
            (file.name, (status := file.lstat()).st_ino, status.st_size, status.st_mtime_ns) for file in place.files()
        ]
    except FileNotFoundError:
        return object()


_readers: list[weakref.ref[ReadOnlyShelf]] = []


def _after_fork() -> None:
    for ref in list(_readers):
        shelf = ref()
        if shelf is not None:
            shelf.abandon()


run_in_child(_after_fork)
