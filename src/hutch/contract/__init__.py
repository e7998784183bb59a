"""The contract of a storage plugin: a factory (stage 1) and the storage that its `open` returns (stage 2)."""

from .factory import SnapshotView, StoragePluginBase
from .storage import MISSING, Missing, StorageBase

__all__ = ["MISSING", "Missing", "SnapshotView", "StorageBase", "StoragePluginBase"]
