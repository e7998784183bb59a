"""Structs of msgspec in typed namespaces. The class comes from msgspec, so the application has imported it."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from typing import Any
from uuid import UUID

from .shape import MismatchError, Shape

# The types that the codec stores and msgspec takes as they are.
_AS_THEY_ARE = (bytes, datetime, date, time, timedelta, UUID)


class Struct(Shape):
    """A struct of msgspec, stored as its encoder writes it, and checked and read by its decoder."""

    is_mapping = True

    def __init__(self, kind: Any) -> None:
        super().__init__(kind.__name__)
        self._kind = kind
        self._msgspec = msgspec = sys.modules["msgspec"]
        self._error: type[Exception] = msgspec.ValidationError
        #: Decodes packed bytes in one call. Raises an error for the types that the codec stores in its own way.
        self.decode: Callable[[bytes], Any] = msgspec.msgpack.Decoder(kind).decode

    def dump(self, value: Any, path: str = "") -> Any:
        if type(value) is not self._kind:
            raise self.refuse(value, path)
        plain = self._msgspec.to_builtins(value, builtin_types=_AS_THEY_ARE)
        self._converted(plain, path)  # a struct is made without validation
        return plain

    def load(self, plain: Any, path: str = "") -> Any:
        if type(plain) is self._kind:  # stored by a namespace without a type, as an instance of a registered class
            return plain
        return self._converted(plain, path)

    def _converted(self, plain: Any, path: str) -> Any:
        try:
            return self._msgspec.convert(plain, self._kind, builtin_types=_AS_THEY_ARE)
        except self._error as error:
            raise self._mismatch(str(error), path) from None

    def _mismatch(self, text: str, path: str) -> MismatchError:
        """Return the error for msgspec's `text`; of it, types and the place are kept."""
        place = re.search(r" - at `(?:key in )?\$([^`]*)`$", text)
        types = re.match(r"Expected `([^`]*)`, got `([^`]*)`", text)
        missing = re.match(r"Object missing required field `([^`]*)`", text)
        where = f"{path}{place.group(1) if place else ''}"
        if missing:
            return MismatchError(f"{where}.{missing.group(1)}", f"a field of {self.name}", "no value")
        if types:
            return MismatchError(where, types.group(1) if place else self.name, types.group(2))
        return MismatchError(where, self.name, "what msgspec refuses")
