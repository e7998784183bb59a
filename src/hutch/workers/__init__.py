"""Worker threads for event loops: a pool that runs blocking calls and tracks calls whose callers gave up."""

from .calls import Calls, patience_s
from .pool import GRACE_S, WorkerPool

__all__ = ["GRACE_S", "Calls", "WorkerPool", "patience_s"]
