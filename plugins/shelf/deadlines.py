"""Deadlines in a shelf: a trailer behind the pickle of each value that has one, and a marker file for its namespace.

A pickle ends with its opcode STOP, and every program that unpickles ignores what follows. So Errbot reads a value with
a deadline, and a value without one has the bytes that Errbot would write::

    pickle  "hTTL"  deadline: 8 bytes, big endian  CRC-32: 4 bytes, big endian  0xD1

The deadline is in milliseconds since 1970 UTC. The checksum covers the key, the pickle and what precedes it of the
trailer. The last byte differs from STOP in every bit. So one damaged byte never makes a trailer into none.

Only a namespace with a marker file is read for deadlines, so others pay nothing.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from struct import Struct

from hutch import CorruptValueError, StoreError, deadlines
from hutch.codec.frame import MAX_DEADLINE_MS, crc32
from hutch.filesystem import flush_folder, open_or_create, validate_regular_file
from hutch.handlers import raised_by_handler

from .database import Database
from .deadline_index import DeadlineIndex
from .dialects import open_to_read
from .files import Place

_STOP = b"."
_MAGIC = b"hTTL"
_END = b"\xd1"
_CONTENT = Struct(">4sQ")
_REST = Struct(">Ic")
_CONTENT_BYTES, _REST_BYTES = _CONTENT.size, _REST.size
_TRAILER_BYTES = _CONTENT_BYTES + _REST_BYTES
# How many expired keys each write of a namespace with deadlines removes.
_PER_WRITE = 2


# --- values ---


def with_trailer(key: bytes, pickled: bytes, deadline_ms: int | None) -> bytes:
    """Return what is stored for `pickled` with a deadline; None: the pickle itself.

    Raises ValueError for a deadline before 1970 or beyond the year 9999.
    """
    if deadline_ms is None:
        return pickled
    if not 0 <= deadline_ms <= MAX_DEADLINE_MS:
        raise ValueError("a deadline lies between 1970 and the end of the year 9999")
    content = pickled + _CONTENT.pack(_MAGIC, deadline_ms)
    return content + _REST.pack(crc32(content, crc32(key)), _END)


def has_trailer(data: bytes) -> bool:
    """Return whether the stored `data` has a trailer, damaged or not."""
    last = data[-1:]
    return last != _STOP and (last == _END or data[-_TRAILER_BYTES:].startswith(_MAGIC))


def split(key: bytes, data: bytes, where: str) -> tuple[bytes, int | None]:
    """Return the pickle in the stored `data` and its deadline, None if it has none.

    Raises CorruptValueError, in which `where` says whose value it is, if the trailer is damaged or forged.
    """
    if not has_trailer(data):
        return data, None
    deadline_ms = _deadline_of(key, data)
    if deadline_ms is None:
        raise CorruptValueError(
            f"{where} is damaged: expected the deadline behind its pickle to match its checksum. Restore it from a "
            "backup, or set it again"
        )
    return data[:-_TRAILER_BYTES], deadline_ms


def is_expired(key: bytes, data: bytes | None, now_ms: int) -> bool:
    """Return whether the stored `data` is intact and its deadline has come. Damaged data never expires."""
    deadline_ms = _deadline_of(key, data)
    return deadline_ms is not None and deadline_ms <= now_ms


def _deadline_of(key: bytes, data: bytes | None) -> int | None:
    """Return the deadline of the stored `data`; None if it has none, or is damaged."""
    if data is None or not has_trailer(data) or len(data) <= _TRAILER_BYTES:
        return None
    magic, deadline_ms = _CONTENT.unpack_from(data, len(data) - _TRAILER_BYTES)
    crc, end = _REST.unpack_from(data, len(data) - _REST_BYTES)
    is_intact = (magic, end) == (_MAGIC, _END) and crc == crc32(data[:-_REST_BYTES], crc32(key))
    return deadline_ms if is_intact and deadline_ms <= MAX_DEADLINE_MS else None


# --- the marker file ---


def is_marked(marker: Path) -> bool:
    """Return whether values of the namespace may have deadlines."""
    return validate_regular_file(marker) is not None


def mark(marker: Path) -> None:
    """Create the file `marker` and flush it to the disk, before the first deadline of its namespace is written."""
    if not is_marked(marker):
        with open_or_create(marker) as file:
            os.fsync(file.fileno())
        flush_folder(marker.parent)


# --- databases ---


def read_index(database: Database) -> DeadlineIndex:
    """Return the deadlines of `database`, for which every value is read."""
    deadlines_ms = ((key, _deadline_of(key, _read(database, key))) for key in database.keys())  # noqa: SIM118
    return DeadlineIndex({key: deadline_ms for key, deadline_ms in deadlines_ms if deadline_ms is not None})


def _read(database: Database, key: bytes) -> bytes | None:
    """Return the value of `key`; None if it is missing, or unreadable, so that it does not expire."""
    try:
        return database.get(key)
    except CorruptValueError as error:
        if raised_by_handler(error):
            raise
        return None


def holds_live_data(place: Place, now_ms: int) -> bool:
    """Return whether a key at `place` has not expired, without taking a lock; True if that cannot be determined."""
    try:
        return _holds_live_data(place, now_ms)
    except StoreError as error:
        if raised_by_handler(error):
            raise
        return True


def _holds_live_data(place: Place, now_ms: int) -> bool:
    database = open_to_read(place)
    if database is None:
        return False
    with contextlib.closing(database):
        return not all(is_expired(key, _read(database, key), now_ms) for key in database.keys())  # noqa: SIM118


class LiveDatabase(Database):
    """A database without the keys that have expired, for one call, which judges by one reading of the clock."""

    def __init__(self, database: Database, index: DeadlineIndex) -> None:
        self._database, self._index = database, index
        self._now_ms = deadlines.now_ms()

    def get(self, key: bytes) -> bytes | None:
        data = self._database.get(key)
        return None if data is None or is_expired(key, data, self._now_ms) else data

    def contains(self, key: bytes) -> bool:
        return self._database.contains(key) and not (key in self._index and self._has_expired(key))

    def __len__(self) -> int:
        return len(self._database) - len(self._expired())

    def keys(self) -> list[bytes]:
        expired = self._expired()
        keys = self._database.keys()
        return [key for key in keys if key not in expired] if expired else keys

    def write(self, changes: Mapping[bytes, bytes | None]) -> None:
        self._write(changes, _PER_WRITE)

    def clear(self) -> None:
        self._database.clear()
        self._database.index = None

    def is_empty(self) -> bool:
        return self._database.is_empty()

    def compact(self) -> None:
        self._database.compact()

    def take_expired(self, limit: int) -> int:
        """Remove at most `limit` expired keys, and return how many; fewer only if no more have expired."""
        return self._write({}, limit)

    def _write(self, changes: Mapping[bytes, bytes | None], limit: int) -> int:
        expired = self._find_expired(limit)
        if changes or expired:
            self._database.write_and_expire(changes, expired)
        for key, data in {**dict.fromkeys(expired), **changes}.items():
            self._index.put(key, _deadline_of(key, data))
        return len(expired)

    def _expired(self) -> set[bytes]:
        return set(filter(self._has_expired, self._index.due(self._now_ms)))

    def _has_expired(self, key: bytes) -> bool:
        return is_expired(key, _read(self._database, key), self._now_ms)

    def _find_expired(self, limit: int) -> dict[bytes, bytes]:
        """Return at most `limit` expired keys with their values; correct the entries of others in the index."""
        expired: dict[bytes, bytes] = {}
        while len(expired) < limit and (key := self._index.due_at(len(expired), self._now_ms)) is not None:
            data = _read(self._database, key)
            if data is not None and is_expired(key, data, self._now_ms):
                expired[key] = data
            else:  # another program changed the value, or it is damaged
                self._index.put(key, _deadline_of(key, data))
        return expired


# --- operations of `SharedShelf.write` ---


def set_deadline(database: Database, key: bytes, deadline_ms: int | None, where: str) -> bool:
    """Replace the deadline of `key` alone and return whether the key exists; `where` says whose value it is."""
    data = database.get(key)
    if data is None:
        return False
    pickled, old_ms = split(key, data, where)
    if deadline_ms != old_ms:
        database.write({key: with_trailer(key, pickled, deadline_ms)})
    return True


def take_expired(database: Database, limit: int) -> int:
    """Remove at most `limit` expired keys and return how many."""
    return database.take_expired(limit) if isinstance(database, LiveDatabase) else 0
