"""The pickle codec: store any picklable value. Opt-in; set a key wherever others can write to the store.

Unpickling runs code from the data (https://docs.python.org/3/library/pickle.html): anyone who can write to an
unsigned store can run code in every reader. With a key, nothing is unpickled unless its HMAC-SHA256 matches.
"""

from __future__ import annotations

import hmac
import pickle
from typing import Any

from ..errors import CorruptValueError, ValueTypeError, a_or_an
from ..handlers import passes_through
from .codec import Codec
from .frame import NOT_SIGNED, PICKLE, SIGNED_PICKLE, FrameCodec
from .msgpack import MsgpackFrameCodec
from .registry import raised_where

_PROTOCOL = 5
_TAG_BYTES = 32
# Limits how much of a class name an error quotes: a pickle may name a missing class anything.
_LONGEST_NAME = 200


class PickleCodec(Codec):
    """The codec of header byte 0x50, a pickle, or, with `key`, 0x53, the pickle's HMAC-SHA256 and the pickle.

    Without a key it reads no signed pickle. With a key it reads only pickles signed with that key.

    With `prefer_typed` it pickles only what the msgpack codec refuses and writes everything else as that codec does,
    so that most of the store can be read safely. Those frames are unsigned and are read without a signature: a key
    then protects against foreign code, not against foreign data.
    """

    __slots__ = ("_key", "_prefers_msgpack")
    headers = bytes([PICKLE, SIGNED_PICKLE])

    def __init__(self, key: bytes | None = None, *, prefer_typed: bool = False) -> None:
        self._key = key
        self._prefers_msgpack = prefer_typed

    @property
    def reads_only_signed(self) -> bool:
        return self._key is not None and not self._prefers_msgpack

    @property
    def frame_codec_class(self) -> type[FrameCodec]:
        """The class that makes the frames of this codec."""
        return _MsgpackFirst if self._prefers_msgpack else FrameCodec

    def __repr__(self) -> str:
        preferred = ", msgpack preferred" if self._prefers_msgpack else ""
        return f"PickleCodec({'signed' if self._key else 'unsigned'}{preferred})"

    def encode(self, value: object, /) -> tuple[int, bytes]:
        """Return the pickle of `value`, signed if there is a key. Raises ValueTypeError if it cannot be pickled."""
        try:
            body = pickle.dumps(value, _PROTOCOL)
        except Exception as error:
            if passes_through(error):
                raise
            # Python's own errors name types only; an error raised by a class's methods may quote the value.
            message = str(error) if isinstance(error, pickle.PicklingError | TypeError | AttributeError) else ""
            message = message or type(error).__name__
            raise ValueTypeError(f"{a_or_an(type(value).__name__)} that cannot be pickled: {message}") from error
        return self._signed(body)

    def _signed(self, body: bytes) -> tuple[int, bytes]:
        if self._key is None:
            return PICKLE, body
        return SIGNED_PICKLE, hmac.digest(self._key, body, "sha256") + body

    def decode(self, header: int, body: bytes, /) -> Any:
        """Return the unpickled value. Raises CorruptValueError for a pickle whose signature is wrong or missing."""
        if self._key is None:
            if header == PICKLE:
                return self._load(body)
            raise CorruptValueError("it is a signed pickle; configure CODEC: {name: pickle, key: ...} with its key")
        if header != SIGNED_PICKLE:
            raise CorruptValueError(NOT_SIGNED)
        tag, body = body[:_TAG_BYTES], body[_TAG_BYTES:]
        if not hmac.compare_digest(tag, hmac.digest(self._key, body, "sha256")):
            raise CorruptValueError("its signature does not fit: it was forged, or signed with another key")
        return self._load(body)

    def _load(self, body: bytes) -> Any:
        try:
            return pickle.loads(body)
        except Exception as error:
            if passes_through(error):
                raise
            # Only the name of a missing class is shown. Any other error text may quote the value, and so may a
            # traceback that shows it as the cause.
            named = type(error) in (ModuleNotFoundError, AttributeError)
            message = ascii(str(error)[:_LONGEST_NAME])[1:-1] if named else raised_where(error)
            raise CorruptValueError(
                f"it cannot be unpickled here: {message}. To copy it all the same, choose CODEC: passthrough"
            ) from None


class _MsgpackFirst(MsgpackFrameCodec):
    """The frames of a codec that is used only for values that the msgpack codec refuses."""

    __slots__ = ()

    def encode(self, value: object, key_crc: int = 0, /) -> bytes:
        try:
            return super().encode(value, key_crc)
        except ValueTypeError:
            return FrameCodec.encode(self, value, key_crc)

    encode_many = FrameCodec.encode_many
