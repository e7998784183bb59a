"""Engines that break one promise each, to test the kit itself. `Sound` breaks none."""

from __future__ import annotations

import collections
import contextlib
import hashlib
import os
import threading
import time
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

from hutch import (
    Commit,
    CorruptValueError,
    EncodedStorage,
    KeyRange,
    Option,
    StorageBase,
    StoragePluginBase,
    StorageUnavailableError,
    StoreAlreadyOpenError,
    deadlines,
)
from hutch.codec.frame import deadline_of, is_expired, set_deadline

_stores: dict[str, dict[str, dict[str, Any]]] = {}


class BrokenPlugin(StoragePluginBase):
    OPTIONS: ClassVar[Mapping[str, Option]] = {
        "path": Option(str, default="", help="stores of one name share their data"),
        "fault": Option(str, default="Sound", help="the class of storage to use"),
    }
    capabilities = frozenset({"atomic-batch", "atomic-modify", "atomic-modify:process"})

    def __init__(self, config: object = None) -> None:
        super().__init__(config)
        self.namespaces_: dict[str, dict[str, Any]] = _stores.setdefault(self._storage_config["path"], {})
        fault = self._storage_config["fault"]
        self._storage: type[Any] = globals()[fault]
        self.capabilities |= self._claims()

    def open(self, namespace: str) -> Any:
        named = getattr(self._storage, "namespace_as", lambda name: name)(namespace)
        return self._storage(self, named, self.namespaces_.setdefault(named, {}))

    def apply(self, commits: Mapping[str, Commit]) -> bool:
        applied: bool = self._storage.apply_all(self, commits)
        return applied

    def snapshot(self) -> View:
        return View(self, self._storage, {name: dict(items) for name, items in self.namespaces_.items()})

    def _claims(self) -> frozenset[str]:
        claims: frozenset[str] = getattr(self._storage, "claims", frozenset())
        return claims

    def namespaces(self) -> list[str]:
        return [name for name, items in list(self.namespaces_.items()) if items]


class View:
    """A copy of all namespaces."""

    def __init__(self, plugin: BrokenPlugin, storage: type[Any], copies: dict[str, dict[str, Any]]) -> None:
        self._plugin, self._storage, self._copies = plugin, storage, copies
        self.now_ms = deadlines.now_ms()

    def open(self, namespace: str) -> Any:
        return self._storage(self._plugin, namespace, self._copies.get(namespace, {}))

    def namespaces(self) -> list[str]:
        return [name for name, items in self._copies.items() if items]

    def close(self) -> None:
        self._copies = {}


class Sound(EncodedStorage):
    def __init__(self, plugin: BrokenPlugin, namespace: str, items: dict[str, bytes]) -> None:
        super().__init__(plugin, namespace)
        self.items_ = items
        self.plugin = plugin

    def read(self, key: str) -> bytes | None:
        return self.items_.get(key)

    def write(self, key: str, data: bytes) -> None:
        self.items_[key] = data

    def delete(self, key: str) -> bool:
        return self.items_.pop(key, None) is not None

    def len(self) -> int:
        return len(self.items_)

    def keys(self) -> Iterable[str]:
        return list(self.items_)

    def close(self) -> None:
        pass

    def write_many(self, items: Mapping[str, bytes]) -> None:
        self.items_.update(items)

    def delete_many(self, keys: list[str]) -> int:
        if set(keys) >= set(self.items_):
            gone = sum(key in self.items_ for key in keys)
            self.items_.clear()
            return gone
        return sum(self.delete(key) for key in keys)

    @property
    def lock_scope(self) -> Hashable:
        return id(self.items_)


class ClaimsTransactions(Sound):
    """Declares `atomic-store`, and its storages have no `apply`."""

    claims = frozenset({"atomic-store"})


class Commits(Sound):
    """Sound transactions over all namespaces."""

    claims = frozenset({"atomic-store", "snapshot"})
    lock = threading.RLock()

    def apply(
        self,
        changes: Mapping[str, bytes | None],
        expected: Mapping[str, bytes | None],
        ranges: Sequence[KeyRange] = (),
    ) -> bool:
        return self.apply_all(self.plugin, {self.namespace: Commit(changes, expected, ranges)})

    @classmethod
    def apply_all(cls, plugin: BrokenPlugin, commits: Mapping[str, Commit]) -> bool:
        with cls.lock:
            parts = [(plugin.namespaces_.setdefault(name, {}), commit) for name, commit in commits.items()]
            if not all(cls.holds(items, commit) for items, commit in parts):
                return False
            cls.change(parts)
            return True

    @staticmethod
    def holds(items: dict[str, bytes], commit: Commit) -> bool:
        if any(items.get(key) != frame for key, frame in commit.expected.items()):
            return False
        for start, stop, keys in commit.ranges:
            found = {key for key in items if (start is None or key >= start) and (stop is None or key < stop)}
            if found != set(keys):
                return False
        return True

    @staticmethod
    def change(parts: list[tuple[dict[str, bytes], Commit]]) -> None:
        sets = [{key: frame for key, frame in commit.changes.items() if frame is not None} for _, commit in parts]
        # One call of C, so that readers see all of it or none.
        collections.deque(map(dict.update, [items for items, _ in parts], sets), maxlen=0)
        for items, commit in parts:
            for key, frame in commit.changes.items():
                if frame is None:
                    items.pop(key, None)

    def write(self, key: str, data: bytes) -> None:
        with self.lock:
            super().write(key, data)

    def delete(self, key: str) -> bool:
        with self.lock:
            return super().delete(key)

    def compare_and_write(self, key: str, old: bytes | None, new: bytes | None) -> bool:
        with self.lock:
            return super().compare_and_write(key, old, new)


class LosesUpdatesInCommits(Commits):
    """Two commits may both find what they expect, and then write."""

    @classmethod
    def apply_all(cls, plugin: BrokenPlugin, commits: Mapping[str, Commit]) -> bool:
        parts = [(plugin.namespaces_.setdefault(name, {}), commit) for name, commit in commits.items()]
        if not all(cls.holds(items, commit) for items, commit in parts):
            return False
        time.sleep(0.0005)
        cls.change(parts)
        return True


class TearsCommits(Commits):
    @staticmethod
    def change(parts: list[tuple[dict[str, bytes], Commit]]) -> None:
        for part in parts:
            Commits.change([part])
            time.sleep(0.0002)


class DoesNotCheckReaders(Commits):
    @classmethod
    def apply_all(cls, plugin: BrokenPlugin, commits: Mapping[str, Commit]) -> bool:
        return not any(commit.changes for commit in commits.values()) or super().apply_all(plugin, commits)


class SeesNoPhantom(Commits):
    @staticmethod
    def holds(items: dict[str, bytes], commit: Commit) -> bool:
        return Commits.holds(items, commit._replace(ranges=()))


class LosesAWrite(Sound):
    def write(self, key: str, data: bytes) -> None:
        if len(self.items_.get(key, b"")) <= len(data):
            super().write(key, data)


class JoinsNamespacesWithAColon(Sound):
    """One dict for all namespaces, distinguished by a prefix."""

    def __init__(self, plugin: BrokenPlugin, namespace: str, items: dict[str, bytes]) -> None:
        super().__init__(plugin, namespace, plugin.namespaces_.setdefault("all", {}))

    def read(self, key: str) -> bytes | None:
        return self.items_.get(f"{self.namespace}:{key}")

    def write(self, key: str, data: bytes) -> None:
        self.items_[f"{self.namespace}:{key}"] = data

    def delete(self, key: str) -> bool:
        return self.items_.pop(f"{self.namespace}:{key}", None) is not None

    def write_many(self, items: Mapping[str, bytes]) -> None:
        self.items_.update({f"{self.namespace}:{key}": data for key, data in items.items()})

    def delete_many(self, keys: list[str]) -> int:
        return sum(self.delete(key) for key in keys)

    def len(self) -> int:
        return len(list(self.keys()))

    def keys(self) -> Iterable[str]:
        prefix = f"{self.namespace}:"
        return [key.removeprefix(prefix) for key in list(self.items_) if key.startswith(prefix)]


class TearsBatches(Sound):
    def write_many(self, items: Mapping[str, bytes]) -> None:
        for key, data in items.items():
            self.write(key, data)
            time.sleep(0)


class GivesKeysTwice(Sound):
    def keys(self) -> Iterable[str]:
        keys = list(self.items_)
        return keys + keys[-1:]


class KeepsWhatItWasGiven(StorageBase):
    """Holds the objects themselves."""

    def __init__(self, plugin: BrokenPlugin, namespace: str, items: dict[str, Any]) -> None:
        self.capabilities = plugin.capabilities
        self.items_ = items

    def set(self, key: str, value: Any) -> None:
        self.items_[key] = value

    def get(self, key: str) -> Any:
        return self.items_[key]

    def remove(self, key: str) -> None:
        del self.items_[key]

    def len(self) -> int:
        return len(self.items_)

    def keys(self) -> Iterable[str]:
        return list(self.items_)

    def close(self) -> None:
        pass


class SwallowsTheKeyError(Sound):
    def get(self, key: str) -> Any:
        try:
            return super().get(key)
        except KeyError:
            return None


class CountsWhatIsGone(Sound):
    def delete(self, key: str) -> bool:
        gone = super().delete(key)
        self.plugin.namespaces_.setdefault("\0gone", {})[key] = b""
        return gone

    def len(self) -> int:
        return len(self.items_) + len(self.plugin.namespaces_.get("\0gone", {}))


class ForgetsToWriteWhenClosed(Sound):
    """Works on a copy, and never writes it back."""

    def __init__(self, plugin: BrokenPlugin, namespace: str, items: dict[str, bytes]) -> None:
        super().__init__(plugin, namespace, dict(items))


class SwapsWithoutALock(Sound):
    def compare_and_write(self, key: str, old: bytes | None, new: bytes | None) -> bool:
        if self.read(key) != old:
            return False
        time.sleep(0)
        if new is None:
            self.delete(key)
        else:
            self.write(key, new)
        return True


class SwapsWhateverIsThere(Sound):
    def compare_and_write(self, key: str, old: bytes | None, new: bytes | None) -> bool:
        return super().compare_and_write(key, self.read(key), new)


class IteratesOverTheLiveDict(Sound):
    def keys(self) -> Iterable[str]:
        yield from self.items_

    def key_range(self, start: str | None, stop: str | None, reverse: bool) -> Iterator[str]:
        return super().key_range(start, stop, reverse) if start or stop or reverse else iter(sorted(self.items_))

    def read_range(self, start: str | None, stop: str | None, reverse: bool) -> Iterator[tuple[str, bytes]]:
        yield from self.items_.items()


class ScansInOrderOfArrival(Sound):
    def key_range(self, start: str | None, stop: str | None, reverse: bool) -> Iterator[str]:
        keys = list(self.items_)
        return iter(keys[::-1] if reverse else keys)


class ComparesBytesOfUtf16(Sound):
    def key_range(self, start: str | None, stop: str | None, reverse: bool) -> Iterator[str]:
        return iter(
            sorted(super().key_range(start, stop, False), key=lambda key: key.encode("utf-16-be"), reverse=reverse)
        )


class TakesDamageForNone(Sound):
    def get(self, key: str) -> Any:
        try:
            return super().get(key)
        except CorruptValueError:
            return None


class LeavesAThread(Sound):
    def __init__(self, plugin: BrokenPlugin, namespace: str, items: dict[str, bytes]) -> None:
        super().__init__(plugin, namespace, items)
        threading.Thread(target=threading.Event().wait, daemon=True).start()


class FoldsKeys(Sound):
    def read(self, key: str) -> bytes | None:
        return super().read(key.casefold())

    def write(self, key: str, data: bytes) -> None:
        super().write(key.casefold(), data)

    def delete(self, key: str) -> bool:
        return super().delete(key.casefold())


class FoldsNamespaces(Sound):
    @staticmethod
    def namespace_as(name: str) -> str:
        return name.casefold()


class MakesListsOfTuples(KeepsWhatItWasGiven):
    def set(self, key: str, value: Any) -> None:
        super().set(key, list(value) if isinstance(value, tuple) else value)


class WritesABatchUpToTheBadValue(Sound):
    def set_many(self, items: Mapping[str, Any]) -> None:
        for key, value in items.items():
            self.set(key, value)


class RaisesItsOwnErrorsWhenClosed(Sound):
    def close(self) -> None:
        self.items_ = None  # type: ignore[assignment]


class KeepsItsLockInAForkedChild(Sound):
    lock = threading.Lock()

    def write(self, key: str, data: bytes) -> None:
        with self.lock:
            time.sleep(0.0005)
            super().write(key, data)

    def compare_and_write(self, key: str, old: bytes | None, new: bytes | None) -> bool:
        with self.lock:
            time.sleep(0.0005)
            if self.read(key) != old:
                return False
            self.items_[key] = new or b""
            return True


class HoldsALockWhileItIterates(Sound):
    def __init__(self, plugin: BrokenPlugin, namespace: str, items: dict[str, bytes]) -> None:
        super().__init__(plugin, namespace, items)
        self.lock = threading.RLock()

    def read_range(self, start: str | None, stop: str | None, reverse: bool) -> Iterator[tuple[str, bytes]]:
        with self.lock:
            yield from super().read_range(start, stop, reverse)

    def write(self, key: str, data: bytes) -> None:
        with self.lock:
            super().write(key, data)


class ClaimsToBeShared(Sound):
    claims = frozenset({"shared"})


class ClaimsToBeDurable(Sound):
    claims = frozenset({"durable"})


class ClaimsToBeOrdered(Sound):
    claims = frozenset({"ordered"})


class DiesOfALongKey(Sound):
    def write(self, key: str, data: bytes) -> None:
        if len(key) > 1000:
            os._exit(3)
        super().write(key, data)


# --- inside one process: signal handlers, finalizers, other threads ---


class LeaksALockWhenInterrupted(Sound):
    """A handler that raises after `acquire` and before `try` leaves the lock taken."""

    def __init__(self, plugin: BrokenPlugin, namespace: str, items: dict[str, bytes]) -> None:
        super().__init__(plugin, namespace, items)
        self.lock = _lock_of(items)

    def write(self, key: str, data: bytes) -> None:
        self.lock.acquire()
        try:
            super().write(key, data)
        finally:
            self.lock.release()


class SwallowsWhatAHandlerRaises(Sound):
    """Treats every exception as its own and ignores it."""

    def write(self, key: str, data: bytes) -> None:
        super().write(key, data)
        with contextlib.suppress(Exception):
            for _ in range(20):
                hashlib.sha256(data)


class ChangesWhatAHandlerRaises(Sound):
    def write(self, key: str, data: bytes) -> None:
        try:
            hashlib.sha256(data)
            super().write(key, data)
        except Exception as error:
            raise StorageUnavailableError("the write failed") from error


class CatchesMoreThanOneCall(Sound):
    """Its `except` is for one call that may raise OSError, and stands around three."""

    def write(self, key: str, data: bytes) -> None:
        try:
            hashlib.sha256(data)
            os.stat(os.devnull)
            super().write(key, data)
        except OSError as error:
            raise StorageUnavailableError("the device is gone") from error


class ReadsASecondTime(Sound):
    def read(self, key: str) -> bytes | None:
        try:
            return super().read(key)
        except Exception:
            return super().read(key)


class StarvesAWriter(Sound):
    """The thread that wrote last may write at once; all others wait until no thread has written for a while."""

    last: ClassVar[dict[int, tuple[int, float]]] = {}

    def write(self, key: str, data: bytes) -> None:
        place, me = id(self.items_), threading.get_ident()
        while True:
            thread, when = self.last.get(place, (me, 0.0))
            if thread == me or time.monotonic() > when + 0.05:
                break
            time.sleep(0.001)
        super().write(key, data)
        self.last[place] = me, time.monotonic()


class WaitsForItselfWhenNested(Sound):
    """Its lock is safe when a handler raises, but a handler that writes never gets it."""

    lock = threading.Lock()

    def write(self, key: str, data: bytes) -> None:
        with self.lock:
            hashlib.sha256(data)
            super().write(key, data)


class LosesANestedWrite(Sound):
    """Writes back what it read before: with its lock against other threads, which a nested write has already."""

    def __init__(self, plugin: BrokenPlugin, namespace: str, items: dict[str, bytes]) -> None:
        super().__init__(plugin, namespace, items)
        self.lock = _lock_of(items)

    def write(self, key: str, data: bytes) -> None:
        with self.lock:
            everything = dict(self.items_)
            for _ in range(50):
                hashlib.sha256(data)
            everything[key] = data
            self.items_.update(everything)

    def write_many(self, items: Mapping[str, bytes]) -> None:
        with self.lock:
            super().write_many(items)

    def delete(self, key: str) -> bool:
        with self.lock:
            return super().delete(key)

    def compare_and_write(self, key: str, old: bytes | None, new: bytes | None) -> bool:
        with self.lock:
            return super().compare_and_write(key, old, new)


class DeadlocksInAFinalizer(Sound):
    """A lock for opening and closing that the thread may hold already when the collector runs."""

    lock = threading.Lock()

    def __init__(self, plugin: BrokenPlugin, namespace: str, items: dict[str, bytes]) -> None:
        with self.lock:
            super().__init__(plugin, namespace, items)
            self.opened = [[number] for number in range(100)]

    def close(self) -> None:
        with self.lock:
            self.opened = [[number] for number in range(100)]


class KeepsAReservation(Sound):
    """An interrupted open leaves the name reserved."""

    opening: ClassVar[set[tuple[int, str]]] = set()

    def __init__(self, plugin: BrokenPlugin, namespace: str, items: dict[str, bytes]) -> None:
        name = id(items), namespace
        if name in self.opening:
            raise StoreAlreadyOpenError(f"{namespace!r} is being opened")
        self.opening.add(name)
        super().__init__(plugin, namespace, items)
        self.opening.discard(name)


class LeavesFilesOpen(Sound):
    """A handler that raises after `os.open` and before `try` leaves the file open."""

    def read(self, key: str) -> bytes | None:
        file = os.open(os.devnull, os.O_RDONLY)
        try:
            return super().read(key)
        finally:
            hashlib.sha256()
            os.close(file)


class KeepsFilesInTracebacks(Sound):
    """Leaves closing to the end of the function, which the traceback of a stored exception puts off."""

    def read(self, key: str) -> bytes | None:
        file = open(os.devnull, "rb")  # noqa: SIM115
        for _ in range(20):
            file.read(1)
        return super().read(key)


_locks: dict[int, threading.RLock] = {}


def _lock_of(items: dict[str, bytes]) -> threading.RLock:
    """Return the lock of all storages that share `items`."""
    return _locks.setdefault(id(items), threading.RLock())


class Expires(Sound):
    """Declares `ttl` and keeps no index: sound."""

    claims = frozenset({"ttl"})


class Indexes(Expires):
    """Judges deadlines itself, as an engine with an index does: sound, but for the list of namespaces."""

    def live(self) -> list[str]:
        now_ms = self.now_ms()
        return [key for key, data in list(self.items_.items()) if not is_expired(data, now_ms, self.key_crc_of(key))]

    def len(self) -> int:
        return len(self.live())

    def keys(self) -> Iterable[str]:
        return self.live()

    def delete(self, key: str) -> bool:
        is_live = key in self.live()
        super().delete(key)
        return is_live

    def delete_many(self, keys: list[str]) -> int:
        return sum(map(self.delete, keys))

    def reclaim(self, limit: int) -> int:
        gone = sorted(set(self.items_) - set(self.live()))[:limit]
        for key in gone:
            del self.items_[key]
        return len(gone)


class CountsTheExpired(Indexes):
    def len(self) -> int:
        return len(self.items_)


class ListsTheExpired(Indexes):
    def keys(self) -> Iterable[str]:
        return list(self.items_)


class RemovesTheExpired(Indexes):
    def delete(self, key: str) -> bool:
        return self.items_.pop(key, None) is not None


class KeepsADeadlineThroughASet(Indexes):
    def write(self, key: str, data: bytes) -> None:
        old = self.items_.get(key)
        self.items_[key] = data if old is None else set_deadline(data, deadline_of(old), self.key_crc_of(key))


class LosesADeadlineInModify(Indexes):
    def compare_and_write(self, key: str, old: bytes | None, new: bytes | None) -> bool:
        new = None if new is None else set_deadline(new, None, self.key_crc_of(key))
        return super().compare_and_write(key, old, new)


class LosesADeadlineInTouch(Indexes):
    def set_deadline(self, key: str, deadline_ms: int | None) -> bool:
        return super().set_deadline(key, None)


class ReclaimsTheLiving(Indexes):
    def reclaim(self, limit: int) -> int:
        return sum(self.items_.pop(key, None) is not None for key in list(self.items_)[:limit])
