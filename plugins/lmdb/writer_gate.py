"""WriterGate: the processes that write to one LMDB folder queue here, in front of LMDB's own lock.

LMDB's lock of writers is a mutex in shared memory, and whoever waits for it waits without end and is deaf to Ctrl-C.
Where two processes sleep in front of it, and the one that is woken is killed before it takes it, the other is never
woken (seen with glibc 2.36, and without hutch). So a process begins a transaction when it sees that the mutex is free,
and else waits at the gate, which is polled, so that a wait ends at its deadline and with every signal.

The gate is an flock of the folder, which the system takes back from a process that was killed. A process that waits
marks the moment of its arrival: it locks the byte of that number in data.mdb by `lockf`. The process whose mark has no
other before it is the next, and polls often; the others look now and then whether they are. A mark is advice alone: a
waiting process that was stopped does not hold up the others. LMDB locks lock.mdb alone, so that nothing here can
meet its locks.

As long as nobody waits, nobody takes the gate, which would cost a seventh of a write without a flush: a process looks
at the mutex, in the map of lock.mdb, for each write, and for marks every 5 ms. For a while after it saw any it
takes the gate for each write, as it does where it cannot read the mutex (only that of glibc on x86-64 is known).
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
        """Windows: LMDB's lock of writers is one of the system's, which is given back by whoever was killed."""

    def lockf(_: int, __: int, ___: int = 0, ____: int = 0) -> None:
        """Windows: nobody waits at the gate."""
else:
    from fcntl import LOCK_EX, LOCK_NB, LOCK_SH, LOCK_UN, flock, lockf

__all__ = ["FREE", "MUTEX", "RELEASE", "WriterGate", "flock"]

_TRY: Final = LOCK_EX | LOCK_NB
RELEASE: Final = LOCK_UN

# A mark lies far behind all data. It is the time in microseconds, on the clock that all processes of a host share.
_MARKS_AT: Final = 1 << 60
# How often the next process in turn looks whether the gate is free, at first; each time half as often, down to the
# second. After a second of waiting something is amiss, and it costs less.
_FIRST_PAUSE_S: Final = 50e-6
_LONGEST_PAUSE_S: Final = 1e-3
_PATIENT_PAUSE_S: Final = 5e-3
_PATIENT_AFTER_S: Final = 1.0
# A process that is not the next tries the gate at every so many looks all the same: the next one may be stopped.
_TRY_EVERY: Final = 16
# How long a process writes before it looks whether others wait. Of two processes that write without pause, with 1 ms
# each they made about two thirds of the writes.
_SLICE_S: Final = 5e-3
# How long the gate is taken for each write after others were seen.
_SHARED_S: Final = 0.1
# What lock.mdb begins with where the mutex is that of glibc on x86-64, and where it lies: while it is taken its first
# word holds the number of the thread that has it.
_KNOWN_LAYOUT: Final = bytes.fromhex("dec0efbe02602f2c")
MUTEX: Final = slice(64, 68)
FREE: Final = bytes(4)
_THREAD: Final = 0x3FFFFFFF


class WriterGate:
    """The gate as one process sees it. To be used by one thread at a time.

    The holder of the gate gives it back by ``flock(gate.fd, RELEASE)``, which may be done twice.
    """

    def __init__(self, folder: Path, maps: list[mmap.mmap]) -> None:
        """`maps` holds the map of lock.mdb, if there is one.

        Raises OSError, and StorageUnavailableError if data.mdb is not a regular file.
        """
        #: LMDB's mutex is ``lock_file[MUTEX]``. Reading it raises ValueError once the files are closed.
        self.lock_file: mmap.mmap | bytes = bytes(MUTEX.stop)
        self._reads_mutex = bool(maps) and maps[0][: len(_KNOWN_LAYOUT)] == _KNOWN_LAYOUT
        if self._reads_mutex:
            self.lock_file = maps[0]
        self._shared_until_s = self._look_at_s = 0.0
        # Opened and stored by one call of C code: a handler that raises finds no descriptor that nobody closes.
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
        #: The descriptor whose lock is taken for the next write; -1 while the gate stands open.
        self.fd_in_use = self.fd

    def __del__(self) -> None:
        if sys.platform != "win32" and hasattr(self, "_data"):
            self._data.close()
        for descriptor in self._folder:
            os.close(descriptor)

    def look(self) -> bool:
        """Return whether other processes wait at the gate; and decide whether the next writes take it.

        To be called by a process that neither waits nor writes.
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
        # Not kept while the mutex is taken: a process that waits may be stopped, and must not hold up the others.
        if not self._is_mutex_free() or not self._try():
            return False
        if self._is_mutex_free():
            return True
        flock(self.fd, LOCK_UN)
        return False

    def wait(self, deadline_s: float, time_out: Callable[[], StoreError]) -> None:
        """Take the gate when it is this process's turn. Raises ``time_out()`` after `deadline_s`."""
        began_s = time.monotonic()
        arrival = int(began_s * 1e6)
        looks, pause_s = 0, _FIRST_PAUSE_S
        self.is_waiting = True
        self.fd_in_use = self.fd
        try:
            while True:
                looks += 1
                is_next = self._mark(arrival)
                if (is_next or looks % _TRY_EVERY == 0) and self.enter():
                    return
                now_s = time.monotonic()
                if now_s >= deadline_s:
                    raise time_out()
                if now_s - began_s > _PATIENT_AFTER_S:
                    pause_s = _PATIENT_PAUSE_S
                elif not is_next:
                    pause_s = _LONGEST_PAUSE_S
                time.sleep(min(pause_s, deadline_s - now_s))
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S) if is_next else _FIRST_PAUSE_S
        finally:
            lockf(self._marks, LOCK_UN)
            self.is_waiting = False
            now_s = time.monotonic()
            self._shared_until_s, self._look_at_s = now_s + _SHARED_S, now_s + _SLICE_S

    def holder(self) -> str:
        """Describe the process that writes, with its number where the system tells."""
        with suppress(OSError, ValueError, IndexError):
            thread = int.from_bytes(self.lock_file[MUTEX], sys.byteorder) & _THREAD
            with open(f"/proc/{thread}/status") as file:  # noqa: PTH123
                return _describe(int(file.read().partition("\nTgid:")[2].split()[0]))
        status = os.fstat(self.fd)
        place = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
        with suppress(OSError, ValueError, IndexError), open("/proc/locks") as file:  # noqa: PTH123
            for line in file:
                parts = line.split()
                if parts[1] == "FLOCK" and parts[5] == place:
                    return _describe(int(parts[4]))
        return "another process"

    def _is_mutex_free(self) -> bool:
        # A killed process leaves a bit behind, and the next one repairs the mutex.
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
        """Return if `error` says that another process has the gate, else raise what it means."""
        if raised_by_handler(error):
            raise error
        if not isinstance(error, BlockingIOError):
            raise StorageUnavailableError(
                f"lmdb: the folder's file system has no locks ({error.strerror}), without which processes cannot take "
                "turns in writing. Choose a local file system"
            ) from error

    def _mark(self, arrival: int) -> bool:
        """Show that this process waits since `arrival`; return whether nobody came earlier."""
        place = _MARKS_AT + arrival
        self._can_lock(_TRY, 1, place)  # fails while another process looks; there is another pause
        try:
            return self._can_lock(LOCK_SH | LOCK_NB, arrival, _MARKS_AT)
        finally:
            lockf(self._marks, LOCK_UN, arrival, _MARKS_AT)

    def _can_lock(self, operation: int, length: int, start: int) -> bool:
        """Lock bytes of data.mdb, `length` 0 means all from `start`; return whether no other process has them."""
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
