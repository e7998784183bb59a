"""WriterGate: queue the processes that write to one LMDB folder, in front of LMDB's own writer lock.

LMDB's writer lock is a mutex in shared memory: waiting for it has no time limit and ignores Ctrl-C. If two processes
wait for it and the one that is woken is killed before it takes the mutex, the other is never woken (seen with glibc
2.36, also without hutch). So a process begins a transaction only if the mutex is free. Otherwise it polls the gate, so
that the wait ends at its deadline and on any signal.

The gate is an flock of the folder, which the system releases when a process is killed. A waiting process marks its
time of arrival: it locks the byte at that offset in data.mdb with `lockf`. The process with the earliest mark is next
and polls often; the others poll rarely. Marks are only advisory: a stopped process does not block the others. LMDB
locks only lock.mdb, so its locks cannot conflict with these.

While no process waits, none takes the gate, which would cost a seventh of a write without a flush: a process reads the
mutex, in the map of lock.mdb, at each write, and looks for marks every 5 ms. For a while after it saw a mark, it takes
the gate for each write. It always does so if it cannot read the mutex (only the layout of glibc on x86-64 is known).
"""

from __future__ import annotations

import mmap
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from hutch import StorageUnavailableError, StoreError
from hutch.filesystem import open_existing
from hutch.handlers import raised_by_handler

if sys.platform == "win32":
    LOCK_EX = LOCK_NB = LOCK_SH = LOCK_UN = 0

    def flock(_: int, __: int) -> None:
        """Do nothing: on Windows, LMDB's writer lock is a system lock, released when its process is killed."""

    def lockf(_: int, __: int, ___: int = 0, ____: int = 0) -> None:
        """Do nothing: on Windows, no process waits at the gate."""
else:
    from fcntl import LOCK_EX, LOCK_NB, LOCK_SH, LOCK_UN, flock, lockf

__all__ = ["FREE", "LOCK_EX", "LOCK_NB", "MUTEX", "RELEASE", "WriterGate", "flock", "lockf"]

_TRY: Final = LOCK_EX | LOCK_NB
RELEASE: Final = LOCK_UN

# Marks lie far beyond all data. A mark is a time in microseconds, on the clock that all processes of a host share.
_MARKS_AT: Final = 1 << 60
# The next process's pause between polls of the gate: it doubles from the first to the second value. After a second of
# waiting something is wrong, and it polls less often.
_FIRST_PAUSE_S: Final = 50e-6
_LONGEST_PAUSE_S: Final = 1e-3
_STALLED_PAUSE_S: Final = 5e-3
_STALLED_AFTER_S: Final = 1.0
# A process that is not next tries the gate at every so many polls, because the next process may be stopped.
_TRY_EVERY: Final = 16
# How long a process writes before it looks whether others wait. With 1 ms, two processes that wrote without pause made
# about two thirds of the writes.
_SLICE_S: Final = 5e-3
# For this long after other processes were seen waiting, every write takes the gate.
_SHARED_S: Final = 0.1
# The first bytes of lock.mdb if its mutex is glibc's on x86-64, and the position of the mutex: while it is taken, its
# first word holds the owner's thread id.
_LAYOUT: Final = slice(0, 8)
_KNOWN_LAYOUT: Final = bytes.fromhex("dec0efbe02602f2c")
MUTEX: Final = slice(64, 68)
FREE: Final = bytes(4)
_THREAD: Final = 0x3FFFFFFF


class WriterGate:
    """One process's view of the gate. Not thread-safe: one thread at a time may use it.

    The holder releases the gate with ``flock(gate.fd, RELEASE)``, which may be repeated.
    """

    def __init__(self, folder: Path, maps: list[mmap.mmap]) -> None:
        """Open the folder and data.mdb; `maps` holds the map of lock.mdb, if there is one.

        Raises OSError, and StorageUnavailableError if data.mdb is not a regular file.
        """
        #: LMDB's mutex is ``lock_file[MUTEX]``. Reading it raises ValueError once the files are closed.
        self.lock_file: mmap.mmap | bytes = bytes(MUTEX.stop)
        # One expression without a call: a handler cannot close the map in the middle.
        self._reads_mutex = False
        if maps and not maps[0].closed and maps[0][_LAYOUT] == _KNOWN_LAYOUT:
            self.lock_file, self._reads_mutex = maps[0], True
        self._shared_until_s = self._look_at_s = 0.0
        # Opened and stored by one call of C code, so that no descriptor leaks if a handler raises.
        self._folder: list[int] = []
        self.fd = -1
        self.is_waiting = False
        if sys.platform != "win32":
            self._data = open_existing(folder / "data.mdb", "r+b")
            try:
                self._folder += map(os.open, (folder,), (os.O_RDONLY | os.O_CLOEXEC,))
            except OSError:
                self._data.close()  # the error keeps this object alive
                raise
            self.fd = self._folder[0]
            self._marks = self._data.fileno()
        #: The descriptor to lock for the next write; -1 while no process waits and the gate is not taken.
        self.fd_in_use = self.fd

    def __del__(self) -> None:
        if sys.platform != "win32" and hasattr(self, "_data"):
            self._data.close()
        for descriptor in getattr(self, "_folder", ()):
            os.close(descriptor)

    def look(self) -> bool:
        """Return whether other processes wait at the gate, and decide whether the next writes take it.

        Call it while this process neither waits nor writes.
        """
        now_s = time.monotonic()
        if self.fd < 0 or now_s < self._look_at_s:
            return False
        try:
            has_waiters = not self._can_lock(LOCK_SH | LOCK_NB, 0, 0)
        finally:
            lockf(self._marks, LOCK_UN)
        self._look_at_s = now_s + _SLICE_S
        if self._reads_mutex:
            if has_waiters or not self._is_open():
                self._shared_until_s = now_s + _SHARED_S
            self.fd_in_use = self.fd if now_s < self._shared_until_s else -1
        return has_waiters

    def enter(self) -> bool:
        """Take the gate if that needs no wait; return whether it is taken and LMDB's mutex is free."""
        # Do not hold the gate while the mutex is taken: a waiting process may be stopped, and would block the others.
        if not self._is_mutex_free() or not self._try():
            return False
        if self._is_mutex_free():
            return True
        flock(self.fd, LOCK_UN)
        return False

    def wait(self, deadline_s: float, time_out: Callable[[], StoreError]) -> None:
        """Wait for the gate and take it. Raises ``time_out()`` after `deadline_s`."""
        self.is_waiting = True
        self.fd_in_use = self.fd
        try:
            self._poll(deadline_s, time_out)
        finally:
            lockf(self._marks, LOCK_UN)
            self.is_waiting = False
            now_s = time.monotonic()
            self._shared_until_s, self._look_at_s = now_s + _SHARED_S, now_s + _SLICE_S

    def _poll(self, deadline_s: float, time_out: Callable[[], StoreError]) -> None:
        began_s = time.monotonic()
        arrival = int(began_s * 1e6)
        looks, pause_s = 0, _FIRST_PAUSE_S
        while True:
            looks += 1
            is_next = self._mark(arrival)
            if (is_next or looks % _TRY_EVERY == 0) and self.enter():
                return
            now_s = time.monotonic()
            if now_s >= deadline_s:
                raise time_out()
            if now_s - began_s > _STALLED_AFTER_S:
                pause_s = _STALLED_PAUSE_S
            elif not is_next:
                pause_s = _LONGEST_PAUSE_S
            time.sleep(min(pause_s, deadline_s - now_s))
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S) if is_next else _FIRST_PAUSE_S

    def other_holder(self) -> str | None:
        """Return a description of another process that writes; None if none writes or is known."""
        pid = self._holder()
        return None if pid is None or pid == os.getpid() else _describe(pid)

    def _holder(self) -> int | None:
        with suppress(OSError, ValueError, IndexError):
            thread = int.from_bytes(self.lock_file[MUTEX], sys.byteorder) & _THREAD
            with open(f"/proc/{thread}/status") as file:  # noqa: PTH123
                return int(file.read().partition("\nTgid:")[2].split()[0])
        if self.fd < 0:  # Windows
            return None
        status = os.fstat(self.fd)
        place = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
        with suppress(OSError, ValueError, IndexError), open("/proc/locks") as file:  # noqa: PTH123
            for line in file:
                parts = line.split()
                if parts[1] == "FLOCK" and parts[5] == place:
                    return int(parts[4])
        return None

    def _is_mutex_free(self) -> bool:
        # A killed owner leaves a flag bit set, and the next owner repairs the mutex.
        return not int.from_bytes(self.lock_file[MUTEX], sys.byteorder) & _THREAD

    def _is_open(self) -> bool:
        try:
            return self._try()
        finally:
            flock(self.fd, LOCK_UN)

    def _try(self) -> bool:
        try:
            flock(self.fd, _TRY)
        except OSError as error:
            self._must_be_busy(error)
            return False
        return True

    @staticmethod
    def _must_be_busy(error: OSError) -> None:
        """Return if `error` says that another process has the gate; otherwise raise the error that it means."""
        if raised_by_handler(error):
            raise error
        if not isinstance(error, BlockingIOError):
            raise StorageUnavailableError(
                f"lmdb: the folder's file system has no locks ({error.strerror}), which processes need in order to "
                "write one after another. Choose a local file system"
            ) from error

    def _mark(self, arrival: int) -> bool:
        """Mark that this process has waited since `arrival`; return whether no other process came earlier."""
        place = _MARKS_AT + arrival
        self._can_lock(_TRY, 1, place)  # fails while another process looks; retried after the next pause
        try:
            return self._can_lock(LOCK_SH | LOCK_NB, arrival, _MARKS_AT)
        finally:
            lockf(self._marks, LOCK_UN, arrival, _MARKS_AT)

    def _can_lock(self, operation: int, length: int, start: int) -> bool:
        """Lock `length` bytes of data.mdb from `start` (0: all); return whether no other process has them."""
        try:
            lockf(self._marks, operation, length, start)
        except (BlockingIOError, PermissionError) as error:
            if raised_by_handler(error):
                raise
            return False
        return True


def _describe(pid: int) -> str:
    state = ""
    with suppress(OSError, IndexError), open(f"/proc/{pid}/stat") as file:  # noqa: PTH123
        state = file.read().rpartition(")")[2].split()[0]
    return f"process {pid}" + (", which is stopped (SIGSTOP)," if state in ("T", "t") else "")
