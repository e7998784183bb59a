"""Configs: convert any form of config to one frozen, validated `StoreConfig`."""

from .model import CodecConfig, LayerConfig, NamespaceRule, StoreConfig, shown_location
from .read import read_config
from .url import url_path

__all__ = ["CodecConfig", "LayerConfig", "NamespaceRule", "StoreConfig", "read_config", "shown_location", "url_path"]
