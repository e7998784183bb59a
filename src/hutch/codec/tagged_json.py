"""Tagged JSON: every value of the default codec as JSON text that keeps its type. docs/dump-format.md specifies it.

A value that JSON keeps is written as plain JSON. Any other is an object whose first name starts with ``$``:
``{"$set": ["a", "b"]}``. A dict that would look like such an object becomes ``{"$dict": [[key, value], ...]}``.
"""

from __future__ import annotations

import json
import math
import struct
from base64 import b64decode, b64encode
from collections import defaultdict, deque
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from fractions import Fraction
from functools import partial
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from typing import Any
from uuid import UUID

from ..errors import CorruptValueError, ValueTypeError, a_or_an
from ..handlers import passes_through, raised_by_handler
from . import addresses, containers, registry
from .bounds import EQUAL_HASHES, LONG_FRACTION, has_equal_hashes, is_short
from .ext_types import COLLECTIONS
from .json import MOST_DIGITS, parse_int
from .refusals import full_name, way_out
from .walk import MAX_DEPTH
from .zones import ZoneError, decode_zone, encode_zone

# JavaScript, jq and most other readers round larger integers.
_LARGEST_PLAIN_INT = 2**53 - 1
# CPython refuses to parse or format longer decimal numbers; hexadecimal has no such limit.
_LONGEST_DECIMAL_BITS = 10_000
_TAGS: dict[type, str] = dict(zip(COLLECTIONS, ("$ordered_dict", "$defaultdict", "$counter", "$deque"), strict=True))
_float_bits = struct.Struct(">d")
_PLAIN_NAN = bytes.fromhex("7ff8000000000000")


def to_tagged(value: object) -> Any:
    """Return `value` in types that `json.dumps` writes without loss: None, bool, int, float, str, list, str-keyed dict.

    Equal values of identical types give equal results, sets included. Raises ValueTypeError for a value that the
    default codec refuses.
    """
    return _tag(value, 0)


def to_json(value: object) -> str:
    """Return `value` as one line of tagged JSON without terminal control characters. Raises what `to_tagged` raises."""
    try:
        return json_text(to_tagged(value))
    except RecursionError as error:
        if raised_by_handler(error):
            raise
        raise _too_deep() from None


def json_text(tagged: Any) -> str:
    """Return a result of `to_tagged` as one line of JSON; unprintable characters are written as ``\\uXXXX``."""
    text = json.dumps(tagged, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    if text.isprintable():
        return text
    # json.dumps escapes only U+0000 to U+001F. Unprintable characters occur only in strings, where escapes are valid.
    return "".join(char if char.isprintable() else json.dumps(char)[1:-1] for char in text)


def from_json(text: str | bytes) -> Any:
    """Return the value that `text`, one document of tagged JSON, stands for; it may be written by hand.

    Raises CorruptValueError that says what was expected and quotes nothing of the text except tags and type names.
    """
    try:
        return json.loads(text, object_pairs_hook=_read_object, parse_constant=_refuse_constant, parse_int=parse_int())
    except CorruptValueError:
        raise
    except (ValueError, RecursionError) as error:
        if raised_by_handler(error):
            raise
        raise CorruptValueError(_problem(error)) from None


def _problem(error: Exception) -> str:
    """Return what is wrong with the text for which `json.loads` raised `error`, without quoting the text."""
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8: byte {error.start} cannot be read"
    if isinstance(error, RecursionError):
        return "it is nested too deep"
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON: {error.msg.partition(':')[0]} at character {error.pos + 1}"
    return "not JSON that hutch can read: an int has too many digits"


# --- writing ---


def _tag(value: Any, depth: int) -> Any:
    kind = type(value)
    if value is None or kind is bool:
        return value
    if kind is str:
        return value if value.isascii() else _tag_text(value)
    if kind is int:
        return value if -_LARGEST_PLAIN_INT <= value <= _LARGEST_PLAIN_INT else {"$int": _digits(value)}
    if kind is float:
        return value if math.isfinite(value) else {"$float": _not_finite(value)}
    if depth > MAX_DEPTH:
        raise _too_deep()
    if kind is list:
        return [_tag(item, depth + 1) for item in value]
    if kind is dict:
        return _tag_dict(value, depth)
    if kind in _TAGS:
        return {_TAGS[kind]: _tag_collection(value, depth)}
    write = _WRITERS.get(kind) or _late_writer(kind)
    if write is not None:
        tag, payload = write(value)
        return {tag: _tag(payload, depth)}
    if kind in (set, frozenset):
        # Sorted, so that equal sets give equal text.
        if has_equal_hashes(value):
            raise ValueTypeError(f"it is or holds {a_or_an(kind.__name__)}: {EQUAL_HASHES}")
        return {f"${kind.__name__}": sorted((_tag(item, depth + 1) for item in value), key=json.dumps)}
    known = registry.find(kind)
    if known is not None:
        return {"$type": known.name, "value": _tag(_state(known, value), depth + 1)}
    raise ValueTypeError(
        f"it is or holds {a_or_an(full_name(kind))}, which JSON with type tags cannot store. "
        + way_out(kind, pickle=False)
    )


def _state(known: registry.Registration, value: Any) -> Any:
    try:
        return known.encode(value)
    except Exception as error:
        if isinstance(error, ValueTypeError) or passes_through(error):
            raise
        message = f"it is or holds {a_or_an(known.name)} whose registered encode raised {registry.raised_where(error)}"
        raise ValueTypeError(message) from None


def _tag_text(text: str) -> Any:
    try:
        text.encode()
    except UnicodeEncodeError:
        # Escaped in a JSON string, two adjacent lone surrogates would be read back as one character.
        return {"$surrogates": b64encode(text.encode("utf-8", "surrogatepass")).decode()}
    return text


def _tag_dict(value: dict[Any, Any], depth: int) -> Any:
    if all(type(key) is str and key[:1] != "$" and (key.isascii() or type(_tag_text(key)) is str) for key in value):
        return {key: _tag(item, depth + 1) for key, item in value.items()}
    return {"$dict": _tag_pairs(value, depth)}


def _tag_pairs(value: dict[Any, Any], depth: int) -> list[Any]:
    if has_equal_hashes(value.keys()):
        raise ValueTypeError(f"it is or holds {a_or_an(type(value).__name__)}: {EQUAL_HASHES}")
    return [[_tag(key, depth + 1), _tag(item, depth + 1)] for key, item in value.items()]


def _tag_collection(value: Any, depth: int) -> list[Any]:
    try:
        header = containers.header_of(value)
    except ValueTypeError as error:
        raise ValueTypeError(f"it is or holds {error}") from None
    if type(value) not in containers.MAPPINGS:
        return [*header, [_tag(item, depth + 1) for item in value]]
    pairs = _tag_pairs(value, depth)
    return [*header, pairs] if header else pairs


def _digits(value: int) -> str:
    return str(value) if value.bit_length() <= _LONGEST_DECIMAL_BITS else hex(value)


def _not_finite(value: float) -> str:
    bits = _float_bits.pack(value)
    return f"nan:{bits.hex()}" if math.isnan(value) and bits != _PLAIN_NAN else repr(value)


def _datetime(value: datetime) -> Any:
    zone = _zone_of(value)
    if value.fold == 0 and (zone is None or isinstance(zone, int)):
        return value.isoformat()
    return [value.replace(tzinfo=None).isoformat(), value.fold, zone]


def _time(value: time) -> Any:
    zone = _zone_of(value)
    if value.fold == 0 and (zone is None or isinstance(zone, int)):
        return value.isoformat()
    return [value.replace(tzinfo=None).isoformat(), value.fold, zone]


def _zone_of(value: datetime | time) -> object:
    try:
        return encode_zone(value.tzinfo)
    except ZoneError as error:
        raise ValueTypeError(
            f"it is or holds {a_or_an(type(value).__name__)} with a {error}, which hutch cannot write. Use "
            "zoneinfo.ZoneInfo or datetime.timezone, or convert a datetime with .astimezone(datetime.UTC)"
        ) from None


def _fraction(value: Fraction) -> Any:
    if not is_short(value.numerator, value.denominator):
        raise ValueTypeError(f"it is or holds {LONG_FRACTION}")
    return [value.numerator, value.denominator]


def _too_deep() -> ValueTypeError:
    return ValueTypeError(f"it is nested more than {MAX_DEPTH} levels deep or refers to itself; flatten it")


_windows_here = issubclass(type(Path()), PureWindowsPath)
_PATH_TAG = "$windows_path" if _windows_here else "$path"

_WRITERS: dict[type, Callable[[Any], tuple[str, Any]]] = {
    bytes: lambda v: ("$bytes", b64encode(v).decode()),
    tuple: lambda v: ("$tuple", list(v)),
    datetime: lambda v: ("$datetime", _datetime(v)),
    date: lambda v: ("$date", v.isoformat()),
    time: lambda v: ("$time", _time(v)),
    timedelta: lambda v: ("$timedelta", [v.days, v.seconds, v.microseconds]),
    Decimal: lambda v: ("$decimal", str(v)),
    Fraction: lambda v: ("$fraction", _fraction(v)),
    complex: lambda v: ("$complex", [v.real, v.imag]),
    UUID: lambda v: ("$uuid", str(v)),
    range: lambda v: ("$range", [v.start, v.stop, v.step]),
    PurePosixPath: lambda v: ("$pure_posix_path", str(v)),
    PureWindowsPath: lambda v: ("$pure_windows_path", str(v)),
    type(Path()): lambda v: (_PATH_TAG, str(v)),
}


def _late_writer(kind: type) -> Callable[[Any], tuple[str, Any]] | None:
    if kind.__module__ != "ipaddress" or kind not in addresses.classes():
        return None
    tag = f"$ip_{addresses.classes()[kind]}"
    return lambda value: (tag, str(value))


# --- reading ---


def _read_object(pairs: list[tuple[str, Any]]) -> Any:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise CorruptValueError("an object has the same name twice")
    if not any(name[:1] == "$" for name in result):
        return result
    tag = pairs[0][0]
    if tag == "$type" and len(pairs) == 2 and "value" in result and type(result[tag]) is str:
        return registry.decode(result[tag], result["value"])
    read = _READERS.get(tag)
    if read is None or len(pairs) != 1:
        raise CorruptValueError(
            f"{ascii(tag)[:40]} is not a tag, or not alone in its object; a dict with a key that starts with '$' is "
            'written {"$dict": [[key, value], ...]}'
        )
    try:
        return read(pairs[0][1])
    except Exception as error:
        if isinstance(error, CorruptValueError) or passes_through(error):
            raise
        # The type's own error may quote the value.
        raise CorruptValueError(f"what stands in {tag!r} is not what that tag holds ({type(error).__name__})") from None


def _refuse_constant(name: str) -> Any:
    raise CorruptValueError(
        f"{name} is not JSON; write " + '{"$float": "nan"}, {"$float": "inf"} or {"$float": "-inf"}'
    )


def _list(payload: Any, *types: type) -> list[Any]:
    """Return `payload` if it is a list, with items of exactly `types` if any are given. Raises TypeError otherwise."""
    if type(payload) is not list or (types and [type(part) for part in payload] != list(types)):
        raise TypeError
    return payload


def _text(payload: Any) -> str:
    if type(payload) is not str:
        raise TypeError
    return payload


def _read_int(payload: Any) -> int:
    digits = _text(payload)
    if "x" in digits:
        return int(digits, 16)
    if len(digits) > MOST_DIGITS:
        raise ValueError
    return int(digits)


def _read_float(payload: Any) -> float:
    kind, colon, bits = _text(payload).partition(":")
    if kind not in ("nan", "inf", "-inf"):
        raise ValueError
    value: float = _float_bits.unpack(bytes.fromhex(bits))[0] if colon else float(kind)
    return value


def _hashed(items: list[Any]) -> list[Any]:
    if has_equal_hashes(items):
        raise CorruptValueError(EQUAL_HASHES)
    return items


def _read_collection(kind: type, payload: Any) -> Any:
    if kind is deque:
        maxlen, items = _list(payload)
        return containers.make_deque(maxlen, _list(items))
    factory, pairs = _list(payload) if kind is defaultdict else (None, payload)
    return containers.make_mapping(kind, _read_dict(pairs), factory)


def _read_address(kind: str, payload: Any) -> Any:
    import ipaddress

    return getattr(ipaddress, f"ip_{kind}")(_text(payload))


def _read_dict(payload: Any) -> dict[Any, Any]:
    pairs = list(map(_list, _list(payload)))
    _hashed([key for key, _ in pairs])
    result: dict[Any, Any] = dict(pairs)
    if len(result) != len(payload):
        raise CorruptValueError("a '$dict' has the same key twice")
    return result


def _read_datetime(payload: Any) -> datetime:
    if type(payload) is str:
        return datetime.fromisoformat(payload)
    text, fold, zone = _list(payload)
    return datetime.fromisoformat(text).replace(fold=fold, tzinfo=decode_zone(zone))


def _read_time(payload: Any) -> time:
    if type(payload) is str:
        return time.fromisoformat(payload)
    text, fold, zone = _list(payload)
    return time.fromisoformat(text).replace(fold=fold, tzinfo=decode_zone(zone))


def _read_fraction(payload: Any) -> Fraction:
    numerator, denominator = _list(payload, int, int)
    if not is_short(numerator, denominator):
        raise CorruptValueError("a '$fraction' has more digits than hutch writes")
    return Fraction(numerator, denominator)


def _read_complex(payload: Any) -> complex:
    real, imag = _list(payload)
    if not {type(real), type(imag)} <= {int, float}:  # another program may have written 1.0 as 1
        raise TypeError
    return complex(real, imag)


def _read_path(windows: bool) -> Callable[[Any], PurePath]:
    pure: type[PurePath] = PureWindowsPath if windows else PurePosixPath
    # A path of another operating system cannot be opened here; a pure path can still be inspected.
    return lambda payload: (Path if windows == _windows_here else pure)(_text(payload))


_READERS: dict[str, Callable[[Any], Any]] = {
    "$int": _read_int,
    "$float": _read_float,
    "$surrogates": lambda p: b64decode(_text(p), validate=True).decode("utf-8", "surrogatepass"),
    "$bytes": lambda p: b64decode(_text(p), validate=True),
    "$tuple": lambda p: tuple(_list(p)),
    "$set": lambda p: set(_hashed(_list(p))),
    "$frozenset": lambda p: frozenset(_hashed(_list(p))),
    "$dict": _read_dict,
    "$datetime": _read_datetime,
    "$date": date.fromisoformat,
    "$time": _read_time,
    "$timedelta": lambda p: timedelta(*_list(p, int, int, int)),
    "$decimal": lambda p: Decimal(_text(p)),
    "$fraction": _read_fraction,
    "$complex": _read_complex,
    "$uuid": lambda p: UUID(_text(p)),
    "$range": lambda p: range(*_list(p, int, int, int)),
    "$path": _read_path(windows=False),
    "$windows_path": _read_path(windows=True),
    "$pure_posix_path": lambda p: PurePosixPath(_text(p)),
    "$pure_windows_path": lambda p: PureWindowsPath(_text(p)),
    **{tag: partial(_read_collection, kind) for kind, tag in _TAGS.items()},
    **{f"$ip_{kind}": partial(_read_address, kind) for kind in addresses.KINDS},
}
