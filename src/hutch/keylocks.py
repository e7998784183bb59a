"""Key locks: `modify` and `mutable` lock one key among the threads and tasks of one process.

Callers get a key in the order in which they requested it. A lock is an entry in a queue (a dict, which preserves the
order): the first entry for a key holds the key. One dict operation acquires the lock and one releases it, so neither a
signal handler that raises nor a finalizer can leave a lock half acquired. A request that can never be granted is
refused at once: for a key that the caller holds already, and for a cycle of callers that wait for each other.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Collection, Hashable, Iterator
from contextvars import ContextVar
from typing import Final, TypeVar

from .errors import ConflictError, StorageTimeoutError
from .fork import ForkSafeLock, run_in_child

T = TypeVar("T")

#: How long `modify` and `mutable` wait for a key, in seconds, unless the engine has an option for it.
WAIT_S: Final = 60.0
# A waiting thread is woken by the previous holder. If a signal handler raised in place of the wake-up, or the lock was
# released because its guard was freed, the thread wakes by itself after this long.
LONGEST_NAP_S: Final = 0.02

#: The owner of new locks if it is not the thread: hutch.aio sets it to the task on whose behalf a call runs.
current_owner: ContextVar[Hashable | None] = ContextVar("hutch_key_owner", default=None)

# Each queue serves many keys, so queues are never created or removed. The values of the entries are unused, except that
# `hutch.mutable` keeps a weak reference there.
_QUEUES: Final[tuple[dict[Ticket, object], ...]] = tuple({} for _ in range(64))
# The innermost wait of each waiting owner.
_waiting: dict[Hashable, Ticket] = {}
_serials = itertools.count()

#: The swaps in progress: a thread, and the scope and key whose value it is replacing.
swapping: Final[dict[object, tuple[int, Hashable, str]]] = {}
_swap_lock = ForkSafeLock()


class Ticket:
    """The place of one caller in the queue for one key."""

    __slots__ = ("key", "outer", "owner", "place", "queue", "serial", "thread", "wake")

    def __init__(self, scope: Hashable, key: str, owner: Hashable | None = None) -> None:
        """Create a ticket outside the queue. `owner` defaults to `current_owner`, else the calling thread."""
        self.key = key
        self.place = (scope, key)
        self.queue = _QUEUES[hash(self.place) % len(_QUEUES)]
        self.thread = threading.get_ident()
        self.owner: Hashable = self.thread if owner is None and (owner := current_owner.get()) is None else owner
        #: Called once when the ticket has become first in the queue; may also be called earlier.
        self.wake: Callable[[], object] | None = None
        #: The wait of the same owner that this one interrupted: one of the two was started by a signal handler.
        self.outer: Ticket | None = None
        self.serial = -1

    def enter(self) -> None:
        """Join the queue. `leave` must follow, whatever happens."""
        self.queue[self] = None

    def is_first(self) -> bool:
        """Return whether the ticket holds its key.

        Raises ConflictError if it never can: its owner holds the key already, or waits in a cycle.
        """
        ahead = list(self._ahead())
        if not ahead:
            return True
        if any(ticket.owner == self.owner for ticket in ahead):
            raise ConflictError(
                f"key {self.key!r} is held by a modify() or mutable() of the same {_kind(self.owner)} already, which "
                "would wait for itself for ever; nothing was written by this call. Change the value in the outer call"
            )
        cycle = self._cycle()
        # The last ticket to join the cycle gives up, so that the others can proceed.
        if cycle and max(cycle, key=_serial) is self:
            raise ConflictError(
                f"key {self.key!r} is held by {_name_of(ahead[0])}, and waiting for it would never end: "
                f"{', '.join(map(_wait, cycle[1:]))}. Nothing was written by this call; take several keys in the same "
                "order everywhere, sorted for example"
            )
        return False

    def leave(self) -> None:
        """Leave the queue and wake the next ticket; does nothing if the ticket is not in the queue."""
        self.queue.pop(self, None)
        self.end_wait()
        self.wake_next()

    def begin_wait(self) -> None:
        """Record that the owner waits, so that `is_first` can find cycles."""
        self.serial = next(_serials)
        self.outer = _waiting.get(self.owner)
        _waiting[self.owner] = self

    def end_wait(self) -> None:
        """Undo `begin_wait`; does nothing if the owner is not waiting for this ticket."""
        if _waiting.get(self.owner) is self:
            if self.outer is None:
                del _waiting[self.owner]
            else:
                _waiting[self.owner] = self.outer

    def wait(self, wait_s: float) -> None:
        """Wait until the ticket holds its key.

        Raises StorageTimeoutError after `wait_s` seconds, and what `is_first` raises.
        """
        if self.is_first():
            return
        deadline_s = time.monotonic() + wait_s
        self.serial, owner = next(_serials), self.owner
        self.outer = outer = _waiting.get(owner)
        try:
            _waiting[owner] = self
            while True:
                nap = threading.Lock()
                # No other thread has a reference to it yet. A wake-up releases it.
                nap.acquire()
                # Set before the check, so that no wake-up is missed.
                self.wake = nap.release
                if self.is_first():
                    return
                left_s = deadline_s - time.monotonic()
                if left_s <= 0:
                    raise self.timeout(wait_s)
                nap.acquire(timeout=min(left_s, LONGEST_NAP_S))
        finally:
            # No call precedes either statement, so a signal handler cannot prevent it.
            if outer is not None:
                _waiting[owner] = outer
            else:
                _waiting.pop(owner, None)

    def timeout(self, wait_s: float) -> StorageTimeoutError:
        """Return the error for a wait that has lasted `wait_s` seconds; it names the key and its holder."""
        holder = next(self._ahead(), None)
        return StorageTimeoutError(
            f"key {self.key!r} was held by {'others' if holder is None else _name_of(holder)} in modify() or mutable() "
            f"for {wait_s:g} s; nothing was written by this call. Try again, or keep the blocks of mutable() short"
        )

    def wake_next(self) -> None:
        """Wake the first ticket for the same key if it is sleeping."""
        for ticket in list(self.queue):
            if ticket.place == self.place:
                # Read and reset without a call in between, so that each wake-up is used once.
                wake, ticket.wake = ticket.wake, None
                if wake is not None:
                    wake()
                return

    def holder(self) -> Ticket | None:
        """Return the ticket that this one waits for; None if it does not wait."""
        for ticket in list(self.queue):
            if ticket.place == self.place:
                return None if ticket is self or self not in self.queue else ticket
        return None

    def _ahead(self) -> Iterator[Ticket]:
        """Yield the tickets for the same key that joined the queue earlier."""
        for ticket in list(self.queue):
            if ticket is self:
                return
            if ticket.place == self.place:
                yield ticket

    def _cycle(self) -> list[Ticket]:
        """Return this owner's cycle of waits, or []: each waits for a key that the owner of the next one holds."""
        reached: dict[Hashable, Ticket] = {}
        pending = [self.owner]
        while pending:
            wait = _waiting.get(pending.pop())
            while wait is not None:
                holder = wait.holder()
                if holder is not None and holder.owner == self.owner:
                    cycle = [wait]
                    while cycle[-1].owner != self.owner:
                        cycle.append(reached[cycle[-1].owner])
                    return cycle[::-1]
                if holder is not None and holder.owner not in reached:
                    reached[holder.owner] = wait
                    pending.append(holder.owner)
                wait = wait.outer
        return []


def run_locked(scope: Hashable, key: str, wait_s: float, fn: Callable[..., T], *args: object) -> T:
    """Return ``fn(*args)``, called while the caller holds `key` within `scope`.

    Raises ConflictError at once if the caller holds the key already or would wait in a cycle, StorageTimeoutError if
    the key is not free within `wait_s` seconds, and what `fn` raises.
    """
    ticket = Ticket(scope, key)
    queue = ticket.queue
    try:
        queue[ticket] = None
        if len(queue) > 1:
            ticket.wait(wait_s)
        return fn(*args)
    finally:
        # Remove the ticket first: whatever a handler raises afterwards, the key is free.
        queue.pop(ticket, None)
        if queue:
            ticket.wake_next()


def run_compare_and_write(scope: Hashable, key: str, swap: Callable[..., bool], *args: object) -> bool:
    """Return ``swap(*args)``, which compares the value of `key` and then writes it, atomically within this process.

    For engines without their own compare-and-swap. Raises ConflictError if a signal handler or finalizer calls it
    in the middle of another swap of the same key, which would not see the change.
    """
    token = object()
    try:
        swapping[token] = (threading.get_ident(), scope, key)
        with _swap_lock.current:
            refuse_nested_write(scope, [key], token)
            return swap(*args)
    finally:
        swapping.pop(token, None)


def refuse_nested_write(scope: Hashable, keys: Collection[str] | None, token: object = None) -> None:
    """Raise ConflictError if this thread is in the middle of swapping one of `keys` (None: any) within `scope`.

    Writes call it when `swapping` is not empty: an interrupted swap would overwrite a handler's or finalizer's write.
    """
    thread = threading.get_ident()
    for other, (swapper, place, key) in list(swapping.items()):
        if swapper == thread and place == scope and other is not token and (keys is None or key in keys):
            raise ConflictError(
                f"key {key!r} is being replaced by the interrupted call, which would overwrite this write; "
                "nothing was written by this call. Write it after that call, or another key"
            )


def waiters() -> int:
    """Return the number of tickets, holders included, so that tests can assert that none is left."""
    return sum(map(len, _QUEUES))


def _serial(ticket: Ticket) -> int:
    return ticket.serial


def _wait(ticket: Ticket) -> str:
    return f"{_name_of(ticket)} waits for key {ticket.key!r}"


def _kind(owner: Hashable) -> str:
    return "thread" if isinstance(owner, int) else "task"


def _name_of(ticket: Ticket) -> str:
    """Return the name of the owner of `ticket`, for a message."""
    name = getattr(ticket.owner, "get_name", None)
    if callable(name):
        return f"task {name()!r}"
    for thread in threading.enumerate():
        if thread.ident == ticket.thread:
            return f"thread {thread.name!r}"
    return "a thread that has ended"


def _after_fork_in_child() -> None:
    """Remove the entries of threads that do not exist in the child."""
    thread = threading.get_ident()
    _waiting.clear()
    for token in [token for token, (swapper, _, _) in swapping.items() if swapper != thread]:
        del swapping[token]
    for queue in _QUEUES:
        for ticket in [ticket for ticket in queue if ticket.thread != thread]:
            del queue[ticket]


run_in_child(_after_fork_in_child)
