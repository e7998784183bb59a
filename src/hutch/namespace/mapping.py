"""StoreMixin: a mapping over one storage."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, Literal, NoReturn, Self, TypeVar, overload

from ..contract import MISSING, Missing
from ..handlers import is_missing
from ..keylocks import refuse_nested_write, run_locked, swapping
from ..limits import (
    explain_failure,
    refuse_none,
    validate_function,
    validate_key,
    validate_keys,
    validate_number,
    validate_range,
)
from ..mutable import Mutable
from ..views import Items, Keys, V, Values, as_dict
from .ttl import TimeToLive, require_ttl

T = TypeVar("T")
D = TypeVar("D")


class StoreMixin(TimeToLive[V]):
    """A mapping whose items are stored in a storage. Only this class tracks whether it is open.

    Opening twice raises StoreAlreadyOpenError. Any other use while closed raises StoreNotOpenError, closing again
    and older views and iterators included. Any thread may use an open mapping. Each read returns a new
    object: changing it changes nothing stored; see `mutable`. Needs no `__init__`, so any class can mix it in.
    """

    # --- the mapping ---

    def __getitem__(self, key: str) -> V:
        try:
            return self._store.get(key)  # type: ignore[no-any-return]  # a storage holds any value
        except Exception as error:
            explain_failure(key, error)
            raise

    def __setitem__(self, key: str, value: V) -> None:
        store = self._store
        if swapping:
            refuse_nested_write(store.lock_scope, [key])
        store.set(key if store.validates_keys else validate_key(key), value)

    def __delitem__(self, key: str) -> None:
        if swapping:
            refuse_nested_write(self._store.lock_scope, [key])
        self._store.remove(validate_key(key))

    def __contains__(self, key: object) -> bool:
        store = self._store
        try:
            is_there = store.contains(key)  # type: ignore[arg-type]  # of any type: checked on the rarer way
        except Exception as error:
            explain_failure(key, error)
            raise
        if not is_there and not store.validates_keys:
            validate_key(key)
        return is_there

    def __len__(self) -> int:
        return self._store.len()

    def __iter__(self) -> Iterator[str]:
        # The list keeps a loop that adds keys from going on for ever.
        return self._guarded(list(self._store.keys()))

    def __reversed__(self) -> Iterator[str]:
        return self._guarded(list(self._store.keys())[::-1])

    def __or__(self, other: object) -> NoReturn:
        raise TypeError(
            "a namespace has no `|`, which would read all of it: write `dict(namespace) | other` for a new dict, or "
            "`namespace |= other` to store the items of other"
        )

    def __ror__(self, other: object) -> NoReturn:
        raise TypeError(
            "a namespace has no `|`, which would read all of it: write `other | dict(namespace)` for a new dict, or "
            "`other.update(namespace)`"
        )

    def __ior__(self, other: Mapping[str, V] | Iterable[tuple[str, V]]) -> Self:  # type: ignore[misc]  # no __or__
        self.update(other)
        return self

    @overload
    def get(self, key: str) -> V | None: ...
    @overload
    def get(self, key: str, default: V | D) -> V | D: ...
    def get(self, key: str, default: Any = None) -> Any:
        """Return the value of `key`, or `default` if it is missing."""
        try:
            return self._store.get(key)
        except Exception as error:
            explain_failure(key, error)
            if not isinstance(error, KeyError) or not is_missing(error, key):
                raise
            return default

    def keys(self) -> Keys:
        """Return a view of the keys. Iterating lists them first, so a loop over it may set and remove any key."""
        self._must_be_open()
        return Keys(self)

    def items(self) -> Items[V]:
        """Return a view of the items. Iterating reads them in batches, and ends although a loop adds keys."""
        self._must_be_open()
        return Items(self)

    def values(self) -> Values[V]:
        """Return a view of the values, iterated as `items` is."""
        self._must_be_open()
        return Values(self)

    @overload
    def pop(self, key: str) -> V: ...
    @overload
    def pop(self, key: str, default: V | D) -> V | D: ...
    def pop(self, key: str, default: Any = MISSING) -> Any:
        """Remove `key` and return its value, or `default` if it is missing.

        Atomic as `modify`: no other caller gets the same value. Raises KeyError for a missing key without a default.
        """
        key = validate_key(key)
        while True:
            value, token = self._store.get_for_update(key)
            if value is MISSING:
                if default is MISSING:
                    raise KeyError(key)
                return default
            if self._store.compare_and_swap(key, token, MISSING):
                return value

    def popitem(self) -> tuple[str, V]:
        """Remove an arbitrary item and return it. Raises KeyError if the namespace is empty."""
        for key in self._guarded(self._store.keys()):
            try:
                return key, self.pop(key)
            except KeyError as error:  # another caller removed it first
                if not is_missing(error, key):
                    raise
        raise KeyError("popitem: the namespace is empty")

    @overload
    def setdefault(
        self: StoreMixin[T | None], key: str, default: None = ..., *, ttl_s: float | None = ...
    ) -> T | None: ...
    @overload
    def setdefault(self, key: str, default: V, *, ttl_s: float | None = ...) -> V: ...
    def setdefault(self, key: str, default: Any = None, *, ttl_s: float | None = None) -> Any:
        """Set `key` to `default` if it is missing, as `set` does, and return its value. As atomic as `modify`."""
        key = validate_key(key)
        options = () if ttl_s is None else require_ttl(self._store, ttl_s)
        while True:
            value, token = self._store.get_for_update(key)
            if value is not MISSING:
                return value
            if self._store.compare_and_swap(key, token, default, *options):
                return default

    def update(self, other: Any = (), /, **more: Any) -> None:
        """Set many items as one batch: all or none if the engine declares `atomic-batch`.

        Invalid keys and values are refused, by an error that names the key, before anything is written.
        """
        self.set_many({**as_dict(other), **more} if more else as_dict(other))

    def clear(self) -> None:
        """Remove every key of this namespace, in one step if the engine declares `atomic-batch`."""
        if swapping:
            refuse_nested_write(self._store.lock_scope, None)
        self._store.clear()

    # --- beyond the mapping ---

    def get_many(self, keys: Iterable[str]) -> dict[str, V]:
        """Return the values of `keys` by key, in the order given, without missing keys; in one read if possible."""
        return self._store.get_many(validate_keys(keys))

    def set_many(self, items: Mapping[str, V] | Iterable[tuple[str, V]], *, ttl_s: float | None = None) -> None:
        """Set every item of `items` as one batch, as `update` does, with one deadline as `set` gives it."""
        store = self._store
        if not isinstance(items, Mapping):
            items = as_dict(items)
        if not store.validates_keys:
            items = {validate_key(key): value for key, value in items.items()}
        if swapping:
            refuse_nested_write(store.lock_scope, items)
        if ttl_s is None:
            store.set_many(items)
        else:
            store.set_many_with_ttl(items, ttl_s)

    def remove_many(self, keys: Iterable[str]) -> int:
        """Remove `keys` as one batch and return how many existed."""
        checked = validate_keys(keys)
        if swapping:
            refuse_nested_write(self._store.lock_scope, checked)
        return self._store.remove_many(checked)

    def scan(
        self, prefix: str = "", start: str | None = None, stop: str | None = None, reverse: bool = False
    ) -> Iterator[tuple[str, V]]:
        """Yield items in key order (by Unicode code point) whose key has `prefix` and ``start <= key < stop``.

        Reads page by page, in little memory however many items there are, unlike `items`. A loop that sets keys ahead
        of where it is meets them later, and may never end.
        """
        validate_range("scan", prefix, start, stop)
        return self._guarded(self._store.scan(prefix, start, stop, reverse))

    def scan_keys(
        self, prefix: str = "", start: str | None = None, stop: str | None = None, reverse: bool = False
    ) -> Iterator[str]:
        """Yield the keys that `scan` would yield, without reading the values."""
        validate_range("scan_keys", prefix, start, stop)
        return self._guarded(self._store.scan_keys(prefix, start, stop, reverse))

    def compare_and_set(self, key: str, expected: Any, value: Any, *, ttl_s: float | None = None) -> bool:
        """Set `key` to `value`, as `set` does, if it equals `expected`; return whether it did. As atomic as `modify`.

        `hutch.MISSING` as `expected` means "only if the key is missing"; as `value`, "remove the key".
        """
        return self._store.compare_and_set(validate_key(key), expected, value, *(() if ttl_s is None else (ttl_s,)))

    @overload
    def modify(
        self,
        key: str,
        fn: Callable[[V], V | Missing],
        default: V | Missing = ...,
        *,
        allow_none: Literal[False] = ...,
        ttl_s: float | None = ...,
    ) -> V: ...
    @overload
    def modify(
        self,
        key: str,
        fn: Callable[[V], V | Missing | None],
        default: V | Missing = ...,
        *,
        allow_none: bool,
        ttl_s: float | None = ...,
    ) -> V | None: ...
    def modify(
        self,
        key: str,
        fn: Callable[[Any], Any],
        default: Any = MISSING,
        *,
        allow_none: bool = False,
        ttl_s: float | None = None,
    ) -> Any:
        """Set `key` to ``fn(value)`` atomically and return the new value.

        A lost race is retried, so `fn` may be called more than once and must have no side effects. If it raises,
        the value is unchanged. For a missing key it gets a copy of `default`; without a default, KeyError is raised.
        A result of `hutch.MISSING` removes the key. A result of None for a value that is not None is a TypeError, as a
        forgotten `return` gives it, unless `allow_none`. A deadline stays; a key that this creates gets one as `set`
        gives it. Atomic among the threads of this process, and among all
        processes if `capabilities` has `atomic-modify`. Raises ConflictError after 60 s of lost races.
        """
        key, store = validate_key(key), self._store
        validate_function(fn, key)
        if not allow_none:
            fn = refuse_none(fn, key)
        if ttl_s is None:
            return run_locked(store.lock_scope, key, store.wait_s, store.modify, key, fn, default)
        return run_locked(store.lock_scope, key, store.wait_s, store.modify, key, fn, default, ttl_s)

    def increment(self, key: str, by: float = 1, default: float = 0, *, ttl_s: float | None = None) -> V:
        """Add `by` to the number of `key` atomically and return the sum; a missing key starts from `default`.

        The cheaper `modify` for counters: one step of the engine, as atomic as `modify`. Numbers are ints and floats
        (not bool): ints of any size are exact, and the sum with a float is a float. A value that is not a number is a
        TypeError, and nothing is written. A deadline stays; a key that this creates gets one as `set` gives it.
        """
        key, store = validate_key(key), self._store
        validate_number(key, "by", by)
        validate_number(key, "default", default)
        options = () if ttl_s is None else require_ttl(store, ttl_s)
        if swapping:
            refuse_nested_write(store.lock_scope, [key])
        return store.increment(key, by, default, *options)  # type: ignore[return-value]  # a storage holds any value

    @overload
    def mutable(self, key: str, *, ttl_s: float | None = ...) -> AbstractContextManager[V, None]: ...
    @overload
    def mutable(
        self, key: str, default: V | D, *, ttl_s: float | None = ...
    ) -> AbstractContextManager[V | D, None]: ...
    def mutable(
        self, key: str, default: Any = MISSING, *, ttl_s: float | None = None
    ) -> AbstractContextManager[Any, None]:
        """Return a block that reads a value, lets you change it, writes it back: ``with ns.mutable("k", {}) as v:``.

        `mutable` and `modify` of the key in other threads wait up to `wait_s` (60 s unless the engine has an option
        of that name), then raise StorageTimeoutError. A wait that could never end raises ConflictError at once:
        inside a `mutable` or `modify` of the same key, and if two threads wait for each other's keys. If another
        writer changed the key meanwhile, ConflictError is raised and nothing is written. A block that raises writes
        nothing. A missing key starts from a copy of `default`; without a default, KeyError is raised. Only changes
        inside the object are written: ``v += 1`` on a number is lost; use `modify` for that. Deadlines as in `modify`.
        """
        options = () if ttl_s is None else require_ttl(self._store, ttl_s)
        return Mutable(self, validate_key(key), default, options)
