"""The layer `cache`: values read a moment ago, for engines that are reached over a network."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from ..base import MISSING
from ..encoded import EncodedStorage
from ..limits import check_key
from ..options import Option
from .layer import Layer

OPTIONS = {
    "max_bytes": Option(
        int, default=64 << 20, minimum=0, help="how much one open namespace keeps in memory; 0 switches the layer off"
    ),
    "ttl_s": Option(
        float,
        default=1.0,
        minimum=0,
        help="how long another process's write may stay unseen; 0 switches the layer off, inf is for a sole writer",
    ),
}
# What an entry takes besides its value and the characters of its key, about.
_ENTRY_BYTES = 300


class CacheLayer(Layer):
    """Serves `get` and `contains` from memory. All else goes to the engine, and what writes forgets what it wrote.

    Encoded bytes are kept and decoded at each read, so a value is as fresh an object as without the layer. That a
    key is missing is not kept. Any thread may use it; a write that returned is seen by every later read through
    this layer, also by a read that began before the write and ended after it.
    """

    def __init__(self, engine: EncodedStorage, max_bytes: int, ttl_s: float) -> None:
        super().__init__(engine)
        self._engine = engine
        self._kept = _Kept(max_bytes, ttl_s)

    def get(self, key: str) -> Any:
        try:
            data = self._kept.get(key)
            if data is None:
                data = self._read(key)
        except Exception:
            check_key(key)
            raise
        if data is None:
            check_key(key)
            raise KeyError(key)
        return self._engine._decoded(key, data)

    def _read(self, key: str) -> bytes | None:
        reading = self._kept.begin(key)
        data = None
        try:
            data = self._engine.read(key)
        finally:
            self._kept.end(key, reading, data)
        return data

    def contains(self, key: str) -> bool:
        key = check_key(key)
        return self._kept.get(key) is not None or self._engine.contains(key)

    # A write that failed may have happened, so it is forgotten in any case; and only when it is over, for a read
    # that runs beside it may still find the old value.

    def set(self, key: str, value: Any) -> None:
        key = check_key(key)
        try:
            self._engine.set(key, value)
        finally:
            self._kept.forget([key])

    def remove(self, key: str) -> None:
        key = check_key(key)
        try:
            self._engine.remove(key)
        finally:
            self._kept.forget([key])

    def set_many(self, items: Mapping[str, Any]) -> None:
        try:
            self._engine.set_many(items)
        finally:
            self._kept.forget(items)

    def remove_many(self, keys: Iterable[str]) -> int:
        checked = [check_key(key) for key in keys]
        try:
            return self._engine.remove_many(checked)
        finally:
            self._kept.forget(checked)

    def clear(self) -> None:
        try:
            self._engine.clear()
        finally:
            self._kept.forget_all()

    def get_for_update(self, key: str) -> tuple[Any, object]:
        key = check_key(key)
        try:
            return self._engine.get_for_update(key)
        finally:
            # It may be newer than what is kept, and no read may go back behind it.
            self._kept.forget([key])

    def set_if_unchanged(self, key: str, token: object, value: Any) -> bool:
        key = check_key(key)
        try:
            return self._engine.set_if_unchanged(key, token, value)
        finally:
            self._kept.forget([key])

    def compare_and_set(self, key: str, expected: Any, value: Any) -> bool:
        key = check_key(key)
        try:
            return self._engine.compare_and_set(key, expected, value)
        finally:
            self._kept.forget([key])

    def modify(self, key: str, fn: Callable[[Any], Any], default: Any = MISSING) -> Any:
        key = check_key(key)
        try:
            return self._engine.modify(key, fn, default)
        finally:
            self._kept.forget([key])

    def close(self) -> None:
        self._kept.forget_all()
        super().close()


class _Reading:
    """A read of the engine that is under way; what it finds is kept if nobody wrote the key meanwhile."""

    __slots__ = ("began_s",)

    def __init__(self) -> None:
        # An entry is as old as its read at most, so its age counts from the beginning of that.
        self.began_s = time.monotonic()


class _Entry(NamedTuple):
    data: bytes
    began_s: float


class _Kept:
    """Bytes by key: at most `max_bytes`, none older than `ttl_s`, the least recently used go first."""

    def __init__(self, max_bytes: int, ttl_s: float) -> None:
        self._max_bytes, self._ttl_s = max_bytes, ttl_s
        self._lock = threading.Lock()
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._bytes = 0
        self._readings: dict[str, _Reading] = {}
        _all.add(self)

    def get(self, key: str) -> bytes | None:
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                return None
            if time.monotonic() - entry.began_s >= self._ttl_s:
                self._drop(key)
                return None
            self._entries.move_to_end(key)
            return entry.data

    def begin(self, key: str) -> _Reading:
        with self._lock:
            reading = self._readings[key] = _Reading()
            return reading

    def end(self, key: str, reading: _Reading, data: bytes | None) -> None:
        with self._lock:
            if self._readings.get(key) is not reading:
                return  # written meanwhile, or a later read has taken over
            del self._readings[key]
            if data is None or _size(key, data) > self._max_bytes:
                return
            self._drop(key)
            self._entries[key] = _Entry(data, reading.began_s)
            self._bytes += _size(key, data)
            while self._bytes > self._max_bytes:
                self._drop(next(iter(self._entries)))

    def forget(self, keys: Iterable[str]) -> None:
        with self._lock:
            for key in keys:
                self._readings.pop(key, None)
                self._drop(key)

    def forget_all(self) -> None:
        with self._lock:
            self._readings.clear()
            self._entries.clear()
            self._bytes = 0

    def after_fork_in_child(self) -> None:
        # A thread of the parent may have held the lock, half way through a change.
        self._lock = threading.Lock()
        self.forget_all()

    def _drop(self, key: str) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._bytes -= _size(key, entry.data)


def _size(key: str, data: bytes) -> int:
    return len(key) + len(data) + _ENTRY_BYTES


_all: weakref.WeakSet[_Kept] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for kept in list(_all):
        kept.after_fork_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
