"""Verify and repair the index of deadlines against the frames, which are the truth."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from hutch import Finding
from hutch.codec.frame import crc32
from hutch.deadlines import is_expired
from hutch.limits import legible

from .deadline_index import KEY_AT, add_entries, entry_of, has_deadlines
from .layout import FORMAT_KEY, FORMAT_WITH_DEADLINES, ID_BYTES, INDEX

if TYPE_CHECKING:
    from .slot import Slot

# A time at which every intact deadline has come.
_LATEST_MS = 1 << 64
#: Yields the keys of the table that begin with some bytes and are longer.
KeysOf = Callable[["Slot", bytes], Iterator[bytes]]


def verify_index(
    slot: Slot, owner: dict[bytes, str], ids: set[bytes], keys_of: KeysOf, repair: bool
) -> Iterator[Finding]:
    """Yield the contradictions between index and frames of the namespaces `owner`; `ids` are all ids with keys."""
    strays = [entry for entry in keys_of(slot, INDEX) if entry[len(INDEX) :][:ID_BYTES] not in ids | set(owner)]
    if strays:
        _repair(slot, strays, repair)
        yield Finding("index", f"{len(strays):,} deadlines of no namespace are in the index", repaired=repair)
    if slot[0].get(FORMAT_KEY) != FORMAT_WITH_DEADLINES:
        if not any(True for _ in keys_of(slot, INDEX)):
            return
        if repair:
            slot[0].put(FORMAT_KEY, FORMAT_WITH_DEADLINES)
        yield Finding("index", "the store has deadlines, but its format does not say so", repaired=repair)
    for id_, name in sorted(owner.items()):
        yield from _verify_namespace(slot, id_, name, keys_of, repair)


def _verify_namespace(slot: Slot, id_: bytes, name: str, keys_of: KeysOf, repair: bool) -> Iterator[Finding]:
    has_any = False
    missing: list[tuple[bytes, bytes]] = []
    for key in keys_of(slot, id_):
        frame = slot[0].get(key) or b""
        if _has_deadline(frame, key[ID_BYTES:]):
            has_any = True
            if slot[0].get(entry_of(id_, key[ID_BYTES:], frame)) is None:
                missing.append((key[ID_BYTES:], frame))
    stale = [entry for entry in keys_of(slot, INDEX + id_) if not _is_right(slot, id_, entry)]
    is_unmarked = has_any and not has_deadlines(slot[0], id_)
    if repair and (missing or is_unmarked):
        add_entries(slot, id_, [(key, frame[:9]) for key, frame in missing])
    _repair(slot, stale, repair)
    if is_unmarked:
        yield Finding("index", "its stored number of keys does not say that it has deadlines", name, repaired=repair)
    for keys, fault in (
        ([key for key, _ in missing], "deadlines are not in the index"),
        ([entry[KEY_AT:] for entry in stale], "deadlines in the index are not those of the values"),
    ):
        if keys:
            message = f"{len(keys):,} {fault}, the first of them for key {legible(keys[0])!r}"
            yield Finding("index", message, name, repaired=repair)


def _has_deadline(frame: bytes, key: bytes) -> bool:
    """Return whether `frame` is intact and has a deadline."""
    return is_expired(frame, _LATEST_MS, crc32(key))


def _is_right(slot: Slot, id_: bytes, entry: bytes) -> bool:
    key = entry[KEY_AT:]
    frame = slot[0].get(id_ + key) or b""
    return _has_deadline(frame, key) and entry_of(id_, key, frame) == entry


def _repair(slot: Slot, wrong: list[bytes], repair: bool) -> None:
    if repair:
        for entry in wrong:
            slot[0].delete(entry)
