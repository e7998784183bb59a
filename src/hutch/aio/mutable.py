"""Atomic read, change and write back for asyncio: `modify` and `mutable`."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import TracebackType
from typing import Any, Generic

import hutch

from ..keylocks import current_owner
from ..limits import refuse_none, validate_function
from ..views import V
from ..workers import Calls
from ..workers.call import Call
from .habits import Opened
from .ticket import TaskTicket


async def modify(
    handle: hutch.Namespace,
    calls: Calls,
    key: str,
    fn: Callable[[Any], Any],
    default: Any,
    allow_none: bool,
    ttl_s: float | None,
) -> Any:
    """Modify `key` in a thread once this task holds it, and return the new value."""
    validate_function(fn, key)
    if not allow_none:
        fn = refuse_none(fn, key)
    storage = handle._store
    # Not handle.modify: it would wait, in the thread, for the key that the task holds.
    call: Call[Any] = calls.prepare(storage.modify, keys=(key,))
    call.args = (key, _Function(fn, call), default, *(() if ttl_s is None else (ttl_s,)))
    ticket = TaskTicket(storage.lock_scope, key)
    call.context.run(current_owner.set, ticket.owner)
    try:
        await calls.until_answered((key,))
        ticket.enter()
        await ticket.wait_turn(storage.wait_s)
        ticket.call = call
        return await calls.run(call)
    finally:
        ticket.release(calls.pool)


class Mutable(Opened, Generic[V]):
    """The context manager that `Namespace.mutable` returns; it can be used once."""

    _spelling = "async with namespace.mutable(key) as value"

    def __init__(self, handle: hutch.Namespace, calls: Calls, key: str, default: Any, options: tuple[Any, ...]) -> None:
        self._handle, self._storage = handle, handle._store
        self._calls = calls
        self._key = key
        self._default = default
        # What `compare_and_swap` is given too if the key is missing: `ttl_s`.
        self._options = options

    async def __aenter__(self) -> V:
        calls, key = self._calls, self._key
        calls.check_open()
        calls.loop()
        ticket = self._ticket = TaskTicket(self._storage.lock_scope, key)
        is_entered = False
        try:
            await calls.until_answered((key,))
            ticket.enter()
            await ticket.wait_turn(self._storage.wait_s)
            value, self._token = await calls.read(self._storage.get_for_update, key)
            if value is hutch.MISSING:
                if self._default is hutch.MISSING:
                    raise KeyError(key)
                value = copy.deepcopy(self._default)
            else:
                self._options = ()
            self._value: V = value
            is_entered = True
        finally:
            if not is_entered:
                ticket.release(calls.pool)
        return self._value

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                await self._write()
        finally:
            self._ticket.release(self._calls.pool)

    async def _write(self) -> None:
        calls, key, storage = self._calls, self._key, self._storage
        if not calls.is_open or self._handle._store is not storage:
            raise hutch.StoreNotOpenError(
                f"namespace {self._handle.namespace!r} was closed inside mutable({key!r}); nothing was written"
            )
        await calls.until_answered((key,))
        swap = key, self._token, self._value, *self._options
        call = self._ticket.call = calls.prepare(storage.compare_and_swap, *swap, keys=(key,))
        if not await calls.run(call):
            raise hutch.ConflictError(
                f"key {key!r} of namespace {self._handle.namespace!r} was changed by someone else inside mutable(); "
                "nothing was written. Run the block again"
            )


class _Function:
    """The function given to `modify`. Raises ConflictError instead of running again once the caller gave up."""

    def __init__(self, fn: Callable[[Any], Any], call: Call[Any]) -> None:
        self._fn = fn
        self._call = call
        self.__qualname__ = getattr(fn, "__qualname__", type(fn).__name__)

    def __call__(self, value: Any) -> Any:
        if self._call.is_abandoned:
            raise hutch.ConflictError("the caller of modify() gave up; nothing was written")
        return self._fn(value)
