"""Errbot's storage plugin called Hutch. Errbot loads this file by path, as ``errbot.storage.hutch_storage``.

The config is that of ``hutch.connect(config)``, so a program that connects with the bot's config.py has the same
storage and the same codec. Values that the default codec takes are stored by it, and `hutch get` shows them; anything
else is pickled, as Errbot's own storages pickle every value.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from errbot.storage.base import StorageBase, StoragePluginBase

import hutch
from hutch.bridges.connections import shared_namespace, shared_store

log = logging.getLogger("errbot.storage.hutch")


class HutchStorage(StorageBase):  # type: ignore[misc]  # Errbot has no types
    """One opening of a namespace, sharing its handle with all others. Any thread may use it.

    It defines no ``__len__``: Errbot treats a storage that is false as closed.
    """

    def __init__(self, namespace: hutch.Namespace) -> None:
        self._namespace = namespace

    def set(self, key: str, value: Any) -> None:
        """Replace the value of `key`. Raises hutch.StoreError on failure, ValueTypeError for an unsupported value."""
        self._namespace[key] = value

    def get(self, key: str) -> Any:
        """Return the value of `key`, fresh.

        Raises KeyError when missing, CorruptValueError when it cannot be read here.
        """
        return self._namespace[key]

    def remove(self, key: str) -> None:
        """Remove `key`. Raises KeyError when missing."""
        del self._namespace[key]

    def len(self) -> int:
        """Return the number of keys. Reads no value."""
        return len(self._namespace)

    def keys(self) -> Iterable[str]:
        """Return the keys; keys changed during the iteration may or may not appear. Reads no value."""
        return self._namespace.keys()

    def close(self) -> None:
        """End this opening only; using it afterwards raises hutch.StoreNotOpenError.

        The shared handle stays open. What was set is stored, as durably as the engine is configured.
        """
        self._namespace = hutch.Namespace()


class HutchPlugin(StoragePluginBase):  # type: ignore[misc]
    """A plugin that connects with the bot's config, once per process and config; raises what `hutch.connect` raises.

    Errbot may open a namespace again before closing it, and closes fewer than it opens. So openings share one handle,
    closed when the process exits normally. No data depends on that.
    """

    def __init__(self, bot_config: Any) -> None:
        super().__init__(bot_config)
        self._bot_config = bot_config
        log.info("State is kept in %r", shared_store(bot_config))

    def open(self, namespace: str) -> HutchStorage:
        """Open `namespace`. Raises what `hutch.Store.open` raises."""
        return HutchStorage(shared_namespace(self._bot_config, namespace))
