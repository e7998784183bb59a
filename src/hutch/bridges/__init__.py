"""Bridges that make hutch the storage of another framework. Each imports its own framework and no other."""
