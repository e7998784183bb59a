"""One LMDB environment a folder and process, shared by all stores of the process.

LMDB forbids opening a folder twice in one process (http://www.lmdb.tech/doc/, "Caveats"), wants its map grown
while no transaction runs, and must not be used across a fork. All of that is dealt with here, so that the
storage above sees transactions that work.
"""

from __future__ import annotations

import errno
import math
import os
import stat
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, cast

import lmdb

from hutch import (
    ConfigError,
    CorruptValueError,
    StorageFullError,
    StorageTimeoutError,
    StorageUnavailableError,
    StoreError,
    StoreNotOpenError,
)

from .lmdb_files import Files, identities, is_cut_off, lmdb_name, make_store, reserve_lock_file
from .lmdb_line import Line
from .lmdb_turns import Turns

T = TypeVar("T")

if TYPE_CHECKING:
    Txn = lmdb.Transaction[bytes]

#: lmdb.open's flags a durability: how many flushes a commit makes (2, 1, 0), and what is left of it after a power cut.
DURABILITY: dict[str, dict[str, bool]] = {
    "strict": {"sync": True, "metasync": True},
    "normal": {"sync": True, "metasync": False},
    "relaxed": {"sync": False, "metasync": False},
}
# LMDB 1.0's format: its keys may have 1,978 bytes, those of 0.9 end at 511. Existing folders keep theirs.
_FORMAT = 1
_LONGEST_KEY_BYTES = 1024 + 4
# A slot costs 64 bytes of the lock file; each thread of each process that reads at one moment takes one.
_MAX_READERS = 1024
# A header, and 64 bytes a reader. Where LMDB finds another size it makes do with that.
_LOCK_FILE_BYTES = 192 + 64 * (_MAX_READERS - 1)
_READ_RETRIES = 200
_DAMAGED_READS = 10
_LARGEST_MAP_STEP = 1 << 36
_RELATIVE_SPARE = 4
# How long a writer trusts that the files are in their place: a look takes 3 us. On Windows nobody can move or remove
# files that are open.
_TRUST_S = 0.001 if os.name != "nt" else math.inf
# What a write says that did not fit: the last one where a disk, or a limit of file size, took a part of it.
_FULL = (*map(os.strerror, (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)), "MDB_SHORT_WRITE")

_LASTING = (
    lmdb.BadValsizeError,
    lmdb.CorruptedError,
    lmdb.DiskError,
    lmdb.InvalidError,
    lmdb.PageNotFoundError,
)

_environments: dict[str, Environment] = {}
_all: weakref.WeakSet[Environment] = weakref.WeakSet()
_registry_lock = threading.RLock()
#: Places where the disk has failed a write, and nothing was made good since.
_in_doubt: set[str] = set()


def shared_environment(path: Path, durability: str, map_size_bytes: int) -> Environment:
    """The environment of `path`, opened if this process has not yet; `release` it once.

    Raises ConfigError if it is open here with another durability.
    """
    with _registry_lock:
        # A folder that is not there yet has no other names; one that is, is known by its real path.
        place = os.path.realpath(path)
        environment = _environments.get(place)
        if environment is None or environment.has_lost_its_files():
            # The same files under another name, such as a second mount, are the same environment.
            files = identities(place)
            environment = next((one for one in _all if one.users and files and one.files == files), None)
            if environment is not None:
                _environments[place] = environment
        if environment is None:
            environment = Environment(Path(place), durability, map_size_bytes)
            _environments[place] = environment
            _all.add(environment)
        elif environment.durability != durability:
            raise ConfigError(
                f"option 'durability' of the lmdb engine: {path} is open in this process with "
                f"{environment.durability!r}; use the same everywhere, not {durability!r}"
            )
        environment.users += 1
        return environment


class Environment:
    """`begin` is what readers call: ``environment.begin().get(key)``, and `read` when that raises lmdb.Error."""

    def __init__(self, path: Path, durability: str, map_size_bytes: int) -> None:
        self.path = path
        self.durability = durability
        self.users = 0
        #: Which files are open: device and inode of each.
        self.files: Files | None = None
        self._place = str(path)
        self._trusted_until_s = -math.inf
        self._map_size_bytes = map_size_bytes
        self._turns = Turns(self._commit)
        #: Where the processes wait for each other; None before the first write, and on Windows.
        self._line: Line | None = None
        #: Whether this process has written since it opened the files.
        self._is_unflushed = False
        self._env: lmdb.Environment | None = None
        self.begin: Callable[..., Txn] = self._begin_first
        if self._exists():
            self._open()

    def release(self) -> None:
        """Undo one `shared_environment`; the last one closes the environment."""
        with _registry_lock:
            self.users -= 1
            if self.users:
                return
            for place in [place for place, environment in _environments.items() if environment is self]:
                del _environments[place]
        with self._turns.lock:
            if self._is_unflushed and self._env is None:
                # Closed by a fork.
                with suppress(StoreError):
                    self._open_now()
            env = self._env
            try:
                if env is not None and self._place in _in_doubt:
                    self._settle()
                elif env is not None and self._is_unflushed:
                    # All that relaxed wrote; of the other durabilities no more than the last header.
                    env.sync(True)
            except lmdb.Error as error:
                _in_doubt.add(self._place)
                self._raise(error, "closing")
            finally:
                env, self._env = self._env, None
                self.begin = self._begin_closed
                if env is not None:
                    env.close()
                self._leave_line()

    def read(self, fn: Callable[[Txn], T], nothing: T) -> T:
        """`fn` with a read transaction, begun anew when the map was grown or the slots were taken meanwhile.

        `nothing` if nobody has written to the folder yet: reading does not make it.
        """
        for attempt in range(_READ_RETRIES):
            env = self._env
            try:
                if env is None and self.begin != self._begin_closed and not self._exists():
                    return nothing
                return fn(self.begin())
            except lmdb.MapResizedError:
                self._adopt_map()
            except lmdb.ReadersFullError as error:
                if attempt == _READ_RETRIES - 1:
                    raise StorageTimeoutError(f"lmdb {self.path}: {_MAX_READERS:,} readers are active") from error
                self._env_now().reader_check()
                time.sleep(0.01)
            except lmdb.PanicError as error:
                if attempt == _READ_RETRIES - 1:
                    self._raise(error, "reading")
                self._open_anew(env)
            except _LASTING as error:
                # A reader that was held up while it began may get a newer root than its number says; py-lmdb 3.0 takes
                # the newer pages for damage. What is damaged is so the next time, too.
                if not isinstance(error, lmdb.CorruptedError) or attempt >= _DAMAGED_READS:
                    self._raise(error, "reading")
            except lmdb.Error as error:
                # While a map grows, py-lmdb refuses to begin and invalidates what was begun, with errors that
                # have no class of their own. The map grows under this lock: once it is free, another try works.
                with self._turns.lock:
                    if attempt == _READ_RETRIES - 1:
                        self._raise(error, "reading")
        raise StorageTimeoutError(f"lmdb {self.path}: the map was grown {_READ_RETRIES} times during one read")

    def write(self, work: Callable[..., T], *arguments: Any) -> T:
        """``work(txn, *arguments)`` in a write transaction, committed when it returns.

        Run again from its start if the map was full; with what other threads ask for at the same time it may share
        the transaction. Threads take turns, so `txn` must not be used after `work` returned.
        """
        turns = self._turns
        if turns.last_group == 1 and turns.lock.acquire(False):
            try:
                return self._commit(work, arguments)
            finally:
                turns.lock.release()
                if turns.waiting:
                    turns.wake_next()
        result: T = turns.write(work, arguments)
        return result

    def _commit(self, work: Callable[..., T], arguments: tuple[Any, ...]) -> T:
        if self._env is None:
            self._open_now()
        line = self._line
        if line is None or line.is_first():
            return self._commit_now(work, arguments)
        with line:
            return self._commit_now(work, arguments)

    def _commit_now(self, work: Callable[..., T], arguments: tuple[Any, ...]) -> T:
        while True:
            # Not `with`, which costs more than the begin itself.
            txn: Txn | None = None
            try:
                if self._env is None:
                    self._open_now()
                if time.monotonic() >= self._trusted_until_s:
                    self._must_be_in_place()
                if _in_doubt and self._place in _in_doubt:
                    self._settle()
                txn = self.begin(None, None, True)
                result = work(txn, *arguments)
                txn.commit()
                self._is_unflushed = True
                return result
            except BaseException as error:
                failure = error
            # Roll back by letting go: Transaction.abort() of py-lmdb 3.0 waits until no reader is active in
            # this process, for ever if there are enough of them. The traceback's frames hold on to it, too.
            del txn
            trace = failure.__traceback__
            while trace is not None:
                with suppress(RuntimeError):  # one that is still running
                    trace.tb_frame.clear()
                trace = trace.tb_next
            if isinstance(failure, lmdb.MapFullError):
                self._grow_map()
            elif isinstance(failure, lmdb.MapResizedError):
                self._adopt_map()
            elif isinstance(failure, lmdb.Error):
                _in_doubt.add(self._place)
                self._raise(failure, "writing")
            else:
                raise failure

    def figures(self) -> dict[str, object]:
        """What `hutch stats` shows."""
        figures: dict[str, object] = {"path": str(self.path), "durability": self.durability}
        if self._env is None and not self._exists():
            return figures
        info = self._env_now().info()
        return figures | {
            "file_bytes": (self.path / "data.mdb").stat().st_size,
            "map_size_bytes": info["map_size"],
            "readers": info["num_readers"],
            "lmdb": ".".join(map(str, lmdb.version(lib_version=self._env_now().lib_version()[0]))),
        }

    # --- the files in their place ---

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
        self._trusted_until_s = time.monotonic() + _TRUST_S

    def has_lost_its_files(self) -> bool:
        """Whether there were files open, and the path leads to others now, or to none."""
        return self.files is not None and self.files != identities(self._place)

    # --- opening ---

    def _open(self) -> None:
        # After a fork, or where the map could not be moved, it must be the store that it was.
        self._must_be_in_place()
        if not self._exists():
            try:
                make_store(self.path, _FORMAT)
            except (lmdb.Error, OSError) as error:
                self._raise(error, "creating it")
        map_size_bytes = self._map_size_bytes
        tries = 0
        while True:
            try:
                env = self._open_with(map_size_bytes)
                break
            except (lmdb.MemoryError, OverflowError) as error:
                # Not enough address space for the map wished for; it grows later, as far as it can.
                map_size_bytes //= 4
                if map_size_bytes < 1 << 20:
                    raise StorageUnavailableError(f"lmdb {self.path}: no address space to map it") from error
            except lmdb.MapResizedError as error:
                # Another process made it grow between LMDB's look at its size and its first transaction; or else its
                # header is damaged.
                tries += 1
                if tries == _DAMAGED_READS:
                    raise CorruptValueError(f"{self.path / 'data.mdb'} is damaged: {error}") from error
            except (lmdb.InvalidError, lmdb.VersionMismatchError, lmdb.CorruptedError, lmdb.IncompatibleError) as error:
                raise CorruptValueError(
                    f"{self.path / 'data.mdb'} is damaged, or is not an LMDB file: {error}"
                ) from error
            except (lmdb.Error, OSError) as error:
                self._raise(error, "opening")
        try:
            self._check_file(env)
        except BaseException:
            env.close()
            raise
        try:
            if self._line is None and os.name == "posix":
                self._line = Line(self.path)
        except OSError as error:
            env.close()
            self._raise(error, "opening")
        self.files = identities(self._place)
        self._env = env
        self.begin = env.begin

    def _open_with(self, map_size_bytes: int) -> lmdb.Environment:
        reserve_lock_file(self.path, _LOCK_FILE_BYTES)
        return lmdb.open(
            lmdb_name(self.path),
            map_size=map_size_bytes,
            max_readers=_MAX_READERS,
            # One transaction is kept for the next reader, which saves it the search for a slot.
            max_spare_txns=1,
            # An existing folder keeps the format it has.
            lib_version=cast(int, None) if self._exists() else _FORMAT,
            **DURABILITY[self.durability],
        )

    def _check_file(self, env: lmdb.Environment) -> None:
        """Refuse a file that would end in a crash or in refused keys: reading past its end is a SIGBUS."""
        env.reader_check()
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

    # --- the map ---

    def _grow_map(self) -> None:
        size = int(self._env_now().info()["map_size"])
        wished = size + min(size, _LARGEST_MAP_STEP)
        for step in (wished, size + size // _RELATIVE_SPARE, size + (16 << 20)):
            try:
                self._env_now().set_mapsize(step - step % (1 << 20))
                return
            except lmdb.Error as error:
                failure = error
                # py-lmdb has closed an environment whose map it could not move.
                self._env, self.begin, self._map_size_bytes = None, self._begin_first, size
        raise StorageFullError(
            f"lmdb {self.path}: no address space to grow its map beyond {size:,} bytes; what was stored is intact"
        ) from failure

    def _adopt_map(self) -> None:
        """Another process grew the map."""
        with self._turns.lock:
            try:
                self._env_now().set_mapsize(0)
            except lmdb.Error as error:
                self._raise(error, "following the grown map of")

    # --- faults ---

    def _settle(self) -> None:
        """After a write that failed: have both headers on the disk as they are in memory, before anything is built on
        them.

        What a failed flush should have written the system may drop and call clean, so that the next flush succeeds
        without it (Linux does). That may be the header of the last commit, where it had no flush of its own; or the
        one that LMDB puts back when a new one could not be flushed, which may be on the disk all the same. One more
        commit would write over pages that a header on the disk leads to.
        """
        try:
            txn = self.begin(None, None, True)
        except lmdb.PanicError:
            self._open_anew(self._env)
            txn = self.begin(None, None, True)
        # The transaction keeps writers of other processes out.
        env = self._env_now()
        size = 2 * env.stat()["psize"]
        try:
            with (self.path / "data.mdb").open("r+b", buffering=0) as file:
                headers = file.read(size)
                file.seek(0)
                file.write(headers)
        except OSError as error:
            self._raise(error, "writing")
        env.sync(True)
        del txn
        _in_doubt.discard(self._place)

    def _open_anew(self, env: lmdb.Environment | None) -> None:
        """When LMDB could not write a header it does nothing more until it is opened again; `env` is what was open."""
        with self._turns.lock:
            if env is not None and env is self._env:
                self._env, self.begin = None, self._begin_first
                env.close()
            self._open_now()

    def _env_now(self) -> lmdb.Environment:
        env = self._env
        return self._open_now() if env is None else env

    def _open_now(self) -> lmdb.Environment:
        with self._turns.lock:
            if self.begin == self._begin_closed:
                raise StoreNotOpenError(f"lmdb {self.path} is closed")
            if self._env is None:
                self._open()
            assert self._env is not None
            return self._env

    def _begin_first(self, *arguments: Any) -> Txn:
        """`begin` before the first write to a new folder, and in a process that was forked off."""
        if not self._exists():
            raise lmdb.NotFoundError("nothing was written yet")
        return self._env_now().begin(*arguments)

    def _exists(self) -> bool:
        try:
            found = (self.path / "data.mdb").stat()
        except FileNotFoundError:
            return False
        except OSError as error:
            self._raise(error, "opening")
        if not stat.S_ISREG(found.st_mode):  # LMDB would wait for ever for a pipe
            raise StorageUnavailableError(
                f"{self.path / 'data.mdb'} is not a regular file; LMDB cannot keep data in it"
            )
        return found.st_size > 0

    def _begin_closed(self, *_: Any) -> NoReturn:
        raise StoreNotOpenError(f"lmdb {self.path} is closed")

    def _raise(self, error: Exception, doing: str) -> NoReturn:
        """The StoreError for `error`. lmdb.Error carries no errno, only the system's text for it."""
        if isinstance(error, StoreError):
            raise error
        if self._env is None and self.begin == self._begin_closed:
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

    def _leave_line(self) -> None:
        line, self._line = self._line, None
        if line is not None:
            line.close()

    # --- fork ---

    def before_fork(self) -> None:
        """Close the environment, so that no child inherits it.

        A child cannot get rid of one: closing it there frees the parent's slots in the table of readers, which is
        shared, so that pages are written over that the parent is reading. And it cannot open the files beside it.
        """
        # Whoever writes is done first; who reads now, or wants to, begins anew after the fork.
        self._turns.lock.acquire()
        env, self._env = self._env, None
        if env is not None:
            self.begin = self._begin_first
            env.close()

    def after_fork_in_parent(self) -> None:
        self._turns.lock.release()
        self._turns.wake_next()

    def after_fork_in_child(self) -> None:
        self._turns.after_fork_in_child()
        self._leave_line()
        self._is_unflushed = False


def _before_fork() -> None:
    _registry_lock.acquire()
    for environment in list(_all):
        environment.before_fork()


def _after_fork_in_parent() -> None:
    for environment in list(_all):
        environment.after_fork_in_parent()
    _registry_lock.release()


def _after_fork_in_child() -> None:
    global _registry_lock  # noqa: PLW0603
    _registry_lock = threading.RLock()
    for environment in list(_all):
        environment.after_fork_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
