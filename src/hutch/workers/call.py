"""Call and CallGroup: one call that a `WorkerPool` runs, and the calls of one handle or store."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from typing import Any, Final, Generic, TypeVar

from ..errors import StoreNotOpenError

T = TypeVar("T")

HELD: Final = "held"
WAITING: Final = "waiting"
RUNNING: Final = "running"
DONE: Final = "done"


class Call(Generic[T]):
    """A call of `fn` in a worker thread. Its `future` belongs to the event loop of the caller."""

    __slots__ = (
        *("args", "callbacks", "context", "fn", "future", "group"),
        *("is_abandoned", "is_forsaken", "keys", "state", "undo"),
    )

    def __init__(
        self,
        group: CallGroup,
        loop: asyncio.AbstractEventLoop,
        fn: Callable[..., T],
        args: tuple[Any, ...] = (),
        keys: tuple[str, ...] | None = (),
        undo: Callable[[T], object] | None = None,
    ) -> None:
        self.group = group
        self.fn = fn
        self.args = args
        self.context = contextvars.copy_context()
        self.future: asyncio.Future[T] = loop.create_future()
        #: The keys that the call writes; None means all keys.
        self.keys = keys
        #: Called with the result if the caller gave up after the call began.
        self.undo = undo
        self.state = HELD
        #: Whether the caller gave up after the call had begun.
        self.is_abandoned = False
        #: Whether a `close` has already waited for the abandoned call; no other waits again.
        self.is_forsaken = False
        #: Functions to call, in any thread, when the call is done or abandoned.
        self.callbacks: list[Callable[[], object]] = []

    def blocked_group(self) -> CallGroup:
        """Return the group whose later calls wait for this one; for a call that closes a handle, the store's group."""
        group = self.group
        return group.parent if self is group.closing and group.parent is not None else group

    def notify(self) -> None:
        """Call every callback once and forget them."""
        callbacks, self.callbacks = self.callbacks, []
        for callback in callbacks:
            callback()


class CallGroup:
    """The unfinished calls of one handle, or of a store and its handles; the store's group is their `parent`."""

    __slots__ = ("__weakref__", "abandoned", "closing", "parent", "refusal", "unfinished")

    def __init__(self, parent: CallGroup | None = None) -> None:
        self.parent = parent
        self.unfinished: dict[Call[Any], None] = {}
        #: Writes that have begun and whose callers gave up.
        self.abandoned: dict[Call[Any], None] = {}
        #: The call that closes the handle or store; it begins when every other call is done.
        self.closing: Call[Any] | None = None
        #: The error text for further calls; None while calls are accepted.
        self.refusal: str | None = None

    def add(self, call: Call[Any]) -> None:
        """Add `call` to the unfinished calls of this group and its parent."""
        group: CallGroup | None = self
        while group is not None:
            group.unfinished[call] = None
            group = group.parent

    def check_open(self) -> None:
        """Raise StoreNotOpenError if this group or its parent refuses further calls."""
        group: CallGroup | None = self
        while group is not None:
            if group.refusal is not None:
                raise StoreNotOpenError(group.refusal)
            group = group.parent
