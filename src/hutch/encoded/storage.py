"""EncodedStorage: a StorageBase for engines that hold bytes."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, compress
from typing import Any

from .. import deadlines
from ..codec.frame import DEADLINE, is_expired, set_deadline
from ..contract import MISSING, StorageBase
from ..errors import CorruptValueError, ValueTypeError
from ..handlers import suppress_own
from ..keylocks import run_compare_and_write
from ..limits import MAX_VALUE_BYTES, explain_failure, name_key, validate_key, validate_keys, validate_value_size
from .values import FrameValues

_LAST_CODE_POINT = 0x10FFFF
_SURROGATES = range(0xD800, 0xE000)
# `items` reads about this much before it yields the first item.
_FIRST_ITEMS, _FIRST_BYTES = 1024, 1 << 18
# `expire` reclaims so many keys per step.
_EXPIRED_AT_ONCE = 1000


class EncodedStorage(FrameValues):
    """A storage that encodes values for an engine of bytes: `read`, `write`, `delete`, `len`, `keys` and `close`.

    Keys and values are validated here before an engine sees them. Only `read` may receive a key outside the
    limits; it returns None or raises any error. The optional byte verbs (`exists` to `reclaim`) have
    defaults built on the six. An engine raises the errors of `hutch.errors`, with its driver's error as the cause.
    """

    # --- byte verbs: the engine's part ---

    @abstractmethod
    def read(self, key: str) -> bytes | None:
        """Return the bytes of `key`, or None if it is missing."""

    @abstractmethod
    def write(self, key: str, data: bytes) -> None:
        """Replace the bytes of `key` atomically."""

    @abstractmethod
    def delete(self, key: str) -> bool:
        """Remove `key` and return whether it existed."""

    def exists(self, key: str) -> bool:
        """Return whether `key` exists and has not expired."""
        data = self.read(key)
        return data is not None and not (data[:1] == b"T" and is_expired(data, self.now_ms(), self.key_crc_of(key)))

    def read_many(self, keys: list[str]) -> dict[str, bytes]:
        """Return the bytes of the `keys` that exist, in the order given; from one snapshot if the engine has them."""
        return {key: data for key in keys if (data := self.read(key)) is not None}

    def write_many(self, items: Mapping[str, bytes]) -> None:
        """Write every item: all or none if the engine declares `atomic-batch`."""
        for key, data in items.items():
            self.write(key, data)

    def delete_many(self, keys: list[str]) -> int:
        """Remove `keys`, which are distinct, and return how many existed."""
        return sum(self.delete(key) for key in keys)

    def read_range(self, start: str | None, stop: str | None, reverse: bool) -> Iterator[tuple[str, bytes]]:
        """Yield items with ``start <= key < stop`` in key order; a bound of None is open."""
        for key in self.key_range(start, stop, reverse):
            data = self.read(key)
            if data is not None:
                yield key, data

    def read_chunks(
        self, start: str | None, stop: str | None, reverse: bool
    ) -> Iterator[tuple[Sequence[str], Sequence[bytes]]]:
        """Yield the items of `read_range` in chunks (keys, bytes), each of the size that the engine reads at once."""
        for key, data in self.read_range(start, stop, reverse):
            yield (key,), (data,)

    def read_crc_chunks(
        self, start: str | None, stop: str | None, reverse: bool
    ) -> Iterator[tuple[Sequence[str], Sequence[bytes], Sequence[int]]]:
        """Yield the chunks of `read_chunks` with the CRC-32 of each key, as `key_crcs_of` returns them.

        An engine that reads keys as bytes overrides it, so that they are not encoded again.
        """
        for keys, frames in self.read_chunks(start, stop, reverse):
            yield keys, frames, self.key_crcs_of(keys)

    def key_range(self, start: str | None, stop: str | None, reverse: bool) -> Iterator[str]:
        """Return the keys that `read_range` would yield."""
        return StorageBase.scan_keys(self, "", start, stop, reverse)

    def compare_and_write(self, key: str, old: bytes | None, new: bytes | None) -> bool:
        """Replace the bytes of `key` by `new` if they equal `old` (None: missing), and return whether they did.

        This default is atomic only among threads of this process. An engine that declares `atomic-modify` for
        the host or a cluster overrides it.
        """
        return run_compare_and_write(self.lock_scope, key, self._compare_and_write, key, old, new)

    def _compare_and_write(self, key: str, old: bytes | None, new: bytes | None) -> bool:
        if self.read(key) != old:
            return False
        if new is not None:
            self.write(key, new)
        elif old is not None:
            self.delete(key)
        return True

    # --- byte verbs of an engine that declares `ttl`; docs/howto/plugin.md says what such an engine keeps to ---

    def write_until(self, key: str, data: bytes, deadline_ms: int) -> None:
        """Replace the bytes of `key` by the frame `data`, which holds `deadline_ms`, and index the deadline."""
        self.write(key, data)

    def write_many_until(self, items: Mapping[str, bytes], deadlines_ms: Mapping[str, int]) -> None:
        """Write every item as `write_many` does; the frames of the keys in `deadlines_ms` hold those deadlines."""
        self.write_many(items)

    def deadline(self, key: str) -> int | None:
        """Return the deadline of `key`, expired or not; None if it has none. Raises KeyError if `key` is missing."""
        data = self.read(key)
        if data is None:
            raise KeyError(key)
        return self._verify_deadline(key, data) if data[:1] == b"T" else None

    def set_deadline(self, key: str, deadline_ms: int | None) -> bool:
        """Replace the deadline of `key` alone (None: it never expires) and return whether the key exists."""
        key_crc = self.key_crc_of(key)
        while (data := self.read(key)) is not None:
            if self.decode_live(key, data) is MISSING:
                break
            if self.compare_and_write(key, data, set_deadline(data, deadline_ms, key_crc)):
                return True
        return False

    def reclaim(self, limit: int) -> int:
        """Remove at most `limit` expired keys in one step, and return how many; fewer only if no more have expired.

        An engine that overrides this method keeps an index of deadlines. Without one, hutch reads all frames instead.
        """
        raise NotImplementedError

    # --- StorageBase, built on the byte verbs ---

    def set(self, key: str, value: Any) -> None:
        key = validate_key(key)
        try:
            data = self.encode_frame(value, self.key_crc_of(key))
        except ValueTypeError as error:
            raise name_key(error, key) from error.__cause__
        if len(data) > MAX_VALUE_BYTES:
            validate_value_size(key, len(data))
        self.write(key, data)

    def get(self, key: str) -> Any:
        try:
            data = self.read(key)
        except Exception as error:
            explain_failure(key, error)
            raise
        if data is None:
            # A key outside the limits never exists, so a read validates its key only after a miss.
            validate_key(key)
            raise KeyError(key)
        return self.decode_value(key, data)

    def remove(self, key: str) -> None:
        if not self.delete(validate_key(key)):
            raise KeyError(key)

    def contains(self, key: str) -> bool:
        try:
            exists = self.exists(key)
        except Exception as error:
            explain_failure(key, error)
            raise
        if not exists or not key:
            validate_key(key)
        return exists

    def get_many(self, keys: Iterable[str]) -> dict[str, Any]:
        frames = self.read_many(validate_keys(dict.fromkeys(keys)))
        return dict(self.decode_items(frames, frames.values()))

    def set_many(self, items: Mapping[str, Any]) -> None:
        if frames := self._frames_of(dict(items), None):
            self.write_many(frames)

    def remove_many(self, keys: Iterable[str]) -> int:
        checked = validate_keys(dict.fromkeys(keys))
        return self.delete_many(checked) if checked else 0

    def items(self) -> Iterator[tuple[str, Any]]:
        return chain.from_iterable(self._decode_chunk(*chunk) for chunk in self._bounded_chunks())

    def _bounded_chunks(self) -> Iterator[tuple[Sequence[str], Sequence[bytes], Sequence[int]]]:
        """Yield the chunks of all items, such that a loop over them that adds keys ends.

        The first items are read before the first one is yielded; of so many a loop meets none that it adds. More items
        are read as a scan does, without a list of the keys, until there were more than at the start: then some were
        added, and only keys that exist by then follow.
        """
        chunks = self.read_crc_chunks(None, None, False)
        first: list[tuple[Sequence[str], Sequence[bytes], Sequence[int]]] = []
        count = size = 0
        try:
            for chunk in chunks:
                first.append(chunk)
                count += len(chunk[0])
                size += sum(map(len, chunk[1]))
                if count >= _FIRST_ITEMS or size >= _FIRST_BYTES:
                    break
            else:
                chunks = iter(())
        except CorruptValueError:
            yield from first  # the items before a damaged key
            raise
        chunk = (), (), ()  # a chunk may be large
        at_start = 0
        if count >= _FIRST_ITEMS or size >= _FIRST_BYTES:
            with suppress_own(CorruptValueError):  # a damaged count
                at_start = self.len()
        first.reverse()
        while first:
            yield first.pop()
        present: set[str] | None = None
        for keys, frames, crcs in chunks:
            if present is not None and not present.issuperset(keys):
                known = [key in present for key in keys]
                yield list(compress(keys, known)), list(compress(frames, known)), list(compress(crcs, known))
                continue
            yield keys, frames, crcs
            count += len(keys)
            if present is None and count > at_start:
                present = set()
                with suppress_own(CorruptValueError):  # raised by `chunks`, after the items before the damaged key
                    present.update(self.keys())

    def scan(
        self, prefix: str = "", start: str | None = None, stop: str | None = None, reverse: bool = False
    ) -> Iterator[tuple[str, Any]]:
        chunks = self.read_crc_chunks(*key_bounds(prefix, start, stop), reverse)
        return chain.from_iterable(self._decode_chunk(*chunk) for chunk in chunks)

    def scan_keys(
        self, prefix: str = "", start: str | None = None, stop: str | None = None, reverse: bool = False
    ) -> Iterator[str]:
        return self.key_range(*key_bounds(prefix, start, stop), reverse)

    def get_for_update(self, key: str) -> tuple[Any, object]:
        data = self.read(validate_key(key))
        if data is None:
            return MISSING, None
        if not data or data[0] != DEADLINE:
            return self.decode_value(key, data), data
        value = self.decode_live(key, data)
        return value, _Expired(data) if value is MISSING else data

    def compare_and_swap(self, key: str, token: object, value: Any, ttl_s: float | None = None) -> bool:
        if ttl_s is not None or not (token is None or (type(token) is bytes and token[0] != DEADLINE)):
            return self._swap_deadline(key, token, value, ttl_s)
        key, data = validate_key(key), None
        if value is not MISSING:
            try:
                data = self.encode_frame(value, self.key_crc_of(key))
            except ValueTypeError as error:
                raise name_key(error, key) from error.__cause__
            validate_value_size(key, len(data))
        return self.compare_and_write(key, token, data)

    def _swap_deadline(self, key: str, token: Any, value: Any, ttl_s: float | None) -> bool:
        """Do what `compare_and_swap` does, where the old value has a deadline or the new one may get one."""
        key, deadline_ms = validate_key(key), None
        if type(token) is _Expired:
            token = token.frame
        elif token is not None and token[:1] == b"T":
            deadline_ms = self._verify_deadline(key, token)
            if deadline_ms <= self.now_ms():
                return False
        assert token is None or isinstance(token, bytes), "a token of get_for_update"
        if ttl_s is not None:
            deadline_ms = self.deadline_after(ttl_s)
        data = None if value is MISSING else self.encode_value(key, value, deadline_ms)
        return self.compare_and_write(key, token, data)

    # --- time to live ---

    def set_with_ttl(self, key: str, value: Any, ttl_s: float) -> None:
        deadline_ms = self.deadline_after(ttl_s)
        if deadline_ms is None:
            self.set(key, value)
            return
        key = validate_key(key)
        self.write_until(key, self.encode_value(key, value, deadline_ms), deadline_ms)

    def set_many_with_ttl(self, items: Mapping[str, Any], ttl_s: float) -> None:
        deadline_ms = self.deadline_after(ttl_s)
        if deadline_ms is None:
            self.set_many(items)
        elif frames := self._frames_of(dict(items), deadline_ms):
            self.write_many_until(frames, dict.fromkeys(frames, deadline_ms))

    def set_many_until(self, items: Mapping[str, Any], deadlines_ms: Mapping[str, int]) -> None:
        if deadlines_ms and "ttl" not in self.capabilities:
            raise deadlines.no_ttl(f"the {self._plugin.name}")
        frames = self._frames_of(dict(items), None)
        for key, deadline_ms in deadlines_ms.items():
            frames[key] = set_deadline(frames[key], deadline_ms, self.key_crc_of(key))
            validate_value_size(key, len(frames[key]))
        if deadlines_ms:
            self.write_many_until(frames, deadlines_ms)
        elif frames:
            self.write_many(frames)

    def ttl_s(self, key: str) -> float | None:
        if "ttl" not in self.capabilities:
            raise deadlines.no_ttl(f"the {self._plugin.name}")
        deadline_ms = self.deadline(validate_key(key))
        return None if deadline_ms is None else deadlines.seconds_left(key, deadline_ms, self.now_ms())

    def touch(self, key: str, ttl_s: float) -> bool:
        key = validate_key(key)
        if "ttl" not in self.capabilities:
            raise deadlines.no_ttl(f"the {self._plugin.name}")
        return self.set_deadline(key, self.deadline_after(ttl_s))

    def expire(self, limit: int | None = None) -> int:
        if "ttl" not in self.capabilities:
            raise deadlines.no_ttl(f"the {self._plugin.name}")
        expired = 0
        while (step := _EXPIRED_AT_ONCE if limit is None else min(limit - expired, _EXPIRED_AT_ONCE)) > 0:
            reclaimed = self.reclaim(step)
            expired += reclaimed
            if reclaimed < step:
                break
        return expired

    def deadline_after(self, ttl_s: float) -> int | None:
        """Return the deadline `ttl_s` seconds from now, None for `math.inf`."""
        if deadlines.validate_ttl(ttl_s) == math.inf:
            return None
        if "ttl" not in self.capabilities:
            raise deadlines.no_ttl(f"the {self._plugin.name}")
        return deadlines.deadline_after(ttl_s, self.now_ms())

    @property
    def lock_scope(self) -> Hashable:
        return (id(self._plugin), self.namespace)


class _Expired:
    """The token of a key that has expired, but whose frame is still stored."""

    __slots__ = ("frame",)

    def __init__(self, frame: bytes) -> None:
        self.frame = frame


def key_bounds(prefix: str, start: str | None, stop: str | None) -> tuple[str | None, str | None]:
    """Return the one range (low, high) that `prefix`, `start` and `stop` describe together."""
    if not prefix:
        return start, stop
    after = _after_prefix(prefix)
    low = prefix if start is None else max(prefix, start)
    high = after if stop is None else stop if after is None else min(after, stop)
    return low, high


def _after_prefix(prefix: str) -> str | None:
    """Return the smallest text greater than every text that starts with `prefix`, or None if no text is."""
    for end in range(len(prefix), 0, -1):
        following = ord(prefix[end - 1]) + 1
        if following in _SURROGATES:
            following = _SURROGATES.stop
        if following <= _LAST_CODE_POINT:
            return prefix[: end - 1] + chr(following)
    return None
