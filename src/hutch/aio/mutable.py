"""Read, change, write back: `modify` and `mutable`, for asyncio."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import TracebackType
from typing import Any, NoReturn

import hutch

from ..workers import Calls
from ..workers.pool import Call
from .habits import Opened
from .keyqueue import Ticket


async def modify(handle: hutch.Namespace, calls: Calls, key: str, fn: Callable[[Any], Any], default: Any) -> Any:
    """Call `handle.modify` in a thread when it is this task's turn for `key`, and return the new value."""
    calls.check_open()
    call: Call[Any] = calls.prepare(handle.modify, keys=(key,))
    call.args = (key, _Function(fn, call), default)
    ticket = _ticket(handle, calls, key)
    try:
        await calls.until_answered((key,))
        await ticket.enter(calls.patience_s)
        ticket.call = call
        return await calls.run(call)
    finally:
        ticket.leave(calls.pool)


class Mutable(Opened):
    """The `async with` block of `Namespace.mutable`."""

    _spelling = "async with namespace.mutable(key) as value"

    def __init__(self, handle: hutch.Namespace, calls: Calls, key: str, default: Any) -> None:
        self._handle = handle
        self._calls = calls
        self._key = key
        self._default = default

    async def __aenter__(self) -> Any:
        calls, key = self._calls, self._key
        calls.check_open()
        ticket = self._ticket = _ticket(self._handle, calls, key)
        entered = False
        try:
            await calls.until_answered((key,))
            await ticket.enter(calls.patience_s)
            # No lock of a thread is held across the block: the thread that took it might not be the one to free it.
            storage = self._storage = self._handle._store
            self._value, self._token = await calls.read(storage.get_for_update, key)
            if self._value is hutch.MISSING:
                self._value = copy.deepcopy(self._default)
            entered = True
        finally:
            if not entered:
                ticket.leave(calls.pool)
        return self._value

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                await self._write()
        finally:
            self._ticket.leave(self._calls.pool)
            del self._value, self._token

    async def _write(self) -> None:
        calls, key, storage = self._calls, self._key, self._storage
        if not calls.is_open or self._handle._store is not storage:
            raise hutch.StoreNotOpenError(
                f"namespace {self._handle.namespace!r} was closed inside mutable({key!r}); nothing was written"
            )
        await calls.until_answered((key,))
        call = self._ticket.call = calls.prepare(storage.set_if_unchanged, key, self._token, self._value, keys=(key,))
        if not await calls.run(call):
            raise hutch.ConflictError(
                f"key {key!r} of namespace {self._handle.namespace!r} was changed by someone else inside mutable(); "
                "nothing was written. Run the block again"
            )


class _Function:
    """The function given to `modify`, which is not called again once nobody waits for the call."""

    def __init__(self, fn: Callable[[Any], Any], call: Call[Any]) -> None:
        self._fn = fn
        self._call = call

    def __call__(self, value: Any) -> Any:
        if self._call.is_abandoned:
            self._refuse()
        return self._fn(value)

    def _refuse(self) -> NoReturn:
        raise hutch.ConflictError("the caller of modify() gave up; nothing was written")


def _ticket(handle: hutch.Namespace, calls: Calls, key: str) -> Ticket:
    calls.loop()
    return Ticket(handle._store.lock_scope, key, f"key {key!r} of namespace {handle.namespace!r}")
