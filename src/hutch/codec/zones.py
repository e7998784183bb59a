"""Time zones in MessagePack and JSON: an offset, an offset with a name, or a key of the IANA database."""

from __future__ import annotations

import re
from datetime import timedelta, timezone, tzinfo
from typing import Any

from ..errors import CorruptValueError

_MICROSECOND = timedelta(microseconds=1)
_KEY = r"[A-Za-z0-9_+-]+(?:/[A-Za-z0-9_+-]+)*"
_LONGEST_KEY = 100


class ZoneError(TypeError):
    """The error for a `tzinfo` that is neither a `timezone` nor a keyed `ZoneInfo`. Its text names the class."""


def encode_zone(zone: tzinfo | None) -> object:
    """Return `zone` as None, an offset in microseconds, [offset, name], or the key of a ZoneInfo. Raises ZoneError."""
    if zone is None:
        return None
    if type(zone) is timezone:
        offset, name = zone.utcoffset(None), zone.tzname(None)
        # Names are compared because == compares offsets alone: timezone(timedelta(0), "GMT") equals UTC.
        if name == timezone(offset).tzname(None):
            return offset // _MICROSECOND
        if name.encode("utf-8", "replace").decode() != name:
            raise ZoneError("timezone whose name has a lone surrogate")
        return [offset // _MICROSECOND, name]
    if type(zone).__module__.partition(".")[0] == "zoneinfo":
        key = getattr(zone, "key", None)
        if isinstance(key, str) and _is_key(key):
            return key
    raise ZoneError(f"tzinfo {type(zone).__name__}")


def decode_zone(zone: Any) -> tzinfo | None:
    """Return the `tzinfo` that `encode_zone` encoded as `zone`. Raises CorruptValueError or ValueError if it is bad."""
    if zone is None:
        return None
    if type(zone) is int:
        return timezone(timedelta(microseconds=zone))
    if type(zone) is list and [type(part) for part in zone] == [int, str]:
        return timezone(timedelta(microseconds=zone[0]), zone[1])
    if type(zone) is not str or not _is_key(zone):
        raise CorruptValueError("its time zone is neither an offset nor the name of a zone")
    from zoneinfo import ZoneInfo

    try:
        return ZoneInfo(zone)
    except (LookupError, ValueError, OSError):  # no such zone; not a zone file; a folder
        pass
    raise CorruptValueError("its time zone is unknown here; install the package tzdata")


def _is_key(key: str) -> bool:
    """Return whether `key` may name a zone: it cannot leave the zone folder and is safe to show in an error."""
    return len(key) <= _LONGEST_KEY and re.fullmatch(_KEY, key) is not None
