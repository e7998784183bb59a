"""Cache recently read values until the next commit, so that a cached value always equals the stored one.

Every read begins a transaction, which costs 0.04 us; its id shows whether any process has committed since a value was
cached. So a hit is never stale, and spares the tree search, the copy and the checksum. Caching begins after a series of
reads without a commit and ends with the next commit; a mix of reads and writes pays only for counting the reads.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

# Caching begins after this many reads without a commit.
_QUIET_READS: Final = 256
# The approximate overhead of an entry, besides the characters of its key and value: two objects and a dict entry.
_ENTRY_BYTES: Final = 170
# A miss costs about half of what a hit saves: a dict of thousands exceeds the processor's caches. So after every trial
# of this many misses the hits are counted. While the cache fills, a few hits are enough, because a fuller cache hits
# more often; once it is full, there must be as many hits as misses.
_TRIAL: Final = 4096
_ENOUGH_WHILE_FILLING: Final = _TRIAL // 20
_ENOUGH_WHEN_FULL: Final = _TRIAL
# After a failed trial, caching pauses for this many reads, and each time for longer.
_FIRST_PAUSE: Final = 1 << 14
_LONGEST_PAUSE: Final = 1 << 20


class CachedBodies:
    """The values read as of transaction `id`. Thread-safe.

    It belongs to that transaction for ever: a thread that still reads an older state uses the older cache.
    """

    __slots__ = ("_room_bytes", "bodies", "hits", "id", "misses")

    def __init__(self, id_: int, max_bytes: int) -> None:
        self.id = id_
        self.bodies: dict[str, bytes] = {}
        self.hits = 0
        self.misses = 0
        self._room_bytes = max_bytes

    def add(self, key: str, data: bytes, body_of: Callable[[bytes], bytes | None]) -> bool:
        """Cache a copy of the body of `data` if there is room; return whether caching is still worthwhile."""
        size = len(key) + len(data) + _ENTRY_BYTES
        has_room = size <= self._room_bytes
        if has_room and (body := body_of(data)) is not None:
            self._room_bytes -= size
            self.bodies[key] = body
        self.misses += 1
        if self.misses < _TRIAL:
            return True
        is_worth_it = self.hits >= (_ENOUGH_WHILE_FILLING if has_room else _ENOUGH_WHEN_FULL)
        self.hits = self.misses = 0
        return is_worth_it


class ReadCache:
    """The policy that decides when an open namespace caches reads: `current` is None while it does not.

    While it is None, each read decrements `reads_left`, and calls `begin` once that is zero or less.
    """

    __slots__ = ("_last_id", "_max_bytes", "_pause", "current", "reads_left")

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._pause = _QUIET_READS
        self._last_id = -1
        self.current: CachedBodies | None = None
        #: Infinite if caching is disabled.
        self.reads_left: float = _QUIET_READS if max_bytes else math.inf

    def begin(self, id_: int) -> None:
        """Start caching if nothing was committed in the last `reads_left` reads; `id_` is the current transaction."""
        if id_ == self._last_id:
            self.current = CachedBodies(id_, self._max_bytes)
        self._last_id = id_
        self.reads_left = self._pause

    def end(self, *, too_few_hits: bool = False) -> None:
        """Stop caching after a commit; or after too few hits (`too_few_hits`), with a pause that grows each time."""
        self.current = None
        self._pause = min(max(self._pause * 4, _FIRST_PAUSE), _LONGEST_PAUSE) if too_few_hits else _QUIET_READS
        self.reads_left = self._pause
