"""Runs of Themis 4 in hutch: ``StorageConfig(store="hutch", parameters={"url": ...})``. See docs/bridges/themis.md.

Themis looks for no entry points, so a program imports this package once to register the storage. For programs that
import nothing of yours, such as a worker, ``python -m hutch.bridges.themis`` is the command ``themis`` with this
package imported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__all__ = ["HutchRunStore"]

if TYPE_CHECKING:
    from .storage import HutchRunStore
else:
    try:
        from .storage import HutchRunStore
    except ImportError as error:
        # `hutch import themis-sqlite` needs this package, but not Themis.
        _problem = error

        def __getattr__(name: str) -> Any:
            if name in __all__:
                raise ImportError(str(_problem)) from _problem.__cause__
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
