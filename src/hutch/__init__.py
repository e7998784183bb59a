"""hutch: a key/value store with namespaces.

with hutch.connect("lmdb://state").open("core") as core:
    core["plugins"] = {"Help", "Health"}
"""

from __future__ import annotations

TYPE_CHECKING = False  # type checkers assume True; importing `typing` would be most of the import time
if TYPE_CHECKING:
    from typing import Any

    from .codec.codec import Codec
    from .codec.registry import register_type
    from .config import StoreConfig
    from .contract import MISSING, StorageBase, StoragePluginBase
    from .contract.commit import Commit, KeyRange
    from .discovery.discovery import Discovery
    from .discovery.factory import find_plugins, load_plugin
    from .encoded import EncodedStorage
    from .errors import (
        CapabilityError,
        ConfigError,
        ConflictError,
        CorruptValueError,
        KeyLimitError,
        KeyTypeError,
        NamespaceError,
        NotReplicatedError,
        PluginConflictError,
        PluginError,
        PluginLoadError,
        PluginNotFoundError,
        StorageFullError,
        StorageTimeoutError,
        StorageUnavailableError,
        StoreAlreadyOpenError,
        StoreError,
        StoreLockedError,
        StoreMissingError,
        StoreNotOpenError,
        ValueLimitError,
        ValueTypeError,
    )
    from .finding import Finding
    from .handle import Namespace
    from .hooks import hookimpl, register_hooks, unregister_hooks
    from .integrity import verify
    from .namespace import StoreMixin
    from .options import Option
    from .store import Store, connect
    from .transactions import Transaction

__version__ = "0.1.0"

__all__ = [
    "MISSING",
    "CapabilityError",
    "Codec",
    "Commit",
    "ConfigError",
    "ConflictError",
    "CorruptValueError",
    "Discovery",
    "EncodedStorage",
    "Finding",
    "KeyLimitError",
    "KeyRange",
    "KeyTypeError",
    "Namespace",
    "NamespaceError",
    "NotReplicatedError",
    "Option",
    "PluginConflictError",
    "PluginError",
    "PluginLoadError",
    "PluginNotFoundError",
    "StorageBase",
    "StorageFullError",
    "StoragePluginBase",
    "StorageTimeoutError",
    "StorageUnavailableError",
    "Store",
    "StoreAlreadyOpenError",
    "StoreConfig",
    "StoreError",
    "StoreLockedError",
    "StoreMissingError",
    "StoreMixin",
    "StoreNotOpenError",
    "Transaction",
    "ValueLimitError",
    "ValueTypeError",
    "__version__",
    "connect",
    "find_plugins",
    "hookimpl",
    "load_plugin",
    "register_hooks",
    "register_type",
    "unregister_hooks",
    "verify",
]

# Modules imported on first use of a name, so that `import hutch` is fast. Names not listed here are in `errors`.
_HOME = {
    "contract": ("MISSING", "StorageBase", "StoragePluginBase"),
    "contract.commit": ("Commit", "KeyRange"),
    "finding": ("Finding",),
    "codec.codec": ("Codec",),
    "codec.registry": ("register_type",),
    "config": ("StoreConfig",),
    "discovery.factory": ("find_plugins", "load_plugin"),
    "discovery.discovery": ("Discovery",),
    "encoded": ("EncodedStorage",),
    "handle": ("Namespace",),
    "hooks": ("hookimpl", "register_hooks", "unregister_hooks"),
    "integrity": ("verify",),
    "namespace": ("StoreMixin",),
    "options": ("Option",),
    "store": ("Store", "connect"),
    "transactions": ("Transaction",),
}
_ROOM_OF = {name: room for room, names in _HOME.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'hutch' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"{__name__}.{_ROOM_OF.get(name, 'errors')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
