"""Mutable: the context manager that `Namespace.mutable` returns. It holds one key for the length of a block.

A `with` statement looks up `__exit__` first, keeps what it got on the stack of its frame, then calls `__enter__`.
CPython may run a signal handler, which may raise, before the first line of any Python function, `__exit__` included. So
the lock does not depend on a line of `__exit__`: it ends at the latest when the *guard* is dropped, an object that
nothing holds but the function on that stack. A traceback, which may be kept for long, knows the frames and their
variables, but not their stacks.
"""

from __future__ import annotations

import copy
import functools
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, overload

from .contract import MISSING, StorageBase
from .errors import ConflictError, StoreNotOpenError
from .keylocks import Ticket


class Handle(Protocol):
    """What `Mutable` needs of a `StoreMixin`."""

    _store: StorageBase
    namespace: str | None

    def _must_be_open(self) -> None: ...


class _Guard:
    """An object that can be referred to weakly; it has no other use."""

    __slots__ = ("__weakref__",)


class _Exit:
    """The descriptor `__exit__`: looked up on an instance it makes the guard."""

    if TYPE_CHECKING:

        @overload
        def __get__(self, instance: None, owner: type[Mutable]) -> _Exit: ...
        @overload
        def __get__(self, instance: Mutable, owner: type[Mutable]) -> Callable[..., None]: ...

    def __get__(self, instance: Mutable | None, owner: type[Mutable]) -> Any:
        if instance is None:
            return self
        leave = functools.partial(_leave, instance)
        leave.guard = guard = _Guard()  # type: ignore[attr-defined]  # a partial takes any attribute
        # A C function is called when the guard is dropped: it takes the ticket out of the queue.
        instance.guard = weakref.ref(guard, functools.partial(instance.ticket.queue.pop, instance.ticket))
        return leave

    def __call__(self, instance: Mutable, *error: Any) -> None:
        """Leave: for ExitStack, which binds what it finds on the class to the instance."""
        _leave(instance, *error)


class Mutable:
    """Hold a key while a block changes its value in place, then write it back. For one use."""

    __slots__ = ("__weakref__", "_default", "_handle", "_own_guard", "_store", "_token", "_value", "guard", "ticket")

    def __init__(self, handle: Handle, key: str, default: Any) -> None:
        self._handle, self._store = handle, handle._store
        self._default = default
        self._value: Any = MISSING
        self._token: object = MISSING
        self._own_guard: _Guard | None = None
        self.guard: weakref.ref[_Guard] | None = None
        self.ticket = Ticket(self._store.lock_scope, key)

    def __enter__(self) -> Any:
        ticket, store = self.ticket, self._store
        queue = ticket.queue
        if self.guard is None or self.guard() is None:
            # Not entered by a `with` statement.
            self._own_guard = _Guard()
            self.guard = weakref.ref(self._own_guard, functools.partial(queue.pop, ticket))
        try:
            # With the reference, which must outlive this object for its callback to be called.
            queue[ticket] = self.guard
            if len(queue) > 1:
                ticket.wait(store.wait_s)
            value, self._token = store.get_for_update(ticket.key)
            if value is MISSING:
                value = copy.deepcopy(self._default)
            self._value = value
            return value
        except BaseException:
            queue.pop(ticket, None)
            ticket.wake_next()
            raise

    __exit__ = _Exit()

    def write_back(self) -> None:
        """Write the value. Raises ConflictError if somebody changed it, StoreNotOpenError if the handle was closed."""
        handle, key = self._handle, self.ticket.key
        if handle._store is not self._store:
            handle._must_be_open()
            raise StoreNotOpenError(f"namespace {handle.namespace!r} was closed and reopened inside mutable({key!r})")
        if not self._store.set_if_unchanged(key, self._token, self._value):
            raise ConflictError(
                f"key {key!r} of namespace {handle.namespace!r} was changed by someone else inside mutable(); "
                "nothing was written. Run the block again"
            )


def _leave(mutable: Mutable, kind: type[BaseException] | None = None, *_: object) -> None:
    try:
        if kind is None:
            mutable.write_back()
    finally:
        # The removal comes first: whatever a handler raises after it, the key is free.
        mutable.ticket.queue.pop(mutable.ticket, None)
        mutable._own_guard = None
        mutable.ticket.wake_next()
