"""Kill processes that write, and verify what they left."""
