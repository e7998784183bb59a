"""Pickling of stores and namespaces: a pickle has the config and the name, and unpickling connects again.

In the process that unpickles them, all pickles of one config share one store, and all pickles of one namespace share
one handle, whose `close` does nothing: any number of jobs may use it at the same time. They are closed when the process
ends. Unpickled stores and unpickled namespaces use separate connections, so a store can open any namespace.
"""

from __future__ import annotations

import atexit
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from .config import CodecConfig, LayerConfig, NamespaceRule, StoreConfig
from .config.model import FrozenDict
from .fork import ForkSafeLock

if TYPE_CHECKING:
    from .handle import Namespace
    from .store import Store

_lock = ForkSafeLock()
# By config (its repr, distinct for distinct configs) and whether the store serves namespaces.
_stores: dict[tuple[str, bool], Store] = {}
# By config, name and type.
_namespaces: dict[tuple[str, str, str], Namespace] = {}


def store_state(store: Store) -> dict[str, Any]:
    """Return what a pickle of `store` contains. Raises TypeError if another process could not connect to it."""
    return _state(store, "store")


def namespace_state(store: Store) -> dict[str, Any]:
    """Return what a pickle of a namespace of `store` contains besides its name. Raises TypeError as `store_state`."""
    return _state(store, "namespace")


def unpickled_store(
    state: dict[str, Any], connect: Callable[[StoreConfig], Store], for_namespaces: bool = False
) -> Store:
    """Return this process's store for `state`; `connect` makes it when it is first needed."""
    key = repr(state), for_namespaces
    with _lock.current:
        store = _stores.get(key)
        if store is None:
            store = connect(_config(state))
            store._is_shared = True
            _stores[key] = store
        return store


def unpickled_namespace(
    state: dict[str, Any],
    name: str,
    connect: Callable[[StoreConfig], Store],
    kind: Any = None,
    kind_name: str | None = None,
) -> Namespace:
    """Return this process's handle on the namespace `name` of the store for `state`, opened with the type `kind`."""
    key = repr(state), name, repr((kind, kind_name))
    with _lock.current:
        handle = _namespaces.get(key)
        if handle is None or not handle.is_open_storage():
            handle = unpickled_store(state, connect, for_namespaces=True).open(name, type=kind, name=kind_name)
            handle._is_shared = True
            _namespaces[key] = handle
        return handle


def close_unpickled() -> None:
    """Close all unpickled stores and namespaces; later unpickling connects again. For process exit and tests."""
    with _lock.current, ExitStack() as closing:
        for store in _stores.values():
            store._is_shared = False
            closing.callback(store.close)
        for handle in _namespaces.values():
            handle._is_shared = False
            closing.callback(handle.close)
        _stores.clear()
        _namespaces.clear()


def _state(store: Store, what: str) -> dict[str, Any]:
    """Return the config of `store` as built-in types in a stable order."""
    config = store.config
    instead = "Connect where it is used: send what hutch.connect() takes there, and the name of the namespace"
    if config.host_config is not None:
        raise TypeError(
            f"this {what} cannot be pickled: it was made from a {type(config.host_config).__name__}, which "
            f"cannot be sent to another process. {instead}"
        )
    if not store.capabilities & {"durable", "shared", "atomic-modify:host", "atomic-modify:cluster"}:
        raise TypeError(
            f"this {what} cannot be pickled: the {store.name} engine keeps its data in this process, or does not say "
            "that it keeps it elsewhere (the capabilities durable and shared). Send the data, dict(namespace), or use "
            "an engine that other processes can open"
        )
    return {name: _plain(value) for name, value in vars(config).items() if name != "host_config"}


def _plain(value: Any) -> Any:
    """Return `value` with named tuples and mappings converted to dicts, and tuples to lists."""
    if isinstance(value, CodecConfig | LayerConfig | NamespaceRule):
        return {name: _plain(part) for name, part in value._asdict().items()}
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in sorted(value.items(), key=repr)}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return value


def _config(state: dict[str, Any]) -> StoreConfig:
    """Return the config that a result of `_state` describes."""
    fields = dict(state)
    fields["options"] = FrozenDict(fields["options"])
    fields["extra_plugin_dirs"] = tuple(fields["extra_plugin_dirs"])
    fields["codec"] = _named(CodecConfig, fields["codec"])
    fields["layers"] = tuple(_named(LayerConfig, layer) for layer in fields["layers"])
    fields["namespaces"] = tuple(map(_rule, fields["namespaces"]))
    return StoreConfig(**fields)


def _named(kind: Any, fields: dict[str, Any]) -> Any:
    return kind(**{**fields, "options": FrozenDict(fields["options"])})


def _rule(fields: dict[str, Any]) -> NamespaceRule:
    codec, layers = fields["codec"], fields["layers"]
    if codec is not None:
        codec = _named(CodecConfig, codec)
    if layers is not None:
        layers = tuple(_named(LayerConfig, layer) for layer in layers)
    return NamespaceRule(**{**fields, "codec": codec, "layers": layers})


atexit.register(close_unpickled)
