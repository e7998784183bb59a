"""LmdbStorage: the verbs of one namespace. layout.py describes the table that they change; reads.py reads it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from hutch import Commit, KeyRange, ValueTypeError
from hutch.codec.frame import crc32
from hutch.handlers import raised_by_handler
from hutch.limits import MAX_VALUE_BYTES, name_key, validate_key, validate_value_size

from .commits import apply_all
from .deadline_index import (
    PER_WRITE,
    add_entries,
    delete_range,
    has_deadlines,
    has_expired,
    remove_entries,
    remove_entry,
    take_expired,
)
from .layout import HAS_DEADLINES, INDEX, ZERO, change_count, find_or_assign_id
from .reads import NO_TXN, LmdbReads
from .slot import add_cursor

if TYPE_CHECKING:
    from .slot import Slot

T = TypeVar("T")


class LmdbStorage(LmdbReads):
    """One namespace. Each verb is one transaction, batches included; iteration uses one per chunk."""

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
        self._plain_id = self._environment.write(self._put, name, data)
        if self._id is None:
            self._learn_id()

    def write(self, key: str, data: bytes) -> None:
        self._plain_id = self._environment.write(self._put, key.encode(), data)
        if self._id is None:
            self._learn_id()

    def _put(self, slot: Slot, key: bytes, data: bytes) -> int:
        """Write a frame without a deadline. Return the transaction's id if the namespace has none, else NO_TXN."""
        id_ = self._id or find_or_assign_id(slot, self._name)
        name = id_ + key
        # Only a new key changes the count. A key after all others is appended, so LMDB fills its pages; a plain put
        # would leave half of each page empty for values of 1 to 2 KB. LMDB reports at once if the key is not the last.
        # If the last write replaced a value, this one probably does too.
        if (self._appends and slot[0].put(name, data, True, False, True)) or slot[0].put(name, data, True, False):
            self._appends = True
            has = change_count(slot, id_, 1)
        else:
            self._appends = False
            has = self._has_deadlines(slot, id_)
            if has:
                remove_entry(slot, id_, key, slot[0].get(name))
            slot[0].put(name, data)
        if has:
            take_expired(slot, id_, self.now_ms(), PER_WRITE)
            return NO_TXN
        return slot[0].id()  # type: ignore[no-any-return]

    def write_until(self, key: str, data: bytes, deadline_ms: int) -> None:
        self.write_many_until({key: data}, {key: deadline_ms})

    def set_many(self, items: Mapping[str, Any]) -> None:
        # `set_many` of EncodedStorage and `write_many`, without a dict in between.
        _, encoded, frames = self.encode_items(dict(items))
        if encoded:
            self._write_all(encoded, frames, ())

    def write_many(self, items: Mapping[str, bytes]) -> None:
        self.write_many_until(items, {})

    def write_many_until(self, items: Mapping[str, bytes], deadlines_ms: Mapping[str, int]) -> None:
        expiring = [(key.encode(), items[key]) for key in deadlines_ms]
        self._write_all(list(map(str.encode, items)), list(items.values()), expiring)

    def _write_all(self, keys: list[bytes], frames: list[bytes], expiring: Sequence[tuple[bytes, bytes]]) -> None:
        """Write the frame of each key; `expiring` are the keys whose frames have a deadline, with these frames."""

        def writing(slot: Slot, id_: bytes, has: bool) -> bool:
            if has:
                remove_entries(slot, id_, keys, 0)
            # Built first, so that no garbage collection runs inside LMDB's own code.
            pairs = list(zip(map(id_.__add__, keys), frames, strict=True))
            before = slot[0].stat()["entries"]
            add_cursor(slot)
            slot[1].putmulti(pairs)
            del slot[1]
            after = slot[0].stat()["entries"]
            change_count(slot, id_, after - before)
            if expiring:
                self._expiring.add(id_)
                add_entries(slot, id_, expiring)
            return True

        self._change(writing, True, create=True)

    def delete(self, key: str) -> bool:
        return self.delete_many([key]) == 1

    def delete_many(self, keys: list[str]) -> int:
        def deleting(slot: Slot, id_: bytes, has: bool) -> int:
            expired = remove_entries(slot, id_, map(str.encode, keys), self.now_ms()) if has else 0
            removed = 0
            for key in keys:
                removed += slot[0].delete(id_ + key.encode())
            if removed:
                change_count(slot, id_, -removed)
            return removed - expired

        return self._change(deleting, 0)

    def clear(self) -> None:
        def clearing(slot: Slot, id_: bytes, has: bool) -> bool:
            if slot[0].get(id_):
                delete_range(slot, id_)
            if has:
                delete_range(slot, INDEX + id_)
            slot[0].put(id_, HAS_DEADLINES.to_bytes(8, "big") if has else ZERO)
            return True

        self._change(clearing, True)

    def compare_and_write(self, key: str, old: bytes | None, new: bytes | None) -> bool:
        encoded = key.encode()
        # A race already lost costs no write transaction.
        if self.read(key) != old:
            return False

        def writing_if_equal(slot: Slot, id_: bytes, _: bool) -> bool:
            name = id_ + encoded
            if slot[0].get(name) != old:
                return False
            remove_entry(slot, id_, encoded, old)
            if new is None:
                if slot[0].delete(name):
                    change_count(slot, id_, -1)
                return True
            slot[0].put(name, new)
            if old is None:
                change_count(slot, id_, 1)
            if new[:1] == b"T":
                self._expiring.add(id_)
                add_entries(slot, id_, [(encoded, new)])
            return True

        return self._change(writing_if_equal, False, create=True)

    def reclaim(self, limit: int) -> int:
        # Nothing to reclaim costs no write transaction.
        if not self._with_id(lambda txn, id_: has_expired(txn, id_, self.now_ms()), False):
            return 0
        return self._change(lambda slot, id_, _: take_expired(slot, id_, self.now_ms(), limit), 0, per_write=0)

    def apply(
        self,
        changes: Mapping[str, bytes | None],
        expected: Mapping[str, bytes | None],
        ranges: Sequence[KeyRange] = (),
    ) -> bool:
        return apply_all(self._environment, {self.namespace: Commit(changes, expected, ranges)})

    def increment(self, key: str, by: float = 1, default: float = 0, ttl_s: float | None = None) -> int | float:
        key = validate_key(key)
        encoded = key.encode()

        refused: list[Exception] = []

        def incrementing(slot: Slot, id_: bytes, _: bool) -> tuple[bytes, int | float] | None:
            refused.clear()
            data = slot[0].get(id_ + encoded)
            try:
                step = self.increment_frame(key, by, default, ttl_s, data)
            except (TypeError, OverflowError) as error:
                if raised_by_handler(error):
                    raise
                refused.append(error)  # raised here, it would fail the writes of other threads in this transaction
                return None
            if step is not None:
                # The deadline stays, and so does its index entry.
                slot[0].put(id_ + encoded, step[0])
                if data is None:
                    change_count(slot, id_, 1)
            return step

        step = self._change(incrementing, None, create=True)
        if refused:
            raise refused.pop()
        return super().increment(key, by, default, ttl_s) if step is None else step[1]

    # --- inside ---

    def _change(
        self, fn: Callable[[Slot, bytes, bool], T], missing: T, create: bool = False, per_write: int = PER_WRITE
    ) -> T:
        """Return ``fn(slot, id, has_deadlines)`` in a write transaction, or `missing` if the namespace does not exist.

        `fn` returns a true value if it changed anything: LMDB gives the id of a transaction without changes again.
        At most `per_write` expired keys are removed too.
        """

        def changing(slot: Slot) -> tuple[T, int]:
            id_ = self._id or (find_or_assign_id(slot, self._name) if create else slot[0].get(self._name))
            if id_ is None:
                return missing, NO_TXN
            has = self._has_deadlines(slot, id_)
            result = fn(slot, id_, has)
            if not has:
                return result, slot[0].id() - (not result)
            take_expired(slot, id_, self.now_ms(), per_write)
            return result, NO_TXN

        result: T
        result, self._plain_id = self._environment.write(changing)
        return result

    def _has_deadlines(self, slot: Slot, id_: bytes) -> bool:
        """Return whether the namespace has ever had a deadline; look only if others may have written since."""
        return (slot[0].id() != self._plain_id + 1 or id_ in self._expiring) and has_deadlines(slot[0], id_)
