"""The exact walk over a value: encode what ormsgpack would refuse or change in type, and locate what is refused."""

from __future__ import annotations

from typing import Any

import ormsgpack
from ormsgpack import Ext

from ..errors import ValueTypeError, a_or_an
from ..handlers import passes_through
from . import containers, registry
from .bounds import EQUAL_HASHES, SHORT, has_equal_hashes
from .ext_types import (
    COLLECTIONS,
    ENCODERS,
    MAP,
    OPTIONS,
    REGISTERED,
    SEQUENCES,
    SURROGATES,
    TUPLE,
    encode_int,
    late_encoder,
)
from .zones import ZoneError

#: How deep lists, dicts, tuples and sets may nest. ormsgpack itself reads 1,023 levels; inside an extension its count
#: restarts but Python stack is used, so the limit is one that every Python version decodes with room to spare.
MAX_DEPTH = 200

_packb = ormsgpack.packb
_INT64_MIN, _UINT64_MAX = -(2**63), 2**64 - 1
_TEXT = frozenset({str})
_ATOMS = frozenset({type(None), bool, int, float, bytes})


def tag_exactly(value: Any, where: str = "the value", depth: int = 0) -> Any:
    """Return `value` with every part that ormsgpack would refuse or change in type replaced by an Ext.

    Raises ValueTypeError that names the refused type, its place in the value, and what to do instead.
    """
    kind = type(value)
    if kind is str:
        return value if value.isascii() else _tag_text(value)
    if kind is int:
        return value if _INT64_MIN <= value <= _UINT64_MAX else encode_int(value)
    if kind in _ATOMS:
        return value
    if depth > MAX_DEPTH:
        raise ValueTypeError(
            f"{where[:80]}… is nested more than {MAX_DEPTH} levels deep or refers to itself; flatten it"
        )
    if kind is list:
        return [tag_exactly(item, f"{where}[{index}]", depth + 1) for index, item in enumerate(value)]
    if kind is dict:
        return _tag_dict(value, where, depth)
    number = SEQUENCES.get(kind)
    if number is not None:
        tagged = [tag_exactly(item, f"{where}[{index}]", depth + 1) for index, item in enumerate(value)]
        data = _packb(tagged, None, OPTIONS)
        if number != TUPLE and len(data) > SHORT and Ext in map(type, tagged) and has_equal_hashes(value):
            raise ValueTypeError(f"{where}: {EQUAL_HASHES}")
        return Ext(number, data)
    if kind in COLLECTIONS:
        return _tag_collection(value, where, depth)
    encode = ENCODERS.get(kind) or late_encoder(kind)
    if encode is not None:
        try:
            return encode(value)
        except ValueTypeError as error:
            raise ValueTypeError(f"{where} is {error}") from None
        except ZoneError as error:
            raise ValueTypeError(
                f"{where} is {a_or_an(kind.__name__)} with a {error}, which hutch cannot store. "
                "Use zoneinfo.ZoneInfo or datetime.timezone, or convert a datetime with .astimezone(datetime.UTC)"
            ) from None
    known = registry.find(kind)
    if known is None:
        from .refusals import refusal

        raise refusal(kind, where)
    payload = tag_exactly(_state(known, value, where), f"{where} ({a_or_an(kind.__name__)})", depth + 1)
    return Ext(REGISTERED, _packb([known.name, payload], None, OPTIONS))


def _state(known: registry.Registration, value: Any, where: str) -> Any:
    try:
        return known.encode(value)
    except ValueTypeError as error:
        raise ValueTypeError(f"{where} is {a_or_an(known.name)} that cannot be stored: {error}") from error.__cause__
    except Exception as error:
        if passes_through(error):
            raise
        # The text of the error may quote the value; it stays in the cause.
        raise ValueTypeError(
            f"{where} is {a_or_an(known.name)} whose registered encode raised {type(error).__name__}"
        ) from error


def _tag_text(text: str) -> str | Ext:
    try:
        text.encode()
    except UnicodeEncodeError:
        return Ext(SURROGATES, text.encode("utf-8", "surrogatepass"))
    return text


def _tag_collection(value: Any, where: str, depth: int) -> Ext:
    try:
        header = containers.header_of(value)
    except ValueTypeError as error:
        raise ValueTypeError(f"{where} is {error}") from None
    if type(value) in containers.MAPPINGS:
        tagged = _tag_items(value, where, depth)
    else:
        tagged = [tag_exactly(item, f"{where}[{index}]", depth + 1) for index, item in enumerate(value)]
    data = _packb(header + tagged, None, OPTIONS)
    if len(data) > SHORT and type(value) in containers.MAPPINGS and has_equal_hashes(value.keys()):
        raise ValueTypeError(f"{where}: {EQUAL_HASHES}")
    return Ext(COLLECTIONS[type(value)], data)


def _tag_items(value: dict[Any, Any], where: str, depth: int) -> list[Any]:
    """Return key, value, key, value, ... of `value`, each as `tag_exactly` returns it."""
    flat: list[Any] = []
    for key, item in value.items():
        flat.append(tag_exactly(key, f"a key of {where}", depth + 1))
        flat.append(tag_exactly(item, f"{where}{_item(key)}", depth + 1))
    return flat


def _tag_dict(value: dict[Any, Any], where: str, depth: int) -> Any:
    flat = _tag_items(value, where, depth)
    if _TEXT.issuperset(map(type, flat[::2])):
        return dict(zip(flat[::2], flat[1::2], strict=True))
    data = _packb(flat, None, OPTIONS)
    if len(data) > SHORT and has_equal_hashes(value.keys()):
        raise ValueTypeError(f"{where}: {EQUAL_HASHES}")
    return Ext(MAP, data)


def _item(key: Any) -> str:
    """Return how an error names the item of `key`, without showing a stored value or running a custom repr."""
    if type(key) is str:
        return f"[{key[:40]!a}]"
    # Python refuses to format an int of thousands of digits.
    return f"[{key}]" if type(key) is int and _INT64_MIN <= key <= _UINT64_MAX else ""
