"""StoreMixin: a mapping over one storage, with all the rules for opening, using and closing it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Literal, NoReturn, Self, TypeVar, overload

from .contract import MISSING, Missing, StorageBase
from .discovery.foreign import close_interrupted, open_validated
from .errors import StoreAlreadyOpenError, StoreNotOpenError
from .fork import ForkSafeLock
from .handlers import is_missing, passes_through
from .keylocks import refuse_nested_write, run_locked, swapping
from .limits import (
    explain_failure,
    refuse_none,
    validate_function,
    validate_key,
    validate_keys,
    validate_namespace,
    validate_range,
)
from .mutable import Mutable
from .verbs import GeneratedStorage
from .views import Items, Keys, V, Values, as_dict

T = TypeVar("T")
D = TypeVar("D")


class _Closed(GeneratedStorage):
    """The storage of a closed mapping: every verb raises StoreNotOpenError, so that calls on open ones need no test."""

    def __init__(self, namespace: str | None = None) -> None:
        self._namespace = namespace

    @classmethod
    def generate(cls, name: str, verb: object, kind: object) -> Callable[..., NoReturn]:
        return cls.refuse

    def refuse(self, *_: object, **__: object) -> NoReturn:
        if self._namespace is None:
            raise StoreNotOpenError("this storage is not open yet; call open_storage() or Store.open() first")
        raise StoreNotOpenError(f"namespace {self._namespace!r} is closed; open it again to use it")


_NEVER_OPENED = _Closed()
_open_or_close = ForkSafeLock()


class StoreMixin(MutableMapping[str, V]):
    """A mapping whose items are stored in a storage. Only this class tracks whether it is open.

    Opening twice raises StoreAlreadyOpenError. Any other use while closed raises StoreNotOpenError, closing again
    and older views and iterators included. Any thread may use an open mapping. Each read returns a new
    object: changing it changes nothing stored; see `mutable`. Needs no `__init__`, so any class can mix it in.
    """

    _store: StorageBase = _NEVER_OPENED
    namespace: str | None = None

    # --- lifecycle ---

    def open_storage(self, storage_plugin: Any, namespace: str) -> None:
        """Open `namespace` of the factory `storage_plugin` (`hutch.load_plugin`, or any object with `open(namespace)`).

        Raises StoreAlreadyOpenError if this mapping is open, NamespaceError for an invalid name, PluginError if the
        factory does not return a storage, and what the factory raises. After an error the mapping is still closed.
        """
        name = validate_namespace(namespace)
        if self.is_open_storage():
            raise StoreAlreadyOpenError(f"namespace {self.namespace!r} is open here; call close_storage() first")
        plugin = str(getattr(storage_plugin, "name", None) or type(storage_plugin).__name__)
        opened: list[Any] = []
        storage = None
        try:
            storage = open_validated(storage_plugin, plugin, name, opened)
            with _open_or_close.current:
                # No call between the test and the assignment: a signal handler cannot open or close this in between.
                if self._store.__class__ is _Closed:
                    self._store = storage
                    self.namespace = name
            if self._store is not storage:
                raise StoreAlreadyOpenError(f"namespace {self.namespace!r} was opened here by another thread")
        except BaseException:
            if storage is not None and self._store is storage:
                self._store = _NEVER_OPENED
            if opened:
                close_interrupted(opened[0])
            raise

    def close_storage(self) -> None:
        """Close the mapping, even if the storage raises; data is then as durable as configured.

        Raises StoreNotOpenError if it is closed already.
        """
        if not self._close_storage():
            self._must_be_open()
            raise StoreNotOpenError(f"namespace {self.namespace!r} was closed here, and opened again meanwhile")

    def _close_storage(self) -> bool:
        """Close the mapping; return False if it was closed already."""
        closed = _Closed(self.namespace)
        storage: StorageBase = closed
        try:
            with _open_or_close.current:
                # No call between the two assignments: no other caller can get the same storage to close.
                storage, self._store = self._store, closed
            if isinstance(storage, _Closed):
                return False
            storage.close()
        except BaseException as error:
            if passes_through(error):
                close_interrupted(storage)
            raise
        return True

    def is_open_storage(self) -> bool:
        """Return whether the mapping is open."""
        return not isinstance(self._store, _Closed)

    @property
    def capabilities(self) -> frozenset[str]:
        """The capabilities that the engine declares beyond the six verbs. Raises StoreNotOpenError while closed."""
        self._must_be_open()
        return self._store.capabilities

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close_storage()

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
            found = store.contains(key)  # type: ignore[arg-type]  # of any type: checked on the rarer way
        except Exception as error:
            explain_failure(key, error)
            raise
        if not found and not store.validates_keys:
            validate_key(key)
        return found

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

    def __repr__(self) -> str:
        state = f"{self.namespace!r}, open" if self.is_open_storage() else "closed"
        return f"<{type(self).__qualname__} {state}>"

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
    def setdefault(self: StoreMixin[T | None], key: str, default: None = None) -> T | None: ...
    @overload
    def setdefault(self, key: str, default: V) -> V: ...
    def setdefault(self, key: str, default: Any = None) -> Any:
        """Set `key` to `default` if it is missing, and return its value. As atomic as `modify`."""
        key = validate_key(key)
        while True:
            value, token = self._store.get_for_update(key)
            if value is not MISSING:
                return value
            if self._store.compare_and_swap(key, token, default):
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

    def set_many(self, items: Mapping[str, V] | Iterable[tuple[str, V]]) -> None:
        """Set every item of `items` as one batch, as `update` does."""
        store = self._store
        if not isinstance(items, Mapping):
            items = as_dict(items)
        if not store.validates_keys:
            items = {validate_key(key): value for key, value in items.items()}
        if swapping:
            refuse_nested_write(store.lock_scope, items)
        store.set_many(items)

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

    def compare_and_set(self, key: str, expected: Any, value: Any) -> bool:
        """Set `key` to `value` if it equals `expected`, and return whether it did. As atomic as `modify`.

        `hutch.MISSING` as `expected` means "only if the key is missing"; as `value`, "remove the key".
        """
        return self._store.compare_and_set(validate_key(key), expected, value)

    @overload
    def modify(
        self, key: str, fn: Callable[[V], V | Missing], default: V | Missing = ..., *, allow_none: Literal[False] = ...
    ) -> V: ...
    @overload
    def modify(
        self, key: str, fn: Callable[[V], V | Missing | None], default: V | Missing = ..., *, allow_none: bool
    ) -> V | None: ...
    def modify(self, key: str, fn: Callable[[Any], Any], default: Any = MISSING, *, allow_none: bool = False) -> Any:
        """Set `key` to ``fn(value)`` atomically and return the new value.

        A lost race is retried, so `fn` may be called more than once and must have no side effects. If it raises,
        the value is unchanged. For a missing key it gets a copy of `default`; without a default, KeyError is raised.
        A result of `hutch.MISSING` removes the key. A result of None for a value that is not None is a TypeError, as a
        forgotten `return` gives it, unless `allow_none`. Atomic among the threads of this process, and among all
        processes if `capabilities` has `atomic-modify`. Raises ConflictError after 60 s of lost races.
        """
        key, store = validate_key(key), self._store
        validate_function(fn, key)
        if not allow_none:
            fn = refuse_none(fn, key)
        return run_locked(store.lock_scope, key, store.wait_s, store.modify, key, fn, default)

    @overload
    def mutable(self, key: str) -> AbstractContextManager[V, None]: ...
    @overload
    def mutable(self, key: str, default: V | D) -> AbstractContextManager[V | D, None]: ...
    def mutable(self, key: str, default: Any = MISSING) -> AbstractContextManager[Any, None]:
        """Return a block that reads a value, lets you change it, writes it back: ``with ns.mutable("k", {}) as v:``.

        `mutable` and `modify` of the key in other threads wait up to `wait_s` (60 s unless the engine has an option
        of that name), then raise StorageTimeoutError. A wait that could never end raises ConflictError at once:
        inside a `mutable` or `modify` of the same key, and if two threads wait for each other's keys. If another
        writer changed the key meanwhile, ConflictError is raised and nothing is written. A block that raises writes
        nothing. A missing key starts from a copy of `default`; without a default, KeyError is raised. Only changes
        inside the object are written: ``v += 1`` on a number is lost; use `modify` for that.
        """
        return Mutable(self, validate_key(key), default)

    # --- internal ---

    def _must_be_open(self) -> None:
        store = self._store
        if isinstance(store, _Closed):
            store.refuse()

    def _guarded(self, iterable: Iterable[T]) -> Iterator[T]:
        """Return an iterator over `iterable` that raises StoreNotOpenError once this mapping is closed."""
        return self._guard(self._store, iter(iterable))

    def _guard(self, store: StorageBase, iterator: Iterator[T]) -> Iterator[T]:
        if self._store is store:
            for item in iterator:
                yield item
                if self._store is not store:
                    break
            else:
                return
        raise StoreNotOpenError(f"namespace {self.namespace!r} was closed during an iteration over it")
