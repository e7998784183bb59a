"""Move stored bytes between stores of the same codec: no value is decoded, so neither its class nor a key is needed.

A frame's checksum is validated on the way, and covers the same key in the target.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

from .. import MISSING, CorruptValueError, EncodedStorage, Namespace, StorageBase, Store, StoreError, ValueTypeError
from ..codec.frame import DEADLINE, JSON, MSGPACK, PICKLE, SIGNED_PICKLE, seal, verify, verify_deadline
from ..deadlines import Expiring, deadline_of, no_ttl, with_deadline
from ..handlers import is_missing

#: Called with the error for each item that is skipped.
OnError = Callable[[StoreError], object]

_PICKLES = (PICKLE, SIGNED_PICKLE)
_CHUNK_KEYS = 256
_CHECKSUM_BYTES = 4
# Where the header byte lies in a frame with a deadline.
_INNER = 9


class Frame:
    """A stored value that was not decoded: its header byte and body, and how to decode it where it was read."""

    __slots__ = ("_decode", "content")

    def __init__(self, content: bytes, decode: Callable[[], Any] | None = None) -> None:
        self.content = content
        self._decode = decode

    @property
    def header(self) -> int:
        """The header byte of the codec, behind a deadline if there is one."""
        return self.content[_INNER] if self.content[0] == DEADLINE else self.content[0]

    @property
    def deadline_ms(self) -> int | None:
        return deadline_of(self.content + b"\0\0\0\0")

    def value(self) -> Any:
        """Return the decoded value. Raises CorruptValueError if it cannot be decoded here."""
        if self._decode is None:
            raise CorruptValueError("it was not read from a store")
        return self._decode()


def bytes_below(handle: Namespace) -> EncodedStorage | None:
    """Return the engine's storage of bytes below the layers of `handle`, for reading.

    None if it holds objects, or if a plugin put something around it that may change values.
    """
    storage = _engine(handle)
    return storage if isinstance(storage, EncodedStorage) else None


def _engine(handle: Namespace) -> StorageBase:
    """Return the storage below those layers of `handle` that keep values as they are, for reading."""
    storage: Any = handle._store
    while getattr(storage, "keeps_values", False):
        storage = storage._inner
    return storage  # type: ignore[no-any-return]


def expires(handle: Namespace) -> bool:
    """Return whether values of `handle` may have a deadline."""
    return "ttl" in handle.capabilities


def moves_frames(source: Store, target: Store, origin: Namespace, handle: Namespace) -> bool:
    """Return whether `origin` and `handle` hold bytes of the same codec, and a write to `handle` passes no layer."""
    name = str(origin.namespace)
    mine, theirs = bytes_below(origin), handle._store
    return (
        mine is not None
        and isinstance(theirs, EncodedStorage)
        and type(mine.frame_codec) is type(theirs.frame_codec)
        and source.config.codec_for(name) == target.config.codec_for(name)
    )


def read_frames(handle: Namespace, on_error: OnError | None = None) -> Iterator[tuple[str, Frame]]:
    """Yield every item of `handle` undecoded. A damaged one is raised, or passed to `on_error` and left out."""
    storage = bytes_below(handle)
    assert storage is not None, "the caller has looked"
    for keys, frames in storage.read_chunks(None, None, False):
        now_ms = _now_ms(storage, frames)
        for key, data in zip(keys, frames, strict=True):
            try:
                frame = intact_frame(storage, key, data)
            except CorruptValueError as error:
                if on_error is None:
                    raise
                on_error(error)
            else:
                if not _is_over(frame, now_ms):
                    yield key, frame


def _now_ms(storage: EncodedStorage, frames: Iterable[bytes]) -> int:
    """Return the time that judges `frames`; 0 if none of them has a deadline."""
    return storage.now_ms() if any(data[:1] == b"T" for data in frames) else 0


def _is_over(frame: Frame, now_ms: int) -> bool:
    deadline_ms = frame.deadline_ms
    return deadline_ms is not None and deadline_ms <= now_ms


def intact_frame(storage: EncodedStorage, key: str, data: bytes) -> Frame:
    """Return the frame of `key`. Raises CorruptValueError, which names the key, if its checksum does not match."""
    key_crc = storage.key_crc_of(key)
    try:
        if verify(data, key_crc) == DEADLINE:
            verify_deadline(data, key_crc)
    except CorruptValueError as error:
        where = f"key {key!r} in namespace {storage.namespace!r} of the {storage._plugin.name} storage"
        raise CorruptValueError(f"the value of {where}: {error}") from None
    return Frame(bytes(data[:-_CHECKSUM_BYTES]), lambda: storage.decode_live(key, data, -1))


def find_frames(handle: Namespace, keys: Iterable[str]) -> dict[str, Frame | None]:
    """Return the frames of those `keys` that `handle` holds; None for a damaged one."""
    storage = bytes_below(handle)
    frames: dict[str, Frame | None] = {}
    if storage is None:
        return frames
    stored = storage.read_many(list(keys))
    now_ms = _now_ms(storage, stored.values())
    for key, data in stored.items():
        try:
            frame = intact_frame(storage, key, data)
        except CorruptValueError:
            frames[key] = None
        else:
            if not _is_over(frame, now_ms):
                frames[key] = frame
    return frames


def write_frames(handle: Namespace, frames: dict[str, Frame]) -> None:
    """Set each key to its frame, with its deadline, as one batch.

    Raises ValueTypeError if `handle` could not read one of them back, CapabilityError if nothing expires in it.
    """
    storage = handle._store
    sealed: dict[str, bytes] = {}
    deadlines_ms = {key: frame.deadline_ms for key, frame in frames.items() if frame.deadline_ms is not None}
    if deadlines_ms and not expires(handle):
        raise no_ttl()
    for key, frame in frames.items():
        if not isinstance(storage, EncodedStorage) or not _is_readable(storage, frame.header):
            raise ValueTypeError(
                f"the value of key {key!r} in namespace {str(handle.namespace)!r} is the stored bytes of a value that "
                "could not be read where it was dumped, and this store does not read such bytes: expected a store of "
                "the same codec, on an engine that holds bytes, without layers. Load it there, or register the type "
                "(hutch.register_type) and dump again"
            )
        sealed[key] = seal(frame.content, storage.key_crc_of(key))
    assert isinstance(storage, EncodedStorage)
    if deadlines_ms:
        storage.write_many_until(sealed, deadlines_ms)
    else:
        storage.write_many(sealed)


def frame_to_dump(storage: EncodedStorage, key: str, data: bytes) -> bytes | None:
    """Return the frame for a dump, its checksum without the key; None if it is damaged or a pickle."""
    try:
        intact_frame(storage, key, data)
    except CorruptValueError:
        return None
    frame = Frame(bytes(data[:-_CHECKSUM_BYTES]))
    return None if frame.header in _PICKLES else seal(frame.content)


def frame_of_dump(data: bytes) -> Frame:
    """Return the frame that `frame_to_dump` returned. Raises CorruptValueError if it is damaged, or is a pickle."""
    if verify(data) == DEADLINE:
        verify_deadline(data)
    frame = Frame(data[:-_CHECKSUM_BYTES])
    if frame.header in _PICKLES:
        raise CorruptValueError("its frame is a pickle, which a dump must not hold, because reading it would run code")
    return frame


def read_values(handle: Namespace, on_error: OnError | None = None) -> Iterator[tuple[str, Any]]:
    """Yield every item of `handle`, as an `Expiring` if it has a deadline.

    An unreadable one is raised, or passed to `on_error` and left out.
    """
    if on_error is None and not expires(handle):
        yield from handle.items()
        return
    keys = iter(handle)
    while chunk := list(islice(keys, _CHUNK_KEYS)):
        try:
            values = find_values(handle, chunk)
        except CorruptValueError:
            for key, value, error in read_each(handle, chunk):
                if error is None:
                    yield key, value
                elif on_error is None:
                    raise error from None
                else:
                    on_error(error)
        else:
            yield from values.items()


def read_each(handle: Namespace, keys: Iterable[str]) -> Iterator[tuple[str, Any, CorruptValueError | None]]:
    """Yield each of `keys` that is there with its value and None, or with None and why its value is unreadable."""
    for key in keys:
        try:
            values = find_values(handle, [key])
        except CorruptValueError as error:
            yield key, None, error
        else:
            for value in values.values():
                yield key, value, None


def find_values(handle: Namespace, keys: list[str]) -> dict[str, Any]:
    """Return the values of those `keys` that `handle` holds, each as an `Expiring` if it has a deadline."""
    if not expires(handle):
        return handle.get_many(keys)
    storage = bytes_below(handle)
    if storage is None:
        return dict(_with_deadlines(_engine(handle), handle.get_many(keys)))
    frames = storage.read_many(keys)
    now_ms = _now_ms(storage, frames.values())
    values = {key: storage.decode_live(key, data, now_ms) for key, data in frames.items()}
    return {
        key: with_deadline(value, deadline_of(frames[key])) for key, value in values.items() if value is not MISSING
    }


def count_expiring(handle: Namespace) -> int:
    """Return how many values of `handle` have a deadline that has not come. Decodes no value where it holds bytes."""
    if not expires(handle):
        return 0
    storage = bytes_below(handle)
    if storage is None:
        return sum(type(value) is Expiring for _, value in read_values(handle))
    count = 0
    for _, frames in storage.read_chunks(None, None, False):
        now_ms = _now_ms(storage, frames)
        count += sum((deadline_of(data) or 0) > now_ms for data in frames if data[:1] == b"T")
    return count


def _with_deadlines(engine: StorageBase, values: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield those of `values` that still exist, each as an `Expiring` if it has a deadline."""
    for key, value in values.items():
        try:
            deadline_ms = engine.deadline(key)
        except KeyError as error:
            if not is_missing(error, key):
                raise
        else:
            yield key, with_deadline(value, deadline_ms)


def _is_readable(storage: EncodedStorage, header: int) -> bool:
    codec = storage.frame_codec.codec
    return header in codec.headers or (header in (MSGPACK, JSON) and not codec.reads_only_signed)
