"""What a mapping returns and takes: the views of `keys`, `items` and `values`, and the argument of `update`.

Views are live; a loop over one yields the keys that exist when it begins.
"""

from __future__ import annotations

from collections.abc import ItemsView, Iterable, Iterator, KeysView, Mapping, ValuesView
from itertools import islice
from typing import TYPE_CHECKING, Any

from .errors import a_or_an

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    from .namespace import StoreMixin

    #: The type of the values; type checkers take a plain `StoreMixin` for a `StoreMixin[Any]`.
    V = TypeVar("V", default=Any)
else:
    from typing import TypeVar

    V = TypeVar("V")

_CHUNK_KEYS = 128


class Keys(KeysView[str]):
    """The keys of a mapping."""

    _mapping: StoreMixin[Any]

    def __reversed__(self) -> Iterator[str]:
        return reversed(self._mapping)


class Items(ItemsView[str, V]):
    """The items of a mapping."""

    _mapping: StoreMixin[V]

    def __iter__(self) -> Iterator[tuple[str, V]]:
        return self._mapping._guarded(self._mapping._store.items())

    def __reversed__(self) -> Iterator[tuple[str, V]]:
        mapping = self._mapping
        return mapping._guarded(_read_chunks(mapping, reversed(mapping)))


class Values(ValuesView[V]):
    """The values of a mapping."""

    _mapping: StoreMixin[V]

    def __iter__(self) -> Iterator[V]:
        return (value for _, value in self._mapping._guarded(self._mapping._store.items()))

    def __reversed__(self) -> Iterator[V]:
        return (value for _, value in reversed(Items(self._mapping)))


def _read_chunks(mapping: StoreMixin[V], keys: Iterator[str]) -> Iterator[tuple[str, V]]:
    while chunk := list(islice(keys, _CHUNK_KEYS)):
        yield from mapping.get_many(chunk).items()


def as_dict(items: Any) -> dict[str, Any]:
    """Return `items`, a mapping or pairs of key and value, as a dict. Raises TypeError or ValueError for others."""
    if type(items) is dict:
        return items.copy()
    if isinstance(items, Mapping):
        return dict(items.items())
    if hasattr(items, "keys"):
        return {key: items[key] for key in items.keys()}  # noqa: SIM118 - anything with keys()
    if isinstance(items, str | bytes) or not isinstance(items, Iterable):
        raise TypeError(
            f"update() and set_many() take a mapping or pairs of key and value, not {a_or_an(type(items).__name__)}; "
            "for one item write namespace[key] = value"
        )
    return dict(items)
