"""Environment: transactions of one LMDB folder, safe against other threads, processes and signal handlers."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from itertools import compress
from operator import methodcaller
from pathlib import Path
from threading import enumerate as all_threads
from threading import get_ident
from typing import TYPE_CHECKING, Any, Final, TypeVar
from weakref import ref

import lmdb

from hutch import StorageTimeoutError, StorageUnavailableError, StoreError
from hutch.filesystem import flush_folder
from hutch.handlers import raised_by_handler, release_frames

from .commit_queue import CommitQueue, Request, new_ticket
from .files import FORMAT, MAX_READERS, library_version
from .open_files import NO, TRUST_S, OpenFiles, in_doubt
from .slot import Slot, end_transaction
from .writer_gate import FREE, MUTEX, RELEASE, WriterGate, flock

if TYPE_CHECKING:
    from .pinned import PinnedEnvironment
    from .slot import Txn

T = TypeVar("T")

_READ_RETRIES = 200
_DAMAGED_READS = 10
# Errors that a retry cannot cure.
_LASTING = (lmdb.BadValsizeError, lmdb.CorruptedError, lmdb.DiskError, lmdb.InvalidError, lmdb.PageNotFoundError)
_commit: Final = lmdb.Transaction.commit


class Environment(OpenFiles):
    """The transactions of one LMDB folder.

    Readers call ``environment.begin().get(key)``, and `read` if that raises lmdb.Error.
    """

    #: Whether a read may take as long as it needs.
    reads_large_chunks = True
    #: By the factories of this process.
    is_shared = True

    def __init__(self, path: Path, durability: str, map_size_bytes: int, wait_s: float) -> None:
        super().__init__(path, durability, map_size_bytes)
        #: How long a write waits for other writers, in seconds.
        self.wait_s = wait_s
        #: The factories that use the environment.
        self.users: set[ref[object]] = set()
        #: The open snapshots of this process, and some that were closed.
        self.snapshots: list[ref[PinnedEnvironment]] = []
        #: The ids of the namespaces to which this process has written a deadline.
        self.expiring: set[bytes] = set()
        self._queue = CommitQueue(self)
        #: ``write(work, *arguments)``: see `CommitQueue.write`.
        self.write: Callable[..., Any] = self._queue.write
        self._fork_ticket: Request | None = None
        self._is_closing = False
        # Holds `lock` while a fork has it.
        self._fork_lock: list[Any] = []

    def is_wanted(self) -> bool:
        return any(user() is not None for user in list(self.users))

    def close(self) -> None:
        """Flush and close the files unless they are in use. Raises StoreError."""
        self._queue.run_exclusively(self._close)

    def _close(self) -> None:
        with self.lock.current:
            # A finalizer of another store may run within this method, and closes every environment without users.
            if self.is_wanted() or self._is_closing:
                return
            try:
                self._is_closing = True
                if self._is_unflushed and not self._opened:
                    self._open_after_fork()
                if self._env is not None and self._place in in_doubt:
                    self._settle([])
                elif self._env is not None and self._is_unflushed:
                    # For relaxed this flushes all writes; for the other durabilities at most the last header.
                    self._env.sync(True)
                self._is_unflushed = False
            except lmdb.Error as error:
                in_doubt.add(self._place)
                self._raise(error, "closing")
            finally:
                self._is_closing = False
                self._shut()

    def _open_after_fork(self) -> None:
        """Open the files, if they exist, in order to flush them."""
        try:
            self._open()
        except StoreError as error:
            if raised_by_handler(error):
                raise

    # --- reading ---

    def read(self, fn: Callable[[Txn], T], nothing: T) -> T:
        """Return ``fn(transaction)`` in a read transaction, or `nothing` if the folder was never written to.

        Retried if the map was grown or all reader slots were taken. Reading does not create the folder.
        """
        for attempt in range(_READ_RETRIES):
            env = self._env
            txn: Txn | None = None
            try:
                if env is None and self.is_wanted() and not self.open_existing():
                    return nothing
                txn = self.begin()
                return fn(txn)
            except BaseException as error:
                release_frames(error, __file__)
                if not isinstance(error, lmdb.Error) or raised_by_handler(error):
                    raise
                failure = error
            finally:
                # A stored traceback would keep the transaction, and `abort` would not free its reader slot.
                txn = None
            self._prepare_another_read(failure, env, attempt)
        raise StorageTimeoutError(f"lmdb {self.path}: the map was grown {_READ_RETRIES} times during one read")

    def _prepare_another_read(self, error: lmdb.Error, env: lmdb.Environment | None, attempt: int) -> None:
        is_last = attempt == _READ_RETRIES - 1
        if isinstance(error, lmdb.MapResizedError):
            self._adopt_map()
        elif isinstance(error, lmdb.ReadersFullError):
            if is_last:
                raise StorageTimeoutError(f"lmdb {self.path}: {MAX_READERS:,} readers are active") from error
            self.open_now().reader_check()
            time.sleep(0.01)
        elif isinstance(error, lmdb.PanicError):
            if is_last:
                self._raise(error, "reading")
            self._open_anew(env)
        elif isinstance(error, _LASTING):
            # A reader that is delayed while it begins may get a root newer than its transaction id; py-lmdb 3.0
            # reports the newer pages as damage. Real damage persists on a retry.
            if not isinstance(error, lmdb.CorruptedError) or attempt >= _DAMAGED_READS:
                self._raise(error, "reading")
        else:
            # While a map grows, py-lmdb refuses new transactions and invalidates open ones, with errors that have no
            # class of their own. The map grows under this lock: once it is free, a retry works.
            with self.lock.current:
                if is_last:
                    self._raise(error, "reading")

    # --- writing, called by the queue ---

    def transact(
        self, request: Request, work: Callable[..., T], arguments: tuple[Any, ...], committed: list[None] | None = None
    ) -> T:
        """Return ``work(slot, *arguments)`` of a committed write transaction; the commit also fills `committed`.

        Restarted if the map was full, or if a signal handler or finalizer of this thread wrote meanwhile.
        """
        while True:
            slot: Slot = []
            # A slot that is not empty means a nested call; the outer call restarts when it resumes.
            outer, self._slot = self._slot, slot
            if outer:
                end_transaction(outer)
            try:
                if time.monotonic() >= self._look_at_s:
                    self._look(request)
                gate = self.gate
                if gate is None:  # closed by a fork or a nested call
                    continue
                fd = gate.fd_in_use
                try:
                    if fd >= 0 or gate.lock_file[MUTEX] != FREE:
                        fd = gate.fd
                        if not gate.enter():
                            self._wait_at_gate(gate, request)
                    try:
                        self._busy = request
                        if self._is_paused and not self.is_exclusive():
                            self._wait_for_pause()
                            continue
                        if in_doubt and self._place in in_doubt:
                            self._settle(slot)
                        slot += map(self.begin_write, NO)
                        if self._slot is slot:
                            self._is_unflushed = True
                            result = work(slot, *arguments)
                            if committed is None:
                                slot[0].commit()
                                return result
                            committed += map(_commit, slot)
                    except BaseException:
                        end_transaction(slot)  # even if a debugger or profiler holds it
                        raise
                    finally:
                        # The transaction ends even if a handler raises, also in the line above.
                        slot.clear()
                        self._busy = None
                finally:
                    if fd >= 0:
                        flock(fd, RELEASE)
                    gate = None  # a stored traceback would keep its files open after the store is closed
            except (IndexError, ValueError, lmdb.Error) as error:
                self._recover(error, slot)
            if committed:
                return result

    def _wait_for_pause(self) -> None:
        self._busy = None
        with self.lock.current:
            self._is_paused = False

    def _is_writing(self) -> bool:
        busy = self._busy
        # If a handler raised before `_busy` was reset, its request is no longer in the queue.
        return isinstance(busy, Request) and busy.thread != get_ident() and busy in self._queue.requests

    def _look(self, request: Request) -> None:
        """Open the files if necessary, validate that they are in place, and let waiting processes write first."""
        while self._env is None or self.gate is None:
            self.open_now()
            self.open_gate()
        self._must_be_in_place()
        for snapshot in list(self.snapshots):
            if (pinned := snapshot()) is None or not pinned.is_pinned():
                self.snapshots.remove(snapshot)
        if (gate := self.gate) is not None and gate.look():
            self._wait_at_gate(gate, request)
        self._look_at_s = time.monotonic() + TRUST_S

    def _wait_at_gate(self, gate: WriterGate, request: Request) -> None:
        if request.deadline_s is None:
            request.deadline_s = self.deadline()
        gate.wait(request.deadline_s, self._time_out_at_gate)
        self._look_at_s = time.monotonic() + TRUST_S

    def _recover(self, error: Exception, slot: Slot) -> None:
        """Prepare for a retry, or raise the StoreError for `error`."""
        if raised_by_handler(error):
            raise error
        if self._slot is not slot or self._env is None:
            return  # a handler or finalizer wrote or closed the files meanwhile
        if isinstance(error, lmdb.MapFullError):
            self._grow_map()
        elif isinstance(error, lmdb.MapResizedError):
            self._adopt_map()
        elif isinstance(error, lmdb.Error):
            in_doubt.add(self._place)
            self._raise(error, "writing")
        else:
            raise error

    def is_exclusive(self) -> bool:
        """Return whether the calling thread holds `lock`: then this is a nested call, and no other thread writes."""
        return bool(self.lock.current._is_owned())  # type: ignore[attr-defined]

    def deadline(self) -> float:
        return time.monotonic() + self.wait_s

    def time_out(self, thread: int) -> StoreError:
        """Return the error for a call that waited too long while `thread` was writing."""
        gate = self.gate
        if gate is not None and (gate.is_waiting or gate.other_holder()):
            return self._time_out_at_gate()
        name = next((repr(one.name) for one in all_threads() if one.ident == thread), "that has ended")
        return self._timed_out(f"thread {name} of this process")

    def _time_out_at_gate(self) -> StoreError:
        return self._timed_out(((gate := self.gate) and gate.other_holder()) or "another process")

    def _timed_out(self, who: str) -> StoreError:
        return StorageTimeoutError(
            f"lmdb {self.path}: {who} has the lock for writing, and this write did not get it within wait_s = "
            f"{self.wait_s:g} seconds; nothing was written. Find out why it takes so long, or allow a longer wait_s"
        )

    # --- copies ---

    def copy_to(self, folder: Path) -> None:
        """Write a compact copy, as of one transaction, to the new folder `folder`, flushed. Raises StoreError."""
        folder.mkdir(0o700)
        if not self.read(partial(_copy_to, folder), False):
            raise StorageUnavailableError(
                f"lmdb {self.path}: nothing was stored there yet, so there is nothing to copy. Check the path"
            )
        (folder / "lock.mdb").unlink(missing_ok=True)
        flush_folder(folder)

    def compact(self) -> tuple[int, int]:
        """Replace the file by a compact copy; return its bytes before and after. Raises StoreLockedError, StoreError.

        Reads and writes of other threads wait. Open storages must not be used afterwards: the ids of transactions
        start again, by which they recognise changes.
        """
        if not self.exists():
            return 0, 0
        sizes: list[int] = []
        self._queue.run_exclusively(partial(self._compact, sizes))
        return sizes[0], sizes[1]

    def _compact(self, sizes: list[int]) -> None:
        from .copying import replace_by_compact_copy

        with self.lock.current:
            self.pause_writer()
            self.open_now()  # validates the files, and creates lock.mdb
            if self._place in in_doubt:
                self._settle([])
            elif self._is_unflushed:
                self.open_now().sync(True)
            self._is_unflushed = False
            try:
                self.is_replacing = True
                self._shut()
                sizes += replace_by_compact_copy(self.path)
            except (lmdb.Error, OSError) as error:
                self._raise(error, "compacting")
            finally:
                self.files = None
                self.is_replacing = self._is_paused = False

    def figures(self) -> dict[str, object]:
        """Return the figures that `hutch stats` shows."""
        figures: dict[str, object] = {"path": str(self.path), "durability": self.durability}
        if self._env is None and not self.exists():
            return figures | {"bytes": 0, "version": library_version(FORMAT)}
        env = self.open_now()
        info = env.info()
        pinned = [pinned for one in list(self.snapshots) if (pinned := one()) is not None and pinned.is_pinned()]
        if pinned:
            figures |= {"snapshots": len(pinned), "oldest_snapshot_s": round(max(one.age_s for one in pinned), 3)}
        return figures | {
            "bytes": (self.path / "data.mdb").stat().st_size,
            "version": library_version(env.lib_version()[0]),
            "map_size_bytes": info["map_size"],
            "readers": info["num_readers"],
        }

    # --- fork ---

    def before_fork(self) -> None:
        """Close the files, so that no child inherits them.

        A child cannot close an inherited environment: that would free the parent's slots in the shared reader table,
        and pages that the parent is reading would be overwritten. Nor can it open the files a second time.
        """
        # Running writes finish first; reads restart after the fork.
        if self._fork_ticket is None:
            self._fork_ticket = new_ticket()
            try:
                self._queue.enter(self._fork_ticket)
            except StorageTimeoutError as error:  # the writer waits for another process and has nothing open
                if raised_by_handler(error):
                    raise
        hold_lock(self._fork_lock, self.lock.current, self.wait_s)
        self.pause_writer()
        self._shut()

    def after_fork_in_parent(self) -> None:
        release_lock(self._fork_lock)
        ticket, self._fork_ticket = self._fork_ticket, None
        if ticket is not None:
            self._queue.leave(ticket)

    def after_fork_in_child(self) -> None:
        self._fork_lock.clear()
        self._is_paused, self._busy = False, None
        ticket, self._fork_ticket = self._fork_ticket, None
        self._queue.after_fork_in_child()
        if ticket is not None:
            self._queue.leave(ticket)
        self._is_unflushed = False


def hold_lock(held: list[Any], lock: Any, timeout_s: float) -> None:
    """Acquire `lock` and append it to `held`, in one call of C code; do nothing if `held` is not empty."""
    if not held:
        held += compress((lock,), map(lock.acquire, (True,), (timeout_s,)))


def release_lock(held: list[Any]) -> None:
    """Release the lock that `hold_lock` acquired."""
    held[:] = filter(None, map(methodcaller("release"), held))


def _copy_to(folder: Path, txn: Txn) -> bool:
    from .copying import copy_to

    copy_to(txn, folder)
    return True
