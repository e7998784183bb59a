"""EncodedStorage: codec above, bytes below."""

from .storage import EncodedStorage

__all__ = ["EncodedStorage"]
