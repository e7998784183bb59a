"""Compare two values by value and type, for `compare_and_set`."""

from __future__ import annotations

from typing import Any

from ..handlers import passes_through


def is_same(a: Any, b: Any) -> bool:
    """Return whether `a` and `b` are equal in value and type, also inside lists, tuples and dicts. If `==` is False or
    fails (NaN, arrays), equal pickles count as equal."""
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    try:
        if isinstance(a, list | tuple):
            if len(a) == len(b) and all(map(is_same, a, b)):
                return True
        elif isinstance(a, dict):
            if a.keys() == b.keys() and all(is_same(item, b[key]) for key, item in a.items()):
                return True
        elif a == b:
            return True
    except Exception as error:  # arrays, self-referential objects, and objects whose `==` raises
        if passes_through(error):
            raise
    try:
        import pickle

        return pickle.dumps(a) == pickle.dumps(b)
    except Exception as error:  # a class may refuse to be pickled in any way
        if passes_through(error):
            raise
        return False
