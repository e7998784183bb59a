"""Spread one large namespace over several hash slots: `shards=N`.

The CRC-32 of a key decides on its shard, which has the layout of a namespace of its own. The number of shards is stored
under a key of the namespace, before the first write. With it, a set takes the place of the values that the namespace
would have without shards: a handle that does not know of them cannot read or write beside them.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from hutch import ConfigError, CorruptValueError, EncodedStorage, StorageTimeoutError, StorageUnavailableError
from hutch.codec.frame import crc32
from hutch.handlers import raised_by_handler
from hutch.limits import explain_failure, validate_key, validate_keys

from .batches import Write, read_together, write_together
from .protocol import Command
from .scripts import COUNT, DELETE, WRITE, WRITE_UNTIL, Script
from .server import Server
from .servers import Shard
from .transactions import validate_size

if TYPE_CHECKING:
    from .servers import MarkedServer, ShardName
    from .storage import RedisPlugin, RedisStorage

#: The part of a namespace with the number of its shards: a hash with one field of the same name.
SHARDS: Final = "shards"
# Keys per command of a batch. A larger part of a shard is sent on its own, in several commands.
_BATCH: Final = 100_000
# KEYS: those of a script for the namespace, then the number of shards. ARGV: namespace, number or ''. Stores the number
# if none is stored and one is given; returns the stored one, 1 if the namespace has values and no shards. The set in
# the place of the values has the number too: a server that evicts keys may lose one of the two.
_CLAIM: Final = Script(
    "redis.call('SCARD', KEYS[3])",
    "local stored = redis.call('HGET', KEYS[5], 'shards')",
    "if not stored and redis.call('EXISTS', KEYS[1], KEYS[2], KEYS[4]) > 0 then",
    "  local set = redis.pcall('SSCAN', KEYS[1], 0)",
    "  stored = not set.err and set[2][1]",
    "  if not stored then return '1' end",
    "end",
    "if ARGV[2] ~= '' then",
    "  redis.call('SADD', KEYS[1], stored or ARGV[2])",
    "  redis.call('SADD', KEYS[3], ARGV[1])",
    "  redis.call('HSET', KEYS[5], 'shards', stored or ARGV[2])",
    "end",
    "return stored or ARGV[2]",
)
# KEYS and ARGV: those of _CLAIM. Forgets the number of shards, whose data must be gone.
_FORGET: Final = Script(
    "redis.call('SCARD', KEYS[3])",
    "if redis.call('EXISTS', KEYS[5]) == 0 then return end",
    "redis.call('SREM', KEYS[3], ARGV[1])",
    "redis.call('UNLINK', KEYS[1], KEYS[5])",
)


class ShardedStorage(EncodedStorage):
    """One namespace over several shards. What touches one shard is atomic; a batch is not."""

    def __init__(
        self,
        plugin: RedisPlugin,
        namespace: str,
        count: int,
        open_shard: Callable[[Server, tuple[bytes, ...]], RedisStorage],
    ) -> None:
        """Set up the storage; `open_shard` returns that of one shard, given its server and the KEYS of its scripts."""
        super().__init__(plugin, namespace)
        self._redis = plugin
        self._count = count
        self._open_shard = open_shard
        self._shards: list[RedisStorage] | None = None
        self._servers: list[MarkedServer] = []
        # Without waiting for replicas: a number that a fail-over lost is stored again by the next handle that writes.
        self._home = plugin.servers.home(namespace)
        self._reads_replicas = plugin.servers.settings.reads_replicas
        self._scope = (plugin.where, plugin.prefix, namespace)

    @property
    def shards(self) -> list[RedisStorage]:
        """The shards. Raises ConfigError at the first access if the namespace was made with another number."""
        if self._shards is None:
            self._shards = self._opened()
        return self._shards

    def _opened(self) -> list[RedisStorage]:
        plugin, home, namespace, count = self._redis, self._home, self.namespace, self._count
        validate_number(plugin, namespace, count)

        def enlist() -> None:  # without self, which has the shards
            _compare(plugin, namespace, claim(plugin, home, namespace, count), count)

        self._servers = [plugin.servers.of_shard(namespace, Shard(i, count), enlist) for i in range(count)]
        return [self._open_shard(server, self._keys(i)) for i, server in enumerate(self._servers)]

    def of(self, key: str) -> RedisStorage:
        """Return the shard of `key`."""
        return self.shards[shard_of(key.encode(), self._count)]

    def read(self, key: str) -> bytes | None:
        return self.of(key).read(key)

    def get(self, key: str) -> Any:
        try:
            shard = self.of(key)
        except Exception as error:
            explain_failure(key, error)
            raise
        return shard.get(key)

    def get_many(self, keys: Iterable[str]) -> dict[str, Any]:
        if not self._reads_replicas:
            return super().get_many(keys)
        names = validate_keys(dict.fromkeys(keys))
        values: dict[str, Any] = {}
        for i, part in self._grouped(names):
            values |= self.shards[i].get_many(part)
        return {key: values[key] for key in names if key in values}

    def now_ms(self) -> int:
        return self.shards[0].now_ms()

    def write(self, key: str, data: bytes) -> None:
        self.of(key).write(key, data)

    def delete(self, key: str) -> bool:
        return self.of(key).delete(key)

    def len(self) -> int:
        together = () if self._reads_replicas else range(len(self.shards))
        answers = self._read({i: COUNT.by_name(self._keys(i), ()) for i in together})
        return sum(int(answers[i]) if i in answers else shard.len() for i, shard in enumerate(self.shards))

    def keys(self) -> Iterator[str]:
        return self.key_range(None, None, False)

    def close(self) -> None:
        # Nothing to flush: a write that returned is on the server.
        pass

    def exists(self, key: str) -> bool:
        return self.of(key).exists(key)

    def read_many(self, keys: list[str]) -> dict[str, bytes]:
        parts = self._grouped(keys)
        answers = self._read(
            {i: (b"HMGET", self._keys(i)[0], *map(str.encode, names)) for i, names in parts if len(names) <= _BATCH}
        )
        values: dict[str, bytes] = {}
        for i, names in parts:
            if i in answers:
                values |= {key: data for key, data in zip(names, answers[i], strict=True) if data is not None}
            else:
                values |= self.shards[i].read_many(names)
        return {key: values[key] for key in keys if key in values}

    def write_many(self, items: Mapping[str, bytes]) -> None:
        self._write(WRITE, items, lambda shard, part: shard.write_many(part))

    def write_until(self, key: str, data: bytes, deadline_ms: int) -> None:
        self.of(key).write_until(key, data, deadline_ms)

    def write_many_until(self, items: Mapping[str, bytes], deadlines_ms: Mapping[str, int]) -> None:
        self._write(WRITE_UNTIL, items, lambda shard, part: shard.write_many_until(part, deadlines_ms))

    def delete_many(self, keys: list[str]) -> int:
        parts = dict(self._grouped(keys))
        encoded = {i: [key.encode() for key in names] for i, names in parts.items()}
        # Not sent again: after a lost answer, a second attempt would count fewer keys.
        return sum(self._send(DELETE, encoded, lambda i: self.shards[i].delete_many(parts[i]), again=False))

    def read_chunks(
        self, start: str | None, stop: str | None, reverse: bool
    ) -> Iterator[tuple[Sequence[str], Sequence[bytes]]]:
        return merged_pages([shard.read_chunks(start, stop, reverse) for shard in self.shards], reverse)

    def read_range(self, start: str | None, stop: str | None, reverse: bool) -> Iterator[tuple[str, bytes]]:
        for keys, values in self.read_chunks(start, stop, reverse):
            yield from zip(keys, values, strict=True)

    def key_range(self, start: str | None, stop: str | None, reverse: bool) -> Iterator[str]:
        return heapq.merge(*(shard.key_range(start, stop, reverse) for shard in self.shards), reverse=reverse)

    def clear(self) -> None:
        for shard in self.shards:
            shard.clear()

    def drop(self) -> None:
        """Remove every key, then the number of shards."""
        self.clear()
        keys = _home_keys(self._redis, self.namespace)
        self._home.run(_FORGET, keys, (self.namespace.encode(),), changes=True)
        # A handle of another process may have written between the two steps. Its number was forgotten with the rest.
        left = self._read({i: (b"EXISTS", self._keys(i)[0]) for i in range(len(self.shards))})
        if len(left) < len(self.shards) or any(left.values()):
            claim(self._redis, self._home, self.namespace, self._count)

    def compare_and_write(self, key: str, old: bytes | None, new: bytes | None) -> bool:
        return self.of(key).compare_and_write(key, old, new)

    def increment(self, key: str, by: float = 1, default: float = 0, ttl_s: float | None = None) -> int | float:
        return self.of(validate_key(key)).increment(key, by, default, ttl_s)

    def reclaim(self, limit: int) -> int:
        reclaimed = 0
        for shard in self.shards:
            if reclaimed < limit:
                reclaimed += shard.reclaim(limit - reclaimed)
        return reclaimed

    @property
    def lock_scope(self) -> Hashable:
        return self._scope

    def _keys(self, shard: int) -> tuple[bytes, ...]:
        return self._redis.servers.script_keys(*self._shard_name(shard))

    def _shard_name(self, shard: int) -> ShardName:
        return self.namespace, Shard(shard, self._count)

    def _grouped(self, keys: Iterable[str]) -> list[tuple[int, list[str]]]:
        """Return the numbers of the shards of `keys`, each with its keys, in order."""
        groups: dict[int, list[str]] = {}
        count = len(self.shards)
        for key in keys:
            groups.setdefault(shard_of(key.encode(), count), []).append(key)
        return sorted(groups.items())

    def _read(self, commands: Mapping[int, Command]) -> dict[int, Any]:
        """Return the answers of the shards to commands, without those that must be asked on their own."""
        names = {self._shard_name(i): i for i in commands}
        answers = read_together(self._redis.servers, {name: commands[i] for name, i in names.items()})
        return {names[name]: answer for name, answer in answers.items()}

    def _write(
        self, script: Script, items: Mapping[str, bytes], alone: Callable[[RedisStorage, dict[str, bytes]], None]
    ) -> None:
        """Write `items`; `alone` writes the part of a shard on its own."""
        self._validate_size(items)
        parts = dict(self._grouped(items))
        pairs = {i: [one for key in names for one in (key.encode(), items[key])] for i, names in parts.items()}
        self._send(script, pairs, lambda i: alone(self.shards[i], {key: items[key] for key in parts[i]}), again=True)

    def _send(
        self, script: Script, arguments: Mapping[int, list[bytes]], alone: Callable[[int], Any], again: bool
    ) -> list[Any]:
        """Return the answers of a script that writes in several shards; `alone` writes in one, given its number."""
        namespace = self.namespace.encode()
        names = {self._shard_name(i): i for i in arguments}
        writes = {
            name: Write(self._servers[i], script.by_name(self._keys(i), (namespace, *arguments[i])))
            if len(arguments[i]) <= 2 * _BATCH
            else None
            for name, i in names.items()
        }
        return write_together(self._redis.servers, writes, again, lambda name: alone(names[name]))

    def _validate_size(self, items: Mapping[str, bytes]) -> None:
        # The whole batch, so that nothing is written if one of the shards would refuse its part.
        size = sum(len(key.encode()) + len(data) for key, data in items.items())
        validate_size(self._redis, f"a batch of {len(items):,} items", size)


def claim(plugin: RedisPlugin, home: Server, namespace: str, count: int) -> int:
    """Store that `namespace` has `count` shards, unless it was made already; return the number of its shards."""
    stored = home.run(_CLAIM, _home_keys(plugin, namespace), (namespace.encode(), count), changes=True)
    return _number(plugin, namespace, stored)


def shard_of(key: bytes, count: int) -> int:
    """Return the number of the shard that has `key` if there are `count` shards."""
    return crc32(key) % count


def validate_number(plugin: RedisPlugin, namespace: str, count: int) -> None:
    """Raise ConfigError if `namespace` was made with another number of shards than `count`."""
    stored = plugin.servers.home(namespace).run(_CLAIM, _home_keys(plugin, namespace), (namespace.encode(), ""))
    if stored:
        _compare(plugin, namespace, _number(plugin, namespace, stored), count)


def refuse_shards(plugin: RedisPlugin, namespace: str) -> None:
    """Raise ConfigError if `namespace` has shards.

    Does nothing if the server cannot be asked now: later calls cannot use what takes the place of the values.
    """
    try:
        server = plugin.servers.without_retries(namespace)
        stored = server.call(b"HGET", plugin.key(namespace, SHARDS).encode(), SHARDS.encode())
    except (StorageUnavailableError, StorageTimeoutError) as error:
        if raised_by_handler(error):
            raise
        return
    if stored is not None:
        _compare(plugin, namespace, _number(plugin, namespace, stored), 1)


def numbers_of(plugin: RedisPlugin, namespaces: Sequence[str]) -> dict[str, int]:
    """Return the number of shards of each of `namespaces` that has shards."""
    looks: list[tuple[ShardName, Command]] = [
        ((namespace, None), _CLAIM.in_full(_home_keys(plugin, namespace), (namespace.encode(), "")))
        for namespace in namespaces
    ]
    answers = zip(namespaces, plugin.servers.ask_each(looks), strict=True)
    numbers = {namespace: _number(plugin, namespace, stored) for namespace, stored in answers if stored}
    return {namespace: number for namespace, number in numbers.items() if number > 1}


def merged_pages(
    pages: Sequence[Iterator[tuple[Sequence[str], Sequence[bytes]]]], reverse: bool
) -> Iterator[tuple[Sequence[str], Sequence[bytes]]]:
    """Yield the items of several sequences of pages, each of them in key order, in pages in key order.

    Holds one page of each sequence.
    """
    heads = [head for head in map(_Head, pages) if head.fill()]
    while heads:
        # Up to here no page that is still to be read has a key.
        ends = [head.keys[-1] for head in heads]
        bound = max(ends) if reverse else min(ends)
        items = [item for head in heads for item in head.take(bound, reverse)]
        items.sort(key=_key_of, reverse=reverse)
        yield [key for key, _ in items], [data for _, data in items]
        heads = [head for head in heads if head.fill()]


def _key_of(item: tuple[str, bytes]) -> str:
    return item[0]


class _Head:
    """The page of one shard whose items come next."""

    def __init__(self, pages: Iterator[tuple[Sequence[str], Sequence[bytes]]]) -> None:
        self._pages = pages
        self.keys: Sequence[str] = ()
        self._values: Sequence[bytes] = ()

    def fill(self) -> bool:
        """Read the next page if this one is used up; return whether there is an item."""
        while not self.keys:
            page = next(self._pages, None)
            if page is None:
                return False
            self.keys, self._values = page
        return True

    def take(self, bound: str, reverse: bool) -> Iterator[tuple[str, bytes]]:
        """Remove the items up to `bound` from the page, and return them."""
        keys, values = self.keys, self._values
        count = len(keys) - bisect_left(keys[::-1], bound) if reverse else bisect_right(keys, bound)
        self.keys, self._values = keys[count:], values[count:]
        return zip(keys[:count], values[:count], strict=True)


def _home_keys(plugin: RedisPlugin, namespace: str) -> tuple[bytes, ...]:
    return *plugin.servers.script_keys(namespace), plugin.key(namespace, SHARDS).encode()


def _number(plugin: RedisPlugin, namespace: str, stored: bytes) -> int:
    """Return the number of shards in the server's answer. Raises CorruptValueError if hutch did not write it."""
    try:
        number = int(stored)
    except ValueError as error:
        if raised_by_handler(error):
            raise
        raise CorruptValueError(
            f"the number of shards of namespace {namespace!r} of the {plugin.name} storage (the server's key "
            f"{plugin.key(namespace, SHARDS)!r}) is not a number; something other than hutch wrote it"
        ) from None
    return number


def _compare(plugin: RedisPlugin, namespace: str, stored: int, count: int) -> None:
    if stored != count:
        raise ConfigError(
            f"namespace {namespace!r} of the {plugin.name} engine was made with shards={stored}, and the config says "
            f"shards={count}: the number stays as it was when the namespace was made. Set shards={stored}. To change "
            "it, copy the namespace to a store with another prefix"
        )
