"""Call and CallGroup: what runs in a `WorkerPool`, and which handle or store it belongs to."""

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
    """One call of `fn` in a thread. Its `future` belongs to the event loop that made the call."""

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
        #: The keys that the call writes; None stands for all of them.
        self.keys = keys
        #: Called with the result if nobody waits for it any more.
        self.undo = undo
        self.state = HELD
        #: Whether the caller gave up after the call had begun.
        self.is_abandoned = False
        #: Whether a `close` waited for the abandoned call already; no other one waits again.
        self.is_forsaken = False
        #: Called, in any thread, when the call is done or abandoned.
        self.callbacks: list[Callable[[], object]] = []

    def blocked_group(self) -> CallGroup:
        """Return the group whose later calls wait for this one: for the closing call of a handle it is the store's."""
        group = self.group
        return group.parent if self is group.closing and group.parent is not None else group

    def notify(self) -> None:
        """Call the callbacks, once."""
        callbacks, self.callbacks = self.callbacks, []
        for callback in callbacks:
            callback()


class CallGroup:
    """The unfinished calls of one handle, or of a store together with its handles, whose `parent` it is."""

    __slots__ = ("__weakref__", "abandoned", "closing", "parent", "refusal", "unfinished")

    def __init__(self, parent: CallGroup | None = None) -> None:
        self.parent = parent
        self.unfinished: dict[Call[Any], None] = {}
        #: Writes that have begun and that nobody waits for.
        self.abandoned: dict[Call[Any], None] = {}
        #: The call that closes the handle or the store; it begins when every other one is done.
        self.closing: Call[Any] | None = None
        #: Why no more calls are taken; None as long as they are.
        self.refusal: str | None = None

    def add(self, call: Call[Any]) -> None:
        """Count `call` among the unfinished ones, here and of the parent."""
        group: CallGroup | None = self
        while group is not None:
            group.unfinished[call] = None
            group = group.parent

    def check_open(self) -> None:
        """Raise StoreNotOpenError if no more calls are taken, here or by the parent."""
        group: CallGroup | None = self
        while group is not None:
            if group.refusal is not None:
                raise StoreNotOpenError(group.refusal)
            group = group.parent
