"""FrameValues: the half of EncodedStorage that turns values into frames, and frames into values."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import repeat
from typing import Any

from .. import deadlines
from ..codec.frame import DEADLINE, UnknownHeaderError, crc32, deadline_of, set_deadline, verify_deadline
from ..codec.select import frame_codec_of
from ..contract import MISSING, StorageBase, StoragePluginBase
from ..errors import CorruptValueError, ValueTypeError
from ..handlers import raised_by_handler
from ..limits import MAX_VALUE_BYTES, add_number, name_key, validate_key, validate_keys, validate_value_size


class FrameValues(StorageBase):
    """Values as frames. A frame with a deadline is judged here, by one reading of `now_ms` per call or page."""

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

    def now_ms(self) -> int:
        """Return the time that judges deadlines, in milliseconds since 1970 UTC: of the server, if there is one."""
        return deadlines.now_ms()

    # --- values to frames ---

    def encode_value(self, key: str, value: Any, deadline_ms: int | None) -> bytes:
        """Return the frame of `value` for `key`. Raises ValueTypeError or ValueLimitError, which name the key."""
        # `key_crc_of` and the validation of the size, inlined: each call is a hundredth of a write without flushes.
        key_crc = crc32(key.encode()) if self.checksum_covers_key else 0
        try:
            data = self.encode_frame(value, key_crc)
        except ValueTypeError as error:
            raise name_key(error, key) from error.__cause__
        if deadline_ms is not None:
            data = set_deadline(data, deadline_ms, key_crc)
        if len(data) > MAX_VALUE_BYTES:
            validate_value_size(key, len(data))
        return data

    def _frames_of(self, items: dict[str, Any], deadline_ms: int | None) -> dict[str, bytes]:
        """Return the frame of each item. Encodes all of them, so that one bad item refuses the whole batch."""
        names, encoded, frames = self.encode_items(items)
        if deadline_ms is not None:
            frames = list(map(set_deadline, frames, repeat(deadline_ms), self._key_crcs(encoded)))
            self._validate_sizes(names, frames)
        return dict(zip(names, frames, strict=True))

    def encode_items(self, items: dict[str, Any]) -> tuple[list[str], list[bytes], list[bytes]]:
        """Return the keys of `items`, the keys as UTF-8, and the frames.

        Raises the error of the first key or value that cannot be stored.
        """
        names = validate_keys(items)
        encoded = list(map(str.encode, names))
        try:
            frames: list[bytes] = self.frame_codec.encode_many(list(items.values()), self._key_crcs(encoded))
        except ValueTypeError as error:
            raise self._refused_of(dict(zip(names, items.values(), strict=True)), error) from error.__cause__
        self._validate_sizes(names, frames)
        return names, encoded, frames

    @staticmethod
    def _validate_sizes(names: list[str], frames: list[bytes]) -> None:
        if max(map(len, frames), default=0) > MAX_VALUE_BYTES:
            for name, data in zip(names, frames, strict=True):
                validate_value_size(name, len(data))

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

    def key_crc_of(self, key: str) -> int:
        """Return the CRC-32 of `key`, with which the checksum of its frame starts; 0 without `checksum_covers_key`."""
        return crc32(key.encode()) if self.checksum_covers_key else 0

    def key_crcs_of(self, keys: Iterable[str]) -> list[int]:
        """Return the CRC-32 of every key, computed in one pass; zeros without `checksum_covers_key`."""
        return self._key_crcs(map(str.encode, keys))

    def _key_crcs(self, encoded: Iterable[bytes]) -> list[int]:
        return list(map(crc32, encoded)) if self.checksum_covers_key else [0 for _ in encoded]

    # --- frames to values ---

    def decode_items(
        self, keys: Collection[str], frames: Iterable[bytes], now_ms: int | None = None
    ) -> Iterator[tuple[str, Any]]:
        """Return the decoded items without those that expired by `now_ms` (default: now).

        Iteration raises an error that names the first unreadable key.
        """
        return self._decode_chunk(keys, list(frames), self.key_crcs_of(keys), now_ms)

    def _decode_chunk(
        self, keys: Collection[str], frames: Sequence[bytes], key_crcs: Sequence[int], now_ms: int | None = None
    ) -> Iterator[tuple[str, Any]]:
        try:
            return zip(keys, self.frame_codec.decode_many(frames, key_crcs), strict=True)
        except CorruptValueError:  # one is damaged, or has a deadline
            return self._decode_each(keys, frames, now_ms)

    def _decode_each(
        self, keys: Collection[str], frames: Sequence[bytes], now_ms: int | None
    ) -> Iterator[tuple[str, Any]]:
        for key, data in zip(keys, frames, strict=True):
            if now_ms is None and data[:1] == b"T":
                now_ms = self.now_ms()
            value = self.decode_live(key, data, now_ms)
            if value is not MISSING:
                yield key, value

    def decode_value(self, key: str, data: bytes, now_ms: int | None = None) -> Any:
        """Return the value in the frame `data` of `key`. Raises KeyError if it expired by `now_ms` (default: now)."""
        if data and data[0] == DEADLINE:
            value = self.decode_live(key, data, now_ms)
            if value is MISSING:
                raise KeyError(key)
            return value
        try:
            return self.decode_frame(data, self.key_crc_of(key))
        except CorruptValueError as error:
            raise self._unreadable(key, error) from error.__cause__

    def decode_live(self, key: str, data: bytes, now_ms: int | None = None) -> Any:
        """Return the value in the frame `data` of `key`, MISSING if it expired by `now_ms` (default: now)."""
        if data[:1] != b"T":
            return self.decode_value(key, data)
        deadline_ms = self._verify_deadline(key, data)
        if deadline_ms <= (self.now_ms() if now_ms is None else now_ms):
            return MISSING
        try:
            return self.frame_codec.decode_inner(data)
        except CorruptValueError as error:
            raise self._unreadable(key, error) from error.__cause__

    def increment_frame(
        self, key: str, by: float, default: float, ttl_s: float | None, data: bytes | None
    ) -> tuple[bytes, Any] | None:
        """Return the frame and the value of `key` after `increment`; `data` is its frame, None if it is missing.

        Return None if a deadline has come, or would start: then the default of `increment` does it. Raises what
        `increment` raises. For engines that read and write in one step.
        """
        value, deadline_ms = default, None
        if data is None:
            if ttl_s is not None:
                return None
        else:
            value = self.decode_live(key, data)
            if value is MISSING:
                return None
            deadline_ms = deadline_of(data)
        value = add_number(key, by, value)
        return self.encode_value(key, value, deadline_ms), value

    def _verify_deadline(self, key: str, data: bytes) -> int:
        try:
            return verify_deadline(data, self.key_crc_of(key))
        except CorruptValueError as error:
            raise self._unreadable(key, error) from None

    def _unreadable(self, key: str, error: CorruptValueError) -> CorruptValueError:
        """Return the error for the frame of `key`, which could not be read because of `error`."""
        validate_key(key)
        return CorruptValueError(
            f"the value of key {key!r} in namespace {self.namespace!r} of the {self._plugin.name} storage: "
            f"{self._explanation(error)}"
        )

    def _explanation(self, error: CorruptValueError) -> CorruptValueError:
        if isinstance(error, UnknownHeaderError):
            name = self._plugin.codec_of_header(error.header)
            if name is not None:
                return self.frame_codec.written_with(name)
        return error
