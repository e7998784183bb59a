"""Stores that perform the steps of a history: hutch, and two that break their promises."""

from __future__ import annotations

import dbm.dumb
import functools
import os
import pickle
import shelve
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import lmdb

import hutch

from .history import COUNTER, Items, Step


class Target(Protocol):
    def apply(self, step: Step) -> None:
        """Do it; when this returns it is acknowledged."""

    def everything(self) -> Items:
        """All that is stored. Any error: the store is damaged."""

    def verify(self) -> None:
        """Raise AssertionError if the files are not sound."""

    def close(self) -> None: ...


class Space(hutch.StoreMixin):
    """A namespace as a host has it that builds its factories itself."""


class Hutch:
    """``hutch:ENGINE:DURABILITY``. Shared by threads."""

    def __init__(self, path: Path, engine: str, durability: str) -> None:
        options: dict[str, Any] = {"path": path / "store" / ("data.db" if engine == "sqlite" else "")}
        if engine == "lmdb":
            # So that it has to grow.
            options["map_size_bytes"] = 1 << 20
        self.factory = _factory(engine)(options | {"durability": durability})
        self._spaces: dict[str, Space] = {}
        self._lock = threading.Lock()

    def apply(self, step: Step) -> None:
        space = self.space(step.space)
        match step.verb:
            case "set":
                ((key, value),) = step.items.items()
                space[key] = value
            case "update":
                space.update(step.items)
            case "transaction":
                self._transact(step)
            case "remove":
                del space[step.keys[0]]
            case "remove_many":
                assert space.remove_many(step.keys) == len(step.keys)
            case "clear":
                space.clear()
            case "drop":
                self.factory.drop(step.space)
            case "modify":
                space.modify(COUNTER[1], lambda n: n + 1, default=0)

    def _transact(self, step: Step) -> None:
        changes: dict[str, dict[str, bytes | None]] = {}
        for (name, key), value in step.sets.items():
            engine: Any = self.space(name)._store.unlayered
            changes.setdefault(name, {})[key] = engine.encode_value(key, value, None)
        assert self.factory.apply({name: hutch.Commit(one, {}) for name, one in changes.items()})

    def everything(self) -> Items:
        found: Items = {}
        for name in self.factory.namespaces():
            space = self.space(name)
            items = dict(space.items())
            assert len(space) == len(items), f"{name} counts {len(space)} keys and has {len(items)}"
            assert sorted(space) == sorted(items)
            found |= {(name, key): value for key, value in items.items()}
        return found

    def verify(self) -> None:
        findings = [*type(self.factory).verify_files(self.factory._storage_config), *self.factory.verify()]
        assert not findings, findings

    def close(self) -> None:
        for space in self._spaces.values():
            space.close_storage()
        self.factory.close()

    def space(self, name: str) -> Space:
        with self._lock:
            if name not in self._spaces:
                space = Space()
                space.open_storage(self.factory, name)
                self._spaces[name] = space
            return self._spaces[name]


@functools.cache
def _factory(engine: str) -> Callable[[dict[str, Any]], Any]:
    """The engine's factory class, looked for once: looking takes longer than most of what is done here."""
    factory = hutch.load_plugin(engine, {"path": "unused"})
    factory.close()
    return type(factory)


class LmdbUnflushed:
    """LMDB without its flushes, and one flush after each commit: as fast as "normal", and nothing is in order."""

    def __init__(self, path: Path) -> None:
        path.joinpath("store").mkdir(exist_ok=True)
        self._env = lmdb.open(str(path / "store"), map_size=1 << 28, sync=False)
        # Nor may it fail for a reason that is not meant.
        self._env.sync(True)
        for folder in (path, path / "store"):
            descriptor = os.open(folder, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)

    def apply(self, step: Step) -> None:
        with self._env.begin(write=True) as txn:
            head = f"{step.space}\0".encode()
            for place, value in step.sets.items():
                txn.put("\0".join(place).encode(), pickle.dumps(value))
            for key in step.keys:
                assert txn.delete(head + key.encode())
            if step.verb in ("clear", "drop"):
                for name in [name for name, _ in txn.cursor() if name.startswith(head)]:
                    txn.delete(name)
            if step.verb == "modify":
                name = "\0".join(COUNTER).encode()
                txn.put(name, pickle.dumps(pickle.loads(txn.get(name, pickle.dumps(0))) + 1))
        self._env.sync(True)

    def everything(self) -> Items:
        found: Items = {}
        with self._env.begin() as txn:
            for name, value in txn.cursor():
                space, key = name.decode().split("\0")
                found[space, key] = pickle.loads(value)
        return found

    def verify(self) -> None:
        """LMDB has none."""

    def close(self) -> None:
        self._env.close()


class Dumb:
    """A shelf of the standard library on dbm.dumb, with `sync` after each step."""

    def __init__(self, path: Path) -> None:
        database: Any = dbm.dumb.open(str(path / "shelf"))  # noqa: SIM115 - closed by `close`
        self._shelf: shelve.Shelf[Any] = shelve.Shelf(database)

    def apply(self, step: Step) -> None:
        head = f"{step.space}\0"
        for place, value in step.sets.items():
            self._shelf["\0".join(place)] = value
        for key in step.keys:
            del self._shelf[head + key]
        if step.verb in ("clear", "drop"):
            for name in [name for name in self._shelf if name.startswith(head)]:
                del self._shelf[name]
        if step.verb == "modify":
            name = "\0".join(COUNTER)
            self._shelf[name] = self._shelf.get(name, 0) + 1
        self._shelf.sync()

    def everything(self) -> Items:
        found: Items = {}
        for name, value in self._shelf.items():
            space, key = name.split("\0")
            found[space, key] = value
        return found

    def verify(self) -> None:
        """dbm.dumb has none."""

    def close(self) -> None:
        self._shelf.close()


def opened(name: str, path: Path) -> Target:
    """The target of that name, in the folder `path`, which exists."""
    if name == "lmdb-unflushed":
        return LmdbUnflushed(path)
    if name == "shelf-dumb":
        return Dumb(path)
    _, engine, durability = name.split(":")
    return Hutch(path, engine, durability)
