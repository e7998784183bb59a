"""Test transactions of hutch.aio: the same as the blocking ones, awaited."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

import hutch
import hutch.aio

Run = Callable[[Callable[[hutch.aio.Store], Awaitable[None]]], None]
URLS = ["memory://", "lmdb://{}/data", "sqlite://{}/kv.db"]


@pytest.fixture(params=URLS, ids=["memory", "lmdb", "sqlite"])
def run(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Callable[[Callable[[hutch.aio.Store], Awaitable[None]]], None]:
    """Return a function that runs a coroutine function with a store."""

    def run(test: Callable[[hutch.aio.Store], Awaitable[None]]) -> None:
        async def main() -> None:
            async with hutch.aio.connect(request.param.format(tmp_path)) as store:
                await test(store)

        asyncio.run(main())

    return run


def test_a_transaction_commits_all_its_changes(run: Run) -> None:
    async def test(store: hutch.aio.Store) -> None:
        a, b = await store["a"], await store["b"]
        await a.update({"x": 1, "y": 2})
        async with store.transaction() as tx:
            await tx["a"].set("x", await tx["a"]["x"] + 10)
            await tx["a"].remove("y")
            await tx["b"].set("k", [await tx["a"].get("x"), await tx["a"].contains("y")])
            assert [item async for item in tx["a"].scan()] == [("x", 11)]
            assert [key async for key in tx["b"].scan_keys()] == ["k"]
            assert await b.len() == 0
        assert (await a["x"], await a.contains("y"), await b["k"]) == (11, False, [11, False])
        async with a.transaction() as one:
            await one.set("x", await one.get("x") + 1)
        assert await a["x"] == 12

    run(test)


def test_a_conflict_names_the_key_and_a_block_that_raises_writes_nothing(run: Run) -> None:
    async def test(store: hutch.aio.Store) -> None:
        async def conflict() -> None:
            async with store.transaction() as tx:
                await tx["a"].get("x")
                await tx["b"].set("k", 1)
                await (await store["a"]).set("x", 1)

        async def fail() -> None:
            async with store.transaction() as tx:
                await tx["b"].set("k", 1 // 0)

        with pytest.raises(hutch.ConflictError, match="'x' of namespace 'a'"):
            await conflict()
        with pytest.raises(ZeroDivisionError):
            await fail()
        assert await (await store["b"]).len() == 0

    run(test)


def test_a_cancelled_block_writes_nothing(run: Run) -> None:
    async def test(store: hutch.aio.Store) -> None:
        async def block() -> None:
            async with store.transaction() as tx:
                await tx["a"].set("k", 1)
                await asyncio.sleep(60)

        task = asyncio.create_task(block())
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await (await store["a"]).len() == 0
        async with store.transaction() as tx:
            await tx["a"].set("k", 2)

    run(test)


def test_transact_counts_every_increment_of_many_tasks(run: Run) -> None:
    async def test(store: hutch.aio.Store) -> None:
        async def increment(tx: hutch.aio.Transaction) -> int:
            count: int = await tx["a"].get("count", 0) + 1
            await tx["a"].set("count", count)
            return count

        counts = await asyncio.gather(*[store.transact(increment) for _ in range(20)])
        assert sorted(counts) == list(range(1, 21))

    run(test)


def test_transact_takes_an_async_function_and_raises_what_it_raises() -> None:
    async def main() -> None:
        async with hutch.aio.connect("memory://") as store:
            plain: Any = lambda tx: None  # noqa: E731 - the mistake
            with pytest.raises(TypeError, match="async function"):
                await store.transact(plain)

            async def fail(tx: hutch.aio.Transaction) -> None:
                await tx["a"].set("k", 1)
                raise ValueError("mine")

            with pytest.raises(ValueError, match="mine"):
                await store.transact(fail)
            assert await (await store["a"]).len() == 0

    asyncio.run(main())


def test_misuse_is_a_clear_error() -> None:
    async def main() -> None:
        async with hutch.aio.connect("memory://") as store:
            with pytest.raises(TypeError, match="async with"), store.transaction():
                pass
            async with store.transaction() as tx:
                use: Any = tx["a"]
                with pytest.raises(TypeError, match=r"await tx\[name\]"):
                    use["k"] = 1
                with pytest.raises(TypeError, match=r"await tx\[name\]"):
                    "k" in use  # noqa: B015 - the mistake
                with pytest.raises(hutch.StoreAlreadyOpenError, match="inside another"):
                    async with store.transaction():
                        pass
                # The tasks of the block share it.
                found = await asyncio.gather(tx["a"].get("x"), tx["a"].get("y"))
                assert list(found) == [None, None]
            with pytest.raises(hutch.StoreNotOpenError, match="has ended"):
                await tx["a"].get("k")
        with pytest.raises(hutch.StoreNotOpenError):
            store.transaction()

    asyncio.run(main())


def test_without_the_capability_nothing_begins(tmp_path: Path) -> None:
    async def main() -> None:
        async with hutch.aio.connect(f"shelf://{tmp_path}") as store:
            with pytest.raises(hutch.CapabilityError, match="atomic-store"):
                store.transaction()
            with pytest.raises(hutch.CapabilityError, match="atomic-batch"):
                (await store["a"]).transaction()

    asyncio.run(main())
