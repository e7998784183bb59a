"""The redis engine: each namespace is a hash of values and sorted sets of keys and deadlines.

`docs/redis.md` describes the keys on the server and their reasons.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from hutch import (
    Commit,
    ConfigError,
    CorruptValueError,
    EncodedStorage,
    KeyRange,
    Option,
    StoragePluginBase,
    StoreError,
)
from hutch.handlers import raised_by_handler
from hutch.limits import explain_failure, validate_key, validate_keys

from .address import OPTIONS, Monitor, Nodes, read_address
from .hints import OPTION_HINTS
from .listing import Listing
from .scripts import (
    CLEAR,
    COUNT,
    DELETE,
    EXISTS,
    HAS_DATA,
    INCREMENT,
    PARTS,
    RECLAIM,
    SWAP,
    WRITE,
    WRITE_UNTIL,
    Script,
    is_exact,
)
from .server import Server
from .servers import Servers, Settings, Shard, ShardName
from .shards import ShardedStorage, numbers_of, refuse_shards
from .transactions import apply, validate_size

if TYPE_CHECKING:
    from hutch import Finding

T = TypeVar("T")

_CHUNK_KEYS = 1000
# Items per command of a batch. Servers before Redis 7 take about a million arguments.
_BATCH = 100_000
# Keys per command that reads. More need MULTI, which a server whose memory is full refuses.
_READ_BATCH = 1_000_000
# Expired keys per command that reclaims them.
_RECLAIMED_KEYS = 100
# How many parts a namespace without deadlines has on the server.
_LISTED_PARTS = 2


class RedisPlugin(StoragePluginBase):
    """The redis engine: `redis://`, `unix://`, `redis+cluster://`, `redis+sentinel://`; with TLS `rediss://` and so on.

    Clients of one server, or one cluster, and one prefix share namespaces.

    Unless `lazy_connect` is set, the constructor connects; it raises StorageUnavailableError or StorageTimeoutError if
    the server is unreachable or refuses the login. A call that loses its connection reconnects and retries for
    `retry_s` seconds per call. `durable` is declared if the server reports at the first connection that it writes every
    change to disk before it answers. A RuntimeWarning says that the server may evict data.
    """

    OPTIONS: ClassVar[Mapping[str, Option]] = OPTIONS
    OPTION_HINTS: ClassVar[Mapping[str, str]] = OPTION_HINTS
    capabilities = frozenset(
        {"ordered", "atomic-batch", "atomic-modify", "atomic-modify:cluster", "atomic-store", "shared", "ttl"}
    )

    def __init__(self, config: object = None) -> None:
        super().__init__(config)
        options = self._storage_config
        self.prefix: str = options["prefix"]
        #: The most bytes of keys and values in one batch or transaction.
        self.max_transaction_bytes: int = options["max_transaction_bytes"]
        # Without braces in the prefix, the first brace of a key starts the namespace, also for Redis Cluster.
        if not self.prefix or not self.prefix.isprintable() or set(self.prefix) & set("{} "):
            raise ConfigError("option 'prefix' of the redis engine must be printable text without blanks and braces")
        if options["wait_replicas"]:
            if options["wait_ms"] >= 1000 * options["timeout_s"]:
                raise ConfigError("option 'wait_ms' of the redis engine must be shorter than timeout_s (in seconds)")
            self.capabilities |= {"replicated"}
        if options["read_from"] != "primary":
            # What another process wrote is not seen at once, as `shared` promises.
            self.capabilities = self.capabilities - {"shared"} | {"redis:stale-reads"}
        address = read_address(options)
        self.where = address.where
        settings = Settings(self.prefix, options)
        #: How many shards a namespace has, each in a hash slot of its own.
        self.shards: int = options["shards"]
        if self.shards > 1:
            self.capabilities -= {"atomic-store", "atomic-batch"}
        if isinstance(address, Nodes):
            from .cluster import ClusterServers

            self.capabilities -= {"atomic-store"}
            self.servers: Servers = ClusterServers(settings, address)
        elif isinstance(address, Monitor):
            from .sentinel import SentinelServers

            self.servers = SentinelServers(settings, address)
        else:
            pool = settings.pool(address, "standalone", self._declare_durable)
            self.servers = Servers(settings, pool, address.where, address.hint)
        #: The server that has the index of namespaces.
        self.server = self.servers.main
        if not options["lazy_connect"]:
            # Fail fast: report an unreachable server at connect, not at the first read.
            try:
                self.server.call("PING")
            except BaseException:
                self.servers.close()
                raise

    def open(self, namespace: str) -> EncodedStorage:
        is_reachable = self.servers.was_connected or not self._storage_config["lazy_connect"]
        if self.shards == 1:
            if is_reachable:
                refuse_shards(self, namespace)
            return RedisStorage(self, namespace, self.servers.of(namespace), self.servers.script_keys(namespace))
        storage = ShardedStorage(self, namespace, self.shards, partial(RedisStorage, self, namespace))
        if is_reachable:
            storage.shards  # noqa: B018 - validates the number
        return storage

    def drop(self, namespace: str) -> None:
        with self.open(namespace) as storage:
            storage.drop() if isinstance(storage, ShardedStorage) else storage.clear()

    def namespaces(self) -> list[str]:
        sizes = self._stored_parts()
        # All three parts, or one that is left of them after an eviction: some keys have a deadline, or had one.
        unsure = [name for name, parts in sizes.items() if parts != _LISTED_PARTS]
        gone = {name for chunk in _chunks(unsure, _CHUNK_KEYS) for name in self._expired_of(chunk)}
        return list(dict.fromkeys(name for name, number in sizes if (name, number) not in gone))

    def stored_namespaces(self) -> list[str]:
        return list(dict.fromkeys(name for name, _ in self._stored_parts()))

    def _stored_parts(self) -> dict[ShardName, int]:
        """Return the namespaces without shards, and the shards, that have a key on the server, and how many keys."""
        # A write adds the name to the index atomically; a namespace whose keys were all removed may still be listed.
        named: set[bytes] = set()
        cursor: bytes | int = 0
        while True:
            cursor, page = self.server.call("SSCAN", self.index, cursor, "COUNT", _CHUNK_KEYS)
            named.update(page)
            if int(cursor) == 0:
                break
        sizes = self._count_parts([(name, None) for name in self._names(named)])
        # A namespace with shards has one part of its own, as what an eviction left may have.
        sharded = numbers_of(self, [name for (name, _), parts in sizes.items() if parts == 1])
        shards = self._count_parts([(name, Shard(i, total)) for name, total in sharded.items() for i in range(total)])
        return {one: parts for one, parts in sizes.items() if one[0] not in sharded} | shards

    def apply(self, commits: Mapping[str, Commit]) -> bool:
        if self.shards > 1 or (len(commits) > 1 and "atomic-store" not in self.capabilities):
            return super().apply(commits)  # raises CapabilityError
        return apply(self, commits, self.servers.of(next(iter(commits), "")))

    def stats(self) -> dict[str, object]:
        figures: dict[str, object] = {"server": self.where} | self.servers.figures()
        names = list(self._stored_parts())
        try:
            sizes = self._sizes(names)
        except StoreError as error:
            if raised_by_handler(error):
                raise
            return figures  # a user may lack the permission to ask
        return figures | {"bytes": sum(size or 0 for size in sizes)}

    def _sizes(self, names: list[ShardName]) -> list[int | None]:
        """Return the bytes of memory of each key of the server, None for a missing one; large ones are estimated."""
        chunks = [(part, chunk) for chunk in _chunks(names, _CHUNK_KEYS) for part in PARTS]
        return [
            size
            for part, chunk in chunks
            for size in self.servers.ask_each([(one, ("MEMORY", "USAGE", self._key(one, part))) for one in chunk])
        ]

    def verify(self, repair: bool = False) -> Iterator[Finding]:
        from .integrity import verify

        return verify(self, repair)

    def compact(self) -> None:
        """Do nothing: the engine has no files."""

    def close(self) -> None:
        self.servers.close()

    @property
    def index(self) -> str:
        """The server's key of the set of all namespace names."""
        return self.servers.settings.index

    def key(self, namespace: str, part: str) -> str:
        """Return the server's key of a part of `namespace`."""
        return self.servers.settings.key(namespace, part)

    def _key(self, name: ShardName, part: str) -> str:
        return self.servers.settings.key(name[0], part, name[1])

    def _declare_durable(self) -> None:
        self.capabilities |= {"durable"}

    def _names(self, raw: set[bytes]) -> list[str]:
        try:
            return [name.decode() for name in raw]
        except UnicodeDecodeError as error:
            raise CorruptValueError(
                f"the set {self.index!r} on {self.where} holds a name that is not UTF-8; something other than hutch "
                "wrote it"
            ) from error

    def _count_parts(self, names: list[ShardName]) -> dict[ShardName, int]:
        """Return how many keys of the server each of `names` has, if it has any."""
        # If the values were evicted, the listing still shows that the namespace had data.
        asked = ((one, ("EXISTS", *(self._key(one, part) for part in PARTS))) for one in names)
        counts = (count for chunk in _chunks(list(asked), _CHUNK_KEYS) for count in self.servers.ask_each(chunk))
        return {one: count for one, count in zip(names, counts, strict=True) if count}

    def _expired_of(self, names: list[ShardName]) -> list[ShardName]:
        """Return those of `names` all of whose keys have expired."""
        commands = [(one, HAS_DATA.in_full(self.servers.script_keys(*one), ())) for one in names]
        return [one for one, has in zip(names, self.servers.ask_each(commands), strict=True) if not has]


class RedisStorage(EncodedStorage):
    """One namespace, or one shard of it. Any thread and process may use it; every write and batch is atomic."""

    def __init__(self, plugin: RedisPlugin, namespace: str, server: Server, keys: tuple[bytes, ...]) -> None:
        """Set up the storage; `keys` are the KEYS of the scripts: values, order, index, deadlines."""
        super().__init__(plugin, namespace)
        self._redis = plugin
        self._server = server
        # For the verbs that only read. Whatever reads before it writes uses `read` and `read_many`, of the primary.
        self._reader = server.reader
        self._name = namespace.encode()
        self._keys = keys
        self._values = keys[0]
        # Whether this handle has met a deadline. From then on it asks for the time along with each value.
        self._met_deadline = False
        self._listing = Listing(self._server, self._reader, self._keys, namespace, plugin.name)
        # Whether values are encoded as the script INCREMENT encodes them: in MessagePack.
        self._increments = self.frame_codec.codec.headers[0] == 0x92
        self._scope = (plugin.where, plugin.prefix, namespace)

    def read(self, key: str) -> bytes | None:
        data: bytes | None = self._server.exchange([(b"HGET", self._values, key.encode())])[0]
        return data

    def get(self, key: str) -> Any:
        now_ms = None
        try:
            command = (b"HGET", self._values, key.encode())
            if self._met_deadline:
                time, data = self._reader.exchange([(b"TIME",), command])
                now_ms = _milliseconds(time)
            else:
                (data,) = self._reader.exchange([command])
        except Exception as error:
            explain_failure(key, error)
            raise
        if data is None:
            validate_key(key)
            raise KeyError(key)
        return self.decode_value(key, data, now_ms)

    def now_ms(self) -> int:
        self._met_deadline = True
        return _milliseconds(self._server.call(b"TIME"))

    def write(self, key: str, data: bytes) -> None:
        self._server.run(WRITE, self._keys, (self._name, key.encode(), data), changes=True)

    def delete(self, key: str) -> bool:
        # Not sent again: after a lost answer, a second attempt would report the key as missing.
        return bool(self._server.run(DELETE, self._keys, (self._name, key.encode()), changes=True, again=False))

    def len(self) -> int:
        return int(self._reader.run(COUNT, self._keys, ()))

    def keys(self) -> Iterator[str]:
        return self.key_range(None, None, False)

    def close(self) -> None:
        # Nothing to flush: a write that returned is on the server.
        pass

    def exists(self, key: str) -> bool:
        return bool(self._reader.run(EXISTS, self._keys, (key.encode(),)))

    def get_many(self, keys: Iterable[str]) -> dict[str, Any]:
        frames = self.read_many(validate_keys(dict.fromkeys(keys)), self._reader)
        return dict(self.decode_items(frames, frames.values()))

    def read_many(self, keys: list[str], server: Server | None = None) -> dict[str, bytes]:
        if not keys:
            return {}
        chunks = _chunks([key.encode() for key in keys], _READ_BATCH)
        values = (server or self._server).transaction([(b"HMGET", self._values, *chunk) for chunk in chunks])
        data = (one for chunk in values for one in chunk)
        return {key: one for key, one in zip(keys, data, strict=True) if one is not None}

    def write_many(self, items: Mapping[str, bytes]) -> None:
        self._write_many(WRITE, items)

    def _write_many(self, script: Script, items: Mapping[str, bytes]) -> None:
        pairs = [part for key, data in items.items() for part in (key.encode(), data)]
        validate_size(self._redis, f"a batch of {len(items):,} items", sum(map(len, pairs)))
        self._server.transaction(
            [script.in_full(self._keys, (self._name, *chunk)) for chunk in _chunks(pairs, 2 * _BATCH)], changes=True
        )

    def write_until(self, key: str, data: bytes, deadline_ms: int) -> None:
        self._server.run(WRITE_UNTIL, self._keys, (self._name, key.encode(), data), changes=True)

    def write_many_until(self, items: Mapping[str, bytes], deadlines_ms: Mapping[str, int]) -> None:
        self._write_many(WRITE_UNTIL, items)

    def delete_many(self, keys: list[str]) -> int:
        chunks = _chunks([key.encode() for key in keys], _BATCH)
        commands = [DELETE.in_full(self._keys, (self._name, *chunk)) for chunk in chunks]
        return sum(self._server.transaction(commands, changes=True, again=False))

    def read_chunks(
        self, start: str | None, stop: str | None, reverse: bool
    ) -> Iterator[tuple[Sequence[str], Sequence[bytes]]]:
        return self._listing.pages(start, stop, reverse)

    def read_range(self, start: str | None, stop: str | None, reverse: bool) -> Iterator[tuple[str, bytes]]:
        for keys, values in self._listing.pages(start, stop, reverse):
            yield from zip(keys, values, strict=True)

    def key_range(self, start: str | None, stop: str | None, reverse: bool) -> Iterator[str]:
        return self._listing.keys(start, stop, reverse)

    def clear(self) -> None:
        self._server.run(CLEAR, self._keys, (self._name,), changes=True)

    def compare_and_write(self, key: str, old: bytes | None, new: bytes | None) -> bool:
        arguments = (self._name, key.encode(), int(old is not None), old or b"", int(new is not None), new or b"")
        return bool(self._server.run(SWAP, self._keys, arguments, changes=True, again=False))

    def increment(self, key: str, by: float = 1, default: float = 0, ttl_s: float | None = None) -> int | float:
        key = validate_key(key)
        if self._increments and is_exact(by) and (ttl_s is not None or is_exact(default)):
            start = default if ttl_s is None else ""  # a deadline that starts takes the longer way
            arguments = (self._name, key.encode(), self.key_crc_of(key), str(by), str(start))
            number: int | None = self._server.run(INCREMENT, self._keys, arguments, changes=True, again=False)
            if number is not None:
                return number
        return super().increment(key, by, default, ttl_s)

    def apply(
        self,
        changes: Mapping[str, bytes | None],
        expected: Mapping[str, bytes | None],
        ranges: Sequence[KeyRange] = (),
    ) -> bool:
        return apply(self._redis, {self.namespace: Commit(changes, expected, ranges)}, self._server)

    def reclaim(self, limit: int) -> int:
        # In small steps, because the server does nothing else meanwhile.
        reclaimed = 0
        while reclaimed < limit:
            step = min(limit - reclaimed, _RECLAIMED_KEYS)
            removed, due = self._server.run(RECLAIM, self._keys, (step,), changes=True)
            reclaimed += removed
            if due < step:
                break
        return reclaimed

    @property
    def lock_scope(self) -> Hashable:
        return self._scope


def _milliseconds(time: Sequence[bytes]) -> int:
    """Return the milliseconds since 1970 UTC in the server's answer to TIME."""
    return int(time[0]) * 1000 + int(time[1]) // 1000


def _chunks(items: list[T], size: int) -> list[list[T]]:
    return [items[i : i + size] for i in range(0, len(items), size)]
