"""Find what JSON would not give back as it was: for the exports to files of JSON."""

from __future__ import annotations

from typing import Any


def reason_not_json(value: Any) -> str | None:
    """Return what in `value` JSON would change; None if nothing."""
    if type(value) is dict:
        for key, item in value.items():
            if type(key) is not str:
                return f"it has a key of type {type(key).__name__}"
            if reason := reason_not_json(item):
                return reason
    elif type(value) is list:
        for item in value:
            if reason := reason_not_json(item):
                return reason
    elif value is not None and type(value) not in (bool, int, float, str):
        return f"it holds a value of type {type(value).__name__}"
    return None
