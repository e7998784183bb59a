"""Threads: where the calls of one store run."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import contextvars
import os
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import hutch

T = TypeVar("T")


class Threads:
    """The threads of one store, started when they are needed, and the calls in them. See `hutch.aio` for the rules."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._closing = False
        self._start()

    def _start(self) -> None:
        self._process_id = os.getpid()
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="hutch.aio")
        #: Whether one was started: it ends with the pool.
        self._has_thread = False
        #: Calls in line or under way, and the handle or store each belongs to.
        self._calls: dict[Future[Any], object] = {}

    async def read(self, owner: object, fn: Callable[..., T], *args: Any) -> T:
        """``fn(*args)`` in a thread. When cancelled it goes on by itself, and nobody hears of its result."""
        return await asyncio.wrap_future(self._submit(owner, fn, *args))

    async def change(
        self, owner: object, fn: Callable[..., T], *args: Any, undo: Callable[[T], None] | None = None
    ) -> T:
        """``fn(*args)`` in a thread. When cancelled it is taken out of line, or waited for and undone by `undo`."""
        call = self._submit(owner, fn, *args)
        try:
            return await self._finish(call, withdraw=True)
        except asyncio.CancelledError:
            if undo is not None and not call.cancelled() and call.exception() is None:
                # Refused if the store is being closed, which closes this too.
                with contextlib.suppress(hutch.StoreNotOpenError):
                    await self._finish(self._submit(owner, undo, call.result()))
            raise

    async def close_owner(self, owner: object, fn: Callable[[], None]) -> None:
        """``fn()`` in a thread, when all calls of `owner` are done. Being cancelled does not stop it."""
        await self._finish(self._submit(owner, _after, self._calls_of(owner), fn))

    async def close(self, fn: Callable[[], None]) -> None:
        """``fn()`` in a thread, when all calls are done; then no call is taken any more and the threads end."""
        closing = self._submit(self, _after, self._calls_of(None), fn)
        self._closing = True
        try:
            await self._finish(closing)
        finally:
            self.shut_down()

    def shut_down(self) -> None:
        """End the threads, which have nothing to do."""
        self._closing = True
        self._pool.shutdown()

    def _submit(self, owner: object, fn: Callable[..., T], *args: Any) -> Future[T]:
        if self._closing:
            raise hutch.StoreNotOpenError("this store is closed; connect again to use it")
        if self._process_id != os.getpid():
            # The threads do not exist in a forked child.
            self._start()
        call: Future[T] = Future()
        try:
            self._pool.submit(_run, call, contextvars.copy_context(), fn, args)
            self._has_thread = True
        except RuntimeError as error:
            # The pool has the call in line, and could not start one more thread. One that it has will get to it.
            if not (self._has_thread and "new thread" in str(error)):
                call.cancel()
                raise hutch.StorageUnavailableError(f"{error}, and the call was not made; try again later") from error
        self._calls[call] = owner
        call.add_done_callback(self._done)
        return call

    def _done(self, call: Future[Any]) -> None:
        self._calls.pop(call, None)

    def _calls_of(self, owner: object | None) -> list[Future[Any]]:
        # Copied first: other threads take out what is done.
        return [call for call, whose in self._calls.copy().items() if owner is None or whose is owner]

    async def _finish(self, call: Future[T], withdraw: bool = False) -> T:
        """The result of `call`, which being cancelled does not stop, but puts off until the call is done.

        With `withdraw` a call that has not begun is taken out of line instead.
        """
        waiting = asyncio.wrap_future(call)
        cancelled: asyncio.CancelledError | None = None
        while not waiting.done():
            try:
                await asyncio.wait([waiting])
            except asyncio.CancelledError as error:
                cancelled = error
                if withdraw and call.cancel():
                    break
        if cancelled is not None:
            if not waiting.cancelled() and waiting.done():
                waiting.exception()  # looked at, so that asyncio does not complain
            raise cancelled
        return waiting.result()


def _run(call: Future[T] | None, context: contextvars.Context, fn: Callable[..., T], args: tuple[Any, ...]) -> None:
    assert call is not None
    if not call.set_running_or_notify_cancel():
        return
    try:
        result = context.run(fn, *args)
    except BaseException as error:
        if isinstance(error, StopIteration):
            # asyncio cannot pass it on, and would wait for ever.
            replacement = RuntimeError(f"{getattr(fn, '__qualname__', fn)} raised StopIteration")
            replacement.__cause__ = error
            call.set_exception(replacement)
        else:
            call.set_exception(error)
        call = None  # the error knows this frame, and the call the error
    else:
        call.set_result(result)


def _after(calls: Iterable[Future[Any]], fn: Callable[[], None]) -> None:
    # They were in line before this one, so each has a thread already or is done.
    concurrent.futures.wait(calls)
    fn()
