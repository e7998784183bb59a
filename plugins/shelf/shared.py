"""Share one lock and one set of open files per namespace among all stores and handles of this process.

Signal handlers and finalizers run in the middle of any call, may raise, and may use the same namespace. So:

- the files are authoritative: after an exception the state is read again from the files, which are whole at every
  moment, because a process may be killed at any;
- a nested call of the same thread may read what is stored, but not write;
- the lock is a `FairLock`; every other resource is released by the first operation of a `finally`, or with the object
  that holds it. A namespace without references has no files open.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from hutch import ConflictError, CorruptValueError, StorageUnavailableError, StoreError
from hutch.filesystem import is_missing, validate_regular_file
from hutch.fork import ForkSafeLock, run_in_child
from hutch.handlers import raised_by_handler
from hutch.locks import FairLock

from .database import Database
from .deadlines import LiveDatabase, is_marked, mark, read_index
from .dialects import create_database, default_dialect, open_database
from .files import Folder, Place, creating, logger, storage_errors
from .lock import ProcessLock

T = TypeVar("T")


class SharedShelf:
    """The files of one namespace, opened when first needed, closed when the last user leaves."""

    def __init__(self, folder: Folder, namespace: str) -> None:
        self.place = (str(folder.path), namespace)
        self._folder, self._namespace = folder, namespace
        self._lock = FairLock(f"namespace {namespace!r} in {folder.path}")
        # The id of the thread that is in a call.
        self._calling_thread: int | None = None
        # The users that must leave before the files are closed. A collected user has left.
        self._users: set[weakref.ref[object]] = set()
        self._opened: Database | None = None
        # Whether the memory of `_opened` matches the files; False after an interrupted write.
        self._is_current = False
        self._wrote = False
        self._place: Place | None = None
        self._files: dict[str, tuple[int, int]] = {}
        self._process_lock: ProcessLock | None = None
        #: Whether values may have deadlines; set when the files are opened.
        self.expires = False
        # Whether hutch left no lock file here, so its marker files may be lost too; until the values have been read.
        self._is_unknown = False

    def join(self, user: object) -> None:
        """Add `user`; the files stay open until it leaves or is collected."""
        self._users.add(weakref.ref(user, self._users.discard))

    def leave(self, user: object, wait_s: float) -> None:
        """Remove `user`; if it was the last, close the files and admit other processes."""
        self._users.discard(weakref.ref(user))
        # Inside another call of this thread, that call closes them when it ends.
        if not self._users and self._calling_thread != threading.get_ident():
            self._lock.run(wait_s, self._run, lambda: None)

    def read(self, wait_s: float, fn: Callable[[Database], T]) -> T | None:
        """Return ``fn(database)``, or None if there is no data. No thread writes meanwhile."""
        result: T | None = self._lock.run(wait_s, self._read, fn)
        return result

    def write(self, wait_s: float, fn: Callable[..., T], *args: object) -> T:
        """Return ``fn(database, *args)``, which may write to the database. A missing database is created.

        Raises ConflictError inside another call of the same thread, and StorageUnavailableError if the path no longer
        leads to the open files: removed files accept writes silently, and a database of two files could be mixed with
        another.
        """
        result: T = self._lock.run(wait_s, self._run, self._write, True, fn, args)
        return result

    def write_with_deadlines(self, wait_s: float, fn: Callable[..., T], *args: object) -> T:
        """Return ``fn(database, *args)`` as `write` does; `fn` may write values with deadlines."""
        result: T = self._lock.run(wait_s, self._run, self._write, True, fn, args, True)
        return result

    def write_if_there(self, wait_s: float, fn: Callable[..., T], *args: object) -> T | None:
        """Return ``fn(database, *args)`` as `write` does, or None without creating anything if there is no data."""
        result: T | None = self._lock.run(wait_s, self._run, self._write, False, fn, args)
        return result

    def empty(self, wait_s: float) -> None:
        """Remove every key, and also the files if only one user is left."""
        self._lock.run(wait_s, self._run, self._empty)

    def compact(self, wait_s: float) -> tuple[int, int]:
        """Rewrite the files without free space; return their bytes before and after."""
        sizes = self._lock.run(wait_s, self._run, self._write, False, self._compact, ())
        return sizes or (0, 0)

    def _compact(self, database: Database) -> tuple[int, int]:
        before = self._size()
        database.compact()
        return before, self._size()

    def _size(self) -> int:
        return sum(file.stat().st_size for file in self._place.files()) if self._place is not None else 0

    def validate_in_place(self, wait_s: float) -> None:
        """Open the files, if they exist; raise what `write` would raise."""
        self._lock.run(wait_s, self._validate)

    def is_locked_in_place(self) -> bool:
        """Return whether another process would encounter this process's lock; True if none is held."""
        process_lock = self._process_lock
        return process_lock is None or process_lock.is_in_place()

    def is_open(self) -> bool:
        """Return whether the files are open."""
        return self._opened is not None

    def abandon(self) -> None:
        """Abandon the parent's files and lock in a forked child, which opens its own when they are used."""
        if self._calling_thread != threading.get_ident():
            self._calling_thread = None
        database, self._opened = self._opened, None
        process_lock, self._process_lock = self._process_lock, None
        if database is not None:
            database.abandon()
        if process_lock is not None:
            process_lock.release()

    # --- called with the lock held ---

    def _run(self, fn: Callable[..., T], *args: object) -> T:
        """Return ``fn(*args)``, during which no nested call of this thread may write."""
        if self._calling_thread is not None:
            raise self._nested()
        try:
            self._calling_thread = threading.get_ident()
            try:
                return fn(*args)
            finally:
                if not self._users:
                    self._close()
        finally:
            self._calling_thread = None

    def _nested(self) -> ConflictError:
        return ConflictError(
            f"this thread is in the middle of another call on namespace {self._namespace!r} in {self._folder.path}, "
            "which a signal handler or a finalizer interrupted to use the same namespace; nothing was written. Write "
            "to it when the other call has returned, or use another namespace"
        )

    def _read(self, fn: Callable[[Database], T]) -> T | None:
        if self._calling_thread is None:
            return self._run(self._read_now, fn)
        # The memory holds the state before the interrupted write, until that write is done.
        if self._opened is None:
            raise self._nested()
        return fn(self._live(self._opened) if self.expires else self._opened)

    def _read_now(self, fn: Callable[[Database], T]) -> T | None:
        database = self._database()
        return None if database is None else fn(self._live(database) if self.expires else database)

    def _live(self, database: Database) -> Database:
        """Return `database` without the keys that have expired by now."""
        if database.index is None:
            database.index = read_index(database)
        return LiveDatabase(database, database.index)

    def _write(
        self, create: bool, fn: Callable[..., T], args: tuple[object, ...], has_deadlines: bool = False
    ) -> T | None:
        database = self._database(create)
        if database is None:
            return None
        self._must_be_in_place()
        if has_deadlines or self.expires:  # the marker may be lost
            with storage_errors(self._folder.own):
                mark(self._folder.marker(self._namespace))
            self.expires = True
        live = self._live(database) if self.expires else database
        self._wrote = True
        self._is_current = False
        try:
            result = fn(live, *args)
        except StoreError as error:
            if not raised_by_handler(error):  # for example a full disk: the database has rolled back
                self._note_files()
            raise
        self._note_files()
        return result

    def _note_files(self) -> None:
        # A write may replace the files.
        if self._place is not None:
            self._files = self._place.identities()
            self._is_current = True

    def _validate(self) -> None:
        if self._calling_thread is None:
            self._run(self._validate_now)

    def _validate_now(self) -> None:
        if self._database() is not None:
            self._must_be_in_place()

    def _empty(self) -> None:
        self._write(False, lambda database: database.clear(), ())
        database, place = self._opened, self._place
        if database is None or place is None or len(self._users) > 1:
            return
        self._is_current = False
        self._opened = self._place = None
        database.release()
        with storage_errors(place.base):
            for file in place.files():
                file.unlink()
            self._folder.marker(self._namespace).unlink(missing_ok=True)
            if place.base.parent != self._folder.path:
                (place.base.parent / "name").unlink()
                place.base.parent.rmdir()

    def _must_be_in_place(self) -> None:
        place = self._place
        if self.is_locked_in_place() and (place is None or self._files == place.identities()):
            return
        raise StorageUnavailableError(
            f"the files of namespace {self._namespace!r} in {self._folder.path} were removed, moved, replaced or "
            "made inaccessible while they were open; nothing was written. Restore them, or close the namespace and "
            "open it again to use the files as they are now"
        )

    def _database(self, create: bool = False) -> Database | None:
        """Return the open database, or None if there is no data and `create` is False."""
        database = self._opened
        if database is not None:
            if self._is_current:
                return database
            self._opened = None
            database.release()
        place = self._folder.find(self._namespace)
        old = self._folder.errbot3_place(self._namespace)
        if place is None and old is None and not create:
            return None
        if self._process_lock is None:
            lock_path = self._folder.lock_path(self._namespace)
            self._is_unknown = self._is_unknown or is_missing(lock_path)
            self._process_lock = ProcessLock(lock_path, self._namespace)
        # Search again, now that no other process can create or move it.
        place = self._move_from_errbot3() or self._folder.find(self._namespace)
        if place is None and not create:
            return None
        return self._open(place)

    def _open(self, place: Place | None) -> Database:
        scratch = self._folder.scratch(self._namespace)
        if place is None:
            with creating.current, storage_errors(self._folder.path):
                place = self._folder.new_place(self._namespace, default_dialect())
                create_database(place, scratch)
        with storage_errors(place.base):
            place.validate()
            files = place.identities()
            self.expires = is_marked(self._folder.marker(self._namespace))
            database = open_database(place, scratch)
            if self._is_unknown and not self.expires:
                self._restore_marker(database)
        self._place, self._files, self._is_current = place, files, True
        self._opened = database
        # Write nothing if the files were replaced while they were opened.
        place.validate()
        return database

    def _restore_marker(self, database: Database) -> None:
        """Read all values, and mark the namespace if one has a deadline. Leaves a damaged database to its readers."""
        try:
            index = read_index(database)
        except CorruptValueError as error:
            if raised_by_handler(error):
                raise
            return
        if index:
            mark(self._folder.marker(self._namespace))
            database.index, self.expires = index, True
        self._is_unknown = False

    def _move_from_errbot3(self) -> Place | None:
        old = self._folder.errbot3_place(self._namespace)
        if old is None:
            return None
        new = self._folder.find(self._namespace)
        if new is not None:
            logger().warning(
                "both %s and the older %s exist; the older one is neither read nor moved", new.base, old.base
            )
            return None
        moved = Place(self._folder.path / old.base.name, old.dialect)
        logger().info("moving %s to %s, as Errbot does", old.base, moved.base)
        with storage_errors(old.base):
            validate_regular_file(old.base)
            os.replace(old.base, moved.base)  # noqa: PTH105 - its error names both files
        return moved

    def _close(self) -> None:
        database, process_lock, place = self._opened, self._process_lock, self._place
        try:
            if self._wrote and place is not None:
                with storage_errors(place.base):
                    place.flush()
                self._wrote = False
        finally:
            try:
                if database is not None:
                    database.release()
            finally:
                self._opened = None
                self._process_lock = None
                if process_lock is not None:
                    process_lock.release()


_registry = ForkSafeLock()
_shelves: dict[tuple[str, str], list[weakref.ref[SharedShelf]]] = {}


def share(folder: Folder, namespace: str) -> SharedShelf:
    """Return this process's shared shelf of `namespace`; create it if it is missing."""
    place = (str(folder.path), namespace)
    with _registry.current:
        shelf = open_shelf(place)
        if shelf is None:
            new = SharedShelf(folder, namespace)
            others = _live(_shelves.get(place, ()))
            # A handler may have created one meanwhile.
            shelf = open_shelf(place)
            if shelf is None:
                shelf = new
                _shelves[place] = [*others, weakref.ref(new)]
        return shelf


def _live(refs: Iterable[weakref.ref[SharedShelf]]) -> list[weakref.ref[SharedShelf]]:
    # A separate function: on Python 3.13 an exception as its loop jumps back can miss the `with` of the caller.
    return [ref for ref in refs if ref() is not None]


def open_shelf(place: tuple[str, str]) -> SharedShelf | None:
    """Return this process's shelf for the files now at `place`, or None; skip shelves whose files were moved."""
    for ref in _shelves.get(place, ()):
        shelf = ref()
        if shelf is not None and shelf.is_locked_in_place():
            return shelf
    return None


def _after_fork() -> None:
    for refs in list(_shelves.values()):
        for ref in refs:
            shelf = ref()
            if shelf is not None:
                shelf.abandon()


run_in_child(_after_fork)


# --- operations of `SharedShelf.write` ---


def write_changes(database: Database, changes: Mapping[bytes, bytes | None]) -> None:
    database.write(changes)


def remove_keys(database: Database, keys: Iterable[bytes]) -> int:
    existing = [key for key in keys if database.contains(key)]
    if existing:
        database.write(dict.fromkeys(existing))
    return len(existing)


def clear_all(database: Database) -> None:
    if not database.is_empty():
        database.clear()


def compare_and_write(database: Database, key: str, token: object, change: Mapping[bytes, bytes | None]) -> bool:
    """Write `change` if the bytes of `key` are still `token`; return whether it was written."""
    if database.get(key.encode()) != token:
        return False
    database.write(change)
    return True
