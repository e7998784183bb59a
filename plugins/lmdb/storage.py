"""LmdbStorage: the verbs of one namespace. layout.py describes the table that they read and change."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeVar
from zlib import crc32

import lmdb

from hutch import Commit, CorruptValueError, EncodedStorage, KeyRange, ValueTypeError
from hutch.handlers import raised_by_handler
from hutch.limits import MAX_VALUE_BYTES, name_key, validate_key, validate_value_size

from .layout import ID_BYTES, NAME, ZERO, Chunk, change_count, decode_text, find_or_assign_id, read_chunks, read_count
from .read_cache import ReadCache
from .slot import add_cursor

if TYPE_CHECKING:
    from .environment import Environment
    from .page_reader import PageEnvironment
    from .plugin import LmdbPlugin
    from .slot import Slot, Txn

T = TypeVar("T")
# An id and a key of 1 to 1,024 bytes.
_SHORTEST_NAME_BYTES, _LONGEST_NAME_BYTES = ID_BYTES + 1, ID_BYTES + 1024
# The errors for a key that LMDB refuses or that is not text; TypeError also while the namespace has no id.
_READ_ERRORS = (lmdb.Error, TypeError, AttributeError, UnicodeError)


class LmdbStorage(EncodedStorage):
    """One namespace. Each verb is one transaction, batches included; iteration uses one per chunk."""

    def __init__(self, plugin: LmdbPlugin, namespace: str, environment: Environment | PageEnvironment) -> None:
        super().__init__(plugin, namespace)
        self._environment = environment
        # Whether the next key is probably new and may sort last.
        self._appends = True
        self._read_cache = ReadCache(plugin.cache_bytes)
        # Kept here for the speed of `get`. Only frames of the default codec have a body that can be cached.
        self._body = self.frame_codec.body
        self._decode_body = self.frame_codec.decode_body
        # None until the namespace exists, because opening writes nothing; then constant.
        self._name = NAME + namespace.encode()
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
        else:
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
        return super().get(key)  # not inside `except`: its error would be shown with the driver's

    def contains(self, key: str) -> bool:
        # `exists` and the key's validation by EncodedStorage, inlined.
        try:
            name = self._id + key.encode()  # type: ignore[operator]
            # A cursor does not copy the value.
            is_stored = self._environment.begin().cursor().set_key(name)
        except _READ_ERRORS as error:
            if raised_by_handler(error):
                raise
        else:
            if _SHORTEST_NAME_BYTES <= len(name) <= _LONGEST_NAME_BYTES and (is_stored or type(key) is str):
                return is_stored
        return super().contains(key)

    def exists(self, key: str) -> bool:
        return self._with_id(lambda txn, id_: txn.cursor().set_key(id_ + key.encode()), False)

    def len(self) -> int:
        try:
            return int.from_bytes(self._environment.begin().get(self._id), "big")  # type: ignore[arg-type]
        except (lmdb.Error, TypeError) as error:
            if raised_by_handler(error):
                raise
        return self._with_id(read_count, 0)

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
        try:
            data = self.encode_frame(value, crc32(name))
        except ValueTypeError as error:
            raise name_key(error, key) from error.__cause__
        if len(data) > MAX_VALUE_BYTES:
            validate_value_size(key, len(data))
        self._environment.write(self._put, name, data)

    def write(self, key: str, data: bytes) -> None:
        self._environment.write(self._put, key.encode(), data)

    def _put(self, slot: Slot, name: bytes, data: bytes) -> None:
        id_ = self._id or find_or_assign_id(slot, self._name)
        name = id_ + name
        # Only a new key changes the count. A key after all others is appended, so LMDB fills its pages; a plain put
        # would leave half of each page empty for values of 1 to 2 KB. LMDB reports at once if the key is not the last.
        # If the last write replaced a value, this one probably does too.
        if (self._appends and slot[0].put(name, data, True, False, True)) or slot[0].put(name, data, True, False):
            self._appends = True
            change_count(slot, id_, 1)
        else:
            self._appends = False
            slot[0].put(name, data)

    def write_many(self, items: Mapping[str, bytes]) -> None:
        def writing(slot: Slot) -> None:
            id_ = self._id or find_or_assign_id(slot, self._name)
            # Built first, so that no garbage collection runs inside LMDB's own code.
            pairs = list(zip(map(id_.__add__, map(str.encode, items)), items.values(), strict=True))
            before = slot[0].stat()["entries"]
            add_cursor(slot)
            slot[1].putmulti(pairs)
            del slot[1]
            after = slot[0].stat()["entries"]
            change_count(slot, id_, after - before)

        self._environment.write(writing)

    def delete(self, key: str) -> bool:
        return self.delete_many([key]) == 1

    def delete_many(self, keys: list[str]) -> int:
        def deleting(slot: Slot, id_: bytes) -> int:
            removed = 0
            for key in keys:
                removed += slot[0].delete(id_ + key.encode())
            if removed:
                change_count(slot, id_, -removed)
            return removed

        return self._change(deleting, 0)

    def clear(self) -> None:
        def clearing(slot: Slot, id_: bytes) -> None:
            add_cursor(slot)
            has_key = slot[1].set_range(id_ + b"\0") if slot[0].get(id_) else False
            while has_key and slot[1].key().startswith(id_):
                has_key = slot[1].delete()  # moves the cursor to the next key
            del slot[1]
            slot[0].put(id_, ZERO)

        self._change(clearing, None)

    def compare_and_write(self, key: str, old: bytes | None, new: bytes | None) -> bool:
        encoded = key.encode()
        # A race already lost costs no write transaction.
        if self.read(key) != old:
            return False

        def writing_if_equal(slot: Slot) -> bool:
            id_ = self._id or find_or_assign_id(slot, self._name)
            name = id_ + encoded
            if slot[0].get(name) != old:
                return False
            if new is None:
                if slot[0].delete(name):
                    change_count(slot, id_, -1)
                return True
            slot[0].put(name, new)
            if old is None:
                change_count(slot, id_, 1)
            return True

        is_written: bool = self._environment.write(writing_if_equal)
        return is_written

    def apply(
        self,
        changes: Mapping[str, bytes | None],
        expected: Mapping[str, bytes | None],
        ranges: Sequence[KeyRange] = (),
    ) -> bool:
        from .commits import apply_all

        return apply_all(self._environment, {self.namespace: Commit(changes, expected, ranges)})

    def increment(self, key: str, by: float = 1, default: float = 0, ttl_s: float | None = None) -> int | float:
        key = validate_key(key)
        encoded = key.encode()

        def incrementing(slot: Slot) -> tuple[bytes, int | float] | Exception | None:
            id_ = self._id or slot[0].get(self._name)
            data = None if id_ is None else slot[0].get(id_ + encoded)
            try:
                step = self.increment_frame(key, by, default, ttl_s, data)
            except (TypeError, OverflowError) as error:
                if raised_by_handler(error):
                    raise
                return error  # raised here, it would fail the writes of other threads in this transaction
            if step is not None:
                id_ = id_ or find_or_assign_id(slot, self._name)
                slot[0].put(id_ + encoded, step[0])
                if data is None:
                    change_count(slot, id_, 1)
            return step

        step = self._environment.write(incrementing)
        if step is None:
            return super().increment(key, by, default, ttl_s)
        if isinstance(step, Exception):
            raise step
        number: int | float = step[1]
        return number

    def close(self) -> None:
        # Every write is already committed and flushed as configured; the plugin owns the environment.
        pass

    @property
    def lock_scope(self) -> Hashable:
        return ("lmdb", str(self._environment.path), self.namespace)

    # --- inside ---

    def _with_id(self, fn: Callable[[Txn, bytes], T], missing: T) -> T:
        """Return ``fn(txn, id)`` in a read transaction, or `missing` if the namespace was never written to."""

        def reading(txn: Txn) -> tuple[bytes | None, T]:
            id_ = self._id or txn.get(self._name)
            return id_, missing if id_ is None else fn(txn, id_)

        # Assigned after the read, because a reader without a lock reads again if the pages changed.
        unwritten: tuple[bytes | None, T] = (None, missing)
        id_, result = self._environment.read(reading, unwritten)
        self._id = id_ or self._id
        return result

    def _change(self, fn: Callable[[Slot, bytes], T], missing: T) -> T:
        """Return ``fn(slot, id)`` in a write transaction, or `missing` if the namespace does not exist."""

        def changing(slot: Slot) -> T:
            id_ = self._id or slot[0].get(self._name)
            return missing if id_ is None else fn(slot, id_)

        result: T = self._environment.write(changing)
        return result

    def _key(self, key: bytes) -> str:
        return decode_text(key, 4, f"a key in namespace {self.namespace!r} of the lmdb storage")

    def _chunks(self, start: str | None, stop: str | None, reverse: bool, *, values: bool) -> Iterator[Chunk]:
        id_ = self._with_id(lambda _, id_: id_, None)
        if id_ is None:
            return iter(())
        return read_chunks(self._environment, self.namespace, id_, (start, stop, reverse), values)
