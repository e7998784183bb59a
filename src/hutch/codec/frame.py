"""The frame around every stored value: one header byte, the body, and a four-byte checksum.

The header byte says how the value was written. The checksum is the CRC-32 (polynomial of zlib and gzip) of the key
followed by all bytes before the checksum, little endian. In that order the CRC-32 of a key and its whole intact frame
is always the same number, so a reader validates a frame without slicing it; and a frame that damage moved to another
key is refused.

A value that expires has the header byte 0x54, then its deadline (milliseconds since 1970 UTC, eight bytes, big endian),
then the header and body of a frame without a deadline. Only a storage, which has a clock, can judge such a frame:
decoding one raises ExpiringFrameError.

Functions here take `key_crc`, the CRC-32 of the key; zero means that the checksum does not cover a key.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from struct import Struct
from typing import Any

from ..errors import CorruptValueError, PluginError, a_or_an
from ..handlers import raised_by_handler
from .codec import Codec

# isal (the extra `fast`) computes the numbers of zlib. Measured on CPython 3.11, in parts of zlib's time: 0.6 for 20
# bytes, 0.2 for 1,000 and 0.07 for 512 KiB.
crc32: Callable[..., int]
try:
    from isal.isal_zlib import crc32
except ImportError as error:
    if raised_by_handler(error):
        raise
    from zlib import crc32

#: The CRC-32 of any bytes followed by their own CRC-32, little endian: the "residue" of the polynomial.
RESIDUE = 0x2144DF1C

#: Header bytes. 0x92 is itself MessagePack (an array of two), so a typed frame is one valid MessagePack document.
MSGPACK, JSON, PICKLE, SIGNED_PICKLE = 0x92, 0x4A, 0x50, 0x53
#: The name of the built-in codec behind each header byte.
NAMES = {MSGPACK: "msgpack", JSON: "json", PICKLE: "pickle", SIGNED_PICKLE: "signed pickle"}
#: The header byte of a frame that holds a deadline and another frame's header and body.
DEADLINE = 0x54
#: The last millisecond of the year 9999: no deadline is later.
MAX_DEADLINE_MS = 253_402_300_799_999
_SHORTEST = 6
# A deadline's bytes end here, and the shortest frame that has one.
_INNER, _SHORTEST_EXPIRING = 9, 15
# The types that an engine may return for stored bytes.
BYTES = (bytes, bytearray, memoryview)

#: The error text for a frame without a signature, where only signed frames are read.
NOT_SIGNED = "it is not signed, and the configured codec reads only signed values"

pack_checksum = Struct("<I").pack


def seal(header_and_body: bytes, key_crc: int = 0) -> bytes:
    """Return the frame: `header_and_body` followed by its checksum."""
    return header_and_body + pack_checksum(crc32(header_and_body, key_crc))


def is_reserved(header: int) -> bool:
    """Return whether `header` is reserved for hutch's own codecs and frames."""
    return 0x40 <= header <= 0x5F or header == MSGPACK


def verify(frame: bytes, key_crc: int = 0) -> int:
    """Validate `frame` and return its header byte. Raises CorruptValueError if the frame is damaged.

    The checksum must match `key_crc`, or cover no key at all, because hutch 0.1.0 wrote only such frames.
    """
    if not isinstance(frame, BYTES):  # one flipped bit in a SQLite file turns bytes into text
        raise CorruptValueError(
            f"{a_or_an(type(frame).__name__)} is stored, not bytes; damaged or not written by hutch"
        )
    if len(frame) < _SHORTEST:
        raise CorruptValueError(
            f"only {len(frame)} bytes are stored, fewer than any value has; it is truncated or was not written by hutch"
        )
    if crc32(frame, key_crc) != RESIDUE and crc32(frame) != RESIDUE:
        raise CorruptValueError(
            "its checksum does not match; it was damaged, belongs to another key, or was not written by hutch"
        )
    return frame[0]


def set_deadline(frame: bytes, deadline_ms: int | None, key_crc: int = 0) -> bytes:
    """Return the intact `frame` with another deadline, or without one for None; it may have one already.

    The frame is not verified: `verify` one that was read before. Raises ValueError for a deadline before 1970 or beyond
    the year 9999.
    """
    content = frame[_INNER:-4] if frame[0] == DEADLINE else frame[:-4]
    if deadline_ms is None:
        return seal(content, key_crc)
    if not 0 <= deadline_ms <= MAX_DEADLINE_MS:
        raise ValueError("a deadline lies between 1970 and the end of the year 9999")
    return seal(b"T%b%b" % (deadline_ms.to_bytes(8, "big"), content), key_crc)


def deadline_of(frame: bytes) -> int | None:
    """Return the deadline of `frame` in milliseconds since 1970, None if it has none. The frame is not verified."""
    if frame[:1] == b"T" and len(frame) >= _SHORTEST_EXPIRING:
        return int.from_bytes(frame[1:_INNER], "big")
    return None


def is_expired(frame: bytes, now_ms: int, key_crc: int = 0) -> bool:
    """Return whether `frame` is intact and its deadline has come. A damaged frame never expires: reading it raises."""
    return (
        frame[:1] == b"T"
        and len(frame) >= _SHORTEST_EXPIRING
        and int.from_bytes(frame[1:_INNER], "big") <= now_ms
        and (crc32(frame, key_crc) == RESIDUE or crc32(frame) == RESIDUE)
    )


def verify_deadline(frame: bytes, key_crc: int = 0) -> int:
    """Validate `frame`, whose header byte is DEADLINE, and return its deadline in milliseconds since 1970.

    Raises CorruptValueError if the frame is damaged or forged.
    """
    verify(frame, key_crc)
    if len(frame) < _SHORTEST_EXPIRING:
        raise CorruptValueError(
            f"only {len(frame)} bytes are stored, fewer than any value with a deadline has; it was not written by hutch"
        )
    deadline_ms = int.from_bytes(frame[1:_INNER], "big")
    if deadline_ms > MAX_DEADLINE_MS:
        raise CorruptValueError("its deadline lies beyond the year 9999; it was not written by hutch")
    if frame[_INNER] == DEADLINE:
        raise CorruptValueError("it has a deadline within a deadline; it was not written by hutch")
    return deadline_ms


class ExpiringFrameError(CorruptValueError):
    """The intact frame has a deadline, which only a storage can judge. Caught by `EncodedStorage`."""

    def __init__(self) -> None:
        super().__init__("its value has a deadline, which only a storage can judge")


class UnknownHeaderError(CorruptValueError):
    """The frame was written by a codec that is not built in. `header` is the frame's first byte."""

    def __init__(self, header: int) -> None:
        super().__init__(
            f"header byte 0x{header:02x} is unknown; a newer hutch or a codec that is not installed may have written it"
        )
        self.header = header


class FrameCodec:
    """The frames of one codec: encode a value to header, body and checksum, and decode every frame the codec may read.

    `decoders` is the table from header byte to decoder for frames that other codecs wrote. The codec's own header
    bytes are added to it.
    """

    __slots__ = ("_decoders", "_headers", "codec")

    def __init__(self, codec: Codec, decoders: Mapping[int, Callable[[int, bytes], Any]]) -> None:
        self.codec = codec
        self._headers = {header: bytes([header]) for header in codec.headers}
        self._decoders = {} if codec.reads_only_signed else dict(decoders)
        self._decoders.update(dict.fromkeys(codec.headers, codec.decode))

    def encode(self, value: object, key_crc: int = 0, /) -> bytes:
        """Return the frame of `value`. Raises ValueTypeError if decoding it would not give the same value."""
        header, body = self.codec.encode(value)
        prefix = self._headers.get(header)
        if not body:
            raise PluginError(f"the {self.codec.name} codec wrote an empty body, which could not be read back")
        if prefix is None:
            raise PluginError(
                f"the {self.codec.name} codec wrote header byte 0x{header:02x}, which is not in its headers"
            )
        return seal(prefix + body, key_crc)

    def decode(self, data: bytes, key_crc: int = 0, /) -> Any:
        """Return the value in the frame `data`. Raises CorruptValueError if it is damaged, or not to be read here."""
        header = verify(data, key_crc)
        decode = self._decoders.get(header)
        if decode is None:
            raise self._refusal(header)
        return decode(header, data[1:-4])

    def decode_inner(self, data: bytes, /) -> Any:
        """Return the value in the frame `data`, which has a deadline and passed `verify_deadline`."""
        header = data[_INNER]
        decode = self._decoders.get(header)
        if decode is None:
            raise self._refusal(header)
        return decode(header, data[_INNER + 1 : -4])

    def encode_many(self, values: Sequence[object], key_crcs: Sequence[int]) -> list[bytes]:
        """Return ``list(map(encode, values, key_crcs))``. Raises as `encode` does."""
        return list(map(self.encode, values, key_crcs))

    def decode_many(self, frames: Sequence[bytes], key_crcs: Sequence[int]) -> list[Any]:
        """Return ``list(map(decode, frames, key_crcs))``. Raises as `decode` does."""
        return list(map(self.decode, frames, key_crcs))

    def body(self, data: bytes, /) -> bytes | None:
        """Return the part of an intact frame that `decode_body` decodes; None if only `decode` can decode the frame."""
        return None

    def decode_body(self, body: bytes, /) -> Any:
        """Return the value of a result of `body`, without verifying a checksum."""
        raise NotImplementedError

    def _refusal(self, header: int) -> CorruptValueError:
        if header == DEADLINE:
            return ExpiringFrameError()
        if header not in NAMES:
            return UnknownHeaderError(header)
        if self.codec.reads_only_signed:
            return CorruptValueError(NOT_SIGNED)
        pickles = header in (PICKLE, SIGNED_PICKLE)
        return self.written_with(
            NAMES[header], ", or to passthrough, which moves a pickle without loading it" if pickles else ""
        )

    def written_with(self, name: str, advice: str = "") -> CorruptValueError:
        """Return the error for a frame of the codec `name`, which this one does not read."""
        return CorruptValueError(
            f"it was written with the {name} codec, which the configured {self.codec.name} codec does not read; "
            f"set CODEC to the codec that wrote it{advice}"
        )
