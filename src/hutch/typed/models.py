"""Pydantic models in typed namespaces. The class comes from pydantic, so the application has imported it."""

from __future__ import annotations

import sys
from typing import Any

from .shape import MismatchError, Shape


class Model(Shape):
    """A pydantic model, stored as its fields in Python mode and validated by the model when it is read."""

    is_mapping = True

    def __init__(self, kind: Any) -> None:
        super().__init__(kind.__name__)
        self._kind = kind
        self._by_name = any(field.validation_alias for field in kind.__pydantic_fields__.values())

    def dump(self, value: Any, path: str = "") -> Any:
        if type(value) is not self._kind:
            raise self.refuse(value, path)
        plain = value.model_dump(round_trip=True, warnings="none")
        self._validated(plain, path, strict=True)  # a model may be made or changed without validation
        return plain

    def load(self, plain: Any, path: str = "") -> Any:
        if type(plain) is self._kind:  # stored by a namespace without a type, as an instance of a registered class
            return plain
        if type(plain) is not dict:
            raise self.refuse(plain, path)
        return self._validated(plain, path)

    def _validated(self, plain: Any, path: str, strict: bool | None = None) -> Any:
        options: dict[str, Any] = {"by_name": True, "by_alias": False} if self._by_name else {}
        invalid = sys.modules["pydantic"].ValidationError
        try:
            return self._kind.model_validate(plain, strict=strict, **options)
        except invalid as error:
            [first, *_] = error.errors(include_input=False, include_url=False, include_context=False)
            place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"])
            raise MismatchError(f"{path}{place}", self.name, f"what pydantic reports as {first['type']}") from None
