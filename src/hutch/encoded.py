"""EncodedStorage: a StorageBase for engines that hold bytes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any
from zlib import crc32

from .codec.frame import UnknownHeaderError
from .codec.select import frame_codec_of
from .contract import MISSING, StorageBase, StoragePluginBase
from .errors import CorruptValueError, ValueTypeError
from .handlers import raised_by_handler, suppress_own
from .keylocks import run_compare_and_write
from .limits import MAX_VALUE_BYTES, explain_failure, name_key, validate_key, validate_keys, validate_value_size

_LAST_CODE_POINT = 0x10FFFF
_SURROGATES = range(0xD800, 0xE000)
# `items` reads about this much before it yields the first item.
_FIRST_ITEMS, _FIRST_BYTES = 1024, 1 << 18


class EncodedStorage(StorageBase):
    """A storage that encodes values for an engine of bytes: `read`, `write`, `delete`, `len`, `keys` and `close`.

    Keys and values are validated here before an engine sees them. Only `read` may receive a key outside the
    limits; it returns None or raises any error. The optional byte verbs (`exists` to `compare_and_write`) have
    defaults built on the six. An engine raises the errors of `hutch.errors`, with its driver's error as the cause.
    """

    validates_keys = True
    #: Whether a value's checksum covers its key too, so that a value stored under a wrong key is an error. Set it to
    #: False for an engine whose bytes cannot be damaged.
    checksum_covers_key = True

    def __init__(self, plugin: StoragePluginBase, namespace: str) -> None:
        self.namespace = namespace
        self.capabilities = plugin.capabilities
        self._plugin = plugin
        self.wait_s = plugin._storage_config.get("wait_s", self.wait_s)
        #: Encodes values to frames and decodes them. The methods for one value are kept beside it: one attribute less
        #: to look up is a measurable part of a read.
        self.frame_codec = frame_codec_of(plugin.codec_for(namespace))
        self.encode_frame: Callable[[object, int], bytes] = self.frame_codec.encode
        self.decode_frame: Callable[[bytes, int], Any] = self.frame_codec.decode

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.namespace!r} of {self._plugin!r}>"

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
        """Return whether `key` exists."""
        return self.read(key) is not None

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
            found = self.exists(key)
        except Exception as error:
            explain_failure(key, error)
            raise
        if not found or not key:
            validate_key(key)
        return found

    def get_many(self, keys: Iterable[str]) -> dict[str, Any]:
        found = self.read_many(validate_keys(dict.fromkeys(keys)))
        return dict(self.decode_items(found, found.values()))

    def set_many(self, items: Mapping[str, Any]) -> None:
        items = dict(items)
        # Encode everything before the first write, so that one bad item refuses the whole batch.
        names = validate_keys(items)
        crcs = self.key_crcs_of(names)
        try:
            frames: list[bytes] = self.frame_codec.encode_many(list(items.values()), crcs)
        except ValueTypeError as error:
            raise self._refused_of(dict(zip(names, items.values(), strict=True)), error) from error.__cause__
        if not frames:
            return
        if max(map(len, frames)) > MAX_VALUE_BYTES:
            for name, data in zip(names, frames, strict=True):
                validate_value_size(name, len(data))
        self.write_many(dict(zip(names, frames, strict=True)))

    def remove_many(self, keys: Iterable[str]) -> int:
        checked = validate_keys(dict.fromkeys(keys))
        return self.delete_many(checked) if checked else 0

    def _refused_of(self, items: Mapping[str, object], error: ValueTypeError) -> ValueTypeError:
        """Return the error for the first of `items` that the codec refuses; `error` is what the batch raised."""
        if raised_by_handler(error):
            return error
        for key, value in items.items():
            try:
                self.encode_frame(value, 0)
            except ValueTypeError as refused:
                return name_key(refused, key)
        return error

    def items(self) -> Iterator[tuple[str, Any]]:
        return chain.from_iterable(self.decode_items(keys, frames) for keys, frames in self._bounded_chunks())

    def _bounded_chunks(self) -> Iterator[tuple[Sequence[str], Sequence[bytes]]]:
        """Yield the chunks of all items, such that a loop over them that adds keys ends.

        The first items are read before the first one is yielded; of so many a loop meets none that it adds. More items
        are read as a scan does, without a list of the keys, until there were more than at the start: then some were
        added, and only keys that exist by then follow.
        """
        chunks = self.read_chunks(None, None, False)
        first: list[tuple[Sequence[str], Sequence[bytes]]] = []
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
        chunk = (), ()  # a chunk may be large
        at_start = 0
        if count >= _FIRST_ITEMS or size >= _FIRST_BYTES:
            with suppress_own(CorruptValueError):  # a damaged count
                at_start = self.len()
        first.reverse()
        while first:
            yield first.pop()
        present: set[str] | None = None
        for keys, frames in chunks:
            if present is not None and not present.issuperset(keys):
                pairs = [(key, data) for key, data in zip(keys, frames, strict=True) if key in present]
                yield [key for key, _ in pairs], [data for _, data in pairs]
                continue
            yield keys, frames
            count += len(keys)
            if present is None and count > at_start:
                present = set()
                with suppress_own(CorruptValueError):  # raised by `chunks`, after the items before the damaged key
                    present.update(self.keys())

    def scan(
        self, prefix: str = "", start: str | None = None, stop: str | None = None, reverse: bool = False
    ) -> Iterator[tuple[str, Any]]:
        chunks = self.read_chunks(*_bounds(prefix, start, stop), reverse)
        return chain.from_iterable(self.decode_items(keys, frames) for keys, frames in chunks)

    def scan_keys(
        self, prefix: str = "", start: str | None = None, stop: str | None = None, reverse: bool = False
    ) -> Iterator[str]:
        return self.key_range(*_bounds(prefix, start, stop), reverse)

    def get_for_update(self, key: str) -> tuple[Any, object]:
        data = self.read(validate_key(key))
        return (MISSING, None) if data is None else (self.decode_value(key, data), data)

    def compare_and_swap(self, key: str, token: object, value: Any) -> bool:
        assert token is None or isinstance(token, bytes), "a token of get_for_update"
        key, data = validate_key(key), None
        if value is not MISSING:
            try:
                data = self.encode_frame(value, self.key_crc_of(key))
            except ValueTypeError as error:
                raise name_key(error, key) from error.__cause__
            validate_value_size(key, len(data))
        return self.compare_and_write(key, token, data)

    @property
    def lock_scope(self) -> Hashable:
        return (id(self._plugin), self.namespace)

    def key_crc_of(self, key: str) -> int:
        """Return the CRC-32 of `key`, with which the checksum of its frame starts; 0 without `checksum_covers_key`."""
        return crc32(key.encode()) if self.checksum_covers_key else 0

    def key_crcs_of(self, keys: Iterable[str]) -> list[int]:
        """Return the CRC-32 of every key, computed in one pass; zeros without `checksum_covers_key`."""
        return list(map(crc32, map(str.encode, keys))) if self.checksum_covers_key else [0 for _ in keys]

    def decode_items(self, keys: Collection[str], frames: Iterable[bytes]) -> Iterator[tuple[str, Any]]:
        """Return the decoded items; iteration raises an error that names the first unreadable key."""
        frames = list(frames)
        try:
            return zip(keys, self.frame_codec.decode_many(frames, self.key_crcs_of(keys)), strict=True)
        except CorruptValueError:
            return ((key, self.decode_value(key, data)) for key, data in zip(keys, frames, strict=True))

    def decode_value(self, key: str, data: bytes) -> Any:
        try:
            return self.decode_frame(data, self.key_crc_of(key))
        except CorruptValueError as error:
            validate_key(key)
            raise CorruptValueError(
                f"the value of key {key!r} in namespace {self.namespace!r} of the {self._plugin.name} storage: "
                f"{self._explanation(error)}"
            ) from error.__cause__

    def _explanation(self, error: CorruptValueError) -> CorruptValueError:
        if isinstance(error, UnknownHeaderError):
            name = self._plugin.codec_of_header(error.header)
            if name is not None:
                return self.frame_codec.written_with(name)
        return error


def _bounds(prefix: str, start: str | None, stop: str | None) -> tuple[str | None, str | None]:
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
