"""Where `dump` and `copy` read from: one snapshot of the store, or the store itself if it has no snapshots."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from .. import CapabilityError, Namespace, Store
from ..snapshots import Snapshot


def moment_of(store: Store) -> AbstractContextManager[Snapshot | None]:
    """Return a snapshot of `store` for a `with`, or a context of None where the engine or its mode has none."""
    try:
        return store.snapshot()
    except CapabilityError:
        return nullcontext()


def source_of(store: Store, snapshot: Snapshot | None, name: str) -> Namespace:
    """Return the namespace `name` as it was at the moment of `snapshot`, or as it is."""
    return store.open(name) if snapshot is None else snapshot[name]
