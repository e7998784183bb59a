"""One lock for every key that a thread of this process holds right now, shared by all handles on the same data."""

from __future__ import annotations

import os
import threading
from collections.abc import Hashable, Iterator
from contextlib import contextmanager

_held: dict[tuple[Hashable, str], tuple[threading.RLock, list[None]]] = {}
_registry = threading.Lock()


@contextmanager
def held(scope: Hashable, key: str) -> Iterator[None]:
    """Hold `key` within `scope` against the other threads of this process; a thread may hold it twice."""
    place = (scope, key)
    with _registry:
        lock, holders = _held.setdefault(place, (threading.RLock(), []))
        holders.append(None)
    try:
        with lock:
            yield
    finally:
        with _registry:
            holders.pop()
            if not holders and _held.get(place, (None,))[0] is lock:
                del _held[place]


def _forget_after_fork() -> None:
    # The threads that held these locks do not exist in the child.
    global _registry  # noqa: PLW0603
    _registry = threading.Lock()
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)
