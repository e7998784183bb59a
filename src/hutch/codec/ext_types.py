"""The MessagePack extension types of hutch: one number a type, listed in docs/format.md.

`encode_ext` and `decode_ext` are the hooks of ormsgpack. A decoder takes what its encoder writes and nothing else, in
time and memory that the length of the input bounds.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta
from functools import cache
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from typing import Any
from uuid import UUID

import ormsgpack
from ormsgpack import Ext

from ..errors import CorruptValueError, ValueTypeError
from ..handlers import guard_entry, raised_by_handler
from . import registry
from .bounds import EQUAL_HASHES, LONG_BODIES, LONG_FRACTION, SHORT, has_equal_hashes, is_nested_too_deep, is_short
from .zones import decode_zone, encode_zone

OPTIONS = (
    ormsgpack.OPT_PASSTHROUGH_BIG_INT
    | ormsgpack.OPT_PASSTHROUGH_DATACLASS
    | ormsgpack.OPT_PASSTHROUGH_DATETIME
    | ormsgpack.OPT_PASSTHROUGH_ENUM
    | ormsgpack.OPT_PASSTHROUGH_SUBCLASS
    | ormsgpack.OPT_PASSTHROUGH_TUPLE
    | ormsgpack.OPT_PASSTHROUGH_UUID
)
TUPLE, SET, FROZENSET, BIG_INT, MAP, DATETIME, DATE, TIME, TIMEDELTA = range(1, 10)
DECIMAL, FRACTION, COMPLEX, UUID_, PATH, RANGE, SURROGATES, REGISTERED = range(10, 18)

_packb, _unpackb = ormsgpack.packb, ormsgpack.unpackb
_complex = struct.Struct(">dd")
# All that str() of a Decimal can hold.
_DECIMAL_BYTES = b"0123456789+-.EeINFNATYSinfatys"
# Of items that an attempt to pack without a hook is too much for.
_FEW = 100
_CONTAINERS = frozenset({TUPLE, SET, FROZENSET, MAP, FRACTION, RANGE, REGISTERED})


class _PerThread(threading.local):
    #: What hooks raised, the newest first: ormsgpack discards it and says "ext_hook failed", or that a type cannot be
    #: packed. Each call of ormsgpack that fails because of a hook takes the newest off. Between the two stands nothing
    #: that the interpreter could interrupt by a signal handler, no call among them.
    raised: tuple[BaseException, Any] | None = None
    #: How many bodies of more than `bounds.SHORT` bytes are being decoded within each other.
    long_bodies = 0


per_thread = _PerThread()
# What ormsgpack says of a hook that raised.
_HOOK_FAILED = ("ext_hook failed",)
_MAKE: tuple[Any, ...] = (None, tuple, set, frozenset)


@guard_entry
def encode_ext(value: Any) -> Ext:
    """ormsgpack's hook for a value it was told to pass through. Raises TypeError for a type without a number."""
    try:
        encode = ENCODERS.get(type(value))
        if encode is not None:
            return encode(value)
        kind = registry.find(type(value))
        if kind is None:
            encode = late_encoder(type(value))
            if encode is not None:
                return encode(value)
            raise TypeError(type(value).__name__)
        return Ext(REGISTERED, pack([kind.name, kind.encode(value)]))
    except BaseException as error:
        per_thread.raised = (error, per_thread.raised)
        raise


@guard_entry
def decode_ext(number: int, data: bytes) -> Any:
    """ormsgpack's hook for an extension. Raises CorruptValueError for a number or a body that is not hutch's."""
    try:
        if 0 < number < BIG_INT and len(data) <= SHORT:  # most are; without a call that another type needs
            items = _unpackb(data, ext_hook=decode_ext)
            if items.__class__ is list:
                return _MAKE[number](items)
            raise _not_as_written("a list of items")
        decode = _DECODER[number]
        if decode is None:
            raise CorruptValueError(f"extension type {number} is unknown; a newer hutch may have written it")
        return decode(data)
    except BaseException as error:
        if error.__class__ is not ValueError or error.args != _HOOK_FAILED:  # else the hook within took note
            per_thread.raised = (error, per_thread.raised)
        raise


def pack(value: Any) -> bytes:
    """The MessagePack of `value`. Raises what a hook raised, or what ormsgpack raises for what it cannot pack."""
    try:
        return _packb(value, encode_ext, OPTIONS)
    except (TypeError, ValueError) as error:
        traceback, raised = error.__traceback__, per_thread.raised
        # What ormsgpack raises itself has no other frame; a signal handler leaves its own.
        if raised is None or traceback is None or traceback.tb_next is not None:
            raise
        per_thread.raised = raised[1]
    try:
        raise raised[0]
    finally:
        del raised


def _items(data: bytes) -> list[Any]:
    """The items of a packed array. What a hook raised within stays noted; see `decode_ext`."""
    items = _unpackb(data, ext_hook=decode_ext) if len(data) <= SHORT else _unpack_long(data)
    if items.__class__ is list:
        return items
    raise _not_as_written("a list of items")


def _unpack_long(data: bytes) -> Any:
    """What is packed in a body that is long enough to be nested too deep for the C stack."""
    outer = per_thread.long_bodies
    if outer == LONG_BODIES and is_nested_too_deep(data, _CONTAINERS):
        raise CorruptValueError("it is nested too deep")
    try:
        per_thread.long_bodies = outer + 1
        return _unpackb(data, ext_hook=decode_ext)
    finally:
        per_thread.long_bodies = outer


def _hashed(data: bytes) -> list[Any]:
    """The same, where a set is to be made of the items in bounded time. Raises CorruptValueError otherwise."""
    try:
        # Without an extension there are at most nine ints, and a few floats, of one hash.
        items = _unpackb(data)
        if items.__class__ is list:
            return items
    except ValueError as error:
        if raised_by_handler(error):
            raise
    items = _items(data)
    if has_equal_hashes(items):
        raise CorruptValueError(EQUAL_HASHES)
    return items


def _not_as_written(expected: str) -> CorruptValueError:
    return CorruptValueError(f"its checksum fits, but a part of it is not what hutch writes there, {expected}")


# --- times ---


def _encode_datetime(value: datetime) -> Ext:
    if value.tzinfo is UTC:  # most are: half the time
        return Ext(DATETIME, _packb([value.isoformat()[: -len("+00:00")], value.fold, 0]))
    return Ext(DATETIME, _packb([value.replace(tzinfo=None).isoformat(), value.fold, encode_zone(value.tzinfo)]))


def _decode_datetime(data: bytes) -> datetime:
    text, fold, zone = _unpackb(data)
    # As isoformat() writes it; fromisoformat() reads much else.
    if len(text) != 26 and len(text) != 19:
        raise _not_as_written("a time")
    if not fold and (zone is None or zone == 0):
        return datetime.fromisoformat(text if zone is None else text + "+00:00")
    return datetime.fromisoformat(text).replace(fold=fold, tzinfo=decode_zone(zone))


def _decode_date(data: bytes) -> date:
    if data[7] != 0x2D:  # "-", as in no other form that fromisoformat() reads
        raise _not_as_written("a date")
    return date.fromisoformat(data.decode())


def _encode_time(value: time) -> Ext:
    return Ext(TIME, _packb([value.replace(tzinfo=None).isoformat(), value.fold, encode_zone(value.tzinfo)]))


def _decode_time(data: bytes) -> time:
    text, fold, zone = _unpackb(data)
    if len(text) not in (8, 15) or text[5] != ":":
        raise _not_as_written("a time")
    return time.fromisoformat(text).replace(fold=fold, tzinfo=decode_zone(zone))


# --- the other types ---


def encode_int(value: int) -> Ext:
    return Ext(BIG_INT, value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True))


_PATHS: dict[str, type[PurePath]] = {"posix": PurePosixPath, "windows": PureWindowsPath}
_PATH_KINDS: dict[type, str] = {PurePosixPath: "posix", PureWindowsPath: "windows", type(Path()): "path"}


def _decode_timedelta(data: bytes) -> timedelta:
    days, seconds, microseconds = _unpackb(data)
    if not days.__class__ is seconds.__class__ is microseconds.__class__ is int:
        raise _not_as_written("three ints")
    return timedelta(days, seconds, microseconds)


def _decode_range(data: bytes) -> range:
    start, stop, step = _items(data)
    if not start.__class__ is stop.__class__ is step.__class__ is int:
        raise _not_as_written("three ints")
    return range(start, stop, step)


def _encode_path(value: PurePath) -> Ext:
    text = str(value)
    data = text.encode("utf-8", "surrogatepass")
    return Ext(PATH, _packb([_PATH_KINDS[type(value)], isinstance(value, PureWindowsPath), data]))


def _decode_path(data: bytes) -> PurePath:
    kind, windows, encoded = _unpackb(data)
    if type(windows) is not bool or type(encoded) is not bytes:
        raise _not_as_written("a path")
    text = encoded.decode("utf-8", "surrogatepass")
    if kind != "path":
        return _PATHS[kind](text)
    # A path of another system cannot be used here, but it can be looked at.
    here = issubclass(type(Path()), PureWindowsPath)
    return Path(text) if here == windows else _PATHS["windows" if windows else "posix"](text)


def _decode_map(data: bytes) -> dict[Any, Any]:
    items = _items(data)
    if len(data) > SHORT and has_equal_hashes(items[::2]):
        raise CorruptValueError(EQUAL_HASHES)
    flat = iter(items)
    result = dict(zip(flat, flat, strict=True))
    if len(result) * 2 != len(items):
        raise _not_as_written("each key once")
    return result


def _decode_registered(data: bytes) -> Any:
    name, payload = _items(data)
    return registry.decode(name, payload)


def _decode_decimal(data: bytes) -> Any:
    if data.translate(None, _DECIMAL_BYTES):
        raise _not_as_written("a decimal number")
    return _decimal()(data.decode())


@cache
def _decimal() -> Any:
    from decimal import Decimal

    return Decimal


def _decode_fraction(data: bytes) -> Any:
    numerator, denominator = _items(data)
    if not numerator.__class__ is denominator.__class__ is int:
        raise _not_as_written("two ints")
    if len(data) > SHORT and not is_short(numerator, denominator):
        raise CorruptValueError("it holds a Fraction of more digits than hutch writes")
    return _fraction()(numerator, denominator)


@cache
def _fraction() -> Any:
    from fractions import Fraction

    return Fraction


def _encode_fraction(value: Any) -> Ext:
    data = pack([value.numerator, value.denominator])
    if len(data) > SHORT and not is_short(value.numerator, value.denominator):
        raise ValueTypeError(LONG_FRACTION)
    return Ext(FRACTION, data)


def _encode_set(value: set[Any] | frozenset[Any]) -> Ext:
    number = SEQUENCES[type(value)]
    if len(value) > _FEW:
        try:
            return Ext(number, _packb(list(value), None, OPTIONS))  # without an extension, as in `_hashed`
        except (TypeError, ValueError) as error:
            if raised_by_handler(error):
                raise
    data = pack(list(value))
    if len(data) > SHORT and has_equal_hashes(value):
        raise ValueTypeError(EQUAL_HASHES)
    return Ext(number, data)


def late_encoder(cls: type) -> Callable[[Any], Ext] | None:
    """That of Decimal and Fraction, whose modules are imported by who has one: it takes as long as opening a store."""
    if cls.__name__ == "Decimal":
        from decimal import Decimal

        ENCODERS[Decimal] = lambda v: Ext(DECIMAL, str(v).encode())
    elif cls.__name__ == "Fraction":
        from fractions import Fraction

        ENCODERS[Fraction] = _encode_fraction
    return ENCODERS.get(cls)


ENCODERS: dict[type, Callable[[Any], Ext]] = {
    tuple: lambda v: Ext(TUPLE, pack(list(v))),
    set: _encode_set,
    frozenset: _encode_set,
    int: encode_int,
    datetime: _encode_datetime,
    date: lambda v: Ext(DATE, v.isoformat().encode()),
    time: _encode_time,
    timedelta: lambda v: Ext(TIMEDELTA, _packb([v.days, v.seconds, v.microseconds])),
    complex: lambda v: Ext(COMPLEX, _complex.pack(v.real, v.imag)),
    UUID: lambda v: Ext(UUID_, v.bytes),
    range: lambda v: Ext(RANGE, pack([v.start, v.stop, v.step])),
    **dict.fromkeys(_PATH_KINDS, _encode_path),
}
_DECODERS: dict[int, Callable[[bytes], Any]] = {
    # These three if they are long.
    TUPLE: lambda d: tuple(_items(d)),
    SET: lambda d: set(_hashed(d)),
    FROZENSET: lambda d: frozenset(_hashed(d)),
    BIG_INT: lambda d: int.from_bytes(d, "big", signed=True),
    MAP: _decode_map,
    DATETIME: _decode_datetime,
    DATE: _decode_date,
    TIME: _decode_time,
    TIMEDELTA: _decode_timedelta,
    DECIMAL: _decode_decimal,
    FRACTION: _decode_fraction,
    COMPLEX: lambda d: complex(*_complex.unpack(d)),
    UUID_: lambda d: UUID(bytes=d),
    PATH: _decode_path,
    RANGE: _decode_range,
    SURROGATES: lambda d: d.decode("utf-8", "surrogatepass"),
    REGISTERED: _decode_registered,
}

# By number, of which those below zero are the upper half: half as long as a look into a dict.
_DECODER = [_DECODERS.get(number if number < 128 else number - 256) for number in range(256)]

SEQUENCES: dict[type, int] = {tuple: TUPLE, set: SET, frozenset: FROZENSET}
