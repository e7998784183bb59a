"""DeadlineIndex: which keys of an open database expire, and when. In memory only: the values are the truth."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from operator import itemgetter


class DeadlineIndex:
    """The deadlines of a database, in milliseconds since 1970 UTC.

    An entry may be wrong, because another program changed the value: read the value before acting on its entry. A
    nested call of the same thread may read the index in the middle of a change, but never changes it.
    """

    def __init__(self, deadlines_ms: dict[bytes, int]) -> None:
        self._deadlines_ms = deadlines_ms
        self._in_order = sorted((deadline_ms, key) for key, deadline_ms in deadlines_ms.items())

    def __bool__(self) -> bool:
        return bool(self._deadlines_ms)

    def __contains__(self, key: bytes) -> bool:
        return key in self._deadlines_ms

    def put(self, key: bytes, deadline_ms: int | None) -> None:
        """Replace the deadline of `key`; None: it has none."""
        old_ms = self._deadlines_ms.pop(key, None)
        if old_ms is not None:
            del self._in_order[bisect_left(self._in_order, (old_ms, key))]
        if deadline_ms is not None:
            insort(self._in_order, (deadline_ms, key))
            self._deadlines_ms[key] = deadline_ms

    def due(self, now_ms: int) -> list[bytes]:
        """Return the keys whose deadline has come, the earliest first."""
        return [key for _, key in self._in_order[: bisect_right(self._in_order, now_ms, key=itemgetter(0))]]

    def due_at(self, position: int, now_ms: int) -> bytes | None:
        """Return the key at `position` in the result of `due`; None if there are fewer."""
        deadline_ms, key = self._in_order[position] if position < len(self._in_order) else (now_ms + 1, None)
        return key if deadline_ms <= now_ms else None
