"""dotevals on hutch: ``pytest --storage hutch://lmdb:///srv/evals``. See docs/bridges/dotevals.md."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .storage import HutchStorage

__all__ = ["HutchStorage"]


def __getattr__(name: str) -> Any:
    # On first use: `hutch import` needs this package, but not dotevals.
    if name in __all__:
        return getattr(import_module(f"{__name__}.storage"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
