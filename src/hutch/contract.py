"""The contract of a storage plugin: a factory (stage 1) and what its `open` returns (stage 2).

An engine that holds Python objects subclasses `StorageBase` and writes six verbs; an engine that holds
bytes subclasses `hutch.EncodedStorage` and writes the same six on bytes. Everything else on `StorageBase`
has a correct default made of the six, which an engine overrides where it can do better.
"""

from __future__ import annotations

import copy
import enum
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, ClassVar, Final, Literal, Protocol, Self

from .errors import CapabilityError, ConflictError
from .handlers import is_missing, passes_through
from .keylocks import WAIT_S, run_swap
from .limits import PLAIN_TYPES, check_result
from .options import Option, read_options
from .record import Record


class Missing(enum.Enum):
    """The type of `MISSING`, so that a missing value can be told from a stored None."""

    MISSING = "MISSING"

    def __repr__(self) -> str:
        return "hutch.MISSING"


#: Stands for "no value": in `compare_and_set` and as the result of a function given to `modify`.
MISSING: Final = Missing.MISSING

# How long `modify` goes on retrying; a writer that cannot get through in this time has met a bug, not a race.
_MODIFY_PATIENCE_S = 60.0
_FIRST_BACKOFF_S = 0.0002
_LONGEST_BACKOFF_S = 0.05


class Codec(Protocol):
    """Turns one value into bytes and back. `hutch.codec` has the implementations."""

    def encode(self, value: object, /) -> bytes:
        """`value` as bytes. Raises ValueTypeError if reading it back would not give the same value."""

    def decode(self, data: bytes, /) -> Any:
        """The value, fresh. Raises CorruptValueError if `data` is not what `encode` made."""


class Finding(Record):
    """Something that is wrong with what is stored, found by `hutch.check_data`. It never holds a value."""

    #: `structure`: the engine's own files. `value`: unreadable. `key`: none that hutch writes. `count`: `len` is wrong.
    #: `orphan`: data that no namespace has. `index`: what the engine keeps beside the data does not fit it.
    kind: Literal["structure", "value", "key", "count", "orphan", "index"]
    #: What is wrong, for people.
    told: str
    namespace: str | None = None
    key: str | None = None
    #: Whether it was repaired, or moved out of the way.
    fixed: bool = False

    # Written out for those who write plugins: editors and the reference show it.
    def __init__(
        self,
        kind: Literal["structure", "value", "key", "count", "orphan", "index"],
        told: str,
        namespace: str | None = None,
        key: str | None = None,
        fixed: bool = False,
    ) -> None:
        super().__init__(kind, told, namespace, key, fixed)


class StorageBase(ABC):
    """One open namespace. Its life is guarded by whoever holds it (`StoreMixin`): a plugin never tracks it."""

    #: What the engine promises beyond the six verbs; see docs/reference. Declared, then held by the kit.
    capabilities: frozenset[str] = frozenset()

    #: Whether every verb refuses a key outside the limits by itself. Where not, the mapping above does.
    checks_keys = False

    #: How many seconds `modify` and `mutable` wait for a key that another thread of this process holds.
    wait_s: float = WAIT_S

    # --- the six verbs ---

    @abstractmethod
    def set(self, key: str, value: Any) -> None:
        """Replace the value of `key` atomically: a reader or a crash sees the old value or the new one."""

    @abstractmethod
    def get(self, key: str) -> Any:
        """The value of `key`, fresh: changing it changes nothing stored. Raises KeyError when missing."""

    @abstractmethod
    def remove(self, key: str) -> None:
        """Remove `key`. Raises KeyError when missing."""

    @abstractmethod
    def len(self) -> int:
        """The number of live keys."""

    @abstractmethod
    def keys(self) -> Iterable[str]:
        """Each live key once. Keys set or removed during the iteration may or may not appear."""

    @abstractmethod
    def close(self) -> None:
        """Make everything set as durable as configured, and let go of all resources."""

    # --- built on the six; override what the engine does better ---

    def contains(self, key: str) -> bool:
        """Whether `key` has a value."""
        try:
            self.get(key)
        except KeyError as error:
            if not is_missing(error, key):
                raise
            return False
        return True

    def get_many(self, keys: Iterable[str]) -> dict[str, Any]:
        """The values of those `keys` that have one, in the order given."""
        found = {}
        for key in keys:
            try:
                found[key] = self.get(key)
            except KeyError as error:
                if not is_missing(error, key):
                    raise
        return found

    def set_many(self, items: Mapping[str, Any]) -> None:
        """Set every item; all or none where the engine declares `atomic-batch`, one by one otherwise."""
        for key, value in items.items():
            self.set(key, value)

    def remove_many(self, keys: Iterable[str]) -> int:
        """Remove those `keys` that are there; how many that were. Atomic as `set_many` is."""
        removed = 0
        for key in dict.fromkeys(keys):
            try:
                self.remove(key)
            except KeyError as error:
                if not is_missing(error, key):
                    raise
            else:
                removed += 1
        return removed

    def items(self) -> Iterator[tuple[str, Any]]:
        """Each live key once, with its value, under the same terms as `keys`."""
        for key in self.keys():
            try:
                value = self.get(key)
            except KeyError as error:
                if not is_missing(error, key):
                    raise
            else:
                yield key, value

    def scan(
        self, prefix: str = "", start: str | None = None, stop: str | None = None, reverse: bool = False
    ) -> Iterator[tuple[str, Any]]:
        """Items in key order (by code point) whose key has `prefix` and lies in ``start <= key < stop``."""
        for key in self.scan_keys(prefix, start, stop, reverse):
            try:
                value = self.get(key)
            except KeyError as error:
                if not is_missing(error, key):
                    raise
            else:
                yield key, value

    def scan_keys(
        self, prefix: str = "", start: str | None = None, stop: str | None = None, reverse: bool = False
    ) -> Iterator[str]:
        """The keys that `scan` would give, without reading a value."""
        yield from sorted(
            (
                key
                for key in self.keys()
                if key.startswith(prefix) and (start is None or key >= start) and (stop is None or key < stop)
            ),
            reverse=reverse,
        )

    def clear(self) -> None:
        """Remove every key; in one step where the engine declares `atomic-batch`."""
        self.remove_many(list(self.keys()))

    # --- read-modify-write: two primitives, and what is made of them ---

    def get_for_update(self, key: str) -> tuple[Any, object]:
        """The value of `key` (MISSING if there is none) and a token that `set_if_unchanged` takes."""
        try:
            value = self.get(key)
        except KeyError as error:
            if not is_missing(error, key):
                raise
            return MISSING, MISSING
        # The copy is the caller's: a storage may hand out the object that it holds, as Errbot's memory does.
        return copy.deepcopy(value), value

    def set_if_unchanged(self, key: str, token: object, value: Any) -> bool:
        """Set `key` to `value` (MISSING removes it) if nobody wrote it since `token` was taken; whether it did.

        As atomic as `atomic-modify` says. This default holds only against threads of this process that use
        the same two primitives.
        """
        return run_swap(self.lock_scope, key, self._set_if_unchanged, key, token, value)

    def _set_if_unchanged(self, key: str, token: object, value: Any) -> bool:
        try:
            current = self.get(key)
        except KeyError as error:
            if not is_missing(error, key):
                raise
            current = MISSING
        if not _same(current, token):
            return False
        if value is not MISSING:
            self.set(key, value)
        elif current is not MISSING:
            self.remove(key)
        return True

    def compare_and_set(self, key: str, expected: Any, value: Any) -> bool:
        """Set `key` to `value` if it now equals `expected`, in value and type; whether it did.

        MISSING as `expected` means "only if there is no such key", as `value` "remove it".
        """
        while True:
            current, token = self.get_for_update(key)
            if not _same(current, expected):
                return False
            if self.set_if_unchanged(key, token, value):
                return True

    def modify(self, key: str, fn: Callable[[Any], Any], default: Any = MISSING) -> Any:
        """Replace the value of `key` by ``fn(value)`` and return the new value; a lost race is retried.

        `fn` gets a fresh value each time it is called, and may be called more than once. If there is no such
        key it gets a copy of `default`; without one, KeyError. If `fn` returns MISSING the key is removed.
        Raises ConflictError after 60 s of lost races, TypeError if `fn` is async. As atomic as `atomic-modify` says.
        """
        backoff_s = _FIRST_BACKOFF_S
        deadline = time.monotonic() + _MODIFY_PATIENCE_S
        while True:
            value, token = self.get_for_update(key)
            if value is MISSING:
                if default is MISSING:
                    raise KeyError(key)
                value = copy.deepcopy(default)
            value = fn(value)
            if type(value) not in PLAIN_TYPES:
                check_result(value, fn, key)
            if self.set_if_unchanged(key, token, value):
                return value
            if time.monotonic() > deadline:
                raise ConflictError(
                    f"key {key!r} was changed by others for {_MODIFY_PATIENCE_S:.0f} s on end; try again"
                )
            # Jitter: two writers that lost to each other must not meet again.
            time.sleep(backoff_s * os.urandom(1)[0] / 255)
            backoff_s = min(backoff_s * 2, _LONGEST_BACKOFF_S)

    @property
    def lock_scope(self) -> Hashable:
        """Equal for every storage of this process that holds the same data; `mutable` locks keys within it."""
        return id(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class StoragePluginBase(ABC):
    """Stage 1: built once from the config, opens namespaces.

    `config` may be anything with a `STORAGE_CONFIG` attribute (an Errbot config), a mapping with that key, or
    a plain mapping of options. Raises ConfigError if `OPTIONS` is declared and an option does not fit it.
    """

    #: The options the engine takes. Declared, they are checked, converted and filled with their defaults.
    OPTIONS: ClassVar[Mapping[str, Option] | None] = None

    #: What to write instead of options that the engine does not take, but that users of its driver may expect.
    OPTION_HINTS: ClassVar[Mapping[str, str]] = {}

    capabilities: frozenset[str] = frozenset()

    def __init__(self, config: object = None) -> None:
        self._config = config
        self._storage_config: dict[str, Any] = read_options(config, self.OPTIONS, self.name, hints=self.OPTION_HINTS)

    @property
    def name(self) -> str:
        """The plugin's name, as its descriptor has it; the class's name where there is no descriptor."""
        return str(getattr(self._config, "plugin_name", None) or type(self).__name__)

    def codec_for(self, namespace: str) -> Codec | None:
        """The codec configured for `namespace`; None means hutch's default."""
        choose: Callable[[str], Codec] | None = getattr(self._config, "codec_for", None)
        return choose(namespace) if callable(choose) else None

    @abstractmethod
    def open(self, namespace: str) -> StorageBase:
        """Open `namespace`, releasing everything if that fails. Creates nothing where reading can do without."""

    def namespaces(self) -> Iterable[str]:
        """The names of the namespaces that hold data. Raises CapabilityError where the engine cannot tell."""
        raise CapabilityError(f"the {self.name} engine cannot list its namespaces")

    def drop(self, namespace: str) -> None:
        """Remove `namespace` and all its data; nothing happens if there is none. Atomic as `clear` is."""
        with self.open(namespace) as storage:
            storage.clear()

    def stats(self) -> Mapping[str, object]:
        """Figures for `hutch stats`, by name: sizes, versions. Never a secret."""
        return {}

    @classmethod
    def check_files(cls, options: Mapping[str, Any]) -> Iterable[Finding]:
        """What is wrong with the files that `options` lead to, for an engine that damaged files could make crash.

        `hutch.check_data` asks before it builds the factory, and does not build it if anything is found.
        """
        return ()

    def check(self, fix: bool = False) -> Iterable[Finding]:
        """What is wrong beyond single values: counters, namespaces without a name, indexes. Changes nothing.

        With `fix` it is repaired, so that no data is lost, in one transaction where the engine has them. It runs
        while others read and write, and takes nothing that they do for a fault.
        """
        return ()

    def close(self) -> None:  # noqa: B027 - optional by contract
        """Let go of what the namespaces share."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _same(a: Any, b: Any) -> bool:
    """Equal in value and type, within lists, tuples and dicts too. Where `==` says no or cannot tell (NaN, arrays),
    equal pickles do."""
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    try:
        if isinstance(a, list | tuple):
            if len(a) == len(b) and all(map(_same, a, b)):
                return True
        elif isinstance(a, dict):
            if a.keys() == b.keys() and all(_same(item, b[key]) for key, item in a.items()):
                return True
        elif a == b:
            return True
    except Exception as error:  # arrays, what refers to itself, and what was not made to be compared
        if passes_through(error):
            raise
    try:
        import pickle

        return pickle.dumps(a) == pickle.dumps(b)
    except Exception as error:  # a class may refuse to be pickled in any way
        if passes_through(error):
            raise
        return False
