"""Where a framework's data lies in hutch, and in the framework's own files; for `hutch import` and `hutch export`."""
