"""Layer: the base class of all layers. It forwards every verb; a subclass overrides the verbs that it changes."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from typing import Any

from ..contract import MISSING, StorageBase


class Layer(StorageBase):
    """A storage around `inner` that forwards every verb, not only the six, so the engine's own overrides are used."""

    def __init__(self, inner: StorageBase) -> None:
        self._inner = inner
        self.capabilities = inner.capabilities
        self.validates_keys = inner.validates_keys
        self.wait_s = inner.wait_s

    def set(self, key: str, value: Any) -> None:
        self._inner.set(key, value)

    def get(self, key: str) -> Any:
        return self._inner.get(key)

    def remove(self, key: str) -> None:
        self._inner.remove(key)

    def len(self) -> int:
        return self._inner.len()

    def keys(self) -> Iterable[str]:
        return self._inner.keys()

    def close(self) -> None:
        self._inner.close()

    def contains(self, key: str) -> bool:
        return self._inner.contains(key)

    def get_many(self, keys: Iterable[str]) -> dict[str, Any]:
        return self._inner.get_many(keys)

    def set_many(self, items: Mapping[str, Any]) -> None:
        self._inner.set_many(items)

    def remove_many(self, keys: Iterable[str]) -> int:
        return self._inner.remove_many(keys)

    def items(self) -> Iterator[tuple[str, Any]]:
        return self._inner.items()

    def scan(
        self, prefix: str = "", start: str | None = None, stop: str | None = None, reverse: bool = False
    ) -> Iterator[tuple[str, Any]]:
        return self._inner.scan(prefix, start, stop, reverse)

    def scan_keys(
        self, prefix: str = "", start: str | None = None, stop: str | None = None, reverse: bool = False
    ) -> Iterator[str]:
        return self._inner.scan_keys(prefix, start, stop, reverse)

    def clear(self) -> None:
        self._inner.clear()

    def get_for_update(self, key: str) -> tuple[Any, object]:
        return self._inner.get_for_update(key)

    def compare_and_swap(self, key: str, token: object, value: Any) -> bool:
        return self._inner.compare_and_swap(key, token, value)

    def compare_and_set(self, key: str, expected: Any, value: Any) -> bool:
        return self._inner.compare_and_set(key, expected, value)

    def modify(self, key: str, fn: Callable[[Any], Any], default: Any = MISSING) -> Any:
        return self._inner.modify(key, fn, default)

    @property
    def lock_scope(self) -> Hashable:
        return self._inner.lock_scope
