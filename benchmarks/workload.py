"""The data for every store: the same keys, and values of about 125 bytes that no write repeats."""

from __future__ import annotations

import random
from typing import Any

#: 125 bytes in MessagePack. Plain types only, so that peers that keep no others can take part.
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
    """Return a value that differs with `number`: SQLite skips writing a page that would not change."""
    return {**VALUE, "id": 100_000 + number}


def key_names(count: int) -> list[str]:
    return [f"user:{number:06}" for number in range(count)]


def shuffled(keys: list[str], count: int) -> list[str]:
    """Return up to `count` of `keys` out of order, the same in each run and process."""
    return random.Random(1).sample(keys, min(count, len(keys)))
