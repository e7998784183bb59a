"""Construct the values of a pickle by functions that validate their arguments: one per class, named in `CONSTRUCTORS`.

Each takes what the pickles of its class give it, and nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from typing import Any, Final
from uuid import SafeUUID

# Making a fraction computes a greatest common divisor, whose time grows with the square of the length.
_LONGEST_INT_BITS: Final = 1 << 15


class NotPlainError(Exception):
    """The pickle holds types that the default codec does not store, or would grow beyond the bounds."""


class Global:
    """Placeholder for a class or function in a pickle; equal to nothing, and stored by no codec."""

    __slots__ = ("name",)

    def __init__(self, module: str, name: str) -> None:
        # Map the names of Python 2, which protocol 2 uses, and of Python 3.13.
        module = {"__builtin__": "builtins", "pathlib._local": "pathlib", "copy_reg": "copyreg"}.get(module, module)
        self.name = "builtins.range" if (module, name) == ("builtins", "xrange") else f"{module}.{name}"


def _require(condition: bool) -> None:
    if not condition:
        raise NotPlainError("arguments")


def _are(kinds: tuple[type, ...], arguments: tuple[Any, ...]) -> bool:
    return len(kinds) == len(arguments) and all(type(a) is kind for a, kind in zip(arguments, kinds, strict=True))


def make_set(*arguments: Any) -> set[Any]:
    _require(not arguments or _are((list,), arguments))
    return set(*arguments)


def make_frozenset(*arguments: Any) -> frozenset[Any]:
    _require(not arguments or _are((list,), arguments))
    return frozenset(*arguments)


def _bytes(*arguments: Any) -> bytes:
    _require(not arguments)
    return b""


def _encode(*arguments: Any) -> bytes:
    _require(_are((str, str), arguments) and arguments[1] == "latin1")
    return bytes(arguments[0], "latin-1")


def _complex(*arguments: Any) -> complex:
    _require(_are((float, float), arguments))
    return complex(*arguments)


def _range(*arguments: Any) -> range:
    _require(_are((int, int, int), arguments) and all(number.bit_length() <= _LONGEST_INT_BITS for number in arguments))
    return range(*arguments)


def _date(*arguments: Any) -> date:
    _require(_are((bytes,), arguments))
    return date(*arguments)


def _datetime(*arguments: Any) -> datetime:
    _require(_are((bytes,), arguments[:1]) and all(isinstance(zone, tzinfo) for zone in arguments[1:]))
    return datetime(*arguments)


def _time(*arguments: Any) -> time:
    _require(_are((bytes,), arguments[:1]) and all(isinstance(zone, tzinfo) for zone in arguments[1:]))
    return time(*arguments)


def _timedelta(*arguments: Any) -> timedelta:
    _require(_are((int, int, int), arguments))
    return timedelta(*arguments)


def _timezone(*arguments: Any) -> timezone:
    _require(_are((timedelta,), arguments) or _are((timedelta, str), arguments))
    return timezone(*arguments)


def _decimal(*arguments: Any) -> Decimal:
    _require(_are((str,), arguments))
    return Decimal(*arguments)


def _fraction(*arguments: Any) -> Any:
    from fractions import Fraction

    if _are((str,), arguments):  # before Python 3.12
        _require(re.fullmatch(r"-?[0-9]{1,4000}(/[0-9]{1,4000})?", arguments[0]) is not None)
    else:
        _require(_are((int, int), arguments) and all(number.bit_length() <= _LONGEST_INT_BITS for number in arguments))
    return Fraction(*arguments)


def _path(name: str) -> Callable[..., Any]:
    def make(*arguments: Any) -> Any:
        import pathlib

        _require(all(type(part) is str for part in arguments))
        return getattr(pathlib, name)(*arguments)

    return make


def make_safe_uuid(*arguments: Any) -> SafeUUID:
    _require(len(arguments) == 1 and (arguments[0] is None or _are((int,), arguments)))
    return SafeUUID(arguments[0])


def _getattr(*arguments: Any) -> Global:
    _require(len(arguments) == 2 and type(arguments[0]) is Global and type(arguments[1]) is str)
    _require((arguments[0].name, arguments[1]) == ("zoneinfo.ZoneInfo", "_unpickle"))
    return Global("zoneinfo", "ZoneInfo._unpickle")


def _zone(*arguments: Any) -> tzinfo:
    from zoneinfo import ZoneInfo

    _require(len(arguments) == 2 and type(arguments[0]) is str and type(arguments[1]) in (bool, int))
    return ZoneInfo(arguments[0]) if arguments[1] else ZoneInfo.no_cache(arguments[0])


CONSTRUCTORS: Final[dict[str, Callable[..., Any]]] = {
    "builtins.set": make_set,
    "builtins.frozenset": make_frozenset,
    "builtins.bytes": _bytes,
    "_codecs.encode": _encode,
    "builtins.complex": _complex,
    "builtins.range": _range,
    "datetime.date": _date,
    "datetime.datetime": _datetime,
    "datetime.time": _time,
    "datetime.timedelta": _timedelta,
    "datetime.timezone": _timezone,
    "decimal.Decimal": _decimal,
    "fractions.Fraction": _fraction,
    "pathlib.PosixPath": _path("PosixPath"),
    "pathlib.WindowsPath": _path("WindowsPath"),
    "pathlib.PurePosixPath": _path("PurePosixPath"),
    "pathlib.PureWindowsPath": _path("PureWindowsPath"),
    "uuid.SafeUUID": make_safe_uuid,
    "builtins.getattr": _getattr,
    "zoneinfo.ZoneInfo._unpickle": _zone,
}
