"""Validate the layers that a config names, and add them to a storage."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ..config import LayerConfig
from ..contract import StorageBase
from ..encoded import EncodedStorage
from ..errors import CapabilityError, ConfigError, nearest
from ..options import Option, read_options
from . import cache, metrics
from .read_only import ReadOnlyLayer, refusal
from .ttl import TtlLayer

#: The options of each layer.
LAYERS: Mapping[str, Mapping[str, Option]] = {"cache": cache.OPTIONS, "metrics": metrics.OPTIONS, "read-only": {}}


def validate_layers(layers: tuple[LayerConfig, ...], place: str = "LAYERS") -> None:
    """Raise ConfigError, whose message starts with `place`, unless `add_layers` can add these layers."""
    names = [layer.name for layer in layers]
    for name in names:
        if name not in LAYERS:
            raise ConfigError(
                f"{place}: no layer is called {name!r}.{nearest(name, LAYERS)} Choose from {', '.join(LAYERS)}"
            )
        if names.count(name) > 1:
            raise ConfigError(f"{place}: {name} is listed {names.count(name)} times; once is enough")
    if "cache" in names[:-1]:
        raise ConfigError(f"{place}: cache must be the last of the list, next to the engine, whose bytes it caches")
    for layer in layers:
        try:
            _options(layer)
        except ConfigError as error:
            raise ConfigError(f"{place}: {error}") from None


def add_layers(
    storage: StorageBase, layers: tuple[LayerConfig, ...], plugin: str, namespace: str, ttl_s: float | None = None
) -> StorageBase:
    """Return `storage` of `namespace` wrapped in `layers`, the first outermost; around them the default `ttl_s`.

    Raises what `validate_layers` raises, CapabilityError for a cache around an engine that does not hold bytes, and for
    a `ttl_s` around one that does not declare `ttl`. On an error, `storage` is closed.
    """
    try:
        validate_layers(layers)
        for layer in reversed(layers):
            storage = _add(storage, layer, plugin, namespace)
        if ttl_s is not None and ttl_s != math.inf:
            storage = TtlLayer(storage, ttl_s)
    except BaseException:
        storage.close()
        raise
    return storage


def validate_drop(layers: tuple[LayerConfig, ...], namespace: str) -> None:
    """Raise CapabilityError if `layers` make `namespace` read-only."""
    if any(layer.name == "read-only" for layer in layers):
        raise refusal(namespace)


def _add(storage: StorageBase, layer: LayerConfig, plugin: str, namespace: str) -> StorageBase:
    options = _options(layer)
    if layer.name == "read-only":
        return ReadOnlyLayer(storage, namespace)
    if layer.name == "metrics":
        return metrics.MetricsLayer(storage, options["label"] or plugin, namespace)
    if not isinstance(storage, EncodedStorage):
        raise CapabilityError(
            f"the layer cache needs an engine that holds bytes (a hutch.EncodedStorage), and {plugin} holds objects; "
            f"remove cache from the LAYERS of namespace {namespace!r}"
        )
    if not options["max_bytes"] or not options["ttl_s"]:
        return storage
    return cache.CacheLayer(storage, **options)


def _options(layer: LayerConfig) -> dict[str, Any]:
    return read_options(layer.options, LAYERS[layer.name], layer.name, kind="layer")
