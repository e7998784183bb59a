"""The handle on an open namespace of a store, and its claim to the name."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Hashable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, cast

from .contract import StorageBase
from .errors import CapabilityError, StoreNotOpenError
from .keylocks import refuse_nested_write, swapping
from .namespace import StoreMixin
from .views import V

if TYPE_CHECKING:
    from .contract.commit import Commit
    from .store import Store
    from .transactions import NamespaceTransaction
    from .transactions.namespace import TypedValues


class Claim:
    """The exclusive right of one handle to a namespace. A claim that has ended does not count, even if still listed."""

    __slots__ = ("ended", "handle")

    def __init__(self, handle: Namespace | None) -> None:
        self.ended = False
        self.handle = None if handle is None else weakref.ref(handle)


class Namespace(StoreMixin[V]):
    """An open namespace of a `Store`: a mapping from `str` to any value that the codec accepts."""

    # Keeps the store alive as long as its handles: it holds what they share.
    _owner: Store | None = None
    _claim: Claim = Claim(None)
    # The type that it was opened with.
    _type: tuple[Any, str | None] | None = None
    #: Whether `close` does nothing: the whole process shares this handle, because it was unpickled or by `store[name]`.
    _is_shared = False
    #: Whether this is the handle `store[name]`, which its store closes.
    _is_of_store = False

    def __repr__(self) -> str:
        if self._owner is None:
            return super().__repr__()
        state = "open" if self.is_open_storage() else "closed"
        return f"<hutch.Namespace {self.namespace!r} of {self._owner.location}, {state}>"

    def close(self) -> None:
        """Close this handle; does nothing if it is closed already."""
        self._close_storage()

    def transaction(self) -> NamespaceTransaction:
        """Return a block that reads and changes this namespace, all or nothing: ``with ns.transaction() as tx:``.

        As `Store.transaction`, for one namespace: ``tx[key]``. Raises CapabilityError unless the engine declares
        `atomic-batch` and has `apply`.
        """
        return self._transaction_of(None)

    def _transaction_of(self, owner: Hashable | None) -> NamespaceTransaction:
        """Return a transaction of this thread or, through any thread, of the task `owner` of hutch.aio."""
        from .transactions import NamespaceTransaction

        self._must_be_open()
        if "atomic-batch" not in self._store.unlayered.capabilities or not self._store.has_apply:
            raise CapabilityError(
                f"the engine of namespace {self.namespace!r} has no transactions: it must declare `atomic-batch` and "
                "have `apply`; nothing was written. Choose another engine, or use mutable() for one key"
            )
        return NamespaceTransaction(_Source(self), str(self.namespace), owner)

    @property
    def capabilities(self) -> frozenset[str]:
        """The capabilities that the engine has beyond the six verbs. Raises StoreNotOpenError while closed."""
        declared = super().capabilities
        return declared if self._owner is None else declared - self._owner._refused_capabilities

    def _close_storage(self) -> bool:
        if self._is_shared:
            return True
        storage = self._store
        try:
            return super()._close_storage()
        finally:
            # False if a signal handler raised before the storage was closed. No call precedes the end of the claim,
            # so the namespace can be opened again whatever a handler raises here.
            if self._store is not storage:
                self._claim.ended = True
                self._end_claim()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _end_claim(self) -> None:
        claim, self._claim = self._claim, Namespace._claim
        owner = self._owner
        if owner is not None and claim is not Namespace._claim:
            owner._forget(str(self.namespace), claim)
            owner._notify("hutch_namespace_closed", namespace=str(self.namespace))

    if not TYPE_CHECKING:  # type checkers report an unknown name themselves

        def __getattr__(self, name: str) -> NoReturn:
            from .hints import spelling_of

            kind = type(self).__name__
            raise AttributeError(f"{kind!r} object has no attribute {name!r}{spelling_of(name)}", name=name, obj=self)

    def __copy__(self) -> NoReturn:
        refuse_copy("namespace")

    def __deepcopy__(self, _: object) -> NoReturn:
        refuse_copy("namespace")

    def __reduce__(self) -> tuple[Any, ...]:
        self._must_be_open()
        if self._owner is None:
            raise TypeError("this namespace cannot be pickled: no store opened it")
        if self._is_of_store:
            raise TypeError(
                "the shared handle store[name] cannot be pickled: it belongs to its store. Send the store and the "
                "name, and use store[name] there"
            )
        return self._owner._reduce_handle(str(self.namespace), self._type)

    def __del__(self) -> None:
        try:
            is_open = self.is_open_storage()
        except TypeError:
            return  # the interpreter is shutting down and has cleared the modules
        if is_open and self._is_of_store:
            # Only the garbage collector gets here, because the store and this handle refer to each other.
            if self._owner is not None:
                self._owner.close()
        elif is_open:
            warnings.warn(f"unclosed {self!r}; use it in a with block, or close it", ResourceWarning, 2, source=self)
            self.close()


class _Source:
    """What a transaction reads from and commits to: one open handle."""

    def __init__(self, handle: Namespace[Any]) -> None:
        self._handle, self._storage = handle, handle._store

    def storage_of(self, _: str) -> StorageBase:
        return self._storage

    def typed_values(self) -> TypedValues | None:
        # The outermost layer of a namespace with a type.
        return None if self._handle._type is None else cast("TypedValues", self._storage)

    def apply(self, commits: Mapping[str, Commit]) -> bool:
        (commit,) = commits.values()
        if swapping:
            refuse_nested_write(self._storage.lock_scope, commit.changes)
        return self._storage.apply(*commit)

    def must_be_open(self) -> None:
        handle = self._handle
        if handle._store is not self._storage:
            handle._must_be_open()
            raise StoreNotOpenError(f"namespace {handle.namespace!r} was closed and reopened inside a transaction")

    def place(self) -> Hashable:
        owner = self._handle._owner
        return id(self._handle if owner is None else owner)


def refuse_copy(what: str) -> NoReturn:
    """Raise the TypeError for an attempt to copy a store or namespace."""
    raise TypeError(
        f"a {what} cannot be copied: the copy would be the same live {what}. "
        + ("dict(namespace) is a copy of its items" if what == "namespace" else "hutch.connect() makes another one")
    )
