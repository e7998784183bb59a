"""The frame around every stored value: one header byte, the body, and a four-byte checksum.

The header byte says how the value was written. The checksum is the CRC-32 (polynomial of zlib and gzip) of the key
followed by all bytes before the checksum, little endian. In that order the CRC-32 of a key and its whole intact frame
is always the same number, so a reader validates a frame without slicing it; and a frame that damage moved to another
key is refused.

Functions here take the key CRC (the CRC-32 of the key) as `seed`; zero means that the checksum does not cover a key.
"""

from __future__ import annotations

from struct import Struct
from zlib import crc32

from ..errors import CorruptValueError

#: The CRC-32 of any bytes followed by their own CRC-32, little endian: the "residue" of the polynomial.
RESIDUE = 0x2144DF1C

#: Header bytes. 0x92 is itself MessagePack (an array of two), so a typed frame is one valid MessagePack document.
MSGPACK, JSON, PICKLE, SIGNED_PICKLE = 0x92, 0x4A, 0x50, 0x53
_NAMES = {MSGPACK: "msgpack", JSON: "json", PICKLE: "pickle", SIGNED_PICKLE: "signed pickle"}
_SHORTEST = 6
# The types that an engine may return for stored bytes.
BYTES = (bytes, bytearray, memoryview)

pack_checksum = Struct("<I").pack


def seal(header_and_body: bytes, key_crc: int = 0) -> bytes:
    """Return the frame: `header_and_body` followed by its checksum."""
    return header_and_body + pack_checksum(crc32(header_and_body, key_crc))


def verify(frame: bytes, key_crc: int = 0) -> int:
    """Validate `frame` and return its header byte. Raises CorruptValueError if it is damaged or of an unknown kind.

    The checksum must match `key_crc`, or cover no key at all, because hutch 0.1.0 wrote only such frames.
    """
    if not isinstance(frame, BYTES):  # one flipped bit in a SQLite file turns bytes into text
        raise CorruptValueError(f"a {type(frame).__name__} is stored, not bytes; damaged or not written by hutch")
    if len(frame) < _SHORTEST:
        raise CorruptValueError(
            f"only {len(frame)} bytes are stored, fewer than any value has; it is truncated or was not written by hutch"
        )
    if crc32(frame, key_crc) != RESIDUE and crc32(frame) != RESIDUE:
        raise CorruptValueError(
            "its checksum does not match; it was damaged, belongs to another key, or was not written by hutch"
        )
    if frame[0] not in _NAMES:
        raise CorruptValueError(f"header byte 0x{frame[0]:02x} is unknown; a newer hutch may have written it")
    return frame[0]


def wrong_codec(header: int, reader: str) -> CorruptValueError:
    """Return the error for a frame that the configured codec must not read."""
    pickles = header in (PICKLE, SIGNED_PICKLE)
    advice = ", or to passthrough, which moves a pickle without loading it" if pickles else ""
    return CorruptValueError(
        f"it was written with the {_NAMES[header]} codec, which the configured {reader} codec does not read; "
        f"set CODEC to the codec that wrote it{advice}"
    )
