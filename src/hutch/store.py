"""The composition root: a config becomes a Store, a Store opens Namespaces."""

from __future__ import annotations

import warnings
import weakref
from contextlib import ExitStack
from types import TracebackType
from typing import Any, NoReturn, Self

from .config import StoreConfig, read_config
from .contract import StoragePluginBase
from .discovery.descriptor import PluginInfo
from .discovery.factory import build, hooks_are_used, make_private
from .discovery.foreign import as_storage, close_interrupted
from .errors import CapabilityError, StoreAlreadyOpenError, StoreNotOpenError, redact
from .fork import ForkSafeLock
from .handlers import passes_through
from .limits import check_namespace
from .namespace import StoreMixin


class _Claim:
    """The right of one handle to a namespace. One that has ended counts for nothing, even while it is still listed."""

    __slots__ = ("ended", "handle")

    def __init__(self, handle: Namespace | None) -> None:
        self.ended = False
        self.handle = None if handle is None else weakref.ref(handle)


class Namespace(StoreMixin):
    """An open namespace of a `Store`: a mapping from `str` to any value the codec takes."""

    # The store must live as long as its handles: it holds what they share.
    _owner: Store | None = None
    _claim: _Claim = _Claim(None)
    #: Whether all of this process have this handle, because it was unpickled: then `close` does nothing.
    _is_shared = False

    def close(self) -> None:
        """Close this handle; nothing happens if it is closed already."""
        self._close_storage()

    def _close_storage(self) -> bool:
        if self._is_shared:
            return True
        storage = self._store
        try:
            return super()._close_storage()
        finally:
            # Unless a signal handler raised before it was closed. No call comes before the claim has ended: the
            # namespace can be opened again whatever a handler raises here.
            if self._store is not storage:
                self._claim.ended = True
                self._end_claim()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _end_claim(self) -> None:
        claim, self._claim = self._claim, Namespace._claim
        owner = self._owner
        if owner is not None and claim is not Namespace._claim:
            owner._forget(str(self.namespace), claim)
            owner._notify("hutch_namespace_closed", namespace=str(self.namespace))

    def __copy__(self) -> NoReturn:
        refuse_copy("namespace")

    def __deepcopy__(self, _: object) -> NoReturn:
        refuse_copy("namespace")

    def __reduce__(self) -> tuple[Any, ...]:
        self._must_be_open()
        if self._owner is None:
            raise TypeError("this namespace cannot be pickled: no store opened it")
        from .pickling import reduce_namespace

        return reduce_namespace(self)

    def __del__(self) -> None:
        try:
            is_open = self.is_open_storage()
        except TypeError:
            return  # the interpreter is ending, and has taken the modules apart
        if is_open:
            warnings.warn(f"unclosed {self!r}; use it in a with block, or close it", ResourceWarning, 2, source=self)
            self.close()


class Store:
    """An engine built from a config. Opens namespaces; any thread may use it. Made by `connect`."""

    #: Whether all of this process have this store, because it was unpickled: then `close` does nothing.
    _is_shared = False

    def __init__(self, config: StoreConfig, info: PluginInfo, factory: Any) -> None:
        self.config = config
        #: The plugin's name, as its descriptor has it.
        self.name = info.name
        self._factory = factory
        self._lock = ForkSafeLock()
        self._claims: dict[str, _Claim] = {}
        self._is_open = True
        self._is_closing = False
        self._factory_is_open = True

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
        handle = Namespace()
        claim = _Claim(handle)
        try:
            self._take(name, claim)
            return self._open(handle, claim, name)
        except BaseException:
            claim.ended = True
            self._forget(name, claim)
            raise

    def _open(self, handle: Namespace, claim: _Claim, name: str) -> Namespace:
        try:
            handle.open_storage(_Layered(self._factory, self.config, self.name), name)
            with self._lock.current:
                # Else `close` has seen the claim, and closes the handle.
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
            from .layers.select import check_drop

            check_drop(layers, name)
        claim = _Claim(None)
        try:
            with self._lock.current:
                self._take(name, claim)
                # A handle clears what the default `drop` cannot: a storage that has no more than the six verbs.
                if getattr(type(self._factory), "drop", StoragePluginBase.drop) is StoragePluginBase.drop:
                    with self._open(Namespace(), claim, name) as handle:
                        handle.clear()
                else:
                    self._factory.drop(name)
        finally:
            claim.ended = True
            self._forget(name, claim)

    def stats(self) -> dict[str, object]:
        """Figures of the engine: names and numbers for people, different for each; empty if it has none."""
        self._must_be_open()
        figures = getattr(self._factory, "stats", None)
        return dict(figures()) if callable(figures) else {}

    def close(self) -> None:
        """Close the engine, and before it every handle that is still open, with a ResourceWarning for each.

        Nothing happens if it is closed already, or another call is about to close it. Closed even if something raises
        on the way, except that a call which a signal handler broke off can be repeated.
        """
        if self._is_shared:
            return
        mine = False
        try:
            with self._lock.current:
                self._is_open = False
                if self._is_closing or not self._factory_is_open:
                    return
                # No call stands between the test and the store, so that no signal handler comes between them.
                self._is_closing = mine = True
            with ExitStack() as closing:
                closing.callback(self._close_factory)
                for handle in self._left_open():
                    closing.callback(self._close_left_open, handle)
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
        from .pickling import reduce_store

        return reduce_store(self)

    def __del__(self) -> None:
        # Handles keep their store alive, so no handle is open here; there is nothing to lose or to warn about.
        if getattr(self, "_factory_is_open", False):
            self._is_open = False
            self._close_factory()

    def _close_factory(self) -> None:
        close = getattr(self._factory, "close", None)
        try:
            if close is not None:
                close()
        except BaseException as error:
            # What a signal handler interrupted, another `close` may finish.
            self._factory_is_open = passes_through(error)
            raise
        self._factory_is_open = False

    def _left_open(self) -> list[Namespace]:
        handles = [claim.handle() for claim in list(self._claims.values()) if claim.handle and not claim.ended]
        return [handle for handle in handles if handle is not None]

    @staticmethod
    def _close_left_open(handle: Namespace) -> None:
        if handle.is_open_storage():
            try:
                # Level 5: who called close, past this and the ExitStack.
                warnings.warn(f"{handle!r} was still open when its store closed", ResourceWarning, 5, source=handle)
            finally:
                # Another thread may have been faster.
                handle.close()

    def _must_be_open(self) -> None:
        if not self._is_open:
            raise StoreNotOpenError("this store is closed; connect again to use it")

    def _take(self, name: str, claim: _Claim) -> None:
        """List `claim`. Raises StoreNotOpenError if the store is closed, StoreAlreadyOpenError if `name` is taken."""
        claims = self._claims
        with self._lock.current:
            self._must_be_open()
            # No call stands between the test and the store, so that no signal handler comes between them.
            if name not in claims or claims[name].ended:
                claims[name] = claim
                return
        raise StoreAlreadyOpenError(
            f"namespace {name!r} has a live handle in this store; share that one between threads, or close it"
        )

    def _forget(self, name: str, claim: _Claim) -> None:
        """Take `claim`, which has ended, off the list."""
        # Without a lock, for a finalizer may run this while another thread holds that and waits. No call stands between
        # the test and the removal, so that neither a signal handler nor another thread comes between them.
        claims = self._claims
        if name in claims and claims[name] is claim:
            del claims[name]

    def _notify(self, hook: str, **event: Any) -> None:
        if hooks_are_used():
            from .hooks import notify

            notify(hook, store=self.name, **event)


def refuse_copy(what: str) -> NoReturn:
    """Raise TypeError for a copy of a store or namespace."""
    raise TypeError(
        f"a {what} cannot be copied: the copy would be the same live {what}. "
        + ("dict(namespace) is a copy of its items" if what == "namespace" else "hutch.connect() makes another one")
    )


class _Layered:
    """A factory whose storages carry the layers that the config asks for."""

    def __init__(self, factory: Any, config: StoreConfig, name: str) -> None:
        self._factory, self._config, self.name = factory, config, name

    def open(self, namespace: str) -> Any:
        opened: list[Any] = []
        try:
            if self._config.private:
                make_private(self._config)
            # `extend` and `map` run no Python code of their own: no signal handler comes between `open` and the list.
            opened.extend(map(self._factory.open, [namespace]))
            layers = self._config.layers_for(namespace)
            if not layers:
                return opened[0]
            from .layers.select import add_layers

            return add_layers(as_storage(opened[0], self.name, namespace), layers, self.name, namespace)
        except BaseException as error:
            if opened and passes_through(error):
                close_interrupted(opened[0])
            raise


def connect(config: Any = None) -> Store:
    """The store that `config` describes: a URL, a YAML or TOML file, a mapping, or a Python module.

    Without one: `$HUTCH_STORAGE` (a URL), else `$HUTCH_CONFIG` (a file), else LMDB in the user's data directory; no
    file is looked for in the working folder. Raises ConfigError for a config that does not fit, PluginNotFoundError,
    PluginConflictError or PluginLoadError if its engine cannot be had, StorageUnavailableError and the like if
    the storage cannot be reached.
    """
    checked = read_config(config)
    info, factory = build(checked)
    try:
        return Store(checked, info, factory)
    except BaseException:
        close_interrupted(factory)
        raise
