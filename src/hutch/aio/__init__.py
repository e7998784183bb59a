"""The same surface for asyncio: stores and namespaces whose verbs are awaited.

    async with hutch.aio.connect("lmdb://state") as store, store.open("core") as core:
        await core.set("plugins", {"Help", "Health"})

It is the store of `hutch.connect`, called in a few threads of its own, so the event loop never waits for a disk or
a server, and every promise and every error is the same. Any event loop may use it.

A caller that is cancelled is let go at once. Its call is withdrawn if it had not begun. A write that had begun happens
or not; a later write of the same key through the same handle comes after it.
"""

from .namespace import Namespace
from .store import Opening, Store, connect

__all__ = ["Namespace", "Opening", "Store", "connect"]
