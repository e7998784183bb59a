"""The layer `cache`: keep recently read values in memory, for engines that are reached over a network."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from typing import Any, NamedTuple, TypeVar

from ..deadlines import deadline_of, is_expired
from ..encoded import EncodedStorage
from ..fork import ForkSafeLock, WeakRefs, run_in_child
from ..limits import explain_failure, validate_key
from ..options import Option
from ..verbs import Kind
from .layer import Layer, compile_verb, parameters_of

T = TypeVar("T")

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
# A time that expires nothing, for a value that was judged already.
_BEFORE_ALL = -1
# The approximate size of an entry besides its value and the characters of its key.
_ENTRY_BYTES = 300
# By the first parameter of a verb: how the keys that it writes are validated, and what they are. Others may write any.
_WRITTEN_KEYS = {
    "key": ("key = validate_key(key)\n", "[key]"),
    "changes": ("", "changes"),
    "keys": ("keys = [validate_key(key) for key in keys]\n", "keys"),
    "items": ("items = {{validate_key(key): value for key, value in items.items()}}\n", "items"),
}


class CacheLayer(Layer):
    """A layer that serves `get` and `contains` from memory and forwards everything else to the engine.

    It caches encoded bytes and decodes them at each read, so every read returns a new object. A missing key is not
    cached. Any thread may use it. Writes through this layer become visible as without it: at once, and a batch
    either in full or not at all.
    """

    keeps_values = True

    def __init__(self, engine: EncodedStorage, max_bytes: int, ttl_s: float) -> None:
        super().__init__(engine)
        self._engine = engine
        # A server's clock is asked once, when a value is read. This machine's, which may be set, is asked every time.
        asked: EncodedStorage = getattr(engine, "engine", engine)  # below a FrameDeadlines
        self._is_local = type(asked).now_ms is EncodedStorage.now_ms
        self._cached = _CachedValues(engine.lock_scope, max_bytes, ttl_s)

    def get(self, key: str) -> Any:
        try:
            data = self._cached.get(key)
            if data is None:
                data = self._read(key)
        except Exception as error:
            explain_failure(key, error)
            raise
        if data is None or self._has_expired(key, data):
            validate_key(key)
            raise KeyError(key)
        return self._engine.decode_value(key, data, _BEFORE_ALL)

    def _read(self, key: str) -> bytes | None:
        reading = self._cached.begin(key)
        data, left_s = None, math.inf
        try:
            data = self._engine.read(key)
            if data is not None and (deadline_ms := deadline_of(data)) is not None:
                left_s = (deadline_ms - self._engine.now_ms()) / 1000
        finally:
            self._cached.end(key, reading, data, left_s)
        return data if left_s > 0 else None

    def contains(self, key: str) -> bool:
        key = validate_key(key)
        data = self._cached.get(key)
        return (data is not None and not self._has_expired(key, data)) or self._engine.contains(key)

    def _has_expired(self, key: str, data: bytes) -> bool:
        return (
            self._is_local
            and data[:1] == b"T"
            and is_expired(data, self._engine.now_ms(), self._engine.key_crc_of(key))
        )

    @classmethod
    def generate(cls, name: str, verb: Callable[..., Any], kind: Kind) -> Callable[..., Any]:
        if kind in (Kind.READS, Kind.ITERATES):
            return super().generate(name, verb, kind)
        # `get_for_update` too: it may read a newer value than the cached one, and no later read may return the older.
        parameters = parameters_of(verb)
        validation, keys = _WRITTEN_KEYS.get(parameters[0].name if parameters else "", ("", "None"))
        body = f"{validation}return self._cached.write({keys}, self._inner.{{name}}, {{arguments}})"
        return compile_verb(name, verb, body, globals())


class _Reading:
    """A read of the engine in progress; its result is cached if no write of the key overlaps with it."""

    __slots__ = ("began_s",)

    def __init__(self) -> None:
        # The age of an entry counts from the start of its read: the value may be that old.
        self.began_s = time.monotonic()


class _Entry(NamedTuple):
    data: bytes
    until_s: float
    size: int


class _CachedValues:
    """A cache of bytes by key: at most `max_bytes`, none older than `ttl_s` or past its deadline.

    The least recently used are evicted first.

    A signal handler may read and write in the middle of any method, in the same thread and so inside the lock.
    Related fields are therefore changed without a call in between.
    """

    def __init__(self, scope: Hashable, max_bytes: int, ttl_s: float) -> None:
        self._scope = scope
        self._max_bytes, self._ttl_s = max_bytes, ttl_s
        self._lock = ForkSafeLock()
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._bytes = 0
        self._readings: dict[str, _Reading] = {}
        _all.add(self)

    def get(self, key: str) -> bytes | None:
        with self._lock.current:
            entry = self._entries.get(key)
            if entry is None:
                return None
            if time.monotonic() >= entry.until_s:
                self._drop(key)
                return None
            if key in self._entries:
                self._entries.move_to_end(key)
            return entry.data

    def begin(self, key: str) -> _Reading:
        with self._lock.current:
            reading = _Reading()
            writes = list(_writes.values())
            if not any(scope == self._scope and (keys is None or key in keys) for scope, keys in writes):
                self._readings[key] = reading
            return reading

    def end(self, key: str, reading: _Reading, data: bytes | None, left_s: float) -> None:
        """End `reading`, which read `data`; it expires `left_s` seconds after the reading began."""
        with self._lock.current:
            entry = None
            if data is not None and left_s > 0:
                entry = _Entry(data, reading.began_s + min(self._ttl_s, left_s), len(key) + len(data) + _ENTRY_BYTES)
            # False if a write began meanwhile, or a later read replaced this one.
            if key in self._readings and self._readings[key] is reading:
                del self._readings[key]
                if key in self._entries:
                    self._bytes -= self._entries[key].size
                    del self._entries[key]
                if entry is not None and entry.size <= self._max_bytes:
                    self._entries[key] = entry
                    self._bytes += entry.size
            if self._bytes > self._max_bytes:
                self._make_room()

    def _make_room(self) -> None:
        while self._bytes > self._max_bytes and self._entries:
            self._drop(next(iter(self._entries)))

    def write(self, keys: Iterable[str] | None, fn: Callable[..., T], /, *args: Any, **options: Any) -> T:
        """Return ``fn(*args, **options)``, which writes `keys` (None: any). While it runs, none of them is cached.

        They are evicted before it starts: a reader that got one new value of a batch from the engine must not find
        the old value of another key here. They stay uncached until it ends, because a concurrent read may still
        get an old value. All caches of this namespace in the process follow: a transaction of the store has its own.
        """
        names = None if keys is None else frozenset(keys)
        token = object()
        try:
            _writes[token] = self._scope, names
            self._forget_in_all(names)
            return fn(*args, **options)
        finally:
            # In one step: a handler may raise between two, and no later write would remove the rest.
            _writes.pop(token, None)

    def _forget_in_all(self, keys: frozenset[str] | None) -> None:
        # A separate function: on Python 3.12 an exception at the end of a loop can bypass the `finally` around it.
        for values in _all.live():
            if values._scope == self._scope:
                with values._lock.current:
                    values._forget(keys)

    def _forget(self, keys: frozenset[str] | None) -> None:
        if keys is None:
            self._readings.clear()
            empty: OrderedDict[str, _Entry] = OrderedDict()
            self._entries, self._bytes = empty, 0
        else:
            for key in keys:
                self._readings.pop(key, None)
                self._drop(key)

    def _drop(self, key: str) -> None:
        if key in self._entries:
            self._bytes -= self._entries[key].size
            del self._entries[key]


_all: WeakRefs[_CachedValues] = WeakRefs()
#: The scope and keys of each write in progress, in any cache; None means all keys.
_writes: dict[object, tuple[Hashable, frozenset[str] | None]] = {}


def _after_fork_in_child() -> None:
    # A thread of the parent may have been in the middle of a change or a write.
    _writes.clear()
    for values in _all.live():
        values._forget(None)


run_in_child(_after_fork_in_child)
