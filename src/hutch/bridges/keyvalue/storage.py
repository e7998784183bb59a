"""A store for py-key-value, and so for FastMCP, on any engine of hutch. `entries` describes what it stores."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Final, Self, SupportsFloat, TypeVar

import hutch

from ..connections import shared_calls, shared_namespace, shared_store

try:
    from key_value.aio.errors import DeserializationError, SerializationError

    from .entries import (
        HASHED,
        collection_prefix,
        entry_key,
        expiry,
        full_name,
        has_expired,
        to_json_types,
        unescape_collection,
        value_and_ttl,
    )
except ImportError as error:
    raise ImportError(
        "hutch.bridges.keyvalue needs py-key-value-aio, 0.4.6 or later and below 0.6; "
        "pip install 'py-key-value-aio>=0.4.6,<0.6', or FastMCP, which brings it"
    ) from error

T = TypeVar("T")

# After so many writes with a ttl, remove expired entries.
_WRITES_PER_SWEEP: Final = 16


class HutchStore:
    """An `AsyncKeyValue` of py-key-value that also lists keys and collections, culls, and can be destroyed.

    `url` names the storage as for `hutch.connect`, optionally prefixed with ``hutch://``; ``${NAME}`` in it is taken
    from the environment; None selects `$HUTCH_STORAGE` and so on. Stores of one process with one URL share a
    connection. `namespace` is where all entries are stored: stores with different namespaces are separate.

    A value comes back as from the other stores of py-key-value: as JSON would return it. With `exact_types` it keeps
    its types, a datetime for example; a value that hutch's codec does not take is refused.

    Calls run in a few threads that all bridges share, so the event loop never waits for a disk or a server. With
    `inline`, everything except listing, culling and destroying runs on the loop itself, as in DiskStore, which saves
    some 40 us per call. Use it for data in memory; with any other engine, everything on the loop waits for each call.

    Any loop, thread and process may use it. What a call wrote is stored when it returns, as durably as the engine is
    configured; `put_many`, `delete_many`, `destroy_collection` and `destroy` are atomic where the engine has
    `atomic-batch`, as every engine has that processes can share. A cancelled caller returns at once: a call that had
    not begun never happens; a write that had begun may or may not happen, and later writes of its keys come after it.

    Raises SerializationError, DeserializationError, InvalidKeyError and InvalidTTLError as other stores do, TypeError
    for a key or value of a wrong type, and otherwise what hutch raises: an unreachable server is a
    `hutch.StorageUnavailableError`, which is a ConnectionError. The constructor raises what `hutch.connect` raises.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        namespace: str = "keyvalue",
        default_collection: str = "default_collection",
        exact_types: bool = False,
        inline: bool = False,
    ) -> None:
        self.default_collection = default_collection
        self._exact_types = exact_types
        self._inline = inline
        self._entries = shared_namespace(url, namespace)
        self._calls = shared_calls(self._entries, shared_store(url))
        self._is_ordered = "ordered" in self._entries.capabilities
        self._has_ttl = "ttl" in self._entries.capabilities
        # The first write of a process sweeps, because short processes may never reach the interval.
        self._unswept = self._writes_per_sweep = _WRITES_PER_SWEEP

    def __repr__(self) -> str:
        return f"<{type(self).__name__} in namespace {self._entries.namespace!r}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Do nothing: everything is stored already, and the connection belongs to the process."""

    # --- reading ---

    async def get(self, key: str, *, collection: str | None = None) -> dict[str, Any] | None:
        """Return the value of `key`, fresh; None if it is missing or expired."""
        return (await self.ttl(key, collection=collection))[0]

    async def ttl(self, key: str, *, collection: str | None = None) -> tuple[dict[str, Any] | None, float | None]:
        """Return the value of `key` and its seconds left, None if it never expires; (None, None) if missing."""
        return value_and_ttl(await self._read(self._entries.get, self._name(collection, key)))

    async def get_many(self, keys: Sequence[str], *, collection: str | None = None) -> list[dict[str, Any] | None]:
        """Return what `get` returns for each of `keys`, in one read where the engine can."""
        return [value for value, _ in await self.ttl_many(keys, collection=collection)]

    async def ttl_many(
        self, keys: Sequence[str], *, collection: str | None = None
    ) -> list[tuple[dict[str, Any] | None, float | None]]:
        """Return what `ttl` returns for each of `keys`, in one read where the engine can."""
        names = [self._name(collection, key) for key in keys]
        entries = await self._read(self._entries.get_many, names)
        return [value_and_ttl(entries.get(name)) for name in names]

    async def keys(self, collection: str | None = None, *, limit: int | None = None) -> list[str]:
        """Return the keys of a collection that have not expired: all of them or the first `limit`."""
        return await self._calls.read(_call, self._keys, self._prefix(collection), limit)

    async def collections(self, *, limit: int | None = None) -> list[str]:
        """Return the collections that hold a key: all of them or the first `limit`."""
        return await self._calls.read(_call, self._collections, limit)

    # --- writing ---

    async def put(
        self, key: str, value: Mapping[str, Any], *, collection: str | None = None, ttl: SupportsFloat | None = None
    ) -> None:
        """Set `key` to `value`, atomically, for `ttl` seconds or without expiry.

        Raises SerializationError for a value that cannot be stored, InvalidTTLError for a ttl that is not a number
        above 0.
        """
        await self.put_many([key], [value], collection=collection, ttl=ttl)

    async def put_many(
        self,
        keys: Sequence[str],
        values: Sequence[Mapping[str, Any]],
        *,
        collection: str | None = None,
        ttl: SupportsFloat | None = None,
    ) -> None:
        """Set each of `keys` to the value at the same position, as one batch: all or none.

        The last of equal keys counts.

        Raises what `put` raises, and ValueError if there are not as many values as keys; then nothing is set.
        """
        if len(keys) != len(values):
            raise ValueError(f"put_many was called with {len(keys)} keys and {len(values)} values")
        expires_at = expiry(ttl)
        items: dict[str, Any] = {}
        for key, value in zip(keys, values, strict=True):
            name = self._name(collection, key)
            entry: dict[str, Any] = {"value": to_json_types(value, exact_types=self._exact_types)}
            if expires_at is not None:
                entry["expires_at"] = expires_at
            if HASHED in name:
                entry |= {"collection": collection or self.default_collection, "key": key}
            items[name] = entry
        if items:
            ttl_s = math.inf if ttl is None else float(ttl)
            await self._write(tuple(items), functools.partial(self._set, ttl_s), items)

    async def delete(self, key: str, *, collection: str | None = None) -> bool:
        """Remove `key`; return whether it was there. Of several concurrent calls, one returns True."""
        return bool(await self.delete_many([key], collection=collection))

    async def delete_many(self, keys: Sequence[str], *, collection: str | None = None) -> int:
        """Remove `keys` as one batch; return how many were there."""
        names = [self._name(collection, key) for key in keys]
        return await self._write(tuple(names), self._remove, names)

    async def cull(self) -> None:
        """Remove all expired entries. An entry that is put again meanwhile stays."""
        await self._calls.write((), _call, self._cull)

    async def destroy_collection(self, collection: str) -> bool:
        """Remove a whole collection as one batch; return whether it held anything."""
        return await self._calls.write(None, _call, self._destroy_collection, self._prefix(collection))

    async def destroy(self) -> bool:
        """Remove all collections atomically. Returns True."""
        await self._calls.write(None, _call, self._entries.clear)
        return True

    # --- names and values ---

    def _prefix(self, collection: str | None) -> str:
        name = collection or self.default_collection
        if not isinstance(name, str):
            raise TypeError(f"a collection is a str, not {type(name).__name__}")
        return collection_prefix(name)

    def _name(self, collection: str | None, key: str) -> str:
        """Return the key of an entry."""
        if not isinstance(key, str):
            raise TypeError(f"a key is a str, not {type(key).__name__}")
        return entry_key(self._prefix(collection), key)

    # --- in the thread ---

    def _set(self, ttl_s: float, items: dict[str, Any]) -> None:
        engine_ttl_s = ttl_s if self._has_ttl else None
        if len(items) == 1:
            ((name, entry),) = items.items()
            self._entries.set(name, entry, ttl_s=engine_ttl_s)
        else:
            self._entries.set_many(items, ttl_s=engine_ttl_s)
        if not self._has_ttl and ttl_s != math.inf:
            self._sweep(len(items))

    def _sweep(self, writes: int) -> None:
        """Remove expired entries now and then, where the engine does not: finding them reads all entries."""
        self._unswept += writes
        if self._unswept >= self._writes_per_sweep:
            self._unswept = 0
            self._writes_per_sweep = max(_WRITES_PER_SWEEP, len(self._entries) // 4)
            # The requested write is done. If this fails, a later sweep finds what is left.
            with suppress(hutch.StoreError):
                self._cull()

    def _remove(self, names: list[str]) -> int:
        if self._has_ttl:
            return self._entries.remove_many(names)
        try:
            entries = self._entries.get_many(names)
            expired = {name for name, entry in entries.items() if has_expired(entry)}
        except hutch.CorruptValueError:
            entries = dict.fromkeys(names)
            expired = set(filter(self._is_expired, names))
        for name in expired:
            self._remove_expired(name)
        return self._entries.remove_many(entries.keys() - expired)

    def _is_expired(self, name: str) -> bool:
        try:
            entry = self._entries.get(name)
        except hutch.CorruptValueError:
            return False  # `get` reports a damaged entry; it can still be replaced or deleted
        return entry is not None and has_expired(entry)

    def _remove_expired(self, name: str) -> None:
        """Remove an entry atomically, unless it was put again by any process or cannot be read."""
        with suppress(KeyError, _NotExpiredError, hutch.CorruptValueError):
            self._entries.modify(name, _missing_if_expired)

    def _cull(self) -> None:
        if self._has_ttl:
            self._entries.expire()
        for name in self._expired_names():
            self._remove_expired(name)

    def _expired_names(self, prefix: str = "") -> set[str]:
        """Return the names of the expired entries that the engine still lists."""
        if self._has_ttl:
            return set()
        # One by one: a value may be large.
        return set(filter(self._is_expired, self._entries.scan_keys(prefix)))

    def _keys(self, prefix: str, limit: int | None) -> list[str]:
        expired = self._expired_names(prefix)
        names = (name for name in self._entries.scan_keys(prefix) if name not in expired)
        return list(itertools.islice(self._decoded_keys(prefix, names), limit))

    def _decoded_keys(self, prefix: str, names: Iterable[str]) -> Iterator[str]:
        for name in names:
            key = name.removeprefix(prefix)
            if not key.startswith(HASHED):
                yield key[1:] if key.startswith("%") else key
            elif (entry := self._entries.get(name)) is not None:
                yield full_name(entry, "key")

    def _collections(self, limit: int | None) -> list[str]:
        expired = self._expired_names()
        collections: list[str] = []
        names, start = self._entries.scan_keys(), ""
        while limit is None or len(collections) < limit:
            name = next((name for name in names if name >= start and name not in expired), None)
            if name is None:
                break
            collection = name.partition(":")[0]
            if collection.startswith(HASHED):
                entry = self._entries.get(name)
                if entry is None:
                    continue  # removed meanwhile; the collection may have others
                collections.append(full_name(entry, "collection"))
            else:
                collections.append(unescape_collection(collection))
            # Skip every key that starts with "collection:", without reading them if the engine can.
            start = f"{collection};"
            if self._is_ordered:
                names = self._entries.scan_keys(start=start)
        return collections

    def _destroy_collection(self, prefix: str) -> bool:
        expired = self._expired_names(prefix)
        names = set(self._entries.scan_keys(prefix))
        self._entries.remove_many(names)
        return not expired.issuperset(names)

    # --- on the loop ---

    async def _read(self, verb: Callable[[Any], T], argument: Any) -> T:
        if self._inline:
            return _call(verb, argument)
        return await self._calls.read(_call, verb, argument)

    async def _write(self, names: tuple[str, ...], verb: Callable[[Any], T], argument: Any) -> T:
        if self._inline:
            return _call(verb, argument)
        return await self._calls.write(names, _call, verb, argument)


class _NotExpiredError(Exception):
    """Raised to end a `modify` without a change."""


def _call(verb: Callable[..., T], *arguments: Any) -> T:
    """Return ``verb(*arguments)``, raising py-key-value's errors in place of hutch's where it has its own."""
    try:
        return verb(*arguments)
    except (hutch.ValueTypeError, hutch.ValueLimitError) as error:
        raise SerializationError(str(error)) from error
    except hutch.CorruptValueError as error:
        raise DeserializationError(str(error)) from error


def _missing_if_expired(entry: Any) -> Any:
    if has_expired(entry):
        return hutch.MISSING
    raise _NotExpiredError
