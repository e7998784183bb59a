"""PinnedEnvironment: the reading half of an environment on one read transaction, for a snapshot.

While it is open, LMDB reuses no page that was freed since, so the file grows with every write. Three things end it, and
its next read says which: its age, a write of this process that needs a larger map, and a fork or compaction, which
close the files.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from itertools import starmap
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar
from weakref import ref

import lmdb

from hutch import CapabilityError, StoreNotOpenError, deadlines
from hutch.handlers import raised_by_handler

from .storage import LmdbStorage

if TYPE_CHECKING:
    from .environment import Environment
    from .plugin import LmdbPlugin
    from .slot import Txn

T = TypeVar("T")
# py-lmdb then ends all transactions.
_CLOSED = "a write of this process needed a larger map, or a fork or compaction closed the files"


class PinnedEnvironment:
    """One state of the store. Thread-safe."""

    reads_large_chunks = True
    is_shared = False

    def __init__(self, environment: Environment, max_age_s: float) -> None:
        self.path = environment.path
        self.expiring: set[bytes] = set()
        #: What `read` returns of a store that was never written to: there is no transaction.
        self._is_empty = False
        self._reason = ""
        self._max_age_s = max_age_s
        self._since_s = time.monotonic()
        # Filled by one call of C code, so that no signal handler comes between.
        self._txns: list[Txn] = []
        environment.snapshots.append(ref(self))
        try:
            environment.read(partial(self._pin, environment), None)
            self._is_empty = not self._txns
            self.now_ms = deadlines.now_ms()
        except BaseException:
            # A stored traceback would keep the transaction.
            self.end("it was interrupted")
            raise

    def _pin(self, environment: Environment, _: Txn) -> None:
        # The transaction of `read` ends with it.
        self._txns.clear()
        self._txns += starmap(environment.begin, ((),))

    @property
    def age_s(self) -> float:
        return time.monotonic() - self._since_s

    def begin(self) -> Txn:
        if self._txns and self.age_s <= self._max_age_s:
            return self._txns[0]
        if self._is_empty and not self._reason:
            raise lmdb.NotFoundError("nothing was written yet")
        self.is_pinned()  # finds the reason if it is the age
        raise self._ended()

    def read(self, fn: Callable[[Txn], T], nothing: T) -> T:
        if self._is_empty and not self._reason:
            return nothing
        try:
            return fn(self.begin())
        except lmdb.Error as error:
            if raised_by_handler(error):
                raise
            self.end(_CLOSED)
            failure = error
        raise self._ended() from failure

    def write(self, *_: object) -> NoReturn:
        raise CapabilityError(f"lmdb {self.path}: a snapshot never changes; nothing was written")

    def is_pinned(self) -> bool:
        """Return whether the snapshot keeps pages from being reused; end it if it is older than `max_age_s`."""
        if self.age_s > self._max_age_s:
            self.end(f"it is older than max_age_s = {self._max_age_s:g} seconds")
        return bool(self._txns)

    def end(self, reason: str) -> None:
        """Let LMDB reuse the pages. Reading raises StoreNotOpenError with `reason`, the first one that was given."""
        self._reason = self._reason or reason
        txns, self._txns = self._txns, []
        for txn in txns:
            txn.abort()

    def _ended(self) -> StoreNotOpenError:
        return StoreNotOpenError(
            f"lmdb {self.path}: this snapshot has ended, because {self._reason or 'it was closed'}. Take a new "
            "one with store.snapshot(), or run the copy or dump again; max_age_s sets how long one may take"
        )


class LmdbSnapshot:
    """What `LmdbPlugin.snapshot` returns."""

    def __init__(self, plugin: LmdbPlugin, environment: Environment, max_age_s: float) -> None:
        self._plugin = plugin
        self._pinned: Any = PinnedEnvironment(environment, max_age_s)
        self.now_ms: int = self._pinned.now_ms

    def open(self, namespace: str) -> LmdbStorage:
        return LmdbStorage(self._plugin, namespace, self._pinned)

    def namespaces(self) -> list[str]:
        return self._plugin.list_namespaces(self._pinned, self.now_ms)

    def close(self) -> None:
        self._pinned.end("it was closed")
