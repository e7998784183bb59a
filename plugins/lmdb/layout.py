"""The layout of the one ordered table that holds all namespaces of a store, and how to read and change it.

A namespace gets an id of four bytes at its first write; ids are never reused:

    id key            a value               (id from 1, big endian; key in UTF-8, so byte order is key order)
    id                the number of keys of `id`, 8 bytes, big endian; changed with them in one transaction.
                      Its highest bit is set once a key of `id` has had a deadline
    0000 'v'          the format, b"hutch 1", or b"hutch 2" once a key of the store has had a deadline
    0000 'i'          the last assigned id, 4 bytes
    0000 'n' name     the id of a namespace
    0000 'x' id deadline key
                      empty; one entry per value with a deadline, which deadline_index.py reads and writes

One table per namespace would cost a slot in every transaction: 189 us per read with 100,000 namespaces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, cast

from hutch import CorruptValueError
from hutch.limits import legible

if TYPE_CHECKING:
    from .environment import Environment
    from .page_reader import PageEnvironment
    from .slot import Slot, Txn

ID_BYTES = 4
FORMAT_KEY = b"\0\0\0\0v"
_FORMAT = b"hutch 1"
#: The format of a store that has had a deadline. An older hutch, which would not maintain the index, refuses it.
FORMAT_WITH_DEADLINES = b"hutch 2"
LAST_ID_KEY = b"\0\0\0\0i"
#: What the entry of a namespace's name begins with, and a key after all such entries.
NAME, AFTER_NAMES = b"\0\0\0\0n", b"\0\0\0\0o"
#: What every entry of the index of deadlines begins with.
INDEX = b"\0\0\0\0x"
ZERO = bytes(8)
#: Added to the stored number of keys of a namespace that has had a deadline.
HAS_DEADLINES = 1 << 63
# A hundred decoded values fit in the processor's cache, a thousand do not.
_FIRST_CHUNK_ITEMS, _LARGEST_CHUNK_ITEMS, _LARGEST_CHUNK_KEYS = 16, 128, 1024
_CHUNK_BYTES = 1 << 20
#: Raw keys and their values; if only keys were requested, the second list holds those that have not expired.
Chunk = tuple[list[bytes], list[bytes]]
_EMPTY: Chunk = ([], [])


def validate_format(txn: Txn) -> None:
    """Raise CorruptValueError if hutch did not write the table, or wrote it in another format."""
    stored = txn.get(FORMAT_KEY)
    if stored in (_FORMAT, FORMAT_WITH_DEADLINES):
        return
    if stored is not None:
        raise CorruptValueError(
            f"the store is in format {stored[:40]!a}; this hutch reads and writes {_FORMAT!r} and "
            f"{FORMAT_WITH_DEADLINES!r}"
        )
    if txn.stat()["entries"]:
        raise CorruptValueError("the folder holds an LMDB database that hutch did not write; choose another path")


def find_or_assign_id(slot: Slot, name: bytes) -> bytes:
    """Return the id of a namespace; assign one in this transaction if it has none. `name` includes `NAME`."""
    id_: bytes | None = slot[0].get(name)
    if id_ is None:
        if slot[0].get(FORMAT_KEY) is None:
            slot[0].put(FORMAT_KEY, _FORMAT)
        last = slot[0].get(LAST_ID_KEY)
        id_ = (int.from_bytes(last or b"\0", "big") + 1).to_bytes(ID_BYTES, "big")
        slot[0].put(LAST_ID_KEY, id_)
        slot[0].put(name, id_)
        slot[0].put(id_, ZERO)
    return id_


def read_count(txn: Txn, id_: bytes) -> int:
    """Return the number of keys of a namespace, expired ones too."""
    return int.from_bytes(txn.get(id_) or b"", "big") % HAS_DEADLINES


def change_count(slot: Slot, id_: bytes, change: int) -> bool:
    """Add `change`, if not 0, to the number of keys of a namespace, and return whether it is known to have deadlines.

    Raises CorruptValueError if the number would become negative.
    """
    if not change:
        return False
    count = int.from_bytes(slot[0].get(id_) or b"", "big")
    if count % HAS_DEADLINES + change < 0:
        raise CorruptValueError(
            "the stored number of keys of a namespace is too low; run hutch check --repair to count them"
        )
    slot[0].put(id_, (count + change).to_bytes(8, "big"))
    return count >= HAS_DEADLINES


def decode_text(key: bytes, start: int, what: str) -> str:
    """Return the text of `key` from `start`. Raises CorruptValueError, which says `what` it is, if it is not UTF-8."""
    try:
        return key[start:].decode()
    except UnicodeDecodeError as error:
        raise CorruptValueError(
            f"{what} is not UTF-8, {legible(key[start:])!r}: damaged, or written by another program. "
            "Run hutch check --repair to give it a valid one"
        ) from error


def read_chunks(
    environment: Environment | PageEnvironment,
    namespace: str,
    id_: bytes,
    bounds: tuple[str | None, str | None, bool],
    live: Callable[[Txn, list[bytes]], list[bytes]] | None,
) -> Iterator[Chunk]:
    """Yield the range `bounds` (start, stop, reverse) in chunks of bounded size.

    `live` selects the raw keys to return; None means that values are wanted instead.

    Each chunk is read in its own transaction, so that none stays open between two chunks.
    """
    start, stop, reverse = bounds
    # The bounds of all possible keys: a key has at least one byte, so `id_` alone is never a key.
    low = id_ + (start.encode() if start else b"\0")
    after = (int.from_bytes(id_, "big") + 1).to_bytes(ID_BYTES, "big") if stop is None else id_ + stop.encode()
    # Start small: a caller may need only one item (popitem).
    limit = _FIRST_CHUNK_ITEMS
    while True:
        keys, data = environment.read(lambda txn: _read_chunk(txn, low, after, reverse, live, limit), _EMPTY)  # noqa: B023 - run at once
        if not keys:
            return
        first, last = (keys[-1], keys[0]) if reverse else (keys[0], keys[-1])
        if not (low <= first <= last < after and keys == sorted(keys, reverse=reverse)):
            # Raise instead of continuing: damaged order could loop forever.
            raise CorruptValueError(
                f"the keys of namespace {namespace!r} of the lmdb storage are not in order: its file is "
                "damaged; see hutch check"
            )
        yield keys, data
        if reverse:
            after = keys[-1]
        else:
            low = keys[-1] + b"\0"
        if environment.reads_large_chunks:
            limit = min(limit * 8, _LARGEST_CHUNK_ITEMS if live is None else _LARGEST_CHUNK_KEYS)


def _read_chunk(
    txn: Txn,
    low: bytes,
    after: bytes,
    reverse: bool,
    live: Callable[[Txn, list[bytes]], list[bytes]] | None,
    limit: int,
) -> Chunk:
    """Return the first keys with ``low <= key < after`` (the last, if `reverse`), with their values or ``live(keys)``.

    Returns up to `limit` keys and about 1 MiB of values; at least one key if there is any.
    """
    cursor = txn.cursor()
    keys: list[bytes] = []
    data: list[bytes] = []
    if reverse:
        if not (cursor.prev() if cursor.set_range(after) else cursor.last()):
            return keys, data
    elif not cursor.set_range(low):
        return keys, data
    walk = cursor.iterprev if reverse else cursor.iternext
    if live is not None:
        keys = list(cast("Iterator[bytes]", islice(walk(True, False), limit)))
        while keys and not low <= keys[-1] < after:
            keys.pop()
        return keys, live(txn, keys)
    if limit > _FIRST_CHUNK_ITEMS and _has_small_values(txn):
        pairs = list(islice(walk(), limit))
        while pairs and not low <= pairs[-1][0] < after:
            pairs.pop()
        return [key for key, _ in pairs], [value for _, value in pairs]
    size = 0
    for key, value in islice(walk(), limit):
        # Ascending, one comparison is enough: the cursor began at `low`.
        if key >= after or (reverse and key < low):
            break
        keys.append(key)
        data.append(value)
        size += len(value)
        if size >= _CHUNK_BYTES:
            break
    return keys, data


def _has_small_values(txn: Txn) -> bool:
    """Return whether few values of the table are so long that LMDB keeps them outside its pages of entries."""
    table = txn.stat()
    return table["overflow_pages"] * table["psize"] < _CHUNK_BYTES
