"""Refuse ``--storage hutch`` in dotevals, which takes a name without ``://`` for the folder of its JSON storage.

dotevals loads the entry points of the group ``dotevals.storage`` before it chooses a storage, so the entry point
``json`` stands in front of its own JSON storage.
"""

from __future__ import annotations

import os
from typing import Any

from dotevals.storage.json import JSONStorage


def json_storage(storage_path: str) -> Any:
    """Return dotevals' JSON storage in the folder `storage_path`.

    Raises ValueError for the name of a storage, such as ``hutch``, that names no folder yet: results would be written
    as JSON into a new folder of that name, without a word.
    """
    if storage_path in _names() and not os.path.lexists(storage_path):
        raise ValueError(
            f"--storage {storage_path} would be a new folder {storage_path!r} of JSON files: expected a URL. For hutch "
            f"write hutch:// (its default store) or hutch://URL; for that folder write json://./{storage_path}"
        )
    return JSONStorage(storage_path)


def _names() -> set[str]:
    from dotevals.storage import list_backends

    return set(list_backends()) - {"json"}
