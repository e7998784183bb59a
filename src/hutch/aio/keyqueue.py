"""Queues of tasks for one key each, across event loops: `mutable` and `modify` wait here, never in a thread."""

from __future__ import annotations

import asyncio
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Hashable
from contextlib import suppress
from typing import Any, Final

import hutch

from ..workers.pool import DONE, HELD, Call, WorkerPool

# A waiting task is woken by the one before it. Where that one came to a sudden end, the wait ends after this.
_LONGEST_NAP_S: Final = 1.0


class _Queue:
    """The tickets of one key; the first one holds it."""

    __slots__ = ("__weakref__", "tickets")

    def __init__(self) -> None:
        self.tickets: deque[Ticket] = deque()


# A key of the data behind a scope: every handle of this process that leads there has the same queue.
_queues: weakref.WeakValueDictionary[tuple[Hashable, str], _Queue] = weakref.WeakValueDictionary()
_tickets_of: dict[Any, list[Ticket]] = {}
_lock = threading.RLock()


class Ticket:
    """The place of the current task in the queue of `key`. Call `leave` in a `finally`, whatever happened.

    `what` names the key in messages.
    """

    def __init__(self, scope: Hashable, key: str, what: str) -> None:
        self.key = key
        self._what = what
        self._task = asyncio.current_task()
        self._loop = asyncio.get_running_loop()
        self._waiter: asyncio.Future[None] | None = None
        #: The call that is made under this ticket. If its caller gives up, the key is held until it is done.
        self.call: Call[Any] | None = None
        with _lock:
            queue = _queues.get((scope, key))
            if queue is None:
                queue = _queues[scope, key] = _Queue()
        self._queue = queue

    async def enter(self, patience_s: float) -> None:
        """Wait until it is this task's turn.

        Raises ConflictError at once if the task would wait for itself, and StorageTimeoutError after `patience_s`.
        """
        tickets = self._queue.tickets
        with _lock:
            mine = _tickets_of.setdefault(self._task, [])
            # A task that holds no other key cannot be part of a circle.
            if mine:
                self._refuse_deadlock(mine)
            mine.append(self)
            tickets.append(self)
        until_s = time.monotonic() + patience_s
        while (first := tickets[0]) is not self:
            if first._is_dead():
                first._remove()
                continue
            left_s = until_s - time.monotonic()
            if left_s <= 0:
                raise hutch.StorageTimeoutError(
                    f"{self._what}: another task has been changing it, or waiting for its turn, for {patience_s:g} s; "
                    "nothing was written. Try again, or do not await a task that wants the key while holding it"
                )
            self._waiter = self._loop.create_future()
            if tickets[0] is not self:
                await asyncio.wait([self._waiter], timeout=min(left_s, _LONGEST_NAP_S))

    def leave(self, pool: WorkerPool) -> None:
        """Let the next task have the key, as soon as the call under this ticket is done."""
        call = self.call
        if call is None or call.state == HELD or not pool.watch(call, self._remove):
            self._remove()

    def _remove(self) -> None:
        with suppress(ValueError):
            self._queue.tickets.remove(self)
        with _lock:
            mine = _tickets_of.get(self._task)
            if mine is not None:
                with suppress(ValueError):
                    mine.remove(self)
                if not mine:
                    del _tickets_of[self._task]
        with suppress(IndexError):
            self._queue.tickets[0]._wake()

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None:
            with suppress(RuntimeError):  # its loop is closed
                self._loop.call_soon_threadsafe(_set, waiter)

    def _is_dead(self) -> bool:
        """Whether nobody will ever leave with this ticket."""
        has_ended = self._loop.is_closed() or (self._task is not None and self._task.done())
        return has_ended and (self.call is None or self.call.state in (HELD, DONE))

    def _refuse_deadlock(self, mine: list[Ticket]) -> None:
        """Raise ConflictError if one of the tasks before this one waits for this one."""
        if any(ticket._queue is self._queue for ticket in mine):
            raise hutch.ConflictError(
                f"{self._what} is being changed by this very task, in an outer mutable() or modify(), which would be "
                "waited for without end; nothing was written. Make the change there"
            )
        seen: set[int] = set()
        before = list(self._queue.tickets)
        while before:
            ticket = before.pop()
            if id(ticket) in seen:
                continue
            seen.add(id(ticket))
            if ticket._task is self._task:
                raise hutch.ConflictError(
                    f"{self._what} is held by a task that waits for key {ticket.key!r}, which this task holds; both "
                    "would wait without end. Nothing was written; take several keys in the same order everywhere"
                )
            for other in _tickets_of.get(ticket._task, ()):
                if other is not ticket:
                    tickets = list(other._queue.tickets)
                    before += tickets[: tickets.index(other)] if other in tickets else []


def _set(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


def _forget_after_fork() -> None:
    # The tasks that held keys do not exist in the child.
    global _lock  # noqa: PLW0603
    _lock = threading.RLock()
    _queues.clear()
    _tickets_of.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)
