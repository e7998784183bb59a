"""Verify integrity on a Redis server: compare values with listing and deadlines, and namespaces with their index."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING
from urllib.parse import unquote

from hutch import Finding

from .scripts import INDEXED, LISTED, NAMES, PARTS
from .servers import Shard
from .shards import SHARDS, claim, numbers_of, shard_of

if TYPE_CHECKING:
    from .server import Server
    from .servers import ShardName
    from .storage import RedisPlugin

_CHUNK_KEYS = 1000
# What LISTED finds, in its order.
_DRIFTS = (
    "it has a value, but no listing has it",
    "it is listed, but has no value",
    "its deadline is not in the index of deadlines",
    "it is in the index of deadlines, but has no deadline",
)
_GLOB = str.maketrans({char: f"\\{char}" for char in "\\*?[]^-"})


def verify(plugin: RedisPlugin, repair: bool) -> Iterator[Finding]:
    """Yield findings. One step on the server verifies, and with `repair` repairs, each key and each namespace."""
    stored = _with_values(plugin)
    namespaces = sorted({namespace for namespace, _ in stored})
    numbers = numbers_of(plugin, namespaces)
    for namespace in namespaces:
        shards = sorted(shard for name, shard in stored if name == namespace and shard is not None)
        count = numbers.get(namespace)
        if shards or count is not None:
            yield from _verify_shards(plugin, namespace, shards, count, repair)
        else:
            yield from _verify_index(plugin, namespace, repair)
            yield from _verify_listing(plugin, (namespace, None), repair)


def _with_values(plugin: RedisPlugin) -> set[ShardName]:
    """Return the namespaces and shards that have one of hutch's keys on the server, whether in the index or not."""
    return {name for server in plugin.servers.primaries().values() for name in _scan(server, plugin.prefix)}


def _scan(server: Server, prefix: str) -> set[ShardName]:
    start, end = f"{prefix}:{{", "}:"
    names: set[ShardName] = set()
    cursor: bytes | int = 0
    while True:
        pattern = f"{start.translate(_GLOB)}*{end}*"
        cursor, keys = server.call("SCAN", cursor, "MATCH", pattern, "COUNT", _CHUNK_KEYS)
        for key in keys:
            text, _, part = key.decode(errors="replace").removeprefix(start).rpartition(end)
            name, separator, place = text.partition("|")
            number, _, count = place.partition("/")
            if part in PARTS and (not separator or (number.isdecimal() and count.isdecimal())):
                names.add((unquote(name), Shard(int(number), int(count)) if separator else None))
        if int(cursor) == 0:
            return names


def _verify_shards(
    plugin: RedisPlugin, namespace: str, shards: list[Shard], count: int | None, repair: bool
) -> Iterator[Finding]:
    home = plugin.servers.home(namespace)
    if count is None:
        # With another number the config does not belong to this namespace.
        count = plugin.shards
        repaired = (
            repair and {shard.total for shard in shards} == {count} and claim(plugin, home, namespace, count) == count
        )
        yield Finding("orphan", "its shards have data, but their number is not stored", namespace, None, repaired)
    else:
        is_listed = plugin.server.call("SISMEMBER", plugin.index, namespace.encode())
        stored = home.call("EXISTS", plugin.key(namespace, PARTS[0]), plugin.key(namespace, SHARDS))
        if shards and not (is_listed and stored == 2):
            repaired = repair and claim(plugin, home, namespace, count) == count
            yield Finding("orphan", "it has data, but is not in the index of namespaces", namespace, None, repaired)
    for shard in shards:
        if shard.total != count:
            text = f"shard {shard.number} of {shard.total} has data, but the namespace has {count} shards"
            yield Finding("orphan", text, namespace)
        yield from _verify_listing(plugin, (namespace, shard), repair)


def _verify_index(plugin: RedisPlugin, namespace: str, repair: bool) -> Iterator[Finding]:
    servers, name = plugin.servers, namespace.encode()
    server, keys = servers.of(namespace), servers.script_keys(namespace)
    # On a cluster the script knows only a set of its own node. A write there adds to the index first.
    is_listed = keys[2] == plugin.index.encode() or servers.main.call("SISMEMBER", plugin.index, name)
    is_indexed = server.run(INDEXED, keys, (name, int(repair)), changes=repair)
    if not (is_listed and is_indexed):
        yield Finding("orphan", "it has data, but is not in the index of namespaces", namespace, None, repair)


def _verify_listing(plugin: RedisPlugin, name: ShardName, repair: bool) -> Iterator[Finding]:
    server, keys = plugin.servers.at(*name), plugin.servers.script_keys(*name)
    reported: set[tuple[bytes, str]] = set()
    for scan, number in ((b"HSCAN", 1), (b"ZSCAN", 2), (b"ZSCAN", 4)):
        cursor: bytes | int = 0
        while True:
            cursor, names = server.run(NAMES, keys, (scan, number, cursor))
            if names:
                yield from _misplaced(reported, names, name)
                drifted = server.run(LISTED, keys, (int(repair), *names), changes=repair)
                for text, names in zip(_DRIFTS, drifted, strict=True):
                    for key in names:
                        yield from _once(reported, key, name[0], text, repair)
            if int(cursor) == 0:
                break


def _misplaced(reported: set[tuple[bytes, str]], keys: list[bytes], name: ShardName) -> Iterator[Finding]:
    namespace, shard = name
    if shard is not None:
        for key in keys:
            place = shard_of(key, shard.total)
            if place != shard.number:
                text = f"it is in shard {shard.number}, but shard {place} is where {shard.total} shards have it"
                yield from _once(reported, key, namespace, text, False)


def _once(reported: set[tuple[bytes, str]], key: bytes, namespace: str, text: str, repair: bool) -> Iterator[Finding]:
    # A scan may return a key twice.
    if (key, text) not in reported:
        reported.add((key, text))
        yield Finding("index", text, namespace, key.decode(errors="backslashreplace"), repair)
