"""Apply the commits of transactions: check what was read and write what was changed, in one transaction of LMDB."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import takewhile
from typing import TYPE_CHECKING

from hutch import Commit, KeyRange, deadlines

from .deadline_index import PER_WRITE, add_entries, has_deadlines, remove_entries, take_expired
from .layout import ID_BYTES, NAME, change_count, find_or_assign_id
from .slot import add_cursor

if TYPE_CHECKING:
    from .environment import Environment
    from .page_reader import PageEnvironment
    from .slot import Slot


def apply_all(environment: Environment | PageEnvironment, commits: Mapping[str, Commit]) -> bool:
    """Apply `commits`, by namespace, if everything they expect holds; return whether it does."""
    if any(commit.changes for commit in commits.values()):
        applied: bool = environment.write(_apply, commits, environment.expiring)
        return applied
    nothing = all(_holds_nothing(commit) for commit in commits.values())
    return environment.read(
        lambda txn: all(_holds([txn], _id_of([txn], name), commit) for name, commit in commits.items()), nothing
    )


def _apply(slot: Slot, commits: Mapping[str, Commit], expiring: set[bytes]) -> bool:
    ids = {name: _id_of(slot, name) for name in commits}
    if not all(_holds(slot, ids[name], commit) for name, commit in commits.items()):
        return False
    for name, commit in commits.items():
        if commit.changes:
            _write(slot, ids[name] or find_or_assign_id(slot, NAME + name.encode()), commit.changes, expiring)
    return True


def _id_of(slot: Slot, name: str) -> bytes | None:
    id_: bytes | None = slot[0].get(NAME + name.encode())
    return id_


def _write(slot: Slot, id_: bytes, changes: Mapping[str, bytes | None], expiring: set[bytes]) -> None:
    has = has_deadlines(slot[0], id_)
    now_ms = deadlines.now_ms()
    if has:
        remove_entries(slot, id_, map(str.encode, changes), now_ms)
    # Built first, so that no garbage collection runs inside LMDB's own code.
    pairs = [(id_ + key.encode(), frame) for key, frame in changes.items() if frame is not None]
    removed = [id_ + key.encode() for key, frame in changes.items() if frame is None]
    before = slot[0].stat()["entries"]
    add_cursor(slot)
    slot[1].putmulti(pairs)
    del slot[1]
    for name in removed:
        slot[0].delete(name)
    after = slot[0].stat()["entries"]
    change_count(slot, id_, after - before)
    if expiring_frames := [(name[ID_BYTES:], frame) for name, frame in pairs if frame[:1] == b"T"]:
        expiring.add(id_)
        add_entries(slot, id_, expiring_frames)
    if has:
        take_expired(slot, id_, now_ms, PER_WRITE)


def _holds_nothing(commit: Commit) -> bool:
    return all(frame is None for frame in commit.expected.values()) and not any(keys for _, _, keys in commit.ranges)


def _holds(slot: Slot, id_: bytes | None, commit: Commit) -> bool:
    """Return whether everything that `commit` expects holds in the transaction of `slot`."""
    if id_ is None:
        return _holds_nothing(commit)
    for key, frame in commit.expected.items():
        if slot[0].get(id_ + key.encode()) != frame:
            return False
    return all(_holds_keys(slot, id_, range_) for range_ in commit.ranges)


def _holds_keys(slot: Slot, id_: bytes, range_: KeyRange) -> bool:
    start, stop, keys = range_
    low = id_ + (start.encode() if start else b"\0")
    after = (int.from_bytes(id_, "big") + 1).to_bytes(ID_BYTES, "big") if stop is None else id_ + stop.encode()
    stored: list[bytes] = []
    add_cursor(slot)
    if slot[1].set_range(low):
        stored += takewhile(after.__gt__, slot[1].iternext(True, False))
    del slot[1]
    return stored == sorted(id_ + key.encode() for key in keys)
