"""TaskTicket: the place of a task in the queue for a key, in which threads and tasks of any event loop wait."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Hashable
from contextlib import suppress
from functools import partial
from typing import Any, Final

from ..keylocks import Ticket
from ..workers import WorkerPool
from ..workers.call import DONE, HELD, Call

# A waiting task is woken by the one before it. Where that one came to a sudden end, the wait ends after this.
_LONGEST_NAP_S: Final = 1.0


class TaskTicket(Ticket):
    """A ticket of the current task, which waits for its turn without a thread.

    Call `release` in a `finally` after `enter`, whatever happened in between.
    """

    __slots__ = ("_loop", "_task", "call")

    def __init__(self, scope: Hashable, key: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        super().__init__(scope, key, owner=self._task)
        # Of no thread: the task does not run in a forked child, whatever thread is left there.
        self.thread = 0
        #: The call that is made while the key is held. If its caller gives up, the key is held until it is done.
        self.call: Call[Any] | None = None

    async def wait_turn(self, wait_s: float) -> None:
        """Return once the ticket holds its key. Raises as `wait` does."""
        if self.check():
            return
        until_s = time.monotonic() + wait_s
        try:
            self.begin_wait()
            while True:
                waiter: asyncio.Future[None] = self._loop.create_future()
                # Set before the check, so that no release is missed.
                self.wake = partial(_wake, self._loop, waiter)
                if self.check():
                    return
                holder = self.holder()
                if isinstance(holder, TaskTicket) and holder._is_dead():
                    holder.leave()
                    continue
                left_s = until_s - time.monotonic()
                if left_s <= 0:
                    raise self.timeout(wait_s)
                await asyncio.wait([waiter], timeout=min(left_s, _LONGEST_NAP_S))
        finally:
            self.end_wait()

    def release(self, pool: WorkerPool) -> None:
        """Let the next one have the key, as soon as the call that was made while it was held is done."""
        call = self.call
        if call is None or call.state == HELD or not pool.watch(call, self.leave):
            self.leave()
        else:
            # The task may go on to wait for other keys. This one is no longer its own.
            self.owner = call

    def _is_dead(self) -> bool:
        """Whether nobody is left who would release the key: a signal handler raised at the wrong moment."""
        has_ended = self._loop.is_closed() or (self._task is not None and self._task.done())
        return has_ended and (self.call is None or self.call.state in (HELD, DONE))


def _wake(loop: asyncio.AbstractEventLoop, waiter: asyncio.Future[None]) -> None:
    with suppress(RuntimeError):  # the loop is closed; nobody waits
        loop.call_soon_threadsafe(_set, waiter)


def _set(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
