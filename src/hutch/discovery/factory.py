"""Stage 1: find the plugin that a config names and build its factory."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..codec.codec import Codec
from ..config import CodecConfig, StoreConfig, read_config, shown_location, url_path
from ..config.model import FrozenDict
from ..contract import StoragePluginBase
from ..errors import ConfigError, PluginNotFoundError, StorageUnavailableError, without_driver_tracebacks
from ..handlers import passes_through, raised_by_handler
from .descriptor import PluginInfo
from .discovery import Discovery
from .entry_points import CODECS_GROUP, HOOKS_GROUP, PLUGINS_GROUP, may_have_entry_points
from .foreign import as_storage, close_interrupted, is_readonly
from .load import build_factory, load_factory
from .search import discover

if TYPE_CHECKING:
    from ..typed.shape import Shape


def load_plugin(name: str, config: Any = None) -> Any:
    """Return the factory of the plugin called `name`, built from `config` (stage 1 alone).

    `config` is a mapping of the engine's options, or any form that `connect` accepts; `name` replaces an engine that
    it names. Raises what `connect` raises, and ConfigError if the config has LAYERS or TTL_S, which
    only a `Store` adds.
    """
    checked = read_config(_with_storage(name, config))
    if checked.layers or checked.ttl_s or any(rule.layers or rule.ttl_s for rule in checked.namespaces):
        raise ConfigError(
            f"{checked.source}: LAYERS and TTL_S take effect on the namespaces of hutch.connect(), not on a plugin "
            "loaded alone; use hutch.connect(), or remove them"
        )
    return build(checked)[1]


def find_plugins(config: StoreConfig | None = None) -> Discovery:
    """Return every plugin that `config` can name, without importing any."""
    return _find_plugins(config, "")


def _find_plugins(config: StoreConfig | None, wanted: str) -> Discovery:
    hooked: list[Any] = []
    if hooks_are_used():
        from ..hooks import hooked_plugins

        hooked = hooked_plugins()
    # A search for one engine leaves out the codecs of other packages, which may need importlib.metadata.
    groups = (PLUGINS_GROUP,) if wanted else (PLUGINS_GROUP, CODECS_GROUP)
    return discover(config.extra_plugin_dirs if config else (), hooked=hooked, wanted=wanted, groups=groups)


def build(config: StoreConfig) -> tuple[PluginInfo, Any]:
    """Return the plugin that `config` names, and its factory. Validates codecs and layers before opening anything."""
    info = _find(config)
    checked = PluginConfig(config, info)
    for codec in (config.codec, *(rule.codec for rule in config.namespaces)):
        if codec is not None:
            checked.codecs.make(codec)
    _check_layers(config)
    return info, build_factory(info, checked)


def _find(config: StoreConfig) -> PluginInfo:
    try:
        return _find_plugins(config, config.storage).find(config.storage)
    except PluginNotFoundError:
        pass  # only a complete search can suggest the nearest name; made here, its error would show two tracebacks
    return find_plugins(config).find(config.storage)


def without_creating(config: StoreConfig, readonly: bool = False) -> StoreConfig:
    """Return `config` with the option `create` set to False if its engine declares that option.

    Connecting to a store that is missing then raises StoreMissingError. With `readonly`, the option of that name is set
    too if the engine declares it. Raises what `load_plugin` raises.
    """
    factory: Any = load_factory(_find_plugins(config, "").find(config.storage))
    if not issubclass(factory, StoragePluginBase):
        return config
    wanted = {"create": False} | ({"readonly": True} if readonly else {})
    known = {name: value for name, value in wanted.items() if name in (factory.OPTIONS or {})}
    return replace(config, options=FrozenDict({**config.options, **known}))


def make_private(config: StoreConfig) -> None:
    """Create the folder of the default store with mode 0700 before its engine does. Raises StorageUnavailableError."""
    from ..filesystem import make_private_folder

    folder = config.options["path"]
    try:
        make_private_folder(folder, parents=1)
    except OSError as error:
        if raised_by_handler(error):
            raise
        raise StorageUnavailableError(f"the folder {folder!r} cannot be created: {error.strerror or error}") from None


def _check_layers(config: StoreConfig) -> None:
    rules = [(f"NAMESPACES.{rule.pattern}.LAYERS", rule.layers) for rule in config.namespaces]
    for place, layers in [("LAYERS", config.layers), *rules]:
        if layers:
            from ..layers.select import validate_layers

            validate_layers(layers, place)


class PluginConfig:
    """The config object passed to a factory: Errbot's `STORAGE` and `STORAGE_CONFIG`, and a few names of hutch.

    Any other attribute comes from the host's own config object, if there is one: a plugin written for Errbot
    may read `BOT_DATA_DIR`.
    """

    def __init__(self, config: StoreConfig, info: PluginInfo) -> None:
        options = dict(config.options)
        if config.url is not None:
            value = config.url if info.whole_url else url_path(config.url)
            if value and info.url_option in options:
                raise ConfigError(
                    f"{config.source}: the option {info.url_option!r} of the {info.name} engine is given twice, "
                    "in the URL and beside it; remove one"
                )
            if value:
                options[info.url_option] = value
        self.STORAGE = config.storage
        self.STORAGE_CONFIG = options
        self.base_dir: Path = config.base_dir
        self.plugin_name = info.name
        self.codecs = Codecs(lambda: find_plugins(config))
        self._config, self._url_option = config, info.url_option

    @property
    def plugin_location(self) -> str:
        """Where the data is, for people."""
        return shown_location(self._config, self._url_option)

    def codec_for(self, namespace: str) -> Codec:
        """Return the codec configured for `namespace`."""
        return self.codecs.make(self._config.codec_for(namespace))

    def codec_of_header(self, header: int) -> str | None:
        """Return the name of the codec that writes `header`, if it is installed."""
        return self.codecs.name_of(header)

    def __getattr__(self, name: str) -> Any:
        host = self.__dict__.get("_config")
        if host is not None and host.host_config is not None:
            return getattr(host.host_config, name)
        raise AttributeError(name)


class Codecs:
    """The codecs of one store, each made once. `search` finds the plugins when a codec is not built in."""

    def __init__(self, search: Callable[[], Discovery]) -> None:
        self._search = search
        # By the identity of the part of the config, which lives as long as this: options may not be hashable.
        self._made: dict[int, Codec] = {}

    def make(self, wanted: CodecConfig) -> Codec:
        """Return the codec that `wanted` names. Raises ConfigError, PluginConflictError or PluginLoadError."""
        made = self._made.get(id(wanted))
        if made is None:
            # Imported late, with ormsgpack: listing plugins needs no codec.
            from ..codec.select import is_built_in, make_codec

            if is_built_in(wanted.name):
                made = make_codec(wanted.name, wanted.options)
            else:
                from .codecs import build_codec

                made = build_codec(self._search(), wanted.name, wanted.options)
            self._made[id(wanted)] = made
        return made

    def name_of(self, header: int) -> str | None:
        """Return the name of the codec that writes `header`, if its descriptor is found; no plugin code runs."""
        return next((info.name for info in self._search().codecs if header in info.headers), None)


_CONFIG_KEYS = frozenset({"storage", "storage_config", "extra_plugin_dirs", "codec", "layers", "namespaces", "ttl_s"})


def _with_storage(name: str, config: Any) -> Any:
    if config is None:
        return {"STORAGE": name}
    if isinstance(config, Mapping):
        if any(isinstance(key, str) and key.lower() in _CONFIG_KEYS for key in config):
            others = {key: value for key, value in config.items() if str(key).lower() != "storage"}
            return {"STORAGE": name, **others}
        return {"STORAGE": name, "STORAGE_CONFIG": config}
    if isinstance(config, StoreConfig | str | os.PathLike):
        return replace(read_config(config), storage=name)
    return _Renamed(name, config)


class _Renamed:
    """A host's config object with STORAGE replaced."""

    def __init__(self, name: str, config: Any) -> None:
        self.STORAGE = name
        self._hutch_config = config

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_hutch_config"], name)


@functools.cache
def _hooks_are_installed() -> bool:
    if not may_have_entry_points(HOOKS_GROUP):
        return False
    try:
        from importlib.metadata import entry_points

        return bool(entry_points(group=HOOKS_GROUP))
    except Exception as error:
        if passes_through(error):
            raise
        return True  # `hooks` reports the problem


def hooks_are_used() -> bool:
    """Return whether any hooks are registered or installed, without importing pluggy."""
    return "hutch.hooks" in sys.modules or _hooks_are_installed()


class LayeredFactory:
    """A factory that wraps the engine's storages in the layers that the config names."""

    def __init__(self, factory: Any, config: StoreConfig, name: str) -> None:
        self._factory, self._config, self.name = factory, config, name
        #: The shape of the values, for a namespace that was opened with a type.
        self.shape: Shape | None = None

    def open(self, namespace: str) -> Any:
        opened: list[Any] = []
        try:
            if self._config.private:
                make_private(self._config)
            # `extend` and `map` are C code, so no signal handler can run between the return of `open` and the append.
            opened.extend(map(self._factory.open, [namespace]))
            layers, ttl_s = self._config.layers_for(namespace), self._config.ttl_s_for(namespace)
            if layers or ttl_s is not None:
                from ..layers.select import add_layers

                opened[0] = add_layers(as_storage(opened[0], self.name, namespace), layers, self.name, namespace, ttl_s)
            if is_readonly(self._factory):
                from ..layers.read_only import ReadOnlyLayer

                opened[0] = ReadOnlyLayer(opened[0], namespace, by_option=True)
            if self.shape is not None:
                from ..typed import TypedLayer

                opened[0] = TypedLayer(as_storage(opened[0], self.name, namespace), self.shape, namespace)
            return opened[0]
        except BaseException as error:
            if opened and passes_through(error):
                close_interrupted(opened[0])
            without_driver_tracebacks(error)
            raise
