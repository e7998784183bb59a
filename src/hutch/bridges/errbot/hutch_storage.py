"""Errbot's storage plugin called Hutch. Errbot loads this file by its place, as ``errbot.storage.hutch_storage``.

The config is that of ``hutch.connect(config)``, so a program that connects with the bot's config.py has the same
storage and the same codec. Values that the default codec takes are stored as it stores them, and `hutch get` shows
them; all else a plugin may store is pickled, as Errbot's own storages do with everything.
"""

from __future__ import annotations

import atexit
import logging
import threading
from collections.abc import Iterable
from typing import Any

from errbot.storage.base import StorageBase, StoragePluginBase

import hutch

log = logging.getLogger("errbot.storage.hutch")


class HutchStorage(StorageBase):  # type: ignore[misc]  # Errbot has no types
    """One opening of a namespace, which shares its handle with every other. Any thread may use it.

    It has no length of its own: Errbot takes a storage that is false for one that is closed.
    """

    def __init__(self, plugin: HutchPlugin, namespace: hutch.Namespace) -> None:
        self._plugin = plugin
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
        """Let go of the namespace; the last one to do so closes it. What was set before is stored in any case."""
        self._plugin.release(self._namespace)


class HutchPlugin(StoragePluginBase):  # type: ignore[misc]
    """Connects with the bot's config, once; raises what `hutch.connect` raises.

    Errbot may open a namespace again before it closes it, and closes fewer than it opens. So openings are counted, and
    what is left open is closed when the process ends in its own way. Nothing depends on that.
    """

    def __init__(self, bot_config: Any) -> None:
        super().__init__(bot_config)
        self._store = hutch.connect(bot_config)
        self._lock = threading.Lock()
        self._handles: dict[str, hutch.Namespace] = {}
        self._openings: dict[str, int] = {}
        atexit.register(self.close)
        log.info("State is kept in %r", self._store)

    def open(self, namespace: str) -> HutchStorage:
        """Open `namespace`, or share it if it is open. Raises what `hutch.Store.open` raises."""
        with self._lock:
            if namespace not in self._handles:
                self._handles[namespace] = self._store.open(namespace)
            self._openings[namespace] = self._openings.get(namespace, 0) + 1
            return HutchStorage(self, self._handles[namespace])

    def release(self, namespace: hutch.Namespace) -> None:
        """Undo one `open`."""
        name = str(namespace.namespace)
        with self._lock:
            if self._handles.get(name) is not namespace:
                return  # the process is ending, and `close` came first
            self._openings[name] -= 1
            if not self._openings[name]:
                del self._handles[name], self._openings[name]
                namespace.close()

    def close(self) -> None:
        """Close all that is open; for the end of the process. Errbot itself has no such step."""
        atexit.unregister(self.close)
        with self._lock:
            left_open = list(self._handles.values())
            self._handles.clear()
            self._openings.clear()
        for handle in left_open:
            handle.close()
        self._store.close()
