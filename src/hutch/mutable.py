"""Mutable: the context manager that `Namespace.mutable` returns. It locks one key for the duration of a block.

A `with` statement first looks up `__exit__`, keeps the result on its frame's stack, then calls `__enter__`. CPython may
run a signal handler, which may raise, before the first line of any Python function, `__exit__` included. So releasing
the lock does not depend on `__exit__` running: it is released at the latest when the *guard* is freed, an object that
only the function on that stack refers to. A traceback, which may be kept for long, refers to frames and their
variables, but not to their stacks.
"""

from __future__ import annotations

import copy
import functools
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, overload

from .contract import MISSING, StorageBase
from .errors import ConflictError, StoreNotOpenError
from .keylocks import Ticket


class Handle(Protocol):
    """The part of `StoreMixin` that `Mutable` uses."""

    _store: StorageBase
    namespace: str | None

    def _must_be_open(self) -> None: ...


class _Guard:
    """An object whose only purpose is a weak reference to it."""

    __slots__ = ("__weakref__",)


class _Exit:
    """The descriptor behind `__exit__`: its lookup on an instance creates the guard."""

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
        # When the guard is freed, this calls a C function that removes the ticket from the queue.
        instance.guard = weakref.ref(guard, functools.partial(instance.ticket.queue.pop, instance.ticket))
        return leave

    def __call__(self, instance: Mutable, *error: Any) -> None:
        """Leave the block, for ExitStack, which looks `__exit__` up on the class and binds it to the instance."""
        _leave(instance, *error)


class Mutable:
    """A single-use context manager: it locks a key while a block changes the value in place, then writes it back."""

    __slots__ = (
        "__weakref__",
        "_default",
        "_handle",
        "_options",
        "_own_guard",
        "_store",
        "_token",
        "_value",
        "guard",
        "ticket",
    )

    def __init__(self, handle: Handle, key: str, default: Any, options: tuple[Any, ...] = ()) -> None:
        self._handle, self._store = handle, handle._store
        # What `compare_and_swap` is given too if the key is missing: `ttl_s`.
        self._options = options
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
            # The queue keeps the weak reference: its callback runs only if the reference outlives the guard.
            queue[ticket] = self.guard
            if len(queue) > 1:
                ticket.wait(store.wait_s)
            value, self._token = store.get_for_update(ticket.key)
            if value is MISSING:
                if self._default is MISSING:
                    raise KeyError(ticket.key)
                value = copy.deepcopy(self._default)
            else:
                self._options = ()
            self._value = value
            return value
        except BaseException:
            queue.pop(ticket, None)
            ticket.wake_next()
            raise

    __exit__ = _Exit()

    def _refuse(self, *_: object) -> NoReturn:
        raise TypeError(
            f"mutable() of key {self.ticket.key!r} returns a block, not the value: write `with namespace.mutable(key) "
            "as value:` and change the value inside"
        )

    __getitem__ = __setitem__ = __delitem__ = __contains__ = __iter__ = __len__ = _refuse

    def __bool__(self) -> bool:
        return True

    if not TYPE_CHECKING:  # type checkers report an unknown name themselves

        def __getattr__(self, name: str) -> NoReturn:
            if name in Mutable.__slots__:
                raise AttributeError(name)  # not set yet
            raise AttributeError(
                f"mutable() of key {self.ticket.key!r} returns a block, which has no attribute {name!r}: write `with "
                "namespace.mutable(key) as value:` and use the value inside"
            )

    def write_back(self) -> None:
        """Write the value back. Raises ConflictError if it was changed, StoreNotOpenError if the handle was closed."""
        handle, key = self._handle, self.ticket.key
        if handle._store is not self._store:
            handle._must_be_open()
            raise StoreNotOpenError(f"namespace {handle.namespace!r} was closed and reopened inside mutable({key!r})")
        if not self._store.compare_and_swap(key, self._token, self._value, *self._options):
            raise ConflictError(
                f"key {key!r} of namespace {handle.namespace!r} was changed by someone else inside mutable(); "
                "nothing was written. Run the block again"
            )


def _leave(mutable: Mutable, kind: type[BaseException] | None = None, *_: object) -> None:
    try:
        if kind is None:
            mutable.write_back()
    finally:
        # Remove the ticket first: whatever a handler raises afterwards, the key is free.
        mutable.ticket.queue.pop(mutable.ticket, None)
        mutable._own_guard = None
        mutable.ticket.wake_next()
