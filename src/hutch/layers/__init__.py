"""Layers: storages that a config puts between a handle and its engine. Each is a StorageBase around a StorageBase."""
