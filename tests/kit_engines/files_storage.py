"""A typical third-party engine: one file per key, and hutch's defaults for everything else.

A file is named by the hash of its key, because file names are shorter and allow fewer characters than keys, and holds
the key before the value. A namespace is a folder, named likewise, with its name in the file ``name``.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Callable, Hashable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import ClassVar, TypeVar

from hutch import EncodedStorage, Option, StoragePluginBase, StorageUnavailableError

T = TypeVar("T")


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
        read = self._file(key).read_bytes
        try:
            held = read()
        except FileNotFoundError:
            return None
        size = int.from_bytes(held[:2], "big")
        return held[2 + size :]

    def write(self, key: str, data: bytes) -> None:
        name = key.encode()
        if not self._call((self._folder / "name").exists):
            self._call(partial(self._folder.mkdir, parents=True, exist_ok=True))
            self._replace(self._folder / "name", self.namespace.encode())
        self._replace(self._file(key), len(name).to_bytes(2, "big") + name + data)

    def _replace(self, file: Path, content: bytes) -> None:
        new = self._folder / f"{uuid.uuid4().hex}.new"
        self._call(new.write_bytes, content)
        self._call(new.replace, file)

    def _call(self, call: Callable[..., T], *arguments: object) -> T:
        # Around the one call: an OSError of a signal handler is not the disk's.
        try:
            return call(*arguments)
        except OSError as error:
            raise StorageUnavailableError(f"{self._folder} cannot be written to: {error.strerror}") from error

    def delete(self, key: str) -> bool:
        unlink = self._file(key).unlink
        try:
            unlink()
        except FileNotFoundError:
            return False
        return True

    def len(self) -> int:
        return sum(1 for _ in self._files())

    def keys(self) -> Iterator[str]:
        for file in list(self._files()):
            try:
                held = file.read_bytes()
            except FileNotFoundError:  # removed meanwhile
                continue
            yield held[2 : 2 + int.from_bytes(held[:2], "big")].decode()

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
