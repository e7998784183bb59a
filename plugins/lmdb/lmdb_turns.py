"""Writers of one process take turns; those who wait are committed together, in one transaction, with one flush.

Group commit, as in PostgreSQL's WAL or InnoDB's log: who gets the turn leads, and takes with it what all others asked
for meanwhile. So with many threads the flushes, which are what a durable write costs, are shared.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from hutch import StorageUnavailableError

#: What is done in a write transaction, which comes first among its arguments. It may be done again from its start, in
#: another transaction; only what the last one returned counts.
Work = Callable[..., Any]

# A larger group would make one transaction of unlimited size, and gains nothing.
_LARGEST_GROUP = 128
# Those who were committed a moment ago are about to ask again: so long at most a leader waits for as many.
# Without it they miss each other, and every other turn is for one half of them. With eight threads and a flush of 1 ms
# it made 5.5 times as many writes a second as a transaction each; waiting 60 us 4.4, and with a flush of 0.1 ms 2.4
# instead of 1.7.
_LINGER_S = 150e-6
# A turn that nobody told of is found after this.
_PATIENCE_S = 0.02


class _Waiting:
    __slots__ = ("arguments", "error", "is_done", "result", "wake", "work")

    def __init__(self, work: Work, arguments: tuple[Any, ...]) -> None:
        self.work, self.arguments = work, arguments
        self.is_done = False
        self.result: Any = None
        self.error: BaseException | None = None
        self.wake = threading.Lock()
        self.wake.acquire()


def _do_all(txn: Any, group: list[_Waiting]) -> list[Any]:
    # Not a comprehension: if it fails, its scope would keep the transaction alive.
    results = []
    for one in group:
        results.append(one.work(txn, *one.arguments))
    return results


class Turns:
    """The turns of one environment. `commit` does some work in a transaction of its own, or raises and undoes it.

    A thread that is alone need not ask `write`: while `last_group` is 1 and it gets `lock` without waiting, it may
    commit by itself, and then calls `wake_next` if somebody is `waiting`.
    """

    def __init__(self, commit: Callable[[Work, tuple[Any, ...]], Any]) -> None:
        self._commit = commit
        #: Held by who has the turn, and by whoever must keep writers out. Reentrant for the garbage collector's sake.
        self.lock = threading.RLock()
        self.waiting: deque[_Waiting] = deque()
        self.last_group = 1
        # How many wrote, or waited, when the last turn ended.
        self._crowd = 1

    def wake_next(self) -> None:
        """Tell one who waits that the turn is free. To be called after `lock` was released."""
        with suppress(IndexError, RuntimeError):  # nobody waits; has been told
            self.waiting[0].wake.release()

    def after_fork_in_child(self) -> None:
        """The threads that waited or had the turn do not exist here."""
        self.lock = threading.RLock()
        self.waiting.clear()
        self.last_group = 1

    def write(self, work: Work, arguments: tuple[Any, ...]) -> Any:
        """What `work` returned in a transaction that was committed. Raises what it or the commit raised."""
        own = _Waiting(work, arguments)
        self.waiting.append(own)
        try:
            while not own.is_done:
                if self.lock.acquire(False):
                    try:
                        if not own.is_done:
                            self._lead(own)
                    finally:
                        self.lock.release()
                        self.wake_next()
                else:
                    own.wake.acquire(timeout=_PATIENCE_S)
        except BaseException:
            # Ctrl-C: what no leader has taken yet will not happen.
            with suppress(ValueError):
                self.waiting.remove(own)
            raise
        if own.error is not None:
            raise own.error
        return own.result

    def _lead(self, own: _Waiting) -> None:
        group = self._group(own)
        try:
            try:
                results = self._commit(_do_all, (group,))
            except Exception:
                if len(group) == 1:
                    raise
                # What is wrong with one of them must not befall the others.
                for one in group:
                    self._commit_alone(one)
            else:
                for one, one.result in zip(group, results, strict=True):
                    one.is_done = True
        except BaseException as error:
            own.error = error
        finally:
            # Those who came meanwhile, too.
            self._crowd = len(group) + len(self.waiting)
            for one in group:
                if not one.is_done and one is not own and one.error is None:
                    one.error = StorageUnavailableError(
                        "the thread that committed this write together with its own was ended meanwhile; it is not "
                        "known whether it was written. Look, or write again"
                    )
                one.is_done = True
                with suppress(RuntimeError):
                    one.wake.release()

    def _group(self, own: _Waiting) -> list[_Waiting]:
        """Who is committed in this turn, in the order in which they came."""
        if threading.current_thread() is threading.main_thread():
            # Ctrl-C may end this one anywhere. It must not leave others in doubt about their writes.
            self.waiting.remove(own)
            self.last_group = 1 + bool(self.waiting)
            return [own]
        if self.last_group > 1:
            until = time.perf_counter() + _LINGER_S
            while len(self.waiting) < self._crowd and time.perf_counter() < until:
                time.sleep(0)
        group: list[_Waiting] = []
        with suppress(IndexError):
            while len(group) < _LARGEST_GROUP:
                group.append(self.waiting.popleft())
        if own not in group:
            self.waiting.remove(own)
            group.append(own)
        self.last_group = len(group)
        return group

    def _commit_alone(self, one: _Waiting) -> None:
        try:
            one.result = self._commit(one.work, one.arguments)
        except Exception as error:
            one.error = error
        one.is_done = True
