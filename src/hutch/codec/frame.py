"""The frame around every stored value: one header byte, the body, four bytes of checksum.

The first byte says how the value was written. The last four are the CRC-32 (the polynomial of zlib and
gzip) of all bytes before them, little endian. In that order the CRC of a whole intact frame is the same
number for every frame, so a reader checks one without cutting it up.
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

pack_checksum = Struct("<I").pack


def seal(header_and_body: bytes) -> bytes:
    """The frame: `header_and_body` followed by its checksum."""
    return header_and_body + pack_checksum(crc32(header_and_body))


def check(frame: bytes) -> int:
    """The header byte of `frame`. Raises CorruptValueError unless it is an intact frame of a known kind."""
    if len(frame) < _SHORTEST:
        raise CorruptValueError(
            f"only {len(frame)} bytes are stored, fewer than any value has; it was cut off or is foreign"
        )
    if crc32(frame) != RESIDUE:
        raise CorruptValueError("its checksum does not fit; it was damaged, or written by something other than hutch")
    if frame[0] not in _NAMES:
        raise CorruptValueError(f"header byte 0x{frame[0]:02x} is unknown; a newer hutch may have written it")
    return frame[0]


def wrong_codec(header: int, reader: str) -> CorruptValueError:
    """The error for a frame that the configured codec must not read."""
    return CorruptValueError(
        f"it was written with the {_NAMES[header]} codec, which the configured {reader} codec does not read; "
        f"set CODEC to the codec that wrote it"
    )
