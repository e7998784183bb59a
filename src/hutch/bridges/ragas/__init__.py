"""ragas on hutch: ``backend="hutch"`` for datasets and experiments, `HutchCache` for answers of LLMs.

See docs/bridges/ragas.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .storage import HutchBackend, HutchCache

__all__ = ["HutchBackend", "HutchCache"]


def __getattr__(name: str) -> Any:
    # On first use: `hutch import ragas-jsonl` needs this package, but not ragas.
    from . import storage

    return getattr(storage, name)
