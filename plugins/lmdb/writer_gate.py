"""WriterGate: the processes that write to one LMDB folder queue here, in front of LMDB's own lock.

LMDB's lock of writers is a mutex in shared memory, and whoever waits for it waits without end and is deaf to Ctrl-C.
Where two processes sleep in front of it, and the one that is woken is killed before it takes it, the other is never
woken (seen with glibc 2.36, and without hutch). So every process takes this gate first, for each transaction, and finds
the mutex free. The gate is polled, so that a wait ends at its deadline and with every signal.

The gate is an flock of the folder, which the system takes back from a process that was killed. A process that waits
marks the moment of its arrival: it locks the byte of that number in data.mdb by `lockf`. The process whose mark has no
other before it is the next, and polls often; the others look now and then whether they are. A mark is advice alone: a
waiting process that was stopped does not hold up the others. LMDB locks lock.mdb alone, so that nothing here can
meet its locks; programs that open the folder with LMDB by themselves do not know the gate.
"""

from __future__ import annotations

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

__all__ = ["RELEASE", "TRY", "WriterGate", "flock"]

TRY: Final = LOCK_EX | LOCK_NB
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


class WriterGate:
    """The gate as one process sees it. To be used by one thread at a time.

    The holder of the gate gives it back by ``flock(gate.fd, RELEASE)``, which may be done twice.
    """

    def __init__(self, folder: Path) -> None:
        """Raises OSError, and StorageUnavailableError if data.mdb is not a regular file."""
        # Opened and stored by one call of C code: a handler that raises finds no descriptor that nobody closes.
        self._folder: list[int] = []
        self.fd = -1
        self.is_waiting = False
        if sys.platform != "win32":
            self._data = open_existing(folder / "data.mdb", "r+b")
            self._folder += map(os.open, (folder,), (os.O_RDONLY | os.O_CLOEXEC,))
            self.fd = self._folder[0]
            self._marks = self._data.fileno()

    def __del__(self) -> None:
        if sys.platform != "win32" and hasattr(self, "_data"):
            self._data.close()
        for descriptor in self._folder:
            os.close(descriptor)

    def has_waiters(self) -> bool:
        """Return whether other processes wait at the gate. To be called by a process that does not."""
        if self.fd < 0:
            return False
        try:
            return not self._can_lock(LOCK_SH | LOCK_NB, 0, 0)
        finally:
            lockf(self._marks, LOCK_UN)

    def wait(self, deadline_s: float, time_out: Callable[[], StoreError]) -> None:
        """Take the gate when it is this process's turn. Raises ``time_out()`` after `deadline_s`."""
        began_s = time.monotonic()
        arrival = int(began_s * 1e6)
        looks, pause_s = 0, _FIRST_PAUSE_S
        self.is_waiting = True
        try:
            while True:
                looks += 1
                is_next = self._mark(arrival)
                if (is_next or looks % _TRY_EVERY == 0) and self._try():
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

    def holder(self) -> str:
        """Describe the process that holds the gate, with its number where the system tells."""
        status = os.fstat(self.fd)
        place = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
        with suppress(OSError, ValueError, IndexError), open("/proc/locks") as file:  # noqa: PTH123
            for line in file:
                parts = line.split()
                if parts[1] == "FLOCK" and parts[5] == place:
                    return _describe(int(parts[4]))
        return "another process"

    def _try(self) -> bool:
        try:
            flock(self.fd, TRY)
        except OSError as error:
            self.must_be_busy(error)
            return False
        return True

    @staticmethod
    def must_be_busy(error: OSError) -> None:
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
        self._can_lock(TRY, 1, place)  # fails while another process looks; there is another pause
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
