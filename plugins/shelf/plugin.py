"""The shelf engine: the files of Errbot's ShelfStorage, read and written in place.

A bot moves to hutch, and back, by naming the engine. Each namespace is a `shelve` under `basedir`, in the dbm dialect
of its files (gnu, ndbm, dumb, sqlite3), with keys in UTF-8 and values pickled with protocol 2. A new namespace gets the
dialect that `shelve` would choose. Stop the bot before hutch opens its files: Errbot locks only gnu files.

This engine always unpickles, regardless of the configured codec: anyone who can write to these files can run code in a
process that reads them. Naming this engine is the opt-in.

Promises: a value that was set survives a killed process, also in the middle of a later write; batches are all or
nothing; while a process has a namespace open, and no longer, other processes get StoreLockedError. Limits: a power cut
can lose the last writes (closing flushes them), and `dumb` and `sqlite3` files are not locked against programs other
than hutch. Only a value with a deadline has a checksum: elsewhere a flipped bit may go undetected. Each write of gnu
and ndbm copies the file. An overlong or empty key that Errbot stored is listed and can be read; a key that is not UTF-8
was not written by Errbot and raises CorruptValueError when listing.
"""

from __future__ import annotations

import contextlib
import sys
import weakref
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import ClassVar

from hutch import Option, StoragePluginBase, deadlines
from hutch.deadlines import Expiring, with_deadline
from hutch.filesystem import is_missing, total_bytes
from hutch.limits import validate_namespace

from .deadlines import holds_live_data, is_marked, mark, split
from .dialects import holds_data, open_to_read
from .files import Folder, Place, storage_errors
from .lock import exclude_writers
from .read_only import ReadOnlyShelf, reason_to_only_read
from .shared import SharedShelf, open_shelf, share
from .storage import ShelfStorage, decode_key


class ShelfPlugin(StoragePluginBase):
    """The shelf engine: one `shelve` per namespace in `basedir`, as in Errbot.

    Opening creates nothing except a lock file beside existing data. If Errbot 3 left a namespace in ``plugins/NS.db``,
    opening moves it to ``NS.db``, as Errbot does.
    """

    OPTIONS: ClassVar[Mapping[str, Option]] = {
        "basedir": Option(Path, required=True, help="the folder of the files; Errbot's BOT_DATA_DIR"),
        "wait_s": Option(
            float,
            default=60.0,
            minimum=0,
            maximum=86_400,
            help="how many seconds a call waits for other threads before StorageTimeoutError; 0 does not wait",
        ),
        "create": Option(bool, default=True, help="false: a folder that is not there is StoreMissingError at connect"),
        "readonly": Option(
            bool, default=False, help="refuse every write; needs no permission to write, and never creates the folder"
        ),
    }
    #: A write by a signal handler or finalizer in the middle of another write of its thread raises ConflictError.
    refuses_nested_writes = True
    capabilities = frozenset({"atomic-batch", "atomic-modify", "atomic-modify:process", "durable", "ttl"})

    def __init__(self, config: object = None) -> None:
        super().__init__(config)
        self._folder = Folder(self._storage_config["basedir"])
        self.must_exist(self._storage_config["basedir"], lambda: not is_missing(self._folder.path))
        self.wait_s: float = self._storage_config["wait_s"]
        # The storages of `open`, until they are collected.
        self._storages: set[weakref.ref[ShelfStorage]] = set()

    def open(self, namespace: str) -> ShelfStorage:
        """Return an open storage for `namespace`.

        Raises StoreLockedError if another process has it open, CorruptValueError if its files are no database, and
        StorageUnavailableError if they cannot be used, for example if this Python lacks the module for their dialect.
        """
        storage = ShelfStorage(self, namespace, self._shelf_of(validate_namespace(namespace)))
        self._storages.add(weakref.ref(storage, self._storages.discard))
        try:
            storage.join()
            return storage
        except BaseException:
            storage.close()
            raise

    def _shelf_of(self, namespace: str) -> SharedShelf:
        # What this process has open to write can be read through the same files only.
        shelf = open_shelf((str(self._folder.path), namespace))
        if shelf is None or not shelf.is_open():
            reason = reason_to_only_read(self._folder, namespace, self.is_readonly)
            if reason is not None:
                return ReadOnlyShelf(self._folder, namespace, reason)
        return share(self._folder, namespace)

    def close(self) -> None:
        """Close the storages that are still open, such as one whose own `close` a signal handler interrupted."""
        for ref in list(self._storages):
            storage = ref()
            if storage is not None:
                storage.close()

    def namespaces(self) -> list[str]:
        """Return the sorted namespaces that have a live key, or whose dialect this Python lacks; not foreign files."""
        now_ms = deadlines.now_ms()
        with storage_errors(self._folder.path):
            return sorted(name for name, place in self._folder.places() if self._holds(name, place, now_ms))

    def stored_namespaces(self) -> list[str]:
        with storage_errors(self._folder.path):
            return sorted(name for name, place in self._folder.places() if holds_data(place))

    def stats(self) -> dict[str, object]:
        with storage_errors(self._folder.path):
            used = sum(total_bytes(place.files()) for _, place in self._folder.places())
        # The files are those of Python's own `dbm`.
        return {"path": str(self._folder.path), "bytes": used, "version": f"Python {sys.version.split()[0]}"}

    def drop(self, namespace: str) -> None:
        """Empty `namespace` atomically, and remove its files unless this process has it open elsewhere."""
        with self.open(namespace) as storage:
            storage.empty()

    def pickles(self) -> Iterator[tuple[str, str, bytes | Expiring]]:
        """Yield each namespace and key with its pickle, without loading it; an `Expiring` if it has a deadline.

        No file is changed, moved or created, and the folder may be read-only. So other processes of hutch are locked
        out of a namespace only if hutch has opened it before, which left a lock file. Memory holds the keys of one
        namespace and one pickle.

        Raises StoreLockedError if another process has a namespace open, CorruptValueError for damaged files, and
        StorageUnavailableError for unusable ones.
        """
        for namespace in self._stored_names():
            with self._reading(namespace) as stored:
                for key, pickled in _live_pickles(stored, self._where(namespace)):
                    yield namespace, key, pickled

    def _stored_names(self) -> list[str]:
        with storage_errors(self._folder.path):
            return sorted({*(name for name, _ in self._folder.places()), *self._folder.damaged_places()})

    @contextlib.contextmanager
    def _reading(self, namespace: str) -> Iterator[Iterator[tuple[str, bytes]]]:
        """Yield the keys of `namespace` with what is stored for them, and keep other processes from writing."""
        with exclude_writers(self._folder.lock_path(namespace), namespace), storage_errors(self._folder.path):
            place = self._folder.find(namespace) or self._folder.errbot3_place(namespace)
            # Closed here, since the frame of a caller that stops early may stay until the collector runs.
            with contextlib.closing(_stored_in(place, self._where(namespace))) as stored:
                yield stored

    def _where(self, namespace: str) -> str:
        return f"namespace {namespace!r} in {self._folder.path}"

    def backup(self, dest: Path) -> None:
        """Copy what is stored in each namespace to new files in the folder `dest`, without loading a pickle.

        Raises StoreLockedError if this or another process has a namespace open.
        """
        dest.mkdir(0o700)
        with ShelfPlugin({"basedir": str(dest)}) as copy:
            for namespace in self._stored_names():
                with self._reading(namespace) as items:
                    stored = dict(items)
                if stored:
                    with copy.open(namespace) as storage:
                        storage.restore_pickles(stored)

    def compact(self) -> tuple[int, int]:
        """Rewrite the files of each namespace without free space; return their bytes before and after.

        Raises StoreLockedError if another process has a namespace open.
        """
        before = after = 0
        for namespace in self.namespaces():
            with self.open(namespace) as storage:
                sizes = storage.compact()
            before, after = before + sizes[0], after + sizes[1]
        return before, after

    def mark_expiring(self, namespace: str) -> None:
        """Note that values of `namespace` may have deadlines, before its files are moved into the folder."""
        with storage_errors(self._folder.own):
            self._folder.own.mkdir(parents=True, exist_ok=True)
            mark(self._folder.marker(namespace))

    def pickles_at(self, name: str) -> Iterator[tuple[str, bytes | Expiring]]:
        """Yield each key of the shelf that ``shelve.open(name)`` would open in the folder, as `pickles` does.

        Changes, creates and locks nothing. Yields nothing if there is no such shelf. Raises what `pickles` raises.
        """
        where = f"the shelf {name!r} in {self._folder.path}"
        with (
            storage_errors(self._folder.path),
            contextlib.closing(_stored_in(self._folder.shelf(name), where)) as stored,
        ):
            yield from _live_pickles(stored, where)

    def _holds(self, namespace: str, place: Place, now_ms: int) -> bool:
        shelf = open_shelf((str(self._folder.path), namespace))
        if shelf is not None and shelf.is_open():
            return bool(shelf.read(self.wait_s, len))
        if not holds_data(place):
            return False
        # Without a lock file, the marker may be lost too.
        may_expire = is_marked(self._folder.marker(namespace)) or is_missing(self._folder.lock_path(namespace))
        return not may_expire or holds_live_data(place, now_ms)


def _stored_in(place: Place | None, where: str) -> Generator[tuple[str, bytes]]:
    """Yield each key of the shelf at `place` with what is stored for it; `where` begins the message of an error."""
    if place is not None and (database := open_to_read(place)) is not None:
        with contextlib.closing(database):
            for key in database.keys():  # noqa: SIM118 - not a dict
                if (data := database.get(key)) is not None:
                    yield decode_key(key, where), data


def _live_pickles(items: Iterator[tuple[str, bytes]], where: str) -> Iterator[tuple[str, bytes | Expiring]]:
    """Yield those of `items` that have not expired by now, each with its pickle alone, or with its deadline."""
    now_ms = deadlines.now_ms()
    for key, data in items:
        pickled, deadline_ms = split(key.encode(), data, f"the value of key {key!r} in {where}")
        if deadline_ms is None or deadline_ms > now_ms:
            yield key, with_deadline(pickled, deadline_ms)
