"""py-key-value, and so FastMCP, on hutch: ``HutchStore("lmdb:///srv/notes")``. See docs/bridges/keyvalue.md."""

from .storage import HutchStore

__all__ = ["HutchStore"]
