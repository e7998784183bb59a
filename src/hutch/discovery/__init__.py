"""From a name in a config to the factory of its plugin: descriptors, search, entry points, loading."""
