"""One lock for every key that a thread of this process holds right now, shared by all handles on the same data."""

from __future__ import annotations

import os
import threading
from collections.abc import Hashable

_held: dict[tuple[Hashable, str], tuple[threading.RLock, list[None]]] = {}
_registry = threading.Lock()


class held:  # noqa: N801 - used as a verb
    """Hold `key` within `scope` against the other threads of this process; a thread may hold it twice.

    ``with held(scope, key):``. A class, since a generator would cost as much again as the locks.
    """

    __slots__ = ("_holders", "_lock", "_place")

    def __init__(self, scope: Hashable, key: str) -> None:
        self._place = (scope, key)

    def __enter__(self) -> None:
        with _registry:
            self._lock, self._holders = _held.setdefault(self._place, (threading.RLock(), []))
            self._holders.append(None)
        try:
            self._lock.acquire()
        except BaseException:  # Ctrl-C
            self._forget()
            raise

    def __exit__(self, *_: object) -> None:
        self._lock.release()
        self._forget()

    def _forget(self) -> None:
        with _registry:
            self._holders.pop()
            if not self._holders and _held.get(self._place, (None,))[0] is self._lock:
                del _held[self._place]


def _forget_after_fork() -> None:
    # The threads that held these locks do not exist in the child.
    global _registry  # noqa: PLW0603
    _registry = threading.Lock()
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)
