"""The validated config, the same for every form. All classes are frozen; no repr shows a secret."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from ..options import ByFields
from .url import shown_name, shown_url


class FrozenDict(dict[str, Any]):
    """Options that cannot be changed, but copied (`dataclasses.asdict`) and pickled, unlike a mappingproxy."""

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise TypeError("the options of a config cannot be changed; use dataclasses.replace")

    __setitem__ = __delitem__ = __ior__ = update = setdefault = pop = popitem = clear = _refuse

    def __reduce__(self) -> tuple[type, tuple[dict[str, Any]]]:
        return FrozenDict, (dict(self),)


_NO_OPTIONS: Mapping[str, Any] = FrozenDict()


def _names(options: Mapping[str, Any]) -> str:
    # Names only: which options are secret is known only to the engine.
    return f"<{', '.join(shown_name(name)[1:-1] for name in options)}>"


class _Named(NamedTuple):
    name: str
    options: Mapping[str, Any] = _NO_OPTIONS

    def __repr__(self) -> str:
        return f"{type(self).__name__}(name={shown_name(self.name)}, options={_names(self.options)})"

    def __hash__(self) -> int:
        return hash(self.name)


class CodecConfig(_Named):
    """The name of a codec and its options. `hutch.codec` validates them."""

    __slots__ = ()


DEFAULT_CODEC = CodecConfig("msgpack")


class LayerConfig(_Named):
    """The name of a layer and its options. `hutch.layers` validates them."""

    __slots__ = ()


class NamespaceRule(NamedTuple):
    """Overrides for the namespaces that match the case-sensitive glob `pattern`; None means "not overridden"."""

    pattern: str
    codec: CodecConfig | None = None
    layers: tuple[LayerConfig, ...] | None = None
    ttl_s: float | None = None


@dataclass(frozen=True, repr=False, eq=False)
class StoreConfig(ByFields):
    """A complete, validated config, made by `read_config`. The fields may hold secrets; the repr shows none."""

    #: Name of a plugin or scheme of a URL, as written: "lmdb", "Redis", "redis+cluster".
    storage: str
    #: STORAGE_CONFIG and the query of the URL (whose values are text), as a deep copy.
    options: Mapping[str, Any] = field(default_factory=lambda: _NO_OPTIONS, hash=False)
    #: The URL without its query, undecoded, credentials included; None if the config names a storage instead.
    url: str | None = None
    #: Absolute paths.
    extra_plugin_dirs: tuple[Path, ...] = ()
    codec: CodecConfig = DEFAULT_CODEC
    #: For namespaces without an override.
    layers: tuple[LayerConfig, ...] = ()
    namespaces: tuple[NamespaceRule, ...] = ()
    #: How many seconds a value lives that is set without `ttl_s`; None and `math.inf`: it never expires.
    ttl_s: float | None = None
    #: The base of relative paths: the folder of the config file, else the working folder. Absolute.
    base_dir: Path = field(default_factory=Path.cwd)
    #: Where the config came from, for messages.
    source: str = "argument"
    #: True only for the default store: its folder is created with mode 0700, regardless of the umask.
    private: bool = False
    #: The Errbot-like module or object that was passed, for plugins that read other attributes of it.
    host_config: object | None = field(default=None, hash=False)

    def codec_for(self, namespace: str) -> CodecConfig:
        """Return the codec of the first rule that matches `namespace` and sets a codec, else the store's codec."""
        return next((rule.codec for rule in self._rules(namespace) if rule.codec is not None), self.codec)

    def layers_for(self, namespace: str) -> tuple[LayerConfig, ...]:
        """Return the layers of the first rule matching `namespace` that sets them, even to none, else the store's."""
        return next((rule.layers for rule in self._rules(namespace) if rule.layers is not None), self.layers)

    def ttl_s_for(self, namespace: str) -> float | None:
        """Return the TTL_S of the first rule matching `namespace` that sets one, else the store's."""
        return next((rule.ttl_s for rule in self._rules(namespace) if rule.ttl_s is not None), self.ttl_s)

    def _rules(self, namespace: str) -> Iterator[NamespaceRule]:
        return (rule for rule in self.namespaces if fnmatchcase(namespace, rule.pattern))

    def __repr__(self) -> str:
        shown = {
            "storage": shown_name(self.storage),
            "options": _names(self.options),
            "url": self.url if self.url is None else repr(shown_url(self.url)),
            "extra_plugin_dirs": [str(path) for path in self.extra_plugin_dirs],
            "codec": self.codec,
            "layers": self.layers,
            "namespaces": self.namespaces,
            "ttl_s": self.ttl_s,
            "base_dir": repr(str(self.base_dir)),
            "source": repr(self.source),
            "private": self.private,
            "host_config": f"<{type(self.host_config).__name__}>",  # its repr may show its attributes
        }
        return f"StoreConfig({', '.join(f'{name}={value}' for name, value in shown.items())})"


def shown_location(config: StoreConfig, url_option: str) -> str:
    """Return where the data of `config` is, as a URL without secrets; `url_option` is what the engine's URL names."""
    given = config.url or config.options.get(url_option) or ""
    if isinstance(given, Path):
        given = str(given)
    if not isinstance(given, str):
        given = ""
    if "://" not in given:
        is_path = url_option in ("path", "basedir") and given
        given = f"{config.storage}://{(config.base_dir / given).as_posix() if is_path else given}"
    shown = shown_url(given.partition("?")[0] if config.url is None and url_option == "url" else given)
    return shown if shown.isprintable() else ascii(shown)
