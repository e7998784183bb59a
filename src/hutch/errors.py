"""One tree of errors: everything hutch raises on purpose is a `StoreError`.

A missing key is the exception to the rule: it is a plain `KeyError`, because a namespace is a mapping.
An error of an engine's driver never leaves hutch bare; it is the ``__cause__`` of one of these.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from .handlers import passes_through

__all__ = [
    "CapabilityError",
    "ConfigError",
    "ConflictError",
    "CorruptValueError",
    "KeyLimitError",
    "KeyTypeError",
    "NamespaceError",
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
    "StoreNotOpenError",
    "ValueLimitError",
    "ValueTypeError",
]


class StoreError(Exception):
    """The root of all errors that hutch raises on purpose."""


class ConfigError(StoreError, ValueError):
    """A config names something unknown, or gives it a value it cannot have. Nothing was opened."""


class PluginError(StoreError):
    """A storage plugin broke its side of the contract."""


class PluginNotFoundError(PluginError, LookupError):
    """No plugin of that name, in any of the places searched."""


class PluginConflictError(PluginError):
    """Two plugins claim one name; raised only when that name is asked for."""


class PluginLoadError(PluginError, ImportError):
    """The plugin was found, but its descriptor, its module or its factory cannot be used."""


class StoreAlreadyOpenError(StoreError):
    """The handle is open, or the namespace has a live handle in this store."""


class StoreNotOpenError(StoreError):
    """Used before it was opened, or after it was closed."""


class StoreLockedError(StoreError):
    """Another process holds a storage that only one process may use."""


class NamespaceError(StoreError, ValueError):
    """Not a possible name of a namespace."""


class KeyTypeError(StoreError, TypeError):
    """A key that is not a `str`."""


class KeyLimitError(StoreError, ValueError):
    """A key outside the portable limits."""


class ValueTypeError(StoreError, TypeError):
    """A value that the codec cannot give back as it was."""


class ValueLimitError(StoreError, ValueError):
    """A value that is too large once encoded."""


class CorruptValueError(StoreError):
    """Stored data that is unreadable, forged, foreign, or read with the wrong key."""


class ConflictError(StoreError):
    """A read-modify-write lost a race; nothing was written. Read again and retry."""


class StorageUnavailableError(StoreError, ConnectionError):
    """The storage cannot be reached now: no server, no permission, a folder that is gone."""


class StorageTimeoutError(StoreError, TimeoutError):
    """The storage did not answer, or stayed busy, for as long as the config allows."""


class StorageFullError(StoreError, OSError):
    """No room for the write. What was stored before is intact."""


class CapabilityError(StoreError, NotImplementedError):
    """The engine cannot do this; its `capabilities` say what it can."""


def nearest(name: str, known: Iterable[str]) -> str:
    """`` Did you mean 'x'?`` for the known name closest to `name`, or the empty string."""
    try:
        import difflib
    except (ImportError, OSError) as error:  # a process that gave up its rights; a hint is not worth another error
        if passes_through(error):
            raise
        return ""
    by_folded = {k.casefold(): k for k in known}
    found = difflib.get_close_matches(name.casefold(), by_folded, n=1, cutoff=0.6)
    return f" Did you mean {by_folded[found[0]]!r}?" if found else ""


_PARAMETER_RUN = r"([&;]?)([^&;#\s]+)"
_SECRET_WORD = r"(?i)pass|pwd|secret|token|key|credential|auth"  # noqa: S105


def redact(text: str) -> str:
    """`text` with the credentials of every URL in it replaced by ``***``, in time proportional to its length."""
    if "://" in text:
        text = "\n".join(map(_without_userinfo, text.split("\n")))
    return re.sub(_PARAMETER_RUN, _without_secrets, text) if "=" in text else text


def _without_userinfo(line: str) -> str:
    # From the scheme to the last "@" of the line. RFC 3986 forbids "@", "/", "?" and blanks in a password; people
    # write them all the same. Redacting too much is the safe mistake.
    start = line.find("://") + 3
    end = line.rfind("@", start) if start > 2 else -1
    return line if end < 0 else f"{line[:start]}***{line[end:]}"


def _without_secrets(run: re.Match[str]) -> str:
    """One parameter ``?name=value`` or ``&name=value`` without its value, if its name is that of a secret."""
    delimiter, parts = run[1], run[2].split("=")
    for index, name in enumerate(parts[:-1]):
        start = 0 if delimiter and not index else name.find("?")
        if start >= 0 and re.search(_SECRET_WORD, name[start:]):
            return f"{delimiter}{'='.join(parts[: index + 1])}=***"
    return run[0]
