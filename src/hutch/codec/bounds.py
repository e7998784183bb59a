"""Bounds on decoding, so that its time, memory and stack depend only on the length of the input.

Two things could exceed that: equal hashes, because a set compares all items with the same hash, and nesting, because
ormsgpack uses the C stack for every level. Both need many bytes to do harm, so bodies of at most `SHORT` bytes, the
usual case, are not inspected.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable
from datetime import date
from typing import Any

import ormsgpack

#: The length in bytes up to which a body is harmless: its at most 2,048 levels use 1.2 MB of the C stack.
SHORT = 2048
#: How many longer bodies may be nested before the innermost is inspected: each may have 1,023 levels of its own.
LONG_BODIES = 4
#: How many levels the innermost of them may have.
MOST_LEVELS = 2_000

#: The error text for equal hashes.
EQUAL_HASHES = "too many items of a set, or keys of a dict, have equal hashes"
# Making a Fraction computes the greatest common divisor, in time quadratic in the length of its two ints.
_LONGEST_FRACTION_BITS = 65_536
LONG_FRACTION = f"a Fraction of more than {_LONGEST_FRACTION_BITS:,} bits; store its numerator and denominator as ints"

# The most int comparisons that items with equal hashes may cost per set or dict: enough for 450 ints, or 60 tuples of
# three tuples.
_MOST_COMPARISONS = 100_000
# Types whose hash depends on a secret of the process, so that an attacker cannot choose items with equal hashes.
_SECRET_HASH = frozenset({str, bytes, date})
# Types that the interpreter compares in one step.
_PLAIN = frozenset({type(None), bool, float, complex, str, bytes})


def has_equal_hashes(items: Collection[Hashable]) -> bool:
    """Return whether so many of `items` have equal hashes that a set of them would take too long to make.

    A few collisions are normal in Python: -1 and -2 have the same hash, and so have tuples of them.
    """
    if _SECRET_HASH.issuperset(map(type, items)):
        return False
    hashes = list(map(hash, items))
    if len(set(hashes)) == len(hashes):
        return False
    room = _MOST_COMPARISONS
    groups: dict[int, list[Any]] = {}
    for item, number in zip(items, hashes, strict=True):
        groups.setdefault(number, []).append(item)
    for group in groups.values():
        pairs = len(group) * (len(group) - 1) // 2
        if pairs > room:
            return True
        if pairs:
            room -= pairs * max(map(_comparison, group))
    return room < 0


def _comparison(item: Any) -> int:
    """Return what comparing `item` with another of its type may cost, in int comparisons."""
    kind = type(item)
    if kind in _PLAIN:
        return 1
    if issubclass(kind, int):
        # Comparing it with a Decimal of the same hash converts it to Decimal, in time quadratic in its length.
        return 1 + int(item.bit_length() >> 13) ** 2
    if issubclass(kind, tuple):  # a registered namedtuple too
        return 1 + sum(map(_comparison, item))
    if issubclass(kind, frozenset):
        # Items whose hashes are equal too are each compared with every other.
        return (1 + sum(map(_comparison, item))) ** 2
    return 10


def is_short(numerator: int, denominator: int) -> bool:
    """Return whether making a Fraction of the two takes negligible time; see `LONG_FRACTION`."""
    return max(numerator.bit_length(), denominator.bit_length()) <= _LONGEST_FRACTION_BITS


def is_nested_too_deep(body: bytes, containers: Collection[int]) -> bool:
    """Return whether packed `body` has more than `MOST_LEVELS` levels; `containers` are the extensions that nest.

    A body that is not MessagePack has no levels.
    """
    pending: list[tuple[Any, int]] = [(slice(next(iter(containers)), body), 0)]
    while pending:
        value, depth = pending.pop()
        if depth > MOST_LEVELS:
            return True
        if type(value) is slice:
            if value.start not in containers:
                continue
            try:
                # An extension becomes slice(number, body), which runs no Python code.
                parts = [ormsgpack.unpackb(value.stop, ext_hook=slice)]
            except ValueError:
                continue
        else:
            parts = list(value.values()) if type(value) is dict else value
        pending += [(part, depth + 1) for part in parts if type(part) in (list, dict, slice)]
    return False
