"""Whether any installed package can have an entry point of a group, answered without `importlib.metadata`.

That brings email, zipfile, random and fifty more modules, and reads each package's entry points anew at each
question: several times what opening a store costs. Most programs have no entry point of hutch's groups.
"""

from __future__ import annotations

import os
import sys
import time
from importlib.machinery import PathFinder

from ..handlers import passes_through

#: What other packages may add: hooks, and storage plugins.
HOOKS_GROUP, PLUGINS_GROUP = "hutch", "hutch.plugins"

_GROUPS = frozenset({HOOKS_GROUP, PLUGINS_GROUP})
# A folder that changed within this time may change again in the same tick of its file system's clock.
_SETTLED_NS = 2_000_000_000
# What was found in a folder of sys.path, and which folder it was, at what time.
_known: dict[str, tuple[tuple[int, int, int], frozenset[str]]] = {}


def may_have_entry_points(group: str) -> bool:
    """False only if `importlib.metadata` would find no entry point of `group`, one of the two above.

    In doubt it is True: a zip file on `sys.path`, a finder of distributions other than Python's own, metadata that
    cannot be read. A folder is read again once its time of change is another, as `importlib.metadata` does.
    """
    try:
        for finder in sys.meta_path:
            if finder is not PathFinder and getattr(finder, "find_distributions", None) is not None:
                return True
        return any(group in _groups_in(os.fspath(entry) or ".") for entry in sys.path)
    except Exception as error:  # finders are other people's code, and anything may be on sys.path
        if passes_through(error):
            raise
        return True


def _groups_in(folder: str) -> frozenset[str]:
    """Which of the groups the distributions in `folder` may have entry points of. Raises OSError."""
    try:
        status = os.stat(folder)  # noqa: PTH116 - a Path takes longer to make than a folder to look at
    except (FileNotFoundError, PermissionError) as error:  # nothing is found in it, by anybody
        if passes_through(error):
            raise
        return frozenset()
    now = (status.st_dev, status.st_ino, status.st_mtime_ns)
    known = _known.get(folder)
    if known is not None and known[0] == now:
        return known[1]
    groups: set[str] = set()
    try:
        with os.scandir(folder) as listing:
            for entry in listing:
                # EGG-INFO is that of an unpacked egg.
                if entry.name.lower().endswith((".dist-info", ".egg-info", "egg-info")):
                    groups |= _groups_of(entry.path)
    except PermissionError as error:
        if passes_through(error):
            raise
    found = frozenset(groups)
    if time.time_ns() - status.st_mtime_ns > _SETTLED_NS:
        _known[folder] = now, found
    return found


def _groups_of(metadata: str) -> frozenset[str]:
    try:
        with open(f"{metadata}{os.sep}entry_points.txt", "rb", 0) as file:  # noqa: PTH123 - see above
            text = file.read().decode()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError) as error:
        if passes_through(error):
            raise
        return frozenset()  # as importlib.metadata takes it; an .egg-info may be a file
    except (OSError, ValueError) as error:
        if passes_through(error):
            raise
        return _GROUPS  # how to tell of it is for who reads them
    # The header of a section ends in this, whatever stands before it.
    return frozenset(group for group in _GROUPS if f"{group}]" in text)
