"""The errors: every error hutch raises on purpose is a `StoreError`, except a missing key.

A missing key is a plain `KeyError`, because a namespace is a mapping. An error of an engine's driver is always
the ``__cause__`` of one of these, never raised itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from .handlers import passes_through

# Of a chain that refers to itself, only so many are visited.
_MAX_CAUSES = 20

__all__ = [
    "CapabilityError",
    "ConfigError",
    "ConflictError",
    "CorruptValueError",
    "KeyLimitError",
    "KeyTypeError",
    "NamespaceError",
    "NotReplicatedError",
    "PluginConflictError",
    "PluginError",
    "PluginLoadError",
    "PluginNotFoundError",
    "StorageFullError",
    "StorageTimeoutError",
    "StorageUnavailableError",
    "StoreAlreadyOpenError",
    "StoreError",
    "StoreLockedError",
    "StoreMissingError",
    "StoreNotOpenError",
    "ValueLimitError",
    "ValueTypeError",
]


class StoreError(Exception):
    """The base class of all errors that hutch raises on purpose."""


class ConfigError(StoreError, ValueError):
    """A config contains an unknown name or an invalid value. Nothing was opened."""


class PluginError(StoreError):
    """A storage plugin violated the contract."""


class PluginNotFoundError(PluginError, LookupError):
    """No plugin of that name exists in any of the places searched."""


class PluginConflictError(PluginError):
    """Several plugins have the requested name. Raised only when a config uses that name."""


class PluginLoadError(PluginError, ImportError):
    """The plugin was found, but its descriptor, its module or its factory cannot be used."""

    #: Whether only a package that the plugin needs is not installed; the message then says how to install it.
    is_not_installed = False


class StoreAlreadyOpenError(StoreError):
    """The handle is open already, or the namespace has a live handle in this store."""


class StoreNotOpenError(StoreError):
    """The store or namespace is not open yet, or is closed."""


class StoreLockedError(StoreError):
    """Another process is using a storage that only one process may use."""


class StoreMissingError(StoreError, FileNotFoundError):
    """There is no store at the path, and the options do not allow to create one; or no namespace of that name."""


class NamespaceError(StoreError, ValueError):
    """A name that no namespace can have."""


class KeyTypeError(StoreError, TypeError):
    """A key that is not a `str`."""


class KeyLimitError(StoreError, ValueError):
    """A key outside the portable limits."""


class ValueTypeError(StoreError, TypeError):
    """A value that the codec cannot restore exactly."""


class ValueLimitError(StoreError, ValueError):
    """A value whose encoded form is too large."""


class CorruptValueError(StoreError):
    """Stored data that is damaged, forged, not written by hutch, or read with the wrong signing key."""


class ConflictError(StoreError):
    """A read-modify-write lost a race; nothing was written. Read again and retry."""


class StorageUnavailableError(StoreError, ConnectionError):
    """The storage cannot be reached now: the server is down, permission is missing, or a folder is gone."""


class NotReplicatedError(StorageUnavailableError):
    """The write was made, but too few replicas have acknowledged it in time: a fail-over may lose it."""


class StorageTimeoutError(StoreError, TimeoutError):
    """The storage did not answer, or stayed busy, for longer than the config allows."""


class StorageFullError(StoreError, OSError):
    """There is no room for the write. Data stored before is intact."""


class CapabilityError(StoreError, NotImplementedError):
    """The engine does not support this call; its `capabilities` list what it supports."""


def a_or_an(name: str) -> str:
    """Return `name` after "an" or "a", for messages: "an int", "a set"."""
    return f"an {name}" if name[:1].lower() in {*"aeio"} else f"a {name}"


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `` Did you mean 'x'?`` for the known name closest to `name`, or the empty string."""
    try:
        import difflib
    except (ImportError, OSError) as error:  # a process that dropped its privileges; a hint is not worth another error
        if passes_through(error):
            raise
        return ""
    by_folded = {k.casefold(): k for k in known}
    matches = difflib.get_close_matches(name.casefold(), by_folded, n=1, cutoff=0.6)
    return f" Did you mean {by_folded[matches[0]]!r}?" if matches else ""


_PARAMETER_RUN = r"([&;]?)([^&;#\s]+)"
_SECRET_WORD = r"(?i)pass|pwd|secret|token|key|credential|auth"  # noqa: S105


def redact(text: str) -> str:
    """Return `text` with the credentials of every URL replaced by ``***``, in time linear in its length."""
    if "://" in text:
        text = "\n".join(map(_without_userinfo, text.split("\n")))
    return re.sub(_PARAMETER_RUN, _without_secrets, text) if "=" in text else text


def _without_userinfo(line: str) -> str:
    # Redact from the scheme to the last "@" of the line: RFC 3986 forbids "@", "/", "?" and blanks in a password, but
    # people write them. Redacting too much is the safe mistake.
    start = line.find("://") + 3
    end = line.rfind("@", start) if start > 2 else -1
    return line if end < 0 else f"{line[:start]}***{line[end:]}"


def _without_secrets(run: re.Match[str]) -> str:
    """Return the parameter ``?name=value`` or ``&name=value``, without its value if the name suggests a secret."""
    delimiter, parts = run[1], run[2].split("=")
    for index, name in enumerate(parts[:-1]):
        start = 0 if delimiter and not index else name.find("?")
        if start >= 0 and re.search(_SECRET_WORD, name[start:]):
            return f"{delimiter}{'='.join(parts[: index + 1])}=***"
    return run[0]


def without_driver_tracebacks(error: BaseException) -> None:
    """Remove the tracebacks of the causes of `error`, so that it prints with one traceback, its own.

    The causes stay, for their type and attributes. A PluginError or ConfigError is left as it is: its cause was raised
    by the code of a plugin, whose author needs to know where.
    """
    if not isinstance(error, StoreError) or isinstance(error, PluginError | ConfigError):
        return
    cause = error.__cause__
    for _ in range(_MAX_CAUSES):
        if cause is None:
            return
        cause.__traceback__ = None
        cause = cause.__cause__ or cause.__context__
