"""Assert which error a test raises: its kind, its message, and how soon."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

import hutch

PROMPT_S = 5.0


@contextmanager
def refused(kind: type[hutch.StoreError], *parts: object) -> Iterator[None]:
    """Assert that the block promptly raises exactly `kind`, with every one of `parts` in its message."""
    began = time.monotonic()
    with pytest.raises(kind) as raised:
        yield
    assert time.monotonic() - began < PROMPT_S
    assert type(raised.value) is kind
    for part in parts:
        assert str(part) in str(raised.value), str(raised.value)
