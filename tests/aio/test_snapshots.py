"""Test snapshots of hutch.aio."""

from __future__ import annotations

import asyncio

import pytest

import hutch
import hutch.aio


def test_a_snapshot_is_awaited_and_never_changes() -> None:
    async def main() -> None:
        async with hutch.aio.connect("memory://") as store, store.open("core") as core:
            await core.set("k", 1)
            async with store.snapshot() as snap:
                await core.set("k", 2)
                old = await snap["core"]
                assert (await old.get("k"), await old.len(), await snap.namespaces()) == (1, 1, ["core"])
                assert [item async for item in old.items()] == [("k", 1)]
                with pytest.raises(hutch.CapabilityError, match="snapshot"):
                    await old.set("k", 3)
            with pytest.raises(hutch.StoreNotOpenError):
                await old.get("k")
            with pytest.raises(hutch.StoreNotOpenError):
                await snap["core"]
            assert await core.get("k") == 2

    asyncio.run(main())
