"""CommitQueue: the order in which the threads of one process write to one LMDB environment, and their group commit.

Threads write in the order in which they asked. The thread whose turn it is leads: it commits the writes of the threads
behind it together with its own, in one transaction with one flush (group commit, as in PostgreSQL's WAL). So with many
threads the flushes, which are what a durable write costs, are shared.

The queue is the lock, as in `hutch.locks.FairLock`: the thread of its first request leads. One atomic operation takes
the lock and one gives it back. Whether a group was committed is one fact in one place, `Group.committed`, set by the
same call of C code that commits. So a signal handler that raises anywhere leaves no thread in doubt about its write,
and no thread waiting for a leader that is gone.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Protocol

from hutch import StoreError
from hutch.handlers import raised_by_handler

#: What is done in a write transaction. Its first argument is the `Slot` of the transaction. It may be called again from
#: its start, in another transaction; only what the last call returned counts.
Work = Callable[..., Any]

# A larger group would make one transaction of unlimited size, and gains nothing.
_LARGEST_GROUP: Final = 128
# Threads that were committed a moment ago are about to ask again: a leader waits at most this long for as many.
# Without it they miss each other, and every other turn commits only half of them. With eight threads and a flush of
# 1 ms it made 5.5 times as many writes per second as a transaction each; waiting 60 us 4.4, and with a flush of 0.1 ms
# 2.4 instead of 1.7.
_LINGER_S: Final = 150e-6
# A waiting thread is woken by the one before it. Where a signal handler raised in place of the wake-up, the wait ends
# after this.
_LONGEST_NAP_S: Final = 0.02

_get_ident = threading.get_ident


class Group:
    """The writes of one attempt to commit."""

    __slots__ = ("committed", "is_over", "requests", "results")

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.results: list[Any] = []
        #: Not empty once the transaction is committed.
        self.committed: list[None] = []
        self.is_over = False


class Request:
    """The place of one call in the queue. The attributes are those of the class until they are needed."""

    thread: int
    #: None as long as it is not known whether the call has to wait, and where it keeps writers out and writes nothing.
    work: Work | None = None
    arguments: tuple[Any, ...] = ()
    #: The last group that it was part of.
    group: Group | None = None
    #: Whether it is committed in a transaction of its own.
    is_alone = False
    is_withdrawn = False
    #: Locked while the call sleeps; None as long as it never had to.
    wake: threading.Lock | None = None
    #: When the call is given up; None as long as it never had to wait.
    deadline_s: float | None = None


class Committer(Protocol):
    """What a queue needs of its environment."""

    def transact(
        self, request: Request, work: Work, arguments: tuple[Any, ...], committed: list[None] | None = None
    ) -> Any: ...

    def is_exclusive(self) -> bool: ...

    def pause_writer(self) -> None: ...

    def deadline(self) -> float: ...

    def time_out(self, thread: int) -> StoreError: ...


class CommitQueue:
    """The queue of one environment."""

    def __init__(self, committer: Committer) -> None:
        self._committer = committer
        self._transact = committer.transact
        self.requests: deque[Request] = deque()
        # Held while requests are assigned to a group, or withdrawn. A nested call may hold it twice.
        self._claims = threading.RLock()
        self._last_group = 1
        # How many wrote, or waited, when the last group was committed.
        self._crowd = 1

    def write(self, work: Work, *arguments: Any) -> Any:
        """Return ``work(slot, *arguments)`` of a write transaction that was committed.

        Raises what `work` or the commit raised, and StorageTimeoutError where other writers took longer than `wait_s`.
        """
        requests = self.requests
        request = Request()
        request.thread = _get_ident()
        try:
            requests.append(request)
            if self._last_group == 1 and requests[0] is request:
                return self._transact(request, work, arguments)
            request.arguments = arguments
            request.work = work
            return self._take_turn(request)
        finally:
            # The removal comes first: whatever a handler raises after it, the next thread gets its turn.
            try:
                requests.remove(request)
            except ValueError as error:
                # The leader of its group has removed it, or a handler raised before it was appended.
                if raised_by_handler(error):
                    raise
            if requests:
                self._wake_first()

    def run_exclusively(self, fn: Callable[[], None]) -> None:
        """Call `fn` while nobody writes. Raises StorageTimeoutError as `write` does."""
        request = new_ticket()
        try:
            self.requests.append(request)
            self._wait(request)
            fn()
        finally:
            self.leave(request)

    def enter(self, ticket: Request) -> None:
        """Keep writers out until `leave` is called with the same `ticket`: for fork hooks, which span two calls."""
        self.requests.append(ticket)
        self._wait(ticket)

    def leave(self, ticket: Request) -> None:
        """Let writers in again; does nothing where `ticket` is not in the queue."""
        _remove(self.requests, ticket)
        if self.requests:
            self._wake_first()

    def after_fork_in_child(self) -> None:
        """Forget the threads that the child does not have."""
        thread = _get_ident()
        left = [request for request in self.requests if request.thread == thread]
        self.requests.clear()
        self.requests.extend(left)
        self._claims = threading.RLock()
        self._last_group = 1

    # --- waiting ---

    def _take_turn(self, request: Request) -> Any:
        if not self._wait(request):
            return _result(request)
        try:
            is_nested = self.requests[0] is not request
        except IndexError:
            is_nested = True
        # A nested call comes from a signal handler or a finalizer, which interrupted the outer call of this thread.
        if not is_nested:
            self._linger()
            return self._lead(request)
        if self._committer.is_exclusive():
            self._committer.pause_writer()
        assert request.work is not None
        return self._transact(request, request.work, request.arguments)

    def _wait(self, request: Request) -> bool:
        """Return True once it is the calling thread's turn, or False once a leader has committed the request."""
        requests = self.requests
        while True:
            if (group := request.group) is not None and group.committed:
                return False
            try:
                first = requests[0]
            except IndexError:  # the leader of its group has removed it a moment ago
                continue
            if first.thread == request.thread or self._committer.is_exclusive():
                return True
            if request.wake is None:
                wake = threading.Lock()
                # Nobody else knows it yet. A wake-up is a release, and each wait takes it again.
                wake.acquire()
                request.wake = wake
                continue
            if request.deadline_s is None:
                request.deadline_s = self._committer.deadline()
            left_s = request.deadline_s - time.monotonic()
            if left_s <= 0 and self._withdraw(request):
                raise self._committer.time_out(first.thread)
            wake.acquire(timeout=min(max(left_s, 0.001), _LONGEST_NAP_S))

    def _withdraw(self, request: Request) -> bool:
        """Take the request back; return False where it is being committed at this moment."""
        with self._claims:
            if request.group is not None and not request.group.is_over:
                return False
            request.is_withdrawn = True
            return True

    def _wake_first(self) -> None:
        try:
            wake = self.requests[0].wake
        except IndexError:
            return
        _wake(wake)

    # --- leading ---

    def _linger(self) -> None:
        if self._last_group > 1:
            requests, until = self.requests, time.perf_counter() + _LINGER_S
            while len(requests) < self._crowd and time.perf_counter() < until:
                time.sleep(0)

    def _lead(self, own: Request) -> Any:
        """Commit the request together with those of the threads that wait."""
        while True:
            group = Group()
            try:
                self._transact(own, self._do_group, (own, group), group.committed)
            except (MemoryError, StoreError) as error:
                if len(group.requests) < 2 or raised_by_handler(error):
                    raise
                # What is wrong with one of them must not concern the others: each is committed by its own thread.
                for one in group.requests:
                    one.is_alone = True
                continue
            finally:
                group.is_over = True
            self._crowd = len(self.requests)
            self._last_group = len(group.requests)
            for one in group.requests:
                if one is not own:
                    _remove(self.requests, one)
                    _wake(one.wake)
            return group.results[0]

    def _do_group(self, slot: Any, own: Request, group: Group) -> None:
        self._claim(own, group)
        results = group.results = []
        for one in group.requests:
            assert one.work is not None
            results.append(one.work(slot, *one.arguments))

    def _claim(self, own: Request, group: Group) -> None:
        """Make `group` of the request and those behind it."""
        with self._claims:
            members = group.requests = [own]
            if own.is_alone:
                return
            # Not `islice`, in whose making the collector may run a finalizer that writes: the queue would have changed.
            for one in list(self.requests)[:_LARGEST_GROUP]:
                if one.is_alone:
                    break
                if one is own or one.work is None or one.is_withdrawn or one.thread == own.thread:
                    continue
                if one.group is not None and one.group.committed:
                    continue
                one.group = group
                members.append(one)


def new_ticket() -> Request:
    """Return a request that keeps writers out and writes nothing."""
    request = Request()
    request.thread = _get_ident()
    request.is_alone = True
    return request


def _remove(requests: deque[Request], request: Request) -> None:
    try:
        requests.remove(request)
    except ValueError as error:  # its thread noticed before
        if raised_by_handler(error):
            raise


def _wake(wake: threading.Lock | None) -> None:
    if wake is not None and wake.locked():
        try:
            wake.release()
        except RuntimeError as error:  # another thread woke it meanwhile
            if raised_by_handler(error):
                raise


def _result(request: Request) -> Any:
    assert request.group is not None
    return request.group.results[request.group.requests.index(request)]
