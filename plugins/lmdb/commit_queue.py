"""CommitQueue: order the writes of one process's threads to one LMDB environment, and commit them in groups.

Threads write in the order of their requests. The first thread in the queue is the leader: it commits its own write and
the writes of the threads behind it in one transaction with one flush (group commit, as in PostgreSQL's WAL). So many
threads share the cost of a flush, which dominates a durable write.

The queue is the lock, as in `hutch.locks.FairLock`: one atomic operation takes it and one releases it.
`Group.committed` alone records whether a group was committed, and the call of C code that commits also sets it. So
wherever a signal handler raises, every thread learns whether its write was committed, and no thread waits for a leader
that is gone.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Protocol

from hutch import StoreError
from hutch.fork import ForkSafeLock
from hutch.handlers import raised_by_handler
from hutch.locks import wake_up

#: A function run in a write transaction, with the transaction's `Slot` as first argument. It may be called again in
#: another transaction; only the last call's result counts.
Work = Callable[..., Any]

# Larger groups gain nothing, and without a limit a transaction could grow without bound.
_LARGEST_GROUP: Final = 128
# Threads whose writes were just committed will soon write again: a leader waits at most this long for as many.
# Without the wait, every other commit holds only half of them. With eight threads and a flush of 1 ms, group commit
# made 5.5 times as many writes per second as one transaction per write (4.4 times with a wait of 60 us); with a flush
# of 0.1 ms, 2.4 times instead of 1.7.
_LINGER_S: Final = 150e-6
# A waiting thread is woken by the thread before it. If a signal handler raised instead, the wait ends after this time.
_LONGEST_NAP_S: Final = 0.02

_get_ident = threading.get_ident

# A caller that gives up polls, at this interval and for at most this long, until the leader has ended the transaction
# that includes its write: a commit takes a few flushes of the disk.
_SETTLE_PAUSE_S: Final = 0.0005
_LONGEST_SETTLE_S: Final = 10.0


class Group:
    """The requests that one transaction commits together."""

    __slots__ = ("committed", "is_over", "requests", "results")

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.results: list[Any] = []
        #: Empty until the transaction is committed.
        self.committed: list[None] = []
        self.is_over = False


class Request:
    """The place of one call in the queue. Defaults are class attributes until an instance needs its own."""

    thread: int
    #: None until it is known whether the call must wait, and for a request that only excludes writers.
    work: Work | None = None
    arguments: tuple[Any, ...] = ()
    #: The last group that included the request.
    group: Group | None = None
    #: Whether the request needs a transaction of its own.
    is_alone = False
    is_withdrawn = False
    #: Locked while the call sleeps; None if it has never slept.
    wake: threading.Lock | None = None
    #: When the call times out; None if it has never waited.
    deadline_s: float | None = None


class Committer(Protocol):
    """The interface that a queue requires of its environment."""

    def transact(
        self, request: Request, work: Work, arguments: tuple[Any, ...], committed: list[None] | None = None
    ) -> Any: ...

    def is_exclusive(self) -> bool: ...

    def pause_writer(self) -> None: ...

    def deadline(self) -> float: ...

    def time_out(self, thread: int) -> StoreError: ...


class CommitQueue:
    """The queue of writers of one environment."""

    def __init__(self, committer: Committer) -> None:
        self._committer = committer
        self._transact = committer.transact
        self.requests: deque[Request] = deque()
        # Held while requests join a group or are withdrawn. Reentrant, for nested calls.
        self._claims = ForkSafeLock()
        self._last_group = 1
        # The number of requests in the queue when the last group was committed.
        self._last_queue_length = 1

    def write(self, work: Work, *arguments: Any) -> Any:
        """Return ``work(slot, *arguments)``, run in a write transaction that was committed.

        Raises what `work` or the commit raised, and StorageTimeoutError if other writers took longer than `wait_s`.
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
            return self._wait_for_commit(request)
        except BaseException:
            # Not in a function of its own: a second handler may raise where a function begins, before its `try`.
            try:
                self._settle(request)
            except BaseException:
                self._settle(request)
                raise
            raise
        finally:
            # Remove first: then the next thread may write even if a handler raises here.
            try:
                requests.remove(request)
            except ValueError as error:
                # The group's leader has removed it, or a handler raised before it was appended.
                if raised_by_handler(error):
                    raise
            if requests:
                self._wake_first()

    def run_exclusively(self, fn: Callable[[], None]) -> None:
        """Call `fn` while no thread writes. Raises StorageTimeoutError as `write` does."""
        request = new_ticket()
        try:
            self.requests.append(request)
            self._wait(request)
            fn()
        finally:
            self.leave(request)

    def enter(self, ticket: Request) -> None:
        """Block writers until `leave` is called with the same `ticket`: for fork hooks, which span two calls."""
        self.requests.append(ticket)
        self._wait(ticket)

    def leave(self, ticket: Request) -> None:
        """Admit writers again; do nothing if `ticket` is not in the queue."""
        _remove(self.requests, ticket)
        if self.requests:
            self._wake_first()

    def after_fork_in_child(self) -> None:
        """Remove the requests of threads that do not exist in the child."""
        thread = _get_ident()
        left = [request for request in self.requests if request.thread == thread]
        self.requests.clear()
        self.requests.extend(left)
        self._last_group = 1

    # --- waiting ---

    def _wait_for_commit(self, request: Request) -> Any:
        if not self._wait(request):
            return _result(request)
        try:
            is_nested = self.requests[0] is not request
        except IndexError:
            is_nested = True
        # A nested call comes from a signal handler or finalizer that interrupted this thread's outer call.
        if not is_nested:
            self._linger()
            return self._commit_group(request)
        if self._committer.is_exclusive():
            self._committer.pause_writer()
        assert request.work is not None
        return self._transact(request, request.work, request.arguments)

    def _wait(self, request: Request) -> bool:
        """Return True once the calling thread may write, or False once a leader has committed the request."""
        requests = self.requests
        while True:
            if (group := request.group) is not None and group.committed:
                return False
            try:
                first = requests[0]
            except IndexError:  # the group's leader has just removed it
                continue
            if first.thread == request.thread or self._committer.is_exclusive():
                return True
            if request.wake is None:
                wake = threading.Lock()
                # No other thread knows the lock yet. A wake-up is a release, and each wait acquires it again.
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
        """Withdraw the request and return True, or return False if a leader is committing it."""
        with self._claims.current:
            if request.group is not None and not request.group.is_over:
                return False
            request.is_withdrawn = True
            return True

    def _settle(self, request: Request) -> None:
        """Withdraw the request, or wait until the leader that includes it has ended its transaction.

        So a write whose caller gets an exception is done before the caller continues, or is never done.
        """
        deadline_s = time.monotonic() + _LONGEST_SETTLE_S
        while not self._withdraw(request) and time.monotonic() < deadline_s:
            time.sleep(_SETTLE_PAUSE_S)

    def _wake_first(self) -> None:
        try:
            wake = self.requests[0].wake
        except IndexError:
            return
        wake_up(wake)

    # --- committing a group ---

    def _linger(self) -> None:
        if self._last_group > 1:
            requests, until = self.requests, time.perf_counter() + _LINGER_S
            while len(requests) < self._last_queue_length and time.perf_counter() < until:
                time.sleep(0)

    def _commit_group(self, own: Request) -> Any:
        """Commit the request together with the requests of waiting threads; return its result."""
        while True:
            group = Group()
            try:
                self._transact(own, self._run_group, (own, group), group.committed)
            except (MemoryError, StoreError) as error:
                if len(group.requests) < 2 or raised_by_handler(error):
                    raise
                # One bad write must not fail the others: each thread now commits its own.
                for request in group.requests:
                    request.is_alone = True
                continue
            finally:
                group.is_over = True
            self._last_queue_length = len(self.requests)
            self._last_group = len(group.requests)
            for request in group.requests:
                if request is not own:
                    _remove(self.requests, request)
                    wake_up(request.wake)
            return group.results[0]

    def _run_group(self, slot: Any, own: Request, group: Group) -> None:
        self._claim(own, group)
        results = group.results = []
        for request in group.requests:
            assert request.work is not None
            results.append(request.work(slot, *request.arguments))

    def _claim(self, own: Request, group: Group) -> None:
        """Make `group` of the request and those behind it."""
        group.requests = [own]
        if not own.is_alone:
            with self._claims.current:
                self._add_others(own, group)

    def _add_others(self, own: Request, group: Group) -> None:
        # A separate function: on Python 3.13 an exception at the end of a loop can bypass the `with` around it.
        # Not `islice`: creating it may run a finalizer that writes and so changes the queue.
        for request in list(self.requests)[:_LARGEST_GROUP]:
            if request.is_alone:
                break
            if request is own or request.work is None or request.is_withdrawn or request.thread == own.thread:
                continue
            if request.group is not None and request.group.committed:
                continue
            request.group = group
            group.requests.append(request)


def new_ticket() -> Request:
    """Return a request that blocks writers and writes nothing."""
    request = Request()
    request.thread = _get_ident()
    request.is_alone = True
    return request


def _remove(requests: deque[Request], request: Request) -> None:
    try:
        requests.remove(request)
    except ValueError as error:  # its thread has removed it
        if raised_by_handler(error):
            raise


def _result(request: Request) -> Any:
    assert request.group is not None
    return request.group.results[request.group.requests.index(request)]
