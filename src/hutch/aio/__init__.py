"""The same surface for asyncio: stores and namespaces whose verbs are awaited.

    async with hutch.aio.connect("lmdb://state") as store, store.open("core") as core:
        await core.set("plugins", {"Help", "Health"})

It is the store of `hutch.connect`, called in a few threads of its own, so the event loop never waits for a disk or
a server, and every promise and every error is the same.

A cancelled write that was still in line did not happen. One that had begun is finished first, and only then is the
CancelledError raised: it happened or not, nothing of it comes later. A cancelled read is left to itself.
"""

from .namespace import Namespace
from .store import Opening, Store, connect

__all__ = ["Namespace", "Opening", "Store", "connect"]
