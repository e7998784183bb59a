"""Time zones as MessagePack and JSON hold them: an offset, an offset with a name, or a key of the IANA database."""

from __future__ import annotations

import re
from datetime import timedelta, timezone, tzinfo
from typing import Any

from ..errors import CorruptValueError

_MICROSECOND = timedelta(microseconds=1)
_KEY = r"[A-Za-z0-9_+-]+(?:/[A-Za-z0-9_+-]+)*"
_LONGEST_KEY = 100


class ZoneError(TypeError):
    """A `tzinfo` that is neither a `timezone` nor a `ZoneInfo` with a key. Its message is the name of the class."""


def encode_zone(zone: tzinfo | None) -> object:
    """None, the offset of a fixed zone in microseconds, [offset, name] of a named one, or the key of a ZoneInfo."""
    if zone is None:
        return None
    if type(zone) is timezone:
        offset, name = zone.utcoffset(None), zone.tzname(None)
        # Not by ==, which compares offsets alone: timezone(timedelta(0), "GMT") equals UTC.
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
    """Return the zone that `encode_zone` returned `zone` for. Raises CorruptValueError or ValueError for another."""
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
    except (LookupError, ValueError, OSError):  # no such zone; a file that is none; a folder
        pass
    raise CorruptValueError("its time zone is unknown here; install the package tzdata")


def _is_key(key: str) -> bool:
    """Whether `key` can be the name of a zone: no path out of the folder of zones, nothing that a message must hide."""
    return len(key) <= _LONGEST_KEY and re.fullmatch(_KEY, key) is not None
