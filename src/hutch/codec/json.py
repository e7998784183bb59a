"""The json codec: for data that other programs read. It takes only values that JSON returns unchanged."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from typing import Any

from ..errors import CorruptValueError, ValueTypeError, a_or_an
from ..handlers import raised_by_handler
from .codec import Codec
from .frame import JSON

_MAX_DEPTH = 200
# About 3,000 digits: CPython refuses to parse or format more than 4,300 (sys.set_int_max_str_digits).
_LONGEST_INT_BITS = 10_000
MOST_DIGITS = 4_300


class JsonCodec(Codec):
    """The codec of header byte 0x4a: JSON in UTF-8.

    It takes None, bool, int, finite float, str, list, and dict with str keys.
    """

    __slots__ = ()
    headers = bytes([JSON])

    def encode(self, value: object, /) -> tuple[int, bytes]:
        """Return the JSON text of `value`. Raises ValueTypeError if JSON would change the value."""
        try:
            _validate(value, "the value", 0)
            text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
        except RecursionError as error:
            if raised_by_handler(error):
                raise
            raise ValueTypeError(
                "the value is nested too deep for what the caller left of Python's stack; flatten it"
            ) from error
        return JSON, text.encode()

    def decode(self, header: int, body: bytes, /) -> Any:
        """Return the value of a JSON text. Raises CorruptValueError if `body` is not JSON."""
        try:
            return json.loads(body, parse_int=parse_int())
        except (ValueError, RecursionError) as error:
            if raised_by_handler(error):
                raise
            raise CorruptValueError("its checksum matches, but it is not JSON") from None


def parse_int() -> Callable[[str], int] | None:
    """Return the `parse_int` that bounds the time of `json.loads`, because parsing an int is quadratic in its digits.

    It is None where Python itself refuses more than 4,300 digits, as it does unless the application lifts that limit.
    """
    return None if 0 < sys.get_int_max_str_digits() <= MOST_DIGITS else _parse_int


def _parse_int(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"an int of more than {MOST_DIGITS:,} digits")
    return int(digits)


def _validate(value: Any, where: str, depth: int) -> None:
    kind = type(value)
    if kind is float:
        if not math.isfinite(value):
            raise ValueTypeError(f"{where} is {value}, which JSON cannot express; the default codec (msgpack) can")
    elif kind is str:
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueTypeError(f"{where} holds a lone surrogate; the default codec (msgpack) takes it") from None
    elif kind is int:
        if value.bit_length() > _LONGEST_INT_BITS:
            raise ValueTypeError(
                f"{where} is an int of more than {_LONGEST_INT_BITS:,} bits, which Python does not read back from "
                "text; the default codec (msgpack) takes it"
            )
    elif kind is list or kind is dict:
        if depth > _MAX_DEPTH:
            raise ValueTypeError(
                f"{where[:80]}… is nested more than {_MAX_DEPTH} levels deep or refers to itself; flatten it"
            )
        for key, item in enumerate(value) if kind is list else value.items():
            if kind is dict:
                if type(key) is not str:
                    raise ValueTypeError(
                        f"a key of {where} is {a_or_an(type(key).__name__)}, which JSON would turn into text; convert "
                        "it with str(), or use the default codec (msgpack)"
                    )
                _validate(key, f"a key of {where}", depth)
            _validate(item, f"{where}[{ascii(key)[:40]}]", depth + 1)
    elif value is not None and kind is not bool:
        retained = "it" if _is_taken_by_default(kind) else "instances of registered classes"
        raise ValueTypeError(
            f"{where} is {a_or_an(kind.__name__)}, which JSON would change or cannot express; convert it, or use the "
            f"default codec (msgpack), which keeps {retained}"
        )


def _is_taken_by_default(kind: type) -> bool:
    """Return whether the default codec takes instances of `kind`."""
    from .ext_types import ENCODERS, late_encoder
    from .registry import find

    return kind is bytes or kind in ENCODERS or late_encoder(kind) is not None or find(kind) is not None
