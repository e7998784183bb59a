"""Codecs: convert values to bytes and back. docs/format.md specifies the format."""
