"""The transactions of a store: the storages that they read from, and the one step that commits them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from .contract import StorageBase, StoragePluginBase
from .discovery.foreign import as_storage, close_interrupted
from .errors import CapabilityError
from .fork import ForkSafeLock
from .keylocks import refuse_nested_write, swapping

if TYPE_CHECKING:
    from .contract.commit import Commit
    from .snapshots import Snapshot
    from .transactions import Transaction

T = TypeVar("T")

# The verb of a factory that makes each capability of a store.
_STORE_VERBS = {"snapshot": "snapshot", "atomic-store": "apply"}


class StoreTransactions:
    """The part of a `hutch.Store` that makes transactions over its namespaces, open or not."""

    name: str
    _factory: Any
    _opening: ForkSafeLock
    _storages: dict[str, StorageBase]
    _own_source: StoreSource | None = None

    def transaction(self) -> Transaction:
        """Return a block that changes several namespaces, all or nothing: ``with store.transaction() as tx:``.

        ``tx[name]`` is the namespace `name`: ``tx["users"]["ada"]``, `get`, `set`, `del`, `in` and `scan`. Reads are
        remembered and writes wait for the end of the block, which raises ConflictError and writes nothing if anything
        that was read has changed meanwhile. A block that raises writes nothing. Works on namespaces that are open, too.
        Raises CapabilityError unless the engine declares `atomic-store`, and StoreNotOpenError.
        """
        from .transactions import Transaction

        return Transaction(self._source())

    def transact(self, fn: Callable[[Transaction], T]) -> T:
        """Return ``fn(tx)``, called in a transaction; after a conflict it is called again, for up to 60 s.

        So `fn` must have no other effects than its writes to `tx`. If it raises, nothing is written, and it is called
        again if what it had read no longer holds. Raises ConflictError, with the key, after 60 s of conflicts.
        """
        from .transactions import Transaction, transact

        return transact(partial(Transaction, self._source()), fn)

    def snapshot(self) -> Snapshot:
        """Return one unchanging view of all namespaces, for reading: ``with store.snapshot() as snap: snap["core"]``.

        Others may write meanwhile. The view is that of this moment, for deadlines too. Raises CapabilityError unless
        the engine declares `snapshot`, and StoreNotOpenError.
        """
        from .snapshots import Snapshot

        self._must_be_open()
        take = getattr(self._factory, "snapshot", None)
        if "snapshot" not in self._declared or take is None:
            raise CapabilityError(
                f"the {self.name} engine has no snapshots (it lacks the capability `snapshot`). Choose an engine that "
                "declares it, or copy the namespace: dict(namespace) reads it item by item while others write"
            )
        if "snapshot" not in self.capabilities:
            raise CapabilityError(
                f"the {self.name} engine has no snapshots: its class overrides `open` and inherits `snapshot`, which "
                "would read below that `open`. Override `snapshot` in the plugin too, or remove `snapshot` from its "
                "capabilities"
            )
        view = take()
        try:
            return Snapshot(view, self.name)
        except BaseException:
            # A stored traceback would keep the view open.
            view.close()
            raise

    def _transaction_of(self, owner: Hashable) -> Transaction:
        """Return the transaction that hutch.aio uses for the task `owner`, through any thread."""
        from .transactions import Transaction

        return Transaction(self._source(), owner)

    def _source(self) -> StoreSource:
        self._must_be_open()
        # Made once: what an engine can do is answered by several steps, a third of the time of a short transaction.
        if self._own_source is None:
            self._own_source = self._make_source()
        return self._own_source

    def _make_source(self) -> StoreSource:
        if "atomic-store" not in self._declared:
            raise CapabilityError(
                f"the {self.name} engine cannot change several namespaces in one step (it lacks the capability "
                "`atomic-store`); nothing was written. Choose an engine that declares it, or, for one namespace of an "
                "engine with `atomic-batch`, use namespace.transaction()"
            )
        if "atomic-store" not in self.capabilities:
            raise CapabilityError(
                f"the {self.name} engine has no transaction over several namespaces, although it declares "
                "`atomic-store`: its class has no `apply`, or overrides `open` and inherits `apply`, which would write "
                "below that `open`; nothing was written. Override `apply` in the plugin too, or remove `atomic-store` "
                "from its capabilities"
            )
        return StoreSource(self)

    def _storage_of(self, name: str) -> StorageBase:
        """Return the storage of namespace `name` that all transactions share. It claims nothing."""
        storage = self._storages.get(name)
        return self._open_storage(name) if storage is None else storage

    def _open_storage(self, name: str) -> StorageBase:
        opened: list[Any] = []
        with self._opening.current:
            self._must_be_open()
            try:
                # C code, so no signal handler can run between the return of `open` and the append.
                opened.extend(map(self._layered().open, [name]))
                storage = as_storage(opened[0], self.name, name)
                if not storage.has_apply:
                    raise CapabilityError(
                        f"namespace {name!r} of the {self.name} engine has no transactions, because its storage has no "
                        "`apply`; nothing was written. Use mutable() or modify() for one key, or have the plugin's "
                        "`open` return a hutch.EncodedStorage with `apply`"
                    )
                storage = self._storages.setdefault(name, storage)
            except BaseException:
                if opened and opened[0] not in self._storages.values():
                    close_interrupted(opened[0])
                raise
        return storage

    def _close_storages(self) -> None:
        """Close the storages of transactions; a later transaction opens them again."""
        for name in list(self._storages):
            storage = self._storages.pop(name, None)
            if storage is not None:
                storage.close()

    @property
    def capabilities(self) -> frozenset[str]:
        """The capabilities that the engine has beyond the six verbs: what it declares, without what would be refused.

        A plugin that changes what an engine's `open` returns, and inherits its `snapshot` or `apply`, has neither.
        """
        return self._declared - self._refused_capabilities

    @property
    def _declared(self) -> frozenset[str]:
        return frozenset(getattr(self._factory, "capabilities", ()))

    @property
    def _refused_capabilities(self) -> frozenset[str]:
        """The capabilities that the engine may declare, and does not have."""
        kind = type(self._factory)
        return frozenset(capability for capability, verb in _STORE_VERBS.items() if not _fits_open(kind, verb))

    def _layered(self) -> Any:
        raise NotImplementedError

    def _must_be_open(self) -> None:
        raise NotImplementedError


def _fits_open(kind: type[Any], verb: str) -> bool:
    """Return whether the factory class `kind` has a `verb`, and the `open` for which that was written."""
    definer: Any = next((one for one in kind.__mro__ if verb in vars(one)), StoragePluginBase)
    if definer is StoragePluginBase:  # or another object answers for it, as with __getattr__
        return False
    return getattr(definer, "open", None) in (None, StoragePluginBase.open, getattr(kind, "open", None))


class StoreSource:
    """What a transaction reads from and commits to: a store."""

    def __init__(self, store: StoreTransactions) -> None:
        self._store = store
        # Not a method: each verb of a transaction calls it.
        self.must_be_open: Callable[[], None] = store._must_be_open

    def storage_of(self, name: str) -> StorageBase:
        return self._store._storage_of(name)

    def typed_values(self) -> None:
        return None

    def apply(self, commits: Mapping[str, Commit]) -> bool:
        store = self._store
        step: Any = _Step(partial(store._factory.apply, commits))
        for name, commit in commits.items():
            storage = store._storage_of(name)
            if swapping:
                refuse_nested_write(storage.lock_scope, commit.changes)
            around = storage._around(step)
            if around is not step:
                step = _Step(partial(around.apply, *commit))
        return bool(step.apply())

    def place(self) -> Hashable:
        return id(self._store)


class _Step:
    """A step of a commit, in place of a storage inside the layers of one."""

    def __init__(self, call: Callable[[], bool]) -> None:
        self._call = call

    def apply(self, *_: object) -> bool:
        return self._call()
