"""Registration of an application's types with the default codec."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Literal, NamedTuple, TypeVar
from uuid import UUID

from ..errors import CorruptValueError, ValueTypeError
from ..handlers import passes_through

T = TypeVar("T")


class Registration(NamedTuple):
    """The stored name of a class, and the functions that write (`encode`) and read (`decode`) its instances."""

    cls: type
    name: str
    encode: Callable[[Any], Any]
    decode: Callable[[Any], Any]


# The encoder handles these types before it looks for a registration, which would be ignored, or used inconsistently.
_BUILT_IN = frozenset(
    {
        *(type(None), bool, int, float, complex, str, bytes, bytearray, memoryview, list, tuple, dict, set, frozenset),
        *(range, date, datetime, time, timedelta, UUID, Path, PurePosixPath, PureWindowsPath),
    }
)
# Also built in; by name, so that their modules are not imported.
_BUILT_IN_NAMES = frozenset({("decimal", "Decimal"), ("fractions", "Fraction")})
_by_type: dict[type, Registration] = {}
_by_name: dict[str, Registration] = {}


def register_type(
    cls: type[T],
    *,
    name: str | None = None,
    encode: Callable[[T], Any] | None = None,
    decode: Callable[[Any], T] | None = None,
) -> type[T]:
    """Let the default codec store instances of exactly `cls`. Returns `cls`, so it works as a decorator.

    `encode` turns an instance into a value that the codec takes; `decode` turns that back. Omit both for dataclasses,
    enums, pydantic models and numpy's `ndarray` and scalar types. `name` is what is stored (default: module and
    qualified name): keep it when the class moves. Registration is global to the process, thread-safe, and must
    precede the first read of such a value. Reading calls `decode` and, for the kinds above, the class itself;
    nothing else is ever imported or run.

    Raises ValueTypeError if `cls` needs `encode` and `decode`, if only one is given, if the codec handles `cls`
    itself, or if another class has the name.
    """
    if (encode is None) != (decode is None):
        raise ValueTypeError(f"register_type({cls.__qualname__}): give both encode= and decode=, or neither")
    if cls in _BUILT_IN or (cls.__module__, cls.__qualname__) in _BUILT_IN_NAMES or cls.__module__ == "ormsgpack":
        raise ValueTypeError(f"register_type({cls.__qualname__}): the codec encodes this type itself")
    name = name or f"{cls.__module__}.{cls.__qualname__}"
    taken = _by_name.get(name)
    if taken is not None and (taken.cls.__module__, taken.cls.__qualname__) != (cls.__module__, cls.__qualname__):
        raise ValueTypeError(f"register_type: the name {name!r} already stands for {taken.cls!r}; pass another name=")
    if encode is None or decode is None:
        encode, decode = _recipe(cls)
    registration = Registration(cls, name, encode, decode)
    _by_name[name] = registration
    _by_type[cls] = registration
    return cls


def find(cls: type) -> Registration | None:
    """Return the registration of exactly `cls`, or None."""
    return _by_type.get(cls)


def decode(name: str, payload: Any) -> Any:
    """Return the instance stored as `payload` under `name`. Raises CorruptValueError if it cannot be restored."""
    registration = _by_name.get(name) if type(name) is str else None
    if registration is None:
        shown = repr(name[:100]) if type(name) is str else "value of a type without a name"
        raise CorruptValueError(
            f"it holds a {shown}, which is not registered in this process; call hutch.register_type first"
        )
    try:
        return registration.decode(payload)
    except Exception as error:
        if passes_through(error):
            raise
        # The class's error may quote the value, and so may a traceback that shows it as the cause.
        raise CorruptValueError(
            f"it holds a {name!r} that the class did not take back ({raised_where(error)})"
        ) from None


def raised_where(error: BaseException) -> str:
    """Return the type of `error` and the line of code that raised it, without its text, which may quote a value."""
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    if traceback is None:
        return type(error).__name__
    file = Path(traceback.tb_frame.f_code.co_filename).name
    return f"{type(error).__name__} in {ascii(file)[1:-1]}, line {traceback.tb_lineno}"


def _recipe(cls: type) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    if issubclass(cls, enum.Enum):
        # By value, because a combination of flags has no name.
        return (lambda v: v.value), cls
    if dataclasses.is_dataclass(cls):
        return _dataclass_recipe(cls)
    if hasattr(cls, "__pydantic_fields__"):
        return _pydantic_recipe(cls)
    if cls.__module__.partition(".")[0] == "numpy":
        import numpy

        # Not matrix, recarray and MaskedArray, which would come back as plain arrays.
        if cls is numpy.ndarray or issubclass(cls, numpy.generic):
            return _numpy_recipe(cls)
    raise ValueTypeError(
        f"register_type({cls.__qualname__}): no recipe for this kind of class; pass encode= and decode="
    )


def _dataclass_recipe(cls: Any) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
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


def _pydantic_recipe(cls: Any) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
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


def _numpy_recipe(cls: Any) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
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
