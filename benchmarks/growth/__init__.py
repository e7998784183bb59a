"""Measure how hutch grows with a store's size and use: `python -m benchmarks.growth`."""
