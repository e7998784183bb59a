"""Typed namespaces: values of one type, checked when they are set and made again when they are read."""

from .layer import TypedLayer
from .shapes import shape_of

__all__ = ["TypedLayer", "shape_of"]
