"""Value <-> bytes. The format is docs/format.md."""
