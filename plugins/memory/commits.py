"""Apply the commits of transactions: check what was read and write what was changed, in one call of C."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import chain, compress, repeat
from operator import eq, gt, is_not, le

from hutch import Commit, deadlines

from .data import PER_WRITE, Data, entries_of


def apply(parts: list[tuple[Data, Commit]]) -> bool:
    """Apply each commit to its namespace if all expectations hold; return whether. The caller holds the lock."""
    # Read lazily by the one call of C in `_change`, which checks everything and then changes every dict: no other code,
    # so no reader of two namespaces and no signal handler, runs within it. It creates no object at which Python 3.11
    # might collect garbage.
    checks = chain.from_iterable([check for data, commit in parts for check in _checks(data.frames, commit)])
    changing = map(dict.update, [data.frames for data, _ in parts], [dict(commit.changes) for _, commit in parts])
    changes = chain.from_iterable(compress((changing,), map(all, (checks,))))
    for data, commit in parts:
        removed = [key for key, frame in commit.changes.items() if frame is None]
        if removed:
            data.removed[id(removed)] = removed
    changed = _change(changes, [(data, entries_of(commit.changes)) for data, commit in parts])
    for data, _ in parts:
        if data.removed:
            data.take_out_removed()
        if data.due:
            data.take_expired(deadlines.now_ms(), PER_WRITE)
    return changed


def _change(changes: Iterator[None], indexes: list[tuple[Data, list[tuple[bytes, str]]]]) -> bool:
    """Advance `changes`, index the entries of each namespace, and return whether anything was changed."""
    indexes = [(data, entries) for data, entries in indexes if entries]
    drops = [data.drops for data, _ in indexes]
    _index(indexes)
    changed: list[None] = []
    try:
        changed += changes
    finally:
        # As in MemoryStorage.write_many_until.
        if [data.drops for data, _ in indexes] != drops:
            _index(indexes)
    return bool(changed)


def _index(indexes: list[tuple[Data, list[tuple[bytes, str]]]]) -> None:
    for data, entries in indexes:
        data.index(entries)


def _checks(frames: dict[str, bytes | None], commit: Commit) -> Iterator[Iterator[bool]]:
    """Yield iterators that are all True if the expectations of `commit` hold; each is read lazily."""
    yield map(eq, map(frames.get, list(commit.expected)), list(commit.expected.values()))
    for start, stop, keys in commit.ranges:
        # All of `keys` exist, and as many keys exist in the range.
        yield map(is_not, map(frames.get, keys), repeat(None))
        existing: Iterator[str] = filter(frames.get, chain.from_iterable(map(dict.keys, (frames,))))
        if start is not None:
            existing = filter(partial(le, start), existing)
        if stop is not None:
            existing = filter(partial(gt, stop), existing)
        count = map(sum, (map(is_not, existing, repeat(None)),))
        yield map(eq, count, (len(keys),))
