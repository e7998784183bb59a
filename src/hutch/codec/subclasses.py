"""The recipe for namedtuples and for subclasses of the built-in types: the value of the built-in type is stored."""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from types import BuiltinFunctionType
from typing import Any, TypeAlias
from uuid import UUID

from ..errors import ValueTypeError
from .addresses import classes as address_classes

#: A function that writes an instance as a value that the codec takes, and one that reads it.
Recipe: TypeAlias = tuple[Callable[[Any], Any], Callable[[Any], Any]]

# From `object.h`: set for a class that a class statement made.
_HEAP_TYPE = 1 << 9


def subclass_recipe(cls: type) -> Recipe | None:
    """Return the recipe of a namedtuple or a subclass of a built-in type; None for any other class."""
    if issubclass(cls, tuple) and type(getattr(cls, "_fields", None)) is tuple:
        return _namedtuple_recipe(cls)
    base = built_in_base(cls)
    if base is None:
        return None
    plain, restore = _PLAIN.get(base) or _late(base)

    def encode(value: Any) -> Any:
        result = plain(value)
        _refuse_attributes(value, result)
        return result

    def decode(payload: Any) -> Any:
        if type(payload) is not base:
            raise TypeError(base.__name__)
        return restore(cls, payload)

    return encode, decode


def built_in_base(cls: type) -> type | None:
    """Return the type of the codec that `cls` is a Python subclass of, or None if it is not one."""
    for kind in cls.__mro__:
        if kind in _PLAIN or _is_late(kind):
            return kind
        # A class of C code may have parts of its own.
        if not kind.__flags__ & _HEAP_TYPE or isinstance(vars(kind).get("__new__"), BuiltinFunctionType):
            return None
    return None


def _refuse_attributes(value: Any, plain: Any) -> None:
    """Raise ValueTypeError if `value` has attributes that `plain`, its equal value of the built-in type, has not."""
    names = _attribute_names(value)
    # What the built-in class itself caches on its instances is no loss.
    if names and not names <= _attribute_names(plain) | set(dir(type(plain))):
        raise ValueTypeError(
            "it has attributes beside its built-in value, which would be lost. Register the class with encode= and "
            "decode="
        )


def _attribute_names(value: Any) -> set[str]:
    state: Any = object.__getstate__(value)
    if type(state) is tuple:  # with __slots__
        return {str(name) for part in state if part for name in part}
    return set(state or ())


def _namedtuple_recipe(cls: Any) -> Recipe:
    names: tuple[str, ...] = cls._fields

    def encode(value: Any) -> dict[str, Any]:
        _refuse_attributes(value, ())
        return dict(zip(names, tuple.__iter__(value), strict=True))

    def decode(payload: dict[str, Any]) -> Any:
        # A field added to the class since has its default. __new__ does not run again.
        defaults = cls._field_defaults
        return tuple.__new__(cls, [payload[name] if name in payload else defaults[name] for name in names])

    return encode, decode


def _filled(base: Any, fill: Callable[[Any, Any], None]) -> Callable[[Any, Any], Any]:
    """Return the function that makes an empty instance of a class and fills it, without running its __init__."""

    def restore(cls: Any, payload: Any) -> Any:
        value = base.__new__(cls)
        fill(value, payload)
        return value

    return restore


def _fill_ordered(value: Any, payload: Any) -> None:
    for key, item in payload.items():
        OrderedDict.__setitem__(value, key, item)


def _fill_defaultdict(value: Any, payload: Any) -> None:
    defaultdict.__init__(value, payload.default_factory)
    dict.update(value, payload)


def _plain_counter(value: Any) -> Counter[Any]:
    result: Counter[Any] = Counter()
    dict.update(result, dict.items(value))
    return result


def _date_arguments(value: date) -> tuple[int, int, int]:
    return value.year, value.month, value.day


def _time_arguments(value: Any) -> tuple[Any, ...]:
    return value.hour, value.minute, value.second, value.microsecond, value.tzinfo


def _make_datetime(cls: Any, value: datetime) -> Any:
    return datetime.__new__(cls, *_date_arguments(value), *_time_arguments(value), fold=value.fold)


def _make_time(cls: Any, value: time) -> Any:
    return time.__new__(cls, *_time_arguments(value), fold=value.fold)


def _make_timedelta(cls: Any, value: timedelta) -> Any:
    return timedelta.__new__(cls, value.days, value.seconds, value.microseconds)


def _make_uuid(cls: Any, value: UUID) -> Any:
    made = object.__new__(cls)
    object.__setattr__(made, "int", value.int)
    object.__setattr__(made, "is_safe", value.is_safe)
    return made


# Of each built-in type: the function that makes its exact value of an instance of a subclass, and the one that makes an
# instance of a class of such a value. Neither runs a method of the subclass where the type allows that.
_PLAIN: dict[type, tuple[Callable[[Any], Any], Callable[[Any, Any], Any]]] = {
    str: (str.__str__, str.__new__),
    int: (int.__int__, int.__new__),
    float: (float.__float__, float.__new__),
    bytes: (lambda value: bytes.__getitem__(value, slice(None)), bytes.__new__),
    complex: (complex.__pos__, complex.__new__),
    tuple: (lambda value: tuple(tuple.__iter__(value)), tuple.__new__),
    frozenset: (lambda value: frozenset(frozenset.__iter__(value)), frozenset.__new__),
    set: (lambda value: set(set.__iter__(value)), _filled(set, set.update)),
    list: (lambda value: list(list.__iter__(value)), _filled(list, list.extend)),
    OrderedDict: (lambda value: OrderedDict(OrderedDict.items(value)), _filled(OrderedDict, _fill_ordered)),
    defaultdict: (
        lambda value: defaultdict(value.default_factory, dict.items(value)),
        _filled(defaultdict, _fill_defaultdict),
    ),
    Counter: (_plain_counter, _filled(Counter, dict.update)),
    dict: (lambda value: dict(dict.items(value)), _filled(dict, dict.update)),
    deque: (
        lambda value: deque(deque.__iter__(value), value.maxlen),
        _filled(deque, lambda value, payload: deque.__init__(value, payload, payload.maxlen)),
    ),
    datetime: (lambda value: _make_datetime(datetime, value), _make_datetime),
    date: (
        lambda value: date(*_date_arguments(value)),
        lambda cls, payload: date.__new__(cls, *_date_arguments(payload)),
    ),
    time: (lambda value: _make_time(time, value), _make_time),
    timedelta: (lambda value: _make_timedelta(timedelta, value), _make_timedelta),
    UUID: (lambda value: _make_uuid(UUID, value), _make_uuid),
}


def _is_late(kind: type) -> bool:
    """Return whether `kind` is a built-in type whose module is imported only by those who use it."""
    if kind.__module__ == "ipaddress":
        return kind in address_classes()
    return (kind.__module__, kind.__qualname__) in (("decimal", "Decimal"), ("fractions", "Fraction"))


def _late(base: Any) -> tuple[Callable[[Any], Any], Callable[[Any, Any], Any]]:
    if base.__module__ == "ipaddress":
        return (lambda v: base(base.__str__(v))), _filled(base, lambda v, payload: base.__init__(v, str(payload)))
    # Decimal and Fraction take a number of their own kind.
    return (lambda v: base.__new__(base, v)), (base.__new__)
