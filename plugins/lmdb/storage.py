"""The lmdb engine: all namespaces of a store in one LMDB environment (https://www.symas.com/lmdb).

One ordered table holds everything. A namespace gets an id of four bytes at its first write; ids are never reused:

    id key            a value               (id from 1, big endian; key in UTF-8, so byte order is key order)
    id                the number of keys of `id`, 8 bytes, big endian; changed with them in one transaction
    0000 'v'          the format, b"hutch 1"
    0000 'i'          the last id given, 4 bytes
    0000 'n' name     the id of a namespace

One table per namespace would cost a slot in every transaction: 189 us per read with 100,000 namespaces.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, cast
from zlib import crc32

import lmdb

from hutch import CorruptValueError, EncodedStorage, Finding, Option, StoragePluginBase, StoreError
from hutch.handlers import raised_by_handler
from hutch.limits import MAX_VALUE_BYTES, legible, validate_key, validate_value_size

from .open_files import DURABILITY, add_cursor
from .read_cache import ReadCache
from .registry import release, shared_environment

if TYPE_CHECKING:
    from .environment import Environment
    from .open_files import Slot, Txn

T = TypeVar("T")

_FORMAT_KEY, _FORMAT = b"\0\0\0\0v", b"hutch 1"
_LAST_ID_KEY = b"\0\0\0\0i"
_NAME = b"\0\0\0\0n"
_AFTER_NAMES = b"\0\0\0\0o"
# An id and a key of 1 to 1,024 bytes.
_SHORTEST_NAME_BYTES, _LONGEST_NAME_BYTES = 4 + 1, 4 + 1024
# A hundred decoded values fit in the processor's cache, a thousand do not.
_FIRST_CHUNK_ITEMS, _LARGEST_CHUNK_ITEMS, _LARGEST_CHUNK_KEYS = 16, 128, 1024
_CHUNK_BYTES = 1 << 20
# The errors for a key that LMDB refuses or that is not text; TypeError also while the namespace has no id.
_READ_ERRORS = (lmdb.Error, TypeError, AttributeError, UnicodeError)
# On Windows the file has the size of its map from the start; elsewhere it grows with its data.
_MAP_SIZE_BYTES = 16 << 20 if sys.platform == "win32" else 1 << 30


class LmdbPlugin(StoragePluginBase):
    """The lmdb engine: `lmdb://PATH` is a folder, created if missing. Readers never wait for a writer.

    Any number of processes may use a store. A write commits before it returns. After that, by durability:

    - `strict` (2 flushes per write): nothing is lost, neither by a killed process nor by a power cut.
    - `normal` (1 flush): a killed process loses nothing; a power cut may lose the last write, never the integrity.
    - `relaxed` (no flush): a killed process loses nothing; a power cut may lose the last seconds, or the whole store
      if the file system reorders writes.
    """

    OPTIONS: ClassVar = {
        "path": Option(Path, required=True, help="the folder that holds the store"),
        "durability": Option(str, default="normal", choices=tuple(DURABILITY), help="what a power cut can cost"),
        "wait_s": Option(
            float, default=60.0, minimum=0, help="seconds that a write waits for other writers, threads and processes"
        ),
        "map_size_bytes": Option(
            int, default=_MAP_SIZE_BYTES, minimum=1 << 20, help="how much is mapped at first; it grows by itself"
        ),
        "cache_bytes": Option(
            int,
            default=8 << 20,
            minimum=0,
            help="how much one open namespace keeps in memory of what is read while nobody writes; it is never stale, "
            "whichever process writes; 0 keeps nothing",
        ),
        "verify": Option(
            bool,
            default=False,
            help="read all pages before LMDB does, and refuse a damaged file, which can crash LMDB; 0.1 s for each "
            "100,000 keys at every connect",
        ),
    }
    capabilities = frozenset({"ordered", "atomic-batch", "atomic-modify", "atomic-modify:host", "durable", "shared"})

    def __init__(self, config: object = None) -> None:
        super().__init__(config)
        options = self._storage_config
        if options["verify"]:
            _must_be_readable(options["path"])
        self.cache_bytes: int = options["cache_bytes"]
        self._environment: Environment | None = None
        try:
            self._environment = shared_environment(
                self, options["path"], options["durability"], options["map_size_bytes"], options["wait_s"]
            )
            self._environment.read(_check_format, None)
            if options["verify"]:
                _must_be_sound(self._environment)
        except BaseException:
            release(self)
            self._environment = None
            raise

    def open(self, namespace: str) -> LmdbStorage:
        return LmdbStorage(self, namespace, self._shared)

    def namespaces(self) -> list[str]:
        def listing(txn: Txn) -> list[str]:
            names = []
            cursor = txn.cursor()
            found = cursor.set_range(_NAME)
            while found and cursor.key() < _AFTER_NAMES:
                if _count(txn, cursor.value()):
                    names.append(_text(cursor.key(), len(_NAME), "the name of a namespace"))
                found = cursor.next()
            return names

        return self._shared.read(listing, [])

    def drop(self, namespace: str) -> None:
        # The name keeps its id: other handles continue to work, on an empty namespace.
        LmdbStorage(self, namespace, self._shared).clear()

    def stats(self) -> Mapping[str, object]:
        return self._shared.figures()

    @classmethod
    def verify_files(cls, options: Mapping[str, Any]) -> list[Finding]:
        from .integrity import structure, unreadable

        if found := unreadable(options["path"] / "data.mdb"):
            return [found]
        user = cls.__new__(cls)
        try:
            user._environment = shared_environment(
                user, options["path"], options["durability"], options["map_size_bytes"], options["wait_s"]
            )
            return structure(user._environment)
        finally:
            release(user)
            user._environment = None

    def verify(self, repair: bool = False) -> list[Finding]:
        from .integrity import contents

        return contents(self._shared, repair)

    def close(self) -> None:
        try:
            if self._environment is not None:
                release(self)
        except StoreError:
            self._environment = None
            raise
        # Skipped if a handler raised; then the last reference to go closes it.
        self._environment = None

    def __del__(self) -> None:
        release(self)

    @property
    def _shared(self) -> Environment:
        assert self._environment is not None, "a closed factory"
        return self._environment


class LmdbStorage(EncodedStorage):
    """One namespace. Each verb is one transaction, batches included; iteration uses one per chunk."""

    def __init__(self, plugin: LmdbPlugin, namespace: str, environment: Environment) -> None:
        super().__init__(plugin, namespace)
        self._environment = environment
        # Whether the next key is probably new and may sort last.
        self._appends = True
        self._read_cache = ReadCache(plugin.cache_bytes)
        # Kept here for the speed of `get`. Only frames of the default codec have a body that can be cached.
        self._body = self.frame_codec.body
        self._decode_body = self.frame_codec.decode_body
        # None until the namespace exists, because opening writes nothing; then constant.
        self._name = _NAME + namespace.encode()
        self._id: bytes | None = environment.read(lambda txn: txn.get(self._name), None)

    # --- reading ---

    def read(self, key: str) -> bytes | None:
        try:
            # A dropped transaction is reused by the next reader; `with` would cost as much as the read.
            return self._environment.begin().get(self._id + key.encode())  # type: ignore[operator]  # see below
        except (lmdb.Error, TypeError) as error:
            if raised_by_handler(error):
                raise
        return self._with_id(lambda txn, id_: txn.get(id_ + key.encode()), None)

    def get(self, key: str) -> Any:
        # `read` and the decoding of EncodedStorage, inlined: a call costs a tenth of a read. No variable holds the
        # transaction, because a stored traceback would keep its pages from being reused.
        read_cache = self._read_cache
        current = read_cache.current
        try:
            if current is not None:
                if self._environment.begin().id() == current.id:
                    body = current.bodies.get(key)
                    if body is not None:
                        current.hits += 1
                        return self._decode_body(body)
                else:
                    read_cache.end()
                    current = None
            name = key.encode()
            data = self._environment.begin().get(self._id + name)  # type: ignore[operator]
            if current is None:
                read_cache.reads_left -= 1
                if read_cache.reads_left <= 0:
                    read_cache.begin(self._environment.begin().id())
        except _READ_ERRORS as error:
            if raised_by_handler(error):
                raise
            return super().get(key)
        if data is None:
            validate_key(key)
            raise KeyError(key)
        try:
            value = self.decode_frame(data, crc32(name))
        except CorruptValueError as error:
            if raised_by_handler(error):
                raise
            return self.decode_value(key, data)  # its error names the key
        # This may cache a newer value that another process committed meanwhile; no later read uses it.
        if current is not None and not current.add(key, data, self._body):
            read_cache.end(too_few_hits=True)
        return value

    def contains(self, key: str) -> bool:
        # `exists` and the key's validation by EncodedStorage, inlined.
        try:
            name = self._id + key.encode()  # type: ignore[operator]
            # A cursor does not copy the value.
            found = self._environment.begin().cursor().set_key(name)
        except _READ_ERRORS as error:
            if raised_by_handler(error):
                raise
            return super().contains(key)
        if _SHORTEST_NAME_BYTES <= len(name) <= _LONGEST_NAME_BYTES and (found or type(key) is str):
            return found
        return super().contains(key)

    def exists(self, key: str) -> bool:
        return self._with_id(lambda txn, id_: txn.cursor().set_key(id_ + key.encode()), False)

    def len(self) -> int:
        try:
            return int.from_bytes(self._environment.begin().get(self._id), "big")  # type: ignore[arg-type]
        except (lmdb.Error, TypeError) as error:
            if raised_by_handler(error):
                raise
        return self._with_id(_count, 0)

    def keys(self) -> Iterator[str]:
        return self.key_range(None, None, False)

    def read_many(self, keys: list[str]) -> dict[str, bytes]:
        def reading(txn: Txn, id_: bytes) -> dict[str, bytes]:
            get = txn.get
            return {key: data for key in keys if (data := get(id_ + key.encode())) is not None}

        return self._with_id(reading, {})

    def read_range(self, start: str | None, stop: str | None, reverse: bool) -> Iterator[tuple[str, bytes]]:
        return chain.from_iterable(zip(*chunk, strict=True) for chunk in self.read_chunks(start, stop, reverse))

    def read_chunks(
        self, start: str | None, stop: str | None, reverse: bool
    ) -> Iterator[tuple[list[str], list[bytes]]]:
        for keys, values in self._chunks(start, stop, reverse, values=True):
            try:
                names = [key[4:].decode() for key in keys]
            except UnicodeDecodeError:
                # Yield the items before the damaged key.
                for key, data in zip(keys, values, strict=True):
                    yield [self._key(key)], [data]
            else:
                yield names, values

    def key_range(self, start: str | None, stop: str | None, reverse: bool) -> Iterator[str]:
        return chain.from_iterable(self._keys(keys) for keys, _ in self._chunks(start, stop, reverse, values=False))

    def _keys(self, keys: list[bytes]) -> Iterable[str]:
        try:
            return [key[4:].decode() for key in keys]
        except UnicodeDecodeError:
            return map(self._key, keys)

    # --- writing ---

    def set(self, key: str, value: Any) -> None:
        # `set` of EncodedStorage and `write`, inlined.
        name = validate_key(key).encode()
        data = self.encode_frame(value, crc32(name))
        if len(data) > MAX_VALUE_BYTES:
            validate_value_size(key, len(data))
        self._environment.write(self._put, name, data)

    def write(self, key: str, data: bytes) -> None:
        self._environment.write(self._put, key.encode(), data)

    def _put(self, slot: Slot, name: bytes, data: bytes) -> None:
        id_ = self._id or self._own_id(slot)
        name = id_ + name
        # Only a new key changes the count. A key after all others is appended, so LMDB fills its pages; a plain put
        # would leave half of each page empty for values of 1 to 2 KB. LMDB reports at once if the key is not the last.
        # If the last write replaced a value, this one probably does too.
        if (self._appends and slot[0].put(name, data, True, False, True)) or slot[0].put(name, data, True, False):
            self._appends = True
            _add(slot, id_, 1)
        else:
            self._appends = False
            slot[0].put(name, data)

    def write_many(self, items: Mapping[str, bytes]) -> None:
        def writing(slot: Slot) -> None:
            id_ = self._own_id(slot)
            # Built first, so that no garbage collection runs inside LMDB's own code.
            pairs = list(zip(map(id_.__add__, map(str.encode, items)), items.values(), strict=True))
            before = slot[0].stat()["entries"]
            add_cursor(slot)
            slot[1].putmulti(pairs)
            del slot[1]
            after = slot[0].stat()["entries"]
            _add(slot, id_, after - before)

        self._environment.write(writing)

    def delete(self, key: str) -> bool:
        return self.delete_many([key]) == 1

    def delete_many(self, keys: list[str]) -> int:
        def deleting(slot: Slot, id_: bytes) -> int:
            removed = 0
            for key in keys:
                name = id_ + key.encode()
                removed += slot[0].delete(name)
            if removed:
                _add(slot, id_, -removed)
            return removed

        return self._change(deleting, 0)

    def clear(self) -> None:
        def clearing(slot: Slot, id_: bytes) -> None:
            low = id_ + b"\0"
            add_cursor(slot)
            found = slot[1].set_range(low) if slot[0].get(id_) else False
            while found and slot[1].key().startswith(id_):
                # Deleting moves the cursor to the next key.
                found = slot[1].delete()
            del slot[1]
            slot[0].put(id_, _EIGHT_ZEROS)

        self._change(clearing, None)

    def compare_and_write(self, key: str, old: bytes | None, new: bytes | None) -> bool:
        encoded = key.encode()
        # A race already lost costs no write transaction.
        if self.read(key) != old:
            return False

        def swapping(slot: Slot) -> bool:
            id_ = self._own_id(slot)
            name = id_ + encoded
            if slot[0].get(name) != old:
                return False
            if new is None:
                if slot[0].delete(name):
                    _add(slot, id_, -1)
                return True
            slot[0].put(name, new)
            if old is None:
                _add(slot, id_, 1)
            return True

        swapped: bool = self._environment.write(swapping)
        return swapped

    def close(self) -> None:
        # Every write is already committed and flushed as configured; the plugin owns the environment.
        pass

    @property
    def lock_scope(self) -> Hashable:
        return ("lmdb", str(self._environment.path), self.namespace)

    # --- inside ---

    def _with_id(self, fn: Callable[[Txn, bytes], T], missing: T) -> T:
        """Return ``fn(txn, id)`` in a read transaction, or `missing` if the namespace was never written to."""

        def reading(txn: Txn) -> T:
            if self._id is None:
                self._id = txn.get(self._name)
            return missing if self._id is None else fn(txn, self._id)

        return self._environment.read(reading, missing)

    def _change(self, fn: Callable[[Slot, bytes], T], missing: T) -> T:
        """Return ``fn(slot, id)`` in a write transaction, or `missing` if the namespace does not exist."""

        def changing(slot: Slot) -> T:
            id_ = self._id or slot[0].get(self._name)
            return missing if id_ is None else fn(slot, id_)

        result: T = self._environment.write(changing)
        return result

    def _key(self, key: bytes) -> str:
        return _text(key, 4, f"a key in namespace {self.namespace!r} of the lmdb storage")

    def _own_id(self, slot: Slot) -> bytes:
        """Return the namespace's id; assign one in this transaction if it has none."""
        if self._id is not None:
            return self._id
        id_: bytes | None = slot[0].get(self._name)
        if id_ is None:
            if slot[0].get(_FORMAT_KEY) is None:
                slot[0].put(_FORMAT_KEY, _FORMAT)
            last = slot[0].get(_LAST_ID_KEY)
            id_ = (int.from_bytes(last or b"\0", "big") + 1).to_bytes(4, "big")
            slot[0].put(_LAST_ID_KEY, id_)
            slot[0].put(self._name, id_)
            slot[0].put(id_, _EIGHT_ZEROS)
            # Not stored in self._id, because this transaction may still be rolled back. The next read finds it.
        return id_

    def _chunks(
        self, start: str | None, stop: str | None, reverse: bool, *, values: bool
    ) -> Iterator[tuple[list[bytes], list[bytes]]]:
        """Yield the range as chunks of bounded size, each read in its own transaction, so none outlives a `next`."""
        id_ = self._with_id(lambda _, id_: id_, None)
        if id_ is None:
            return
        # The bounds of all possible keys: a key has at least one byte, so `id_` alone is never a key.
        low = id_ + (start.encode() if start else b"\0")
        after = (int.from_bytes(id_, "big") + 1).to_bytes(4, "big") if stop is None else id_ + stop.encode()
        read = self._environment.read
        # Start small: a caller may need only one item (popitem).
        limit = _FIRST_CHUNK_ITEMS
        while True:
            keys, data = read(lambda txn: _chunk(txn, low, after, reverse, values, limit), _EMPTY)  # noqa: B023 - run at once
            if not keys:
                return
            first, last = (keys[-1], keys[0]) if reverse else (keys[0], keys[-1])
            if not low <= first <= last < after:
                # Raise instead of continuing: damaged order could loop forever.
                raise CorruptValueError(
                    f"the keys of namespace {self.namespace!r} of the lmdb storage are not in order: its file is "
                    "damaged; see hutch check"
                )
            yield keys, data
            if reverse:
                after = keys[-1]
            else:
                low = keys[-1] + b"\0"
            limit = min(limit * 8, _LARGEST_CHUNK_ITEMS if values else _LARGEST_CHUNK_KEYS)


_EIGHT_ZEROS = bytes(8)


_EMPTY: tuple[list[bytes], list[bytes]] = ([], [])


def _chunk(
    txn: Txn, low: bytes, after: bytes, reverse: bool, values: bool, limit: int
) -> tuple[list[bytes], list[bytes]]:
    """Return the first keys with ``low <= key < after`` (the last, if `reverse`), and their values if `values`.

    Returns up to `limit` keys and about 1 MiB of values; at least one key if there is any.
    """
    cursor = txn.cursor()
    keys: list[bytes] = []
    found: list[bytes] = []
    if reverse:
        if not (cursor.prev() if cursor.set_range(after) else cursor.last()):
            return keys, found
    elif not cursor.set_range(low):
        return keys, found
    walk = cursor.iterprev if reverse else cursor.iternext
    if not values:
        keys = list(cast("Iterator[bytes]", islice(walk(True, False), limit)))
        while keys and not low <= keys[-1] < after:
            keys.pop()
        return keys, found
    size = 0
    for key, data in islice(walk(), limit):
        # Ascending, one comparison is enough: the cursor began at `low`.
        if key >= after or (reverse and key < low):
            break
        keys.append(key)
        found.append(data)
        size += len(data)
        if size >= _CHUNK_BYTES:
            break
    return keys, found


def _text(key: bytes, start: int, what: str) -> str:
    try:
        return key[start:].decode()
    except UnicodeDecodeError as error:
        raise CorruptValueError(
            f"{what} is not UTF-8, {legible(key[start:])!r}: damaged, or written by another program. "
            "hutch check --repair gives it one that is"
        ) from error


def _must_be_readable(path: Path) -> None:
    from .integrity import unreadable

    finding = unreadable(path / "data.mdb")
    if finding is not None:
        raise CorruptValueError(finding.message)


def _must_be_sound(environment: Environment) -> None:
    from .integrity import structure

    for finding in structure(environment):
        raise CorruptValueError(f"{environment.path}: {finding.message}; `hutch check` tells all")


def _count(txn: Txn, id_: bytes) -> int:
    return int.from_bytes(txn.get(id_) or b"", "big")


def _add(slot: Slot, id_: bytes, change: int) -> None:
    if change:
        stored = slot[0].get(id_)
        count = int.from_bytes(stored or b"", "big") + change
        if count < 0:
            raise CorruptValueError(
                "the count of a namespace's keys is lower than their number; hutch check --repair counts them anew"
            )
        data = count.to_bytes(8, "big")
        slot[0].put(id_, data)


def _check_format(txn: Txn) -> None:
    found = txn.get(_FORMAT_KEY)
    if found == _FORMAT:
        return
    if found is not None:
        raise CorruptValueError(f"the store is in format {found[:40]!a}; this hutch reads and writes {_FORMAT!r}")
    if txn.stat()["entries"]:
        raise CorruptValueError("the folder holds an LMDB database that hutch did not write; choose another path")
