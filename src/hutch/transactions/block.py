"""Transaction: the block that collects reads and writes, and commits them when it is left."""

from __future__ import annotations

import functools
import os
import threading
import weakref
from collections.abc import Callable, Hashable, Mapping
from typing import TYPE_CHECKING, Any, Final, NoReturn, Protocol, overload

from ..contract import StorageBase
from ..contract.commit import Commit
from ..errors import ConflictError, StoreAlreadyOpenError, StoreNotOpenError
from ..fork import run_in_child
from ..handlers import runs_in_handler
from ..limits import validate_namespace
from .namespace import TransactionNamespace, TypedValues, refuse_name

# A commit is tried again this often if what was read holds after all: another writer changed it and changed it back.
_ATTEMPTS: Final = 4


class Source(Protocol):
    """What a transaction reads from and commits to: a `hutch.Store`, or one open namespace."""

    def storage_of(self, name: str) -> StorageBase:
        """Return the storage of the namespace `name`, with its layers."""

    def typed_values(self) -> TypedValues | None:
        """Return what converts the values, if the namespace was opened with `type`."""

    def apply(self, commits: Mapping[str, Commit]) -> bool:
        """Apply all `commits`, by namespace, in one step, or none; return whether they were applied."""

    def must_be_open(self) -> None:
        """Raise StoreNotOpenError if the store or namespace was closed."""

    def place(self) -> Hashable:
        """Return a value equal for all transactions that one thread may not nest."""


class _Guard:
    """An object whose only purpose is a weak reference to it."""

    __slots__ = ("__weakref__",)


class _Exit:
    """The descriptor behind `__exit__`: its lookup on an instance creates the guard; see hutch.mutable."""

    if TYPE_CHECKING:

        @overload
        def __get__(self, instance: None, owner: type[Transaction]) -> _Exit: ...
        @overload
        def __get__(self, instance: Transaction, owner: type[Transaction]) -> Callable[..., None]: ...

    def __get__(self, instance: Transaction | None, owner: type[Transaction]) -> Any:
        if instance is None:
            return self
        leave = functools.partial(_leave, instance)
        leave.guard = guard = _Guard()  # type: ignore[attr-defined]  # a partial takes any attribute
        instance._guard_with(guard)
        return leave

    def __call__(self, instance: Transaction, *error: Any) -> None:
        """Leave the block, for ExitStack, which looks `__exit__` up on the class and binds it to the instance."""
        _leave(instance, *error)


# The open transactions: (thread or task, place), and the guard, which is freed at the latest when the block is left.
_open: dict[Hashable, weakref.ref[_Guard]] = {}


class _State:
    """Whether a transaction can be used: apart from it, so that its namespaces do not refer back to it."""

    __slots__ = ("is_entered", "is_over", "source", "thread")

    def __init__(self, source: Source, thread: int | None) -> None:
        self.source = source
        #: None: the tasks of an event loop use it, through any thread.
        self.thread = thread
        self.is_entered = self.is_over = False

    def must_be_usable(self) -> None:
        """Raise the StoreError that says why the transaction cannot be used here and now."""
        if self.is_over:
            raise StoreNotOpenError("this transaction has ended; begin another one with transaction()")
        if not self.is_entered:
            raise StoreNotOpenError("this transaction has not begun; write `with store.transaction() as tx:`")
        if self.thread is not None and self.thread != threading.get_ident():
            raise StoreAlreadyOpenError(
                "this transaction belongs to the thread that began it; begin another one with transaction() here"
            )
        self.source.must_be_open()


class Transaction:
    """A single-use block: ``tx[name]`` reads and changes a namespace; leaving the block commits, all or nothing.

    Leaving raises ConflictError, and nothing is written, if anything that was read has changed. A block that raises
    writes nothing. For one thread only, and not inside another transaction of the same store.
    """

    def __init__(self, source: Source, owner: Hashable | None = None) -> None:
        self._source = source
        thread = threading.get_ident()
        self._state = _State(source, thread if owner is None else None)
        self._place = (thread if owner is None else owner, source.place())
        self._process = os.getpid()
        self._guard: weakref.ref[_Guard] | None = None
        self._own_guard: _Guard | None = None
        self._namespaces: dict[str, TransactionNamespace] = {}
        #: The ConflictError with which the commit failed.
        self._conflict_raised: ConflictError | None = None
        #: Whether the block has ended without an error, so that the commit has begun.
        self._is_committing = False

    def __repr__(self) -> str:
        state = "ended" if self._state.is_over else "open" if self._state.is_entered else "not entered"
        return f"<hutch.Transaction, {state}>"

    def _guard_with(self, guard: _Guard) -> None:
        """Make the transaction end at the latest when `guard` is freed."""
        self._guard = weakref.ref(guard, functools.partial(_open.pop, self._place))

    def __enter__(self) -> Any:
        self._begin()
        return self

    __exit__ = _Exit()

    def _begin(self) -> None:
        """Begin the block. Raises StoreAlreadyOpenError if it was used before, or inside another transaction."""
        if self._state.is_entered:
            raise StoreAlreadyOpenError("this transaction was used before; begin each block with a new transaction()")
        self._source.must_be_open()
        if self._guard is None or self._guard() is None:
            # Not entered by a `with` statement.
            self._own_guard = _Guard()
            self._guard_with(self._own_guard)
        assert self._guard is not None
        # A signal handler cannot know what it interrupts. Its transaction is committed before the other one goes on.
        if _open.setdefault(self._place, self._guard) is not self._guard and not runs_in_handler():
            raise StoreAlreadyOpenError(
                "a transaction inside another one of the same store, by the same "
                f"{'task' if self._state.thread is None else 'thread'}: the two would be in conflict. Use the outer "
                "transaction here, or end it first"
            )
        self._state.is_entered = True

    def _end(self) -> None:
        """End the transaction without a commit; does nothing if it has ended."""
        self._state.is_over = True
        if _open.get(self._place) is self._guard:
            _open.pop(self._place, None)
        self._own_guard = None

    def __getitem__(self, name: str) -> TransactionNamespace:
        """Return the namespace `name` in this transaction."""
        namespace = self._namespaces.get(name) if name.__class__ is str else None
        # A namespace that is known verifies the rest itself, in each of its verbs.
        if namespace is None or self._state.is_over:
            self._state.must_be_usable()
            name = validate_namespace(name)
            storage, typed = self._source.storage_of(name), self._source.typed_values()
            namespace = TransactionNamespace(self._state.must_be_usable, name, storage, typed)
            namespace = self._namespaces.setdefault(name, namespace)
        return namespace

    def _refuse(self, *_: object) -> NoReturn:
        raise TypeError("a transaction holds namespaces: write tx[name][key] = value, del tx[name][key] and so on")

    __setitem__ = __delitem__ = __contains__ = __iter__ = __len__ = _refuse

    def __bool__(self) -> bool:
        return True

    if not TYPE_CHECKING:  # type checkers report an unknown name themselves

        def __getattr__(self, name: str) -> NoReturn:
            refuse_name(self, name)

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError(
            "a transaction cannot be pickled or copied: it belongs to the thread that began it, and commits once. "
            "Begin another one with transaction(), in another process with transaction() of the pickled store"
        )

    def _commit(self) -> None:
        """Write all changes if everything that was read still holds. Raises ConflictError and writes nothing if not."""
        self._state.must_be_usable()
        if self._process != os.getpid():
            raise StoreAlreadyOpenError(
                "this transaction belongs to the process that was forked inside its block, and which commits it; "
                "nothing was written here. Begin another one with transaction() in this process"
            )
        self._is_committing = True
        commits = self._commits()
        if not commits:
            return
        for _ in range(_ATTEMPTS):
            conflict = self._expired_since()
            if conflict is None and self._source.apply(commits):
                return
            conflict = conflict or self._conflict()
            if conflict is not None:
                break
            commits = self._commits()
        else:
            conflict = ConflictError(
                f"namespace {next(iter(commits))!r}: others changed what this transaction read, and changed it back, "
                f"{_ATTEMPTS} times in a row; nothing was written. Run the block again"
            )
        self._conflict_raised = conflict
        raise conflict

    def _commits(self) -> dict[str, Commit]:
        return {name: commit for name, one in self._namespaces.items() if (commit := one._commit()) is not None}

    def _expired_since(self) -> ConflictError | None:
        conflicts = (conflict for one in self._namespaces.values() if (conflict := one._expired_since()) is not None)
        return next(conflicts, None)

    def _conflict(self) -> ConflictError | None:
        """Return the error for something that was read and has changed since; None if everything still holds."""
        conflicts = (conflict for one in self._namespaces.values() if (conflict := one._conflict()) is not None)
        return next(conflicts, None)


class NamespaceTransaction(Transaction):
    """A transaction of one namespace: the block gets the namespace itself, ``tx[key]``."""

    def __init__(self, source: Source, name: str, owner: Hashable | None = None) -> None:
        super().__init__(source, owner)
        self._name = name

    def __enter__(self) -> TransactionNamespace:
        self._begin()
        return self._namespace()

    def _namespace(self) -> TransactionNamespace:
        """Return the namespace in this transaction."""
        return self[self._name]


def _leave(transaction: Transaction, kind: type[BaseException] | None = None, *_: object) -> None:
    try:
        if kind is None:
            transaction._commit()
    finally:
        transaction._end()


def _after_fork_in_child() -> None:
    """Remove the transactions of threads that do not exist in the child."""
    thread = threading.get_ident()
    for place in [place for place in _open if place[0] != thread]:  # type: ignore[index]  # a pair
        _open.pop(place, None)


run_in_child(_after_fork_in_child)
