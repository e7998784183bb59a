"""ForkSafeLock: a lock that is free in a forked child, whoever held it in the parent."""

from __future__ import annotations

import os
import threading
import weakref


class ForkSafeLock:
    """Hold a reentrant lock that the children of a fork get anew: ``with lock.current:``.

    `current` is a lock of C, entered and left without Python code, so that no signal handler comes between taking it
    and the block. A thread may take it twice: a handler, or a finalizer that the collector runs inside the block, does.
    Such a nested block sees whatever the outer one has done so far.
    """

    __slots__ = ("__weakref__", "current")

    def __init__(self) -> None:
        self.current = threading.RLock()
        _all.add(self)


_all: weakref.WeakSet[ForkSafeLock] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    # Another object, not a lock that is reset: the block in which the fork was made gives its own back.
    for lock in list(_all):
        lock.current = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
