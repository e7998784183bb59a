"""OpenFiles: open and close the files of one LMDB folder in this process, grow the map, and handle failed disks.

LMDB forbids opening a folder twice in one process (http://www.lmdb.tech/doc/, "Caveats") and use across a fork, and
its map may grow only while no transaction runs.

A signal handler may interrupt any step, and may raise or use the store itself. So the call of C code that opens
something also stores it, and every step may be repeated.
"""

from __future__ import annotations

import errno
import math
import mmap
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, cast

import lmdb

from hutch import CorruptValueError, StorageFullError, StorageUnavailableError, StoreError, StoreNotOpenError
from hutch.filesystem import open_existing, validate_regular_file
from hutch.fork import ForkSafeLock
from hutch.handlers import raised_by_handler

from .files import (
    FORMAT,
    MAX_READERS,
    Files,
    data_file,
    identities,
    lmdb_name,
    make_store,
    prepare_lock_file,
    validate_files,
)
from .opening import Opening
from .slot import Slot, end_transaction
from .writer_gate import WriterGate

if TYPE_CHECKING:
    from .slot import Txn

#: The flags of lmdb.open per durability: a commit makes 2, 1 or 0 flushes.
DURABILITY: dict[str, dict[str, bool]] = {
    "strict": {"sync": True, "metasync": True},
    "normal": {"sync": True, "metasync": False},
    "relaxed": {"sync": False, "metasync": False},
}
_DAMAGED_OPENS = 10
_NAP_S = 100e-6
_LARGEST_MAP_STEP = 1 << 36
_RELATIVE_SPARE = 4
# How long a writer assumes that files are in place and no other process waits: looking takes 4 us.
TRUST_S = 0.001
# The errors of a write that did not fit; MDB_SHORT_WRITE means that a part of it was written.
_FULL = (*map(os.strerror, (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)), "MDB_SHORT_WRITE")
#: Folders where a disk write has failed and the state was not settled since (see `_settle`).
in_doubt: set[str] = set()
NO = (False,)


class OpenFiles:
    """The open files of one LMDB folder. `begin` begins a read transaction, `begin_write` a write transaction."""

    def __init__(self, path: Path, durability: str, map_size_bytes: int) -> None:
        self.path = path
        self.durability = durability
        #: The identities of the open files.
        self.files: Files | None = None
        #: Held while the files are opened or closed or their map is moved. Its holder then calls `pause_writer`, unless
        #: it is itself the current writer.
        self.lock = ForkSafeLock()
        # `_is_paused` forbids new write transactions; `_busy` is the request whose transaction may be open. Each side
        # sets its own first, then reads the other's. A lock would cost a thirtieth of a write.
        self._is_paused = False
        self._busy: object = None
        self.begin: Callable[..., Txn] = self._begin_first
        self.begin_write: Callable[[bool], Txn] = _begin_nothing
        #: Opened for the first write.
        self.gate: WriterGate | None = None
        self._place = str(path)
        self._map_size_bytes = map_size_bytes
        # When a writer next looks whether files are in place and other processes wait.
        self._look_at_s = -math.inf
        self._env: lmdb.Environment | None = None
        # The environment that py-lmdb has open, stored before it is validated and used.
        self._opened: list[lmdb.Environment] = []
        self._opening: Opening | None = None
        # The identities of the files just before LMDB opened them.
        self._before: Files | None = None
        # The map of lock.mdb, see `prepare_lock_file`.
        self._maps: list[mmap.mmap] = []
        self._is_tight = False  # whether address space is too short for another thread's stack
        # The open write transaction, if any.
        self._slot: Slot = []
        self.is_replacing = False  # while data.mdb is replaced, no nested call may open it
        #: Whether this process has written since it last opened the files.
        self._is_unflushed = False

    def pause_writer(self) -> None:
        """Wait until no other thread's write transaction is open; none begins while the caller holds `lock`."""
        self._is_paused = True
        while self._is_writing():
            time.sleep(_NAP_S)

    def _is_writing(self) -> bool:
        raise NotImplementedError

    def is_wanted(self) -> bool:
        """Return whether the store has users; without users nothing is opened."""
        raise NotImplementedError

    def is_open(self) -> bool:
        """Return whether files are open or being opened, or a fork closed them before a write was flushed."""
        return bool(self._opening or self._opened or self._maps) or self._is_unflushed

    def has_lost_its_files(self) -> bool:
        """Return whether files were opened and the path now leads to other files, or to none."""
        return self.files is not None and self.files != identities(self._place)

    def _must_be_in_place(self) -> None:
        """Raise StorageUnavailableError if the path no longer leads to the open files.

        LMDB would silently continue to write to a deleted file, while a process that opens the path now creates new
        files and locks.
        """
        if self.has_lost_its_files():
            raise StorageUnavailableError(
                f"lmdb {self.path}: its files were removed, moved, replaced or closed to this process while they were "
                "open; nothing was written. Put that right, or close the store and connect again, to use what is there"
            )

    # --- opening ---

    def open_now(self) -> lmdb.Environment:
        """Return the environment; open its files if necessary, and create missing ones. Raises StoreError."""
        env = self._env
        if env is not None:
            return env
        with self.lock.current:
            if not self.is_wanted():
                raise StoreNotOpenError(f"lmdb {self.path} is closed")
            return self._opened_env()

    def _opened_env(self) -> lmdb.Environment:
        while self._env is None:
            self._open()
        return self._env

    def open_gate(self) -> None:
        """Open the gate to other processes, before the first write. Raises StoreError."""
        with self.lock.current:
            opened = list(self._opened)
            try:
                if opened and self.gate is None:
                    self.gate = WriterGate(self.path, self._maps)
            except OSError as error:
                self._raise(error, "opening")
            if opened != self._opened:  # a handler has closed them since, and the map of the gate
                self.gate = None

    def exists(self) -> bool:
        """Return whether data.mdb exists. Raises StorageUnavailableError for anything but a regular file."""
        try:
            status = validate_regular_file(data_file(self._place))
        except OSError as error:
            self._raise(error, "opening")
        return status is not None and status.st_size > 0

    def open_existing(self) -> bool:
        """Open the files if there is a store; return whether there is. Raises StoreError."""
        return self.exists() and self.open_now() is not None

    def _begin_first(self, *arguments: Any) -> Txn:
        """Begin a read transaction while the files are closed: before the first write, or after a fork."""
        if not self.is_wanted():
            raise StoreNotOpenError(f"lmdb {self.path} is closed")
        if not self.open_existing():
            raise lmdb.NotFoundError("nothing was written yet")
        return self.open_now().begin(*arguments)

    def _open(self) -> None:
        if self.is_replacing:
            raise StorageUnavailableError(
                f"lmdb {self.path}: it is being compacted; use it when that call has returned"
            )
        self._must_be_in_place()  # after a fork, or if the map could not be moved
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
            self._opened.clear()  # a handler raised just after it was closed
            return
        try:
            self.files = validate_files(self.path, env, self._before)
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
                # Not enough address space for this map; it grows later as far as possible.
                if raised_by_handler(error):
                    raise
                map_size_bytes //= 4
                self._is_tight = True
                if map_size_bytes < 1 << 20:
                    raise StorageUnavailableError(f"lmdb {self.path}: no address space to map it") from error
            except lmdb.MapResizedError as error:
                # Another process grew the map since LMDB read its size, or the header is damaged.
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
        opening = self._opening = self._opening or self._prepare_opening(map_size_bytes)
        try:
            opening.wait()
        finally:
            if opening.is_over:
                self._opening = None

    def _prepare_opening(self, map_size_bytes: int) -> Opening:
        if not self.exists():
            make_store(self.path, FORMAT)
        return Opening(self._call_lmdb, map_size_bytes, self._opened, self._is_tight)

    def _call_lmdb(self, map_size_bytes: int) -> lmdb.Environment:
        """Return the environment that ``lmdb.open`` opens. No signal handler may use the store meanwhile."""
        prepare_lock_file(self.path, self._maps)
        self._before = identities(self._place)
        flags: dict[str, Any] = DURABILITY[self.durability]
        # Not in a variable, which the traceback of an interruption would keep open.
        return lmdb.open(
            lmdb_name(self.path),
            map_size=map_size_bytes,
            max_readers=MAX_READERS,
            # One transaction is kept for the next reader, to spare it the search for a slot.
            max_spare_txns=1,
            # An existing folder keeps its format.
            lib_version=cast(int, None) if self.exists() else FORMAT,
            **flags,
        )

    def _shut(self) -> None:
        """Close the files. Call it while no thread writes, or while holding `lock`."""
        outer, self._slot = self._slot, []
        end_transaction(outer)
        self._look_at_s = -math.inf
        opening, self._opening = self._opening, None
        if opening is not None:
            opening.finish()
        for env in list(self._opened):
            self._forget(env)
            env.close()
            # A handler may have used it.
            self._forget(env)
            if env in self._opened:
                self._opened.remove(env)
        # No handler can run between a test below and what depends on it; one that ran before may have opened the files.
        maps = self._maps
        if not self._opened:
            self.gate = None
        if maps and not self._opened:
            maps[0].close()
        if maps and maps[0].closed:
            del maps[0]

    def _forget(self, env: lmdb.Environment) -> None:
        if self._env is env or self._env is None:
            self.begin, self.begin_write = self._begin_first, _begin_nothing
            self._env = None

    # --- the map ---

    def _grow_map(self) -> None:
        with self.lock.current:
            self._grow_map_in_steps()

    def _grow_map_in_steps(self) -> None:
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
                # py-lmdb closes an environment whose map it cannot move.
                self._map_size_bytes, self._is_tight = size, True
                self._shut()
        raise StorageFullError(
            f"lmdb {self.path}: no address space to grow its map beyond {size:,} bytes; what was stored is intact"
        ) from failure

    def _adopt_map(self) -> None:
        """Adopt the map size after another process grew the map."""
        with self.lock.current:
            self.pause_writer()
            try:
                self.open_now().set_mapsize(0)
            except lmdb.Error as error:
                self._raise(error, "following the grown map of")

    # --- faults ---

    def _settle(self, slot: Slot) -> None:
        """Rewrite both headers to the disk as they are in memory, after a failed write and before any other write.

        After a failed flush the system may drop the data and mark it clean, so the next flush succeeds without it (as
        on Linux). The lost data may be the header of the last commit, if it had no flush of its own. Or it may be the
        old header, which LMDB restores when a new one cannot be flushed, although the new one may be on the disk. One
        more commit could then overwrite pages that a header on the disk refers to.
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
        # The transaction blocks the writers of other programs.
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
        """Reopen the files after LMDB failed to write a header and refuses all work; `env` is the old environment."""
        with self.lock.current:
            self.pause_writer()
            if env is not None and env is self._env:
                self._shut()
            self.open_now()

    def _raise(self, error: Exception, doing: str) -> NoReturn:
        """Raise the StoreError for `error`. lmdb.Error carries no errno, only the system's error text."""
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


def _begin_nothing(_: bool) -> NoReturn:
    raise lmdb.NotFoundError("it was closed a moment ago")
