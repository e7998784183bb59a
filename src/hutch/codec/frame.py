"""The frame around every stored value: one header byte, the body, four bytes of checksum.

The first byte says how the value was written. The last four are the CRC-32 (the polynomial of zlib and
gzip) of the key and then all bytes before them, little endian. In that order the CRC of a key and its whole intact
frame is the same number for all, so a reader checks one without cutting it up; and a frame that damage put under
another key does not pass.

Functions here take the CRC-32 of the key as `seed`; zero stands for a frame that is bound to no key.
"""

from __future__ import annotations

from struct import Struct
from zlib import crc32

from ..errors import CorruptValueError

#: CRC-32 of any bytes followed by their own CRC-32, little endian (the "residue" of the polynomial).
RESIDUE = 0x2144DF1C

#: Header bytes. 0x92 is itself MessagePack (an array of two): a typed frame is one valid document.
TYPED, JSON, PICKLE, SIGNED_PICKLE = 0x92, 0x4A, 0x50, 0x53
_NAMES = {TYPED: "msgpack", JSON: "json", PICKLE: "pickle", SIGNED_PICKLE: "signed pickle"}
_SHORTEST = 6
# What an engine may give for bytes.
BYTES = (bytes, bytearray, memoryview)

pack_checksum = Struct("<I").pack


def seal(header_and_body: bytes, seed: int = 0) -> bytes:
    """The frame: `header_and_body` followed by its checksum."""
    return header_and_body + pack_checksum(crc32(header_and_body, seed))


def check(frame: bytes, seed: int = 0) -> int:
    """The header byte of `frame`. Raises CorruptValueError unless it is an intact frame of a known kind, of this key.

    A frame that is bound to no key passes for any: hutch 0.1.0 wrote no others.
    """
    if not isinstance(frame, BYTES):  # one bit of a SQLite file makes a text of bytes
        raise CorruptValueError(f"a {type(frame).__name__} is stored, and no bytes; it was damaged or is foreign")
    if len(frame) < _SHORTEST:
        raise CorruptValueError(
            f"only {len(frame)} bytes are stored, fewer than any value has; it was cut off or is foreign"
        )
    if crc32(frame, seed) != RESIDUE and crc32(frame) != RESIDUE:
        raise CorruptValueError(
            "its checksum does not fit; it was damaged, belongs to another key, or was written by something other "
            "than hutch"
        )
    if frame[0] not in _NAMES:
        raise CorruptValueError(f"header byte 0x{frame[0]:02x} is unknown; a newer hutch may have written it")
    return frame[0]


def wrong_codec(header: int, reader: str) -> CorruptValueError:
    """The error for a frame that the configured codec must not read."""
    carry = ", or to carry, which moves a pickle and does not load it" if header in (PICKLE, SIGNED_PICKLE) else ""
    return CorruptValueError(
        f"it was written with the {_NAMES[header]} codec, which the configured {reader} codec does not read; "
        f"set CODEC to the codec that wrote it{carry}"
    )
