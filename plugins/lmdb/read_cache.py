"""Values read a moment ago, for as long as nobody commits: what is found here is what LMDB would find.

Every read begins a transaction, which costs 0.04 us, and the number of that transaction tells whether anybody, in
whatever process, has committed since a value was kept. So what is kept is never stale; it spares the search of the
tree, the copy of the value and the test of its checksum. It begins when nobody has written for a while, and ends with
the next commit; where reads and writes alternate, nothing is kept and nothing is lost but the counting of reads.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

# So many reads in a row without a commit in between, and keeping begins.
_QUIET_READS: Final = 256
# What an entry takes besides the characters of its key and its value, about: two objects and a place in a dict.
_ENTRY_BYTES: Final = 170
# A value that is kept, or looked for and not found, costs about half of what a find saves: a dict of thousands lies in
# no cache of the processor. So after each trial of as many values that had to be read, those found are counted. While
# there is room a few are enough, since more will be found the fuller it gets; then it must be as many.
_TRIAL: Final = 4096
_ENOUGH_WHILE_FILLING: Final = _TRIAL // 20
_ENOUGH_WHEN_FULL: Final = _TRIAL
# If not, it is tried again after so many reads, and then after more.
_FIRST_PAUSE: Final = 1 << 14
_LONGEST_PAUSE: Final = 1 << 20


class Kept:
    """What was read while the last transaction was `id`. Any thread may use it.

    It belongs to that transaction for ever: who still reads an older state puts what it finds into the older one.
    """

    __slots__ = ("_room_bytes", "bodies", "found", "id", "missed")

    def __init__(self, id_: int, max_bytes: int) -> None:
        self.id = id_
        self.bodies: dict[str, bytes] = {}
        self.found = 0
        self.missed = 0
        self._room_bytes = max_bytes

    def keep(self, key: str, data: bytes, body_of: Callable[[bytes], bytes | None]) -> bool:
        """Keep the body of `data` if there is room, and only then copy it; whether to go on at all."""
        size = len(key) + len(data) + _ENTRY_BYTES
        has_room = size <= self._room_bytes
        if has_room and (body := body_of(data)) is not None:
            self._room_bytes -= size
            self.bodies[key] = body
        self.missed += 1
        if self.missed < _TRIAL:
            return True
        is_worth_it = self.found >= (_ENOUGH_WHILE_FILLING if has_room else _ENOUGH_WHEN_FULL)
        self.found = self.missed = 0
        return is_worth_it


class Keeper:
    """Decides when one open namespace keeps what is read: `kept` is None while it does not.

    Whoever reads then takes one off `reads_left`, and calls `begin` once it is zero or less.
    """

    __slots__ = ("_last_id", "_max_bytes", "_pause", "kept", "reads_left")

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._pause = _QUIET_READS
        self._last_id = -1
        self.kept: Kept | None = None
        #: Infinite where keeping never begins.
        self.reads_left: float = _QUIET_READS if max_bytes else math.inf

    def begin(self, id_: int) -> None:
        """After `reads_left` reads, the last of them in transaction `id_`: keep from now on if none committed."""
        if id_ == self._last_id:
            self.kept = Kept(id_, self._max_bytes)
        self._last_id = id_
        self.reads_left = self._pause

    def end(self, *, in_vain: bool = False) -> None:
        """Somebody committed; or keeping was `in_vain`: then not again for a while, longer each time."""
        self.kept = None
        self._pause = min(max(self._pause * 4, _FIRST_PAUSE), _LONGEST_PAUSE) if in_vain else _QUIET_READS
        self.reads_left = self._pause
