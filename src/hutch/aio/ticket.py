"""TaskTicket: a task's place in the queue for a key, where threads and tasks of any event loop wait."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Hashable
from functools import partial
from typing import Any, Final

from ..keylocks import Ticket
from ..workers import WorkerPool
from ..workers.call import DONE, HELD, Call
from ..workers.calls import wake_task

# The longest wait for a wake-up from the previous holder, which may have ended without sending one.
_LONGEST_NAP_S: Final = 1.0


class TaskTicket(Ticket):
    """A ticket of the current task, which waits for the key without a thread.

    After `enter`, always call `release`, in a `finally`.
    """

    __slots__ = ("_loop", "_task", "call")

    def __init__(self, scope: Hashable, key: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        super().__init__(scope, key, owner=self._task)
        # No thread: the task does not run in a forked child, whichever thread survives there.
        self.thread = 0
        #: The call made while the key is held. If its caller gives up, the key stays held until the call is done.
        self.call: Call[Any] | None = None

    async def wait_turn(self, wait_s: float) -> None:
        """Wait until the ticket holds its key, at most `wait_s` seconds. Raises what `wait` raises."""
        if self.is_first():
            return
        until_s = time.monotonic() + wait_s
        try:
            self.begin_wait()
            while True:
                waiter: asyncio.Future[None] = self._loop.create_future()
                # Set before checking, so that no release is missed.
                self.wake = partial(wake_task, self._loop, waiter)
                if self.is_first():
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
        """Give the key to the next ticket, as soon as the call made while it was held is done."""
        call = self.call
        if call is None or call.state == HELD or not pool.watch(call, self.leave):
            self.leave()
        else:
            # The task may go on to wait for other keys; the call owns this one now.
            self.owner = call

    def _is_dead(self) -> bool:
        """Return whether nothing is left to release the key, as when a signal handler raised before `release`."""
        has_ended = self._loop.is_closed() or (self._task is not None and self._task.done())
        return has_ended and (self.call is None or self.call.state in (HELD, DONE))
