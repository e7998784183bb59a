"""StoreMixin: the mapping over one storage, and its lifecycle."""

from .mapping import StoreMixin

__all__ = ["StoreMixin"]
