"""hutch."""
