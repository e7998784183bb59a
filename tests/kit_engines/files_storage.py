"""A typical third-party engine: one file per key, and hutch's defaults for everything else.

A file is named by the hash of its key, because file names are shorter and allow fewer characters than keys, and holds
the key before the value. A namespace is a folder, named likewise, with its name in the file ``name``.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Hashable, Iterator, Mapping
from pathlib import Path
from typing import ClassVar

from hutch import EncodedStorage, Option, StoragePluginBase, StorageUnavailableError


def _called(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


class FilesPlugin(StoragePluginBase):
    OPTIONS: ClassVar[Mapping[str, Option]] = {
        "path": Option(Path, required=True, help="the folder that holds the store")
    }
    capabilities = frozenset({"atomic-modify", "atomic-modify:process", "durable"})

    def open(self, namespace: str) -> FilesStorage:
        return FilesStorage(self, namespace, self._storage_config["path"] / _called(namespace))

    def namespaces(self) -> list[str]:
        folders = [file.parent for file in self._storage_config["path"].glob("*/name")]
        return [(folder / "name").read_bytes().decode() for folder in folders if any(folder.glob("*.value"))]


class FilesStorage(EncodedStorage):
    def __init__(self, plugin: FilesPlugin, namespace: str, folder: Path) -> None:
        super().__init__(plugin, namespace)
        self._folder = folder

    def read(self, key: str) -> bytes | None:
        try:
            held = self._file(key).read_bytes()
        except FileNotFoundError:
            return None
        size = int.from_bytes(held[:2], "big")
        return held[2 + size :]

    def write(self, key: str, data: bytes) -> None:
        name = key.encode()
        written = self._folder / f"{uuid.uuid4().hex}.new"
        try:
            if not (self._folder / "name").exists():
                self._folder.mkdir(parents=True, exist_ok=True)
                named = self._folder / f"{uuid.uuid4().hex}.new"
                named.write_bytes(self.namespace.encode())
                named.replace(self._folder / "name")
            written.write_bytes(len(name).to_bytes(2, "big") + name + data)
            written.replace(self._file(key))
        except OSError as error:
            raise StorageUnavailableError(f"{self._folder} cannot be written to: {error.strerror}") from error

    def delete(self, key: str) -> bool:
        try:
            self._file(key).unlink()
        except FileNotFoundError:
            return False
        return True

    def len(self) -> int:
        return sum(1 for _ in self._files())

    def keys(self) -> Iterator[str]:
        for file in list(self._files()):
            try:
                with file.open("rb") as opened:
                    name = opened.read(int.from_bytes(opened.read(2), "big"))
            except FileNotFoundError:  # removed meanwhile
                continue
            yield name.decode()

    def close(self) -> None:
        pass  # each write was complete

    @property
    def lock_scope(self) -> Hashable:
        return ("files", os.fspath(self._folder))

    def _file(self, key: str) -> Path:
        return self._folder / f"{_called(key)}.value"

    def _files(self) -> Iterator[Path]:
        try:
            names = os.listdir(self._folder)
        except FileNotFoundError:
            return iter(())
        return (self._folder / name for name in names if name.endswith(".value"))
