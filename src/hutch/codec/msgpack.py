"""The msgpack codec, the default: MessagePack that keeps the exact type of every value or refuses the value."""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from datetime import date, datetime, time, timedelta
from itertools import compress, repeat
from operator import add, contains, itemgetter
from typing import Any
from uuid import UUID

import ormsgpack

from ..errors import CorruptValueError, ValueTypeError
from ..handlers import passes_through, raised_by_handler
from . import frame
from .codec import Codec
from .ext_types import OPTIONS, decode_ext, encode_ext, pack, per_thread
from .frame import crc32
from .walk import tag_exactly

_packb, _unpackb = ormsgpack.packb, ormsgpack.unpackb
_RESIDUE = frame.RESIDUE
_INTACT, _OWN = {_RESIDUE}, {frame.MSGPACK}
_pack_checksum = frame.pack_checksum
_first_byte = itemgetter(0)
# A placeholder for the checksum: packed as 0xce and four bytes, which `encode` replaces.
_U32 = 0xFFFFFFFF
# How many values of a batch are packed in one call. Small enough for large values, of which packing holds three copies
# at a time.
_TOGETHER = 64
# What ormsgpack writes before the length of bytes.
_BIN_MARKERS = (0xC4, 0xC5, 0xC6)
# Exact types without parts, and those whose parts `_is_plain` inspects by type.
_SINGLE = frozenset({*(type(None), bool, int, float, complex, str, bytes), *(date, datetime, time, timedelta, UUID)})
_NESTED = frozenset({list, tuple, dict})
# Bytes of at least this length take the shortcut of `_large_frame`. Its header: an array of two, then bytes whose
# length follows in four bytes.
_LARGE_BYTES, _LARGE_HEADER = 1 << 16, b"\x92\xc6"


class MsgpackFrameCodec(frame.FrameCodec):
    """The frames ``0x92 | msgpack(value) | 0xce | crc32``: one MessagePack array of the value and a checksum.

    Header, body and checksum are encoded in one call, and decoded in one call.

    The fast path is ormsgpack's encoder, which passes every type that MessagePack cannot tell apart to a hook. What
    the encoder cannot express (keys that are not text, lone surrogates) or would change in type (bytearray) is left
    to a walk over the value, which also locates the part that is refused.
    """

    __slots__ = ()

    def encode(self, value: object, key_crc: int = 0, /) -> bytes:
        """Return the frame of `value`. Raises ValueTypeError if it would not come back equal and of identical type."""
        if type(value) is bytes and len(value) >= _LARGE_BYTES:
            return _large_frame(value, key_crc)
        try:
            packed = _packb([value, _U32], encode_ext, OPTIONS)
        except (TypeError, ValueError, RecursionError) as error:
            if error.__traceback__ is None or error.__traceback__.tb_next is not None:  # raised by a signal handler
                raise
            raised = per_thread.raised
            if raised is not None:
                per_thread.raised = raised[1]
            packed = b""  # the walk below encodes the value, or says what is wrong and where
        # ormsgpack packs bytearray and memoryview as bytes without calling the hook, so the walk refuses them. A bin
        # marker may also be part of a text or a number; then the walk refuses nothing and the packed bytes are used.
        # (Searching for an int is eight times as fast as searching for bytes of length one.)
        if (0xC4 in packed or 0xC5 in packed or 0xC6 in packed) and not _is_plain(value):
            _tag(value)
        if not packed:
            try:
                packed = _encode_walking(value, raised)
            finally:
                raised = None  # breaks a cycle: its traceback refers to this stack frame
        packed = packed[:-4]
        return packed + _pack_checksum(crc32(packed, key_crc))

    def decode(self, data: bytes, key_crc: int = 0, /) -> Any:
        """Return the value in the frame `data`. Raises CorruptValueError if it is damaged, or not to be read here."""
        try:
            if crc32(data, key_crc) == _RESIDUE and data[0] == 0x92:
                return _unpackb(data, ext_hook=decode_ext)[0]
        except (TypeError, IndexError, ValueError, RecursionError) as error:
            if error.__traceback__ is None or error.__traceback__.tb_next is not None:  # raised by a signal handler
                raise
            raised = per_thread.raised
            failure: BaseException = error
            if raised is not None:
                failure, per_thread.raised = raised
        else:
            return super().decode(data, key_crc)  # of another codec, damaged, or with a checksum that covers no key
        try:
            frame.verify(data, key_crc)
            raise _undecodable(failure)
        finally:
            del failure, raised  # breaks a cycle: the traceback refers to this stack frame

    def body(self, data: bytes, /) -> bytes | None:
        """Return the packed value in a frame of the msgpack codec; None for a frame of another codec."""
        return data[1:-5] if data[0] == 0x92 else None

    @staticmethod
    def decode_body(body: bytes, /) -> Any:
        """Return the value of a packed value. Raises CorruptValueError if `body` does not decode."""
        try:
            return _unpackb(body, ext_hook=decode_ext)
        except (TypeError, ValueError, RecursionError) as error:
            if error.__traceback__ is None or error.__traceback__.tb_next is not None:  # raised by a signal handler
                raise
            raised = per_thread.raised
            failure: BaseException = error
            if raised is not None:
                failure, per_thread.raised = raised
        try:
            raise _undecodable(failure)
        finally:
            del failure, raised  # breaks a cycle: the traceback refers to this stack frame

    def encode_many(self, values: Sequence[object], key_crcs: Sequence[int]) -> list[bytes]:
        """Return ``list(map(encode, values, key_crcs))``, in four fifths of the time. Raises as `encode` does."""
        frames = list(map(self.encode, values[:1], key_crcs[:1]))
        if (
            frames and len(frames[0]) >= _LARGE_BYTES
        ):  # the others likely are too; packed together they are copied twice
            return frames + list(map(self.encode, values[1:], key_crcs[1:]))
        separator = _new_separator()
        while (done := len(frames)) < len(values):
            batch, theirs = values[done : done + _TOGETHER], key_crcs[done : done + _TOGETHER]
            has_large = bytes in map(type, batch) and any(
                type(value) is bytes and len(value) >= _LARGE_BYTES for value in batch
            )
            together = None if has_large else self._encode_together(batch, theirs, separator)
            frames += map(self.encode, batch, theirs) if together is None else together
        return frames

    def decode_many(self, frames: Sequence[bytes], key_crcs: Sequence[int]) -> list[Any]:
        """Return ``list(map(decode, frames, key_crcs))``, a little faster. Raises as `decode` does."""
        try:
            values = _decode_intact(frames, key_crcs)
            if len(values) == len(frames):
                return values
        except CorruptValueError:
            pass
        return list(map(self.decode, frames, key_crcs))  # raises at the first unreadable frame, with the exact reason

    @staticmethod
    def _encode_together(
        values: Sequence[object], key_crcs: Sequence[int], separator: tuple[int, int, bytes]
    ) -> list[bytes] | None:
        """Return the frames of a few values, packed in one call; None if one of them must be encoded on its own.

        They are packed as one array: start, value, placeholder, start, value, placeholder, ... `start` is a number that
        ends with the first byte of a frame; `placeholder` is a number in place of the checksum.
        """
        start, placeholder, between = separator
        parts: list[object] = [start, None, placeholder] * len(values)
        parts[1::3] = values
        try:
            packed = pack(parts)
        except (TypeError, ValueError, RecursionError) as error:
            if raised_by_handler(error):
                raise
            return None
        # Without the header of the array, the first `start` except its last byte, and the last placeholder.
        pieces = packed[11 if len(parts) >= 16 else 9 : -4].split(between)
        if len(pieces) != len(values):
            return None  # the separator is also part of a value
        for marker in _BIN_MARKERS:
            if marker in packed:
                for value in compress(values, map(contains, pieces, repeat(marker))):
                    if not _is_plain(value):
                        _tag(value)
        checksums = struct.pack(f"<{len(pieces)}I", *map(crc32, pieces, key_crcs))
        return list(map(add, pieces, struct.unpack("4s" * len(pieces), checksums)))


def _new_separator() -> tuple[int, int, bytes]:
    """Return a random start and placeholder for `_encode_together`, and what is packed between two pieces.

    The placeholder consists of UTF-8 continuation bytes, of which a text never has four in a row, and the start of
    bytes that UTF-8 does not use. None is a bin marker, and the separator cannot overlap with itself.
    """
    placeholder = int.from_bytes(os.urandom(4), "big") & 0x3F3F3F3F | 0x80808080
    start = int.from_bytes(os.urandom(7), "big") & 0x07070707070707 | 0xF8F8F8F8F8F8F8
    between = placeholder.to_bytes(4, "big") + b"\xcf" + start.to_bytes(7, "big")
    return start << 8 | frame.MSGPACK, placeholder, between


class MsgpackCodec(Codec):
    """The default codec, of header byte 0x92: typed MessagePack. Its frames are made by `MsgpackFrameCodec`."""

    __slots__ = ()
    headers = bytes([frame.MSGPACK])
    frame_codec_class = MsgpackFrameCodec

    def encode(self, value: object, /) -> tuple[int, bytes]:
        """Return the packed value. Raises ValueTypeError if it would not come back equal and of identical type."""
        return frame.MSGPACK, _frames.encode(value)[1:-4]

    def decode(self, header: int, body: bytes, /) -> Any:
        """Return the value of a packed value. Raises CorruptValueError if `body` does not decode."""
        if body[-1:] != b"\xce":
            raise CorruptValueError("its checksum matches, but it does not decode: the checksum is not the second item")
        return _frames.decode_body(body[:-1])


_frames = MsgpackFrameCodec(MsgpackCodec(), {})


def _encode_walking(value: object, raised: tuple[BaseException, Any] | None) -> bytes:
    """Return the packed pair of `value` and a placeholder, after ormsgpack refused the value or a hook `raised`."""
    try:
        if raised is not None and passes_through(raised[0]):
            raise raised[0]
    finally:
        del raised
    return _packb([_tag(value), _U32], None, OPTIONS)


def _tag(value: object) -> Any:
    """Return ``tag_exactly(value)``. Raises ValueTypeError whatever the reason for refusing the value."""
    try:
        return tag_exactly(value)
    except ValueTypeError:
        raise
    except RecursionError as error:
        if raised_by_handler(error):
            raise
        raise ValueTypeError(
            "the value is nested too deep for what the caller left of Python's stack; flatten it"
        ) from error
    except (TypeError, ValueError) as error:
        if raised_by_handler(error):
            raise
        raise ValueTypeError(f"the value cannot be encoded: {error}") from error


def _large_frame(value: bytes, key_crc: int) -> bytes:
    """Return the frame of large bytes with one copy of `value` instead of three. Raises ValueTypeError beyond 4 GiB.

    For 512 KiB it takes half the time of the general path, most of it for the checksum.
    """
    try:
        header = _LARGE_HEADER + len(value).to_bytes(4, "big")
    except OverflowError:
        raise ValueTypeError(f"{len(value):,} bytes are more than MessagePack can hold; split them") from None
    residue = crc32(b"\xce", crc32(value, crc32(header, key_crc)))
    # 0xce is what _packb writes before a number of four bytes.
    return b"".join((header, value, b"\xce", _pack_checksum(residue)))


def _is_plain(value: object) -> bool:
    """Return whether `value` consists of `_SINGLE` and `_NESTED` only, in a fifth of the time of `tag_exactly`."""
    if type(value) in _SINGLE:
        return True
    parts: list[Any] = [[value]]
    for part in parts:  # grows during the loop
        items = part.values() if type(part) is dict else part
        kinds = set(map(type, items)) - _SINGLE
        if kinds:
            if not kinds <= _NESTED:
                return False
            parts += [item for item in items if type(item) in _NESTED]
    return True


def _decode_intact(frames: Sequence[bytes], key_crcs: Sequence[int]) -> list[Any]:
    """Return the values of the frames if all are intact and of this codec; else an empty list.

    Raises CorruptValueError if one of them does not decode.
    """
    try:
        # In this order, so that an empty frame, whose checksum is that of its key, fails here.
        if set(map(crc32, frames, key_crcs)) != _INTACT or set(map(_first_byte, frames)) != _OWN:
            return []
        return [_unpackb(data, ext_hook=decode_ext)[0] for data in frames]
    except (TypeError, IndexError, ValueError, RecursionError) as error:
        inner = error.__traceback__ and error.__traceback__.tb_next
        if inner is not None and inner.tb_frame.f_code.co_name == "<listcomp>":  # a stack frame in Python 3.11
            inner = inner.tb_next
        if inner is not None:  # raised by a signal handler
            inner = None  # breaks a cycle, see below
            raise
        raised = per_thread.raised
        failure: BaseException = error
        if raised is not None:
            failure, per_thread.raised = raised
    try:
        raise _undecodable(failure)
    finally:
        del failure, raised  # breaks a cycle: the traceback refers to this stack frame


def _undecodable(failure: BaseException) -> BaseException:
    """Return the error to raise for a body that failed to decode with `failure`, from a hook or ormsgpack itself."""
    if isinstance(failure, CorruptValueError) or passes_through(failure):
        return failure
    if isinstance(failure, RecursionError) or str(failure) == "ext_hook failed":
        # A hook records every other error; only an exhausted stack can prevent that.
        return CorruptValueError("it is nested too deep for what the caller left of Python's stack")
    # The error text of a type may quote the value.
    return CorruptValueError(f"its checksum matches, but it does not decode ({type(failure).__name__})")
