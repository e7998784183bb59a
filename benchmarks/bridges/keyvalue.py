"""Measure HutchStore beside py-key-value's own stores: python -m benchmarks.bridges.keyvalue.

DiskStore keeps its data in SQLite, with the same durability as hutch's sqlite engine, and reads and writes on the event
loop. So does HutchStore with `inline`; without it, the time includes a switch to a thread and back per call.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from key_value.aio.stores.disk import DiskStore
from key_value.aio.stores.memory import MemoryStore

from hutch.bridges.connections import close_shared
from hutch.bridges.keyvalue import HutchStore

from .side_by_side import Work, compare

_ENTRIES = 400
_BATCH = 100
_KEYS = [f"client/{number:04d}" for number in range(_ENTRIES)]
_BATCHES = [_KEYS[start : start + _BATCH] for start in range(0, _ENTRIES, _BATCH)]
_COLLECTION = "mcp-oauth-proxy-clients"
_VALUE = {
    "client_id": "7a6b0f3e-6d0e-4b4e-9d86-52c1c1b2f8a4",
    "redirect_uris": ["http://localhost:33418/callback"],
    "grant_types": ["authorization_code", "refresh_token"],
    "scope": "openid profile email",
    "issued_at": 1735689600,
    "metadata": {"name": "an MCP client", "version": 1.5, "logo": None},
}

Step = Callable[[Any], Awaitable[None]]


async def put(store: Any) -> None:
    for key in _KEYS:
        await store.put(key, _VALUE, collection=_COLLECTION)


async def put_with_ttl(store: Any) -> None:
    for key in _KEYS:
        await store.put(key, _VALUE, collection=_COLLECTION, ttl=3600)


async def get(store: Any) -> None:
    for key in _KEYS:
        await store.get(key, collection=_COLLECTION)


async def put_many(store: Any) -> None:
    for keys in _BATCHES:
        await store.put_many(keys, [_VALUE] * _BATCH, collection=_COLLECTION)


async def get_many(store: Any) -> None:
    for keys in _BATCHES:
        await store.get_many(keys, collection=_COLLECTION)


def work(open_store: Callable[[Path], Any], measured: Step) -> Work:
    """Return work that runs `measured` on a store with all entries, and validates the store's content afterwards."""

    async def run(folder: Path) -> float:
        store = open_store(folder)
        await put_many(store)
        begun = time.perf_counter()
        await measured(store)
        took_s = time.perf_counter() - begun
        assert await store.get_many(_KEYS, collection=_COLLECTION) == [_VALUE] * _ENTRIES
        if not isinstance(store, MemoryStore):
            await store.close()
        return took_s

    def once(folder: Path) -> float:
        try:
            return asyncio.run(run(folder))
        finally:
            close_shared()

    return once


def disk(folder: Path) -> Any:
    return DiskStore(directory=folder / "disk")


def sqlite(folder: Path) -> Any:
    return HutchStore(f"sqlite://{(folder / 'store.db').as_posix()}")


def sqlite_inline(folder: Path) -> Any:
    return HutchStore(f"sqlite://{(folder / 'store.db').as_posix()}", inline=True)


def lmdb_inline(folder: Path) -> Any:
    return HutchStore(f"lmdb://{(folder / 'store').as_posix()}", inline=True)


def memory(folder: Path) -> Any:
    return MemoryStore()


def memory_inline(folder: Path) -> Any:
    return HutchStore("memory://", inline=True)


def main() -> None:
    for message, step, ours, yardstick, theirs, limit in (
        ("put, sqlite, inline", put, sqlite_inline, "DiskStore", disk, 1.0),
        ("put with a ttl, sqlite, inline", put_with_ttl, sqlite_inline, "DiskStore", disk, 1.0),
        ("get, sqlite, inline", get, sqlite_inline, "DiskStore", disk, 1.0),
        ("get, lmdb, inline", get, lmdb_inline, "DiskStore", disk, 1.0),
        (f"put_many of {_BATCH}, sqlite", put_many, sqlite, "DiskStore", disk, 1.0),
        (f"get_many of {_BATCH}, sqlite", get_many, sqlite, "DiskStore", disk, 1.0),
        # The cost of not making the loop wait for the disk, as DiskStore does.
        ("put, sqlite, in a thread", put, sqlite, "DiskStore, on the loop", disk, 3.0),
        ("get, sqlite, in a thread", get, sqlite, "DiskStore, on the loop", disk, 4.0),
        ("put, memory, inline", put, memory_inline, "MemoryStore", memory, 1.0),
        ("get, memory, inline", get, memory_inline, "MemoryStore", memory, 1.0),
    ):
        compare("py-key-value", message, yardstick, work(ours, step), work(theirs, step), limit=limit)


if __name__ == "__main__":
    main()
