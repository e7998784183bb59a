"""Wait for other connections that hold an SQLite file, in short pauses between tries, which Ctrl-C ends."""

from __future__ import annotations

import os
import time

# Every wait is done here, because SQLite's own busy handler sleeps up to 100 ms between tries, so one of many writers
# may starve; it ignores Ctrl-C; and SQLite does not call it while the journal mode changes.
_FIRST_PAUSE_S = 0.0005
_LONGEST_PAUSE_S = 0.01
# The lock has no queue: it goes to the process that tries at the right moment. So a process that has waited longer
# tries more often. After some seconds the holder is probably stuck, and frequent tries are a waste.
_IMPATIENT_AFTER_S = 0.02
_IMPATIENT_PAUSE_S = 0.0005
_RESIGNED_AFTER_S = 3.0


class BusyWait:
    """The wait of one call, between tries, for other connections that hold the file."""

    __slots__ = ("_began_s", "_deadline_s", "_pause_s")

    def __init__(self, began_s: float, wait_s: float) -> None:
        """Set up the wait of a call that began at `began_s` (of `time.monotonic`), for up to `wait_s` seconds."""
        self._began_s = began_s
        self._deadline_s = began_s + wait_s
        self._pause_s = _FIRST_PAUSE_S

    def pause(self) -> bool:
        """Sleep before the next try and return True, or return False at once when the time is up."""
        now_s = time.monotonic()
        if now_s >= self._deadline_s:
            return False
        # Jitter: two processes that collided should not collide again. From the system, because the import of `random`
        # takes a fiftieth of the first open.
        jitter = os.urandom(1)[0] / 256
        time.sleep(min(jitter * self._pause_s, self._deadline_s - now_s))
        waited_s = now_s - self._began_s
        if _IMPATIENT_AFTER_S < waited_s < _RESIGNED_AFTER_S:
            self._pause_s = _IMPATIENT_PAUSE_S
        else:
            self._pause_s = min(self._pause_s * 2, _LONGEST_PAUSE_S)
        return True
