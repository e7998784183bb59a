"""Themis 1.4 on hutch: a storage backend on any engine, and an execution backend over any executor.

``themis.evaluate(..., storage_backend=HutchStorageBackend("lmdb:///srv/evals"), run_id="...")``. Themis 4 has a
different design and its own bridge.
"""

try:
    from .batching import BatchExecutor
    from .execution import ExecutorBackend
    from .storage import HutchStorageBackend, copy_runs
except ImportError as error:
    raise ImportError(
        'hutch.bridges.themis1 needs Themis 1.4: pip install "themis-eval>=1.4,<2" "sympy>=1.12" (Themis 1.4 imports '
        f"sympy without asking for it). What went wrong: {error}. For Themis 4 see hutch.bridges.themis",
        name=error.name,
    ) from error

__all__ = ["BatchExecutor", "ExecutorBackend", "HutchStorageBackend", "copy_runs"]
