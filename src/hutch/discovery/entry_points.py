"""Test whether any installed package can have an entry point of a group, without importing `importlib.metadata`.

It imports email, zipfile, random and fifty more modules, and reads every package's entry points at each call:
several times the cost of opening a store. Most programs have no entry point of hutch's groups.
"""

from __future__ import annotations

import os
import sys
import time
from importlib.machinery import PathFinder

from ..handlers import passes_through

#: The entry point groups of other packages' hooks, engines and codecs.
HOOKS_GROUP, PLUGINS_GROUP, CODECS_GROUP = "hutch", "hutch.plugins", "hutch.codecs"

_GROUPS = frozenset({HOOKS_GROUP, PLUGINS_GROUP, CODECS_GROUP})
# A folder that changed less than this ago may change again within the same tick of its file system's clock.
_SETTLED_NS = 2_000_000_000
# Per folder of sys.path: its identity (device, inode, modification time) and the groups found in it.
_known: dict[str, tuple[tuple[int, int, int], frozenset[str]]] = {}


def may_have_entry_points(group: str) -> bool:
    """Return False only if `importlib.metadata` would find no entry point of `group`, one of the three above.

    Returns True in doubt: for a zip file on `sys.path`, a third-party distribution finder, or unreadable metadata.
    A folder is read again when its modification time changes, as in `importlib.metadata`.
    """
    try:
        for finder in sys.meta_path:
            if finder is not PathFinder and getattr(finder, "find_distributions", None) is not None:
                return True
        return any(group in _groups_in(os.fspath(entry) or ".") for entry in sys.path)
    except Exception as error:  # third-party finders may raise anything, and sys.path may contain anything
        if passes_through(error):
            raise
        return True


def _groups_in(folder: str) -> frozenset[str]:
    """Return the groups of which distributions in `folder` may have entry points. Raises OSError."""
    try:
        status = os.stat(folder)  # noqa: PTH116 - creating a Path takes longer than the stat
    except (FileNotFoundError, PermissionError) as error:  # no finder finds anything in it
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
                # EGG-INFO is in an unpacked egg.
                if entry.name.lower().endswith((".dist-info", ".egg-info", "egg-info")):
                    groups |= _groups_of(entry.path)
    except PermissionError as error:
        if passes_through(error):
            raise
    names = frozenset(groups)
    if time.time_ns() - status.st_mtime_ns > _SETTLED_NS:
        _known[folder] = now, names
    return names


def _groups_of(metadata: str) -> frozenset[str]:
    try:
        with open(f"{metadata}{os.sep}entry_points.txt", "rb", 0) as file:  # noqa: PTH123 - see above
            text = file.read().decode()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError) as error:
        if passes_through(error):
            raise
        return frozenset()  # as in importlib.metadata; an .egg-info may be a file
    except (OSError, ValueError) as error:
        if passes_through(error):
            raise
        return _GROUPS  # the code that reads the entry points reports the error
    # The header of the group's section ends with this text.
    return frozenset(group for group in _GROUPS if f"{group}]" in text)
