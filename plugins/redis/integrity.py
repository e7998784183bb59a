"""Verify integrity on a Redis server: compare values with listing and deadlines, and namespaces with their index."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING
from urllib.parse import unquote

from hutch import Finding

from .scripts import INDEXED, LISTED, NAMES, PARTS

if TYPE_CHECKING:
    from .server import Server
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
    for namespace in _with_values(plugin):
        yield from _verify_index(plugin, namespace, repair)
        yield from _verify_listing(plugin, namespace, repair)


def _with_values(plugin: RedisPlugin) -> list[str]:
    """Return the namespaces that have one of hutch's keys on the server, whether in the index or not."""
    return sorted({name for server in plugin.servers.primaries().values() for name in _scan(server, plugin.prefix)})


def _scan(server: Server, prefix: str) -> set[str]:
    start, end = f"{prefix}:{{", "}:"
    namespaces: set[str] = set()
    cursor: bytes | int = 0
    while True:
        pattern = f"{start.translate(_GLOB)}*{end}*"
        cursor, keys = server.call("SCAN", cursor, "MATCH", pattern, "COUNT", _CHUNK_KEYS)
        for key in keys:
            name, _, part = key.decode(errors="replace").removeprefix(start).rpartition(end)
            if part in PARTS:
                namespaces.add(unquote(name))
        if int(cursor) == 0:
            return namespaces


def _verify_index(plugin: RedisPlugin, namespace: str, repair: bool) -> Iterator[Finding]:
    servers, name = plugin.servers, namespace.encode()
    server, keys = servers.of(namespace), servers.script_keys(namespace)
    # On a cluster the script knows only a set of its own node. A write there adds to the index first.
    is_listed = keys[2] == plugin.index.encode() or servers.main.call("SISMEMBER", plugin.index, name)
    is_indexed = server.run(INDEXED, keys, (name, int(repair)), changes=repair)
    if not (is_listed and is_indexed):
        yield Finding("orphan", "it has data, but is not in the index of namespaces", namespace, None, repair)


def _verify_listing(plugin: RedisPlugin, namespace: str, repair: bool) -> Iterator[Finding]:
    server, keys = plugin.servers.of(namespace), plugin.servers.script_keys(namespace)
    reported: set[tuple[bytes, str]] = set()
    for scan, number in ((b"HSCAN", 1), (b"ZSCAN", 2), (b"ZSCAN", 4)):
        cursor: bytes | int = 0
        while True:
            cursor, names = server.run(NAMES, keys, (scan, number, cursor))
            if names:
                drifted = server.run(LISTED, keys, (int(repair), *names), changes=repair)
                for text, names in zip(_DRIFTS, drifted, strict=True):
                    for name in names:
                        yield from _once(reported, name, namespace, text, repair)
            if int(cursor) == 0:
                break


def _once(reported: set[tuple[bytes, str]], name: bytes, namespace: str, text: str, repair: bool) -> Iterator[Finding]:
    # A scan may return a key twice.
    if (name, text) not in reported:
        reported.add((name, text))
        yield Finding("index", text, namespace, name.decode(errors="backslashreplace"), repair)
