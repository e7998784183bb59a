"""Test the LMDB engine's read cache: never stale, bounded, and given up where it does not help."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

import hutch
from hutch.testing.conformance.child import Child
from hutch.testing.conformance.kit import together


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"lmdb://{tmp_path}/state?durability=relaxed"


@pytest.fixture
def space(url: str) -> Iterator[hutch.Namespace]:
    with hutch.connect(url) as store, store.open("core") as space:
        space.update({f"k{number}": [number] for number in range(1000)})
        yield space


def kept(space: hutch.Namespace) -> dict[str, bytes]:
    """Return the cached frames; caching begins after some hundred reads without a write."""
    read_cache = space._store._read_cache  # type: ignore[attr-defined]
    return {} if read_cache.current is None else read_cache.current.bodies


def read_often(space: hutch.Namespace, times: int = 1000) -> None:
    for _ in range(times):
        assert space["k1"] == [1]


def test_frequent_reads_are_cached_while_nothing_is_written(space: hutch.Namespace) -> None:
    assert not kept(space)
    read_often(space)
    assert list(kept(space)) == ["k1"]


def test_nothing_is_cached_while_reads_and_writes_alternate(space: hutch.Namespace) -> None:
    for number in range(1000):
        space["k2"] = number
        read_often(space, 20)
        assert not kept(space)


def test_a_cached_value_is_a_new_object_at_each_read(space: hutch.Namespace) -> None:
    read_often(space)
    space["k1"].append("changed by who read it")
    assert space["k1"] == [1]
    assert space["k1"] is not space["k1"]


@pytest.mark.parametrize("change", ["set", "update", "delete", "modify", "clear", "drop"])
def test_a_change_is_seen_at_once(url: str, space: hutch.Namespace, change: str) -> None:
    read_often(space)
    assert "k1" in kept(space)
    if change == "set":
        space["k1"] = "new"
    elif change == "update":
        space.update(k1="new", k2=2)
    elif change == "delete":
        del space["k1"]
    elif change == "modify":
        space.modify("k1", lambda _: "new")
    elif change == "clear":
        space.clear()
    else:
        with hutch.connect(url) as other:
            other.drop("core")
    assert space.get("k1") == ("new" if change in ("set", "update", "modify") else None)


def test_a_change_by_another_namespace_or_handle_does_no_harm(url: str, space: hutch.Namespace) -> None:
    with hutch.connect(url) as store, store.open("other") as other, hutch.connect(url) as third:
        read_often(space)
        other["k1"] = "other"
        assert space["k1"] == [1]
        read_often(space)
        with third.open("core") as same:
            same["k1"] = "new"
        assert space["k1"] == "new"


def test_what_another_process_writes_is_seen_at_once(url: str, space: hutch.Namespace) -> None:
    with Child(url) as child:
        for number in range(20):
            space["k1"] = [1]
            read_often(space)
            assert "k1" in kept(space)
            child.call("update", "core", {"k1": number})
            assert space["k1"] == number


def test_no_thread_ever_reads_an_older_value_than_was_acknowledged(space: hutch.Namespace) -> None:
    """Writes come in bursts with reads between them, so that caching starts and stops all the time."""
    written = [0]
    done = threading.Event()

    def write() -> None:
        try:
            for number in range(1, 400):
                space["n"] = number
                written[0] = number
                for _ in range(300):
                    assert space["n"] == number
        finally:
            done.set()

    def read() -> int:
        times = 0
        while not done.is_set():
            known = written[0]
            assert space.get("n", 0) >= known
            times += 1
        return times

    _, *times = together(write, read, read, read)
    assert all(times)


def test_it_takes_no_more_memory_than_allowed(url: str) -> None:
    limit = 200_000
    with hutch.connect(f"{url}&cache_bytes={limit}") as store, store.open("core") as space:
        space.update({f"k{number}": [number, "x" * 500] for number in range(2000)})
        for number in range(2000):
            assert space[f"k{number}"][0] == number
        held = kept(space)
        assert 0 < len(held) < 2000
        assert sum(sys.getsizeof(key) + sys.getsizeof(body) for key, body in held.items()) <= limit


def test_a_value_that_does_not_fit_is_not_copied(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with hutch.connect(f"{url}&cache_bytes=100000") as store, store.open("core") as space:
        space.update(k1=[1], large=b"x" * 200_000)
        read_often(space)
        copied: list[bytes] = []
        monkeypatch.setattr(space._store, "_body", copied.append)
        assert space["large"] == b"x" * 200_000
        assert not copied
        assert list(kept(space)) == ["k1"]


@pytest.mark.parametrize(("cache_bytes", "again"), [(100_000, 3), (8 << 20, 100)])
def test_it_ends_where_there_are_too_few_hits(url: str, cache_bytes: int, again: int) -> None:
    """Few reads hit, or, with room for all, hardly any key is read twice."""
    with hutch.connect(f"{url}&cache_bytes={cache_bytes}") as store, store.open("core") as space:
        space.update({f"k{number}": number for number in range(10_000)})
        for number in range(6_000):
            assert space[f"k{number}"] == number
            if not number % again:
                assert space["k0"] == 0
        assert not kept(space)
        for _ in range(2_000):
            assert space["k0"] == 0
        assert not kept(space), "it does not begin again at once"


def test_caching_continues_while_most_reads_hit(url: str) -> None:
    """Ten thousand keys, all of which fit, are read again and again."""
    with hutch.connect(url) as store, store.open("core") as space:
        space.update({f"k{number}": number for number in range(10_000)})
        picks = Random(7)
        for _ in range(60_000):
            number = picks.randrange(10_000)
            assert space[f"k{number}"] == number
        assert len(kept(space)) > 9_900


@pytest.mark.parametrize("options", ["&cache_bytes=0"])
def test_it_can_be_switched_off(url: str, options: str) -> None:
    with hutch.connect(url + options) as store, store.open("core") as space:
        space["k1"] = [1]
        read_often(space, 3000)
        assert not kept(space)


@pytest.mark.parametrize("codec", ["json", "pickle"])
def test_values_of_other_codecs_are_not_cached(tmp_path: Path, codec: str) -> None:
    config: dict[str, Any] = {"STORAGE": f"lmdb://{tmp_path}/state", "CODEC": codec}
    with hutch.connect(config) as store, store.open("core") as space:
        space["k1"] = [1]
        read_often(space, 3000)
        assert not kept(space)
