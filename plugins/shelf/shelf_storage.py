"""The shelf engine: the files of Errbot's ShelfStorage, read and written in place.

A bot moves to hutch, and back, by naming the engine: each namespace is a `shelve` under `basedir`, in whichever
dialect of dbm its files have (gnu, ndbm, dumb, sqlite3), with keys in UTF-8 and values pickled with protocol 2. A new
namespace gets the dialect that `shelve` would choose. Stop the bot before hutch opens its files: Errbot locks only
gnu files.

It unpickles, always, whatever codec is configured: whoever can write to these files can run code in whoever reads
them. Naming this engine is the opt-in.

What it promises: a value set is there after the process is killed, also in the middle of a later write; batches are
all or nothing; other processes are kept out by StoreLockedError, for as long as a process has the namespace open and
not longer. What it does not: a power cut can lose the last writes (closing flushes them), and `dumb`
and `sqlite3` files are not locked against programs that know nothing of hutch. Pickles carry no checksum: a flipped
bit in a file may go unseen. Each write of gnu and ndbm copies the file. An overlong or empty key that Errbot stored
is listed and can be read; a key that is not UTF-8 was not written by Errbot and is a CorruptValueError when listing.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import pickle
import threading
from collections.abc import Hashable, Iterable, Iterator, Mapping
from datetime import datetime, time
from pathlib import Path
from typing import Any, ClassVar

from hutch import (
    MISSING,
    CorruptValueError,
    Option,
    StorageBase,
    StoragePluginBase,
    StorageUnavailableError,
    ValueTypeError,
)
from hutch.limits import check_key, check_namespace, check_value_size

from .shelf_database import Database
from .shelf_dialects import create_database, holds_data, open_database, open_to_read
from .shelf_files import Folder, Place, ProcessLock, creating, default_dialect, kept_out, storage_errors

log = logging.getLogger("hutch.shelf")

# What Errbot writes: a bot on any Python 3 reads it back.
_PROTOCOL = 2


class ShelfPlugin(StoragePluginBase):
    """One `shelve` a namespace in `basedir`, as Errbot keeps them. Opening creates nothing but a lock beside data.

    Where Errbot 3 left a namespace in ``plugins/NS.db``, opening moves it to ``NS.db`` as Errbot does.
    """

    OPTIONS: ClassVar[Mapping[str, Option]] = {
        "basedir": Option(Path, required=True, help="the folder of the files; Errbot's BOT_DATA_DIR")
    }
    capabilities = frozenset({"atomic-batch", "atomic-modify", "atomic-modify:process", "durable"})

    def __init__(self, config: object = None) -> None:
        super().__init__(config)
        self._folder = Folder(self._storage_config["basedir"])

    def open(self, namespace: str) -> ShelfStorage:
        """Open `namespace`.

        Raises StoreLockedError if another process has it open, CorruptValueError if its files are no database,
        StorageUnavailableError if they cannot be used, for one by a Python without the module for their dialect.
        """
        shelf = _share(self._folder, check_namespace(namespace))
        try:
            with shelf.lock:
                shelf.database()
            return ShelfStorage(self, namespace, shelf)
        except BaseException:
            shelf.leave()
            raise

    def namespaces(self) -> list[str]:
        """Those with a key in them. One whose dialect this Python lacks counts; files of other programs do not."""
        with storage_errors(self._folder.path):
            return sorted(namespace for namespace, place in self._folder.places() if self._holds(namespace, place))

    def drop(self, namespace: str) -> None:
        """Empty `namespace` in one step, and remove its files unless this process has it open elsewhere."""
        shelf = _share(self._folder, check_namespace(namespace))
        try:
            shelf.empty()
        finally:
            shelf.leave()

    def pickles(self) -> Iterator[tuple[str, str, bytes]]:
        """Each namespace and key with its pickle, which is not loaded.

        The files are read as they are: none is changed, moved or made, and the folder may be read-only. So whoever
        would open a namespace with hutch is kept out only if that was ever done there before. The keys of one
        namespace are held, and one pickle.

        Raises StoreLockedError if another process has a namespace open, CorruptValueError for files that are damaged,
        StorageUnavailableError for those that cannot be used.
        """
        with storage_errors(self._folder.path):
            namespaces = sorted({*(name for name, _ in self._folder.places()), *self._folder.damaged_places()})
        for namespace in namespaces:
            with kept_out(self._folder.lock_path(namespace), namespace), storage_errors(self._folder.path):
                place = self._folder.find(namespace) or self._folder.old_spot(namespace)
                database = None if place is None else open_to_read(place)
                if database is None:
                    continue
                with contextlib.closing(database):
                    for key in database.keys():  # noqa: SIM118 - it is no dict
                        data = database.get(key)
                        if data is not None:
                            yield namespace, _decoded_key(key, f"namespace {namespace!r} in {self._folder.path}"), data

    def _holds(self, namespace: str, place: Place) -> bool:
        shelf = _open_shelf((str(self._folder.path), namespace))
        if shelf is not None:
            with shelf.lock:
                database = shelf.opened
                if database is not None:
                    return len(database) > 0
        return holds_data(place)


class ShelfStorage(StorageBase):
    """One namespace. Any thread may use it; they take turns. Not a `hutch.EncodedStorage`: no codec has a say here."""

    def __init__(self, plugin: ShelfPlugin, namespace: str, shelf: _Shelf) -> None:
        self.capabilities = plugin.capabilities
        self._namespace = namespace
        self._where = f"namespace {namespace!r} of the {plugin.name} storage"
        self._shelf = shelf

    def set(self, key: str, value: Any) -> None:
        self._write({check_key(key): self._dumped(key, value)})

    def get(self, key: str) -> Any:
        data = self._read(key)
        if data is None:
            raise KeyError(key)
        return self._loaded(key, data)

    def remove(self, key: str) -> None:
        if not self.remove_many([key]):
            raise KeyError(key)

    def len(self) -> int:
        with self._shelf.lock:
            database = self._shelf.database()
            return 0 if database is None else len(database)

    def keys(self) -> Iterable[str]:
        with self._shelf.lock:
            database = self._shelf.database()
            found = [] if database is None else database.keys()
        return [_decoded_key(key, self._where) for key in found]

    def close(self) -> None:
        self._shelf.leave()

    def contains(self, key: str) -> bool:
        with self._shelf.lock:
            database = self._shelf.database()
            return database is not None and database.contains(check_key(key).encode())

    def set_many(self, items: Mapping[str, Any]) -> None:
        # Pickled in full before the first byte is written: bad input is refused whole.
        pickled = {check_key(key): self._dumped(key, value) for key, value in items.items()}
        if pickled:
            self._write(pickled)

    def remove_many(self, keys: Iterable[str]) -> int:
        checked = [check_key(key).encode() for key in dict.fromkeys(keys)]
        with self._shelf.lock:
            database = self._shelf.database()
            found = [] if database is None else [key for key in checked if database.contains(key)]
            if database is not None and found:
                with self._shelf.changing():
                    database.write(dict.fromkeys(found))
            return len(found)

    def clear(self) -> None:
        with self._shelf.lock:
            database = self._shelf.database()
            if database is not None and len(database):
                with self._shelf.changing():
                    database.clear()

    def get_for_update(self, key: str) -> tuple[Any, object]:
        data = self._read(key)
        return (MISSING, None) if data is None else (self._loaded(key, data), data)

    def set_if_unchanged(self, key: str, token: object, value: Any) -> bool:
        data = None if value is MISSING else self._dumped(key, value)
        with self._shelf.lock:
            if self._read(key) != token:
                return False
            if data is not None:
                self._write({check_key(key): data})
            elif token is not None:
                self.remove(key)
            return True

    @property
    def lock_scope(self) -> Hashable:
        return ("shelf", self._shelf.place)

    def set_pickles(self, pickles: Mapping[str, bytes]) -> None:
        """Set each key to what its pickle will be when it is loaded; all or none."""
        for key, data in pickles.items():
            check_value_size(check_key(key), len(data))
        self._write(pickles)

    def _read(self, key: str) -> bytes | None:
        # Errbot may have stored a key that hutch would not; so the limits are checked where there is none.
        data = None
        if isinstance(key, str):
            with self._shelf.lock:
                database = self._shelf.database()
                if database is not None:
                    data = database.get(key.encode(errors="replace"))
        if data is None:
            check_key(key)
        return data

    def _write(self, pickled: Mapping[str, bytes]) -> None:
        with self._shelf.lock:
            database = self._shelf.database_to_write()
            with self._shelf.changing():
                database.write({key.encode(): data for key, data in pickled.items()})

    def _dumped(self, key: str, value: object) -> bytes:
        """`value` as Errbot would have written it, or a ValueTypeError."""
        buffer = io.BytesIO()
        try:
            _Pickler(buffer, _PROTOCOL).dump(value)
        except MemoryError:
            raise
        except Exception as error:
            raise ValueTypeError(
                f"a {type(value).__qualname__} that cannot be pickled, as this engine must ({type(error).__name__}); "
                "store what it is made of instead"
            ) from error
        data = buffer.getvalue()
        check_value_size(key, len(data))
        return data

    def _loaded(self, key: str, data: bytes) -> Any:
        # Not while holding the lock: unpickling runs code, which may well use this storage.
        try:
            return pickle.loads(data)
        except (ImportError, AttributeError) as error:
            raise CorruptValueError(
                f"the value of key {key!r} in {self._where} is an object of a class that cannot be found here: "
                f"{error}. Read it in the application that wrote it"
            ) from error
        except Exception as error:
            # The error's own text may quote the value.
            raise CorruptValueError(
                f"the value of key {key!r} in {self._where} cannot be unpickled ({type(error).__name__}); it was "
                "damaged, or not written by shelve"
            ) from error


def _decoded_key(key: bytes, where: str) -> str:
    try:
        return key.decode()
    except UnicodeDecodeError:
        raise CorruptValueError(
            f"{where} has a key that is not UTF-8, {key[:60]!a}: neither Errbot nor hutch wrote it. "
            "Remove it with dbm.open"
        ) from None


class _Pickler(pickle.Pickler):
    """`shelve`'s, except that it keeps the second 2:30 of the night when clocks go back.

    Protocol 2 leaves `fold` out; with it in, any Python 3 reads it still.
    """

    def reducer_override(self, value: object) -> Any:
        if isinstance(value, datetime | time) and value.fold:
            return value.__reduce_ex__(4)
        return NotImplemented


class _Shelf:
    """A namespace as this process has it open, once, whichever stores and handles use it."""

    def __init__(self, folder: Folder, namespace: str) -> None:
        self.place = (str(folder.path), namespace)
        self.lock = threading.RLock()
        self.users = 0
        #: The database, once it is open.
        self.opened: Database | None = None
        self._folder, self._namespace = folder, namespace
        self._place: Place | None = None
        self._files: dict[str, tuple[int, int]] = {}
        self._process_lock: ProcessLock | None = None

    def database(self, create: bool = False) -> Database | None:
        """The open database; None if there is no data and `create` is not asked for. To be called with `lock` held."""
        if self.opened is None:
            place = self._folder.find(self._namespace)
            old = self._folder.old_spot(self._namespace)
            if place is None and old is None and not create:
                return None
            if self._process_lock is None:
                self._process_lock = ProcessLock(self._folder.lock_path(self._namespace), self._namespace)
            # Looked for again, now that no other process can create or move it.
            place = self._from_old_spot() or self._folder.find(self._namespace)
            if place is None and not create:
                return None
            scratch = self._folder.scratch(self._namespace)
            if place is None:
                with creating, storage_errors(self._folder.path):
                    place = self._folder.new_place(self._namespace, default_dialect())
                    create_database(place, scratch)
            with storage_errors(place.base):
                self.opened = open_database(place, scratch)
            self._place, self._files = place, place.identities()
        return self.opened

    def is_in_place(self) -> bool:
        """Whether the lock and the files that are open, if any, are the ones that others would find."""
        lock, place = self._process_lock, self._place
        return lock is None or (lock.is_in_place() and (place is None or self._files == place.identities()))

    @contextlib.contextmanager
    def changing(self) -> Iterator[None]:
        """The block writes to the open database. To be called with `lock` held.

        Raises StorageUnavailableError if that is not the one that others would find: files that were removed take
        writes without a word, and of a database that has two files one could be that of another.
        """
        if not self.is_in_place():
            raise StorageUnavailableError(
                f"the files of namespace {self._namespace!r} in {self._folder.path} were removed, moved, replaced or "
                "closed to this process while they were open; nothing was written. Put that right, or close the "
                "namespace and open it again to use what is there now"
            )
        try:
            yield
        finally:
            # A write may put new files in the place of the old.
            if self._place is not None:
                self._files = self._place.identities()

    def database_to_write(self) -> Database:
        """The open database, created if there is none."""
        database = self.database(create=True)
        assert database is not None
        return database

    def empty(self) -> None:
        """Remove every key, and the files too if nobody else in this process uses them."""
        with _registry, self.lock:
            database = self.database()
            if database is None:
                return
            with self.changing():
                database.clear()
            place = self._folder.find(self._namespace)
            if self.users == 1 and place is not None:
                self.opened = None
                database.close()
                with storage_errors(place.base):
                    for file in place.files():
                        file.unlink()
                    if place.base.parent != self._folder.path:
                        (place.base.parent / "name").unlink()
                        place.base.parent.rmdir()

    def leave(self) -> None:
        """One user fewer; the last one closes the files and lets other processes in."""
        with _registry, self.lock:
            self.users -= 1
            if self.users:
                return
            _open_shelves[self.place].remove(self)
            if not _open_shelves[self.place]:
                del _open_shelves[self.place]
            database, self.opened = self.opened, None
            process_lock, self._process_lock = self._process_lock, None
            try:
                if database is not None:
                    database.close()
            finally:
                if process_lock is not None:
                    process_lock.release()

    def abandon(self) -> None:
        """In a forked child: the files and the lock are the parent's. They are opened anew when they are used."""
        self.lock = threading.RLock()
        database, self.opened = self.opened, None
        process_lock, self._process_lock = self._process_lock, None
        if database is not None:
            database.abandon()
        if process_lock is not None:
            process_lock.release()

    def _from_old_spot(self) -> Place | None:
        old = self._folder.old_spot(self._namespace)
        if old is None:
            return None
        new = self._folder.find(self._namespace)
        if new is not None:
            log.warning("%s is in the way of an older %s, which is left alone: remove one of them", new.base, old.base)
            return None
        moved = Place(self._folder.path / old.base.name, old.dialect)
        log.info("moving %s to %s, as Errbot does", old.base, moved.base)
        with storage_errors(old.base):
            os.replace(old.base, moved.base)  # noqa: PTH105 - its error names both files
        return moved


_registry = threading.RLock()
_open_shelves: dict[tuple[str, str], list[_Shelf]] = {}


def _share(folder: Folder, namespace: str) -> _Shelf:
    with _registry:
        place = (str(folder.path), namespace)
        shelf = _open_shelf(place)
        if shelf is None:
            shelf = _Shelf(folder, namespace)
            _open_shelves.setdefault(place, []).append(shelf)
        shelf.users += 1
        return shelf


def _open_shelf(place: tuple[str, str]) -> _Shelf | None:
    """The one that this process has open on what is at `place` now: it may have others, whose files were moved."""
    return next((shelf for shelf in _open_shelves.get(place, ()) if shelf.is_in_place()), None)


def _after_fork() -> None:
    global _registry  # noqa: PLW0603 - a lock that another thread held at the fork is held forever
    _registry = threading.RLock()
    for shelves in _open_shelves.values():
        for shelf in shelves:
            shelf.abandon()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
