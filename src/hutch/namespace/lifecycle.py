"""Lifecycle: all the rules for opening and closing a mapping over one storage."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, NoReturn, Self, TypeVar

from ..contract import StorageBase
from ..discovery.foreign import close_interrupted, open_validated
from ..errors import StoreAlreadyOpenError, StoreNotOpenError
from ..fork import ForkSafeLock
from ..handlers import passes_through
from ..limits import validate_namespace
from ..verbs import GeneratedStorage

T = TypeVar("T")


class _Closed(GeneratedStorage):
    """The storage of a closed mapping: every verb raises StoreNotOpenError, so that calls on open ones need no test."""

    def __init__(self, namespace: str | None = None) -> None:
        self._namespace = namespace

    @classmethod
    def generate(cls, name: str, verb: object, kind: object) -> Callable[..., NoReturn]:
        return cls.refuse

    @property
    def capabilities(self) -> NoReturn:  # type: ignore[override]  # nothing may be asked of it
        self.refuse()

    def refuse(self, *_: object, **__: object) -> NoReturn:
        if self._namespace is None:
            raise StoreNotOpenError("this storage is not open yet; call open_storage() or Store.open() first")
        raise StoreNotOpenError(f"namespace {self._namespace!r} is closed; open it again to use it")


_NEVER_OPENED = _Closed()
_open_or_close = ForkSafeLock()


class Lifecycle:
    """The part of `StoreMixin` that opens and closes it. Only this class tracks whether it is open."""

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

    def __repr__(self) -> str:
        state = f"{self.namespace!r}, open" if self.is_open_storage() else "closed"
        return f"<{type(self).__qualname__} {state}>"

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
