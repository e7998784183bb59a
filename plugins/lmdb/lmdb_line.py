"""Processes that write to one folder wait in line before LMDB's own lock of writers, so that none waits there for ever.

That lock is a robust mutex in shared memory. Where two processes sleep before it, and the one that is woken is killed
before it takes it, while another takes it without having slept, the second is never woken (seen with glibc 2.36, and
without hutch). It cannot happen where no more than one sleeps. So one process, the first to write, goes to the mutex
as it likes, and the others one at a time: never more than two are there, of whom one has it.

The locks are those of flock, which the system takes back from who was killed, and which wake who waits for them.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

if sys.platform == "win32":
    LOCK_EX = LOCK_NB = LOCK_UN = 0

    def flock(_: int, __: int) -> None:
        """Never called: there the lock of writers is one of the system's, which does not have this fault."""
else:
    from fcntl import LOCK_EX, LOCK_NB, LOCK_UN, flock

# How often a process that is not the first asks whether the first has gone.
_ASK_EVERY_S = 0.01


class Line:
    """This process's place. A `with` block is for one that is not the first: within it, no other such one writes."""

    __slots__ = ("_ask_at_s", "_data", "_folder", "_is_first")

    def __init__(self, folder: Path) -> None:
        """Raises OSError."""
        self._is_first = False
        self._ask_at_s = 0.0
        # The one is locked by the first, for as long as it lives; the other by those behind it, in turn. LMDB locks
        # lock.mdb alone, and by other means.
        self._folder = os.open(folder, os.O_RDONLY)
        try:
            self._data = os.open(folder / "data.mdb", os.O_RDONLY)
        except BaseException:
            os.close(self._folder)
            raise

    def is_first(self) -> bool:
        """Whether this process need not wait; the first to ask, and the next when that has gone, need not."""
        if self._is_first:
            return True
        now = time.monotonic()
        if now < self._ask_at_s:
            return False
        self._ask_at_s = now + _ASK_EVERY_S
        try:
            flock(self._folder, LOCK_EX | LOCK_NB)
        except BlockingIOError:
            return False
        self._is_first = True
        return True

    def close(self) -> None:
        """Leave the line. In a child of fork this takes nothing from the parent."""
        os.close(self._folder)
        os.close(self._data)

    def __enter__(self) -> None:
        flock(self._data, LOCK_EX)

    def __exit__(self, *_: object) -> None:
        flock(self._data, LOCK_UN)
