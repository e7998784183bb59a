"""Find a plugin by the name in a config and build its factory: descriptors, search, entry points, loading."""
