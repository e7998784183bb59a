"""Test the layers while a signal handler writes or raises at every point at which it may run."""

from __future__ import annotations

import contextlib
import functools
import math

import pytest

from hutch.layers import cache, metrics
from hutch.layers.cache import CacheLayer
from hutch.testing.signal_points import Interrupt, points, raise_interrupt, run_at

from .test_keylocks import PlainPlugin

# The tracer of coverage has a lock of its own, and sees signals between hutch's instructions.
pytestmark = pytest.mark.usefixtures("unmeasured")


def test_a_handler_that_writes_never_leaves_an_old_value_in_the_cache() -> None:
    storage = CacheLayer(PlainPlugin().open("core"), max_bytes=10_000, ttl_s=math.inf)
    storage.set("k", 0)
    cached = storage._cached

    def read() -> None:
        cached._forget(None)
        storage.get("k")
        storage.get("k")

    for point in points(read):
        run_at(point, functools.partial(storage.set, "k", point), read)
        assert storage.get("k") == point, f"point {point}"
        assert cached._bytes == sum(entry.size for entry in cached._entries.values())
        assert (cached._readings, cache._writes) == ({}, {})


def test_a_handler_that_raises_leaves_the_cache_as_right_as_before() -> None:
    inner = PlainPlugin().open("core")
    storage, other = (CacheLayer(inner, max_bytes=2_000, ttl_s=math.inf) for _ in range(2))
    cached = storage._cached

    def work() -> None:
        for number in range(8):
            storage.set(f"k{number}", "x" * 200)
            storage.get(f"k{number}")
            storage.get(f"k{number}")
        storage.clear()

    for point in points(work, 200):
        with contextlib.suppress(Interrupt):
            run_at(point, raise_interrupt, work)
        assert cached._bytes == sum(entry.size for entry in cached._entries.values())
        assert cache._writes == {}
        storage.set("k", point)
        assert (other.get("k"), other.get("k"), "k" in other._cached._entries) == (point, point, True)


def test_a_handler_that_writes_is_counted_by_the_metrics() -> None:
    layer = metrics.MetricsLayer(PlainPlugin().open("core"), "handlers", "core")

    def count() -> int:
        return metrics.snapshot()["handlers", "core"]["set"].calls

    def work() -> None:
        layer.set("k", 1)

    for point in points(work):
        before = count()
        run_at(point, lambda: layer.set("other", 2), work)
        assert count() == before + 2
