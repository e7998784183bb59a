"""A codec for hutch: JSON, compressed by zlib. With its descriptor, zlib_json.plug, it is complete."""

from __future__ import annotations

import json
import zlib
from typing import Any

import hutch
from hutch.handlers import passes_through

_HEADER = 0x80
_MOST_BYTES_PER_BYTE = 1024  # zlib shrinks even zeros no further, so a body that grows more is refused
_MOST_INT_BITS = 10_000  # Python does not read longer ints from text


class ZlibJsonCodec(hutch.Codec):
    name = "zlib-json"
    headers = bytes([_HEADER])
    OPTIONS = {"level": hutch.Option(int, 6, "from 0, fast, to 9, small", minimum=0, maximum=9)}  # noqa: RUF012

    def __init__(self, level: int = 6) -> None:
        self._level = level

    def encode(self, value: object, /) -> tuple[int, bytes]:
        if not _is_json(value, 0):
            raise hutch.ValueTypeError(f"the value is or holds what JSON would change, in a {type(value).__name__}")
        return _HEADER, zlib.compress(json.dumps(value).encode(), self._level)

    def decode(self, header: int, body: bytes, /) -> Any:
        unpacker = zlib.decompressobj()
        try:
            text = unpacker.decompress(body, _MOST_BYTES_PER_BYTE * len(body))
            if unpacker.eof and not unpacker.unused_data:
                return json.loads(text)
        except (zlib.error, ValueError, RecursionError) as error:
            if passes_through(error):
                raise
        raise hutch.CorruptValueError("its checksum fits, but it is not compressed JSON")


def _is_json(value: Any, depth: int) -> bool:
    """Return whether JSON gives `value` back: equal, and with the same types in it."""
    kind = type(value)
    if kind is list or kind is dict:
        keys = value if kind is dict else ()
        items = value.values() if kind is dict else value
        return (
            depth < 200 and all(type(key) is str for key in keys) and all(_is_json(item, depth + 1) for item in items)
        )
    if kind is float:
        return bool(value - value == 0)  # neither NaN nor infinite
    if kind is int:
        return bool(value.bit_length() <= _MOST_INT_BITS)
    return value is None or kind is bool or kind is str
