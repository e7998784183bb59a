"""Cache the results of searches for plugins, each for as long as nothing that the search looked at has changed.

A search reads every folder and descriptor, which takes several times as long as opening a store. Looking at the status
of each again is enough to know that another search would have the same result.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Hashable
from operator import attrgetter, eq
from pathlib import Path
from typing import NamedTuple

from ..handlers import passes_through
from .discovery import Discovery

# What changed less than this ago may change again within the same tick of its file system's clock.
_SETTLED_NS = 2_000_000_000
# A search that looked at more is not cached, and when there are this many searches, all are forgotten.
_MOST_PATHS, _MOST_SEARCHES = 1000, 64
#: Device, inode, size, and the times of the last change of the content and of the inode.
Status = tuple[int, int, int, int, int]
_facts: Callable[[os.stat_result], Status] = attrgetter("st_dev", "st_ino", "st_size", "st_mtime_ns", "st_ctime_ns")


class Evidence:
    """What one search looked at. `add` comes before the folder or file is read."""

    def __init__(self) -> None:
        self._began_ns = time.time_ns()
        #: False if a change of the result could leave every status as it is: the search is not cached.
        self.is_complete = True
        self.statuses: dict[str, Status] = {}
        #: The real path of each folder that the search began with.
        self.real_paths: dict[str, str] = {}

    def add(self, path: str) -> None:
        """Remember the status of `path`, following links; a later change of it ends the caching."""
        status = _status(path)
        if status is None or self._began_ns - max(status[3:]) < _SETTLED_NS or len(self.statuses) >= _MOST_PATHS:
            self.is_complete = False
        else:
            self.statuses[path] = status

    def begin_with(self, folder: Path, *, is_builtin: bool) -> None:
        """Remember where `folder`, in which the search begins, leads to."""
        if not folder.is_absolute():
            self.is_complete = False  # the working folder may change
        elif not is_builtin:  # hutch itself was imported from there
            self.real_paths[str(folder)] = os.path.realpath(folder)

    def still_holds(self) -> bool:
        """Return whether a search would find everything as it was."""
        try:
            # By functions in C: the look at each of a dozen paths would else take as long as opening LMDB.
            if not all(map(eq, map(_facts, map(os.stat, self.statuses)), self.statuses.values())):
                return False
        except (OSError, ValueError) as error:
            if passes_through(error):
                raise
            return False
        return all(os.path.realpath(path) == real for path, real in self.real_paths.items())


class _Cached(NamedTuple):
    discovery: Discovery
    evidence: Evidence


_cached: dict[Hashable, _Cached] = {}


def cached_search(key: Hashable) -> Discovery | None:
    """Return the result of the search that `key` describes, or None if it must be made (again)."""
    cached = _cached.get(key)
    return cached.discovery if cached is not None and cached.evidence.still_holds() else None


def cache_search(key: Hashable, discovery: Discovery, evidence: Evidence) -> None:
    """Keep the result of a search, unless something was broken (it may be repaired) or has only just changed."""
    if evidence.is_complete and not discovery.broken and (discovery.plugins or discovery.codecs):
        if len(_cached) >= _MOST_SEARCHES:
            _cached.clear()
        _cached[key] = _Cached(discovery, evidence)


def _status(path: str) -> Status | None:
    try:
        status = os.stat(path)  # noqa: PTH116 - creating a Path takes longer than the stat
    except (OSError, ValueError) as error:
        if passes_through(error):
            raise
        return None
    return _facts(status)
