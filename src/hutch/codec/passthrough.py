"""The carry codec: moves pickles from store to store without loading one.

An object of a class that is not here, such as an identifier of a bot that does not run, cannot be unpickled and so
neither be read nor copied. Carried, its pickle comes as it is, `Pickled`, and is written as it is.
"""

from __future__ import annotations

from typing import Any, NoReturn

from ..record import Record
from .msgpack import TypedCodec
from .pickle import PickleCodec


class Pickled(Record):
    """A value as its pickle. Equal to another one if their bytes are."""

    body: bytes

    def __repr__(self) -> str:
        return f"<a pickle of {len(self.body):,} bytes>"

    def __deepcopy__(self, memo: object) -> Pickled:
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError("it is moved as it is; choose CODEC: carry")  # a pickle of a pickle would be another value


class CarryCodec(PickleCodec):
    """As the pickle codec that prefers msgpack writes, with `key` or without; it loads no pickle and makes none.

    A pickle is read as `Pickled`, and that is written as the pickle it holds. With a key, a pickle is read only if it
    is signed with that key, and is signed with it when it is written.
    """

    __slots__ = ()

    def __init__(self, key: bytes | None = None) -> None:
        super().__init__(key, prefer_typed=True)

    def __repr__(self) -> str:
        return f"CarryCodec({'signed' if self._key else 'unsigned'})"

    def encode(self, value: object, seed: int = 0, /) -> bytes:
        """Raises ValueTypeError for a value that is no `Pickled` and that the msgpack codec does not take."""
        return self._sealed(value.body, seed) if type(value) is Pickled else _typed.encode(value, seed)

    def _load(self, body: bytes) -> Any:
        return Pickled(body)


_typed = TypedCodec()
