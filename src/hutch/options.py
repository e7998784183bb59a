"""Options of an engine: declared as data, validated once, converted from the text of a URL."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from .errors import ConfigError, nearest
from .handlers import passes_through

_TRUE = frozenset({"true", "yes", "on", "1"})
_FALSE = frozenset({"false", "no", "off", "0"})
_EXPECTED = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path"}


class ByFields:
    """Equality, hash and repr of a dataclass by its fields, for classes that every open needs.

    `dataclass` would compile its own for each class; together they took a tenth of the first open of a process.
    """

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in type(self).__match_args__)  # type: ignore[attr-defined]

    def __hash__(self) -> int:
        return hash(tuple(getattr(self, one.name) for one in fields(self) if one.hash is not False))  # type: ignore[arg-type]

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={getattr(self, name)!r}" for name in type(self).__match_args__)  # type: ignore[attr-defined]
        return f"{type(self).__qualname__}({shown})"


@dataclass(frozen=True, repr=False, eq=False)
class Option(ByFields):
    """One option of an engine.

    `kind` is bool, int, float, str or Path (made absolute, relative to the config file's folder). `default`
    is used when the option is absent; a `required` option has no default. `secret` keeps the value out of messages.
    """

    kind: type
    default: Any = field(default=None, hash=False)  # it may be a list
    help: str = ""
    choices: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    required: bool = False
    secret: bool = False


def read_options(
    config: object,
    declared: Mapping[str, Option] | None,
    engine: str,
    kind: str = "engine",
    hints: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Return the options in `config`, validated against `declared` (not at all if None), with defaults filled in.

    `engine` and `kind` name the owner of the options in messages: "the lmdb engine", "the cache layer". `hints` maps
    undeclared names that users may expect to advice on what to write instead.
    Raises ConfigError that names the option, what was expected and, for an unknown option, the nearest name.
    """
    given = _given_options(config, engine)
    if declared is None:
        return given
    unknown = [name for name in given if name not in declared]
    if unknown:
        name = str(unknown[0])
        advice = f" Instead: {hints[name]}." if hints and name in hints else nearest(name, declared)
        raise ConfigError(
            f"the {engine} {kind} has no option {unknown[0]!r}.{advice} "
            f"It takes: {', '.join(sorted(declared)) or 'none'}"
        )
    base_dir = getattr(config, "base_dir", None) or Path.cwd()
    options = {}
    for name, option in declared.items():
        if given.get(name) is None:
            if option.required:
                raise ConfigError(f"the {engine} {kind} needs the option {name!r}: {option.help}")
            options[name] = option.default
            continue
        options[name] = _convert(given[name], option, f"option {name!r} of the {engine} {kind}", base_dir)
    return options


def _given_options(config: object, engine: str) -> dict[str, Any]:
    if config is None:
        return {}
    if isinstance(config, Mapping):
        options = config.get("STORAGE_CONFIG", config.get("storage_config", config))
    else:
        options = getattr(config, "STORAGE_CONFIG", {})
    if options is None:
        return {}
    if not isinstance(options, Mapping):
        raise ConfigError(f"STORAGE_CONFIG of the {engine} engine must be a mapping, not {type(options).__name__}")
    return dict(options)


def _convert(value: Any, option: Option, what: str, base_dir: str | os.PathLike[str]) -> Any:
    converted = _to_kind(value, option.kind, base_dir)
    shown = "" if option.secret else f", not {value!r}"
    if converted is None:
        raise ConfigError(f"{what} must be {_EXPECTED[option.kind]}{shown}")
    if option.choices and converted not in option.choices:
        hint = "" if option.secret else nearest(str(value), option.choices)
        raise ConfigError(f"{what} must be one of {', '.join(option.choices)}{shown}.{hint}")
    low, high = option.minimum, option.maximum
    if (low is not None and converted < low) or (high is not None and converted > high):
        span = f"at least {low:,}" if high is None else f"from {low:,} to {high:,}"
        raise ConfigError(f"{what} must be {span}{shown}")
    return converted


def _to_kind(value: Any, kind: type, base_dir: str | os.PathLike[str]) -> Any:
    """Return `value` converted to `kind`, or None if that fails. Text is converted too: URL options are text."""
    if kind is bool:
        if isinstance(value, bool):
            return value
        folded = str(value).casefold()
        return True if folded in _TRUE else False if folded in _FALSE else None
    if kind is Path:
        text = os.fspath(value) if isinstance(value, str | os.PathLike) else None
        if not isinstance(text, str) or not text or "\0" in text:
            return None
        try:
            os.fsencode(text)
        except UnicodeEncodeError as error:  # a lone surrogate
            if passes_through(error):
                raise
            return None
        if text[0] == "~":
            text = str(Path(text).expanduser())
        # Not resolve(): keep a symbolic link, which may point elsewhere later.
        return Path(os.path.abspath(os.path.join(base_dir, text)))  # noqa: PTH100, PTH118 - a third of the time
    if kind is str:
        return value if isinstance(value, str) else None
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = kind(value)
    except (ValueError, OverflowError) as error:
        if passes_through(error):
            raise
        return None
    exact = not isinstance(value, float) or number == value
    return number if exact and number == number else None
