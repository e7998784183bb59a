"""The passthrough codec: move pickles between stores without loading them.

An object whose class is not importable here, such as an identifier of a bot that is not running, cannot be unpickled,
and so neither read nor copied. This codec reads its pickle as `Pickled` and writes it back byte for byte.
"""

from __future__ import annotations

from typing import Any

from ..errors import ValueTypeError, a_or_an
from .frame import FrameCodec
from .msgpack import MsgpackFrameCodec
from .pickle import PickleCodec
from .pickled import Pickled


class PassthroughCodec(PickleCodec):
    """The codec that reads a pickle as `Pickled` and writes a `Pickled` as its pickle; it loads and makes no pickle.

    Everything else is as in the pickle codec with `prefer_typed`. With a key, it reads only pickles that are signed
    with that key, and signs the pickles it writes.
    """

    __slots__ = ()

    def __init__(self, key: bytes | None = None) -> None:
        super().__init__(key, prefer_typed=True)

    def __repr__(self) -> str:
        return f"PassthroughCodec({'signed' if self._key else 'unsigned'})"

    @property
    def frame_codec_class(self) -> type[FrameCodec]:
        return _PassthroughFrameCodec

    def encode(self, value: object, /) -> tuple[int, bytes]:
        """Return the pickle that `value` holds. Raises ValueTypeError unless `value` is a `Pickled`."""
        if type(value) is not Pickled:
            raise ValueTypeError(f"the value is {a_or_an(type(value).__name__)}, not a pickle")
        return self._signed(value.body)

    def _load(self, body: bytes) -> Any:
        return Pickled(body)


class _PassthroughFrameCodec(MsgpackFrameCodec):
    """The frames of pickles that stay pickles, and of everything that the msgpack codec takes."""

    __slots__ = ()

    def encode(self, value: object, key_crc: int = 0, /) -> bytes:
        if type(value) is Pickled:
            return FrameCodec.encode(self, value, key_crc)
        return super().encode(value, key_crc)
