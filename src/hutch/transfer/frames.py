"""Move stored bytes between stores of the same codec: no value is decoded, so neither its class nor a key is needed.

A frame's checksum is validated on the way, and covers the same key in the target.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

from .. import CorruptValueError, EncodedStorage, Namespace, Store, StoreError, ValueTypeError
from ..codec.frame import JSON, MSGPACK, PICKLE, SIGNED_PICKLE, seal, verify

#: Called with the error for each item that is skipped.
OnError = Callable[[StoreError], object]

_PICKLES = (PICKLE, SIGNED_PICKLE)
_CHUNK_KEYS = 256
_CHECKSUM_BYTES = 4


class Frame:
    """A stored value that was not decoded: its header byte and body, and how to decode it where it was read."""

    __slots__ = ("_decode", "content")

    def __init__(self, content: bytes, decode: Callable[[], Any] | None = None) -> None:
        self.content = content
        self._decode = decode

    @property
    def header(self) -> int:
        return self.content[0]

    def value(self) -> Any:
        """Return the decoded value. Raises CorruptValueError if it cannot be decoded here."""
        if self._decode is None:
            raise CorruptValueError("it was not read from a store")
        return self._decode()


def bytes_below(handle: Namespace) -> EncodedStorage | None:
    """Return the engine's storage of bytes below the layers of `handle`, for reading; None if it holds objects."""
    storage: Any = handle._store
    while not isinstance(storage, EncodedStorage):
        storage = getattr(storage, "_inner", None)
        if storage is None:
            return None
    return storage


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
        for key, data in zip(keys, frames, strict=True):
            try:
                frame = intact_frame(storage, key, data)
            except CorruptValueError as error:
                if on_error is None:
                    raise
                on_error(error)
            else:
                yield key, frame


def intact_frame(storage: EncodedStorage, key: str, data: bytes) -> Frame:
    """Return the frame of `key`. Raises CorruptValueError, which names the key, if its checksum does not match."""
    try:
        verify(data, storage.key_crc_of(key))
    except CorruptValueError as error:
        where = f"key {key!r} in namespace {storage.namespace!r} of the {storage._plugin.name} storage"
        raise CorruptValueError(f"the value of {where}: {error}") from None
    return Frame(bytes(data[:-_CHECKSUM_BYTES]), lambda: storage.decode_value(key, data))


def find_frames(handle: Namespace, keys: Iterable[str]) -> dict[str, Frame | None]:
    """Return the frames of those `keys` that `handle` holds; None for a damaged one."""
    storage = bytes_below(handle)
    found: dict[str, Frame | None] = {}
    for key, data in (storage.read_many(list(keys)) if storage is not None else {}).items():
        try:
            found[key] = intact_frame(storage, key, data)  # type: ignore[arg-type]
        except CorruptValueError:
            found[key] = None
    return found


def write_frames(handle: Namespace, frames: dict[str, Frame]) -> None:
    """Set each key to its frame, as one batch. Raises ValueTypeError if `handle` could not read one of them back."""
    storage = handle._store
    sealed: dict[str, bytes] = {}
    for key, frame in frames.items():
        if not isinstance(storage, EncodedStorage) or not _is_readable(storage, frame.header):
            raise ValueTypeError(
                f"the value of key {key!r} in namespace {str(handle.namespace)!r} is the stored bytes of a value that "
                "could not be read where it was dumped, and this store does not read such bytes: expected a store of "
                "the same codec, on an engine that holds bytes, without layers. Load it there, or register the type "
                "(hutch.register_type) and dump again"
            )
        sealed[key] = seal(frame.content, storage.key_crc_of(key))
    storage.write_many(sealed)  # type: ignore[attr-defined]


def frame_to_dump(storage: EncodedStorage, key: str, data: bytes) -> bytes | None:
    """Return the frame for a dump, its checksum without the key; None if it is damaged or a pickle."""
    try:
        header = verify(data, storage.key_crc_of(key))
    except CorruptValueError:
        return None
    return None if header in _PICKLES else seal(bytes(data[:-_CHECKSUM_BYTES]))


def frame_of_dump(data: bytes) -> Frame:
    """Return the frame that `frame_to_dump` returned. Raises CorruptValueError if it is damaged, or is a pickle."""
    if verify(data) in _PICKLES:
        raise CorruptValueError("its frame is a pickle, which a dump must not hold, because reading it would run code")
    return Frame(data[:-_CHECKSUM_BYTES])


def read_values(handle: Namespace, on_error: OnError | None = None) -> Iterator[tuple[str, Any]]:
    """Yield every item of `handle`. An unreadable one is raised, or passed to `on_error` and left out."""
    if on_error is None:
        yield from handle.items()
        return
    keys = iter(handle)
    while chunk := list(islice(keys, _CHUNK_KEYS)):
        try:
            found = handle.get_many(chunk)
        except CorruptValueError:
            for key, value, error in read_each(handle, chunk):
                if error is not None:
                    on_error(error)
                else:
                    yield key, value
        else:
            yield from found.items()


def read_each(handle: Namespace, keys: Iterable[str]) -> Iterator[tuple[str, Any, CorruptValueError | None]]:
    """Yield each of `keys` that is there with its value and None, or with None and why its value is unreadable."""
    for key in keys:
        try:
            value = handle[key]
        except KeyError:
            continue
        except CorruptValueError as error:
            yield key, None, error
        else:
            yield key, value, None


def _is_readable(storage: EncodedStorage, header: int) -> bool:
    codec = storage.frame_codec.codec
    return header in codec.headers or (header in (MSGPACK, JSON) and not codec.reads_only_signed)
