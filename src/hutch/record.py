"""Record: a frozen dataclass without generated methods.

`dataclasses` generates and compiles six functions per class. For the eight classes that every program with a store
needs, that took half as long as importing LMDB and ormsgpack together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing import Self, dataclass_transform
else:

    def dataclass_transform(**_):
        return lambda cls: cls


@dataclass_transform(frozen_default=True)
class Record:
    """A class whose annotations are its fields, as in a frozen dataclass; a value in the class is the default.

    Equality, hash and repr use the fields. A class has only the fields that it declares itself: none is inherited.
    """

    def __init__(self, *values: Any, **named: Any) -> None:
        fields = type(self).__annotations__
        given = {**dict(zip(fields, values, strict=False)), **named}
        if len(given) != len(values) + len(named) or not given.keys() <= fields.keys():
            raise TypeError(f"{type(self).__qualname__} takes each of {', '.join(fields)} at most once")
        # The default of a field is the class attribute of that name.
        if len(given) < len(fields) and not all(name in given or hasattr(type(self), name) for name in fields):
            raise TypeError(f"{type(self).__qualname__} needs each of {', '.join(fields)} that has no default")
        vars(self).update(given)

    def replaced(self, **changes: Any) -> Self:
        """Return a copy with some fields changed."""
        return type(self)(**{**vars(self), **changes})

    def __setattr__(self, name: str, value: object) -> None:
        raise _frozen(name)

    def __delattr__(self, name: str) -> None:
        raise _frozen(name)

    def __eq__(self, other: object) -> bool:
        return (
            _values(self) == _values(other)
            if isinstance(other, Record) and type(other) is type(self)
            else NotImplemented
        )

    def __hash__(self) -> int:
        return hash(_values(self))

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={getattr(self, name)!r}" for name in type(self).__annotations__)
        return f"{type(self).__qualname__}({shown})"


def _values(record: Record) -> tuple[Any, ...]:
    return tuple(getattr(record, name) for name in type(record).__annotations__)


def _frozen(name: str) -> Exception:
    from dataclasses import FrozenInstanceError

    return FrozenInstanceError(f"cannot change the field {name!r}: this is frozen")
