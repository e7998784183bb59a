"""Typed namespaces: values of one type, checked when they are set and made again when they are read."""

from .layer import TypedLayer
from .shapes import named_shape

__all__ = ["TypedLayer", "named_shape"]
