"""Forked children: functions that run in each, and `ForkSafeLock`, which is free there even if the parent held it."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable


def run_in_child(fn: Callable[[], None]) -> None:
    """Call `fn` in every process that this one forks, after the functions registered before it."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=fn)


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


_all: weakref.WeakSet[ForkSafeLock] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    # A new object rather than a reset lock: the block that forked still releases the old one.
    for lock in list(_all):
        lock.current = threading.RLock()


run_in_child(_after_fork_in_child)
