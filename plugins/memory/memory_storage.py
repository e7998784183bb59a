"""The memory engine: a dict of encoded bytes a namespace.

Values are held encoded, so that nothing the caller keeps can change what is stored, and every engine refuses
the same values.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Hashable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, ClassVar

from hutch import EncodedStorage, Option, StoragePluginBase

# None stands for a key that a batch is just removing.
_Root = dict[str, dict[str, bytes | None]]

# A hundred decoded values at once stay in the processor's cache, a thousand do not.
_CHUNK_ITEMS = 128

# The roots of memory://NAME live as long as the process.
_named: dict[str, _Root] = {}
# One lock for all writers: each holds it for less than a switch of threads would cost.
_write_lock = threading.Lock()


def _fresh_lock_after_fork() -> None:
    global _write_lock  # noqa: PLW0603
    _write_lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_fresh_lock_after_fork)


class MemoryPlugin(StoragePluginBase):
    """`memory://` is private to its store; `memory://NAME` is shared by all stores of this process."""

    OPTIONS: ClassVar = {
        "name": Option(str, default="", help="share the data between all stores of this process that give it")
    }
    capabilities = frozenset({"atomic-batch", "atomic-modify", "atomic-modify:process"})

    def __init__(self, config: object = None) -> None:
        super().__init__(config)
        name: str = self._storage_config["name"]
        self._root: _Root = _named.setdefault(name, {}) if name else {}

    def open(self, namespace: str) -> MemoryStorage:
        return MemoryStorage(self, namespace, self._root.setdefault(namespace, {}))

    def namespaces(self) -> list[str]:
        with _write_lock:
            return [namespace for namespace, data in list(self._root.items()) if data]

    def drop(self, namespace: str) -> None:
        data = self._root.get(namespace)
        if data is not None:
            # Emptied in place: another store may hold a handle on it.
            with _write_lock:
                data.clear()


class MemoryStorage(EncodedStorage):
    """One namespace. Reading a key takes no lock: one operation of a dict is atomic under CPython.

    So a batch must change the dict in one operation. What looks at the whole of it takes the lock.
    """

    binds_keys = False

    def __init__(self, plugin: MemoryPlugin, namespace: str, data: dict[str, bytes | None]) -> None:
        super().__init__(plugin, namespace)
        self._data = data

    def read(self, key: str) -> bytes | None:
        return self._data.get(key)

    def get(self, key: str) -> Any:
        # `read`, and what EncodedStorage makes of it, in one step: a call costs a tenth of a read.
        try:
            data = self._data.get(key)
            if data is not None:
                return self._decode(data, 0)
        except Exception:  # noqa: S110 - the long way knows what it was, and says so
            pass
        return super().get(key)

    def write(self, key: str, data: bytes) -> None:
        with _write_lock:
            self._data[key] = data

    def delete(self, key: str) -> bool:
        with _write_lock:
            return self._data.pop(key, None) is not None

    def len(self) -> int:
        with _write_lock:
            return len(self._data)

    def keys(self) -> Iterable[str]:
        with _write_lock:
            return list(self._data)

    def close(self) -> None:
        # The data outlives the handle, as it does on every engine.
        pass

    def exists(self, key: str) -> bool:
        return self._data.get(key) is not None

    def read_many(self, keys: list[str]) -> dict[str, bytes]:
        with _write_lock:
            return super().read_many(keys)

    def write_many(self, items: Mapping[str, bytes]) -> None:
        with _write_lock:
            self._data.update(items)

    def delete_many(self, keys: list[str]) -> int:
        with _write_lock:
            there = [key for key in keys if key in self._data]
            # All gone at once for who reads keys; then taken out one by one, unseen by who needs the lock.
            self._data.update(dict.fromkeys(there))
            for key in there:
                del self._data[key]
            return len(there)

    def items(self) -> Iterator[tuple[str, Any]]:
        # No order is promised here, and a sort would cost more than the reading.
        there = ((key, data) for key, data in list(self._data.items()) if data is not None)
        while chunk := dict(islice(there, _CHUNK_ITEMS)):
            yield from self._decoded_items(chunk, chunk.values())

    def clear(self) -> None:
        with _write_lock:
            self._data.clear()

    def swap(self, key: str, old: bytes | None, new: bytes | None) -> bool:
        with _write_lock:
            if self._data.get(key) != old:
                return False
            if new is not None:
                self._data[key] = new
            elif old is not None:
                del self._data[key]
            return True

    @property
    def lock_scope(self) -> Hashable:
        return (id(self._data), "memory")
