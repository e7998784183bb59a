"""The journal engine, as hutch sees it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Hashable, Iterator, Mapping
from pathlib import Path
from typing import ClassVar

from hutch import EncodedStorage, Option, StoragePluginBase

from .journal_file import Journal, View, errors_of, namespace_of

_SUFFIX = ".journal"


class JournalPlugin(StoragePluginBase):
    """Stage 1: a folder of journals. A journal's file is named by the hash of its namespace, and holds the name."""

    OPTIONS: ClassVar[Mapping[str, Option]] = {
        "path": Option(Path, required=True, help="the folder of the journals; made when something is stored")
    }
    # A write in the middle of another call of its thread, by a signal handler, raises ConflictError.
    refuses_nested_writes = True
    # `ttl` needs no code: without an index of deadlines, hutch reads the frames.
    capabilities = frozenset({"atomic-batch", "atomic-modify", "atomic-modify:host", "durable", "shared", "ttl"})

    def __init__(self, config: object = None) -> None:
        super().__init__(config)
        # Not when a namespace is opened: `realpath` drops any OSError, also one of a signal handler.
        self._folder = Path(os.path.realpath(self._storage_config["path"]))

    def open(self, namespace: str) -> JournalStorage:
        journal = self._journal(namespace)
        journal.read(len)  # a damaged file is reported now
        return JournalStorage(self, namespace, journal)

    def namespaces(self) -> list[str]:
        with errors_of(self._folder):
            names = [namespace_of(file) for file in self._folder.glob(f"*{_SUFFIX}")]
        return [name for name in names if name is not None and self._journal(name).read(len)]

    def _journal(self, namespace: str) -> Journal:
        return Journal(self._folder / (hashlib.sha256(namespace.encode()).hexdigest() + _SUFFIX), namespace)


class JournalStorage(EncodedStorage):
    """Stage 2: one journal. The codec is above this; this class handles names and bytes."""

    def __init__(self, plugin: JournalPlugin, namespace: str, journal: Journal) -> None:
        super().__init__(plugin, namespace)
        self._journal = journal

    # --- the six verbs ---

    def read(self, key: str) -> bytes | None:
        return self._journal.read(lambda view: view.value(key))

    def write(self, key: str, data: bytes) -> None:
        self.write_many({key: data})

    def delete(self, key: str) -> bool:
        return self.delete_many([key]) == 1

    def len(self) -> int:
        return self._journal.read(len)

    def keys(self) -> Iterator[str]:
        return iter(self._journal.read(list))

    def close(self) -> None:
        pass  # every write was complete

    # --- verbs that this engine does better than the defaults ---

    def exists(self, key: str) -> bool:
        return self._journal.read(lambda view: key in view)

    def write_many(self, items: Mapping[str, bytes]) -> None:
        self._journal.change(lambda _: items)

    def delete_many(self, keys: list[str]) -> int:
        return self._journal.change(lambda view: dict.fromkeys(key for key in keys if key in view))

    def clear(self) -> None:
        self._journal.change(dict.fromkeys)

    def compare_and_write(self, key: str, old: bytes | None, new: bytes | None) -> bool:
        swapped = False

        def decide(view: View) -> Mapping[str, bytes | None]:
            nonlocal swapped
            swapped = view.value(key) == old
            return {key: new} if swapped and new != old else {}

        self._journal.change(decide)
        return swapped

    @property
    def lock_scope(self) -> Hashable:
        return ("journal", str(self._journal.path))  # the same for every handle on the same data
