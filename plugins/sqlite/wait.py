"""The wait for other connections that hold an SQLite file: short pauses between tries, which Ctrl-C ends."""

from __future__ import annotations

import random
import time

# SQLite's own busy handler sleeps up to 100 ms between two tries, deaf to Ctrl-C, so that among many writers one
# starves; and it is left out where the journal mode changes. Every wait is done here instead.
_FIRST_PAUSE_S = 0.0005
_LONGEST_PAUSE_S = 0.01
# The lock has no queue: it goes to whoever asks at the right moment. So those that have waited longer ask more often;
# after some seconds, others are not merely busy, and to ask often is a waste.
_IMPATIENT_AFTER_S = 0.02
_IMPATIENT_PAUSE_S = 0.0005
_RESIGNED_AFTER_S = 3.0


class BusyWait:
    """The wait of one call for other connections that hold the file, between tries."""

    __slots__ = ("_began_s", "_deadline_s", "_pause_s")

    def __init__(self, began_s: float, wait_s: float) -> None:
        """The call began at `began_s` (of `time.monotonic`) and waits for up to `wait_s` seconds."""
        self._began_s = began_s
        self._deadline_s = began_s + wait_s
        self._pause_s = _FIRST_PAUSE_S

    def pause(self) -> bool:
        """Sleep before the next try; return False at once when the time is up."""
        now_s = time.monotonic()
        if now_s >= self._deadline_s:
            return False
        # Jitter: two that met must not meet again.
        time.sleep(min(random.uniform(0, self._pause_s), self._deadline_s - now_s))  # noqa: S311
        waited_s = now_s - self._began_s
        if _IMPATIENT_AFTER_S < waited_s < _RESIGNED_AFTER_S:
            self._pause_s = _IMPATIENT_PAUSE_S
        else:
            self._pause_s = min(self._pause_s * 2, _LONGEST_PAUSE_S)
        return True
