"""The memory engine: one dict of encoded bytes per namespace.

Values are stored encoded, so a caller that changes its object later does not change the store, and every engine
refuses the same values.

A signal handler may raise or write in the middle of a write. CPython runs handlers only after a call, at a loop's jump
back and at the start of a function. So each atomic step is one call of C, or makes no call between its first read of
the dict and its change. The lock excludes other threads; its holder may take it again.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from heapq import heappush
from itertools import chain, compress, islice, repeat
from operator import is_not
from typing import Any, ClassVar

import hutch
from hutch import Commit, CorruptValueError, EncodedStorage, KeyRange, Option, StoragePluginBase, deadlines
from hutch.deadlines import DEADLINE, ExpiringFrameError, is_expired
from hutch.fork import ForkSafeLock
from hutch.handlers import raised_by_handler
from hutch.limits import explain_failure, validate_key

from .commits import apply
from .data import PER_WRITE, START_BYTES, Data, start_of

_Root = dict[str, Data]
# How many expired keys a step of the verbs that remove all of them removes.
_PER_STEP = 1000
# A hundred decoded values fit in the processor's cache, a thousand do not.
_CHUNK_ITEMS = 128

# The roots of memory://NAME live as long as the process.
_named: dict[str, _Root] = {}
# One lock for all writers: each holds it for less time than a thread switch takes.
_write_lock = ForkSafeLock()


class MemoryPlugin(StoragePluginBase):
    """The memory engine. `memory://` is private to its store; `memory://NAME` is shared by the stores of a process."""

    OPTIONS: ClassVar = {
        "name": Option(str, default="", help="share the data between all stores of this process with this name")
    }
    capabilities = frozenset(
        {"atomic-batch", "atomic-modify", "atomic-modify:process", "atomic-store", "snapshot", "ttl"}
    )

    def __init__(self, config: object = None) -> None:
        super().__init__(config)
        name: str = self._storage_config["name"]
        self._root: _Root = _named.setdefault(name, {}) if name else {}

    def open(self, namespace: str) -> MemoryStorage:
        return MemoryStorage(self, namespace, self._root.setdefault(namespace, Data()))

    def namespaces(self) -> list[str]:
        return [namespace for namespace, data in self._root.copy().items() if _count(data)]

    def stats(self) -> dict[str, object]:
        return {"bytes": sum(map(_count_bytes, self._root.copy().values())), "version": hutch.__version__}

    def stored_namespaces(self) -> list[str]:
        return [namespace for namespace, data in self._root.copy().items() if data.frames]

    def apply(self, commits: Mapping[str, Commit]) -> bool:
        parts = [(self._root.setdefault(name, Data()), commit) for name, commit in commits.items()]
        with _write_lock.current:
            return apply(parts)

    def snapshot(self) -> MemorySnapshot:
        root = self._root.copy()
        with _write_lock.current:
            # One call of C, so no write comes between two namespaces.
            copies = list(map(dict.copy, [data.frames for data in root.values()]))
        return MemorySnapshot(self, dict(zip(root, copies, strict=True)))

    def compact(self) -> None:
        """Do nothing: the engine has no files."""

    def drop(self, namespace: str) -> None:
        data = self._root.get(namespace)
        if data is not None:
            # Clear in place: another store may hold a handle on it.
            with _write_lock.current:
                data.frames.clear()


class MemorySnapshot:
    """The dicts of all namespaces, copied at one moment; the encoded values are shared."""

    def __init__(self, plugin: MemoryPlugin, copies: dict[str, dict[str, bytes | None]]) -> None:
        self.now_ms = deadlines.now_ms()
        self._plugin, self._copies = plugin, copies
        self._live: dict[str, Data] = {}

    def open(self, namespace: str) -> MemoryStorage:
        return MemoryStorage(self._plugin, namespace, self._data_of(namespace))

    def namespaces(self) -> list[str]:
        return [namespace for namespace in self._copies if self._data_of(namespace).frames]

    def close(self) -> None:
        self._copies, self._live = {}, {}

    def _data_of(self, namespace: str) -> Data:
        """Return the data of a namespace without what had expired or was being removed."""
        data = self._live.get(namespace)
        if data is None:
            data = Data()
            data.frames = self._copies.get(namespace, {})
            for key, frame in list(data.frames.items()):  # a list, because another thread may do the same
                if frame is None or (frame[0] == DEADLINE and is_expired(frame, self.now_ms)):
                    data.frames.pop(key, None)
            data = self._live.setdefault(namespace, data)
        return data


class MemoryStorage(EncodedStorage):
    """One namespace. Reading a key takes no lock, because a single dict operation is atomic in CPython.

    So a batch must change the dict in one operation. Code that reads the whole dict takes the lock.
    """

    checksum_covers_key = False

    def __init__(self, plugin: MemoryPlugin, namespace: str, data: Data) -> None:
        super().__init__(plugin, namespace)
        self._all = data
        self._data, self._removed = data.frames, data.removed

    def read(self, key: str) -> bytes | None:
        return self._data.get(key)

    def get(self, key: str) -> Any:
        # `read` and the decoding of EncodedStorage, inlined: a call costs a tenth of a read.
        try:
            data = self._data.get(key)
        except TypeError as error:
            explain_failure(key, error)  # not hashable
            raise
        if data is None:
            validate_key(key)
            raise KeyError(key)
        try:
            return self.decode_frame(data, 0)
        except ExpiringFrameError:
            pass
        except CorruptValueError as error:
            if raised_by_handler(error):
                raise
        return self.decode_value(key, data)  # judges the deadline; its error names the key

    def write(self, key: str, data: bytes) -> None:
        with _write_lock.current:
            self._data[key] = data
            if self._all.due:
                self._all.take_expired(self.now_ms(), PER_WRITE)

    def write_until(self, key: str, data: bytes, deadline_ms: int) -> None:
        entry = start_of(deadline_ms), key
        with _write_lock.current:
            self._data[key] = data
            heappush(self._all.due, entry)
            self._all.take_expired(self.now_ms(), PER_WRITE)

    def delete(self, key: str) -> bool:
        with _write_lock.current:
            data = self._data.pop(key, None)
            if self._all.due:
                self._all.take_expired(self.now_ms(), PER_WRITE)
        return data is not None and (data[0] != DEADLINE or not is_expired(data, self.now_ms()))

    def len(self) -> int:
        if self._all.due:
            _take_all_expired(self._all, self.now_ms())
        with _write_lock.current:
            return self._all.count()

    def keys(self) -> Iterable[str]:
        if self._all.due:
            _take_all_expired(self._all, self.now_ms())
        with _write_lock.current:
            return self._all.keys()

    def close(self) -> None:
        # The data outlives the handle, as it does on every engine.
        pass

    def contains(self, key: str) -> bool:
        # `exists` and the key's validation by EncodedStorage, inlined.
        try:
            data = self._data.get(key)
        except TypeError as error:
            explain_failure(key, error)  # not hashable
            raise
        if data is None or not key:
            validate_key(key)
            return False
        return data[0] != DEADLINE or not is_expired(data, self.now_ms())

    def exists(self, key: str) -> bool:
        data = self._data.get(key)
        return data is not None and (data[0] != DEADLINE or not is_expired(data, self.now_ms()))

    def read_many(self, keys: list[str]) -> dict[str, bytes]:
        snapshot = dict(zip(keys, map(self._data.get, keys), strict=True))  # one call, so no write comes between
        return {key: data for key, data in snapshot.items() if data is not None}

    def write_many(self, items: Mapping[str, bytes]) -> None:
        with _write_lock.current:
            self._data.update(items)
            if self._all.due:
                self._all.take_expired(self.now_ms(), PER_WRITE)

    def write_many_until(self, items: Mapping[str, bytes], deadlines_ms: Mapping[str, int]) -> None:
        entries = [(start_of(deadline_ms), key) for key, deadline_ms in deadlines_ms.items()]
        with _write_lock.current:
            # Before the frames, because an entry without a frame does no harm; and again if a signal handler's call
            # removed such entries in between.
            drops = self._all.drops
            self._all.index(entries)
            try:
                self._data.update(items)
            finally:
                if self._all.drops != drops:
                    self._all.index(entries)
            self._all.take_expired(self.now_ms(), PER_WRITE)

    def delete_many(self, keys: list[str]) -> int:
        if self._all.due:
            _take_all_expired(self._all, self.now_ms())
        with _write_lock.current:
            existing = compress(keys, map(is_not, map(self._data.get, keys), repeat(None)))
            removed: list[str] = []
            self._removed[id(removed)] = removed
            # Yields nothing; advancing it records the existing keys.
            record: Iterator[Any] = filter(None, map(removed.extend, (existing,)))
            # One call of C: records the existing keys and marks them by None before any other code runs.
            self._data.update(chain(record, zip(removed, repeat(None), strict=False)))
            self._all.take_out_removed()
            return len(removed)

    def items(self) -> Iterator[tuple[str, Any]]:
        # Unordered: a sort would cost more than the reading. A copy of the dict creates no object per item, at which
        # Python 3.11 might collect garbage and so run a finalizer that writes.
        existing = ((key, data) for key, data in self._data.copy().items() if data is not None)
        while chunk := dict(islice(existing, _CHUNK_ITEMS)):
            yield from self.decode_items(chunk, chunk.values())

    def clear(self) -> None:
        with _write_lock.current:
            self._data.clear()

    def compare_and_write(self, key: str, old: bytes | None, new: bytes | None) -> bool:
        entry = (new[:START_BYTES], key) if new is not None and new[0] == DEADLINE else None
        with _write_lock.current:
            frames = self._data
            # Atomic: no call, so no signal handler, comes between the read and the change.
            current = frames[key] if key in frames else None  # noqa: SIM401 - `get` is a call
            if current != old:
                return False
            if new is not None:
                frames[key] = new
                if entry is not None:
                    heappush(self._all.due, entry)
            elif current is not None:
                del frames[key]
            if self._all.due:
                self._all.take_expired(self.now_ms(), PER_WRITE)
            return True

    def apply(
        self,
        changes: Mapping[str, bytes | None],
        expected: Mapping[str, bytes | None],
        ranges: Sequence[KeyRange] = (),
    ) -> bool:
        with _write_lock.current:
            return apply([(self._all, Commit(changes, expected, ranges))])

    def increment(self, key: str, by: float = 1, default: float = 0, ttl_s: float | None = None) -> int | float:
        key = validate_key(key)
        while True:
            with _write_lock.current:
                data = self._data.get(key)
                step = self.increment_frame(key, by, default, ttl_s, data)
                if step is None:
                    break
                # False only if a signal handler wrote the key meanwhile.
                if self.compare_and_write(key, data, step[0]):
                    number: int | float = step[1]
                    return number
        return super().increment(key, by, default, ttl_s)

    def reclaim(self, limit: int) -> int:
        with _write_lock.current:
            return self._all.take_expired(self.now_ms(), limit)

    @property
    def lock_scope(self) -> Hashable:
        return (id(self._data), "memory")


def _take_all_expired(data: Data, now_ms: int) -> None:
    """Remove every key whose deadline has come, in steps, so that other threads write in between."""
    while _take_some_expired(data, now_ms) == _PER_STEP:
        pass


def _take_some_expired(data: Data, now_ms: int) -> int:
    with _write_lock.current:
        return data.take_expired(now_ms, _PER_STEP)


def _count(data: Data) -> int:
    if data.due:
        _take_all_expired(data, deadlines.now_ms())
    with _write_lock.current:
        return data.count()


def _count_bytes(data: Data) -> int:
    """Return the bytes of the encoded values."""
    return sum(map(len, filter(None, data.frames.copy().values())))
