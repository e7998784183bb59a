"""Storages for dotevals under hutch's own URL schemes: ``pytest --storage lmdb:///srv/evals``.

Each URL scheme of a plugin is an attribute of this module: a storage class. An entry point of the group
``dotevals.storage`` makes dotevals find it; the package of an engine can add one for its own scheme.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import entry_points
from typing import Any, ClassVar

import hutch

from .storage import HutchStorage


class SchemeStorage(HutchStorage):
    """dotevals' storage for the URLs of one scheme. Gives way to another package's storage for that scheme."""

    scheme: ClassVar[str]

    def __new__(cls, storage_path: str | None = None) -> Any:
        other = _other_storage(cls.scheme)
        return super().__new__(cls) if other is None else other(storage_path)

    def __init__(self, storage_path: str | None = None) -> None:
        super().__init__(f"{self.scheme}://{storage_path or ''}")


@cache
def __getattr__(name: str) -> type[SchemeStorage]:
    if any(name in plugin.schemes for plugin in hutch.find_plugins().plugins):
        return type(name, (SchemeStorage,), {"__module__": __name__, "scheme": name})
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}: no plugin has this URL scheme")


@cache
def _other_storage(scheme: str) -> Any:
    # dotevals takes the last entry point, which may be ours; the other package was installed for this very name.
    for entry_point in entry_points(group="dotevals.storage", name=scheme):
        if entry_point.module != __name__:
            return entry_point.load()
    return None
