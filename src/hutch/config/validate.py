"""Validate the seven keys of a config, for every form; each message names the source and the dotted key."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..deadlines import validate_ttl
from ..errors import ConfigError, a_or_an, nearest
from .bounds import MAX_DEPTH, MAX_NODES
from .model import DEFAULT_CODEC, CodecConfig, FrozenDict, LayerConfig, NamespaceRule, StoreConfig
from .url import shown_name, split_url
from .variables import expand, without_variables

KEYS = ("STORAGE", "STORAGE_CONFIG", "EXTRA_PLUGIN_DIRS", "CODEC", "LAYERS", "NAMESPACES", "TTL_S")
_RULE_KEYS = ("CODEC", "LAYERS", "TTL_S")
# The name of a codec or a layer. Text of another form (a secret in the wrong place) is not shown.
_NAME = r"[A-Za-z][A-Za-z0-9_.+-]{0,63}"
_STORAGE_NAME = r"[^\s/\\:@](?:[^/\\:@]{0,98}[^\s/\\:@])?"


class Checker:
    """A validator of one config. `read` is the entry point; `dirs` and `path` serve keys that only some forms have."""

    def __init__(
        self,
        source: str,
        base_dir: Path,
        environ: Mapping[str, str] | None = None,
        *,
        keyed: bool = True,
        default_codec: CodecConfig = DEFAULT_CODEC,
    ) -> None:
        self.source = source
        self.base_dir = base_dir
        #: Where variables are looked up; None leaves text unexpanded.
        self.environ = environ
        #: False for a bare URL, which has no key STORAGE to name in a message.
        self.keyed = keyed
        #: The codec of a config that names none.
        self.default_codec = default_codec
        self._room = MAX_NODES

    def read(self, given: Mapping[Any, object]) -> StoreConfig:
        """Return the config that the mapping `given` describes. Raises ConfigError."""
        keys = self._keys(given, "", KEYS)
        storage, url, url_options = self._storage(keys["STORAGE"])
        options = self._options(keys["STORAGE_CONFIG"], "STORAGE_CONFIG")
        codec = None if keys["CODEC"] is None else self._codec(keys["CODEC"], "CODEC")
        if "codec" in url_options:
            if codec is not None:
                raise self._wrong("CODEC", "the URL in STORAGE chooses a codec too; keep one of the two")
            codec = self._codec(url_options.pop("codec"), "the URL option 'codec'")
        for name in url_options:
            if name in options:
                raise self._wrong(
                    f"STORAGE_CONFIG.{name}", "the URL in STORAGE has this option too; keep one of the two"
                )
        options.update(url_options)
        return StoreConfig(
            storage=storage,
            options=FrozenDict(options),
            url=url,
            extra_plugin_dirs=self.dirs(keys["EXTRA_PLUGIN_DIRS"], "EXTRA_PLUGIN_DIRS"),
            codec=self.default_codec if codec is None else codec,
            layers=self._layers(keys["LAYERS"], "LAYERS") or (),
            namespaces=self._namespaces(keys["NAMESPACES"], "NAMESPACES"),
            ttl_s=self._ttl_s(keys["TTL_S"], "TTL_S"),
            base_dir=self.base_dir,
            source=self.source,
        )

    def dirs(self, value: object, place: str) -> tuple[Path, ...]:
        """Return the path or list of paths in `value` as absolute paths; none if `value` is None."""
        if value is None:
            return ()
        if not isinstance(value, list | tuple | set | frozenset):
            return (self.base_dir / self.path(value, place),)
        return tuple(self.base_dir / self.path(item, f"{place}[{i}]") for i, item in enumerate(value))

    def path(self, value: object, place: str) -> str:
        """Return the path in `value` as text."""
        text = os.fspath(value) if isinstance(value, os.PathLike) else self._expand(value, place)
        if not isinstance(text, str) or not text or "\0" in text:
            raise self._wrong(place, f"expected a path, not {_kind(text)}")
        return text

    # --- the keys ---

    def _keys(self, given: Mapping[Any, object], place: str, known: tuple[str, ...]) -> dict[str, object]:
        """Return `given` with upper-case keys, and None for each missing key. An empty YAML section is None too."""
        read: dict[str, object] = {}
        for key, value in given.items():
            name = self._name(key, place).upper()
            if name not in known or key not in (name, name.lower()):
                raise self._wrong(
                    place, f"unknown key {shown_name(key)}.{nearest(key, known)} The keys are {', '.join(known)}"
                )
            if name in read:
                raise self._wrong(place, f"both {name} and {name.lower()} are given; keep one of the two")
            read[name] = value
        return {name: read.get(name) for name in known}

    def _storage(self, value: object) -> tuple[str, str | None, dict[str, str]]:
        expected = "the name of a storage such as lmdb, or a URL such as lmdb:///srv/state"
        if not isinstance(value, str):
            problem = "it is missing" if value is None else f"it is {_kind(value)}"
            raise self._wrong("STORAGE", f"{problem}; expected {expected}")
        # A variable may hold a whole URL, but a variable within a URL must not change how the URL is split.
        within_url = "://" in without_variables(value)
        text = self._expand(value, "STORAGE", refused="?&" if within_url else "")
        url: str | None = None
        options: dict[str, str] = {}
        if "://" in text:
            text, url, options = split_url(text, self._where("STORAGE"))
        elif not re.fullmatch(_STORAGE_NAME, text) or not text.isprintable():
            raise self._wrong("STORAGE", f"expected {expected}; this is neither")
        return text, url, options

    def _options(self, value: object, place: str) -> dict[str, Any]:
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            raise self._wrong(place, f"expected a mapping of options, not {_kind(value)}")
        return {self._name(key, place): self._copy(item, _dotted(place, key)) for key, item in value.items()}

    def _codec(self, value: object, place: str) -> CodecConfig:
        return CodecConfig(*self._named(value, place, "json"))

    def _layers(self, value: object, place: str) -> tuple[LayerConfig, ...] | None:
        if value is None:
            return None
        if not isinstance(value, list | tuple):
            raise self._wrong(place, f"expected a list such as [read-only], not {_kind(value)}")
        return tuple(LayerConfig(*self._named(item, f"{place}[{i}]", "cache")) for i, item in enumerate(value))

    def _namespaces(self, value: object, place: str) -> tuple[NamespaceRule, ...]:
        if value is None:
            return ()
        if not isinstance(value, Mapping):
            raise self._wrong(place, f"expected a mapping from patterns such as 'cache-*' to rules, not {_kind(value)}")
        rules = []
        for pattern, rule in value.items():
            here = _dotted(place, self._name(pattern, place))
            if not isinstance(rule, Mapping):
                raise self._wrong(here, f"expected a mapping with CODEC, LAYERS or TTL_S, not {_kind(rule)}")
            keys = self._keys(rule, here, _RULE_KEYS)
            codec = None if keys["CODEC"] is None else self._codec(keys["CODEC"], f"{here}.CODEC")
            layers, ttl_s = self._layers(keys["LAYERS"], f"{here}.LAYERS"), self._ttl_s(keys["TTL_S"], f"{here}.TTL_S")
            rules.append(NamespaceRule(pattern, codec, layers, ttl_s))
        return tuple(rules)

    def _ttl_s(self, value: object, place: str) -> float | None:
        if value is None:
            return None
        value = self._expand(value, place)
        try:
            # A variable expands to text.
            return validate_ttl(float(value) if isinstance(value, str) else value)
        except (TypeError, ValueError):
            # The value is not shown: a text may come from a variable, and an int may have thousands of digits.
            problem = "this number" if type(value) in (int, float) else _kind(value)
            raise self._wrong(
                place, f"expected a number of seconds above 0 and up to the year 9999, or inf for never, not {problem}"
            ) from None

    def _named(self, value: object, place: str, example: str) -> tuple[str, Mapping[str, Any]]:
        """Return the name and options in `value`: a bare name, or a mapping with ``name`` and options."""
        if isinstance(value, Mapping):
            options = self._options(value, place)
            name = options.pop("name", None)
        else:
            options, name = {}, self._expand(value, place)
        if not isinstance(name, str) or not re.fullmatch(_NAME, name):
            kind = f"{_kind(value)} without a name" if isinstance(value, Mapping | str) else _kind(value)
            raise self._wrong(
                place, f"expected a name such as {example}, or a mapping with 'name' and options; found {kind}"
            )
        return name, FrozenDict(options)

    # --- values ---

    def _name(self, key: object, place: str) -> str:
        if not isinstance(key, str) or not key:
            raise self._wrong(place, f"a key must be text, not {_kind(key)}; quote it")
        return key

    def _copy(self, value: object, place: str, depth: int = 1) -> Any:
        """Return `value` with its containers copied and the variables in its text expanded; other objects unchanged."""
        self._room -= 1
        if self._room < 0:
            raise self._wrong(place, f"more than {MAX_NODES:,} values; it does not look like a config")
        if depth > MAX_DEPTH:
            raise self._wrong(place[:200], f"values nest deeper than {MAX_DEPTH}")
        if isinstance(value, Mapping):
            return {key: self._copy(item, _dotted(place, key), depth + 1) for key, item in value.items()}
        if type(value) is list or type(value) is tuple:
            return type(value)(self._copy(item, f"{place}[{i}]", depth + 1) for i, item in enumerate(value))
        if type(value) is set or type(value) is bytearray:
            return type(value)(value)
        return self._expand(value, place)

    def _expand(self, value: object, place: str, refused: str = "") -> Any:
        """Return `value` with variables expanded if it is text; no variable may contain a character of `refused`."""
        if not isinstance(value, str) or "${" not in value:
            return value
        if self.environ is None:
            return value
        return expand(value, self.environ, self._where(place), refused)

    # --- errors ---

    def _where(self, place: str) -> str:
        named = place and (self.keyed or place != "STORAGE")
        return f"{self.source}: {place}" if named else self.source

    def _wrong(self, place: str, problem: str) -> ConfigError:
        return ConfigError(f"{self._where(place)}: {problem}")


def _dotted(place: str, key: object) -> str:
    return f"{place}.{shown_name(key)[1:-1]}"


def _kind(value: object) -> str:
    """Return a description of the type of `value`, without showing it."""
    if value is None:
        return "nothing"
    if isinstance(value, str):
        return "text" if value else "an empty text"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, Mapping):
        return "a mapping"
    return "a list" if isinstance(value, list | tuple) else a_or_an(type(value).__name__)
