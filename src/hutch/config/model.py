"""What a config amounts to, whatever form it had. All of it is frozen; no repr shows a secret."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ..record import Record
from .url import shown_name, shown_url

_NO_OPTIONS: Mapping[str, Any] = MappingProxyType({})
_CWD = Path()  # the working folder at the time


def _names(options: Mapping[str, Any]) -> str:
    # Names only: an engine knows which of its options are secret, nobody knows it here.
    return f"<{', '.join(shown_name(name)[1:-1] for name in options)}>"


class CodecConfig(Record):
    """The name of a codec and its options. Whether there is such a codec is for `hutch.codec` to say."""

    name: str = "msgpack"
    options: Mapping[str, Any] = _NO_OPTIONS

    def __repr__(self) -> str:
        return f"CodecConfig(name={shown_name(self.name)}, options={_names(self.options)})"


class LayerConfig(Record):
    """The name of a layer and its options. Whether there is such a layer is for `hutch.layers` to say."""

    name: str
    options: Mapping[str, Any] = _NO_OPTIONS

    def __repr__(self) -> str:
        return f"LayerConfig(name={shown_name(self.name)}, options={_names(self.options)})"


class NamespaceRule(Record):
    """What namespaces that fit the glob `pattern` (case counts) have of their own; None means "not set here"."""

    pattern: str
    codec: CodecConfig | None = None
    layers: tuple[LayerConfig, ...] | None = None


class StoreConfig(Record):
    """All that a config says, checked; `read_config` makes it. The fields hold secrets, the repr does not."""

    #: Name of a plugin or scheme of a URL, as written: "lmdb", "Redis", "redis+cluster".
    storage: str
    #: STORAGE_CONFIG and the query of the URL (whose values are text). A copy, all the way down.
    options: Mapping[str, Any] = _NO_OPTIONS
    #: The URL without its query, nothing decoded, credentials included; None if the storage was named.
    url: str | None = None
    #: Absolute paths.
    extra_plugin_dirs: tuple[Path, ...] = ()
    codec: CodecConfig = CodecConfig()
    #: For namespaces that have none of their own.
    layers: tuple[LayerConfig, ...] = ()
    namespaces: tuple[NamespaceRule, ...] = ()
    #: What relative paths are relative to: the folder of the config file, else the working folder. Absolute.
    base_dir: Path = _CWD
    #: Where all this was said, for messages.
    source: str = "argument"
    #: True for the default store alone: its folder is made for the owner alone, whatever the umask is.
    private: bool = False
    #: The Errbot-like module or object itself, for plugins that read other attributes of it.
    host_config: object | None = None

    if not TYPE_CHECKING:  # it would hide the fields

        def __init__(self, *values: Any, **named: Any) -> None:
            super().__init__(*values, **named)
            if self.base_dir is _CWD:
                vars(self)["base_dir"] = Path.cwd()

    def codec_for(self, namespace: str) -> CodecConfig:
        """The codec of the first rule that fits `namespace` and sets one, else the store's."""
        return next((rule.codec for rule in self._rules(namespace) if rule.codec is not None), self.codec)

    def layers_for(self, namespace: str) -> tuple[LayerConfig, ...]:
        """The layers of the first rule that fits `namespace` and sets them, to none perhaps, else the store's."""
        return next((rule.layers for rule in self._rules(namespace) if rule.layers is not None), self.layers)

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
            "base_dir": repr(str(self.base_dir)),
            "source": repr(self.source),
            "private": self.private,
            "host_config": f"<{type(self.host_config).__name__}>",  # its repr may well show its attributes
        }
        return f"StoreConfig({', '.join(f'{name}={value}' for name, value in shown.items())})"
