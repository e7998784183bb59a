"""What a transaction asks of an engine: the changes of each namespace, and what must still hold there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple


class KeyRange(NamedTuple):
    """The keys that a transaction found in a range: exactly `keys` lie in ``start <= key < stop``."""

    #: A bound of None is open. A bound need not be a valid key.
    start: str | None
    stop: str | None
    keys: Sequence[str]


class Commit(NamedTuple):
    """What a transaction does to one namespace."""

    #: The new frame of each key; None removes it.
    changes: Mapping[str, bytes | None]
    #: The frame that each key must still have; None: the key must be missing.
    expected: Mapping[str, bytes | None]
    #: The ranges that must still hold the same keys.
    ranges: Sequence[KeyRange] = ()
