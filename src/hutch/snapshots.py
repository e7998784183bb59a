"""Snapshot: the namespaces of a store as they were at one moment, for reading."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, Self

from .contract import StorageBase
from .discovery.foreign import as_storage
from .encoded import EncodedStorage
from .errors import StoreNotOpenError
from .handle import Namespace
from .layers.read_only import ReadOnlyLayer
from .limits import validate_namespace

if TYPE_CHECKING:
    from .contract import SnapshotView


class Snapshot:
    """One unchanging view of all namespaces: ``with store.snapshot() as snap: snap["core"]["k"]``.

    Others write meanwhile, and time stands still: a key that had not expired at its moment stays in it. Close it soon,
    because until then the engine retains what others remove or replace.
    """

    def __init__(self, view: SnapshotView, engine: str) -> None:
        self._view: SnapshotView | None = view
        self._handles: dict[str, Namespace[Any]] = {}
        #: The name of the engine, for errors.
        self.name = engine

    def __getitem__(self, namespace: str) -> Namespace[Any]:
        """Return `namespace` as it was. Its writes raise CapabilityError, and its `close` does nothing.

        Raises StoreNotOpenError once the snapshot is closed.
        """
        view = self._open_view()
        handle = self._handles.get(namespace)
        if handle is None:
            handle = Namespace()
            handle.open_storage(_Views(view, self.name), validate_namespace(namespace))
            # All users of the snapshot have this handle, so leaving a `with` block of one does not close it.
            handle._is_shared = True
            handle = self._handles.setdefault(namespace, handle)
        return handle

    def namespaces(self) -> list[str]:
        """Return the sorted names of the namespaces that held data."""
        return sorted(self._open_view().namespaces())

    def close(self) -> None:
        """Release the snapshot; does nothing if it is closed already."""
        view = self._view
        if view is not None:
            try:
                view.close()
            except BaseException:
                # Interrupted: a stored traceback would keep the view open.
                view.close()
                raise
        self._view = None
        for handle in list(self._handles.values()):
            handle._is_shared = False
            handle.close()

    def _refuse(self, *_: object) -> NoReturn:
        raise TypeError("a snapshot is neither iterable nor a container of names; namespaces() lists its namespaces")

    __iter__ = __contains__ = _refuse

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError(
            "a snapshot cannot be pickled or copied: the engine keeps its moment for this process. Send the data, "
            "dict(snap[name]), or take another one with store.snapshot()"
        )

    def __enter__(self) -> Self:
        if self._view is None:
            self._open_view()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open_view(self) -> SnapshotView:
        if self._view is None:
            raise StoreNotOpenError("this snapshot is closed; take a new one with store.snapshot()")
        return self._view


class _Views:
    """The factory of a snapshot's namespaces."""

    def __init__(self, view: SnapshotView, name: str) -> None:
        self._view, self.name = view, name

    def open(self, namespace: str) -> StorageBase:
        storage = self._view.open(namespace)
        if isinstance(storage, EncodedStorage):
            moment_ms = self._view.now_ms
            storage.now_ms = lambda: moment_ms  # type: ignore[method-assign]
        return ReadOnlyLayer(as_storage(storage, self.name, namespace), namespace, is_snapshot=True)
