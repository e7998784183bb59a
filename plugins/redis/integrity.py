"""Verify integrity on a Redis server: compare values with the listing, and namespaces with their index."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING
from urllib.parse import unquote

from hutch import Finding

from .scripts import INDEXED, LISTED, NAMES

if TYPE_CHECKING:
    from .storage import RedisPlugin

_CHUNK_KEYS = 1000
_GLOB = str.maketrans({char: f"\\{char}" for char in "\\*?[]^-"})


def verify(plugin: RedisPlugin, repair: bool) -> Iterator[Finding]:
    """Yield findings. One step on the server verifies, and with `repair` repairs, each key and each namespace."""
    for namespace in _with_values(plugin):
        yield from _verify_index(plugin, namespace, repair)
        yield from _verify_listing(plugin, namespace, repair)


def _with_values(plugin: RedisPlugin) -> list[str]:
    """Return the namespaces that have one of hutch's keys on the server, whether in the index or not."""
    start, end = f"{plugin.prefix}:{{", "}:"
    namespaces: set[str] = set()
    cursor: bytes | int = 0
    while True:
        pattern = f"{start.translate(_GLOB)}*{end}*"
        cursor, keys = plugin.server.call("SCAN", cursor, "MATCH", pattern, "COUNT", _CHUNK_KEYS)
        for key in keys:
            name, _, part = key.decode(errors="replace").removeprefix(start).rpartition(end)
            if part in ("values", "order"):
                namespaces.add(unquote(name))
        if int(cursor) == 0:
            return sorted(namespaces)


def _verify_index(plugin: RedisPlugin, namespace: str, repair: bool) -> Iterator[Finding]:
    if not plugin.server.run(INDEXED, _keys(plugin, namespace), (namespace.encode(), int(repair)), changes=repair):
        yield Finding("orphan", "it has data, but is not in the index of namespaces", namespace, None, repair)


def _verify_listing(plugin: RedisPlugin, namespace: str, repair: bool) -> Iterator[Finding]:
    keys = _keys(plugin, namespace)
    reported: set[bytes] = set()
    for scan, number in ((b"HSCAN", 1), (b"ZSCAN", 2)):
        cursor: bytes | int = 0
        while True:
            cursor, names = plugin.server.run(NAMES, keys, (scan, number, cursor))
            if names:
                unlisted, valueless = plugin.server.run(LISTED, keys, (int(repair), *names), changes=repair)
                for name in unlisted:
                    yield from _once(reported, name, namespace, "it has a value, but no listing has it", repair)
                for name in valueless:
                    yield from _once(reported, name, namespace, "it is listed, but has no value", repair)
            if int(cursor) == 0:
                break


def _once(reported: set[bytes], name: bytes, namespace: str, text: str, repair: bool) -> Iterator[Finding]:
    # A scan may return a key twice.
    if name not in reported:
        reported.add(name)
        yield Finding("index", text, namespace, name.decode(errors="backslashreplace"), repair)


def _keys(plugin: RedisPlugin, namespace: str) -> tuple[bytes, bytes, bytes]:
    return plugin.key(namespace, "values").encode(), plugin.key(namespace, "order").encode(), plugin.index.encode()
