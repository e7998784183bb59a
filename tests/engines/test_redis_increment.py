"""Test the increment of the redis engine: the frames that its script writes, and its round trips."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import pytest

import hutch
from tests.servers import RedisServer


@pytest.fixture
def store(redis_server: RedisServer) -> Iterator[hutch.Store]:
    with hutch.connect(f"{redis_server.url}?prefix={uuid.uuid4().hex}") as store:
        yield store


@pytest.fixture
def trips(store: hutch.Store, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of commands of each request that is sent."""
    sent: list[int] = []
    server = store.factory.server
    exchange = server.exchange

    def noting(commands: Any, *args: Any, **options: Any) -> Any:
        sent.append(len(commands))
        return exchange(commands, *args, **options)

    monkeypatch.setattr(server, "exchange", noting)
    return sent


EDGES = [0, 1, 31, 32, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**16, 2**31, 2**32 - 1, 2**32, 2**40 + 5, 2**53 - 3]


@pytest.mark.parametrize("sign", [1, -1])
def test_an_increment_stores_the_bytes_that_a_set_stores(store: hutch.Store, trips: list[int], sign: int) -> None:
    with store.open("core") as ns:
        ns.increment("warm up: the server learns the script")
        storage: Any = ns._store
        for edge in EDGES:
            for start in (sign * edge, sign * edge - 1):
                ns["k"] = start
                trips.clear()
                assert ns.increment("k", sign) == start + sign
                assert trips == [1]
                stored = storage.read("k")
                ns["k"] = start + sign
                assert storage.read("k") == stored


@pytest.mark.parametrize(
    ("old", "by"), [(2**53, 1), (2**53 - 1, 1), (-(2**53), 1), (2**64, 1), (2**63, -5), (1.5, 1), (1, 1.5), (1, 2**60)]
)
def test_what_a_lua_number_cannot_hold_is_exact_too(store: hutch.Store, old: Any, by: Any) -> None:
    with store.open("core") as ns:
        ns["k"] = old
        assert ns.increment("k", by) == old + by == ns["k"]
        assert ns.increment("new", by, old) == old + by == ns["new"]
        assert sorted(ns) == ["k", "new"]


def test_a_damaged_number_is_an_error_and_stays(store: hutch.Store) -> None:
    with store.open("core") as ns:
        ns["k"] = 1
        storage: Any = ns._store
        frame = storage.read("k")
        for at in range(len(frame)):
            damaged = frame[:at] + bytes([frame[at] ^ 1]) + frame[at + 1 :]
            storage.write("k", damaged)
            with pytest.raises(hutch.CorruptValueError):
                ns.increment("k")
            assert storage.read("k") == damaged
        for short in (b"\x92", frame[:4], b"x" * 12):
            storage.write("k", short)
            with pytest.raises(hutch.CorruptValueError):
                ns.increment("k")


def test_a_new_key_is_listed_and_its_namespace_too(store: hutch.Store, trips: list[int]) -> None:
    with store.open("warm up") as ns:
        ns.increment("the server learns the script")
    with store.open("counted") as ns:
        trips.clear()
        assert ns.increment("b", 5, default=10) == 15
        assert trips == [1]
        ns.increment("a")
        assert (list(ns.scan()), len(ns)) == ([("a", 1), ("b", 15)], 2)
    assert store.namespaces() == ["counted", "warm up"]


def test_other_codecs_count_too(redis_server: RedisServer) -> None:
    config = {"STORAGE": f"{redis_server.url}?prefix={uuid.uuid4().hex}", "CODEC": "json"}
    with hutch.connect(config) as store, store.open("core") as ns:
        assert [ns.increment("n"), ns.increment("n", 2)] == [1, 3]
