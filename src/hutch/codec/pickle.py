"""The pickle codec: any picklable value, at pickle's price. Opt-in; sign it wherever others can write.

Unpickling runs whatever the bytes say (https://docs.python.org/3/library/pickle.html): whoever can write to an
unsigned store can run code in every reader. With a key, nothing is unpickled unless its HMAC-SHA256 fits.
"""

from __future__ import annotations

import hmac
import pickle
from typing import Any

from ..errors import CorruptValueError, ValueTypeError
from ..handlers import passes_through
from . import frame
from .json import decode_body
from .msgpack import TypedCodec
from .registry import raised_where

_PROTOCOL = 5
_TAG_BYTES = 32
# Of what a message says of a class that is not here; a pickle may name it anything.
_LONGEST_NAME = 200
_RUNS_NOTHING = (bytes([frame.TYPED]), bytes([frame.JSON]))


class PickleCodec:
    """``0x50 | pickle | crc32``, or with `key` ``0x53 | HMAC-SHA256 | pickle | crc32``.

    Without a key it also reads what the msgpack and json codecs wrote, and no signed pickle; with one it reads
    nothing but pickles signed with that key.

    With `prefer_typed` it pickles only what the msgpack codec refuses, and writes the rest as that codec does, so
    that most of a store stays safe to read for anybody. Such values carry no signature, and are read without one: a
    key then keeps foreign code out, not foreign data.
    """

    __slots__ = ("_key", "_typed")
    binds_keys = True

    def __init__(self, key: bytes | None = None, *, prefer_typed: bool = False) -> None:
        self._key = key
        self._typed = TypedCodec() if prefer_typed else None

    def __repr__(self) -> str:
        preferred = ", msgpack preferred" if self._typed else ""
        return f"PickleCodec({'signed' if self._key else 'unsigned'}{preferred})"

    def encode(self, value: object, seed: int = 0, /) -> bytes:
        """Raises ValueTypeError for a value that cannot be pickled."""
        if self._typed is not None:
            try:
                return self._typed.encode(value, seed)
            except ValueTypeError:
                pass  # what pickle is there for
        try:
            body = pickle.dumps(value, _PROTOCOL)
        except Exception as error:
            if passes_through(error):
                raise
            # What Python itself says names types; what a class's own methods raise may quote the value.
            told = str(error) if isinstance(error, pickle.PicklingError | TypeError | AttributeError) else ""
            told = told or type(error).__name__
            raise ValueTypeError(f"a {type(value).__name__} that cannot be pickled: {told}") from error
        return self._sealed(body, seed)

    def _sealed(self, body: bytes, seed: int) -> bytes:
        if self._key is None:
            return frame.seal(bytes([frame.PICKLE]) + body, seed)
        return frame.seal(bytes([frame.SIGNED_PICKLE]) + hmac.digest(self._key, body, "sha256") + body, seed)

    def decode(self, data: bytes, seed: int = 0, /) -> Any:
        """Raises CorruptValueError for anything that this codec, with this key, did not write."""
        if self._typed is not None and isinstance(data, frame.BYTES) and data[:1] in _RUNS_NOTHING:
            return self._typed.decode(data, seed)
        header = frame.check(data, seed)
        if self._key is not None:
            if header != frame.SIGNED_PICKLE:
                raise CorruptValueError("it is not signed, and the configured codec reads only signed values")
            tag, body = data[1 : 1 + _TAG_BYTES], data[1 + _TAG_BYTES : -4]
            if not hmac.compare_digest(tag, hmac.digest(self._key, body, "sha256")):
                raise CorruptValueError("its signature does not fit: it was forged, or signed with another key")
            return self._load(body)
        if header == frame.PICKLE:
            return self._load(data[1:-4])
        if header == frame.TYPED:
            return TypedCodec().decode(data, seed)
        if header == frame.JSON:
            return decode_body(data)
        raise CorruptValueError("it is a signed pickle; configure CODEC: {name: pickle, key: ...} with its key")

    def _load(self, body: bytes) -> Any:
        try:
            return pickle.loads(body)
        except Exception as error:
            if passes_through(error):
                raise
            # A class that is not here is named; what else an error says may quote the value, and so may a traceback
            # with it as the cause.
            named = type(error) in (ModuleNotFoundError, AttributeError)
            told = ascii(str(error)[:_LONGEST_NAME])[1:-1] if named else raised_where(error)
            raise CorruptValueError(
                f"it cannot be unpickled here: {told}. To copy it all the same, choose CODEC: carry"
            ) from None
