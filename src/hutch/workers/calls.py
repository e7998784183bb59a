"""Calls: await the blocking calls of one handle or store, and order later writes after abandoned ones."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, Final, TypeVar

from ..errors import StorageTimeoutError
from .call import DONE, HELD, Call, CallGroup
from .pool import GRACE_S, WorkerPool

T = TypeVar("T")

#: The keys that a call writes: some, none, or None for all.
Keys = tuple[str, ...] | None

_PATIENCE_S: Final = 60.0
# The longest wait for a wake-up, which is lost if a signal handler raises in its place.
_LONGEST_NAP_S: Final = 1.0


def patience_s(options: Mapping[str, object]) -> float:
    """Return how many seconds a write waits for an abandoned one on an engine with these options.

    It is `wait_s`, else half of `timeout_s`, so that the wait times out before the abandoned call fails; else 60.
    """
    wait_s, timeout_s = options.get("wait_s"), options.get("timeout_s")
    if isinstance(wait_s, int | float):
        return float(wait_s)
    return timeout_s / 2 if isinstance(timeout_s, int | float) else _PATIENCE_S


class Calls:
    """The blocking calls of one handle or store, run in the threads of `pool`.

    A cancelled caller returns at once. Its call is withdrawn if it had not begun. A write that had begun is abandoned:
    a later write of the same key begins only when it is done, or raises StorageTimeoutError after `patience_s`.
    `describe` names the key (or everything, for None) in that error.
    """

    def __init__(
        self,
        pool: WorkerPool,
        describe: Callable[[str | None], str],
        patience_s: float = _PATIENCE_S,
        parent: Calls | None = None,
    ) -> None:
        self.pool = pool
        self.patience_s = patience_s
        self._describe = describe
        self._group: CallGroup = pool.group(parent._group if parent else None)
        self._parent = parent

    # --- one call ---

    async def read(self, fn: Callable[..., T], *args: Any) -> T:
        """Call ``fn(*args)`` in a thread and return its result."""
        return await self.run(self.prepare(fn, *args))

    async def write(self, keys: Keys, fn: Callable[..., T], *args: Any, undo: Callable[[T], object] | None = None) -> T:
        """Call ``fn(*args)``, which writes `keys`, in a thread and return its result.

        If the caller gives up after the call began, `undo` is called with the result.
        """
        if self._group.abandoned:
            await self.until_answered(keys)
        return await self.run(self.prepare(fn, *args, keys=keys, undo=undo))

    def prepare(
        self, fn: Callable[..., T], *args: Any, keys: Keys = (), undo: Callable[[T], object] | None = None
    ) -> Call[T]:
        """Return a call of ``fn(*args)`` for `run`. Raises StoreNotOpenError when closed."""
        self.check_open()
        return Call(self._group, self.loop(), fn, args, keys, undo)

    async def run(self, call: Call[T]) -> T:
        """Run a call that `prepare` returned and return its result."""
        self.pool.submit(call)
        try:
            return await call.future
        except (asyncio.CancelledError, GeneratorExit):
            self.pool.abandon(call)
            raise

    async def until_answered(self, keys: Keys) -> None:
        """Wait until no abandoned write of any of `keys` is unfinished.

        Raises StorageTimeoutError after `patience_s`, and StoreNotOpenError when closed.
        """
        self.check_open()
        until_s = time.monotonic() + self.patience_s
        hit: tuple[Call[Any], str | None] | None = None
        try:
            for hit in iter(partial(self._abandoned_write, keys), None):
                left_s = until_s - time.monotonic()
                if left_s <= 0:
                    raise StorageTimeoutError(self._unanswered(hit[1]))
                await self._changed(hit[0], left_s)
        except asyncio.CancelledError as error:
            if hit is not None:
                error.add_note(f"hutch: {self._unanswered(hit[1])}")
            raise

    # --- closing ---

    @property
    def is_open(self) -> bool:
        """Whether calls are accepted: neither this handle nor its store was closed."""
        group = self._group
        return group.refusal is None and (group.parent is None or group.parent.refusal is None)

    def check_open(self) -> None:
        """Raise StoreNotOpenError if this handle or its store was closed."""
        self._group.check_open()

    async def close(self, fn: Callable[[], object], refusal: str, keys: Keys = ()) -> bool:
        """Refuse further calls with `refusal`, and call `fn` in a thread when the unfinished calls are done.

        Waits at most `GRACE_S` for abandoned calls; if they take longer, `fn` is called once they are done. Returns
        whether `fn` was called. A cancellation does not prevent `fn` from being called. A second `close` only waits
        for the first.
        """
        closing = Call(self._group, self.loop(), fn, keys=keys)
        if not self.pool.close_later(closing, refusal):
            return await self._is_closed_by_another()
        try:
            await self._quiet()
            if closing.state == HELD:
                closing.is_forsaken = True
                self.pool.abandon(closing)
                return False
            if await self._is_held_up(closing):
                return False
            await asyncio.shield(closing.future)
        except (asyncio.CancelledError, GeneratorExit):
            self.pool.abandon(closing)
            raise
        return True

    async def _is_closed_by_another(self) -> bool:
        closing = self._group.closing
        while closing is not None and closing.state != DONE and not closing.is_abandoned:
            await self._changed(closing)
        return closing is not None and closing.state == DONE

    async def _is_held_up(self, closing: Call[Any]) -> bool:
        """Wait for `closing` if an abandoned call of the store may delay it. Returns whether it is still delayed."""
        if self._parent is not None and self._parent._group.abandoned:
            await asyncio.wait([closing.future], timeout=GRACE_S)
            if not closing.future.done():
                for call in self._parent._group.abandoned.copy():
                    call.is_forsaken = True
                closing.is_forsaken = True
                self.pool.abandon(closing)
                return True
        return False

    async def _quiet(self) -> None:
        """Wait until all calls are done; for abandoned calls at most `GRACE_S`, and only once per call."""
        unfinished = self._group.unfinished
        while wanted := [call for call in unfinished.copy() if not call.is_abandoned]:
            await self._changed(wanted[0])
        until_s = time.monotonic() + GRACE_S
        for call in unfinished.copy():
            while call.state != DONE and not call.is_forsaken:
                left_s = until_s - time.monotonic()
                if left_s <= 0:
                    call.is_forsaken = True
                else:
                    await self._changed(call, left_s)

    # --- inside ---

    def loop(self) -> asyncio.AbstractEventLoop:
        """Return the running event loop. Raises RuntimeError if asyncio runs none, as under trio."""
        try:
            return asyncio.get_running_loop()
        except RuntimeError:
            raise RuntimeError(_needs_asyncio(self.pool.name)) from None

    def _abandoned_write(self, keys: Keys) -> tuple[Call[Any], str | None] | None:
        """Return an abandoned write of one of `keys` with that key, or None."""
        for call in self._group.abandoned.copy():
            if call.keys is None:
                return call, keys[0] if keys else None
            if keys is None:
                return call, call.keys[0]
            for key in keys:
                if key in call.keys:
                    return call, key
        return None

    def _unanswered(self, key: str | None) -> str:
        return (
            f"{self._describe(key)}: an earlier call, which its caller gave up, is still unanswered; this call waited "
            f"for it ({self.patience_s:g} s at most) and was not sent. Try again later"
        )

    async def _changed(self, call: Call[Any], timeout_s: float = _LONGEST_NAP_S) -> None:
        """Wait until `call` is done or abandoned, or the timeout; the caller must look again which it was."""
        loop = self.loop()
        waiter: asyncio.Future[None] = loop.create_future()
        wake = partial(wake_task, loop, waiter)
        if self.pool.watch(call, wake):
            try:
                await asyncio.wait([waiter], timeout=min(timeout_s, _LONGEST_NAP_S))
            finally:
                with suppress(ValueError):
                    call.callbacks.remove(wake)


def wake_task(loop: asyncio.AbstractEventLoop, waiter: asyncio.Future[None]) -> None:
    """Wake the task that waits for `waiter`, from any thread."""
    with suppress(RuntimeError):  # the event loop is closed, so no task waits
        loop.call_soon_threadsafe(_set, waiter)


def _set(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


def _needs_asyncio(who: str) -> str:
    trio = sys.modules.get("trio")
    try:
        under_trio = trio is not None and trio.lowlevel.current_task() is not None
    except (RuntimeError, AttributeError):
        under_trio = False
    if under_trio:
        return (
            f"{who} needs asyncio, and this task runs under trio; use hutch.connect() and call its verbs in a thread: "
            "await trio.to_thread.run_sync(namespace.get, key)"
        )
    return f"{who} needs asyncio, and no event loop runs here; await it within asyncio.run(), or use hutch.connect()"
