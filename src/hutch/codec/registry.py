"""Registration of an application's types with the default codec."""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, TypeVar, overload
from uuid import UUID

from ..errors import CorruptValueError, ValueTypeError, a_or_an
from ..handlers import passes_through

T = TypeVar("T")
_MISSING: Any = object()


class Registration:
    """The stored name of a class, and the functions that write (`encode`) and read (`decode`) its instances."""

    __slots__ = ("cls", "decode", "encode", "name")

    def __init__(self, cls: type, name: str, encode: Callable[[Any], Any], decode: Callable[[Any], Any]) -> None:
        self.cls, self.name, self.encode, self.decode = cls, name, encode, decode


# The encoder handles these types before it looks for a registration, which would be ignored, or used inconsistently.
_BUILT_IN = frozenset(
    {
        *(type(None), bool, int, float, complex, str, bytes, bytearray, memoryview, list, tuple, dict, set, frozenset),
        *(range, date, datetime, time, timedelta, UUID, Path, PurePosixPath, PureWindowsPath),
        *(OrderedDict, defaultdict, Counter, deque),
    }
)
# Also built in; by name, so that their modules are not imported.
_BUILT_IN_NAMES = frozenset({("decimal", "Decimal"), ("fractions", "Fraction")})
_by_type: dict[type, Registration] = {}
_by_name: dict[str, Registration] = {}
# Classes whose name another class has taken over: an instance would come back as one of that class.
_replaced: set[type] = set()


@overload
def register_type(
    cls: type[T],
    *,
    name: str | None = None,
    encode: Callable[[T], Any] | None = None,
    decode: Callable[[Any], T] | None = None,
) -> type[T]: ...
@overload
def register_type(
    *, name: str | None = None, encode: Callable[[Any], Any] | None = None, decode: Callable[[Any], Any] | None = None
) -> Callable[[type[T]], type[T]]: ...
def register_type(
    cls: Any = _MISSING,
    *,
    name: str | None = None,
    encode: Callable[[Any], Any] | None = None,
    decode: Callable[[Any], Any] | None = None,
) -> Any:
    """Let the default codec store instances of exactly `cls`. Returns `cls`; without `cls`, a decorator.

    `encode` turns an instance into a value that the codec takes; `decode` turns that back. Omit both for dataclasses,
    enums, namedtuples, subclasses of the built-in types, pydantic models, msgspec structs, and numpy's `ndarray` and
    scalar types. `name` is what is stored (default: module and qualified name): keep it when the class moves. A class
    of `__main__` is stored under the name by which its module is imported. Registration is global to the process,
    thread-safe, and must precede the first read of such a value. Reading calls `decode` and, for the kinds above, the
    class itself; nothing else is ever imported or run.

    Raises ValueTypeError if `cls` is not a class, needs `encode` and `decode`, or is handled by the codec itself; if
    only one function is given; if another class has the name; or if `cls` belongs to a program that has no importable
    name and `name` is omitted.
    """
    _validate_arguments(name, encode, decode)
    if cls is _MISSING:
        return lambda cls: _register(cls, name, encode, decode)
    return _register(cls, name, encode, decode)


def _validate_arguments(name: object, encode: object, decode: object) -> None:
    if name is not None and (type(name) is not str or not name):
        what = "empty" if name == "" else a_or_an(type(name).__name__)
        raise ValueTypeError(f"register_type: name= is {what}: a text was expected. Pass a text such as 'app.User'")
    if type(name) is str and name.encode("utf-8", "replace").decode() != name:
        raise ValueTypeError("register_type: name= has a lone surrogate, which cannot be stored. Pass another name=")
    if (encode is None) != (decode is None):
        raise ValueTypeError("register_type: give both encode= and decode=, or neither")
    for argument, function in (("encode", encode), ("decode", decode)):
        if function is not None and not callable(function):
            raise ValueTypeError(
                f"register_type: {argument}= is {a_or_an(type(function).__name__)}: a function was expected. Pass one, "
                "such as encode=vars, decode=lambda state: User(**state)"
            )


def _register(
    cls: Any, name: str | None, encode: Callable[[Any], Any] | None, decode: Callable[[Any], Any] | None
) -> Any:
    from .main_module import MAIN_NAMES, importable_name

    _validate_class(cls)
    if name is None and cls.__module__ in MAIN_NAMES:
        module = importable_name(cls.__module__)
        if module is None:
            raise ValueTypeError(
                f"register_type({cls.__qualname__}): the class is defined in a program or at a prompt that cannot be "
                f"imported by name, so no other program could read its instances. Pass name=: "
                f"@hutch.register_type(name={'app.' + cls.__qualname__!r})"
            )
    else:
        module = cls.__module__
    stored = name or f"{module}.{cls.__qualname__}"
    taken = _by_name.get(stored)
    if taken is not None and _identity(taken.cls) != _identity(cls):
        raise ValueTypeError(f"register_type: the name {stored!r} already stands for {taken.cls!r}; pass another name=")
    if encode is None or decode is None:
        encode, decode = _recipe(cls)
    registration = Registration(cls, stored, encode, decode)
    if taken is not None and taken.cls is not cls and _by_type.get(taken.cls) is taken:
        _replaced.add(taken.cls)
        del _by_type[taken.cls]
    _replaced.discard(cls)
    _by_name[stored] = registration
    if name is None and cls.__module__ in MAIN_NAMES:
        # The first versions stored such classes under this name.
        _by_name.setdefault(f"__main__.{cls.__qualname__}", registration)
    _by_type[cls] = registration
    return cls


def _identity(cls: type) -> tuple[str, str]:
    """Return what a class keeps when its module is loaded again, also as the program itself."""
    from .main_module import MAIN_NAMES, importable_name

    module = cls.__module__
    return (importable_name(module) or module) if module in MAIN_NAMES else module, cls.__qualname__


def _validate_class(cls: Any) -> None:
    if type(cls) is str:
        raise ValueTypeError(
            "register_type: a class was expected, not a str. Pass the stored name as name=: "
            '@hutch.register_type(name="app.User")'
        )
    if not isinstance(cls, type):
        raise ValueTypeError(
            f"register_type: a class was expected, not {a_or_an(type(cls).__name__)}. Pass the class itself, as in "
            "hutch.register_type(User)"
        )
    if (
        cls in _BUILT_IN
        or cls.__module__ in ("ormsgpack", "ipaddress")
        or (cls.__module__, cls.__qualname__) in _BUILT_IN_NAMES
    ):
        raise ValueTypeError(
            f"register_type({cls.__qualname__}): the codec encodes this type itself. Store the value as it is"
            if cls not in (bytearray, memoryview)
            else f"register_type({cls.__qualname__}): the codec encodes this type itself, as bytes. Convert the value "
            "with bytes()"
        )


def _recipe(cls: type) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    from .recipes import find_recipe

    recipe = find_recipe(cls)
    if recipe is None:
        raise ValueTypeError(
            f"register_type({cls.__qualname__}): no recipe for this kind of class; pass encode= and decode=, such as "
            f"encode=vars, decode=lambda state: {cls.__name__}(**state)"
        )
    return recipe


def find(cls: type) -> Registration | None:
    """Return the registration of exactly `cls`, or None."""
    return _by_type.get(cls)


def is_storable(cls: type) -> bool:
    """Return whether the codec stores instances of exactly `cls` and returns them with the same type."""
    return (
        (cls in _BUILT_IN and cls not in (bytearray, memoryview))
        or (cls.__module__, cls.__qualname__) in _BUILT_IN_NAMES
        or cls.__module__ == "ipaddress"
        or cls in _by_type
    )


def is_replaced(cls: type) -> bool:
    """Return whether a class that was registered later has taken over the stored name of `cls`."""
    return cls in _replaced


def decode(name: str, payload: Any) -> Any:
    """Return the instance stored as `payload` under `name`. Raises CorruptValueError if it cannot be restored."""
    registration = _by_name.get(name) if type(name) is str else None
    if registration is None:
        raise CorruptValueError(_unregistered(name))
    try:
        return registration.decode(payload)
    except Exception as error:
        if passes_through(error):
            raise
        # The class's error may quote the value, and so may a traceback that shows it as the cause.
        raise CorruptValueError(
            f"it holds a {name!r} that the class did not take back ({raised_where(error)})"
        ) from None


def _unregistered(name: object) -> str:
    if type(name) is not str:
        return "it holds an instance of a registered class without a name, which hutch does not write"
    shown = ascii(name[:100])
    module, _, cls = name[:100].rpartition(".")
    if not cls.isascii() or not cls.isidentifier():
        cls = "THE_CLASS"
    where = f"Import {module}, " if module and all(p.isascii() and p.isidentifier() for p in module.split(".")) else ""
    return (
        f"it holds a {shown}, which is not registered in this process. {where or 'Import the module '}"
        f"{'if it' if where else 'that'} registers the class, or call "
        f"hutch.register_type({cls}, name={shown}) first, with the encode= and decode= it was written with, if any"
    )


def raised_where(error: BaseException) -> str:
    """Return the type of `error` and the line of code that raised it, without its text, which may quote a value."""
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    if traceback is None:
        return type(error).__name__
    file = Path(traceback.tb_frame.f_code.co_filename).name
    return f"{type(error).__name__} in {ascii(file)[1:-1]}, line {traceback.tb_lineno}"
