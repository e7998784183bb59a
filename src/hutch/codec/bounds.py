"""Bounds on what is decoded, so that time, memory and stack depend on the length of the input alone.

Two things could take far more than their length: equal hashes, for a set compares all items that have the same one,
and nesting, for ormsgpack uses the C stack for each level. Both need many bytes to do harm, so nothing is looked at
in a body of at most `SHORT` bytes, which most are.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable
from datetime import date
from typing import Any

import ormsgpack

#: Length of a body in bytes up to which it can do no harm: 2,048 levels use 1.2 MB of the C stack.
SHORT = 2048
#: How many bodies longer than that may stand within each other before all within is looked at: each may have 1,023
#: levels of its own.
LONG_BODIES = 4
#: How many levels there may be within the last of them.
MOST_LEVELS = 2_000

#: How a message says that.
EQUAL_HASHES = "too many items of a set, or keys of a dict, have equal hashes"
# Making a Fraction takes the greatest common divisor of the two, in time of the square of their length.
_LONGEST_FRACTION_BITS = 65_536
LONG_FRACTION = f"a Fraction of more than {_LONGEST_FRACTION_BITS:,} bits; store its numerator and denominator as ints"

# As many comparisons of ints as the items of one set or dict with equal hashes may cost: 450 ints, or 60 tuples of
# three tuples.
_MOST_COMPARISONS = 100_000
# Types whose hash is made with a secret of the process, so that nobody can choose items with equal ones.
_SECRET_HASH = frozenset({str, bytes, date})
# Types that the interpreter compares at once.
_PLAIN = frozenset({type(None), bool, float, complex, str, bytes})


def has_equal_hashes(items: Collection[Hashable]) -> bool:
    """Return whether so many of `items` have equal hashes that a set of them would take too long to make.

    Python's own hashes make some: -1 and -2 have the same, and so have tuples of them.
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
    """What comparing `item` with another of its kind may cost, in comparisons of ints."""
    kind = type(item)
    if kind is int:
        # A Decimal of the same hash turns it into a Decimal, in time of the square of its length.
        return 1 + int(item.bit_length() >> 13) ** 2
    if kind in _PLAIN:
        return 1
    if kind is tuple:
        return 1 + sum(map(_comparison, item))
    if kind is frozenset:
        # Whose items, where their hashes are equal too, are each compared with each.
        return (1 + sum(map(_comparison, item))) ** 2
    return 10


def is_short(numerator: int, denominator: int) -> bool:
    """Return whether a Fraction of the two is made in no time; see `LONG_FRACTION`."""
    return max(numerator.bit_length(), denominator.bit_length()) <= _LONGEST_FRACTION_BITS


def is_nested_too_deep(body: bytes, containers: Collection[int]) -> bool:
    """Return whether packed `body` has more than `MOST_LEVELS` levels; `containers` are the extensions that have some.

    Bodies that are no MessagePack have none.
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
                # An extension becomes slice(number, body), by which no code of Python runs.
                parts = [ormsgpack.unpackb(value.stop, ext_hook=slice)]
            except ValueError:
                continue
        else:
            parts = list(value.values()) if type(value) is dict else value
        pending += [(part, depth + 1) for part in parts if type(part) in (list, dict, slice)]
    return False
