"""What all promises use: fixtures, skips for missing capabilities, and threads that cannot hang the run."""

from __future__ import annotations

import contextlib
import math
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import pytest

import hutch

T = TypeVar("T")

#: Longer than any promise takes on a slow machine: what is not done by then hangs.
PATIENCE_S = 90.0


class Promises:
    """The fixtures of all promises. A subclass defines `config`."""

    @pytest.fixture
    def config(self) -> Any:
        """Return an argument for `hutch.connect` that leads to one storage per test, empty when the test starts."""
        raise NotImplementedError(f"{type(self).__name__} must define a fixture `config`; see hutch.testing")

    @pytest.fixture
    def store(self, config: Any) -> Iterator[hutch.Store]:
        """Yield a store connected with `config`, and close it after the test."""
        store = hutch.connect(config)
        yield store
        with contextlib.suppress(hutch.StoreNotOpenError):
            store.close()

    @pytest.fixture
    def ns(self, store: hutch.Store) -> Iterator[hutch.Namespace]:
        """Yield an open, empty namespace, and close it after the test."""
        ns = store.open("core")
        yield ns
        with contextlib.suppress(hutch.StoreNotOpenError):
            ns.close()


def needs(store: hutch.Store, *capabilities: str) -> None:
    """Skip the test unless the engine declares all `capabilities`."""
    missing = [name for name in capabilities if name not in store.capabilities]
    if missing:
        pytest.skip(f"the {store.name} engine does not declare {' and '.join(missing)}")


def stage2(store: hutch.Store, namespace: str) -> Any:
    """Open `namespace` by the plugin's own `open` and return that storage, without the mapping around it."""
    return store.factory.open(namespace)


def encoded(store: hutch.Store, namespace: str) -> hutch.EncodedStorage:
    """Return the storage of an engine that stores encoded bytes; skip the test for other engines."""
    storage = stage2(store, namespace)
    if isinstance(storage, hutch.EncodedStorage):
        return storage
    storage.close()
    pytest.skip(f"the {store.name} engine is not a hutch.EncodedStorage")


def listing(store: hutch.Store) -> list[str]:
    """Return the namespaces that hold data; skip the test for an engine that cannot list them."""
    try:
        return store.namespaces()
    except hutch.CapabilityError:
        pytest.skip(f"the {store.name} engine cannot list its namespaces")


def enter(ns: hutch.Namespace, key: str) -> None:
    """Enter a mutable block on `key` and leave it at once."""
    with ns.mutable(key):
        pass


def identical(a: Any, b: Any) -> bool:
    """Return whether `a` and `b` are equal in value and type at every level; NaN equals NaN, and -0.0 is not 0.0."""
    if type(a) is not type(b):
        return False
    if isinstance(a, float):
        return (a == b and math.copysign(1, a) == math.copysign(1, b)) or (a != a and b != b)
    if isinstance(a, complex):
        return identical(a.real, b.real) and identical(a.imag, b.imag)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(identical, a, b))
    if isinstance(a, dict):
        return len(a) == len(b) and all(map(identical, a.items(), b.items()))
    if isinstance(a, set | frozenset):
        return len(a) == len(b) and all(any(identical(x, y) for y in b) for x in a)
    return bool(a == b) and repr(a) == repr(b)


def together(*work: Callable[[], T], patience_s: float = PATIENCE_S) -> list[T]:
    """Run each callable in its own thread, all started together and switched often; return their results in order.

    Raises the first error of a thread, and AssertionError if a thread is not done after `patience_s` seconds.
    """
    results: dict[int, T] = {}
    errors: list[BaseException] = []
    start = threading.Barrier(len(work))

    def run(index: int, job: Callable[[], T]) -> None:
        try:
            start.wait(patience_s)
            results[index] = job()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=item, daemon=True) for item in enumerate(work)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + patience_s
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
    finally:
        sys.setswitchinterval(interval)
    if errors:
        raise errors[0]
    hanging = sum(thread.is_alive() for thread in threads)
    assert not hanging, f"{hanging} of {len(threads)} threads were not done after {patience_s:.0f} s"
    return [results[index] for index in range(len(work))]
