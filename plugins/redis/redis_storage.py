"""The redis engine: a standalone server; a hash of values and a sorted set of keys for each namespace.

`docs/redis.md` says what lies under which key of the server, and why.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from pathlib import Path
from typing import ClassVar, TypeVar
from urllib.parse import quote

from hutch import ConfigError, CorruptValueError, EncodedStorage, Finding, Option, StoragePluginBase, StoreError

from .redis_address import connector
from .redis_check import check
from .redis_scripts import CLEAR, DELETE, RANGE, SWAP, WRITE
from .redis_server import Server

T = TypeVar("T")

# One chunk of an iteration: the server does nothing else meanwhile, and this process holds that much.
_CHUNK_KEYS = 1000
_FIRST_CHUNK_KEYS = 32
_CHUNK_BYTES = 1024 * 1024
# Items in one command of a batch. Servers before Redis 7 take about a million arguments.
_BATCH = 100_000


class RedisPlugin(StoragePluginBase):
    """`redis://`, `rediss://` (TLS) and `unix://`: a namespace is shared by all who use the same server and prefix.

    Built, it has reached the server: StorageUnavailableError or StorageTimeoutError if there is none, or it refuses
    the login. A lost connection is made anew, up to `retries` times in each call; the next call starts afresh.
    `durable` is declared if the server says, while this is built, that it writes every change to disk before it
    answers.
    """

    OPTIONS: ClassVar[Mapping[str, Option]] = {
        "url": Option(
            str,
            default="redis://localhost:6379/0",
            secret=True,
            help="redis://user:password@host:port/database, rediss:// for TLS, or unix://user:password@/path/of/socket",
        ),
        "prefix": Option(str, default="hutch", help="how the names of all keys start that are used on the server"),
        "db": Option(int, minimum=0, help="the number of the database, if the url does not give it; default 0"),
        "username": Option(str, secret=True, help="if the url does not give it"),
        "password": Option(str, secret=True, help="if the url does not give it"),
        "connect_timeout_s": Option(float, default=5.0, minimum=0.01, maximum=86400, help="longest wait to connect"),
        "timeout_s": Option(
            float, default=10.0, minimum=0.01, maximum=86400, help="longest wait for one answer of the server"
        ),
        "retries": Option(
            int,
            default=5,
            minimum=0,
            maximum=1000,
            help="how often to try again after a lost connection, at once, then after 0.05 s, 0.1 s ... at most 1 s; "
            "0 never",
        ),
        "ca_file": Option(Path, help="PEM file of the authorities to trust; default those of the system"),
        "cert_file": Option(Path, help="PEM file of the client's own certificate, if the server asks for one"),
        "key_file": Option(Path, help="PEM file of that certificate's key, if it is not in cert_file"),
        "verify": Option(bool, default=True, help="false accepts any server: whoever is between reads everything"),
    }
    capabilities = frozenset({"ordered", "atomic-batch", "atomic-modify", "atomic-modify:cluster", "shared"})

    def __init__(self, config: object = None) -> None:
        super().__init__(config)
        options = self._storage_config
        self.prefix: str = options["prefix"]
        # Without a brace of its own, the first one in a name starts the namespace, also for Redis Cluster.
        if not self.prefix or not self.prefix.isprintable() or set(self.prefix) & set("{} "):
            raise ConfigError("option 'prefix' of the redis engine must be printable text without blanks and braces")
        make, self.where = connector(options)
        self.server = Server(make, self.where, options["retries"])
        # Who names a server that is not there is told at once, and not by the first read, who knows where.
        self.server.call("PING")
        if self._writes_through():
            self.capabilities |= {"durable"}

    def open(self, namespace: str) -> RedisStorage:
        return RedisStorage(self, namespace)

    def namespaces(self) -> list[str]:
        # Names are added to the index in the step that writes; one whose keys were all removed may still be there.
        named: set[bytes] = set()
        cursor: bytes | int = 0
        while True:
            cursor, found = self.server.call("SSCAN", self.index, cursor, "COUNT", _CHUNK_KEYS)
            named.update(found)
            if int(cursor) == 0:
                break
        names = self._names(named)
        return [name for chunk in _chunks(names, _CHUNK_KEYS) for name in self._with_data(chunk)]

    def check(self, fix: bool = False) -> Iterator[Finding]:
        return check(self, fix)

    def close(self) -> None:
        self.server.close()

    @property
    def index(self) -> str:
        """The key of the set of all names of namespaces."""
        return f"{self.prefix}:namespaces"

    def key(self, namespace: str, part: str) -> str:
        """The key of a part of `namespace`: the name in braces, what is no letter, digit or one of ``_.-~`` as %XX."""
        return f"{self.prefix}:{{{quote(namespace, safe='')}}}:{part}"

    def _names(self, raw: set[bytes]) -> list[str]:
        try:
            return [name.decode() for name in raw]
        except UnicodeDecodeError as error:
            raise CorruptValueError(
                f"the set {self.index!r} on {self.where} holds a name that is not UTF-8; something other than hutch "
                "wrote it"
            ) from error

    def _with_data(self, names: list[str]) -> list[str]:
        there = self.server.exchange([("EXISTS", self.key(name, "values")) for name in names])
        return [name for name, is_there in zip(names, there, strict=True) if is_there]

    def _writes_through(self) -> bool:
        try:
            persistence = self.server.call("INFO", "persistence")
            if b"aof_enabled:1" not in persistence:
                return False
            return bool(self.server.call("CONFIG", "GET", "appendfsync") == [b"appendfsync", b"always"])
        except StoreError:
            # Hosted servers refuse CONFIG; then nothing is known, and nothing is promised.
            return False


class RedisStorage(EncodedStorage):
    """One namespace. Any thread and process may use it; every write and every batch is one step on the server."""

    def __init__(self, plugin: RedisPlugin, namespace: str) -> None:
        super().__init__(plugin, namespace)
        self._server = plugin.server
        self._name = namespace.encode()
        self._values, self._order = (plugin.key(namespace, part).encode() for part in ("values", "order"))
        self._keys = (self._values, self._order, plugin.index.encode())
        self._scope = (plugin.where, plugin.prefix, namespace)

    def read(self, key: str) -> bytes | None:
        data: bytes | None = self._server.call(b"HGET", self._values, key.encode())
        return data

    def write(self, key: str, data: bytes) -> None:
        self._server.run(WRITE, self._keys, (self._name, key.encode(), data), changes=True)

    def delete(self, key: str) -> bool:
        # Asked again after a lost answer, the server would say that the key is not there.
        return bool(self._server.run(DELETE, self._keys, (key.encode(),), changes=True, again=False))

    def len(self) -> int:
        return int(self._server.call(b"HLEN", self._values))

    def keys(self) -> Iterator[str]:
        return self.key_range(None, None, False)

    def close(self) -> None:
        # Nothing is held here: a write that returned is on the server.
        pass

    def exists(self, key: str) -> bool:
        return bool(self._server.call(b"HEXISTS", self._values, key.encode()))

    def read_many(self, keys: list[str]) -> dict[str, bytes]:
        if not keys:
            return {}
        chunks = _chunks([key.encode() for key in keys], _BATCH)
        found = self._server.transaction([(b"HMGET", self._values, *chunk) for chunk in chunks])
        data = (one for chunk in found for one in chunk)
        return {key: one for key, one in zip(keys, data, strict=True) if one is not None}

    def write_many(self, items: Mapping[str, bytes]) -> None:
        pairs = [part for key, data in items.items() for part in (key.encode(), data)]
        self._server.transaction(
            [WRITE.in_full(self._keys, (self._name, *chunk)) for chunk in _chunks(pairs, 2 * _BATCH)], changes=True
        )

    def delete_many(self, keys: list[str]) -> int:
        chunks = _chunks([key.encode() for key in keys], _BATCH)
        commands = [DELETE.in_full(self._keys, chunk) for chunk in chunks]
        return sum(self._server.transaction(commands, changes=True, again=False))

    def read_range(self, start: str | None, stop: str | None, reverse: bool) -> Iterator[tuple[str, bytes]]:
        bounds = _Bounds(start, stop, reverse)
        for most in _growing():
            behind, found = self._server.run(RANGE, self._keys, (*bounds.command(), most, _CHUNK_BYTES))
            for key, data in zip(found[::2], found[1::2], strict=True):
                yield self._decoded_key(key), data
            if behind is None:
                return
            bounds.go_on_behind(behind)

    def key_range(self, start: str | None, stop: str | None, reverse: bool) -> Iterator[str]:
        bounds = _Bounds(start, stop, reverse)
        for most in _growing():
            command, low, high = bounds.command()
            found = self._server.call(command, self._order, low, high, b"LIMIT", 0, most)
            yield from map(self._decoded_key, found)
            if len(found) < most:
                return
            bounds.go_on_behind(found[-1])

    def clear(self) -> None:
        self._server.run(CLEAR, self._keys, (self._name,), changes=True)

    def swap(self, key: str, old: bytes | None, new: bytes | None) -> bool:
        arguments = (self._name, key.encode(), int(old is not None), old or b"", int(new is not None), new or b"")
        return bool(self._server.run(SWAP, self._keys, arguments, changes=True, again=False))

    @property
    def lock_scope(self) -> Hashable:
        return self._scope

    def _decoded_key(self, key: bytes) -> str:
        try:
            return key.decode()
        except UnicodeDecodeError as error:
            raise CorruptValueError(
                f"namespace {self.namespace!r} of the {self._plugin.name} storage holds a key that is not UTF-8; "
                "something other than hutch wrote it"
            ) from error


class _Bounds:
    """A range of keys as ZRANGEBYLEX wants it: ``[`` is with, ``(`` is without."""

    def __init__(self, start: str | None, stop: str | None, reverse: bool) -> None:
        # A bound need not be a key: it may hold a lone surrogate, which sorts where its code point does.
        self._low = b"-" if start is None else b"[" + start.encode(errors="surrogatepass")
        self._high = b"+" if stop is None else b"(" + stop.encode(errors="surrogatepass")
        self._reverse = reverse

    def command(self) -> tuple[bytes, bytes, bytes]:
        if self._reverse:
            return b"ZREVRANGEBYLEX", self._high, self._low
        return b"ZRANGEBYLEX", self._low, self._high

    def go_on_behind(self, key: bytes) -> None:
        if self._reverse:
            self._high = b"(" + key
        else:
            self._low = b"(" + key


def _growing() -> Iterator[int]:
    """How many keys to ask for: few at first, for who wants one does not want a thousand."""
    most = _FIRST_CHUNK_KEYS
    while True:
        yield most
        most = min(most * 4, _CHUNK_KEYS)


def _chunks(items: list[T], size: int) -> list[list[T]]:
    return [items[i : i + size] for i in range(0, len(items), size)]
