"""The composition root: `connect` builds a Store from a config, and the Store opens Namespaces."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from functools import cache
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, Self, cast, overload

from .config import StoreConfig, read_config, shown_location
from .contract import StorageBase, StoragePluginBase
from .discovery.descriptor import PluginInfo
from .discovery.factory import LayeredFactory, build, hooks_are_used
from .discovery.foreign import as_storage, close_interrupted, is_readonly, live_namespaces
from .errors import CapabilityError, StoreAlreadyOpenError, StoreNotOpenError, without_driver_tracebacks
from .fork import ForkSafeLock
from .handle import Claim, Namespace, refuse_copy
from .handlers import passes_through
from .limits import validate_namespace
from .shared_handles import SharedHandles
from .store_transactions import StoreTransactions
from .views import V

if TYPE_CHECKING:
    from logging import Logger

    from .finding import Finding


class Store(SharedHandles, StoreTransactions):
    """An engine built from a config by `connect`. It opens namespaces; any thread may use it."""

    #: Whether the whole process shares this store because it was unpickled; `close` then does nothing.
    _is_shared = False

    def __init__(self, config: StoreConfig, info: PluginInfo, factory: Any) -> None:
        self.config = config
        #: The plugin's name from its descriptor.
        self.name = info.name
        self._factory, self._url_option = factory, info.url_option
        self._lock = ForkSafeLock()
        self._opening = ForkSafeLock()
        self._claims: dict[str, Claim] = {}
        self._shared: dict[str, Namespace[Any]] = {}
        self._storages: dict[str, StorageBase] = {}
        self._is_open = True
        self._is_closing = False
        self._factory_is_open = True

    def __repr__(self) -> str:
        return f"<hutch.Store {self.location}, {'open' if self._is_open else 'closed'}>"

    @property
    def location(self) -> str:
        """Where the data is, for people: a URL or a path, without a secret."""
        return shown_location(self.config, self._url_option)

    @property
    def factory(self) -> Any:
        """The plugin's factory (stage 1), for the other rooms of the package."""
        return self._factory

    @overload
    def open(self, namespace: str) -> Namespace: ...
    @overload
    def open(self, namespace: str, *, type: type[V], name: str | None = None) -> Namespace[V]: ...
    @overload
    def open(self, namespace: str, *, type: Any, name: str | None = None) -> Namespace: ...
    def open(self, namespace: str, *, type: Any = None, name: str | None = None) -> Namespace[Any]:
        """Open `namespace`, which need not exist, and return an exclusive handle. Use it in a `with` block.

        With a `type`, each value that is set is checked against it, and what is read is made a value of it: a
        dataclass, TypedDict, pydantic model, msgspec struct, enum, built-in type, or container or union of these. They
        need no registration, and are stored as dicts that any reader can read, without a class name; see
        docs/howto/types.md. Errors call the type `name`, or by its own name.

        Raises NamespaceError for an invalid name, StoreAlreadyOpenError if this store has a live handle on
        it (threads share the handle), StoreNotOpenError if the store is closed, ValueTypeError for a `type` whose
        values cannot be checked or a `name` without a `type`, and what the engine raises.
        """
        namespace = validate_namespace(namespace)
        layered = self._layered()
        if type is not None or name is not None:
            from .typed import named_shape

            layered.shape = named_shape(type, name)
        handle = Namespace()
        claim = Claim(handle)
        try:
            self._take(namespace, claim)
            handle._type = None if type is None else (type, name)
            return self._open(handle, claim, namespace, layered)
        except BaseException:
            claim.ended = True
            self._forget(namespace, claim)
            raise

    def _open(self, handle: Namespace, claim: Claim, name: str, layered: LayeredFactory | None = None) -> Namespace:
        try:
            handle.open_storage(layered or self._layered(), name)
            with self._lock.current:
                # If this raises, `close` has seen the claim and closes the handle.
                self._must_be_open()
                handle._owner, handle._claim = self, claim
            self._notify("hutch_namespace_opened", namespace=name)
        except BaseException as error:
            handle._owner = None
            close_interrupted(handle)
            self._notify("hutch_namespace_failed", namespace=name, error=error)
            raise
        return handle

    def namespaces(self) -> list[str]:
        """Return the sorted names of namespaces with data. Raises CapabilityError if the engine cannot list them."""
        self._must_be_open()
        listing = getattr(self._factory, "namespaces", None)
        if listing is None:
            raise CapabilityError(f"the {self.name} engine cannot list its namespaces")
        names = sorted(listing())
        return live_namespaces(self._factory, self.name, names) if "ttl" in self.capabilities else names

    def drop(self, namespace: str) -> None:
        """Remove `namespace` and all its data; does nothing if it does not exist.

        Raises StoreAlreadyOpenError if this store has an exclusive handle on it, CapabilityError if it is configured
        read-only. Other processes that have it open see it empty.
        """
        name = validate_namespace(namespace)
        self._refuse_if_readonly(name)
        if layers := self.config.layers_for(name):
            from .layers.select import validate_drop

            validate_drop(layers, name)
        claim = Claim(None)
        try:
            with self._opening.current, self._lock.current:
                self._close_shared(name)
                self._take(name, claim)
                # The default `drop` needs `clear`, which a storage with just the six verbs lacks; a handle has it.
                if getattr(type(self._factory), "drop", StoragePluginBase.drop) is StoragePluginBase.drop:
                    with self._open(Namespace(), claim, name) as handle:
                        handle.clear()
                else:
                    self._factory.drop(name)
        finally:
            claim.ended = True
            self._forget(name, claim)

    def stats(self) -> dict[str, object]:
        """Return figures about the store by name: text, numbers or booleans, never a secret.

        `engine`: the plugin's name; `location`: where the data is; `namespaces` and `keys`: how many hold data, and
        how many there are, left out if the engine cannot list its namespaces. The built-in engines add `bytes`: the
        size of the stored data; `version`: that of LMDB, SQLite, the server, Python (shelf) or hutch (memory); and
        `path` or `server`. Further figures are the engine's own. A server may refuse to tell `bytes` and `version`.
        """
        self._must_be_open()
        figures: dict[str, object] = {"engine": self.name, "location": self.location}
        try:
            names = self.namespaces()
        except CapabilityError:
            pass
        else:
            figures |= {"namespaces": len(names), "keys": sum(map(self._count, names))}
        own = getattr(self._factory, "stats", None)
        return figures | (dict(own()) if callable(own) else {})

    def _count(self, name: str) -> int:
        """Return the number of keys of the namespace `name`, which may be open."""
        claim = self._claims.get(name)
        handle = claim.handle() if claim is not None and claim.handle is not None else None
        if handle is not None and handle.is_open_storage():
            return len(handle)
        with as_storage(self._factory.open(name), self.name, name) as storage:
            return storage.len()

    def verify(self, *, repair: bool = False, salvage: str | os.PathLike[str] | None = None) -> Iterator[Finding]:
        """Read everything in the store and yield each problem; see `hutch.verify`, which takes a config."""
        from .integrity import verify_open

        self._must_be_open()
        if repair or salvage is not None:
            self._refuse_if_readonly("*")
        return verify_open(self.name, self._factory, self.config, repair, salvage)

    def backup(self, dest: str | os.PathLike[str]) -> None:
        """Write a copy of the whole store, as of one moment, to the new path `dest`; the same engine opens it.

        Others may read and write meanwhile. `dest` appears when the copy is complete, flushed and was opened once.
        Raises ConfigError if `dest` exists, CapabilityError if the engine has no such copy, StorageFullError.
        """
        from .backup import write_whole

        self._must_be_open()
        method = getattr(self._factory, "backup", None)
        if method is None or getattr(type(self._factory), "backup", None) is StoragePluginBase.backup:
            raise CapabilityError(
                f"the {self.name} engine has no backup of its own; hutch.transfer.backup copies item by item"
            )
        write_whole(dest, method)

    def compact(self) -> tuple[int, int] | None:
        """Shrink the engine's files to what their data needs; return their bytes before and after.

        None if the engine has no files. Raises StoreAlreadyOpenError while this store has a namespace open,
        StoreLockedError if others have files open that must be replaced, and CapabilityError.
        """
        self._must_be_open()
        self._refuse_if_readonly("*")
        names = sorted(name for name, claim in list(self._claims.items()) if not claim.ended)
        if names:
            raise StoreAlreadyOpenError(
                f"namespace {names[0]!r} is open in this store; close it before compact(). A "
                "shared handle, store[name], closes with its store: call compact() before its first use"
            )
        method = getattr(self._factory, "compact", None)
        if method is None:
            raise CapabilityError(f"the {self.name} engine cannot compact its files")
        self._close_storages()
        sizes = method()
        return None if sizes is None else (int(sizes[0]), int(sizes[1]))

    def close(self) -> None:
        """Close every handle that is still open, with a ResourceWarning for each, then the engine.

        Does nothing if the store is closed already or another call is closing it. The store is closed even if closing
        raises; only a call that a signal handler interrupted can be repeated.
        """
        if self._is_shared:
            return
        mine = False
        try:
            with self._lock.current:
                self._is_open = False
                if self._is_closing or not self._factory_is_open:
                    return
                # No call between the test and the assignment, so no signal handler can run in between.
                self._is_closing = mine = True
            with ExitStack() as closing:
                closing.callback(self._close_factory)
                closing.callback(self._close_storages)
                for name in list(self._shared):
                    closing.callback(self._close_shared, name)
                for handle in self._left_open():
                    closing.callback(self._close_left_open, handle)
            # They and this store refer to each other: the collector would run this store's finalizer within some verb.
            self._shared.clear()
        finally:
            if mine:
                self._is_closing = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __copy__(self) -> NoReturn:
        refuse_copy("store")

    def __deepcopy__(self, _: object) -> NoReturn:
        refuse_copy("store")

    def __reduce__(self) -> tuple[Any, ...]:
        self._must_be_open()
        from .pickling import store_state

        return restore_store, (store_state(self),)

    def __del__(self) -> None:
        # Handles keep their store alive, so only shared ones may be open here: nothing can be lost, and no warning is
        # needed.
        if getattr(self, "_factory_is_open", False):
            self._is_shared = False
            self.close()

    def _close_factory(self) -> None:
        close = getattr(self._factory, "close", None)
        try:
            if close is not None:
                close()
        except BaseException as error:
            # Another `close` may finish a call that a signal handler interrupted.
            self._factory_is_open = passes_through(error)
            raise
        self._factory_is_open = False

    def _layered(self) -> LayeredFactory:
        return LayeredFactory(self._factory, self.config, self.name)

    def _left_open(self) -> list[Namespace]:
        handles = [claim.handle() for claim in list(self._claims.values()) if claim.handle and not claim.ended]
        return [handle for handle in handles if handle is not None and not handle._is_of_store]

    @staticmethod
    def _close_left_open(handle: Namespace) -> None:
        if handle.is_open_storage():
            try:
                # Level 5 is the caller of close(), beyond this method and the ExitStack.
                warnings.warn(f"{handle!r} was still open when its store closed", ResourceWarning, 5, source=handle)
            finally:
                # Does nothing if another thread has closed it meanwhile.
                handle.close()

    def _refuse_if_readonly(self, namespace: str) -> None:
        if is_readonly(self._factory):
            from .layers.read_only import refusal

            raise refusal(namespace, by_option=True)

    def _reduce_handle(self, name: str, kind: tuple[Any, str | None] | None) -> tuple[Any, ...]:
        from .pickling import namespace_state

        return restore_namespace, (namespace_state(self), name, *(kind or ()))

    def _must_be_open(self) -> None:
        if not self._is_open:
            raise StoreNotOpenError("this store is closed; connect again to use it")

    def _take(self, name: str, claim: Claim) -> None:
        """Add `claim`. Raises StoreNotOpenError if the store is closed, StoreAlreadyOpenError if `name` is claimed."""
        claims = self._claims
        with self._lock.current:
            self._must_be_open()
            # No call between the test and the assignment, so no signal handler can run in between.
            if name not in claims or claims[name].ended:
                claims[name] = claim
                return
        raise self._is_claimed(name)

    def _forget(self, name: str, claim: Claim) -> None:
        """Remove `claim`, which has ended, from the list."""
        # Without the lock, because a finalizer may run this while another thread holds it and waits. No call between
        # the test and the removal, so neither a signal handler nor another thread can run in between.
        claims = self._claims
        if name in claims and claims[name] is claim:
            del claims[name]

    def _notify(self, hook: str, **event: Any) -> None:
        if hooks_are_used():
            from .hooks import notify

            notify(hook, store=self.name, **event)


@cache
def _logger() -> Logger:
    # Once, because `getLogger` before Python 3.13 leaves a lock taken if a signal handler raises in it.
    return cast("Logger", sys.modules["logging"].getLogger("hutch"))


def connect(config: Any = None, *, app: str | None = None) -> Store:
    """Return the store that `config` describes: a URL, a path, a mapping, or a Python module.

    A path ends in .yaml, .yml or .toml (a config file) or .db, .sqlite or .sqlite3 (SQLite), else is an LMDB folder; as
    text without such a suffix it names its folder, "./state". `${NAME}` and `${NAME:-default}` in text expand.
    Without a config, use `$HUTCH_STORAGE` (a URL), else `$HUTCH_CONFIG` (a file), else LMDB in the folder `app` of the
    user's data directory; the working folder is never searched. Raises ConfigError for an invalid config,
    PluginNotFoundError, PluginConflictError or PluginLoadError if its engine cannot be found or loaded, and
    StorageUnavailableError and the like if the storage cannot be reached.
    """
    checked = read_config(config, app=app)
    factory = None
    try:
        info, factory = build(checked)
        store = Store(checked, info, factory)
        # An application that logs has imported logging; others need not load it.
        if "logging" in sys.modules and _logger().isEnabledFor(20):
            _logger().info("connected to %s", store.location)
        return store
    except BaseException as error:
        if factory is not None:
            close_interrupted(factory)
        without_driver_tracebacks(error)
        raise


def restore_store(state: dict[str, Any]) -> Store:
    """Return this process's store for a pickled one. Raises what `connect` raises."""
    from .pickling import unpickled_store

    return unpickled_store(state, connect)


def restore_namespace(state: dict[str, Any], name: str, kind: Any = None, kind_name: str | None = None) -> Namespace:
    """Return this process's handle for a pickled namespace. Raises what `connect` and `Store.open` raise."""
    from .pickling import unpickled_namespace

    return unpickled_namespace(state, name, connect, kind, kind_name)
