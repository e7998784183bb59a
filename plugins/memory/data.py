"""Data: the frames of one namespace in memory, and the index of their deadlines. storage.py has the rules."""

from __future__ import annotations

from collections.abc import Mapping
from heapq import heappop, heappush

from hutch.deadlines import DEADLINE

# The length of the part of a frame that holds the deadline.
START_BYTES = 9
# How many keys that have expired a write removes.
PER_WRITE = 2
# An entry after all others, which never comes due.
_LAST_ENTRY = b"U", ""
# How many entries without a frame the index may have at any size.
_STALE_ENTRIES = 64


class Data:
    """The data of one namespace."""

    __slots__ = ("drops", "due", "frames", "old", "removed")

    def __init__(self) -> None:
        #: None marks a key that a running batch is removing.
        self.frames: dict[str, bytes | None] = {}
        #: A heap of (start of the frame, key) for each frame with a deadline, which its start holds. An entry whose
        #: frame is gone stays until its time, or until most entries are such.
        self.due: list[tuple[bytes, str]] = []
        #: What `drop_stale_entries` still has to move to `due`.
        self.old: list[tuple[bytes, str]] = []
        #: How often entries were removed.
        self.drops = 0
        #: The keys marked by each running batch, by the identity of its list, until they are removed from `frames`.
        self.removed: dict[int, list[str]] = {}

    def take_out_removed(self) -> None:
        """Remove the keys that are marked by None. Idempotent and reentrant."""
        frames = self.frames
        for keys in list(self.removed.values()):
            for key in keys:
                # Atomic: see the module's docstring. The key may have been set again or removed.
                if key in frames and frames[key] is None:
                    del frames[key]
            self.removed.pop(id(keys), None)

    # Apart from the `with` of their callers: on Python 3.12 and 3.13 an exception that a handler raises as a loop jumps
    # back can miss the `with` or `try` around it.

    def take_expired(self, now_ms: int, limit: int) -> int:
        """Remove at most `limit` expired keys and return how many. The caller holds the lock. Reentrant."""
        if self.old or len(self.due) > 2 * len(self.frames) + _STALE_ENTRIES:
            self.drop_stale_entries()
        frames, last, taken = self.frames, start_of(now_ms), 0
        while taken < limit:
            # All conditions are here, because a handler may run between those of `while` and the first statement.
            entry = self.due[0] if self.due else _LAST_ENTRY
            start, key = entry
            if start > last:
                break
            frame = frames[key] if key in frames else None  # noqa: SIM401 - `get` is a call
            is_due = frame is not None and frame[:START_BYTES] == start
            # No call from here to the end of the removal.
            if is_due and key in frames and frames[key] is frame:
                del frames[key]
                taken += 1
            if self.due and self.due[0] is entry:
                self.drops += 1
                heappop(self.due)
        return taken

    def index(self, entries: list[tuple[bytes, str]]) -> None:
        """Add `entries`. The caller holds the lock. Reentrant."""
        for entry in entries:
            heappush(self.due, entry)

    def drop_stale_entries(self) -> None:
        """Remove the entries whose frame is gone. The caller holds the lock. Reentrant, and may be interrupted."""
        self.drops += 1
        if not self.old:
            # Not empty, because other methods do not look into an index that is.
            self.old, self.due = self.due, [_LAST_ENTRY]
        frames, old = self.frames, self.old
        while old:
            entry = old[-1] if old else _LAST_ENTRY  # a handler may run after the test of `while`
            start, key = entry
            frame = frames[key] if key in frames else None  # noqa: SIM401 - `get` is a call
            if frame is not None and frame[:START_BYTES] == start:
                heappush(self.due, entry)
            if old and old[-1] is entry:
                del old[-1]

    def count(self) -> int:
        """Return the number of keys. The caller holds the lock."""
        while self.removed:
            self.take_out_removed()
        return len(self.frames)

    def keys(self) -> list[str]:
        """Return all keys. The caller holds the lock."""
        while self.removed:
            self.take_out_removed()
        return list(self.frames)


def start_of(deadline_ms: int) -> bytes:
    """Return the start of a frame with this deadline. Starts are in the order of their deadlines."""
    return b"T%b" % deadline_ms.to_bytes(8, "big")


def entries_of(changes: Mapping[str, bytes | None]) -> list[tuple[bytes, str]]:
    """Return the entries of the index for the frames in `changes`."""
    expiring = ((frame, key) for key, frame in changes.items() if frame is not None and frame[0] == DEADLINE)
    return [(frame[:START_BYTES], key) for frame, key in expiring]
