"""OpenFiles: the files of one LMDB folder, opened in this process: opening, closing, growing the map, failed disks.

LMDB forbids opening a folder twice in one process (http://www.lmdb.tech/doc/, "Caveats"), wants its map grown while no
transaction runs, and must not be used across a fork.

Every step here may be interrupted by a signal handler, which may raise, or use the store itself. So what was opened is
stored by the same call of C code that opens it, and every step may be repeated.
"""

from __future__ import annotations

import errno
import math
import mmap
import os
import threading
import time
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, cast
from weakref import ref

import lmdb

from hutch import CorruptValueError, StorageFullError, StorageUnavailableError, StoreError, StoreNotOpenError
from hutch.filesystem import open_existing, validate_regular_file
from hutch.handlers import raised_by_handler

from .files import (
    Files,
    create_lock_file,
    identities,
    is_cut_off,
    lmdb_name,
    make_store,
    map_lock_file,
    refuse_foreign_lock_file,
)
from .opening import Opening
from .writer_gate import WriterGate

if TYPE_CHECKING:
    Txn = lmdb.Transaction[bytes]

#: A write transaction while it is open, and behind it the cursor that it has at the moment. Code that writes says
#: ``slot[0].put(...)`` and keeps neither in a variable: a traceback keeps the variables of its frames alive, and with
#: them the transaction, which would keep all others from writing. So ``slot.clear()`` ends it (py-lmdb's
#: ``Transaction.abort()`` first waits until nobody reads). And a signal handler that writes ends it by the same call,
#: after which ``slot[0]`` is an IndexError and the work begins again.
Slot = list[Any]

#: lmdb.open's flags per durability: how many flushes a commit makes (2, 1, 0), and what a power cut leaves of it.
DURABILITY: dict[str, dict[str, bool]] = {
    "strict": {"sync": True, "metasync": True},
    "normal": {"sync": True, "metasync": False},
    "relaxed": {"sync": False, "metasync": False},
}
# LMDB 1.0's format: its keys may have 1,978 bytes, those of 0.9 end at 511. Existing folders keep theirs.
_FORMAT = 1
_LONGEST_KEY_BYTES = 1024 + 4
# A slot costs 64 bytes of the lock file; each thread of each process that reads at one moment takes one.
MAX_READERS = 1024
# A header, and 64 bytes a reader. Where LMDB finds another size it makes do with that.
_LOCK_FILE_BYTES = 192 + 64 * (MAX_READERS - 1)
_DAMAGED_OPENS = 10
_NAP_S = 100e-6
_LARGEST_MAP_STEP = 1 << 36
_RELATIVE_SPARE = 4
# How long a writer trusts that the files are in their place, and that no other process waits: a look takes 4 us.
TRUST_S = 0.001
# What a write says that did not fit: the last one where a disk, or a limit of file size, took a part of it.
_FULL = (*map(os.strerror, (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)), "MDB_SHORT_WRITE")
#: Places where the disk has failed a write, and nothing was made good since.
in_doubt: set[str] = set()
NO = (False,)

_open_cursor = lmdb.Transaction.cursor


class OpenFiles:
    """`begin` begins a read transaction, `begin_write` a write transaction."""

    def __init__(self, path: Path, durability: str, map_size_bytes: int) -> None:
        self.path = path
        self.durability = durability
        #: Which files are open: device and inode of each.
        self.files: Files | None = None
        #: Held while the files are opened or closed or their map is moved; then comes `pause_writer`, unless the caller
        #: is the one that may write.
        self.lock = threading.RLock()
        # Whether a write transaction must not begin, and the request whose transaction may be open. Each side sets its
        # own first and looks at the other's then. A lock would cost a thirtieth of a write.
        self._is_paused = False
        self._busy: object = None
        self.begin: Callable[..., Txn] = self._begin_first
        self.begin_write: Callable[[bool], Txn] = _begin_nothing
        self.gate: WriterGate | None = None
        self._place = str(path)
        self._map_size_bytes = map_size_bytes
        # When a writer looks again whether the files are in their place and whether other processes wait.
        self._look_at_s = -math.inf
        self._env: lmdb.Environment | None = None
        # What py-lmdb has open; it is in here before it is looked at and used.
        self._opened: list[lmdb.Environment] = []
        self._opening: Opening | None = None
        # Of lock.mdb, see `map_lock_file`.
        self._maps: list[mmap.mmap] = []
        # Whether address space is so short that a thread's share of it is missed.
        self._is_tight = False
        # The write transaction, if there is one.
        self._slot: Slot = []
        #: Whether this process has written since it opened the files.
        self._is_unflushed = False

    def pause_writer(self) -> None:
        """Wait until no write transaction of another thread is open; none begins as long as the caller holds `lock`."""
        self._is_paused = True
        while self._is_writing():
            time.sleep(_NAP_S)

    def _is_writing(self) -> bool:
        raise NotImplementedError

    def is_wanted(self) -> bool:
        """Whether anybody uses the store; if not, nothing is opened."""
        raise NotImplementedError

    def is_open(self) -> bool:
        """Return whether files are open, or something was written before a fork closed them."""
        return bool(self._opened or self._maps) or self._is_unflushed

    def has_lost_its_files(self) -> bool:
        """Return whether there were files open, and the path leads to others now, or to none."""
        return self.files is not None and self.files != identities(self._place)

    def _must_be_in_place(self) -> None:
        """Raise StorageUnavailableError if the path does not lead to the open files any more.

        LMDB would go on to write into a file that was deleted, and say nothing; and whoever opens the path then
        makes files, and locks, of their own.
        """
        if self.has_lost_its_files():
            raise StorageUnavailableError(
                f"lmdb {self.path}: its files were removed, moved, replaced or closed to this process while they were "
                "open; nothing was written. Put that right, or close the store and connect again, to use what is there"
            )

    # --- opening ---

    def open_now(self) -> lmdb.Environment:
        """Open the files, and create them if they are missing. Raises StoreError."""
        env = self._env
        if env is not None:
            return env
        with self.lock:
            if not self.is_wanted():
                raise StoreNotOpenError(f"lmdb {self.path} is closed")
            return self._opened_env()

    def _opened_env(self) -> lmdb.Environment:
        while self._env is None:
            self._open()
        return self._env

    def exists(self) -> bool:
        """Return whether there are data. Raises StorageUnavailableError for anything but a regular file."""
        try:
            status = validate_regular_file(os.path.join(self._place, "data.mdb"))  # noqa: PTH118 - twice as fast
        except OSError as error:
            self._raise(error, "opening")
        return status is not None and status.st_size > 0

    def _begin_first(self, *arguments: Any) -> Txn:
        """`begin` before the first write to a new folder, and in a process that was forked off."""
        if not self.is_wanted():
            raise StoreNotOpenError(f"lmdb {self.path} is closed")
        if not self.exists():
            raise lmdb.NotFoundError("nothing was written yet")
        return self.open_now().begin(*arguments)

    def _open(self) -> None:
        # After a fork, or where the map could not be moved, it must be the store that it was.
        self._must_be_in_place()
        if not self._opened:
            try:
                self._open_environment()
            except StoreError:
                self._shut()
                raise
        env = self._opened[0]
        try:
            env.reader_check()
        except lmdb.Error as error:
            if raised_by_handler(error):
                raise
            self._opened.clear()  # a handler raised as it had just been closed
            return
        try:
            self._validate(env)
            if self.gate is None:
                self.gate = WriterGate(self.path, self._maps)
            self.files = identities(self._place)
        except OSError as error:
            self._shut()
            self._raise(error, "opening")
        except StoreError:
            self._shut()
            raise
        self.begin_write = partial(env.begin, None, None, True)
        self.begin = env.begin
        self._env = env
        if env not in self._opened:  # a handler has closed it since
            self.gate = None
            self._forget(env)

    def _open_environment(self) -> None:
        map_size_bytes, tries = self._map_size_bytes, 0
        while not self._opened:
            try:
                self._open_with(map_size_bytes)
            except (lmdb.MemoryError, OverflowError) as error:
                # Not enough address space for the map wished for; it grows later, as far as it can.
                if raised_by_handler(error):
                    raise
                map_size_bytes //= 4
                self._is_tight = True
                if map_size_bytes < 1 << 20:
                    raise StorageUnavailableError(f"lmdb {self.path}: no address space to map it") from error
            except lmdb.MapResizedError as error:
                # Another process made it grow between LMDB's look at its size and its first transaction; or else its
                # header is damaged.
                tries += 1
                if tries == _DAMAGED_OPENS:
                    raise CorruptValueError(f"{self.path / 'data.mdb'} is damaged: {error}") from error
            except (lmdb.InvalidError, lmdb.VersionMismatchError, lmdb.CorruptedError, lmdb.IncompatibleError) as error:
                if raised_by_handler(error):
                    raise
                raise CorruptValueError(
                    f"{self.path / 'data.mdb'} is damaged, or is not an LMDB file: {error}"
                ) from error
            except (lmdb.Error, OSError) as error:
                self._raise(error, "opening")

    def _open_with(self, map_size_bytes: int) -> None:
        opening = self._opening
        if opening is None:
            opening = self._opening = self._prepare_opening(map_size_bytes)
        try:
            opening.wait()
        finally:
            if opening.is_over:
                self._opening = None

    def _prepare_opening(self, map_size_bytes: int) -> Opening:
        if not self.exists():
            make_store(self.path, _FORMAT)
        return Opening(self._call_lmdb, map_size_bytes, self._opened, self._is_tight)

    def _call_lmdb(self, map_size_bytes: int) -> lmdb.Environment:
        """Call ``lmdb.open``. No signal handler runs meanwhile: it would open the files a second time."""
        refuse_foreign_lock_file(self.path)
        create_lock_file(self.path, _LOCK_FILE_BYTES)
        map_lock_file(self.path, self._maps)
        before = identities(self._place)
        flags: dict[str, Any] = DURABILITY[self.durability]
        env = lmdb.open(
            lmdb_name(self.path),
            map_size=map_size_bytes,
            max_readers=MAX_READERS,
            # One transaction is kept for the next reader, which saves it the search for a slot.
            max_spare_txns=1,
            # An existing folder keeps the format it has.
            lib_version=cast(int, None) if self.exists() else _FORMAT,
            **flags,
        )
        if before is not None and before != identities(self._place):
            env.close()
            raise StorageUnavailableError(
                f"lmdb {self.path}: data.mdb or lock.mdb was replaced while it was opened; nothing was read or written"
            )
        return env

    def _validate(self, env: lmdb.Environment) -> None:
        """Refuse a file that would end in a crash or in refused keys: reading past its end is a SIGBUS."""
        validate_regular_file(self.path / "lock.mdb")
        if env.max_key_size() < _LONGEST_KEY_BYTES:
            raise CorruptValueError(
                f"{self.path / 'data.mdb'} is in LMDB's old format (0.9), which hutch does not write: it is not hutch's"
            )
        page_bytes = env.stat()["psize"]
        pages = env.info()["last_pgno"] + 1
        data = self.path / "data.mdb"
        size = data.stat().st_size
        if size < pages * page_bytes and is_cut_off(env, data):
            raise CorruptValueError(
                f"{data} was cut off: it has {size:,} bytes, its own header says {pages * page_bytes:,}. "
                "Restore it from a copy"
            )

    def _shut(self) -> None:
        """Close the files. Nobody may be writing, or the caller holds `lock`."""
        outer, self._slot = self._slot, []
        end_transaction(outer)
        self._look_at_s = -math.inf
        opening, self._opening = self._opening, None
        if opening is not None:
            opening.finish()
        for env in list(self._opened):
            self._forget(env)
            env.close()
            # A handler may have gone on to use it until it was closed.
            self._forget(env)
            if env in self._opened:
                self._opened.remove(env)
        self.gate = None
        for lock_file in self._maps:
            lock_file.close()
        self._maps.clear()

    def _forget(self, env: lmdb.Environment) -> None:
        if self._env is env or self._env is None:
            self.begin, self.begin_write = self._begin_first, _begin_nothing
            self._env = None

    # --- the map ---

    def _grow_map(self) -> None:
        with self.lock:
            size = int(self.open_now().info()["map_size"])
            wished = size + min(size, _LARGEST_MAP_STEP)
            for step in (wished, size + size // _RELATIVE_SPARE, size + (16 << 20)):
                try:
                    self.open_now().set_mapsize(step - step % (1 << 20))
                    return
                except lmdb.Error as error:
                    if raised_by_handler(error):
                        raise
                    failure = error
                    # py-lmdb has closed an environment whose map it could not move.
                    self._map_size_bytes, self._is_tight = size, True
                    self._shut()
        raise StorageFullError(
            f"lmdb {self.path}: no address space to grow its map beyond {size:,} bytes; what was stored is intact"
        ) from failure

    def _adopt_map(self) -> None:
        """Another process grew the map."""
        with self.lock:
            self.pause_writer()
            try:
                self.open_now().set_mapsize(0)
            except lmdb.Error as error:
                self._raise(error, "following the grown map of")

    # --- faults ---

    def _settle(self, slot: Slot) -> None:
        """After a write that failed: have both headers on the disk as they are in memory, before anything is built on
        them.

        What a failed flush should have written the system may drop and call clean, so that the next flush succeeds
        without it (Linux does). That may be the header of the last commit, where it had no flush of its own; or the
        one that LMDB puts back when a new one could not be flushed, which may be on the disk all the same. One more
        commit would write over pages that a header on the disk leads to.
        """
        self._slot = slot
        try:
            slot += map(self.begin_write, NO)
        except lmdb.PanicError as error:
            if raised_by_handler(error):
                raise
            self._shut()
            self.open_now()
            self._slot = slot
            slot += map(self.begin_write, NO)
        # The transaction keeps writers of other programs out.
        env = self.open_now()
        size = 2 * env.stat()["psize"]
        try:
            with open_existing(self.path / "data.mdb", "r+b") as file:
                headers = file.read(size)
                file.seek(0)
                file.write(headers)
        except OSError as error:
            self._raise(error, "writing")
        env.sync(True)
        slot.clear()
        in_doubt.discard(self._place)

    def _open_anew(self, env: lmdb.Environment | None) -> None:
        """When LMDB could not write a header it does nothing more until it is opened again; `env` is what was open."""
        with self.lock:
            self.pause_writer()
            if env is not None and env is self._env:
                self._shut()
            self.open_now()

    def _raise(self, error: Exception, doing: str) -> NoReturn:
        """Raise the StoreError for `error`. lmdb.Error carries no errno, only the system's text for it."""
        if isinstance(error, StoreError) or raised_by_handler(error):
            raise error
        if self._env is None and not self.is_wanted():
            raise StoreNotOpenError(f"lmdb {self.path} was closed while {doing}") from error
        text = str(error)
        if any(sign in text for sign in _FULL):
            raise StorageFullError(
                f"lmdb {self.path}: no room ({text}); the write did not happen, what was stored is intact. Make room "
                "on the disk, or remove a few keys at a time"
            ) from error
        if isinstance(error, lmdb.CorruptedError | lmdb.PageNotFoundError | lmdb.InvalidError):
            raise CorruptValueError(f"lmdb {self.path / 'data.mdb'} is damaged: {text}") from error
        raise StorageUnavailableError(f"lmdb {self.path}: {doing} failed: {text}") from error


def end_transaction(slot: Slot) -> None:
    """Abort the transaction in `slot`, of which its own code learns when it next uses it."""
    if not slot:
        return
    try:
        transaction = ref(slot[0])
    except IndexError as error:  # a handler that wrote has ended it
        if raised_by_handler(error):
            raise
        return
    slot.clear()
    if (left := transaction()) is not None:
        # A call of C code that was interrupted by the garbage collector still holds it.
        left.abort()


def add_cursor(slot: Slot) -> None:
    """Make ``slot[1]`` a cursor of the transaction, until ``del slot[1]``."""
    slot += map(_open_cursor, islice(slot, 1))


def _begin_nothing(_: bool) -> NoReturn:
    raise lmdb.NotFoundError("it was closed a moment ago")
