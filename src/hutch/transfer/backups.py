"""`backup`: a backup by the engine or, where it has none, by a scan into a new store."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from .. import CapabilityError, Store, connect
from ..backup import write_whole
from .batches import OnProgress, Transferred
from .stores import copy


def backup(store: Store, dest: str | os.PathLike[str], *, progress: OnProgress | None = None) -> Transferred | None:
    """Write a backup of `store` to the new path `dest`, as `Store.backup` does, and return None.

    If the engine cannot do that, copy every item into a new lmdb store at `dest`, as `copy` does, and return what was
    copied. Either way `dest` appears when it is complete. Raises ConfigError if `dest` exists.
    """
    copied: list[Transferred] = []

    def scan(path: Path) -> None:
        rules = tuple(rule._replace(layers=None, ttl_s=None) for rule in store.config.namespaces)
        config = replace(
            store.config,
            storage="lmdb",
            url=None,
            options={"path": str(path), "durability": "relaxed"},
            layers=(),
            ttl_s=None,
            namespaces=rules,
            private=False,
        )
        with connect(config) as target:
            copied.append(copy(store, target, progress=progress))

    try:
        store.backup(dest)
    except CapabilityError:
        write_whole(dest, scan)
        return copied[0]
    return None
