"""A typical storage plugin for Errbot: a factory with `open`, a storage with six verbs."""

from __future__ import annotations

import pickle
from collections.abc import Iterable
from typing import Any

_stores: dict[str, dict[str, dict[str, bytes]]] = {}


class ErrbotsPlugin:
    def __init__(self, bot_config: Any) -> None:
        self._namespaces = _stores.setdefault(bot_config.STORAGE_CONFIG["basedir"], {})

    def open(self, namespace: str) -> ErrbotsStorage:
        return ErrbotsStorage(self._namespaces.setdefault(namespace, {}))


class ErrbotsStorage:
    def __init__(self, items: dict[str, bytes]) -> None:
        self._items = items

    def set(self, key: str, value: Any) -> None:
        self._items[key] = pickle.dumps(value)

    def get(self, key: str) -> Any:
        return pickle.loads(self._items[key])

    def remove(self, key: str) -> None:
        del self._items[key]

    def len(self) -> int:
        return len(self._items)

    def keys(self) -> Iterable[str]:
        return self._items.keys()

    def close(self) -> None:
        pass
