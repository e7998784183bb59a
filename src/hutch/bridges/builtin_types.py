"""Reduce instances of subclasses, such as numpy's floats and enums, to the built-in types that JSON takes them for."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from functools import partial
from typing import Any


def to_builtin_types(value: Any, *, dataclasses: bool = False) -> Any:
    """Return `value` with each instance of a subclass of str, int, float, dict, list and tuple as the built-in type.

    With `dataclasses`, instances of dataclasses become dicts. Every other value is returned unchanged. Raises
    RecursionError if `value` refers to itself or is nested beyond Python's recursion limit.
    """
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return value if isinstance(value, bool) else int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    reduce = partial(to_builtin_types, dataclasses=dataclasses)
    if dataclasses and is_dataclass(value) and not isinstance(value, type):
        return {field.name: reduce(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, dict):
        return {reduce(key): reduce(item) for key, item in value.items()}
    if isinstance(value, list):
        return [reduce(item) for item in value]
    if isinstance(value, tuple):
        return tuple(reduce(item) for item in value)
    return value
