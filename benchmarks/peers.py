"""Every store of the comparison: hutch at each of its settings, and each peer as its own documentation opens it.

A peer keeps its own defaults, except those that would discard data (expiry, eviction). Stores of bytes get a codec that
keeps no types, ormsgpack. A store runs in its own process, in a Python that has its packages, so imports are inside
functions; and by name, so that mypy needs no peer. To add a peer, add a line to _PEERS.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from .subjects import AsyncSubject, Items, Subject

# What survives of a write that returned.
NOTHING = "nothing"
EXIT = "a clean exit"
KILLED = "a killed process"
WHOLE = "a killed process; a power cut takes the last writes"
LAST = "a killed process; a power cut takes the last write"
ALL = "a power cut"


@dataclass(frozen=True)
class Store:
    """One row of the table."""

    name: str
    #: The module to import.
    modules: tuple[str, ...]
    #: Distributions whose versions are shown.
    packages: tuple[str, ...]
    open: Callable[[Path], Subject]
    survives: str
    #: The hutch store with at least the same guarantees, which this peer is compared with.
    beside: str = ""
    #: What hutch guarantees and this peer does not.
    gives_up: str = ""
    lacks: frozenset[str] = frozenset()


# --- hutch ---


class Hutch(Subject):
    lacks = frozenset()

    def __init__(self, url: str) -> None:
        import hutch

        self._store = hutch.connect(url)
        super().__init__(self._store.open("core"))

    def get_many(self, keys: list[str]) -> None:
        self.native.get_many(keys)

    def counter(self, times: int) -> None:
        increment = self.native.increment
        for _ in range(times):
            increment("counter")

    def close(self) -> None:
        self.native.close()
        self._store.close()


def _hutch(url: str) -> Callable[[Path], Subject]:
    return lambda folder: Hutch(url.format(folder))


def _hutch_aio(url: str) -> Callable[[Path], Subject]:
    def open_(folder: Path) -> Subject:
        import hutch.aio

        async def opening() -> Any:
            # Reads on the loop itself, as asyncio peers do for everything.
            store = await hutch.aio.connect(url.format(folder), inline_reads=True)
            return store, await store.open("core")

        async def closing(pair: Any) -> None:
            store, core = pair
            await core.close()
            await store.close()

        def verbs(pair: Any) -> tuple[Callable[..., Awaitable[Any]], ...]:
            core = pair[1]
            return core.get, core.set, core.remove, core.set_many, core.get_many

        return AsyncSubject(opening(), verbs, closing)

    return open_


# --- peers that are dicts, or nearly ---


class DiskCache(Subject):
    """diskcache.Cache has no `update` and no `items`: use a transaction, and a loop."""

    lacks = frozenset({"get_many"})

    def update(self, items: dict[str, Any]) -> None:
        with self.native.transact():
            for key, value in items.items():
                self.native[key] = value

    def items(self) -> int:
        native = self.native
        return sum(1 for key in native if native[key])

    def counter(self, times: int) -> None:
        incr = self.native.incr
        for _ in range(times):
            incr("counter")


class DiskIndex(Subject):
    def update(self, items: dict[str, Any]) -> None:
        with self.native.transact():
            self.native.update(items)

    def close(self) -> None:
        self.native.cache.close()


def _diskcache(folder: Path) -> Subject:
    diskcache = import_module("diskcache")

    return DiskCache(diskcache.Cache(str(folder), eviction_policy="none"))


def _disk_index(folder: Path) -> Subject:
    diskcache = import_module("diskcache")

    return DiskIndex(diskcache.Index(str(folder)))


def _sqlitedict(folder: Path) -> Subject:
    sqlitedict = import_module("sqlitedict")

    return Subject(sqlitedict.SqliteDict(str(folder / "dict.db"), autocommit=True))


def _shelve(dialect: str) -> Callable[[Path], Subject]:
    def open_(folder: Path) -> Subject:
        import shelve

        module = import_module(f"dbm.{dialect}")
        return Subject(shelve.Shelf(module.open(str(folder / "shelf"), "c"), protocol=5))

    return open_


class Shelf(Subject):
    """Errbot's shelf: the six verbs of its storage through its own StoreMixin. No batches, no atomic update."""

    @property
    def note(self) -> str:
        import dbm

        return f"on {dbm.whichdb(self._path)}"

    def __init__(self, path: str) -> None:
        storages, shelf = import_module("errbot.storage"), import_module("errbot.storage.shelf")

        self._path = path
        storage = shelf.ShelfStorage(path)

        class Factory:
            def open(self, namespace: str) -> Any:
                return storage

        mixin = storages.StoreMixin()
        storage.set("first", None)  # otherwise Errbot takes the empty storage for a closed one
        mixin.open_storage(Factory(), "core")
        super().__init__(mixin)

    def close(self) -> None:
        self.native.close_storage()


def _errbot(folder: Path) -> Subject:
    return Shelf(str(folder / "core.db"))


def _lmdbm(folder: Path) -> Subject:
    base: Any = import_module("lmdbm").Lmdb
    import ormsgpack

    class Packed(base):  # type: ignore[misc]  # untyped
        """As its documentation's JsonLmdb."""

        def _pre_key(self, key: str) -> bytes:
            return key.encode()

        def _post_key(self, key: bytes) -> str:
            return key.decode()

        def _pre_value(self, value: Any) -> bytes:
            return ormsgpack.packb(value)

        def _post_value(self, value: bytes) -> Any:
            return ormsgpack.unpackb(value)

    return Subject(Packed.open(str(folder), "c"))


def _zict(folder: Path) -> Subject:
    import ormsgpack

    zict = import_module("zict")

    return Subject(zict.Func(ormsgpack.packb, ormsgpack.unpackb, zict.LMDB(str(folder))))


class RocksDict(Subject):
    lacks = frozenset({"len", "counter"})

    def __init__(self, native: Any) -> None:
        super().__init__(native)
        self._batch = import_module("rocksdict").WriteBatch

    def update(self, items: dict[str, Any]) -> None:
        batch = self._batch()
        for key, value in items.items():
            batch.put(key, value)
        self.native.write(batch)

    def get_many(self, keys: list[str]) -> None:
        self.native.get(keys)

    def keys(self) -> int:
        return sum(1 for _ in self.native.keys())  # noqa: SIM118 - not a mapping


class RocksBytes(RocksDict):
    """Use bytes as keys and values, which avoids RocksDict's own encoding."""

    def get(self, keys: list[str]) -> None:
        from ormsgpack import unpackb

        native = self.native
        for key in keys:
            unpackb(native[key.encode()])

    def has(self, keys: list[str]) -> None:
        native = self.native
        for key in keys:
            key.encode() in native  # noqa: B015

    def set(self, items: Items) -> None:
        from ormsgpack import packb

        native = self.native
        for key, value in items:
            native[key.encode()] = packb(value)

    def add_delete(self, items: Items) -> None:
        from ormsgpack import packb

        native = self.native
        for key, value in items:
            native[key.encode()] = packb(value)
            del native[key.encode()]

    def update(self, items: dict[str, Any]) -> None:
        from ormsgpack import packb

        batch = self._batch(raw_mode=True)
        for key, value in items.items():
            batch.put(key.encode(), packb(value))
        self.native.write(batch)

    def get_many(self, keys: list[str]) -> None:
        from ormsgpack import unpackb

        for data in self.native.get([key.encode() for key in keys]):
            unpackb(data)

    def items(self) -> int:
        from ormsgpack import unpackb

        return sum(1 for key, data in self.native.items() if key.decode() and unpackb(data))


def _rocksdict(folder: Path) -> Subject:
    rocksdict = import_module("rocksdict")

    return RocksDict(rocksdict.Rdict(str(folder)))


def _rocksdict_bytes(folder: Path) -> Subject:
    rocksdict = import_module("rocksdict")

    return RocksBytes(rocksdict.Rdict(str(folder), options=rocksdict.Options(raw_mode=True)))


# --- peers with verbs of their own ---


class CacheLib(Subject):
    """A name for a folder: there is nothing to open or to close."""

    lacks = frozenset({"items", "keys", "len", "counter", "open"})

    def get(self, keys: list[str]) -> None:
        get = self.native.get
        for key in keys:
            get(key)

    def has(self, keys: list[str]) -> None:
        has = self.native.has
        for key in keys:
            has(key)

    def set(self, items: Items) -> None:
        set_ = self.native.set
        for key, value in items:
            set_(key, value)

    def add_delete(self, items: Items) -> None:
        native = self.native
        for key, value in items:
            native.set(key, value)
            native.delete(key)

    def update(self, items: dict[str, Any]) -> None:
        self.native.set_many(items)

    def get_many(self, keys: list[str]) -> None:
        self.native.get_many(*keys)

    def close(self) -> None:
        pass


def _cachelib(folder: Path) -> Subject:
    cachelib = import_module("cachelib")

    return CacheLib(cachelib.FileSystemCache(str(folder), threshold=0, default_timeout=0))


class MinimalKv(Subject):
    """Bytes in files named by key, without colons. There is nothing to open or to close."""

    lacks = frozenset({"items", "len", "get_many", "counter", "open"})

    def get(self, keys: list[str]) -> None:
        from ormsgpack import unpackb

        get = self.native.get
        for key in keys:
            unpackb(get(key.replace(":", "-")))

    def has(self, keys: list[str]) -> None:
        native = self.native
        for key in keys:
            key.replace(":", "-") in native  # noqa: B015

    def set(self, items: Items) -> None:
        from ormsgpack import packb

        put = self.native.put
        for key, value in items:
            put(key.replace(":", "-"), packb(value))

    def add_delete(self, items: Items) -> None:
        from ormsgpack import packb

        native = self.native
        for key, value in items:
            native.put(key.replace(":", "-"), packb(value))
            native.delete(key.replace(":", "-"))

    def update(self, items: dict[str, Any]) -> None:
        self.set(list(items.items()))


def _minimalkv(folder: Path) -> Subject:
    fs = import_module("minimalkv.fs")
    return MinimalKv(fs.FilesystemStore(str(folder)))


def _key_value(module: str, name: str, place: str = "") -> Callable[[Path], Subject]:
    def open_(folder: Path) -> Subject:
        options = {place: folder} if place else {}
        store = getattr(import_module(f"key_value.aio.stores.{module}"), name)(**options)

        def verbs(native: Any) -> tuple[Callable[..., Awaitable[Any]], ...]:
            async def put_many(items: dict[str, Any]) -> None:
                await native.put_many(list(items), list(items.values()))

            return native.get, native.put, native.delete, put_many, native.get_many

        async def opening() -> Any:
            # Entering it makes closing flush; the memory store has nothing to close.
            return await store.__aenter__() if place else store

        async def closing(native: Any) -> None:
            if place:
                await native.close()

        return AsyncSubject(opening(), verbs, closing)

    return open_


# --- the list ---

_LMDB = ("hutch", "lmdb", "ormsgpack")
_NO_TYPES = "types (a tuple comes back as a list)"
_HUTCH = [
    Store("hutch lmdb, strict", _LMDB, _LMDB, _hutch("lmdb://{}/kv?durability=strict"), ALL),
    Store("hutch lmdb, normal", _LMDB, _LMDB, _hutch("lmdb://{}/kv?durability=normal"), LAST),
    Store("hutch lmdb, relaxed", _LMDB, _LMDB, _hutch("lmdb://{}/kv?durability=relaxed"), KILLED),
    Store(
        "hutch lmdb, relaxed, no cache",
        _LMDB,
        _LMDB,
        _hutch("lmdb://{}/kv?durability=relaxed&cache_bytes=0"),
        KILLED,
    ),
    Store("hutch sqlite, strict", ("hutch",), ("hutch",), _hutch("sqlite://{}/kv.db?durability=strict"), ALL),
    Store("hutch sqlite, normal", ("hutch",), ("hutch",), _hutch("sqlite://{}/kv.db?durability=normal"), WHOLE),
    Store("hutch sqlite, relaxed", ("hutch",), ("hutch",), _hutch("sqlite://{}/kv.db?durability=relaxed"), KILLED),
    Store("hutch memory", ("hutch",), ("hutch",), _hutch("memory://"), NOTHING, lacks=frozenset({"open"})),
    Store("hutch.aio lmdb, relaxed", _LMDB, _LMDB, _hutch_aio("lmdb://{}/kv?durability=relaxed"), KILLED),
    Store("hutch.aio sqlite, normal", ("hutch",), ("hutch",), _hutch_aio("sqlite://{}/kv.db"), WHOLE),
    Store("hutch.aio memory", ("hutch",), ("hutch",), _hutch_aio("memory://"), NOTHING, lacks=frozenset({"open"})),
]
_PEERS = [
    Store(
        "diskcache.Cache",
        ("diskcache",),
        ("diskcache",),
        _diskcache,
        WHOLE,
        "hutch sqlite, normal",
        "namespaces; reads unpickle what they find",
    ),
    Store(
        "diskcache.Index",
        ("diskcache",),
        ("diskcache",),
        _disk_index,
        WHOLE,
        "hutch sqlite, normal",
        "namespaces; reads unpickle what they find",
    ),
    Store(
        "sqlitedict",
        ("sqlitedict",),
        ("sqlitedict",),
        _sqlitedict,
        "what its thread has written by then, a killed process",
        "hutch sqlite, relaxed",
        "a write returns before it is made, and its error may come later or never; reads unpickle",
    ),
    Store(
        "shelve, gnu",
        ("dbm.gnu",),
        (),
        _shelve("gnu"),
        KILLED,
        "hutch lmdb, relaxed",
        "a second process; a kill can damage the file; reads unpickle",
    ),
    Store(
        "shelve, dumb",
        ("dbm.dumb",),
        (),
        _shelve("dumb"),
        EXIT,
        "hutch lmdb, relaxed",
        "a second process; all keys are held in memory; a kill loses what the index has not; reads unpickle",
    ),
    Store(
        "shelve, sqlite3",
        ("dbm.sqlite3",),
        (),
        _shelve("sqlite3"),
        ALL,
        "hutch sqlite, strict",
        "batches: each item is a commit; threads; reads unpickle",
    ),
    Store(
        "lmdbm",
        ("lmdbm", "ormsgpack"),
        ("lmdbm",),
        _lmdbm,
        ALL,
        "hutch lmdb, strict",
        f"{_NO_TYPES}; checksums; keys past 511 bytes; several processes while the file grows",
    ),
    Store(
        "zict.LMDB",
        ("zict", "lmdb", "ormsgpack"),
        ("zict",),
        _zict,
        KILLED,
        "hutch lmdb, relaxed",
        f"{_NO_TYPES}; checksums; threads; a wild write of the process reaches the file, which it maps writable "
        "(`writemap`), and a full disk ends the process (SIGBUS); an iteration pins all old pages",
    ),
    Store(
        "rocksdict",
        ("rocksdict",),
        ("rocksdict",),
        _rocksdict,
        KILLED,
        "hutch lmdb, relaxed",
        "a second process; `len`; reads unpickle",
    ),
    Store(
        "rocksdict, bytes",
        ("rocksdict", "ormsgpack"),
        ("rocksdict",),
        _rocksdict_bytes,
        KILLED,
        "hutch lmdb, relaxed",
        f"a second process; `len`; {_NO_TYPES}",
    ),
    Store(
        "py-key-value, disk",
        ("key_value", "diskcache"),
        ("py-key-value-aio", "diskcache"),
        _key_value("disk", "DiskStore", "directory"),
        WHOLE,
        "hutch.aio sqlite, normal",
        "all but JSON; the event loop stands still while it writes",
    ),
    Store(
        "py-key-value, RocksDB",
        ("key_value", "rocksdict"),
        ("py-key-value-aio", "rocksdict"),
        _key_value("rocksdb", "RocksDBStore", "path"),
        KILLED,
        "hutch.aio lmdb, relaxed",
        "a second process; all but JSON; the event loop stands still while it writes",
    ),
    Store(
        "py-key-value, memory",
        ("key_value", "cachetools"),
        ("py-key-value-aio",),
        _key_value("memory", "MemoryStore"),
        NOTHING,
        "hutch.aio memory",
        "all but JSON",
        lacks=frozenset({"open"}),
    ),
    Store(
        "minimalkv, files",
        ("minimalkv", "ormsgpack"),
        ("minimalkv",),
        _minimalkv,
        "a killed process, but for a value half written",
        "hutch lmdb, relaxed",
        f"atomic writes, batches; {_NO_TYPES}; checksums",
    ),
    Store(
        "cachelib, files",
        ("cachelib",),
        ("cachelib",),
        _cachelib,
        KILLED,
        "hutch lmdb, relaxed",
        "listing its keys; atomic batches; reads unpickle",
    ),
    Store(
        "Errbot's Shelf",
        ("errbot",),
        ("errbot",),
        _errbot,
        EXIT,
        "hutch lmdb, relaxed",
        "a second process; atomic updates; reads unpickle",
    ),
]
STORES: dict[str, Store] = {store.name: store for store in (*_HUTCH, *_PEERS)}
PEERS: list[str] = [store.name for store in _PEERS]
