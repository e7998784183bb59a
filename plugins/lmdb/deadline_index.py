"""The index of the deadlines in a namespace, beside its values in the table that layout.py describes.

The frame of a value is the truth about its deadline; the index says which keys have expired without a search. An entry
is added and removed in the transaction that writes the value. A namespace without deadlines has no entry, and no
function here is called for it except `has_deadlines`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice, takewhile
from typing import TYPE_CHECKING

from hutch.codec.frame import crc32
from hutch.deadlines import is_expired

from .layout import (
    FORMAT_KEY,
    FORMAT_WITH_DEADLINES,
    HAS_DEADLINES,
    ID_BYTES,
    INDEX,
    change_count,
    read_count,
)
from .slot import add_cursor

if TYPE_CHECKING:
    from .slot import Slot, Txn

#: How many expired keys each write removes.
PER_WRITE = 2
# Where the deadline begins in an index entry, and where the key does.
_DEADLINE_AT = len(INDEX) + ID_BYTES
KEY_AT = _DEADLINE_AT + 8
# Up to so many expired keys are remembered while a page of keys is read; if more have expired, its frames are read.
_REMEMBERED = 1024


def has_deadlines(txn: Txn, id_: bytes) -> bool:
    """Return whether the namespace has ever had a deadline. Never False again after it was True."""
    return int.from_bytes(txn.get(id_) or b"", "big") >= HAS_DEADLINES


def count_live(txn: Txn, id_: bytes, now_ms: int) -> int:
    """Return the number of keys of a namespace that have not expired."""
    count = read_count(txn, id_)
    return max(count - sum(1 for _ in _due(txn, id_, now_ms)), 0) if has_deadlines(txn, id_) else count


def live_keys(txn: Txn, id_: bytes, keys: list[bytes], now_ms: int) -> list[bytes]:
    """Return those of the raw `keys` of a namespace that have not expired."""
    expired = {id_ + entry[KEY_AT:] for entry in islice(_due(txn, id_, now_ms), _REMEMBERED)}
    if len(expired) < _REMEMBERED:
        return [key for key in keys if key not in expired]
    return [key for key in keys if not is_expired(txn.get(key) or b"", now_ms, crc32(key[ID_BYTES:]))]


def has_expired(txn: Txn, id_: bytes, now_ms: int) -> bool:
    """Return whether a key of the namespace has expired and is still stored."""
    return has_deadlines(txn, id_) and any(True for _ in _due(txn, id_, now_ms))


def entry_of(id_: bytes, key: bytes, frame: bytes) -> bytes:
    """Return the index entry of `key`, whose `frame` has a deadline."""
    return INDEX + id_ + frame[1:9] + key


def add_entries(slot: Slot, id_: bytes, frames: Iterable[tuple[bytes, bytes]]) -> None:
    """Index the deadlines of `frames`, pairs of key and frame, each of which has one."""
    count = slot[0].get(id_)
    if not count[0] >> 7:
        slot[0].put(id_, (int.from_bytes(count, "big") | HAS_DEADLINES).to_bytes(8, "big"))
        slot[0].put(FORMAT_KEY, FORMAT_WITH_DEADLINES)
    for key, frame in frames:
        slot[0].put(entry_of(id_, key, frame), b"")


def remove_entry(slot: Slot, id_: bytes, key: bytes, frame: bytes | None) -> None:
    """Remove the index entry of `key` if its stored `frame` has a deadline."""
    if frame is not None and frame[:1] == b"T":
        slot[0].delete(entry_of(id_, key, frame))


def remove_entries(slot: Slot, id_: bytes, keys: Iterable[bytes], now_ms: int) -> int:
    """Remove the index entries of `keys`, and return how many of the keys have expired."""
    expired = 0
    for key in keys:
        frame = slot[0].get(id_ + key)
        remove_entry(slot, id_, key, frame)
        expired += frame is not None and is_expired(frame, now_ms, crc32(key))
    return expired


def take_expired(slot: Slot, id_: bytes, now_ms: int, limit: int) -> int:
    """Remove at most `limit` expired keys and return how many; fewer only if no more have expired."""
    removed = 0
    while removed < limit and (entries := _first_due(slot, id_, now_ms, limit - removed)):
        for entry in entries:
            key = entry[KEY_AT:]
            frame = slot[0].get(id_ + key)
            # A frame that is damaged stays, so that reading it remains an error.
            if frame is not None and entry_of(id_, key, frame) == entry and is_expired(frame, now_ms, crc32(key)):
                removed += slot[0].delete(id_ + key)
            slot[0].delete(entry)
    change_count(slot, id_, -removed)
    return removed


def delete_range(slot: Slot, start: bytes) -> None:
    """Remove every entry of the table that begins with `start` and is longer."""
    add_cursor(slot)
    has_entry = slot[1].set_range(start + b"\0")
    while has_entry and slot[1].key().startswith(start):
        has_entry = slot[1].delete()  # moves the cursor to the next entry
    del slot[1]


def _due(txn: Txn, id_: bytes, now_ms: int) -> Iterator[bytes]:
    """Yield the entries whose deadline has come."""
    cursor = txn.cursor()
    if not cursor.set_range(INDEX + id_):
        return iter(())
    return takewhile(_after_due(id_, now_ms).__gt__, cursor.iternext(True, False))


def _first_due(slot: Slot, id_: bytes, now_ms: int, limit: int) -> list[bytes]:
    entries: list[bytes] = []
    after = _after_due(id_, now_ms)
    add_cursor(slot)
    has_entry = slot[1].set_range(INDEX + id_)
    while has_entry and len(entries) < limit and (entry := slot[1].key()) < after:
        entries.append(entry)
        has_entry = slot[1].next()
    del slot[1]
    return entries


def _after_due(id_: bytes, now_ms: int) -> bytes:
    """Return an entry after all whose deadline has come."""
    return INDEX + id_ + max(now_ms + 1, 0).to_bytes(8, "big")
