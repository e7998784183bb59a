"""What every store is given: the same keys, and values of about 125 bytes that no write repeats."""

from __future__ import annotations

import random
from typing import Any

#: 125 bytes in MessagePack. Plain types only, so that the peers that keep no others can take part.
VALUE: dict[str, Any] = {
    "id": 12345,
    "name": "Some user",
    "tags": ["a", "bb", "ccc"],
    "score": 1.5,
    "active": True,
    "email": "someone@example.org",
    "note": None,
    "at": "2026-11-21T10:00:00",
    "by": "load",
}


def fresh(number: int) -> dict[str, Any]:
    """A value that differs with `number`: SQLite skips the write of a page that would not change."""
    return {**VALUE, "id": 100_000 + number}


def key_names(count: int) -> list[str]:
    return [f"user:{number:06}" for number in range(count)]


def shuffled(keys: list[str], count: int) -> list[str]:
    """Up to `count` of `keys`, the same ones in each run and process, out of order."""
    return random.Random(1).sample(keys, min(count, len(keys)))
