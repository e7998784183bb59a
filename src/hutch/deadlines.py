"""Turn the seconds that a value has to live into the deadline in its frame, and a deadline into the seconds left."""

from __future__ import annotations

import math
import time
from datetime import timedelta
from typing import Any, NamedTuple, NoReturn

from .codec.frame import DEADLINE, MAX_DEADLINE_MS, ExpiringFrameError, deadline_of, is_expired
from .errors import CapabilityError, a_or_an

__all__ = [
    "DEADLINE",
    "Expiring",
    "ExpiringFrameError",
    "deadline_after",
    "deadline_of",
    "is_expired",
    "no_ttl",
    "now_ms",
    "seconds_left",
    "validate_ttl",
    "with_deadline",
]


class Expiring(NamedTuple):
    """A value with its deadline, in milliseconds since 1970 UTC, on its way from one store to another."""

    value: Any
    deadline_ms: int


def with_deadline(value: Any, deadline_ms: int | None) -> Any:
    """Return `value`, as an `Expiring` if it has a deadline."""
    return value if deadline_ms is None else Expiring(value, deadline_ms)


def now_ms() -> int:
    """Return the time by the clock of this machine, in milliseconds since 1970 UTC."""
    return time.time_ns() // 1_000_000


def validate_ttl(ttl_s: Any) -> float:
    """Return `ttl_s`, a number of seconds above zero; `math.inf` means "never expires".

    Raises TypeError if it is not an int or float, ValueError if it is zero, negative, NaN, or ends after the year 9999.
    """
    if isinstance(ttl_s, bool) or not isinstance(ttl_s, int | float):
        way_out = "its total_seconds()" if isinstance(ttl_s, timedelta) else "a number, or math.inf for no deadline"
        raise TypeError(
            f"ttl_s takes an int or float, the seconds to live, not {a_or_an(type(ttl_s).__name__)}: pass {way_out}"
        )
    if not ttl_s > 0:
        raise ValueError(
            f"ttl_s must be above 0, not {ttl_s!r}: a value cannot expire before it is set. Pass math.inf for a value "
            "that never expires, or remove the key"
        )
    if ttl_s != math.inf and ttl_s > MAX_DEADLINE_MS / 1000:
        _refuse_late()
    return ttl_s


def deadline_after(ttl_s: float, now_ms: int) -> int | None:
    """Return the deadline `ttl_s` seconds after `now_ms`, at least a millisecond later; None for `math.inf`.

    Raises ValueError for a deadline beyond the year 9999.
    """
    if ttl_s == math.inf:
        return None
    deadline_ms = now_ms + math.ceil(ttl_s * 1000)
    if deadline_ms > MAX_DEADLINE_MS:
        _refuse_late()
    return deadline_ms


def seconds_left(key: str, deadline_ms: int, now_ms: int) -> float:
    """Return the seconds from `now_ms` to the deadline of `key`. Raises KeyError if the deadline has come."""
    if deadline_ms <= now_ms:
        raise KeyError(key)
    return (deadline_ms - now_ms) / 1000


def no_ttl(engine: str = "this") -> CapabilityError:
    """Return the error for a storage without the capability `ttl`."""
    return CapabilityError(
        f"{engine} storage does not declare the capability ttl, so values in it never expire; nothing was written. Use "
        "an engine that declares it, or leave out ttl_s and TTL_S"
    )


def _refuse_late() -> NoReturn:
    raise ValueError(
        "ttl_s ends after the year 9999: a deadline must be earlier. Pass math.inf for a value that never expires"
    )
