"""Test HutchStore on every engine: it keeps the promises of py-key-value, and FastMCP keeps its state in it."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import random
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

import pytest
from fastmcp import Client, FastMCP
from fastmcp.client.auth.oauth import TokenStorageAdapter
from fastmcp.exceptions import ToolError
from fastmcp.server.auth import OAuthProxy
from fastmcp.server.auth.providers.jwt import StaticTokenVerifier
from fastmcp.server.event_store import EventStore
from fastmcp.server.middleware.caching import CallToolSettings, ResponseCachingMiddleware
from fastmcp.server.sessions import SessionId, SessionProvider, get_session
from key_value.aio.errors import DeserializationError, InvalidKeyError, InvalidTTLError, SerializationError
from key_value.aio.protocols import key_value as protocols
from key_value.aio.wrappers.encryption import FernetEncryptionWrapper
from key_value.aio.wrappers.prefix_collections import PrefixCollectionsWrapper
from key_value.aio.wrappers.retry import RetryWrapper
from mcp.shared.auth import OAuthClientInformationFull, OAuthToken
from mcp_types import JSONRPCNotification
from pydantic import AnyUrl

import hutch
from hutch import deadlines
from hutch.bridges.connections import close_shared, shared_namespace
from hutch.bridges.keyvalue import HutchStore, entries, storage

from .. import pages
from ..servers import RedisServer
from . import processes
from .keyvalue_store_tests import UpstreamStoreTests

_PAGE = Path(__file__).parents[2] / "docs" / "bridges" / "keyvalue.md"

NAMES = [
    "a",
    "a:b",
    "a%3Ab",
    "a%",
    "%",
    "%%",
    "%#",
    "%expires",
    "%expires:0000000001:a:k",
    ":",
    "a/b\\c",
    "../x",
    " ",
    "line\nbreak\0",
    "世界 🌍",
    "H_" + "x" * 64,
    "long" * 400,
    "long" * 400 + ":",
    "%" + "長" * 500,
    "x" * 255,
    "x" * 256,
    "x" * 990,
    "x" * 1024,
]


def run(work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """Run `work` in a new event loop."""
    return asyncio.run(work())


@pytest.fixture(params=[False, True], ids=["in threads", "inline"])
def inline(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def store(url: str, inline: bool) -> HutchStore:
    return HutchStore(url, inline=inline)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[timedelta], None]:
    """Return a function that puts the bridge's clock forward."""
    ahead = timedelta()

    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.now(tz) + ahead

    def forward(by: timedelta) -> None:
        nonlocal ahead
        ahead += by

    now_ms = deadlines.now_ms
    monkeypatch.setattr(entries, "datetime", Clock)
    monkeypatch.setattr(deadlines, "now_ms", lambda: now_ms() + round(ahead.total_seconds() * 1000))
    return forward


@dataclass(frozen=True)
class Time:
    """Time that passes when a test says so: by the clock put forward, or in fact where the clock is a server's."""

    forward: Callable[[timedelta], None]
    #: How long a second of the test lasts, in seconds.
    second_s: float

    def passes(self, seconds: float) -> None:
        """Let `seconds` of the test pass."""
        if self.second_s == 1:
            self.forward(timedelta(seconds=seconds))
        else:
            time.sleep(seconds * self.second_s)


@pytest.fixture
def span(url: str, clock: Callable[[timedelta], None]) -> Time:
    return Time(clock, 0.05 if url.startswith("redis") else 1)


# --- the protocol ---


def test_it_is_a_store_and_lists_culls_and_is_destroyed(store: HutchStore) -> None:
    for protocol in (
        protocols.AsyncKeyValueProtocol,
        protocols.AsyncEnumerateKeysProtocol,
        protocols.AsyncEnumerateCollectionsProtocol,
        protocols.AsyncCullProtocol,
        protocols.AsyncDestroyCollectionProtocol,
        protocols.AsyncDestroyStoreProtocol,
    ):
        assert isinstance(store, protocol)


def test_what_is_put_is_there_until_it_is_deleted(store: HutchStore) -> None:
    async def work() -> None:
        assert await store.get("k") is None
        assert await store.ttl("k") == (None, None)
        assert await store.delete("k") is False
        await store.put("k", {"n": 1})
        assert await store.get("k") == {"n": 1}
        assert await store.ttl("k") == ({"n": 1}, None)
        await store.put("k", {"n": 2})
        assert await store.get("k") == {"n": 2}
        assert await store.delete("k") is True
        assert await store.delete("k") is False
        assert await store.get("k") is None
        await store.put("empty", {})
        assert await store.get("empty") == {}

    run(work)


def test_many_are_put_read_and_deleted_together(store: HutchStore) -> None:
    async def work() -> None:
        await store.put_many(["a", "b", "a"], ({"n": 0}, {"n": 2}, {"n": 1}), collection="c")
        assert await store.get_many(["b", "no", "a", "b"], collection="c") == [{"n": 2}, None, {"n": 1}, {"n": 2}]
        assert await store.ttl_many(["a", "no"], collection="c") == [({"n": 1}, None), (None, None)]
        assert await store.get_many(["a"]) == [None]
        assert await store.delete_many(["a", "no", "b", "a"], collection="c") == 2
        assert await store.delete_many(["a", "b"], collection="c") == 0
        await store.put_many([], [])
        assert await store.get_many([]) == []
        with pytest.raises(ValueError, match="2 keys and 1 values"):
            await store.put_many(["a", "b"], [{}])
        assert await store.collections() == []

    run(work)


def test_a_value_that_was_read_is_the_readers_own(store: HutchStore) -> None:
    async def work() -> None:
        value = {"list": [1]}
        await store.put("k", value)
        value["list"].append(2)
        read = await store.get("k")
        assert read == {"list": [1]}
        read["list"].append(3)
        assert await store.get("k") == {"list": [1]}

    run(work)


def test_none_and_nothing_are_the_default_collection(url: str) -> None:
    async def work() -> None:
        store = HutchStore(url)
        await store.put("k", {"n": 1})
        assert await store.get("k", collection="default_collection") == {"n": 1}
        assert await store.get("k", collection="") == {"n": 1}
        assert await store.keys() == ["k"]
        other = HutchStore(url, default_collection="mine")
        assert await other.get("k") is None
        assert await other.get("k", collection="default_collection") == {"n": 1}
        long = HutchStore(url, default_collection="d" * 300)
        await long.put("k", {"n": 2})
        assert sorted(await long.collections()) == ["d" * 300, "default_collection"]

    run(work)


def test_stores_with_different_namespaces_know_nothing_of_each_other(url: str) -> None:
    async def work() -> None:
        one, other = HutchStore(url, namespace="one"), HutchStore(url, namespace="one:x")
        await one.put("k", {"n": 1})
        assert await other.get("k") is None
        assert await other.destroy() is True
        assert await one.get("k") == {"n": 1}

    run(work)


# --- names ---


def test_any_name_is_a_collection_and_a_key_and_comes_back_whole_in_the_lists(url: str) -> None:
    store = HutchStore(url)

    async def work() -> None:
        for number, collection in enumerate(NAMES):
            values = [{"at": [number, place]} for place in range(len(NAMES))]
            await store.put_many(NAMES, values, collection=collection, ttl=1000)
        assert sorted(await store.collections()) == sorted(NAMES)
        for number, collection in enumerate(NAMES):
            assert sorted(await store.keys(collection)) == sorted(NAMES)
            found = await store.get_many(NAMES, collection=collection)
            assert found == [{"at": [number, place]} for place in range(len(NAMES))]
        for place, collection in enumerate(NAMES):
            assert await store.delete_many(NAMES, collection=collection) == len(NAMES)
            assert sorted(await store.collections()) == sorted(NAMES[place + 1 :])

    run(work)


def test_an_empty_key_is_a_key(store: HutchStore) -> None:
    async def work() -> None:
        await store.put("", {"n": 1})
        assert await store.get("") == {"n": 1}
        assert await store.keys() == [""]

    run(work)


def test_random_names_and_changes_leave_what_a_dict_would_hold() -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    chance = random.Random(seed)
    letters = "ab%:#;/3A25\n世🌍"
    names = ["".join(chance.choices(letters, k=chance.choice((1, 2, 3, 3, 500)))) for _ in range(12)]
    store = HutchStore("memory://", inline=True)
    model: dict[str, dict[str, Any]] = {}

    async def work() -> None:
        for number in range(600):
            collection, key = chance.choice(names), chance.choice(names)
            match chance.randrange(8):
                case 0:
                    assert await store.delete(key, collection=collection) is (
                        model.get(collection, {}).pop(key, None) is not None
                    )
                case 1 if number % 5 == 0:
                    assert await store.destroy_collection(collection) is bool(model.pop(collection, None))
                case _:
                    ttl = chance.choice((None, 1000))
                    await store.put(key, {"n": number}, collection=collection, ttl=ttl)
                    model.setdefault(collection, {})[key] = {"n": number}
            assert await store.get(key, collection=collection) == model.get(collection, {}).get(key)
            assert sorted(await store.keys(collection)) == sorted(model.get(collection, {}))
            assert sorted(await store.collections()) == sorted(name for name in model if model[name])

    run(work)


def test_half_a_surrogate_pair_is_an_invalid_key(store: HutchStore) -> None:
    async def work() -> None:
        for key, collection in (("\ud800", "c"), ("k", "\udfff"), ("\ud800" * 2000, "c"), ("k", "\ud800" * 2000)):
            with pytest.raises(InvalidKeyError, match="surrogate") as caught:
                await store.put(key, {}, collection=collection)
            assert isinstance(caught.value.__cause__, UnicodeEncodeError)
        assert await store.collections() == []

    run(work)


def test_lists_are_complete_or_as_long_as_asked(store: HutchStore) -> None:
    # The stores of py-key-value silently stop after 10,000.
    keys = [f"{number:05d}" for number in range(10_500)]

    async def work() -> None:
        await store.put_many(keys, [{"n": 0}] * len(keys), collection="many")
        await store.put_many(["a", "b"], [{}, {}], collection="many more")
        assert await store.keys("many") == keys
        assert await store.keys("many", limit=3) == keys[:3]
        assert await store.keys("many", limit=0) == []
        assert await store.keys("none") == []
        assert sorted(await store.collections()) == ["many", "many more"]
        assert len(await store.collections(limit=1)) == 1
        assert await store.collections(limit=0) == []

    run(work)


def test_collections_are_listed_without_going_through_all_keys_of_each(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = HutchStore(url)
    seen = 0
    scan_keys = hutch.Namespace.scan_keys

    def counted(self: hutch.Namespace, *arguments: Any, **options: Any) -> Any:
        nonlocal seen
        for key in scan_keys(self, *arguments, **options):
            seen += 1
            yield key

    async def work() -> None:
        for collection in "abcdefgh":
            await store.put_many([str(key) for key in range(100)], [{}] * 100, collection=collection, ttl=100)
        monkeypatch.setattr(hutch.Namespace, "scan_keys", counted)
        assert await store.collections() == list("abcdefgh")
        # An engine without order, or that does not hide what has expired, reads all of them, but only once each.
        assert seen < (20 if {"ordered", "ttl"} <= shared_namespace(url, "keyvalue").capabilities else 1700)

    run(work)


def test_destroying_a_collection_leaves_nothing_of_it_and_all_of_the_others(url: str) -> None:
    store = HutchStore(url)

    async def work() -> None:
        for collection in ("a", "a:b", "b"):
            await store.put_many(["x", "y", "z" * 2000], [{}] * 3, collection=collection, ttl=100)
        assert await store.destroy_collection("a") is True
        assert await store.destroy_collection("a") is False
        assert await store.collections() == ["a:b", "b"]
        assert not [name for name in shared_namespace(url, "keyvalue") if name.startswith("a:") or ":a:" in name]
        assert await store.get_many(["x", "y", "z" * 2000], collection="a:b") == [{}] * 3
        assert await store.destroy() is True
        assert await store.collections() == []
        assert len(shared_namespace(url, "keyvalue")) == 0
        await store.put("k", {"n": 1})
        assert await store.get("k") == {"n": 1}

    run(work)


# --- values ---


class Colour(StrEnum):
    RED = "red"


def test_values_come_back_as_json_would_give_them_as_from_every_other_store(url: str) -> None:
    value: dict[str, Any] = {
        "null": None,
        "numbers": [True, -42, 10**30, 1.5, -0.0, float("inf")],
        "text": "Line1\nLine2 世界 🌍 \ud800" + "x" * 10_000,
        "tuple": (1, ("two",)),
        "keys": {1: "c", None: "b"},
        "enum": Colour.RED,
        Colour.RED: 1,
        "nested": {"z": {"a": [{}, []]}},
    }
    stored = value | {
        "tuple": [1, ["two"]],
        "keys": {"1": "c", "null": "b"},
        "enum": "red",
    }

    async def work() -> None:
        store = HutchStore(url)
        await store.put("k", MappingProxyType(value))
        read = await store.get("k")
        assert read == stored
        assert list(read) == list(stored)
        assert type(read["enum"]) is str
        assert [type(number) for number in read["numbers"]] == [bool, int, int, float, float, float]
        await store.put("nan", {"n": float("nan")})
        assert str(await store.get("nan")) == "{'n': nan}"

    run(work)


def test_exact_types_keep_what_hutch_keeps(url: str) -> None:
    value = {
        "when": datetime(2025, 1, 1, tzinfo=UTC),
        "tuple": (1, {2}),
        "keys": {1: "a", "1": "b"},
        "money": Decimal("1.10"),
    }

    async def work() -> None:
        store = HutchStore(url, exact_types=True)
        await store.put("k", value, ttl=100)
        read = await store.get("k")
        assert read == value
        assert {name: type(field) for name, field in read.items()} == {
            name: type(field) for name, field in value.items()
        }
        with pytest.raises(SerializationError) as caught:
            await store.put("bad", {"secret": object()})
        assert isinstance(caught.value.__cause__, hutch.ValueTypeError)
        for ttl in (None, 100):
            with pytest.raises(SerializationError):
                await store.put_many(["a", "b", "c"], [{"n": 1}, {"n": 2}, {"bad": object()}], ttl=ttl)
        assert await store.keys() == ["k"]

    run(work)


@pytest.mark.parametrize(
    "bad",
    [datetime(2025, 1, 1, tzinfo=UTC), b"bytes", {1, 2}, object(), {(1, 2): 3}, {1: "a", "1": "b"}],
    ids=["datetime", "bytes", "set", "object", "tuple as a key", "keys that JSON makes one"],
)
def test_what_json_cannot_hold_is_refused_and_nothing_of_its_batch_is_put(store: HutchStore, bad: Any) -> None:
    async def work() -> None:
        with pytest.raises(SerializationError):
            await store.put("k", {"bad": bad})
        with pytest.raises(SerializationError):
            await store.put_many(["a", "b", "c"], [{"n": 1}, {"deep": [{"bad": bad}]}, {"n": 3}], ttl=10)
        assert await store.keys() == []

    run(work)


def test_a_value_that_holds_itself_is_refused(store: HutchStore) -> None:
    value: dict[str, Any] = {}
    value["self"] = value

    async def work() -> None:
        with pytest.raises(SerializationError, match="Circular"):
            await store.put("k", value)

    run(work)


def test_arguments_of_wrong_types_are_type_errors(store: HutchStore) -> None:
    async def work() -> None:
        bad: Any
        for bad in (1, b"k", None):
            with pytest.raises(TypeError, match="a key is a str"):
                await store.put(bad, {})
            with pytest.raises(TypeError, match="a key is a str"):
                await store.get_many(["k", bad])
        for bad in (1, b"c", ["c"]):
            with pytest.raises(TypeError, match="a collection is a str"):
                await store.get("k", collection=bad)
        for bad in (None, [("a", 1)], "text", {1: 2}):
            with pytest.raises(TypeError, match=r"a value is a mapping (from|whose keys are) str"):
                await store.put("k", bad)
        assert await store.collections() == []

    run(work)


def test_a_foreign_value_is_an_error(url: str) -> None:
    async def work() -> None:
        store = HutchStore(url)
        shared_namespace(url, "keyvalue")["default_collection:k"] = ["secret"]
        with pytest.raises(DeserializationError) as caught:
            await store.get("k")
        assert "secret" not in str(caught.value)

    run(work)


def test_damaged_data_is_a_deserialization_error_and_hutchs_is_its_cause(tmp_path: Path) -> None:
    url = f"sqlite://{(tmp_path / 'store').as_posix()}"

    async def put() -> None:
        await HutchStore(url).put("k", {"n": 12345678})

    async def read() -> None:
        with pytest.raises(DeserializationError) as caught:
            await HutchStore(url).get("k")
        assert isinstance(caught.value.__cause__, hutch.CorruptValueError)

    run(put)
    close_shared()
    file = tmp_path / "store"
    data = file.read_bytes()
    assert b"\xce\x00\xbc\x61\x4e" in data
    file.write_bytes(data.replace(b"\xce\x00\xbc\x61\x4e", b"\xce\x00\xbc\x61\x4f"))
    run(read)


@pytest.mark.parametrize("is_foreign", [False, True], ids=["damaged", "foreign"])
def test_an_entry_that_cannot_be_read_stands_in_the_way_of_no_other(
    tmp_path: Path, clock: Callable[[timedelta], None], is_foreign: bool
) -> None:
    file = tmp_path / "store"
    url = f"sqlite://{file.as_posix()}"

    async def put() -> None:
        await HutchStore(url).put("k", {"n": 12345678}, collection="c")
        await HutchStore(url).put("other", {"n": 1}, collection="c", ttl=30)

    async def work() -> None:
        store = HutchStore(url)
        assert await store.keys("c") == ["k", "other"]
        clock(timedelta(minutes=10))
        assert await store.keys("c") == ["k"]
        assert await store.collections() == ["c"]
        for number in range(40):
            await store.put(f"{number}", {}, ttl=30)
        await store.cull()
        assert "c:other" not in shared_namespace(url, "keyvalue")
        assert not any(":c:" in name for name in shared_namespace(url, "keyvalue"))
        with pytest.raises(DeserializationError):
            await store.get("k", collection="c")
        assert await store.delete_many(["k", "no"], collection="c") == 1
        assert await store.collections() == ["default_collection"]

    run(put)
    if is_foreign:
        shared_namespace(url, "keyvalue")["c:k"] = ["foreign"]
    close_shared()
    if not is_foreign:
        data = file.read_bytes()
        assert b"\xce\x00\xbc\x61\x4e" in data
        file.write_bytes(data.replace(b"\xce\x00\xbc\x61\x4e", b"\xce\x00\xbc\x61\x4f"))
    run(work)


def test_a_collection_with_an_entry_that_cannot_be_read_is_destroyed(url: str) -> None:
    async def work() -> None:
        store = HutchStore(url)
        await store.put_many(["k", "x" * 2000], [{}, {}], collection="c", ttl=0.01)
        shared_namespace(url, "keyvalue")["c:k"] = ["foreign"]
        await asyncio.sleep(0.02)
        assert await store.destroy_collection("c") is True
        assert len(shared_namespace(url, "keyvalue")) == 0

    run(work)


def test_a_list_that_lacks_a_name_is_an_error(url: str) -> None:
    async def work() -> None:
        store = HutchStore(url)
        await store.put("x" * 2000, {}, collection="c" * 300)
        (name,) = shared_namespace(url, "keyvalue")
        foreign: Any
        for foreign in (["foreign"], {"value": {}}):
            shared_namespace(url, "keyvalue")[name] = foreign
            for listing in (store.collections(), store.keys("c" * 300)):
                with pytest.raises(DeserializationError):
                    await listing
        await store.put("x" * 2000, {}, collection="c" * 300)
        assert await store.collections() == ["c" * 300]

    run(work)


# --- time ---


def test_what_has_missing_if_expired_everywhere(store: HutchStore, span: Time) -> None:
    long, second_s = "k" * 2000, span.second_s

    async def work() -> None:
        await store.put_many(["a", "b", long], [{"n": 1}] * 3, collection="short", ttl=30 * second_s)
        await store.put("stays", {"n": 2}, collection="mixed", ttl=90 * second_s)
        await store.put("goes", {"n": 3}, collection="mixed", ttl=Decimal(30) * Decimal(str(second_s)))
        await store.put("for ever", {"n": 4}, collection="mixed")
        value, left_s = await store.ttl("a", collection="short")
        assert value == {"n": 1}
        assert left_s is not None
        assert 25 < left_s / second_s <= 30
        assert sorted(await store.keys("short")) == sorted(["a", "b", long])
        assert await store.collections() == ["mixed", "short"]

        span.passes(31)
        assert await store.get("a", collection="short") is None
        assert await store.ttl(long, collection="short") == (None, None)
        assert await store.get_many(["a", "b"], collection="short") == [None, None]
        assert await store.keys("short") == []
        assert await store.keys("mixed") == ["for ever", "stays"]
        assert await store.keys("mixed", limit=1) == ["for ever"]
        assert await store.collections() == ["mixed"]
        [(value, left_s), gone] = await store.ttl_many(["stays", "goes"], collection="mixed")
        assert value == {"n": 2}
        assert left_s is not None
        assert 0 < left_s / second_s < 60
        assert gone == (None, None)
        assert await store.delete("a", collection="short") is False
        assert await store.delete_many(["b", long], collection="short") == 0
        assert await store.destroy_collection("short") is False
        assert await store.delete_many(["stays", "goes"], collection="mixed") == 1

    run(work)


def test_a_ttl_expires_by_the_real_clock(url: str) -> None:
    async def work() -> None:
        store = HutchStore(url)
        await store.put("k", {"n": 1}, ttl=0.05)
        await store.put("z", {"n": 1})
        await asyncio.sleep(0.06)
        assert await store.get("k") is None
        assert await store.keys() == ["z"]

    run(work)


def test_a_ttl_is_a_number_above_zero(store: HutchStore) -> None:
    async def work() -> None:
        bad: Any
        for bad in (0, -1, float("nan"), float("inf"), 1e300, True, "5", object()):
            with pytest.raises(InvalidTTLError):
                await store.put("k", {}, ttl=bad)
            with pytest.raises(InvalidTTLError):
                await store.put_many(["k"], [{}], ttl=bad)
        assert await store.keys() == []

    run(work)


def test_putting_again_sets_the_ttl_anew(store: HutchStore, span: Time) -> None:
    second_s = span.second_s

    async def work() -> None:
        await store.put_many(["longer", "for ever", "shorter"], [{"n": 1}] * 3, ttl=20 * second_s)
        await store.put("longer", {"n": 2}, ttl=1000 * second_s)
        await store.put("for ever", {"n": 2})
        await store.put("shorter", {"n": 2}, ttl=10 * second_s)
        span.passes(12)
        assert await store.keys() == ["for ever", "longer"]
        span.passes(12)
        assert await store.keys() == ["for ever", "longer"]
        await store.cull()
        assert await store.get_many(["longer", "for ever", "shorter"]) == [{"n": 2}, {"n": 2}, None]

    run(work)


def test_cull_removes_what_has_expired_and_in_the_end_all_trace_of_it(url: str, span: Time) -> None:
    store = HutchStore(url)
    entries, second_s = shared_namespace(url, "keyvalue"), span.second_s

    async def work() -> None:
        for collection in ("a", "b"):
            await store.put_many([str(key) for key in range(50)], [{}] * 50, collection=collection, ttl=30 * second_s)
        await store.put("stays", {}, collection="b", ttl=10_000 * second_s)
        await store.put("stays too", {})
        span.passes(31)
        await store.cull()
        names = list(entries)
        assert sorted(names) == ["b:stays", "default_collection:stays too"]
        assert await store.collections() == ["b", "default_collection"]
        assert len(entries) == 2

    run(work)


def test_writing_removes_what_has_expired_without_being_asked(url: str, span: Time) -> None:
    store = HutchStore(url)
    entries, second_s = shared_namespace(url, "keyvalue"), span.second_s

    async def work() -> None:
        most = 0
        for number in range(400 if second_s == 1 else 40):
            await store.put(f"{number}", {"text": "x" * 100}, ttl=second_s)
            span.passes(0.4)
            most = max(most, len(entries))
        # 3 are alive; where the engine does not remove the others, a sweep does, every 16 writes.
        assert most < 30

    run(work)


def test_writers_that_write_but_once_remove_what_has_expired(url: str, span: Time) -> None:
    async def work() -> None:
        for number in range(30):
            await HutchStore(url).put(f"{number}", {}, ttl=span.second_s)
            span.passes(2)
        assert len(shared_namespace(url, "keyvalue")) < 20

    run(work)


def test_what_is_put_again_while_it_is_culled_stays(
    url: str, clock: Callable[[timedelta], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, other = HutchStore(url), HutchStore(url, inline=True)
    if store._has_ttl:
        pytest.skip("the engine itself removes what has expired")
    missing_if_expired = storage._missing_if_expired
    asked = 0

    def put_again(entry: Any) -> Any:
        nonlocal asked
        asked += 1
        if asked == 1:
            asyncio.run(other.put("k", {"n": "new"}))
        return missing_if_expired(entry)

    async def work() -> None:
        await store.put("k", {"n": "old"}, ttl=30)
        clock(timedelta(minutes=10))
        monkeypatch.setattr(storage, "_missing_if_expired", put_again)
        await store.cull()
        assert asked == 2
        assert await store.get("k") == {"n": "new"}

    run(work)


def test_a_put_is_done_even_if_what_has_expired_cannot_be_removed(
    url: str, clock: Callable[[timedelta], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = HutchStore(url)
    if store._has_ttl:
        pytest.skip("the engine itself removes what has expired")

    def full(*_: Any) -> Any:
        raise hutch.StorageFullError("no room")

    async def work() -> None:
        await store.put("old", {"n": 1}, ttl=30)
        clock(timedelta(minutes=10))
        monkeypatch.setattr(hutch.Namespace, "modify", full)
        for number in range(40):
            await store.put(f"{number}", {"n": number}, ttl=30)
        assert len(await store.keys()) == 40
        with pytest.raises(hutch.StorageFullError):
            await store.cull()

    run(work)


# --- loops, threads, processes ---


def _hold_the_write_lock(url: str) -> sqlite3.Connection:
    other = sqlite3.connect(urlsplit(url).path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    return other


@pytest.fixture
def file_url(tmp_path: Path) -> str:
    return f"sqlite://{(tmp_path / 'file').as_posix()}"


def test_the_event_loop_runs_while_the_storage_waits(file_url: str) -> None:
    async def work() -> None:
        store = HutchStore(file_url)
        await store.put("k", {"n": 1})
        other = _hold_the_write_lock(file_url)
        try:
            calls = [asyncio.create_task(store.put("k", {"n": 2})), asyncio.create_task(store.delete("k"))]
            steps = 0
            for _ in range(20):
                await asyncio.sleep(0.01)
                steps += 1
            assert steps == 20
            assert not any(call.done() for call in calls)
            assert await store.get("k") == {"n": 1}
        finally:
            other.close()
        await asyncio.gather(*calls)

    run(work)


def test_a_cancelled_write_returns_at_once_and_a_later_write_of_the_key_comes_after_it(file_url: str) -> None:
    async def work() -> None:
        store = HutchStore(file_url)
        await store.put("k", {"n": 1})
        other = _hold_the_write_lock(file_url)
        try:
            call = asyncio.create_task(store.put("k", {"n": 2}))
            await asyncio.sleep(0.02)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asyncio.wait_for(call, 1)
            later = asyncio.create_task(store.put("k", {"n": 3}, ttl=100))
            await asyncio.sleep(0.05)
            assert not later.done()
        finally:
            other.close()
        await later
        await asyncio.sleep(0.05)
        assert await store.get("k") == {"n": 3}

    run(work)


def test_the_default_executor_of_the_loop_is_left_to_the_application(url: str) -> None:
    async def work() -> None:
        store = HutchStore(url)
        await store.put("k", {"n": 1}, ttl=100)
        await store.put_many(["a", "b"], [{}, {}])
        assert await store.get("k") == {"n": 1}
        assert sorted(await store.keys()) == ["a", "b", "k"]
        assert await store.collections() == ["default_collection"]
        await store.delete("k")
        await store.cull()
        await store.destroy_collection("default_collection")
        await store.destroy()
        assert asyncio.get_running_loop()._default_executor is None  # type: ignore[attr-defined]

    run(work)


def test_a_server_that_hangs_leaves_look_ups_and_callers_alone() -> None:
    async def work(server: RedisServer) -> None:
        loop = asyncio.get_running_loop()
        store = HutchStore(f"{server.url}?timeout_s=20")
        await store.put("k", {"n": 1})
        server.stall()
        calls: list[asyncio.Task[Any]] = [asyncio.create_task(store.put(f"k{n}", {})) for n in range(50)]
        calls += [asyncio.create_task(store.get("k")) for _ in range(50)]
        await asyncio.sleep(0.1)
        began_s = time.monotonic()
        await loop.getaddrinfo("127.0.0.1", 80)
        assert await asyncio.to_thread(lambda: 1) == 1
        looked_up_s = time.monotonic() - began_s
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)
        let_go_s = time.monotonic() - began_s - looked_up_s
        print(f"look-up: {looked_up_s * 1000:.1f} ms, 100 callers let go after {let_go_s * 1000:.1f} ms")
        assert looked_up_s < 1
        assert let_go_s < 1

    with RedisServer() as server:
        asyncio.run(work(server))
        began_s = time.monotonic()
        close_shared()
        print(f"close: {time.monotonic() - began_s:.2f} s")
        assert time.monotonic() - began_s < 2
        server.resume()
        # Abandoned calls get their answers now, and then everything is closed.
        while any(thread.name.startswith("hutch.bridges") for thread in threading.enumerate()):
            assert time.monotonic() - began_s < 60
            time.sleep(0.01)


def test_a_cancelled_write_that_fails_leaves_no_complaint(file_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    complaints: list[Any] = []
    begun = threading.Event()

    def slow(*_: Any, **__: Any) -> Any:
        begun.set()
        threading.Event().wait(0.1)
        raise hutch.StorageFullError("no room")

    async def work() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        store = HutchStore(file_url)
        monkeypatch.setattr(hutch.Namespace, "set", slow)
        call = asyncio.create_task(store.put("k", {}))
        while not begun.is_set():
            await asyncio.sleep(0.01)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call

    run(work)
    assert complaints == []


def test_one_store_serves_many_loops_in_many_threads(url: str) -> None:
    store = HutchStore(url)
    failures: list[BaseException] = []

    async def work(thread: int) -> None:
        async def one(number: int) -> None:
            await store.put(f"{thread}-{number}", {"n": number}, ttl=100)
            assert await store.get(f"{thread}-{number}") == {"n": number}

        await asyncio.gather(*(one(number) for number in range(25)))

    def thread(number: int) -> None:
        try:
            asyncio.run(work(number))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=thread, args=(number,)) for number in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert failures == []
    assert len(asyncio.run(store.keys())) == 100
    assert asyncio.run(store.delete_many([f"{t}-{n}" for t in range(4) for n in range(25)])) == 100


def test_of_those_who_delete_one_entry_one_hears_that_it_was_there(url: str) -> None:
    store = HutchStore(url)

    async def work() -> None:
        for number in range(20):
            await store.put("token", {"n": number})
            heard = await asyncio.gather(*(store.delete("token") for _ in range(6)))
            assert sorted(heard) == [False] * 5 + [True]

    run(work)


_WRITER = """
import asyncio, sys
from hutch.bridges.keyvalue import HutchStore

async def main(url, first):
    store = HutchStore(url)
    for batch in range(int(first), 10_000):
        keys = [f"{batch:05d}/{place}" for place in range(20)]
        await store.put_many(keys, [{"batch": batch, "text": "x" * 200}] * 20, collection="log", ttl=1000)
        await store.put("last", {"batch": batch})
        print("stored", batch, flush=True)

asyncio.run(main(*sys.argv[1:]))
"""


def test_what_a_killed_process_put_is_there_and_its_batches_are_whole(lasting_url: str, tmp_path: Path) -> None:
    first = 0
    for stop in (3, 6):
        lines = processes.run_until(f"stored {stop}", _WRITER, lasting_url, str(first), folder=tmp_path)
        acknowledged_numbers = [int(line.split()[1]) for line in lines if line.startswith("stored")]
        assert acknowledged_numbers[0] == first

        async def look(acknowledged: int = acknowledged_numbers[-1]) -> int:
            store = HutchStore(lasting_url)
            keys = await store.keys("log")
            assert len(keys) % 20 == 0
            batches = sorted({int(key.split("/")[0]) for key in keys})
            assert batches == list(range(len(batches)))
            assert acknowledged <= batches[-1] <= acknowledged + 1
            values = await store.get_many(keys, collection="log")
            assert [value["batch"] for value in values if value] == [int(key.split("/")[0]) for key in keys]
            last = await store.get("last")
            assert last is not None
            assert last["batch"] in (acknowledged, acknowledged + 1)
            return batches[-1] + 1

        first = asyncio.run(look())


_ADDER = """
import asyncio, sys
from hutch.bridges.keyvalue import HutchStore

async def main(url, name):
    store = HutchStore(url)
    for number in range(40):
        await store.put(f"{name}-{number}", {"n": number}, collection=f"of {name}", ttl=1000)
        await store.put_many(["both", "halves"], [{"by": name, "n": number}] * 2)
        one, other = await store.get_many(["both", "halves"])
        assert one == other, (one, other)

asyncio.run(main(*sys.argv[1:]))
"""


def test_several_processes_share_a_store_and_see_whole_batches(lasting_url: str, tmp_path: Path) -> None:
    store = HutchStore(lasting_url)
    workers = [
        threading.Thread(target=processes.run, args=(_ADDER, lasting_url, name), kwargs={"folder": tmp_path})
        for name in ("a", "b", "c")
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()

    async def look() -> None:
        assert await store.collections() == ["default_collection", "of a", "of b", "of c"]
        for name in ("a", "b", "c"):
            assert sorted(await store.keys(f"of {name}")) == sorted(f"{name}-{number}" for number in range(40))
        one, other = await store.get_many(["both", "halves"])
        assert one == other
        assert one is not None
        assert one["n"] == 39

    run(look)


def _in_a_fork(store: HutchStore) -> None:
    asyncio.run(store.put("child", {"pid": os.getpid()}))
    assert asyncio.run(store.get("parent")) == {"n": 1}


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="forks")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_store_made_before_a_fork_serves_both(lasting_url: str) -> None:
    store = HutchStore(lasting_url)
    run(lambda: store.put("parent", {"n": 1}))
    child = multiprocessing.get_context("fork").Process(target=_in_a_fork, args=(store,))
    child.start()
    child.join(60)
    assert child.exitcode == 0
    child.close()
    assert run(lambda: store.get("child")) is not None
    run(lambda: store.put("parent", {"n": 2}))


def test_two_stores_of_one_url_share_a_connection_and_closing_one_closes_nothing(url: str) -> None:
    async def work() -> None:
        async with HutchStore(url) as one:
            await one.put("k", {"n": 1})
        other = HutchStore(f"hutch://{url}" if "://" in url else url)
        assert other._entries is one._entries
        assert await one.get("k") == {"n": 1}

    run(work)


# --- FastMCP ---


def _server(url: str, asked: list[int]) -> FastMCP:
    store = HutchStore(url)
    server = FastMCP("notes", session_state_store=store)
    server.add_provider(SessionProvider())
    cached = CallToolSettings(included_tools=["square"], ttl=60)
    server.add_middleware(ResponseCachingMiddleware(cache_storage=store, call_tool_settings=cached))

    async def remember(note: str, session_id: SessionId) -> list[str]:
        session = await get_session(session_id)
        notes = [*await session.get("notes", []), note]
        await session.set("notes", notes)
        return notes

    def square(number: int) -> int:
        asked.append(number)
        return number * number

    server.tool(remember)
    server.tool(square)
    return server


def test_sessions_of_fastmcp_go_on_when_the_server_is_started_again(
    lasting_url: str, clock: Callable[[timedelta], None]
) -> None:
    asked: list[int] = []

    async def visit(session_id: str | None, note: str) -> tuple[str, list[str], int]:
        async with Client(_server(lasting_url, asked)) as client:
            if session_id is None:
                session_id = (await client.call_tool("create_session")).data
            notes = (await client.call_tool("remember", {"note": note, "session_id": session_id})).data
            return str(session_id), notes, (await client.call_tool("square", {"number": 12})).data

    session_id, notes, squared = run(lambda: visit(None, "one"))
    assert (notes, squared, asked) == (["one"], 144, [12])
    close_shared()
    _, notes, squared = run(lambda: visit(session_id, "two"))
    assert (notes, squared, asked) == (["one", "two"], 144, [12])
    clock(timedelta(seconds=61))
    run(lambda: visit(session_id, "three"))
    assert asked == [12, 12]
    assert {"fastmcp_state", "tools/call"} < set(run(HutchStore(lasting_url).collections))


def test_a_session_that_was_ended_is_unknown_in_another_server(lasting_url: str) -> None:
    async def work() -> None:
        async with Client(_server(lasting_url, [])) as one, Client(_server(lasting_url, [])) as other:
            session_id = (await one.call_tool("create_session")).data
            await one.call_tool("remember", {"note": "x", "session_id": session_id})
            assert (await other.call_tool("remember", {"note": "y", "session_id": session_id})).data == ["x", "y"]
            await one.call_tool("end_session", {"session_id": session_id})
            with pytest.raises(ToolError):
                await other.call_tool("remember", {"note": "z", "session_id": session_id})

    run(work)


def test_events_of_fastmcp_are_replayed_from_another_process_of_the_server(lasting_url: str) -> None:
    message = JSONRPCNotification(jsonrpc="2.0", method="notifications/message", params={"data": "hello"})

    async def store_them() -> list[str]:
        events = EventStore(storage=HutchStore(lasting_url), max_events_per_stream=5)
        return [await events.store_event("stream", message) for _ in range(8)]

    async def replay(after: str) -> list[str]:
        replayed: list[Any] = []

        async def send(event: Any) -> None:
            replayed.append(event)

        assert await EventStore(storage=HutchStore(lasting_url)).replay_events_after(after, send) == "stream"
        assert all(event.message == message for event in replayed)
        return [event.event_id for event in replayed]

    ids = run(store_them)
    close_shared()
    assert run(lambda: replay(ids[4])) == ids[5:]
    assert sorted(run(lambda: HutchStore(lasting_url).keys("fastmcp_events"))) == sorted(ids[3:])


def test_clients_that_registered_with_an_oauth_proxy_of_fastmcp_are_known_again(lasting_url: str) -> None:
    def proxy() -> OAuthProxy:
        return OAuthProxy(
            upstream_authorization_endpoint="https://idp.example/authorize",
            upstream_token_endpoint="https://idp.example/token",
            upstream_client_id="hutch",
            upstream_client_secret="a secret",
            token_verifier=StaticTokenVerifier(tokens={}),
            base_url="https://notes.example",
            jwt_signing_key="a signing key that is long enough",
            client_storage=HutchStore(lasting_url),
        )

    client = OAuthClientInformationFull(client_id="a client", redirect_uris=[AnyUrl("http://localhost:1234/callback")])
    run(lambda: proxy().register_client(client))
    close_shared()
    known = run(lambda: proxy().get_client("a client"))
    assert known is not None
    assert known.client_id == "a client"
    assert run(lambda: proxy().get_client("another")) is None


def test_a_client_of_fastmcp_finds_its_tokens_again(lasting_url: str) -> None:
    def tokens() -> TokenStorageAdapter:
        return TokenStorageAdapter(HutchStore(lasting_url), server_url="https://notes.example/mcp")

    run(lambda: tokens().set_tokens(OAuthToken(access_token="a", refresh_token="r", expires_in=60)))
    close_shared()
    found = run(lambda: tokens().get_tokens())
    assert (found.access_token, found.refresh_token) == ("a", "r")
    run(lambda: tokens().clear())
    assert run(lambda: tokens().get_tokens()) is None
    assert run(HutchStore(lasting_url).collections) == []


# --- what is around it ---


def test_it_serves_beneath_the_wrappers_of_py_key_value(file_url: str) -> None:
    async def work() -> None:
        store = HutchStore(file_url)
        wrapped = FernetEncryptionWrapper(
            key_value=PrefixCollectionsWrapper(key_value=RetryWrapper(key_value=store), prefix="app"),
            source_material="a password",
            salt="salt",
        )
        await wrapped.put("k", {"token": "secret"}, collection="tokens", ttl=100)
        assert await wrapped.get("k", collection="tokens") == {"token": "secret"}
        assert await store.collections() == ["app__tokens"]
        assert "secret" not in str(await store.get("k", collection="app__tokens"))

    run(work)


def test_a_server_that_is_away_is_a_connection_error_which_a_retry_wrapper_retries(
    file_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0
    get = hutch.Namespace.get

    def away_at_first(self: hutch.Namespace, *arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls < 3:
            raise hutch.StorageUnavailableError("the server is away")
        return get(self, *arguments)

    async def work() -> None:
        store = HutchStore(file_url)
        await store.put("k", {"n": 1})
        monkeypatch.setattr(hutch.Namespace, "get", away_at_first)
        with pytest.raises(ConnectionError):
            await store.get("k")
        assert await RetryWrapper(key_value=store, initial_delay=0.01).get("k") == {"n": 1}
        assert calls == 3

    run(work)


def test_a_storage_that_cannot_be_opened_is_an_error_at_connect(tmp_path: Path) -> None:
    with pytest.raises(hutch.PluginNotFoundError, match="sqlite"):
        HutchStore("sqlit:///x.db")
    with pytest.raises(hutch.ConfigError, match="durability"):
        HutchStore("lmdb://x?durabilty=strict")
    with pytest.raises(hutch.NamespaceError):
        HutchStore("memory://", namespace="")
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(hutch.StoreError):
        HutchStore(f"lmdb://{(tmp_path / 'file' / 'store').as_posix()}")


def test_no_secret_is_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SECRET_FOLDER", "hidden")
    store = HutchStore(f"sqlite://{tmp_path.as_posix()}/${{SECRET_FOLDER}}", namespace="mine")
    run(lambda: store.put("k", {}))
    assert (tmp_path / "hidden").exists()
    assert repr(store) == "<HutchStore in namespace 'mine'>"


def test_without_the_framework_the_error_says_what_to_install() -> None:
    script = """
import sys
sys.modules["key_value"] = None
import hutch.bridges, hutch.bridges.connections
try:
    import hutch.bridges.keyvalue
except ImportError as error:
    assert "pip install 'py-key-value-aio>=0.4.6,<0.6'" in str(error), error
    assert isinstance(error.__cause__, ImportError)
else:
    raise SystemExit("it was imported")
"""
    subprocess.run([sys.executable, "-W", "error", "-c", script], check=True, timeout=60)


def test_hutch_alone_imports_nothing_of_the_framework() -> None:
    script = """
import sys, hutch.bridges.connections
hutch.bridges.connections.shared_namespace("memory://", "x")["k"] = 1
assert not [name for name in sys.modules if name.startswith(("key_value", "fastmcp", "asyncio"))]
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_the_page_does_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pages.run(_PAGE, tmp_path, monkeypatch)


# --- py-key-value's own tests of a store ---


@pytest.mark.parametrize("name", [name for name in vars(UpstreamStoreTests) if name.startswith("test_")])
def test_the_tests_of_py_key_values_own_stores_hold(name: str, store: HutchStore) -> None:
    run(lambda: getattr(UpstreamStoreTests(), name)(store))


def test_its_interface_has_no_put_if_absent_that_the_store_would_lack() -> None:
    """When this fails, py-key-value has gained a call that `compare_and_set` makes atomic: implement it."""
    for protocol in (protocols.AsyncKeyValueProtocol, protocols.AsyncKeyValue):
        calls = {call for call in dir(protocol) if not call.startswith("_")}
        assert calls <= set(dir(HutchStore))
        assert not {call for call in calls if "absent" in call or "not_exist" in call or call in ("add", "put_new")}
