"""The composition root: a config becomes a Store, a Store opens Namespaces."""

from __future__ import annotations

import threading
import warnings
import weakref
from contextlib import ExitStack, suppress
from types import TracebackType
from typing import Any, Self

from .base import StoragePluginBase
from .config import StoreConfig, read_config
from .descriptor import PluginInfo
from .errors import CapabilityError, StoreAlreadyOpenError, StoreNotOpenError, redact
from .factory import build, hooks_are_used
from .limits import check_namespace
from .mixin import StoreMixin


class Namespace(StoreMixin):
    """An open namespace of a `Store`: a mapping from `str` to any value the codec takes."""

    # The store must live as long as its handles: it holds what they share.
    _owner: Store | None = None

    def close(self) -> None:
        """Close this handle; the same as `close_storage`."""
        self.close_storage()

    def close_storage(self) -> None:
        owner = self._owner
        try:
            super().close_storage()
        except StoreNotOpenError:
            raise
        except BaseException:
            # Closed all the same: the namespace can be opened again.
            if owner is not None:
                owner._closed(self)
            raise
        if owner is not None:
            owner._closed(self)

    def __del__(self) -> None:
        try:
            is_open = self.is_open_storage()
        except TypeError:
            return  # the interpreter is ending, and has taken the modules apart
        if is_open:
            warnings.warn(f"unclosed {self!r}; use it in a with block, or close it", ResourceWarning, 2, source=self)
            self.close_storage()


class Store:
    """An engine built from a config. Opens namespaces; any thread may use it. Made by `connect`."""

    def __init__(self, config: StoreConfig, info: PluginInfo, factory: Any) -> None:
        self.config = config
        #: The plugin's name, as its descriptor has it.
        self.name = info.name
        self._factory = factory
        self._lock = threading.RLock()
        self._handles: weakref.WeakValueDictionary[str, Namespace] = weakref.WeakValueDictionary()
        self._opening: set[str] = set()
        self._is_open = True

    def __repr__(self) -> str:
        return f"<hutch.Store {self.name}, {'open' if self._is_open else 'closed'}, from {redact(self.config.source)}>"

    @property
    def capabilities(self) -> frozenset[str]:
        """What the engine promises beyond the six verbs."""
        return frozenset(getattr(self._factory, "capabilities", ()))

    def open(self, namespace: str) -> Namespace:
        """Open `namespace`, which need not exist. Use it in a `with` block.

        Raises NamespaceError for an impossible name, StoreAlreadyOpenError if this store has a live handle on
        it (threads share the handle), StoreNotOpenError if the store is closed, and what the engine raises.
        """
        name = check_namespace(namespace)
        with self._lock:
            self._must_be_open()
            if name in self._handles or name in self._opening:
                raise StoreAlreadyOpenError(
                    f"namespace {name!r} has a live handle in this store; share that one between threads, or close it"
                )
            self._opening.add(name)
        try:
            handle = Namespace()
            handle.open_storage(_Layered(self._factory, self.config, self.name), name)
            with self._lock:
                if not self._is_open:
                    handle.close_storage()
                    self._must_be_open()
                handle._owner = self
                self._handles[name] = handle
        except BaseException as error:
            self._notify("hutch_namespace_failed", namespace=name, error=error)
            raise
        finally:
            with self._lock:
                self._opening.discard(name)
        self._notify("hutch_namespace_opened", namespace=name)
        return handle

    def namespaces(self) -> list[str]:
        """The names of the namespaces that hold data, sorted. Raises CapabilityError if the engine cannot tell."""
        self._must_be_open()
        listing = getattr(self._factory, "namespaces", None)
        if listing is None:
            raise CapabilityError(f"the {self.name} engine cannot list its namespaces")
        return sorted(listing())

    def drop(self, namespace: str) -> None:
        """Remove `namespace` and all its data; nothing happens if it does not exist.

        Raises StoreAlreadyOpenError if this store has a live handle on it, CapabilityError if it is configured
        read-only. Other processes that have it open find it empty.
        """
        name = check_namespace(namespace)
        if layers := self.config.layers_for(name):
            from .layers.choose import check_drop

            check_drop(layers, name)
        with self._lock:
            self._must_be_open()
            if name in self._handles or name in self._opening:
                raise StoreAlreadyOpenError(f"namespace {name!r} has a live handle in this store; close it to drop it")
            # A handle clears what the default `drop` cannot: a storage that has no more than the six verbs.
            if getattr(type(self._factory), "drop", StoragePluginBase.drop) is StoragePluginBase.drop:
                with self.open(name) as handle:
                    handle.clear()
            else:
                self._factory.drop(name)

    def stats(self) -> dict[str, object]:
        """Figures of the engine: names and numbers for people, different for each; empty if it has none."""
        self._must_be_open()
        figures = getattr(self._factory, "stats", None)
        return dict(figures()) if callable(figures) else {}

    def close(self) -> None:
        """Close the engine, and before it every handle that is still open, with a ResourceWarning for each.

        Raises StoreNotOpenError when closed already. Closed even if something raises on the way.
        """
        with self._lock:
            self._must_be_open()
            self._is_open = False
            left_open = list(self._handles.values())
        with ExitStack() as closing:
            closing.callback(self._close_factory)
            for handle in left_open:
                closing.callback(self._close_left_open, handle)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # Handles keep their store alive, so no handle is open here; there is nothing to lose or to warn about.
        if getattr(self, "_is_open", False):
            self._is_open = False
            self._close_factory()

    def _close_factory(self) -> None:
        close = getattr(self._factory, "close", None)
        if close is not None:
            close()

    @staticmethod
    def _close_left_open(handle: Namespace) -> None:
        try:
            # Level 5: who called close, past this and the ExitStack.
            warnings.warn(f"{handle!r} was still open when its store closed", ResourceWarning, 5, source=handle)
        finally:
            # Another thread may have been faster.
            with suppress(StoreNotOpenError):
                handle.close_storage()

    def _must_be_open(self) -> None:
        if not self._is_open:
            raise StoreNotOpenError("this store is closed; connect again to use it")

    def _closed(self, handle: Namespace) -> None:
        name = str(handle.namespace)
        with self._lock:
            if self._handles.get(name) is handle:
                del self._handles[name]
        self._notify("hutch_namespace_closed", namespace=name)

    def _notify(self, hook: str, **event: Any) -> None:
        if hooks_are_used():
            from .hooks import notify

            notify(hook, store=self.name, **event)


class _Layered:
    """A factory whose storages carry the layers that the config asks for."""

    def __init__(self, factory: Any, config: StoreConfig, name: str) -> None:
        self._factory, self._config, self.name = factory, config, name

    def open(self, namespace: str) -> Any:
        storage = self._factory.open(namespace)
        layers = self._config.layers_for(namespace)
        if not layers:
            return storage
        from .adapted import as_storage
        from .layers.choose import add_layers

        return add_layers(as_storage(storage, self.name, namespace), layers, self.name, namespace)


def connect(config: Any = None) -> Store:
    """The store that `config` describes: a URL, a YAML or TOML file, a mapping, or a Python module.

    Without one: `$HUTCH_STORAGE` (a URL), else `$HUTCH_CONFIG` (a file), else `./hutch.yaml`, else LMDB in the
    user's data directory. Raises ConfigError for a config that does not fit, PluginNotFoundError,
    PluginConflictError or PluginLoadError if its engine cannot be had, StorageUnavailableError and the like if
    the storage cannot be reached.
    """
    checked = read_config(config)
    return Store(checked, *build(checked))
