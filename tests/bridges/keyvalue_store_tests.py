"""The tests that py-key-value runs on each of its own stores, for `HutchStore`.

They are not in its package. Copied from tests/stores/base.py of https://github.com/strawgate/py-key-value (Apache 2.0),
with a shorter wait for an entry to expire; without its table of values, which tests/bridges/test_keyvalue.py has, and
without the test that a store forgets its oldest entries.
"""

from __future__ import annotations

import asyncio

import pytest
from key_value.aio.errors import InvalidTTLError, SerializationError
from pydantic import AnyHttpUrl

from hutch.bridges.keyvalue import HutchStore


class UpstreamStoreTests:
    async def test_empty_get(self, store: HutchStore) -> None:
        """Tests that the get method returns None from an empty store."""
        assert await store.get(collection="test", key="test") is None

    async def test_empty_put(self, store: HutchStore) -> None:
        """Tests that the put method does not raise an exception when called on a new store."""
        await store.put(collection="test", key="test", value={"test": "test"})

    async def test_empty_ttl(self, store: HutchStore) -> None:
        """Tests that the ttl method returns None from an empty store."""
        ttl = await store.ttl(collection="test", key="test")
        assert ttl == (None, None)

    async def test_put_serialization_errors(self, store: HutchStore) -> None:
        """Tests that the put method raises SerializationError for non-JSON-serializable Pydantic types."""
        with pytest.raises(SerializationError):
            await store.put(collection="test", key="test", value={"test": AnyHttpUrl("https://test.com")})

    async def test_get_put_get(self, store: HutchStore) -> None:
        assert await store.get(collection="test", key="test") is None
        await store.put(collection="test", key="test", value={"test": "test"})
        assert await store.get(collection="test", key="test") == {"test": "test"}

    async def test_put_many_get(self, store: HutchStore) -> None:
        await store.put_many(collection="test", keys=["test", "test_2"], values=[{"test": "test"}, {"test": "test_2"}])
        assert await store.get(collection="test", key="test") == {"test": "test"}
        assert await store.get(collection="test", key="test_2") == {"test": "test_2"}

    async def test_put_many_get_many(self, store: HutchStore) -> None:
        await store.put_many(collection="test", keys=["test", "test_2"], values=[{"test": "test"}, {"test": "test_2"}])
        assert await store.get_many(collection="test", keys=["test", "test_2"]) == [
            {"test": "test"},
            {"test": "test_2"},
        ]

    async def test_put_put_get_many(self, store: HutchStore) -> None:
        await store.put(collection="test", key="test", value={"test": "test"})
        await store.put(collection="test", key="test_2", value={"test": "test_2"})
        assert await store.get_many(collection="test", keys=["test", "test_2"]) == [
            {"test": "test"},
            {"test": "test_2"},
        ]

    async def test_put_put_get_many_missing_one(self, store: HutchStore) -> None:
        await store.put(collection="test", key="test", value={"test": "test"})
        await store.put(collection="test", key="test_2", value={"test": "test_2"})
        assert await store.get_many(collection="test", keys=["test", "test_2", "test_3"]) == [
            {"test": "test"},
            {"test": "test_2"},
            None,
        ]

    async def test_put_get_delete_get(self, store: HutchStore) -> None:
        await store.put(collection="test", key="test", value={"test": "test"})
        assert await store.get(collection="test", key="test") == {"test": "test"}
        assert await store.delete(collection="test", key="test")
        assert await store.get(collection="test", key="test") is None

    async def test_put_many_get_get_delete_many_get_many(self, store: HutchStore) -> None:
        await store.put_many(collection="test", keys=["test", "test_2"], values=[{"test": "test"}, {"test": "test_2"}])
        assert await store.get_many(collection="test", keys=["test", "test_2"]) == [
            {"test": "test"},
            {"test": "test_2"},
        ]
        assert await store.delete_many(collection="test", keys=["test", "test_2"]) == 2
        assert await store.get_many(collection="test", keys=["test", "test_2"]) == [None, None]

    async def test_put_many_get_many_delete_many_get_many(self, store: HutchStore) -> None:
        await store.put_many(collection="test", keys=["test", "test_2"], values=[{"test": "test"}, {"test": "test_2"}])
        assert await store.get_many(collection="test", keys=["test", "test_2"]) == [
            {"test": "test"},
            {"test": "test_2"},
        ]
        assert await store.delete_many(collection="test", keys=["test", "test_2"]) == 2
        assert await store.get_many(collection="test", keys=["test", "test_2"]) == [None, None]

    async def test_put_many_tuple_get_many(self, store: HutchStore) -> None:
        await store.put_many(collection="test", keys=["test", "test_2"], values=({"test": "test"}, {"test": "test_2"}))
        assert await store.get_many(collection="test", keys=["test", "test_2"]) == [
            {"test": "test"},
            {"test": "test_2"},
        ]

    async def test_delete(self, store: HutchStore) -> None:
        assert await store.delete(collection="test", key="test") is False

    async def test_put_delete_delete(self, store: HutchStore) -> None:
        await store.put(collection="test", key="test", value={"test": "test"})
        assert await store.delete(collection="test", key="test")
        assert await store.delete(collection="test", key="test") is False

    async def test_delete_many(self, store: HutchStore) -> None:
        assert await store.delete_many(collection="test", keys=["test", "test_2"]) == 0

    async def test_put_delete_many(self, store: HutchStore) -> None:
        await store.put(collection="test", key="test", value={"test": "test"})
        assert await store.delete_many(collection="test", keys=["test", "test_2"]) == 1

    async def test_delete_many_delete_many(self, store: HutchStore) -> None:
        await store.put(collection="test", key="test", value={"test": "test"})
        assert await store.delete_many(collection="test", keys=["test", "test_2"]) == 1
        assert await store.delete_many(collection="test", keys=["test", "test_2"]) == 0

    async def test_get_put_get_delete_get(self, store: HutchStore) -> None:
        """Tests that the get, put, delete, and get methods work together."""

        assert await store.get(collection="test", key="test") is None

        await store.put(collection="test", key="test", value={"test": "test"})

        assert await store.get(collection="test", key="test") == {"test": "test"}

        assert await store.delete(collection="test", key="test")

        assert await store.get(collection="test", key="test") is None

    async def test_get_put_get_put_delete_get(self, store: HutchStore) -> None:
        """Tests that the get, put, get, put, delete, and get methods work together."""
        await store.put(collection="test", key="test", value={"test": "test"})
        assert await store.get(collection="test", key="test") == {"test": "test"}

        await store.put(collection="test", key="test", value={"test": "test_2"})

        assert await store.get(collection="test", key="test") == {"test": "test_2"}
        assert await store.delete(collection="test", key="test")
        assert await store.get(collection="test", key="test") is None

    async def test_put_many_delete_delete_get_many(self, store: HutchStore) -> None:
        await store.put_many(collection="test", keys=["test", "test_2"], values=[{"test": "test"}, {"test": "test_2"}])
        assert await store.get_many(collection="test", keys=["test", "test_2"]) == [
            {"test": "test"},
            {"test": "test_2"},
        ]
        assert await store.delete(collection="test", key="test")
        assert await store.delete(collection="test", key="test_2")
        assert await store.get_many(collection="test", keys=["test", "test_2"]) == [None, None]

    async def test_put_ttl_get_ttl(self, store: HutchStore) -> None:
        """Tests that the put and get ttl methods work together to store and retrieve a ttl from an empty store."""
        await store.put(collection="test", key="test", value={"test": "test"}, ttl=100)
        value, ttl = await store.ttl(collection="test", key="test")

        assert value == {"test": "test"}
        assert ttl is not None
        assert 98 <= ttl <= 102, f"TTL should be ~100, but is {ttl}"

    async def test_negative_ttl(self, store: HutchStore) -> None:
        """Tests that a negative ttl will return None when getting the key."""
        with pytest.raises(InvalidTTLError):
            await store.put(collection="test", key="test", value={"test": "test"}, ttl=-100)

    async def test_put_expired_get_none(self, store: HutchStore) -> None:
        """Tests that a put call with a negative ttl will return None when getting the key."""
        await store.put(collection="test_collection", key="test_key", value={"test": "test"}, ttl=1)
        assert await store.get(collection="test_collection", key="test_key") is not None
        await asyncio.sleep(0.2)

        for _ in range(8):
            await asyncio.sleep(0.25)
            if await store.get(collection="test_collection", key="test_key") is None:
                # pass the test
                return

        pytest.fail("put_expired_get_none test failed, entry did not expire")

    async def test_long_collection_name(self, store: HutchStore) -> None:
        """Tests that a long collection name will not raise an error."""
        await store.put(collection="test_collection" * 100, key="test_key", value={"test": "test"})
        assert await store.get(collection="test_collection" * 100, key="test_key") == {"test": "test"}

    async def test_special_characters_in_collection_name(self, store: HutchStore) -> None:
        """Tests that a special characters in the collection name will not raise an error."""
        await store.put(collection="test_collection!@#$%^&*()", key="test_key", value={"test": "test"})
        assert await store.get(collection="test_collection!@#$%^&*()", key="test_key") == {"test": "test"}

    async def test_long_key_name(self, store: HutchStore) -> None:
        """Tests that a long key name will not raise an error."""
        await store.put(collection="test_collection", key="test_key" * 100, value={"test": "test"})
        assert await store.get(collection="test_collection", key="test_key" * 100) == {"test": "test"}

    async def test_special_characters_in_key_name(self, store: HutchStore) -> None:
        """Tests that a special characters in the key name will not raise an error."""
        await store.put(collection="test_collection", key="test_key!@#$%^&*()", value={"test": "test"})
        assert await store.get(collection="test_collection", key="test_key!@#$%^&*()") == {"test": "test"}

    async def test_concurrent_operations(self, store: HutchStore) -> None:
        """Tests that the store can handle concurrent operations."""

        async def worker(store: HutchStore, worker_id: int) -> None:
            for i in range(5):
                assert await store.get(collection="test_collection", key=f"test_{worker_id}_{i}") is None

                await store.put(collection="test_collection", key=f"test_{worker_id}_{i}", value={"test": f"test_{i}"})
                assert await store.get(collection="test_collection", key=f"test_{worker_id}_{i}") == {
                    "test": f"test_{i}"
                }

                await store.put(
                    collection="test_collection", key=f"test_{worker_id}_{i}", value={"test": f"test_{i}_2"}
                )
                assert await store.get(collection="test_collection", key=f"test_{worker_id}_{i}") == {
                    "test": f"test_{i}_2"
                }

                assert await store.delete(collection="test_collection", key=f"test_{worker_id}_{i}")
                assert await store.get(collection="test_collection", key=f"test_{worker_id}_{i}") is None

        _ = await asyncio.gather(*[worker(store, worker_id) for worker_id in range(3)])

    async def test_minimum_put_many_get_many_performance(self, store: HutchStore) -> None:
        """Tests that the store meets minimum performance requirements."""
        keys = [f"test_{i}" for i in range(10)]
        values = [{"test": f"test_{i}"} for i in range(10)]
        await store.put_many(collection="test_collection", keys=keys, values=values)
        assert await store.get_many(collection="test_collection", keys=keys) == values

    async def test_minimum_put_many_delete_many_performance(self, store: HutchStore) -> None:
        """Tests that the store meets minimum performance requirements."""
        keys = [f"test_{i}" for i in range(10)]
        values = [{"test": f"test_{i}"} for i in range(10)]
        await store.put_many(collection="test_collection", keys=keys, values=values)
