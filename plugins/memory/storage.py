"""The memory engine: one dict of encoded bytes per namespace.

Values are stored encoded, so a caller that changes its object later does not change the store, and every engine
refuses the same values.

A signal handler may raise or write in the middle of a write. CPython runs handlers only after a call, at a loop's jump
back and at the start of a function. So each atomic step is one call of C, or makes no call between its first read of
the dict and its change. The lock excludes other threads; its holder may take it again.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from heapq import heappop, heappush
from itertools import chain, compress, islice, repeat
from operator import eq, gt, is_not, le
from typing import Any, ClassVar

import hutch
from hutch import Commit, CorruptValueError, EncodedStorage, KeyRange, Option, StoragePluginBase, deadlines
from hutch.deadlines import DEADLINE, is_expired
from hutch.fork import ForkSafeLock
from hutch.handlers import raised_by_handler
from hutch.limits import explain_failure, validate_key


class _Data:
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
        frames, last, taken = self.frames, _start(now_ms), 0
        while taken < limit:
            # All conditions are here, because a handler may run between those of `while` and the first statement.
            entry = self.due[0] if self.due else _LAST_ENTRY
            start, key = entry
            if start > last:
                break
            frame = frames[key] if key in frames else None  # noqa: SIM401 - `get` is a call
            is_due = frame is not None and frame[:_START_BYTES] == start
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
            if frame is not None and frame[:_START_BYTES] == start:
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


def _start(deadline_ms: int) -> bytes:
    """Return the start of a frame with this deadline. Starts are in the order of their deadlines."""
    return b"T%b" % deadline_ms.to_bytes(8, "big")


_Root = dict[str, _Data]
# The length of the part of a frame that holds the deadline.
_START_BYTES = 9
# How many keys that have expired a write removes, and a step of the verbs that remove all of them.
_PER_WRITE, _PER_STEP = 2, 1000
# An entry after all others, which never comes due.
_LAST_ENTRY = b"U", ""
# How many entries without a frame the index may have at any size.
_STALE_ENTRIES = 64

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
        return MemoryStorage(self, namespace, self._root.setdefault(namespace, _Data()))

    def namespaces(self) -> list[str]:
        return [namespace for namespace, data in self._root.copy().items() if _count(data)]

    def stats(self) -> dict[str, object]:
        return {"bytes": sum(map(_count_bytes, self._root.copy().values())), "version": hutch.__version__}

    def stored_namespaces(self) -> list[str]:
        return [namespace for namespace, data in self._root.copy().items() if data.frames]

    def apply(self, commits: Mapping[str, Commit]) -> bool:
        parts = [(self._root.setdefault(name, _Data()), commit) for name, commit in commits.items()]
        with _write_lock.current:
            return _apply(parts)

    def compact(self) -> None:
        """Do nothing: the engine has no files."""

    def drop(self, namespace: str) -> None:
        data = self._root.get(namespace)
        if data is not None:
            # Clear in place: another store may hold a handle on it.
            with _write_lock.current:
                data.frames.clear()


class MemoryStorage(EncodedStorage):
    """One namespace. Reading a key takes no lock, because a single dict operation is atomic in CPython.

    So a batch must change the dict in one operation. Code that reads the whole dict takes the lock.
    """

    checksum_covers_key = False

    def __init__(self, plugin: MemoryPlugin, namespace: str, data: _Data) -> None:
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
        except CorruptValueError as error:
            if raised_by_handler(error):
                raise
        return self.decode_value(key, data)  # its error names the key

    def write(self, key: str, data: bytes) -> None:
        with _write_lock.current:
            self._data[key] = data
            if self._all.due:
                self._all.take_expired(self.now_ms(), _PER_WRITE)

    def write_until(self, key: str, data: bytes, deadline_ms: int) -> None:
        entry = _start(deadline_ms), key
        with _write_lock.current:
            self._data[key] = data
            heappush(self._all.due, entry)
            self._all.take_expired(self.now_ms(), _PER_WRITE)

    def delete(self, key: str) -> bool:
        with _write_lock.current:
            data = self._data.pop(key, None)
            if self._all.due:
                self._all.take_expired(self.now_ms(), _PER_WRITE)
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
                self._all.take_expired(self.now_ms(), _PER_WRITE)

    def write_many_until(self, items: Mapping[str, bytes], deadlines_ms: Mapping[str, int]) -> None:
        entries = [(_start(deadline_ms), key) for key, deadline_ms in deadlines_ms.items()]
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
            self._all.take_expired(self.now_ms(), _PER_WRITE)

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
        entry = (new[:_START_BYTES], key) if new is not None and new[0] == DEADLINE else None
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
                self._all.take_expired(self.now_ms(), _PER_WRITE)
            return True

    def apply(
        self,
        changes: Mapping[str, bytes | None],
        expected: Mapping[str, bytes | None],
        ranges: Sequence[KeyRange] = (),
    ) -> bool:
        with _write_lock.current:
            return _apply([(self._all, Commit(changes, expected, ranges))])

    def reclaim(self, limit: int) -> int:
        with _write_lock.current:
            return self._all.take_expired(self.now_ms(), limit)

    @property
    def lock_scope(self) -> Hashable:
        return (id(self._data), "memory")


def _apply(parts: list[tuple[_Data, Commit]]) -> bool:
    """Apply each commit to its namespace if all expectations hold; return whether. The caller holds the lock."""
    # Read lazily by the one call of C below, which checks everything and then changes every dict: no other code, so no
    # reader of two namespaces and no signal handler, runs within it. It creates no object at which Python 3.11 might
    # collect garbage.
    checks = chain.from_iterable([check for data, commit in parts for check in _checks(data.frames, commit)])
    removed = [[key for key, frame in commit.changes.items() if frame is None] for _, commit in parts]
    changing = map(dict.update, [data.frames for data, _ in parts], [dict(commit.changes) for _, commit in parts])
    holds = map(all, (checks,))
    changed: list[None] = []
    for (data, _), keys in zip(parts, removed, strict=True):
        if keys:
            data.removed[id(keys)] = keys
    # Before the frames: an entry without a frame does no harm.
    for data, commit in parts:
        frames = [(frame, key) for key, frame in commit.changes.items() if frame is not None and frame[0] == DEADLINE]
        data.index([(frame[:_START_BYTES], key) for frame, key in frames])
    changed += chain.from_iterable(compress((changing,), holds))
    for data, _ in parts:
        if data.removed:
            data.take_out_removed()
        if data.due:
            data.take_expired(deadlines.now_ms(), _PER_WRITE)
    return bool(changed)


def _checks(frames: dict[str, bytes | None], commit: Commit) -> Iterator[Iterator[bool]]:
    """Yield iterators that are all True if the expectations of `commit` hold; each is read lazily."""
    yield map(eq, map(frames.get, list(commit.expected)), list(commit.expected.values()))
    for start, stop, keys in commit.ranges:
        # All of `keys` exist, and as many keys exist in the range.
        yield map(is_not, map(frames.get, keys), repeat(None))
        existing: Iterator[str] = filter(frames.get, chain.from_iterable(map(dict.keys, (frames,))))
        if start is not None:
            existing = filter(partial(le, start), existing)
        if stop is not None:
            existing = filter(partial(gt, stop), existing)
        count = map(sum, (map(is_not, existing, repeat(None)),))
        yield map(eq, count, (len(keys),))


def _take_all_expired(data: _Data, now_ms: int) -> None:
    """Remove every key whose deadline has come, in steps, so that other threads write in between."""
    while _take_some_expired(data, now_ms) == _PER_STEP:
        pass


def _take_some_expired(data: _Data, now_ms: int) -> int:
    with _write_lock.current:
        return data.take_expired(now_ms, _PER_STEP)


def _count(data: _Data) -> int:
    if data.due:
        _take_all_expired(data, deadlines.now_ms())
    with _write_lock.current:
        return data.count()


def _count_bytes(data: _Data) -> int:
    """Return the bytes of the encoded values."""
    return sum(map(len, filter(None, data.frames.copy().values())))
