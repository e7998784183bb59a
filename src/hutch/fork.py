"""Forked children: functions that run in each, locks that are free there, and the objects that must know."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


def run_in_child(fn: Callable[[], None]) -> None:
    """Call `fn` in every process that this one forks, after the functions registered before it."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=fn)


class WeakRefs(Generic[T]):
    """Weak references to live objects. Thread-safe; the objects are compared by identity.

    Dead references are removed by C code. `weakref.WeakSet` does it in Python code, which the garbage collector runs
    anywhere: what a signal handler raises in it is dropped, although it interrupts some verb.
    """

    __slots__ = ("_references",)

    def __init__(self) -> None:
        self._references: set[weakref.ref[T]] = set()

    def add(self, item: T) -> None:
        """Add `item`, which must be hashed by its identity."""
        self._references.add(weakref.ref(item, self._references.discard))

    def live(self) -> list[T]:
        """Return the objects that are still alive."""
        return [item for reference in list(self._references) if (item := reference()) is not None]


class ForkSafeLock:
    """A holder of a reentrant lock that is replaced by a new one in a forked child: ``with lock.current:``.

    `current` is a C lock, acquired and released without Python code, so no signal handler can run between acquiring it
    and the block. A thread may acquire it again: a signal handler, or a finalizer that runs inside the block, does so.
    Such a nested block sees what the outer block has done so far.
    """

    __slots__ = ("__weakref__", "current")

    def __init__(self) -> None:
        self.current = threading.RLock()
        _all.add(self)


_all: WeakRefs[ForkSafeLock] = WeakRefs()


def _after_fork_in_child() -> None:
    # A new object rather than a reset lock: the block that forked still releases the old one.
    for lock in _all.live():
        lock.current = threading.RLock()


run_in_child(_after_fork_in_child)
