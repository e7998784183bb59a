"""Test a server under maxmemory-policy allkeys-*: it may evict a namespace's listing, its values, or the index."""

from __future__ import annotations

import random
import re
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
import redis

import hutch
from hutch import transfer
from tests.servers import RedisServer


@pytest.fixture
def store(redis_server: RedisServer, prefix: str) -> Iterator[hutch.Store]:
    with hutch.connect(f"{redis_server.url}?prefix={prefix}") as opened:
        yield opened


@pytest.fixture
def server(redis_server: RedisServer) -> Iterator[redis.Redis]:
    """Yield another client of the server, which removes what an eviction would."""
    with closing(redis.Redis(redis_server.host, redis_server.port)) as client:
        yield client


LISTINGS: dict[str, Callable[[hutch.Namespace], list[str]]] = {
    "keys": list,
    "items": lambda core: [key for key, _ in core.items()],
    "scan": lambda core: [key for key, _ in core.scan(start="")],
    "backwards": lambda core: [*core.scan_keys(reverse=True)][::-1],
    "items backwards": lambda core: [key for key, _ in core.scan(reverse=True)][::-1],
}


@pytest.mark.parametrize("count", [1, 40, 2000])
@pytest.mark.parametrize("listing", LISTINGS)
@pytest.mark.parametrize("written_later", [False, True])
def test_an_evicted_listing_is_rebuilt_from_the_values(
    store: hutch.Store, server: redis.Redis, prefix: str, listing: str, count: int, written_later: bool
) -> None:
    keys = [f"k{i:04}" for i in range(count)]
    with store.open("core") as core:
        core.update(dict.fromkeys(keys, 1))
        server.delete(f"{prefix}:{{core}}:order", f"{prefix}:namespaces")
        if written_later:
            core["late"] = 2
            core[keys[0]] = 2
            keys = [*keys, "late"]
        assert LISTINGS[listing](core) == keys
        assert len(core) == server.zcard(f"{prefix}:{{core}}:order") == len(keys)
        assert store.namespaces() == ["core"]


def test_a_copy_of_a_namespace_whose_listing_was_evicted_is_whole(
    store: hutch.Store, server: redis.Redis, prefix: str
) -> None:
    with store.open("core") as core:
        core.update({f"{i}": i for i in range(300)})
        server.delete(f"{prefix}:{{core}}:order")
    with hutch.connect("memory://") as copied:
        transfer.copy(store, copied)
        with copied.open("core") as core:
            assert len(core) == 300


@pytest.mark.parametrize("listing", LISTINGS)
def test_a_listing_evicted_during_iteration_is_rebuilt_and_continued(
    store: hutch.Store, server: redis.Redis, prefix: str, listing: str
) -> None:
    keys = [f"k{i:04}" for i in range(3000)]
    steps: dict[str, Callable[[hutch.Namespace], Iterator[Any]]] = {
        "keys": iter,
        "items": lambda core: (key for key, _ in core.items()),
        "scan": lambda core: (key for key, _ in core.scan(prefix="k")),
        "backwards": lambda core: core.scan_keys(reverse=True),
        "items backwards": lambda core: (key for key, _ in core.scan(reverse=True)),
    }
    with store.open("core") as core:
        core.update(dict.fromkeys(keys, 1))
        found: list[str] = []
        for number, key in enumerate(steps[listing](core)):
            found.append(key)
            if number in (0, 500, 2990):
                server.delete(f"{prefix}:{{core}}:order")
                if number == 500:
                    core["k0000"] = 2
        assert found == (keys[::-1] if "backwards" in listing else keys)


@pytest.mark.parametrize("listing", LISTINGS)
@pytest.mark.parametrize("written_later", [0, 1, 50])
def test_evicted_values_are_an_error_for_ever_and_never_an_empty_store(
    store: hutch.Store, server: redis.Redis, prefix: str, listing: str, written_later: int
) -> None:
    with store.open("core") as core:
        core.update({f"k{i:03}": i for i in range(300)})
        server.delete(f"{prefix}:{{core}}:values")
        core.update({f"k{i:03}": "new" for i in range(written_later)})
        core.update({f"new{i}": "new" for i in range(written_later)})
        for _ in range(2):
            with pytest.raises(hutch.CorruptValueError, match="maxmemory-policy"):
                LISTINGS[listing](core)
        assert server.zcard(f"{prefix}:{{core}}:order") == 300 + written_later
    with hutch.connect("memory://") as copied, pytest.raises(hutch.CorruptValueError):
        transfer.copy(store, copied)


def test_values_that_are_evicted_while_they_are_listed_are_an_error(
    store: hutch.Store, server: redis.Redis, prefix: str
) -> None:
    for seen in (0, 31, 100, 299):
        with store.open("core") as core:
            core.clear()
            core.update({f"k{i:03}": i for i in range(300)})
            items = core.scan()
            for _ in range(seen):
                next(items)
            server.delete(f"{prefix}:{{core}}:values")
            if seen == 299:
                assert next(items)[0] == "k299"  # every value had been read
            else:
                with pytest.raises(hutch.CorruptValueError, match="maxmemory-policy"):
                    list(items)


@pytest.mark.parametrize("way_out", ["the command", "clear", "drop"])
def test_the_ways_out_of_evicted_values_work(
    store: hutch.Store, server: redis.Redis, redis_server: RedisServer, prefix: str, way_out: str
) -> None:
    with store.open("core") as core:
        core.update(a=1, b=2)
        server.delete(f"{prefix}:{{core}}:values")
        core["b"] = 3
        with pytest.raises(hutch.CorruptValueError) as caught:
            list(core)
        if way_out == "clear":
            core.clear()
            core["b"] = 3
    if way_out == "drop":
        store.drop("core")
        with store.open("core") as core:
            core["b"] = 3
    if way_out == "the command":
        advised = re.search(r"'hutch ([^']+)'", str(caught.value))
        assert advised
        url = f"{redis_server.url}?prefix={prefix}"
        command = [sys.executable, "-m", "hutch", "--storage", url, *advised[1].split()]
        subprocess.run(command, capture_output=True, timeout=120, check=False)
    with store.open("core") as core:
        assert dict(core) == {"b": 3}


@pytest.mark.parametrize(
    "write",
    [
        lambda core: core.__setitem__("a", 1),
        lambda core: core.update(a=1, b=1),
        lambda core: core.__delitem__("b"),
        lambda core: core.remove_many(["b"]),
        lambda core: core.modify("a", lambda n: n),
        lambda core: core.compare_and_set("b", 1, hutch.MISSING),
        list,
    ],
)
def test_a_namespace_whose_name_was_evicted_is_named_again_by_any_write(
    store: hutch.Store, server: redis.Redis, prefix: str, write: Callable[[hutch.Namespace], object]
) -> None:
    with store.open("core") as core:
        core.update(a=1, b=1)
        server.delete(f"{prefix}:namespaces")
        assert store.namespaces() == []
        if write is list:
            server.delete(f"{prefix}:{{core}}:order")
        write(core)
        assert store.namespaces() == ["core"]


def test_a_rebuild_takes_pages_and_stays_right_while_others_write(
    store: hutch.Store, server: redis.Redis, redis_server: RedisServer, prefix: str
) -> None:
    kept = {f"kept{i:05}": i for i in range(5000)}
    order = f"{prefix}:{{core}}:order"
    stop = threading.Event()
    written: list[set[str]] = []
    failures: list[BaseException] = []

    def write(number: int) -> None:
        mine: set[str] = set()
        rng = random.Random(number)
        try:
            with hutch.connect(f"{redis_server.url}?prefix={prefix}") as own, own.open("core") as core:
                while not stop.is_set():
                    key = f"own{number}:{rng.randrange(200)}"
                    if rng.random() < 0.5:
                        core[key] = 1
                        mine.add(key)
                    else:
                        core.pop(key, None)
                        mine.discard(key)
        except BaseException as error:
            failures.append(error)
        written.append(mine)

    with store.open("core") as core:
        core.update(kept)
        threads = [threading.Thread(target=write, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(15):
                server.delete(order)
                listed = list(core)
                assert len(listed) == len(set(listed))
                assert [key for key in listed if key.startswith("kept")] == list(kept)
                server.delete(order)
                assert [key for key, _ in core.items() if key.startswith("kept")] == list(kept)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert not failures
        assert list(core) == sorted(set(kept).union(*written))
        assert len(core) == len(list(core))


def test_a_rebuild_keeps_the_server_busy_for_a_page_at_a_time() -> None:
    with RedisServer() as own, closing(redis.Redis(own.host, own.port)) as client:
        with hutch.connect(own.url) as store, store.open("core") as core:
            core.update({f"{i:06}": "x" * 100 for i in range(50_000)})
            client.delete("hutch:{core}:order")
            client.config_resetstat()
            assert len(list(core)) == 50_000
            stats: dict[str, Any] = client.info("commandstats")
        assert stats["cmdstat_hscan"]["calls"] >= 200
        longest_us = max(stats[name]["usec_per_call"] for name in ("cmdstat_evalsha", "cmdstat_hscan"))
        print(f"a step of a rebuild took {longest_us:.0f} us on average")
        assert longest_us < 20_000


def test_a_replica_whose_listing_was_evicted_says_that_it_cannot_be_rebuilt_there() -> None:
    with RedisServer() as own, closing(redis.Redis(own.host, own.port)) as client:
        options = {"url": own.url, "retry_s": 0}
        with (
            hutch.connect({"STORAGE": "redis", "STORAGE_CONFIG": options}) as store,
            store.open("core") as core,
        ):
            core.update(a=1, b=2)
            client.delete("hutch:{core}:order")
            client.replicaof("127.0.0.1", "1")
            with pytest.raises(hutch.StorageUnavailableError, match=r"evicted the listing .* read-only replica"):
                list(core)


@pytest.mark.parametrize(
    ("policy", "warned"), [("allkeys-lru", True), ("allkeys-random", True), ("volatile-lru", False)]
)
def test_a_policy_that_may_evict_what_is_stored_is_a_warning_at_connect(policy: str, warned: bool) -> None:
    with RedisServer(options=(f"maxmemory-policy {policy}",)) as own:
        for lazy in (False, True):
            options = {"url": own.url, "lazy_connect": lazy}
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                with (
                    hutch.connect({"STORAGE": "redis", "STORAGE_CONFIG": options}) as store,
                    store.open("core") as core,
                ):
                    assert len(caught) == (0 if lazy else int(warned))
                    core["key"] = 1
                    assert core["key"] == 1
            assert [one.category for one in caught] == [RuntimeWarning] * warned
            assert all(policy in str(one.message) and "noeviction" in str(one.message) for one in caught)


def test_a_server_that_really_evicts_loses_no_listing_that_it_has_the_values_of() -> None:
    options = ("maxmemory 6mb", "maxmemory-policy allkeys-lru", "maxmemory-samples 10")
    with (
        RedisServer(options=options) as own,
        closing(redis.Redis(own.host, own.port)) as client,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore", RuntimeWarning)
        store = hutch.connect(own.url)
        handles = [store.open(f"settings{i}") for i in range(10)]
        for handle in handles:
            handle.update({f"k{i}": i for i in range(300)})
        for i in range(40):
            for handle in handles:
                handle.get("k1")
            pipe = client.pipeline(transaction=False)
            for number in range(300):
                pipe.set(f"cache:{i}:{number}", "x" * 1000)
            pipe.execute()
        evicted = 0
        for handle in handles:
            evicted += not client.exists(f"hutch:{{{handle.namespace}}}:order")
            count = len(handle)
            try:
                assert len(list(handle)) == count
            except hutch.CorruptValueError:
                assert count < 300
            handle.close()
        store.close()
        print(f"{evicted} of 10 listings were evicted")
