"""WorkerPool: run blocking calls in daemon threads and return their results to any number of event loops.

A caller may give up at any moment. A call that has not begun is withdrawn. A call that has begun is abandoned: it
keeps its thread until the storage answers, and the pool starts another thread in its place.
"""

from __future__ import annotations

import atexit
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, Final

from ..errors import StorageUnavailableError
from ..fork import ForkSafeLock, WeakRefs, run_in_child
from .call import DONE, HELD, RUNNING, WAITING, Call, CallGroup

#: How many seconds `close` and the end of the process wait for abandoned calls.
GRACE_S: Final = 1.0
# While abandoned calls occupy threads, a pool of n threads starts up to this many times n more.
_REPLACEMENTS: Final = 3
_BEFORE_REPLACING_S: Final = 0.05
_JOIN_S: Final = 1.0


class WorkerPool:
    """At most `threads` daemon threads, started on demand and named after `name`, and the calls that wait for one.

    Any thread and event loop may use it.
    """

    def __init__(self, threads: int, name: str) -> None:
        self.name = name
        self._most = threads
        self._is_shut = False
        self._groups: WeakRefs[CallGroup] = WeakRefs()
        # Reentrant, because a finalizer that runs while it is held may shut the pool down.
        self._lock = ForkSafeLock()
        self._reset()
        _pools.add(self)

    def _reset(self) -> None:
        self._started = 0
        self._waiting: OrderedDict[Call[Any], None] = OrderedDict()
        self._running: dict[Call[Any], None] = {}
        self._workers: set[threading.Thread] = set()
        # Each idle thread sleeps on a queue of its own. Waking a thread twice is harmless.
        self._idle: list[SimpleQueue[None]] = []

    def group(self, parent: CallGroup | None = None) -> CallGroup:
        """Return a new group of calls of this pool."""
        group = CallGroup(parent)
        with self._lock.current:
            self._groups.add(group)
        return group

    # --- from the event loop ---

    def submit(self, call: Call[Any]) -> None:
        """Run `call` as soon as a thread is free.

        Raises StoreNotOpenError if its group is closed, and StorageUnavailableError if there is no thread and none can
        be started; then `call` does not run.
        """
        with self._lock.current:
            # Under one lock with adding it, so that no other event loop's call begins after the closing call.
            call.group.check_open()
            self._add(call)

    def withdraw(self, call: Call[Any]) -> bool:
        """Take `call` out of the queue, so that it never begins. Returns whether it was still there."""
        with self._lock.current:
            if call not in self._waiting:
                return False
            del self._waiting[call]
            self._end(call)
        call.notify()
        return True

    def abandon(self, call: Call[Any]) -> None:
        """Give up on `call`: withdraw it if it has not begun, else let it finish and discard its result.

        The closing call of a group is never withdrawn.
        """
        if call is not call.group.closing and self.withdraw(call):
            return
        with self._lock.current:
            if call.state != DONE and not call.is_abandoned:
                if call.keys != ():
                    call.blocked_group().abandoned[call] = None
                call.is_abandoned = True
        call.notify()
        if call.state == DONE:
            self._discard(call)
        try:
            # Delayed: a new thread would start calls that other callers are about to withdraw at the same time.
            call.future.get_loop().call_later(_BEFORE_REPLACING_S, self._grow)
        except RuntimeError:  # the loop is closed
            self._grow()

    def watch(self, call: Call[Any], callback: Callable[[], object]) -> bool:
        """Register `callback` to be called once `call` is done or abandoned. Returns False if it is already done."""
        with self._lock.current:
            if call.state == DONE:
                return False
            call.callbacks.append(callback)
            return True

    def close_later(self, call: Call[Any], refusal: str) -> bool:
        """Refuse further calls of the group of `call`, and run `call`, which closes it, once all others are done.

        Returns False and does nothing if the group already has a closing call.
        """
        group = call.group
        with self._lock.current:
            if group.closing is not None:
                return False
            group.refusal = refusal
            group.closing = call
            if group.parent is not None:
                group.parent.add(call)
            if not group.unfinished:
                self._enqueue(call)
        self._grow()
        return True

    def shut_down(self, join: bool = True) -> None:
        """End the threads as soon as no call waits. With `join`, wait for the threads to end if all are idle."""
        with self._lock.current:
            self._is_shut = True
            for wake in self._idle:
                wake.put(None)
            workers = [] if self._running or self._waiting or not join else list(self._workers)
        for worker in workers:
            if worker is not threading.current_thread():
                worker.join(_JOIN_S)

    def unfinished(self) -> list[Call[Any]]:
        """Return the calls that run or wait for a thread."""
        return [*self._running, *self._waiting]

    def drain(self, until_s: float | None = None) -> bool:
        """Wait until all calls are done. Returns whether they are.

        Abandoned calls are waited for until `until_s` of the monotonic clock at most; by default for `GRACE_S`.
        """
        if until_s is None:
            until_s = time.monotonic() + GRACE_S
        while calls := self.unfinished():
            wanted = [call for call in calls if not call.is_abandoned]
            if not wanted and (time.monotonic() >= until_s or all(call.is_forsaken for call in calls)):
                for call in calls:
                    call.is_forsaken = True
                return False
            changed = threading.Event()
            if self.watch((wanted or calls)[0], changed.set):
                changed.wait(0.1)
        return True

    def undo_later(self, call: Call[Any], result: Any) -> None:
        """Undo a call that succeeded after its caller gave up, in a worker thread."""
        undo, call.undo = call.undo, None
        if undo is not None:
            self._add(Call(call.group, call.future.get_loop(), undo, (result,), call.keys))

    # --- in the threads ---

    def _work(self) -> None:
        wake: SimpleQueue[None] = SimpleQueue()
        while (call := self._next(wake)) is not None:
            self._run(call)
            del call  # a sleeping thread must not keep a value alive

    def _next(self, wake: SimpleQueue[None]) -> Call[Any] | None:
        """Sleep until there is a call for this thread and return it; return None to end the thread."""
        while True:
            with self._lock.current:
                if wake in self._idle:
                    self._idle.remove(wake)
                is_surplus = len(self._workers) > self._limit()
                if self._waiting and not is_surplus:
                    call, _ = self._waiting.popitem(last=False)
                    call.state = RUNNING
                    self._running[call] = None
                    return call
                if is_surplus or self._is_shut:
                    self._workers.discard(threading.current_thread())
                    return None
                self._idle.append(wake)
            wake.get()

    def _run(self, call: Call[Any]) -> None:
        result: Any = None
        error: BaseException | None = None
        try:
            try:
                result = call.context.run(call.fn, *call.args)
            except BaseException as raised:
                error = _passable(raised, call.fn)
            self._end_undone(call, result, error)
            if not call.is_abandoned:
                _deliver(self, call, result, error)
        finally:
            # Breaks a cycle: the error's traceback refers to this stack frame.
            del error, result, call

    def _end_undone(self, call: Call[Any], result: Any, error: BaseException | None) -> None:
        while (undo := self._undo_or_end(call, error)) is not None:
            with suppress(Exception):  # no caller is left to handle it
                undo(result)

    def _undo_or_end(self, call: Call[Any], error: BaseException | None) -> Callable[[Any], object] | None:
        """Return the function that undoes an abandoned call that succeeded; otherwise mark the call as done."""
        with self._lock.current:
            if call.is_abandoned and call.undo is not None and error is None:
                undo, call.undo = call.undo, None
                return undo
            self._running.pop(call, None)
            self._end(call)
        call.notify()
        return None

    # --- inside, with the lock held ---

    def _limit(self) -> int:
        """Return how many threads there may be. Computed anew, because a signal handler could corrupt a counter."""
        if len(self._workers) < self._most:
            return self._most
        abandoned = sum(call.is_abandoned for call in self._running)
        return self._most + min(abandoned, _REPLACEMENTS * self._most)

    def _enqueue(self, call: Call[Any]) -> None:
        call.state = WAITING
        self._waiting[call] = None
        if self._idle:
            # In this order, because if a signal handler raises in between, the thread removes itself from the list.
            self._idle[-1].put(None)
            self._idle.pop()

    def _end(self, call: Call[Any]) -> None:
        """Mark `call` as done and queue a closing call that waited for it."""
        call.state = DONE
        group: CallGroup | None = call.group
        while group is not None:
            group.unfinished.pop(call, None)
            group.abandoned.pop(call, None)
            if group.closing is not None and group.closing.state == HELD and not group.unfinished:
                self._enqueue(group.closing)
            group = group.parent

    # --- inside ---

    def _add(self, call: Call[Any]) -> None:
        with self._lock.current:
            # In this order, because a signal handler that raises in between must not leave a call that never runs.
            self._enqueue(call)
            call.group.add(call)
        if (error := self._grow()) is not None and self.withdraw(call):
            raise StorageUnavailableError(f"{error}, and the call was not made; try again later") from error

    def _discard(self, call: Call[Any]) -> None:
        """Undo the result that no caller receives, or retrieve the error, so that asyncio does not log it."""
        future = call.future
        if future.done() and not future.cancelled() and future.exception() is None:
            self.undo_later(call, future.result())

    def _grow(self) -> RuntimeError | None:
        """Start a thread if a call needs one. Returns the error if none can be started and there is no other thread."""
        with self._lock.current:
            if not self._waiting or self._idle or len(self._workers) >= self._limit():
                return None
            worker = threading.Thread(target=self._work, name=f"{self.name}_{self._started}", daemon=True)
            self._started += 1
            self._workers.add(worker)
        try:
            worker.start()
        except RuntimeError as error:
            self._workers.discard(worker)
            # An existing thread runs the call later.
            return None if self._workers else error
        except BaseException:
            if worker.ident is None:
                self._workers.discard(worker)
            raise
        return None


def _deliver(pool: WorkerPool, call: Call[Any], result: Any, error: BaseException | None) -> None:
    """Deliver the outcome of `call` to the event loop of its caller."""
    try:
        call.future.get_loop().call_soon_threadsafe(_resolve, pool, call, result, error)
    except RuntimeError:  # the event loop is closed, so no caller waits
        if error is None:
            pool.undo_later(call, result)


def _resolve(pool: WorkerPool, call: Call[Any], result: Any, error: BaseException | None) -> None:
    future = call.future
    if future.done():  # the caller gave up after the call was done
        if error is None:
            pool.undo_later(call, result)
    elif error is None:
        future.set_result(result)
    else:
        future.set_exception(error)


def _passable(error: BaseException, fn: Callable[..., Any]) -> BaseException:
    if not isinstance(error, StopIteration):
        return error
    # A future cannot raise StopIteration; the caller would wait forever.
    replacement = RuntimeError(f"{getattr(fn, '__qualname__', fn)} raised StopIteration")
    replacement.__cause__ = error
    return replacement


_pools: WeakRefs[WorkerPool] = WeakRefs()


def _drain_all() -> None:
    until_s = time.monotonic() + GRACE_S
    for pool in _pools.live():
        pool.drain(until_s)


def _reset_after_fork() -> None:
    # In the child neither the threads nor the callers exist.
    for pool in _pools.live():
        pool._reset()
        for group in pool._groups.live():
            group.unfinished.clear()
            group.abandoned.clear()


run_in_child(_reset_after_fork)
atexit.register(_drain_all)
