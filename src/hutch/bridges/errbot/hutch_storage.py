"""Errbot's storage plugin called Hutch. Errbot loads this file by its place, as ``errbot.storage.hutch_storage``.

The config is that of ``hutch.connect(config)``, so a program that connects with the bot's config.py has the same
storage and the same codec. Values that the default codec takes are stored as it stores them, and `hutch get` shows
them; all else a plugin may store is pickled, as Errbot's own storages do with everything.
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
    """One opening of a namespace, which shares its handle with every other. Any thread may use it.

    It has no length of its own: Errbot takes a storage that is false for one that is closed.
    """

    def __init__(self, namespace: hutch.Namespace) -> None:
        self._namespace = namespace

    def set(self, key: str, value: Any) -> None:
        """Replace the value of `key`. Raises hutch.StoreError if that cannot be done, ValueTypeError for one."""
        self._namespace[key] = value

    def get(self, key: str) -> Any:
        """The value of `key`, fresh. Raises KeyError when missing, CorruptValueError when it cannot be read here."""
        return self._namespace[key]

    def remove(self, key: str) -> None:
        """Remove `key`. Raises KeyError when missing."""
        del self._namespace[key]

    def len(self) -> int:
        """The number of keys. Reads no value."""
        return len(self._namespace)

    def keys(self) -> Iterable[str]:
        """The keys, of which those changed during the iteration may or may not appear. Reads no value."""
        return self._namespace.keys()

    def close(self) -> None:
        """End this opening and no other; what uses it afterwards gets hutch.StoreNotOpenError.

        The handle stays open for the next one: what was set is stored, as durable as the engine is configured.
        """
        self._namespace = hutch.Namespace()


class HutchPlugin(StoragePluginBase):  # type: ignore[misc]
    """Connects with the bot's config, once in a process for each config; raises what `hutch.connect` raises.

    Errbot may open a namespace again before it closes it, and closes fewer than it opens. So openings share one
    handle, which is closed when the process ends in its own way. Nothing depends on that.
    """

    def __init__(self, bot_config: Any) -> None:
        super().__init__(bot_config)
        self._bot_config = bot_config
        log.info("State is kept in %r", shared_store(bot_config))

    def open(self, namespace: str) -> HutchStorage:
        """Open `namespace`. Raises what `hutch.Store.open` raises."""
        return HutchStorage(shared_namespace(self._bot_config, namespace))
