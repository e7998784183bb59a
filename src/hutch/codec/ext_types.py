"""The MessagePack extension types of hutch: one number per type, listed in docs/format.md.

`encode_ext` and `decode_ext` are hooks for ormsgpack. A decoder accepts only what its encoder writes; its time and
memory are bounded by the length of the input.
"""

from __future__ import annotations

import struct
import threading
from collections import Counter, OrderedDict, defaultdict, deque
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
from . import containers, registry
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
ORDERED_DICT, DEFAULTDICT, COUNTER, DEQUE, IP = range(18, 23)
#: The containers of `collections`: the body is a packed array of what `containers.header_of` returns, and the items.
COLLECTIONS: dict[type, int] = {OrderedDict: ORDERED_DICT, defaultdict: DEFAULTDICT, Counter: COUNTER, deque: DEQUE}

_packb, _unpackb = ormsgpack.packb, ormsgpack.unpackb
_complex = struct.Struct(">dd")
# Every byte that str() of a Decimal can contain.
_DECIMAL_BYTES = b"0123456789+-.EeINFNATYSinfatys"
# Sets of up to this many items are packed with the hook directly; trying without it first would not pay.
_FEW = 100
_CONTAINERS = frozenset({TUPLE, SET, FROZENSET, MAP, FRACTION, RANGE, REGISTERED, *COLLECTIONS.values()})


class _PerThread(threading.local):
    #: A linked list of the errors that hooks raised, newest first. ormsgpack discards them and raises "ext_hook failed"
    #: or that a type cannot be packed. The caller of ormsgpack that sees such a failure pops the newest. No call
    #: stands between push and pop, so that no signal handler can interrupt there.
    raised: tuple[BaseException, Any] | None = None
    #: The nesting depth of bodies longer than `bounds.SHORT` bytes that are being decoded.
    long_bodies = 0


per_thread = _PerThread()
# The arguments of ormsgpack's error for a hook that raised.
_HOOK_FAILED = ("ext_hook failed",)
_MAKE: tuple[Any, ...] = (None, tuple, set, frozenset)


@guard_entry
def encode_ext(value: Any) -> Ext:
    """Return the Ext of a value that ormsgpack passes to its hook. Raises TypeError for a type without a number."""
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
    """Return the value of an extension. Raises CorruptValueError for a number or body that hutch does not write."""
    try:
        if 0 < number < BIG_INT and len(data) <= SHORT:  # the usual case, inlined to save a call
            items = _unpackb(data, ext_hook=decode_ext)
            if items.__class__ is list:
                return _MAKE[number](items)
            raise _not_as_written("a list of items")
        decode = _DECODER[number]
        if decode is None:
            raise CorruptValueError(f"extension type {number} is unknown; a newer hutch may have written it")
        return decode(data)
    except BaseException as error:
        if error.__class__ is not ValueError or error.args != _HOOK_FAILED:  # else the inner hook recorded its error
            per_thread.raised = (error, per_thread.raised)
        raise


def pack(value: Any) -> bytes:
    """Return `value` as MessagePack. Raises what a hook raised, or ormsgpack's error for what it cannot pack."""
    try:
        return _packb(value, encode_ext, OPTIONS)
    except (TypeError, ValueError) as error:
        # An error of ormsgpack itself has no further stack frame; one from a signal handler has.
        if per_thread.raised is None or error.__traceback__ is None or error.__traceback__.tb_next is not None:
            raise
        raised = per_thread.raised
        per_thread.raised = raised[1]
    try:
        raise raised[0]
    finally:
        del raised


def _items(data: bytes) -> list[Any]:
    """Return the items of a packed array. An error of an inner hook stays recorded; see `decode_ext`."""
    items = _unpackb(data, ext_hook=decode_ext) if len(data) <= SHORT else _unpack_long(data)
    if items.__class__ is list:
        return items
    raise _not_as_written("a list of items")


def _unpack_long(data: bytes) -> Any:
    """Return the value of a body that is long enough to be nested too deep for the C stack."""
    outer = per_thread.long_bodies
    if outer == LONG_BODIES and is_nested_too_deep(data, _CONTAINERS):
        raise CorruptValueError("it is nested too deep")
    try:
        per_thread.long_bodies = outer + 1
        return _unpackb(data, ext_hook=decode_ext)
    finally:
        per_thread.long_bodies = outer


def _hashed(data: bytes) -> list[Any]:
    """Return the items of a packed array that make a set in bounded time. Raises CorruptValueError otherwise."""
    try:
        # Without extensions, at most nine ints and a few floats share a hash.
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
    return CorruptValueError(f"its checksum matches, but a part of it is not what hutch writes there, {expected}")


# --- times ---


def _encode_datetime(value: datetime) -> Ext:
    if value.tzinfo is UTC:  # the usual case, in half the time
        return Ext(DATETIME, _packb([value.isoformat()[: -len("+00:00")], value.fold, 0]))
    return Ext(DATETIME, _packb([value.replace(tzinfo=None).isoformat(), value.fold, encode_zone(value.tzinfo)]))


def _decode_datetime(data: bytes) -> datetime:
    text, fold, zone = _unpackb(data)
    # The lengths that isoformat() writes; fromisoformat() accepts many other forms.
    if len(text) != 26 and len(text) != 19:
        raise _not_as_written("a time")
    if not fold and (zone is None or zone == 0):
        return datetime.fromisoformat(text if zone is None else text + "+00:00")
    return datetime.fromisoformat(text).replace(fold=fold, tzinfo=decode_zone(zone))


def _decode_date(data: bytes) -> date:
    if data[7] != 0x2D:  # "-": stands there in no other form that fromisoformat() accepts
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
    # A path of another operating system cannot be opened here; a pure path can still be inspected.
    here = issubclass(type(Path()), PureWindowsPath)
    return Path(text) if here == windows else _PATHS["windows" if windows else "posix"](text)


def _decode_map(data: bytes) -> dict[Any, Any]:
    return _mapping(_items(data), len(data))


def _mapping(items: list[Any], length: int) -> dict[Any, Any]:
    """Return the dict of key, value, key, value, ... in a body of `length` bytes. Raises CorruptValueError."""
    if length > SHORT and has_equal_hashes(items[::2]):
        raise CorruptValueError(EQUAL_HASHES)
    flat = iter(items)
    result = dict(zip(flat, flat, strict=True))
    if len(result) * 2 != len(items):
        raise _not_as_written("each key once")
    return result


def _encode_collection(value: Any) -> Ext:
    data = pack(containers.header_of(value) + containers.items_of(value))
    if len(data) > SHORT and type(value) is not deque and has_equal_hashes(value.keys()):
        raise ValueTypeError(EQUAL_HASHES)
    return Ext(COLLECTIONS[type(value)], data)


def _decode_defaultdict(data: bytes) -> Any:
    factory, *items = _items(data)
    return containers.make_mapping(defaultdict, _mapping(items, len(data)), factory)


def _decode_deque(data: bytes) -> deque[Any]:
    maxlen, *items = _items(data)
    return containers.make_deque(maxlen, items)


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
            return Ext(
                number, _packb(list(value), None, OPTIONS)
            )  # without extensions: few equal hashes, see `_hashed`
        except (TypeError, ValueError) as error:
            if raised_by_handler(error):
                raise
    data = pack(list(value))
    if len(data) > SHORT and has_equal_hashes(value):
        raise ValueTypeError(EQUAL_HASHES)
    return Ext(number, data)


def _decode_address(data: bytes) -> Any:
    from . import addresses

    return addresses.from_parts(*_unpackb(data))


def late_encoder(cls: type) -> Callable[[Any], Ext] | None:
    """Return the encoder of `cls` if it is Decimal, Fraction or a type of ipaddress, else None.

    Their modules are imported only here, because the import takes as long as opening a store.
    """
    if cls.__name__ == "Decimal":
        from decimal import Decimal

        ENCODERS[Decimal] = lambda v: Ext(DECIMAL, str(v).encode())
    elif cls.__name__ == "Fraction":
        from fractions import Fraction

        ENCODERS[Fraction] = _encode_fraction
    elif cls.__module__ == "ipaddress":
        from . import addresses

        ENCODERS.update(dict.fromkeys(addresses.classes(), lambda v: Ext(IP, _packb(addresses.parts_of(v)))))
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
    **dict.fromkeys(COLLECTIONS, _encode_collection),
}
_DECODERS: dict[int, Callable[[bytes], Any]] = {
    # `decode_ext` handles these three itself when they are short.
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
    # Not by `_decode_map`: one stack frame less per level of nesting.
    ORDERED_DICT: lambda d: containers.make_mapping(OrderedDict, _mapping(_items(d), len(d))),
    DEFAULTDICT: _decode_defaultdict,
    COUNTER: lambda d: containers.make_mapping(Counter, _mapping(_items(d), len(d))),
    DEQUE: _decode_deque,
    IP: _decode_address,
}

# Indexed by number, negative numbers in the upper half: takes half the time of a dict lookup.
_DECODER = [_DECODERS.get(number if number < 128 else number - 256) for number in range(256)]

SEQUENCES: dict[type, int] = {tuple: TUPLE, set: SET, frozenset: FROZENSET}
