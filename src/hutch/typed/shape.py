"""Shape: how the values of one type are checked, stored and read. `shapes` has the kinds of shapes."""

from __future__ import annotations

from typing import Any

from ..errors import a_or_an


class MismatchError(Exception):
    """A value is not of the type. `path` is where in the value, such as ``.tags[3]``; no value is shown."""

    def __init__(self, path: str, expected: str, actual: str) -> None:
        super().__init__(path, expected, actual)
        self.path, self.expected, self.actual = path, expected, actual


class Shape:
    """The values of one type. This base class accepts every value and changes none."""

    #: Whether it is stored as a dict, which one member of a union may be.
    is_mapping = False

    def __init__(self, name: str) -> None:
        self.name = name

    def dump(self, value: Any, path: str = "") -> Any:
        """Return the plain value to store. Raises MismatchError if `value` is not of the type."""
        return value

    def load(self, plain: Any, path: str = "") -> Any:
        """Return the value that was stored as `plain`. Raises MismatchError."""
        return plain

    def refuse(self, value: object, path: str) -> MismatchError:
        """Return the error for `value`, which is not of the type."""
        return MismatchError(path, self.name, a_or_an(type(value).__name__))
