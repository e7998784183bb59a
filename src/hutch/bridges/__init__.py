"""Bridges: hutch in the place where another framework keeps its data. Each imports its framework, and no other."""
