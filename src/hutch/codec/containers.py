"""The containers of `collections`: their parts as one list, and back, for the msgpack codec and tagged JSON."""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict, deque
from typing import Any

from ..errors import ValueTypeError

#: The types that a defaultdict may make its values with, by the name that is stored. No other name is ever looked up.
FACTORIES: dict[str, Any] = {
    kind.__name__: kind
    for kind in (
        *(bool, int, float, complex, str, bytes, list, tuple, dict, set, frozenset),
        *(OrderedDict, Counter, deque),
    )
}
_FACTORY_NAMES = {kind: name for name, kind in FACTORIES.items()}
MAPPINGS = frozenset({OrderedDict, defaultdict, Counter})


def header_of(value: Any) -> list[Any]:
    """Return what an OrderedDict, defaultdict, Counter or deque holds beside its items, as a list of none or one.

    Raises ValueTypeError, whose text follows "the value is", for what would be lost.
    """
    kind = type(value)
    if kind is deque:
        return [value.maxlen]
    if kind is defaultdict:
        return [_factory_name(value.default_factory)]
    if value.__dict__:
        raise ValueTypeError(
            f"{'an' if kind is OrderedDict else 'a'} {kind.__name__} with attributes beside its items, which would "
            "be lost. Store them as items, or in a class registered with encode= and decode="
        )
    return []


def items_of(value: Any) -> list[Any]:
    """Return the items of a deque, or key, value, key, value, ... of a mapping, in its order."""
    if type(value) is deque:
        return list(value)
    return [part for item in value.items() for part in item]


def make_mapping(kind: type, items: dict[Any, Any], factory: object = None) -> Any:
    """Return an OrderedDict, defaultdict or Counter of `items`. Raises ValueError for a `factory` without a type."""
    if kind is OrderedDict:
        return OrderedDict(items)
    if kind is defaultdict:
        return defaultdict(_factory(factory), items)
    result: Counter[Any] = Counter()
    dict.update(result, items)  # Counter.update() would add
    return result


def make_deque(maxlen: object, items: list[Any]) -> deque[Any]:
    """Return a deque. Raises ValueError for a `maxlen` that no deque of so many items has."""
    if maxlen is None:
        return deque(items)
    if type(maxlen) is not int or not len(items) <= maxlen < 2**63:
        raise ValueError("maxlen")
    return deque(items, maxlen)


def _factory_name(factory: Any) -> str | None:
    if factory is None:
        return None
    name = _FACTORY_NAMES.get(factory) if isinstance(factory, type) else None
    if name is None:
        raise ValueTypeError(
            "a defaultdict whose default_factory is not a built-in type, so that it cannot be stored. Convert it with "
            "dict(), or use None, list, dict, set, int or another built-in type as its default_factory"
        )
    return name


def _factory(name: object) -> Any:
    if name is None:
        return None
    if type(name) is not str or name not in FACTORIES:
        raise ValueError("default_factory")
    return FACTORIES[name]
