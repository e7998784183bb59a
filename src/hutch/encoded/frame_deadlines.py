"""FrameDeadlines: time to live for an engine of bytes that declares `ttl`, but keeps no index of deadlines."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from itertools import islice

from ..codec.frame import is_expired
from ..contract.commit import KeyRange
from .storage import EncodedStorage

# How often `len` counts until no write comes in between.
_COUNTS = 5


class FrameDeadlines(EncodedStorage):
    """A storage around `engine` that judges the deadline of every frame it reads.

    `len`, `keys` and `reclaim` therefore read every value of the namespace, and writes reclaim nothing.
    """

    def __init__(self, engine: EncodedStorage) -> None:
        super().__init__(engine._plugin, engine.namespace)
        self.engine = engine
        self.capabilities = engine.capabilities
        self.checksum_covers_key = engine.checksum_covers_key
        self.wait_s = engine.wait_s

    def read(self, key: str) -> bytes | None:
        return self.engine.read(key)

    def write(self, key: str, data: bytes) -> None:
        self.engine.write(key, data)

    def delete(self, key: str) -> bool:
        return self.delete_many([key]) == 1

    def len(self) -> int:
        # The engine's own count, which is of one moment, without the expired keys; again if writes came in between.
        for _ in range(_COUNTS):
            stored = self.engine.len()
            expired = sum(1 for _ in self._expired(self.engine.read_range(None, None, False)))
            if not expired or self.engine.len() == stored:
                break
        return max(stored - expired, 0)

    def keys(self) -> Iterable[str]:
        return self.key_range(None, None, False)

    def close(self) -> None:
        self.engine.close()

    def read_many(self, keys: list[str]) -> dict[str, bytes]:
        return self.engine.read_many(keys)

    def write_many(self, items: Mapping[str, bytes]) -> None:
        self.engine.write_many(items)

    def delete_many(self, keys: list[str]) -> int:
        expired = self._expired(self.engine.read_many(keys).items())
        for key, data in expired:
            self.engine.compare_and_write(key, data, None)
        return self.engine.delete_many(keys)

    def clear(self) -> None:
        self.engine.clear()

    def read_range(self, start: str | None, stop: str | None, reverse: bool) -> Iterator[tuple[str, bytes]]:
        return self.engine.read_range(start, stop, reverse)

    def read_chunks(
        self, start: str | None, stop: str | None, reverse: bool
    ) -> Iterator[tuple[Sequence[str], Sequence[bytes]]]:
        return self.engine.read_chunks(start, stop, reverse)

    def key_range(self, start: str | None, stop: str | None, reverse: bool) -> Iterator[str]:
        for keys, frames in self.engine.read_chunks(start, stop, reverse):
            expired = {key for key, _ in self._expired(zip(keys, frames, strict=True))}
            yield from (key for key in keys if key not in expired)

    def compare_and_write(self, key: str, old: bytes | None, new: bytes | None) -> bool:
        return self.engine.compare_and_write(key, old, new)

    def now_ms(self) -> int:
        return self.engine.now_ms()

    def write_until(self, key: str, data: bytes, deadline_ms: int) -> None:
        self.engine.write_until(key, data, deadline_ms)

    def write_many_until(self, items: Mapping[str, bytes], deadlines_ms: Mapping[str, int]) -> None:
        self.engine.write_many_until(items, deadlines_ms)

    def deadline(self, key: str) -> int | None:
        return self.engine.deadline(key)

    def set_deadline(self, key: str, deadline_ms: int | None) -> bool:
        return self.engine.set_deadline(key, deadline_ms)

    def reclaim(self, limit: int) -> int:
        expired = islice(self._expired(self.engine.read_range(None, None, False)), limit)
        return sum(self.engine.compare_and_write(key, data, None) for key, data in list(expired))

    def apply(
        self,
        changes: Mapping[str, bytes | None],
        expected: Mapping[str, bytes | None],
        ranges: Sequence[KeyRange] = (),
    ) -> bool:
        return self.engine.apply(changes, expected, ranges)

    @property
    def has_apply(self) -> bool:
        return self.engine.has_apply

    @property
    def lock_scope(self) -> Hashable:
        return self.engine.lock_scope

    def _expired(self, items: Iterable[tuple[str, bytes]]) -> Iterator[tuple[str, bytes]]:
        """Yield the items whose deadline has come, by one reading of the clock."""
        now_ms: int | None = None
        for key, data in items:
            if data[:1] == b"T":
                now_ms = self.now_ms() if now_ms is None else now_ms
                if is_expired(data, now_ms, self.key_crc_of(key)):
                    yield key, data
