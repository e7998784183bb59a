"""How hutch grows with a store's size and use; run as `python -m benchmarks.growth`."""
