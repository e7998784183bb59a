"""The asyncio surface: stores and namespaces whose verbs are awaited.

    async with hutch.aio.connect("lmdb://state") as store, store.open("core") as core:
        await core.set("plugins", {"Help", "Health"})

It calls the store of `hutch.connect` in a few threads of its own, so the event loop never waits for a disk or a
server, and every promise and every error is the same. Any event loop may use it.

A cancelled caller returns at once. Its call is withdrawn if it had not begun. A write that had begun may or may not
happen; a later write of the same key through the same handle is ordered after it.
"""

from .namespace import Namespace
from .store import Opening, Store, connect
from .transactions import Transaction

__all__ = ["Namespace", "Opening", "Store", "Transaction", "connect"]
