"""The recipes: how instances of the classes that `register_type` takes without functions are written and read."""

from __future__ import annotations

import dataclasses
import enum
import sys
from typing import Any, Literal

from ..errors import ValueTypeError
from .subclasses import Recipe, built_in_base, subclass_recipe


def find_recipe(cls: type) -> Recipe | None:
    """Return the functions that write and read instances of `cls`; None if hutch has none for this kind of class."""
    if issubclass(cls, enum.Enum):
        # By value, because a combination of flags has no name.
        return (lambda v: v.value), cls
    if hasattr(cls, "__pydantic_fields__"):
        return _pydantic_recipe(cls)
    if dataclasses.is_dataclass(cls):
        # The fields of a dataclass that is also a dict or a list are not all of its value.
        return None if built_in_base(cls) else _dataclass_recipe(cls)
    if hasattr(cls, "__struct_fields__") and type(cls).__module__.partition(".")[0] == "msgspec":
        return _struct_recipe(cls)
    if cls.__module__.partition(".")[0] == "numpy":
        import numpy

        # Not matrix, recarray and MaskedArray, which would come back as plain arrays.
        return _numpy_recipe(cls) if cls is numpy.ndarray or issubclass(cls, numpy.generic) else None
    return subclass_recipe(cls)


def _dataclass_recipe(cls: Any) -> Recipe:
    names = [field.name for field in dataclasses.fields(cls)]

    def encode(value: Any) -> dict[str, Any]:
        return {name: getattr(value, name) for name in names}

    def decode(payload: dict[str, Any]) -> Any:
        # As pickle does, the stored state is set without running __init__ and __post_init__ again.
        value = object.__new__(cls)
        for field in dataclasses.fields(cls):
            if field.name in payload:
                object.__setattr__(value, field.name, payload[field.name])
            elif field.default is not dataclasses.MISSING:
                object.__setattr__(value, field.name, field.default)
            elif field.default_factory is not dataclasses.MISSING:
                object.__setattr__(value, field.name, field.default_factory())
            else:
                raise KeyError(field.name)
        return value

    return encode, decode


def _pydantic_recipe(cls: Any) -> Recipe:
    def encode(value: Any) -> list[Any]:
        state = {name: value.__dict__[name] for name in cls.__pydantic_fields__ if name in value.__dict__}
        return [state, value.__pydantic_extra__, sorted(value.__pydantic_fields_set__), value.__pydantic_private__]

    def decode(payload: list[Any]) -> Any:
        state, extra, fields_set, private = payload
        # As for a dataclass, the stored state is set; validators do not run again, because they could change it.
        # Fields added to the class since get their defaults.
        value = cls.model_construct(**state)
        for name in cls.__pydantic_fields__:
            if name not in value.__dict__:
                raise KeyError(name)
        value.__setstate__(
            {
                "__dict__": {name: value.__dict__[name] for name in cls.__pydantic_fields__},
                "__pydantic_extra__": extra,
                "__pydantic_fields_set__": set(fields_set),
                "__pydantic_private__": private,
            }
        )
        return value

    return encode, decode


def _numpy_recipe(cls: Any) -> Recipe:
    import numpy

    # Not as array items, which lose trailing NULs.
    if issubclass(cls, numpy.str_):
        return str.__str__, cls
    if issubclass(cls, numpy.bytes_):
        return bytes, cls

    def encode(value: Any) -> list[Any]:
        if value.dtype.hasobject:
            raise ValueTypeError("a numpy array of Python objects has no bytes of its own; convert it with tolist()")
        if not value.dtype.itemsize:
            raise ValueTypeError("a numpy array of items of no size cannot be read back")
        array = numpy.asarray(value)
        order: Literal["C", "F"] = "F" if array.flags.f_contiguous and not array.flags.c_contiguous else "C"
        return [numpy.lib.format.dtype_to_descr(array.dtype), list(array.shape), order, array.tobytes(order)]

    def decode(payload: list[Any]) -> Any:
        descr, shape, order, data = payload
        dtype = numpy.lib.format.descr_to_dtype(descr)
        array = numpy.frombuffer(bytearray(data), dtype).reshape(shape, order=order)
        return array if cls is numpy.ndarray else array[()]

    return encode, decode


def _struct_recipe(cls: Any) -> Recipe:
    # The application imported msgspec, or the class would not be.
    set_field = sys.modules["msgspec"].structs.force_setattr
    names: tuple[str, ...] = cls.__struct_fields__

    def encode(value: Any) -> dict[str, Any]:
        return {name: getattr(value, name) for name in names}

    def decode(payload: dict[str, Any]) -> Any:
        state = {name: payload[name] for name in names if name in payload}
        # A struct cannot be made without __init__ and __post_init__; what those changed is set back.
        value = cls(**state)
        for name, part in state.items():
            set_field(value, name, part)
        return value

    return encode, decode
