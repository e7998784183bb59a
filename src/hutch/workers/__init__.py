"""Threads of hutch's own for event loops: a pool that runs blocking calls, and what a caller that gives up leaves."""

from .calls import Calls, patience_s
from .pool import GRACE_S, WorkerPool

__all__ = ["GRACE_S", "Calls", "WorkerPool", "patience_s"]
