"""The layer behind `TTL_S`: give values that are set without `ttl_s` the deadline that the config sets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ..contract import MISSING, StorageBase
from ..deadlines import no_ttl
from .layer import Layer


class _New(NamedTuple):
    """The token of a key that is missing."""

    token: object


class TtlLayer(Layer):
    """A layer that passes on each write with `ttl_s`; not one of LAYERS, and the outermost."""

    keeps_values = True

    def __init__(self, inner: StorageBase, ttl_s: float) -> None:
        if "ttl" not in inner.capabilities:
            raise no_ttl()
        super().__init__(inner)
        self.default_ttl_s: float = ttl_s

    def set(self, key: str, value: Any) -> None:
        self._inner.set_with_ttl(key, value, self.default_ttl_s)

    def set_many(self, items: Mapping[str, Any]) -> None:
        self._inner.set_many_with_ttl(items, self.default_ttl_s)

    def get_for_update(self, key: str) -> tuple[Any, object]:
        value, token = self._inner.get_for_update(key)
        return value, _New(token) if value is MISSING else token

    def compare_and_swap(self, key: str, token: object, value: Any, ttl_s: float | None = None) -> bool:
        if type(token) is _New:
            token, ttl_s = token.token, self.default_ttl_s if ttl_s is None else ttl_s
        return self._inner.compare_and_swap(key, token, value, ttl_s)

    def compare_and_set(self, key: str, expected: Any, value: Any, ttl_s: float | None = None) -> bool:
        return self._inner.compare_and_set(key, expected, value, self.default_ttl_s if ttl_s is None else ttl_s)

    def modify(self, key: str, fn: Callable[[Any], Any], default: Any = MISSING, ttl_s: float | None = None) -> Any:
        return self._inner.modify(key, fn, default, self.default_ttl_s if ttl_s is None else ttl_s)

    def increment(self, key: str, by: float = 1, default: float = 0, ttl_s: float | None = None) -> int | float:
        return self._inner.increment(key, by, default, self.default_ttl_s if ttl_s is None else ttl_s)
