"""Verify integrity of an LMDB store: first the pages, without LMDB; then names, ids, counts and deadlines."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from hutch import CorruptValueError, Finding, NamespaceError, StorageUnavailableError
from hutch.filesystem import validate_regular_file
from hutch.limits import legible, validate_namespace

from .environment import Environment
from .index_integrity import verify_index
from .layout import FORMAT_KEY, HAS_DEADLINES, ID_BYTES, INDEX, LAST_ID_KEY, NAME
from .pages import Damage, DataFile, UnreadableFileError
from .slot import add_cursor

if TYPE_CHECKING:
    from .page_reader import PageEnvironment
    from .slot import Slot, Txn

_META = bytes(ID_BYTES)
_LONGEST_KEY_BYTES = 1024
_KEYS_AT_ONCE = 1024
# Every second transaction rewrites a header; one read during the write makes no sense, so try again.
_TRIES = 20


def unreadable(path: Path) -> Finding | None:
    """Return a finding if the file at `path` is unreadable and LMDB must not open it; a missing file is no finding."""
    for _ in range(_TRIES):
        try:
            status = validate_regular_file(path)
            if status is None or not status.st_size:
                return None
            with DataFile(path):
                return None
        except FileNotFoundError:
            return None
        except StorageUnavailableError as error:
            return Finding("structure", str(error))
        except UnreadableFileError as error:
            message = str(error)
    return Finding("structure", f"{path} is damaged, or is not an LMDB file: {message}. Restore it from a copy")


def structure(environment: Environment | PageEnvironment) -> list[Finding]:
    """Return findings about the pages of the file, as of one moment; other processes may write meanwhile."""
    path = environment.path / "data.mdb"

    def look(txn: Txn) -> list[Finding]:
        # The transaction keeps LMDB from reusing the pages of this state.
        with DataFile(path, txn.id()) as file:
            damage = list(file.verify())
            names = dict(_names(file)) if damage else {}
        return [_finding(path, one, names) for one in damage]

    nothing: list[Finding] = []
    for _ in range(_TRIES):
        try:
            return environment.read(look, nothing)
        except UnreadableFileError as error:
            message = str(error)
    return [Finding("structure", f"{path} is damaged: {message}. Restore it from a copy")]


def contents(environment: Environment | PageEnvironment, repair: bool) -> list[Finding]:
    """Return findings about names, ids, counts and keys, read in one transaction; `repair` repairs them in another."""
    nothing: list[Finding] = []
    findings = environment.read(lambda txn: list(_Contents([txn]).findings(False)), nothing)
    if findings and repair:
        # Verify again: other processes may have written meanwhile.
        return list(environment.write(lambda slot: list(_Contents(slot).findings(True))))
    return findings


def refuse_unreadable(folder: Path) -> None:
    """Raise CorruptValueError if data.mdb is unreadable and LMDB must not open it."""
    finding = unreadable(folder / "data.mdb")
    if finding is not None:
        raise CorruptValueError(finding.message)


def refuse_damaged(environment: Environment | PageEnvironment) -> None:
    """Raise CorruptValueError for the first damaged page."""
    for finding in structure(environment):
        raise CorruptValueError(f"{environment.path}: {finding.message}; run hutch check for all findings")


class _Contents:
    """The names, ids, counts and keys of a store, read in one pass."""

    def __init__(self, slot: Slot) -> None:
        self._slot = slot
        self._names: dict[bytes, bytes] = {}  # name -> id
        self._stored_counts: dict[bytes, bytes] = {}  # id -> stored count
        self._counts: dict[bytes, int] = {}
        self._bad_keys: list[bytes] = []
        self._foreign: list[bytes] = []
        for key in _all_keys(slot):
            self._see(key)

    def _see(self, key: bytes) -> None:
        id_ = key[:ID_BYTES]
        if id_ == _META:
            if key.startswith(NAME):
                self._names[key[len(NAME) :]] = self._slot[0].get(key) or b""
            elif key not in (FORMAT_KEY, LAST_ID_KEY) and not key.startswith(INDEX):
                self._foreign.append(key)
        elif len(key) < ID_BYTES:
            self._foreign.append(key)
        elif len(key) == ID_BYTES:
            self._stored_counts[key] = self._slot[0].get(key) or b""
        else:
            self._counts[id_] = self._counts.get(id_, 0) + 1
            if len(key) > ID_BYTES + _LONGEST_KEY_BYTES or not _is_text(key[ID_BYTES:]):
                self._bad_keys.append(key)

    def findings(self, repair: bool) -> Iterator[Finding]:
        slot = self._slot
        for key in self._foreign:
            yield Finding("key", f"an entry {key[:60]!a} that hutch did not write")
        yield from self._verify_names(repair)
        owner = {id_: name.decode() for name, id_ in self._names.items()}
        yield from self._verify_orphans(repair, owner)
        last = max([0, *(_number(id_) for id_ in {*owner, *self._counts, *self._stored_counts})])
        if _number(slot[0].get(LAST_ID_KEY) or b"") < last:
            if repair:
                slot[0].put(LAST_ID_KEY, last.to_bytes(ID_BYTES, "big"))
            yield Finding("count", "the last assigned id is lower than one in use", repaired=repair)
        for id_, name in sorted(owner.items()):
            stored, count = self._stored_counts.get(id_), self._counts.get(id_, 0)
            if stored not in (count.to_bytes(8, "big"), (HAS_DEADLINES + count).to_bytes(8, "big")):
                if repair:
                    mark = HAS_DEADLINES if stored is not None and len(stored) == 8 and stored[0] >> 7 else 0
                    slot[0].put(id_, (mark + count).to_bytes(8, "big"))
                shown = "is missing" if stored is None else f"is {_number(stored) % HAS_DEADLINES:,}"
                message = f"its stored number of keys {shown}, but it has {count:,}"
                yield Finding("count", message, name, repaired=repair)
        for key in self._bad_keys:
            yield self._bad_key(key, owner.get(key[:ID_BYTES]), repair)
        yield from verify_index(slot, owner, set(self._counts), _keys_of, repair)

    def _verify_names(self, repair: bool) -> Iterator[Finding]:
        """Yield invalid names, and ids that are invalid or shared by two names. Their keys become orphans."""
        seen: dict[bytes, bytes] = {}
        for name, id_ in sorted(self._names.items()):
            shown = name.decode(errors="backslashreplace")
            if not _is_name(name):
                message, repairable = f"{name!a} is not a valid namespace name", True
            elif len(id_) != ID_BYTES or id_ == _META:
                message, repairable = "it has no valid id, so its keys are unreachable by its name", True
            elif id_ in seen:
                message, repairable = f"it has the same id as {seen[id_].decode()!r}: both hold the same keys", False
            else:
                seen[id_] = name
                continue
            if repair and repairable:
                self._slot[0].delete(NAME + name)
            yield Finding("orphan", message, shown, repaired=repair and repairable)
            del self._names[name]

    def _verify_orphans(self, repair: bool, owner: dict[bytes, str]) -> Iterator[Finding]:
        number = 0
        taken = set(owner.values())
        for id_ in sorted({*self._counts, *self._stored_counts} - set(owner)):
            count = self._counts.get(id_, 0)
            if not count:
                if repair:
                    self._slot[0].delete(id_)
                yield Finding("count", f"a count for id {_number(id_)}, which no namespace has", repaired=repair)
                self._stored_counts.pop(id_)
                continue
            number += 1
            while f"recovered-{number}" in taken:
                number += 1
            name = f"recovered-{number}"
            message = f"{count:,} keys under id {_number(id_)}, which no namespace has"
            if not repair:
                yield Finding("orphan", message)
                continue
            self._slot[0].put(NAME + name.encode(), id_)
            owner[id_] = name
            yield Finding("orphan", f"{message}: they are in {name!r} now", name, repaired=True)

    def _bad_key(self, key: bytes, name: str | None, repair: bool) -> Finding:
        shown = legible(key[ID_BYTES:])
        message = "a key that is not UTF-8, or too long: damaged, or written by another program"
        if not repair:
            return Finding("key", message, name, shown)
        # The original key is unknown. Nothing is lost: the value moves to a key that spells the damaged one in hex.
        new = key[:ID_BYTES] + b"recovered-" + key[ID_BYTES:].hex().encode()[: _LONGEST_KEY_BYTES - 20]
        value = self._slot[0].get(key)
        if value is None or not self._slot[0].put(new, value, True, False):
            return Finding("key", message, name, shown)
        self._slot[0].delete(key)
        return Finding("key", f"{message}; it is {new[ID_BYTES:].decode()!r} now", name, shown, True)


def _all_keys(slot: Slot) -> Iterator[bytes]:
    """Yield every key. No cursor outlives a step, because a signal handler may end the transaction."""
    low = b"\0"
    while keys := _some_keys(slot, low):
        yield from keys
        low = keys[-1] + b"\0"


def _keys_of(slot: Slot, start: bytes) -> Iterator[bytes]:
    """Yield every key that begins with `start` and is longer, as `_all_keys` does."""
    low = start + b"\0"
    while keys := [key for key in _some_keys(slot, low) if key.startswith(start)]:
        yield from keys
        low = keys[-1] + b"\0"


def _some_keys(slot: Slot, low: bytes) -> list[bytes]:
    add_cursor(slot)
    try:
        return _next_keys(slot, low)
    finally:
        slot[1:] = []


def _next_keys(slot: Slot, low: bytes) -> list[bytes]:
    has_entry = slot[1].set_range(low)
    keys: list[bytes] = []
    while has_entry and len(keys) < _KEYS_AT_ONCE:
        keys.append(slot[1].key())
        has_entry = slot[1].next()
    return keys


def _names(file: DataFile) -> Iterator[tuple[bytes, str]]:
    """Yield the id and name of each namespace whose entry is readable."""
    for key, value in file.items():
        if key > NAME and not key.startswith(NAME):
            return
        if key.startswith(NAME):
            yield file.value(value), key[len(NAME) :].decode(errors="backslashreplace")


def _finding(path: Path, damage: Damage, names: dict[bytes, str]) -> Finding:
    first, after = damage.first, damage.after
    if first is None and after is None:
        return Finding("structure", f"{path}: {damage.text}. Restore it from a copy")

    def shown(bound: bytes | None) -> str:
        if bound is None:
            return "the end"
        where = names.get(bound[:ID_BYTES], f"id {_number(bound[:ID_BYTES])}")
        return f"{bound[ID_BYTES:].decode(errors='backslashreplace')!r} of {where!r}"

    message = f"{path}: {damage.text}. Lost with it: keys from {shown(first or b'')} to before {shown(after)}"
    namespace = names.get(first[:ID_BYTES]) if first else None
    key = first[ID_BYTES:].decode(errors="backslashreplace") if first and namespace else None
    return Finding("structure", f"{message}. Restore it from a copy", namespace, key)


def _is_text(key: bytes) -> bool:
    with suppress(UnicodeDecodeError):
        return bool(key.decode())
    return False


def _is_name(name: bytes) -> bool:
    with suppress(UnicodeDecodeError, NamespaceError):
        return bool(validate_namespace(name.decode()))
    return False


def _number(data: bytes) -> int:
    return int.from_bytes(data, "big")
