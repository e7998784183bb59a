"""The errors for values of types that the codec does not take, and the ways out that they name."""

from __future__ import annotations

from types import BuiltinFunctionType, FunctionType, MappingProxyType, MethodType, ModuleType

from ..errors import ValueTypeError, a_or_an
from .containers import MAPPINGS
from .ext_types import ENCODERS
from .main_module import MAIN_NAMES, importable_name
from .registry import is_replaced

_NAMED = (type, FunctionType, BuiltinFunctionType, MethodType, ModuleType)
_CONVERTIBLE = frozenset({*ENCODERS, *MAPPINGS, int, float, bytes, str, list, dict})


def refusal(kind: type, where: str) -> ValueTypeError:
    """Return the error for a value of class `kind` that is at `where` in the value to be stored."""
    from .pickled import Pickled

    if kind is Pickled:
        return ValueTypeError(
            f"{where} is a pickle that was not loaded, which this codec does not store. Choose CODEC: "
            "passthrough, or add ?codec=passthrough (&codec=passthrough after other options) to the store's URL"
        )
    return ValueTypeError(f"{where} is {a_or_an(full_name(kind))}, which would not come back as one. {way_out(kind)}")


def full_name(kind: type) -> str:
    """Return the module and name of a class, without the module of a built-in one."""
    return f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")


def way_out(kind: type, *, pickle: bool = True) -> str:
    """Return sentences that say what to do with an instance of `kind`; `pickle` says whether a codec may be named."""
    if is_replaced(kind):
        return (
            "Another class of its name was registered since: its module was reloaded, or runs as the program and was "
            "imported too. Make the value with the class that was registered last, or move the class to a module of "
            "its own that the whole program imports."
        )
    if kind in (bytearray, memoryview):
        return "Convert it with bytes()."
    if kind is MappingProxyType:
        return "Convert it with dict()."
    if issubclass(kind, _NAMED):
        return "Store its name instead: a text."
    if kind.__module__ == "builtins" and hasattr(kind, "__iter__"):  # iterators and views, which pickle refuses too
        return "Convert it with list()."
    other = "choose CODEC: pickle" if pickle else "convert it"
    conversion = _conversion(kind)
    ways = [*conversion, f"register it with {_registration(kind)}", *([] if conversion and not pickle else [other])]
    return f"{ways[0][0].upper()}{', '.join(ways[:-1])[1:]}, or {ways[-1]}."


def _conversion(kind: type) -> list[str]:
    if kind.__module__.partition(".")[0] == "numpy":
        # A scalar has both methods, an array of more than one item no item().
        return ["convert it with .tolist()"] if hasattr(kind, "tolist") else []
    bases = [base for base in kind.__mro__[1:] if base in _CONVERTIBLE]
    return [f"convert it with {bases[0].__name__}()"] if bases else []


def _registration(kind: type) -> str:
    from .recipes import find_recipe

    arguments = [f"numpy.{kind.__qualname__}" if kind.__module__ == "numpy" else kind.__qualname__]
    if kind.__module__ in MAIN_NAMES and importable_name(kind.__module__) is None:
        arguments.append(f"name={'app.' + kind.__qualname__!r}")
    if find_recipe(kind) is None:
        arguments += ["encode=...", "decode=..."]
    return f"hutch.register_type({', '.join(arguments)})"
