"""StorageBase: the storage that a factory's `open` returns (stage 2).

An engine that holds Python objects subclasses `StorageBase` and implements six verbs. An engine that holds
bytes subclasses `hutch.EncodedStorage` and implements the same six on bytes. Every other method of `StorageBase`
has a correct default built on the six; an engine overrides it where it can do better.
"""

from __future__ import annotations

import copy
import enum
import math
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from ..deadlines import no_ttl, validate_ttl
from ..errors import CapabilityError, ConflictError
from ..handlers import is_missing
from ..keylocks import WAIT_S, run_compare_and_write
from ..limits import PLAIN_TYPES, add_number, check_result
from .equality import is_same

if TYPE_CHECKING:
    from .commit import KeyRange


class Missing(enum.Enum):
    """The type of `MISSING`, which distinguishes a missing value from a stored None."""

    MISSING = "MISSING"

    def __repr__(self) -> str:
        return "hutch.MISSING"


#: Means "no value": in `compare_and_set`, and as the result of a function passed to `modify`.
MISSING: Final = Missing.MISSING

# How long `modify` retries. A writer that loses every race for this long has met a bug, not contention.
_MODIFY_PATIENCE_S = 60.0
_FIRST_BACKOFF_S = 0.0002
_LONGEST_BACKOFF_S = 0.05


class StorageBase(ABC):
    """One open namespace. A plugin never tracks whether it is open: the mapping that holds it (`StoreMixin`) does."""

    #: Declared promises beyond the six verbs, tested by the conformance kit; see docs/reference.
    capabilities: frozenset[str] = frozenset()

    #: Whether every verb itself refuses a key outside the limits. If not, the mapping above validates keys.
    validates_keys = False

    #: How many seconds `modify` and `mutable` wait for a key that another thread of this process holds.
    wait_s: float = WAIT_S

    #: How many seconds a value lives that is set without `ttl_s` (`TTL_S` of the config); None if it never expires.
    default_ttl_s: float | None = None

    # --- the six verbs ---

    @abstractmethod
    def set(self, key: str, value: Any) -> None:
        """Set the value of `key` atomically: a reader, or a process after a crash, sees the old value or the new."""

    @abstractmethod
    def get(self, key: str) -> Any:
        """Return the value of `key` as a new object: changing it changes nothing stored. Raises KeyError if missing."""

    @abstractmethod
    def remove(self, key: str) -> None:
        """Remove `key`. Raises KeyError if missing."""

    @abstractmethod
    def len(self) -> int:
        """Return the number of live keys."""

    @abstractmethod
    def keys(self) -> Iterable[str]:
        """Return each live key once. Keys set or removed during the iteration may or may not appear."""

    @abstractmethod
    def close(self) -> None:
        """Make everything set as durable as configured, and release all resources."""

    # --- built on the six; override what the engine does better ---

    def contains(self, key: str) -> bool:
        """Return whether `key` has a value."""
        try:
            self.get(key)
        except KeyError as error:
            if not is_missing(error, key):
                raise
            return False
        return True

    def get_many(self, keys: Iterable[str]) -> dict[str, Any]:
        """Return the values of `keys` by key, in the order given; missing keys are left out."""
        values = {}
        for key in keys:
            try:
                values[key] = self.get(key)
            except KeyError as error:
                if not is_missing(error, key):
                    raise
        return values

    def set_many(self, items: Mapping[str, Any]) -> None:
        """Set every item: all or none if the engine declares `atomic-batch`, one by one otherwise."""
        for key, value in items.items():
            self.set(key, value)

    def remove_many(self, keys: Iterable[str]) -> int:
        """Remove `keys` and return how many existed; missing keys are skipped. As atomic as `set_many`."""
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
        """Yield each key that is live at the start once, with its value if it is still live.

        Keys set during the iteration may or may not appear, but the iteration ends although a loop over it sets some.
        """
        # The list keeps a loop that adds keys from going on for ever.
        return self._read_each(lambda: list(self.keys()))

    def scan(
        self, prefix: str = "", start: str | None = None, stop: str | None = None, reverse: bool = False
    ) -> Iterator[tuple[str, Any]]:
        """Yield items in key order (by code point) whose key has `prefix` and lies in ``start <= key < stop``."""
        return self._read_each(self.scan_keys, prefix, start, stop, reverse)

    def _read_each(self, list_keys: Callable[..., Iterable[str]], *args: object) -> Iterator[tuple[str, Any]]:
        for key in list_keys(*args):
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
        """Yield the keys that `scan` would yield, without reading a value."""
        yield from sorted(
            (
                key
                for key in self.keys()
                if key.startswith(prefix) and (start is None or key >= start) and (stop is None or key < stop)
            ),
            reverse=reverse,
        )

    def clear(self) -> None:
        """Remove every key, in one step if the engine declares `atomic-batch`."""
        self.remove_many(list(self.keys()))

    # --- read-modify-write: two primitives, and the verbs built on them ---

    def get_for_update(self, key: str) -> tuple[Any, object]:
        """Return the value of `key` (MISSING if it has none) and a token to pass to `compare_and_swap`."""
        try:
            value = self.get(key)
        except KeyError as error:
            if not is_missing(error, key):
                raise
            return MISSING, MISSING
        # Copied because a storage may return the very object it stores, as Errbot's memory storage does.
        return copy.deepcopy(value), value

    def compare_and_swap(self, key: str, token: object, value: Any, ttl_s: float | None = None) -> bool:
        """Set `key` to `value` (MISSING removes it) if it is unchanged since `token` was taken; return whether it did.

        A deadline of the old value stays, unless `ttl_s` gives another (`math.inf`: none). Atomic within the scope that
        `atomic-modify` declares. This default is atomic only against threads of this process that use the same two
        primitives.
        """
        if ttl_s is not None and validate_ttl(ttl_s) != math.inf:
            raise no_ttl()
        return run_compare_and_write(self.lock_scope, key, self._compare_and_swap, key, token, value)

    def _compare_and_swap(self, key: str, token: object, value: Any) -> bool:
        try:
            current = self.get(key)
        except KeyError as error:
            if not is_missing(error, key):
                raise
            current = MISSING
        if not is_same(current, token):
            return False
        if value is not MISSING:
            self.set(key, value)
        elif current is not MISSING:
            self.remove(key)
        return True

    def compare_and_set(self, key: str, expected: Any, value: Any, ttl_s: float | None = None) -> bool:
        """Set `key` to `value` if it equals `expected` in value and type; return whether it did.

        MISSING as `expected` means "only if the key is missing"; as `value`, "remove the key". The value expires after
        `ttl_s` seconds; an earlier deadline does not stay.
        """
        has_ttl = "ttl" in self.capabilities
        if ttl_s is not None and validate_ttl(ttl_s) != math.inf and not has_ttl:
            raise no_ttl()
        while True:
            current, token = self.get_for_update(key)
            if not is_same(current, expected):
                return False
            if (
                self.compare_and_swap(key, token, value, math.inf if ttl_s is None else ttl_s)
                if has_ttl
                else self.compare_and_swap(key, token, value)
            ):
                return True

    def modify(self, key: str, fn: Callable[[Any], Any], default: Any = MISSING, ttl_s: float | None = None) -> Any:
        """Set `key` to ``fn(value)`` and return the new value; a lost race is retried.

        The deadline stays. If the key is created, the value expires after `ttl_s` seconds.
        `fn` may be called more than once, each time with a freshly read value. For a missing key it gets a copy of
        `default`; without a default, KeyError is raised. If `fn` returns MISSING, the key is removed. Raises
        ConflictError after 60 s of lost races, TypeError if `fn` is async. Atomic as `atomic-modify` declares.
        """
        backoff_s = _FIRST_BACKOFF_S
        deadline = time.monotonic() + _MODIFY_PATIENCE_S
        if ttl_s is not None and validate_ttl(ttl_s) != math.inf and "ttl" not in self.capabilities:
            raise no_ttl()
        while True:
            value, token = self.get_for_update(key)
            is_new = value is MISSING
            if is_new:
                if default is MISSING:
                    raise KeyError(key)
                value = copy.deepcopy(default)
            value = fn(value)
            if type(value) not in PLAIN_TYPES:
                check_result(value, fn, key)
            if (
                self.compare_and_swap(key, token, value, ttl_s)
                if is_new and ttl_s is not None
                else self.compare_and_swap(key, token, value)
            ):
                return value
            if time.monotonic() > deadline:
                raise ConflictError(f"key {key!r} was changed by others for {_MODIFY_PATIENCE_S:.0f} s; try again")
            # Random jitter keeps two writers from retrying in step.
            time.sleep(backoff_s * os.urandom(1)[0] / 255)
            backoff_s = min(backoff_s * 2, _LONGEST_BACKOFF_S)

    def increment(self, key: str, by: float = 1, default: float = 0, ttl_s: float | None = None) -> int | float:
        """Add `by` to the number of `key` and return the sum; a missing key starts from `default`.

        As atomic as `modify`. Numbers are ints and floats, of exactly these types. Raises TypeError, and writes
        nothing, if the value is not a number. The deadline stays. If the key is created, the value expires after
        `ttl_s` seconds.
        """
        options = () if ttl_s is None else (ttl_s,)
        result: int | float = self.modify(key, partial(add_number, key, by), default, *options)
        return result

    # --- transactions ---

    def apply(
        self,
        changes: Mapping[str, bytes | None],
        expected: Mapping[str, bytes | None],
        ranges: Sequence[KeyRange] = (),
    ) -> bool:
        """Write the frames `changes` if everything `expected` holds, in one step, and return whether it did.

        A frame of None means a missing key. Each of `ranges` must hold exactly its keys. A reader, or a process after a
        crash, sees all changes or none. Without changes, only checks. Raises CapabilityError unless an engine of bytes
        that declares `atomic-batch` overrides it.
        """
        raise CapabilityError("this engine has no transactions, whose changes happen all or not at all")

    @property
    def unlayered(self) -> StorageBase:
        """The storage under all layers."""
        return self

    @property
    def has_apply(self) -> bool:
        """Whether the engine overrides `apply`."""
        return type(self).apply is not StorageBase.apply

    @property
    def write_refusal(self) -> Exception | None:
        """The error of every write, if a layer makes the namespace read-only."""
        return None

    def _around(self, leaf: StorageBase) -> StorageBase:
        """Return `leaf` in the layers of this storage, which share their state with it."""
        return leaf

    # --- time to live: a storage that declares `ttl` overrides all of them; EncodedStorage does ---

    def set_with_ttl(self, key: str, value: Any, ttl_s: float) -> None:
        """Set the value of `key`, which is missing from then on after `ttl_s` seconds; `math.inf`: never."""
        if validate_ttl(ttl_s) != math.inf:
            raise no_ttl()
        self.set(key, value)

    def set_many_with_ttl(self, items: Mapping[str, Any], ttl_s: float) -> None:
        """Set every item as `set_many` does, with one deadline after `ttl_s` seconds."""
        if validate_ttl(ttl_s) != math.inf:
            raise no_ttl()
        self.set_many(items)

    def set_many_until(self, items: Mapping[str, Any], deadlines_ms: Mapping[str, int]) -> None:
        """Set every item as `set_many` does; the keys in `deadlines_ms` expire then, the others never.

        Deadlines are milliseconds since 1970 UTC. For copies, which keep the deadline that they read.
        """
        if deadlines_ms:
            raise no_ttl()
        self.set_many(items)

    def deadline(self, key: str) -> int | None:
        """Return the deadline of `key` in milliseconds since 1970 UTC; None if it never expires.

        Raises KeyError if `key` is missing; an expired key may be reported as either.
        """
        raise no_ttl()

    def ttl_s(self, key: str) -> float | None:
        """Return how many seconds `key` has left; None if it never expires. Raises KeyError if it is missing."""
        raise no_ttl()

    def touch(self, key: str, ttl_s: float) -> bool:
        """Give `key` the deadline after `ttl_s` seconds (`math.inf`: none) and return whether it exists."""
        raise no_ttl()

    def expire(self, limit: int | None = None) -> int:
        """Reclaim the space of expired keys, of at most `limit`, in bounded steps; return of how many."""
        raise no_ttl()

    @property
    def lock_scope(self) -> Hashable:
        """A value equal for all storages of this process with the same data; `mutable` locks keys within it."""
        return id(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
