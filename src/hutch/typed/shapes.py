"""Shapes: how values of one type are checked, written as plain values that any reader can read, and made again.

A dataclass, TypedDict, pydantic model or msgspec struct is stored as a dict of its fields, so no class is named in what
is stored: the class may move, and `hutch get` shows the fields.
"""

from __future__ import annotations

import dataclasses
import enum
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import PurePath
from typing import Any

import typing_extensions

from ..codec import registry
from ..errors import ValueTypeError, a_or_an
from .shape import MismatchError, Shape

# What may stand around the type of a field.
_QUALIFIERS = (typing.Annotated, typing.Required, typing.NotRequired, typing_extensions.ReadOnly)


class _Exact(Shape):
    """A type that the codec stores and returns itself, and no subclass of it."""

    def __init__(self, kind: type) -> None:
        super().__init__(kind.__name__)
        self._kinds = (float, int) if kind is float else (kind,)

    def dump(self, value: Any, path: str = "") -> Any:
        if type(value) not in self._kinds:
            raise self.refuse(value, path)
        return value

    def load(self, plain: Any, path: str = "") -> Any:
        return self.dump(plain, path)


class _Path(Shape):
    """A path, whose own class depends on the system."""

    def __init__(self, kind: type) -> None:
        super().__init__(kind.__name__)
        self._kind = kind

    def dump(self, value: Any, path: str = "") -> Any:
        if not isinstance(value, self._kind):
            raise self.refuse(value, path)
        return value

    def load(self, plain: Any, path: str = "") -> Any:
        return self.dump(plain, path)


class _Enum(Shape):
    """An enum, stored as the value of its member."""

    def __init__(self, kind: type[enum.Enum]) -> None:
        super().__init__(kind.__name__)
        self._kind = kind

    def dump(self, value: Any, path: str = "") -> Any:
        if type(value) is not self._kind:
            raise self.refuse(value, path)
        return value.value

    def load(self, plain: Any, path: str = "") -> Any:
        if type(plain) is self._kind:
            return plain
        try:
            return self._kind(plain)
        except ValueError:
            raise MismatchError(path, self.name, "the value of no member") from None


class _Literal(Shape):
    def __init__(self, choices: tuple[Any, ...]) -> None:
        super().__init__(f"one of {', '.join(map(repr, choices))}")
        self._choices = [(type(choice), choice) for choice in choices]

    def dump(self, value: Any, path: str = "") -> Any:
        if not any(type(value) is kind and value == choice for kind, choice in self._choices):
            raise MismatchError(path, self.name, f"another {type(value).__name__}")
        return value

    def load(self, plain: Any, path: str = "") -> Any:
        return self.dump(plain, path)


class _Items(Shape):
    """A list, set, frozenset, or tuple of any length."""

    def __init__(self, kind: Any, item: Shape) -> None:
        super().__init__(f"{kind.__name__}[{item.name}]")
        self._kind, self._item = kind, item

    def _each(self, value: Any, path: str, convert: Callable[[Any, str], Any]) -> Any:
        if type(value) is not self._kind:
            raise self.refuse(value, path)
        if type(self._item) is Shape:
            return value
        return self._kind(convert(item, f"{path}[{at}]") for at, item in enumerate(value))

    def dump(self, value: Any, path: str = "") -> Any:
        return self._each(value, path, self._item.dump)

    def load(self, plain: Any, path: str = "") -> Any:
        return self._each(plain, path, self._item.load)


class _Tuple(Shape):
    """A tuple of one length."""

    def __init__(self, items: list[Shape]) -> None:
        super().__init__(f"tuple[{', '.join(item.name for item in items)}]")
        self._items = items

    def _each(self, value: Any, path: str, converts: list[Callable[[Any, str], Any]]) -> Any:
        if type(value) is not tuple:
            raise self.refuse(value, path)
        if len(value) != len(converts):
            raise MismatchError(path, self.name, f"a tuple of {len(value)}")
        return tuple(
            convert(item, f"{path}[{at}]") for at, (convert, item) in enumerate(zip(converts, value, strict=True))
        )

    def dump(self, value: Any, path: str = "") -> Any:
        return self._each(value, path, [item.dump for item in self._items])

    def load(self, plain: Any, path: str = "") -> Any:
        return self._each(plain, path, [item.load for item in self._items])


class _Dict(Shape):
    is_mapping = True

    def __init__(self, key: Shape, value: Shape) -> None:
        super().__init__(f"dict[{key.name}, {value.name}]")
        self._key, self._value = key, value

    def _each(self, value: Any, path: str, key: Callable[[Any, str], Any], part: Callable[[Any, str], Any]) -> Any:
        if type(value) is not dict:
            raise self.refuse(value, path)
        return {key(name, f"{path} key"): part(item, f"{path}[...]") for name, item in value.items()}

    def dump(self, value: Any, path: str = "") -> Any:
        return self._each(value, path, self._key.dump, self._value.dump)

    def load(self, plain: Any, path: str = "") -> Any:
        return self._each(plain, path, self._key.load, self._value.load)


class _Union(Shape):
    def __init__(self, members: list[Shape]) -> None:
        super().__init__(" | ".join(member.name for member in members))
        self._members = members
        if sum(member.is_mapping for member in members) > 1:
            raise ValueTypeError(
                f"type= is or holds the union {self.name}: more than one of its members is stored as a dict, so a "
                "reader could not tell them apart. Use one class with a field that says which it is"
            )
        self.is_mapping = any(member.is_mapping for member in members)

    def _first(self, value: Any, path: str, converts: list[Callable[[Any, str], Any]]) -> Any:
        deepest: MismatchError | None = None
        for convert in converts:
            try:
                return convert(value, path)
            except MismatchError as error:
                if len(error.path) > len(path) and deepest is None:
                    deepest = error
        raise deepest or self.refuse(value, path)

    def dump(self, value: Any, path: str = "") -> Any:
        return self._first(value, path, [member.dump for member in self._members])

    def load(self, plain: Any, path: str = "") -> Any:
        return self._first(plain, path, [member.load for member in self._members])


class _TypedDict(Shape):
    is_mapping = True

    def __init__(self, kind: Any, known: dict[Any, Shape]) -> None:
        super().__init__(kind.__name__)
        hints = _hints(kind)
        self._fields = {name: shape_of(hint, known) for name, hint in hints.items()}
        self._required = [name for name, hint in hints.items() if _is_required(hint, name in kind.__required_keys__)]

    def dump(self, value: Any, path: str = "") -> Any:
        if type(value) is not dict:
            raise self.refuse(value, path)
        for name in value:
            if name not in self._fields:
                raise MismatchError(path, self.name, "a dict with a key that it does not have")
        self._require(value, path)
        return {name: self._fields[name].dump(part, f"{path}.{name}") for name, part in value.items()}

    def load(self, plain: Any, path: str = "") -> Any:
        if type(plain) is not dict:
            raise self.refuse(plain, path)
        self._require(plain, path)
        fields = self._fields
        return {name: fields[name].load(part, f"{path}.{name}") for name, part in plain.items() if name in fields}

    def _require(self, value: Mapping[str, Any], path: str) -> None:
        for name in self._required:
            if name not in value:
                raise MismatchError(f"{path}.{name}", self._fields[name].name, "no value")


class _Dataclass(Shape):
    """A dataclass. As pickle does, reading sets the state without running __init__ and __post_init__ again."""

    is_mapping = True

    def __init__(self, kind: Any, known: dict[Any, Shape]) -> None:
        super().__init__(kind.__name__)
        known[kind] = self
        self._kind = kind
        hints = _hints(kind)
        self._fields = [(field, shape_of(hints[field.name], known)) for field in dataclasses.fields(kind)]

    def dump(self, value: Any, path: str = "") -> Any:
        if type(value) is not self._kind:
            raise self.refuse(value, path)
        plain = {}
        for field, shape in self._fields:
            where = f"{path}.{field.name}"
            if not hasattr(value, field.name):
                raise MismatchError(where, shape.name, "no value")
            plain[field.name] = shape.dump(getattr(value, field.name), where)
        return plain

    def load(self, plain: Any, path: str = "") -> Any:
        if type(plain) is self._kind:  # stored by a namespace without a type, as an instance of a registered class
            return plain
        if type(plain) is not dict:
            raise self.refuse(plain, path)
        value = object.__new__(self._kind)
        for field, shape in self._fields:
            if field.name in plain:
                part = shape.load(plain[field.name], f"{path}.{field.name}")
            elif field.default is not dataclasses.MISSING:
                part = field.default
            elif field.default_factory is not dataclasses.MISSING:
                part = field.default_factory()
            else:
                raise MismatchError(f"{path}.{field.name}", shape.name, "no value")
            object.__setattr__(value, field.name, part)
        return value


def _is_required(hint: Any, by_default: bool) -> bool:
    """Return whether the annotation `hint` requires its key.

    `__required_keys__` alone does not say it: it ignores NotRequired and Required in annotations that are text.
    """
    while (origin := typing_extensions.get_origin(hint)) in _QUALIFIERS:
        if origin in (typing.Required, typing.NotRequired):
            return origin is typing.Required
        hint = typing_extensions.get_args(hint)[0]
    return by_default


def _hints(kind: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(kind, include_extras=True)
    except NameError as error:
        raise ValueTypeError(
            f"type= is or holds {kind.__qualname__}: its annotation names {error.name}, which is not defined in its "
            "module. Define or import it there, outside of functions"
        ) from None


def named_shape(kind: Any, name: str | None = None) -> Shape:
    """Return the shape of the type `kind`, which errors call `name` if it is given. Raises ValueTypeError."""
    if kind is None:
        raise ValueTypeError(
            "open: name= without type=: errors call the type by it. Pass type= too, or leave out name="
        )
    shape = shape_of(kind)
    if name is not None:
        if type(name) is not str or not name:
            what = "empty" if name == "" else a_or_an(type(name).__name__)
            raise ValueTypeError(f"open: name= is {what}: a text was expected. Pass a text such as 'User'")
        shape.name = name
    return shape


def shape_of(kind: Any, known: dict[Any, Shape] | None = None) -> Shape:
    """Return the shape of the type `kind`. Raises ValueTypeError for a type whose values hutch cannot check.

    `known` has the shapes of the classes around it, which it may refer to.
    """
    known = {} if known is None else known
    if kind in (Any, object):
        return Shape("any value")
    if kind is None or kind is type(None):
        return _Exact(type(None))
    origin, arguments = typing_extensions.get_origin(kind), typing_extensions.get_args(kind)
    if origin is not None:
        return _generic(kind, origin, arguments, known)
    if isinstance(kind, type) or typing_extensions.is_typeddict(kind):
        return known.get(kind) or _of_class(kind, known)
    raise _unknown(kind)


def _generic(kind: Any, origin: Any, arguments: tuple[Any, ...], known: dict[Any, Shape]) -> Shape:
    if origin in _QUALIFIERS:
        return shape_of(arguments[0], known)
    if origin in (typing.Union, types.UnionType):
        return _Union([shape_of(argument, known) for argument in arguments])
    if origin is typing.Literal:
        return _Literal(arguments)
    if origin is tuple and arguments[1:] != (...,):
        return _Tuple([shape_of(argument, known) for argument in arguments])
    if origin in (list, set, frozenset, tuple):
        return _Items(origin, shape_of(arguments[0], known))
    if origin is dict:
        return _Dict(shape_of(arguments[0], known), shape_of(arguments[1], known))
    raise _unknown(kind)


def _of_class(kind: Any, known: dict[Any, Shape]) -> Shape:
    anything = Shape("any value")
    if kind in (list, set, frozenset, tuple):
        return _Items(kind, anything)
    if kind is dict:
        return _Dict(anything, anything)
    if typing_extensions.is_typeddict(kind):
        return _TypedDict(kind, known)
    if issubclass(kind, PurePath):
        return _Path(kind)
    if hasattr(kind, "__pydantic_fields__"):
        from .models import Model

        return Model(kind)
    if hasattr(kind, "__struct_fields__") and type(kind).__module__.partition(".")[0] == "msgspec":
        from .structs import Struct

        return Struct(kind)
    if dataclasses.is_dataclass(kind):
        return _Dataclass(kind, known)
    if issubclass(kind, enum.Enum):
        return _Enum(kind)
    if registry.is_storable(kind):
        return _Exact(kind)
    raise _unknown(kind)


def _unknown(kind: Any) -> ValueTypeError:
    return ValueTypeError(
        f"type= is or holds {getattr(kind, '__qualname__', None) or kind!r}: a dataclass, TypedDict, pydantic model, "
        "msgspec struct, enum, built-in type, or container or union of these was expected. Register another class with "
        "hutch.register_type first, or open the namespace without type="
    )
