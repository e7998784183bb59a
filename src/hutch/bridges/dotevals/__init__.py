"""dotevals on hutch: ``pytest --storage hutch://lmdb:///srv/evals``. See docs/bridges/dotevals.md."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .storage import HutchStorage

__all__ = ["HutchStorage"]


def __getattr__(name: str) -> Any:
    # On first use: `hutch import dotevals-json` needs this package, but not dotevals.
    from . import storage

    return getattr(storage, name)
