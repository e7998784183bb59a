"""Codec: the contract of a codec, built in or of a plugin."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from ..options import Option


class Codec(ABC):
    """A converter between one value and its body, the bytes that are stored between a header byte and a checksum.

    A plugin's codec is made with its options as keyword arguments, once per store, and is used by any number of
    threads. `EncodedStorage` adds and verifies the header byte and the checksum.
    """

    __slots__ = ()

    #: The header bytes of the bodies that this codec writes and reads, for example ``b"\x80"``.
    headers: ClassVar[bytes] = b""
    #: The options the codec takes. If declared, they are validated, converted and filled with their defaults.
    OPTIONS: ClassVar[Mapping[str, Option] | None] = None

    @property
    def reads_only_signed(self) -> bool:
        """Whether values of the msgpack and json codecs are refused, because they carry no signature."""
        return False

    @property
    def name(self) -> str:
        """The name of the codec in messages; the class's name without "Codec", in lower case, unless overridden."""
        return type(self).__name__.removesuffix("Codec").lower()

    @abstractmethod
    def encode(self, value: object, /) -> tuple[int, bytes]:
        """Return a byte of `headers`, and the body. Raises ValueTypeError unless decoding gives an equal value of the
        same type."""

    @abstractmethod
    def decode(self, header: int, body: bytes, /) -> Any:
        """Return the value as a new object. Raises CorruptValueError if `encode` did not make `body`.

        `body` may be any bytes: the checksum detects damage, not attacks. Use time and memory bounded by its length.
        """
