"""The MessagePack extension types of hutch: one number a type, listed in docs/format.md.

Three functions: `encode_ext` and `decode_ext` are the hooks of ormsgpack; `tag_exactly` is the slow, exact walk
for what ormsgpack's encoder cannot express or would blur.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from typing import Any
from uuid import UUID

import ormsgpack
from ormsgpack import Ext

from ..errors import CorruptValueError, ValueTypeError
from . import registered

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

#: How deep lists, dicts, tuples and sets may nest. ormsgpack reads 1,023 levels of its own; an extension starts
#: anew but costs Python stack, so the limit is set where every Python decodes with room to spare.
MAX_DEPTH = 200

_packb, _unpackb = ormsgpack.packb, ormsgpack.unpackb
_complex = struct.Struct(">dd")
_INT64_MIN, _UINT64_MAX = -(2**63), 2**64 - 1
_ATOMS = frozenset({type(None), bool, int, float, bytes})


# ormsgpack forgets what a hook raised, be it the reason or a Ctrl-C, and says "ext_hook failed" or that the type
# cannot be packed. So the hooks leave it here.
_hooks = threading.local()


def raised_in_hook() -> BaseException | None:
    """The first error that a hook raised in this thread since the last call."""
    error: BaseException | None = getattr(_hooks, "raised", None)
    _hooks.raised = None
    return error


def _remember(error: BaseException) -> None:
    if getattr(_hooks, "raised", None) is None:
        _hooks.raised = error


def encode_ext(value: Any) -> Ext:
    """ormsgpack's hook for a value it was told to pass through. Raises TypeError for a type without a number."""
    try:
        encode = _ENCODERS.get(type(value))
        if encode is not None:
            return encode(value)
        kind = registered.find(type(value))
        if kind is None:
            encode = _late_encoder(type(value))
            if encode is not None:
                return encode(value)
            raise TypeError(type(value).__name__)
        return Ext(REGISTERED, _pack([kind.name, kind.encode(value)]))
    except BaseException as error:
        _remember(error)
        raise


def decode_ext(number: int, data: bytes) -> Any:
    """ormsgpack's hook for an extension. Raises CorruptValueError for a number or a body that is not hutch's."""
    try:
        decode = _DECODERS.get(number)
        if decode is None:
            raise CorruptValueError(f"extension type {number} is unknown; a newer hutch may have written it")
        return decode(data)
    except BaseException as error:
        _remember(error)
        raise


def _pack(value: Any) -> bytes:
    return _packb(value, encode_ext, OPTIONS)


def _unpack(data: bytes) -> Any:
    return _unpackb(data, ext_hook=decode_ext)


# --- zones ---


def encode_zone(zone: tzinfo | None) -> object:
    """None, the offset of a fixed zone in microseconds, [offset, name] of a named one, or the key of a ZoneInfo."""
    if zone is None:
        return None
    if type(zone) is timezone:
        offset = zone.utcoffset(None) // timedelta(microseconds=1)
        # Not by ==, which compares offsets alone: timezone(timedelta(0), "GMT") equals UTC.
        unnamed = zone.tzname(None) == timezone(zone.utcoffset(None)).tzname(None)
        return offset if unnamed else [offset, zone.tzname(None)]
    key = getattr(zone, "key", None)
    if type(zone).__module__.partition(".")[0] == "zoneinfo" and isinstance(key, str):
        return key
    raise TypeError(f"tzinfo {type(zone).__name__}")


def decode_zone(zone: Any) -> tzinfo | None:
    if zone is None:
        return None
    if isinstance(zone, int):
        return timezone(timedelta(microseconds=zone))
    if isinstance(zone, list):
        return timezone(timedelta(microseconds=zone[0]), zone[1])
    from zoneinfo import ZoneInfo

    try:
        return ZoneInfo(zone)
    except Exception as error:
        raise CorruptValueError(f"its time zone {zone!r} is unknown here; install the package tzdata") from error


def _encode_datetime(value: datetime) -> Ext:
    if value.tzinfo is UTC:  # most are: half the time
        return Ext(DATETIME, _packb([value.isoformat()[: -len("+00:00")], value.fold, 0]))
    return Ext(DATETIME, _packb([value.replace(tzinfo=None).isoformat(), value.fold, encode_zone(value.tzinfo)]))


def _decode_datetime(data: bytes) -> datetime:
    text, fold, zone = _unpackb(data)
    if not fold and (zone is None or zone == 0):
        return datetime.fromisoformat(text if zone is None else text + "+00:00")
    return datetime.fromisoformat(text).replace(fold=fold, tzinfo=decode_zone(zone))


def _encode_time(value: time) -> Ext:
    return Ext(TIME, _packb([value.replace(tzinfo=None).isoformat(), value.fold, encode_zone(value.tzinfo)]))


def _decode_time(data: bytes) -> time:
    text, fold, zone = _unpackb(data)
    return time.fromisoformat(text).replace(fold=fold, tzinfo=decode_zone(zone))


# --- the other types ---


def _encode_int(value: int) -> Ext:
    return Ext(BIG_INT, value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True))


_PATHS: dict[str, type[PurePath]] = {"posix": PurePosixPath, "windows": PureWindowsPath}
_PATH_KINDS: dict[type, str] = {PurePosixPath: "posix", PureWindowsPath: "windows", type(Path()): "path"}


def _encode_path(value: PurePath) -> Ext:
    text = str(value)
    data = text.encode("utf-8", "surrogatepass")
    return Ext(PATH, _packb([_PATH_KINDS[type(value)], isinstance(value, PureWindowsPath), data]))


def _decode_path(data: bytes) -> PurePath:
    kind, windows, encoded = _unpackb(data)
    text = encoded.decode("utf-8", "surrogatepass")
    if kind != "path":
        return _PATHS[kind](text)
    # A path of another system cannot be used here, but it can be looked at.
    here = issubclass(type(Path()), PureWindowsPath)
    return Path(text) if here == windows else _PATHS["windows" if windows else "posix"](text)


def _decode_map(data: bytes) -> dict[Any, Any]:
    flat = iter(_unpack(data))
    return dict(zip(flat, flat, strict=True))


def _decode_registered(data: bytes) -> Any:
    name, payload = _unpack(data)
    return registered.decode(name, payload)


def _decode_decimal(data: bytes) -> Any:
    from decimal import Decimal

    return Decimal(data.decode())


def _decode_fraction(data: bytes) -> Any:
    from fractions import Fraction

    return Fraction(*_unpack(data))


def _late_encoder(cls: type) -> Callable[[Any], Ext] | None:
    """That of Decimal and Fraction, whose modules are imported by who has one: it takes as long as opening a store."""
    if cls.__name__ == "Decimal":
        from decimal import Decimal

        _ENCODERS[Decimal] = lambda v: Ext(DECIMAL, str(v).encode())
    elif cls.__name__ == "Fraction":
        from fractions import Fraction

        _ENCODERS[Fraction] = lambda v: Ext(FRACTION, _pack([v.numerator, v.denominator]))
    return _ENCODERS.get(cls)


_ENCODERS: dict[type, Callable[[Any], Ext]] = {
    tuple: lambda v: Ext(TUPLE, _pack(list(v))),
    set: lambda v: Ext(SET, _pack(list(v))),
    frozenset: lambda v: Ext(FROZENSET, _pack(list(v))),
    int: _encode_int,
    datetime: _encode_datetime,
    date: lambda v: Ext(DATE, v.isoformat().encode()),
    time: _encode_time,
    timedelta: lambda v: Ext(TIMEDELTA, _packb([v.days, v.seconds, v.microseconds])),
    complex: lambda v: Ext(COMPLEX, _complex.pack(v.real, v.imag)),
    UUID: lambda v: Ext(UUID_, v.bytes),
    range: lambda v: Ext(RANGE, _pack([v.start, v.stop, v.step])),
    **dict.fromkeys(_PATH_KINDS, _encode_path),
}
_DECODERS: dict[int, Callable[[bytes], Any]] = {
    TUPLE: lambda d: tuple(_unpack(d)),
    SET: lambda d: set(_unpack(d)),
    FROZENSET: lambda d: frozenset(_unpack(d)),
    BIG_INT: lambda d: int.from_bytes(d, "big", signed=True),
    MAP: _decode_map,
    DATETIME: _decode_datetime,
    DATE: lambda d: date.fromisoformat(d.decode()),
    TIME: _decode_time,
    TIMEDELTA: lambda d: timedelta(*_unpackb(d)),
    DECIMAL: _decode_decimal,
    FRACTION: _decode_fraction,
    COMPLEX: lambda d: complex(*_complex.unpack(d)),
    UUID_: lambda d: UUID(bytes=d),
    PATH: _decode_path,
    RANGE: lambda d: range(*_unpack(d)),
    SURROGATES: lambda d: d.decode("utf-8", "surrogatepass"),
    REGISTERED: _decode_registered,
}

_SEQUENCES: dict[type, int] = {tuple: TUPLE, set: SET, frozenset: FROZENSET}


# --- the exact walk ---


def tag_exactly(value: Any, where: str = "the value", depth: int = 0) -> Any:
    """`value` with every part that ormsgpack would refuse or blur replaced by an Ext; ready to be packed.

    Raises ValueTypeError that names the type, the place in the value, and the ways out.
    """
    kind = type(value)
    if kind is str:
        return value if value.isascii() else _tag_text(value)
    if kind is int:
        return value if _INT64_MIN <= value <= _UINT64_MAX else _encode_int(value)
    if kind in _ATOMS:
        return value
    if depth > MAX_DEPTH:
        raise ValueTypeError(f"{where[:80]}… is nested more than {MAX_DEPTH} deep, or holds itself; flatten it")
    if kind is list:
        return [tag_exactly(item, f"{where}[{index}]", depth + 1) for index, item in enumerate(value)]
    if kind is dict:
        return _tag_dict(value, where, depth)
    number = _SEQUENCES.get(kind)
    if number is not None:
        tagged = [tag_exactly(item, f"{where}[{index}]", depth + 1) for index, item in enumerate(value)]
        return Ext(number, _packb(tagged, None, OPTIONS))
    encode = _ENCODERS.get(kind) or _late_encoder(kind)
    if encode is not None:
        try:
            return encode(value)
        except TypeError as error:
            raise ValueTypeError(f"{where} is a {kind.__name__} with a {error}, which hutch cannot store") from None
    known = registered.find(kind)
    if known is None:
        raise _refusal(kind, where)
    payload = tag_exactly(_state(known, value, where), f"{where} (a {kind.__name__})", depth + 1)
    return Ext(REGISTERED, _packb([known.name, payload], None, OPTIONS))


def _state(known: registered.Registration, value: Any, where: str) -> Any:
    try:
        return known.encode(value)
    except ValueTypeError as error:
        raise ValueTypeError(f"{where} is a {known.name} that cannot be stored: {error}") from error.__cause__
    except Exception as error:
        # What it says may quote the value; it is in the cause.
        raise ValueTypeError(
            f"{where} is a {known.name} whose registered encode raised {type(error).__name__}"
        ) from error


def _tag_text(text: str) -> str | Ext:
    try:
        text.encode()
    except UnicodeEncodeError:
        return Ext(SURROGATES, text.encode("utf-8", "surrogatepass"))
    return text


def _tag_dict(value: dict[Any, Any], where: str, depth: int) -> Any:
    plain: dict[str, Any] = {}
    flat: list[Any] = []
    for key, item in value.items():
        tagged_key = tag_exactly(key, f"a key of {where}", depth + 1)
        tagged = tag_exactly(item, f"{where}{_item(key)}", depth + 1)
        flat += (tagged_key, tagged)
        if type(tagged_key) is str:
            plain[tagged_key] = tagged
    return plain if len(plain) * 2 == len(flat) else Ext(MAP, _packb(flat, None, OPTIONS))


def _item(key: Any) -> str:
    """How a message names the item of `key`; a stored value is not shown, nor is anybody's own repr run."""
    if type(key) is str:
        return f"[{key[:40]!a}]"
    # Python refuses to write out an int of thousands of digits.
    return f"[{key}]" if type(key) is int and _INT64_MIN <= key <= _UINT64_MAX else ""


def _refusal(kind: type, where: str) -> ValueTypeError:
    name = f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")
    bases = [base.__name__ for base in kind.__mro__[1:] if base in _ENCODERS or base in (*_ATOMS, str, list, dict)]
    from .carried import Pickled  # it imports this

    if kind is Pickled:
        return ValueTypeError(
            f"{where} is an object that is carried as its pickle, which this codec does not take. Choose CODEC: carry, "
            "or put ?codec=carry behind the store's URL (&codec=carry if it has options already)"
        )
    if kind in (bytearray, memoryview):
        way_out = "Convert it with bytes()."
    else:
        convert = f"Convert it with {bases[0]}(), " if bases else ""
        register = f"{'r' if bases else 'R'}egister it with hutch.register_type({kind.__qualname__})"
        way_out = f"{convert}{register}, or choose CODEC: pickle."
    return ValueTypeError(f"{where} is a {name}, which would not come back as one. {way_out}")
