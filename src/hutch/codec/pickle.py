"""The pickle codec: store any picklable value. Opt-in; set a key wherever others can write to the store.

Unpickling runs code from the data (https://docs.python.org/3/library/pickle.html): anyone who can write to an
unsigned store can run code in every reader. With a key, nothing is unpickled unless its HMAC-SHA256 matches.
"""

from __future__ import annotations

import hmac
import pickle
from typing import Any

from ..errors import CorruptValueError, ValueTypeError
from ..handlers import passes_through
from . import frame
from .json import decode_body
from .msgpack import MsgpackCodec
from .registry import raised_where

_PROTOCOL = 5
_TAG_BYTES = 32
# Limits how much of a class name an error quotes: a pickle may name a missing class anything.
_LONGEST_NAME = 200
_RUNS_NOTHING = (bytes([frame.MSGPACK]), bytes([frame.JSON]))


class PickleCodec:
    """The codec for ``0x50 | pickle | crc32`` or, with `key`, ``0x53 | HMAC-SHA256 | pickle | crc32``.

    Without a key it also reads the frames of the msgpack and json codecs, but no signed pickle. With a key it reads
    only pickles signed with that key.

    With `prefer_typed` it pickles only what the msgpack codec refuses and writes everything else as that codec does,
    so that most of the store can be read safely. Those frames are unsigned and are read without a signature: a key
    then protects against foreign code, not against foreign data.
    """

    __slots__ = ("_key", "_typed")
    checksum_covers_key = True

    def __init__(self, key: bytes | None = None, *, prefer_typed: bool = False) -> None:
        self._key = key
        self._typed = MsgpackCodec() if prefer_typed else None

    def __repr__(self) -> str:
        preferred = ", msgpack preferred" if self._typed else ""
        return f"PickleCodec({'signed' if self._key else 'unsigned'}{preferred})"

    def encode(self, value: object, key_crc: int = 0, /) -> bytes:
        """Return the frame of `value`. Raises ValueTypeError if it cannot be pickled."""
        if self._typed is not None:
            try:
                return self._typed.encode(value, key_crc)
            except ValueTypeError:
                pass  # left to pickle
        try:
            body = pickle.dumps(value, _PROTOCOL)
        except Exception as error:
            if passes_through(error):
                raise
            # Python's own errors name types only; an error raised by a class's methods may quote the value.
            message = str(error) if isinstance(error, pickle.PicklingError | TypeError | AttributeError) else ""
            message = message or type(error).__name__
            raise ValueTypeError(f"a {type(value).__name__} that cannot be pickled: {message}") from error
        return self._sealed(body, key_crc)

    def _sealed(self, body: bytes, key_crc: int) -> bytes:
        if self._key is None:
            return frame.seal(bytes([frame.PICKLE]) + body, key_crc)
        return frame.seal(bytes([frame.SIGNED_PICKLE]) + hmac.digest(self._key, body, "sha256") + body, key_crc)

    def decode(self, data: bytes, key_crc: int = 0, /) -> Any:
        """Return the value in the frame `data`. Raises CorruptValueError for a frame that this codec does not read."""
        if self._typed is not None and isinstance(data, frame.BYTES) and data[:1] in _RUNS_NOTHING:
            return self._typed.decode(data, key_crc)
        header = frame.verify(data, key_crc)
        if self._key is not None:
            if header != frame.SIGNED_PICKLE:
                raise CorruptValueError("it is not signed, and the configured codec reads only signed values")
            tag, body = data[1 : 1 + _TAG_BYTES], data[1 + _TAG_BYTES : -4]
            if not hmac.compare_digest(tag, hmac.digest(self._key, body, "sha256")):
                raise CorruptValueError("its signature does not fit: it was forged, or signed with another key")
            return self._load(body)
        if header == frame.PICKLE:
            return self._load(data[1:-4])
        if header == frame.MSGPACK:
            return MsgpackCodec().decode(data, key_crc)
        if header == frame.JSON:
            return decode_body(data)
        raise CorruptValueError("it is a signed pickle; configure CODEC: {name: pickle, key: ...} with its key")

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
