"""Frames of ExEngine in hutch: ``DataHandler(storage=HutchStorage("lmdb:///srv/scope", "cells"))``.

One dataset is one namespace, ``exengine:NAME``. Its keys contain coordinates as canonical JSON:

    dataset                     metadata of the whole dataset: a dict
    frame {"time":1}            one frame: a dict of its coordinates, dtype, shape and metadata
    pixels {"time":1}           the bytes of its array, in C order; of a frame larger than 256 MiB the first part
    pixels {"time":1} 1         the second part, and so on; empty if a smaller frame replaced a larger one

A frame and its pixels are written as one batch. Reading metadata and listing frames read no pixels.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import math
import operator
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Literal

import hutch

from .connections import shared_namespace, shared_store

try:
    import numpy as np
    from exengine.base_classes import DataStorage
except ImportError as missing:
    raise ImportError(
        'hutch.bridges.exengine needs ExEngine 0.4, which cannot be imported here: pip install "exengine>=0.4,<0.5"'
    ) from missing

log = logging.getLogger(__name__)

_NAMESPACE = "exengine:"
_DATASET, _FRAME, _PIXELS = "dataset", "frame ", "pixels "
# Half the limit of one value.
_PART_BYTES = 1 << 28
# Coordinates longer than this in UTF-8 are replaced by their hash: a key has at most 1,024 bytes.
_LONGEST_COORDINATES = 900
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 5.0
# Give up reading a frame that other writers replace this many times.
_MAX_READS = 100
_TEMPORARY = (hutch.StorageUnavailableError, hutch.StorageTimeoutError, hutch.StorageFullError)
# What reading raises for foreign data.
_FOREIGN_ERRORS = (LookupError, TypeError, ValueError, SyntaxError)
_PLAIN = frozenset({str, int, float, bool, type(None)})
_as_json = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode

Coordinates = Mapping[str, int | str]


class HutchStorage(DataStorage):  # type: ignore[misc]  # ExEngine has no types
    """One dataset of a hutch store. Any thread may use it; several processes may write and read one dataset.

    `url` is a storage's URL (or config file; None for `$HUTCH_STORAGE` and hutch's other defaults), `name` the
    dataset's name, 1 to 246 bytes of UTF-8; without one, the time makes a new name, which the attribute `name` holds.
    `mode` is "x" to create it (FileExistsError if it exists: frames are never mixed up or silently replaced),
    "a" to continue or create it, and "r" to read it (FileNotFoundError if it is missing). `summary_metadata` describes
    the whole dataset; with "a" it replaces the stored metadata, if given.

    While the storage is unreachable, busy or full, `put` and `finish` retry for `patience_s` seconds (0: never),
    because an exception ends the thread of ExEngine's DataHandler, and no later frame is stored. When `put` returns,
    the frame is stored as durably as the engine is configured, without `finish` or `close`.

    Raises what `hutch.connect` and `hutch.Store.open` raise.
    """

    def __init__(
        self,
        url: str | None = None,
        name: str | None = None,
        summary_metadata: Any = None,
        *,
        mode: Literal["x", "a", "r"] = "x",
        patience_s: float = 60.0,
    ) -> None:
        if mode not in ("x", "a", "r"):
            raise ValueError(f"mode must be 'x' (create), 'a' (create or continue) or 'r' (read), not {mode!r}")
        if name is None:
            if mode != "x":
                raise ValueError(f"mode {mode!r} opens an existing dataset: expected its name. Pass name=")
            name = f"{datetime.now(UTC):%Y-%m-%dT%H-%M-%S.%fZ}-{secrets.token_hex(2)}"
        if not isinstance(name, str) or not name:
            raise ValueError("a dataset needs a name of at least one character")
        self.name = name
        self._patience_s = float(patience_s)
        self._items = shared_namespace(url, _NAMESPACE + name)
        self._is_writable = mode != "r"
        if mode == "r":
            self._dataset()
        elif not self._create(summary_metadata):
            if mode == "x":
                raise FileExistsError(f"dataset {name!r} exists already; mode='a' continues it, 'r' reads it")
            self._change(lambda dataset: {**dataset, "finished": None}, summary_metadata)

    @staticmethod
    def datasets(url: str | None = None) -> list[str]:
        """Return the sorted names of the datasets in a store. Raises what `hutch.connect` and the engine raise."""
        names = (name for name in shared_store(url).namespaces() if name.startswith(_NAMESPACE) and name != _NAMESPACE)
        return sorted(name.removeprefix(_NAMESPACE) for name in names if _DATASET in shared_namespace(url, name))

    # --- DataStorage ---

    def __contains__(self, data_coordinates: object) -> bool:
        """Return whether a frame with these coordinates is stored. Reads no value."""
        return isinstance(data_coordinates, Mapping) and _FRAME + _encode_coordinates(data_coordinates) in self._items

    def __getitem__(self, data_coordinates: Coordinates) -> np.ndarray[Any, Any]:
        """Return `get_data(data_coordinates)`."""
        return self.get_data(data_coordinates)

    def get_data(self, data_coordinates: Coordinates) -> np.ndarray[Any, Any]:
        """Return a frame's array with its original dtype and shape. It is read-only; `.copy()` gives a writable one.

        Raises KeyError if there is no such frame, hutch.CorruptValueError if it is damaged.
        """
        encoded = _encode_coordinates(data_coordinates)
        keys = [_FRAME + encoded, _PIXELS + encoded]
        for _ in range(_MAX_READS):
            frames = self._items.get_many(keys)
            if keys[0] not in frames:
                raise self._missing_frame(data_coordinates)
            try:
                dtype, shape, size_bytes = _array_layout(frames[keys[0]])
            except _FOREIGN_ERRORS as error:
                raise self._foreign_frame(data_coordinates) from error
            wanted = [keys[0], *_pixel_keys(encoded, size_bytes)]
            if wanted == keys and len(frames) == len(keys):
                parts = [frames[key] for key in keys[1:]]
                if all(type(part) is bytes for part in parts):
                    pixels = parts[0] if len(parts) == 1 else b"".join(parts)
                    if len(pixels) == size_bytes:
                        return np.ndarray(shape, dtype, pixels)
            # The frame has more parts, or was replaced while being read on an engine without snapshots.
            keys = wanted
        raise hutch.CorruptValueError(
            f"the pixels of the frame {_describe(data_coordinates)} of dataset {self.name!r} do not fit its shape"
        )

    def get_metadata(self, data_coordinates: Coordinates) -> Any:
        """Return a frame's metadata, fresh. Reads no pixels. Raises KeyError if there is no such frame."""
        try:
            frame = self._items[_FRAME + _encode_coordinates(data_coordinates)]
        except KeyError:
            raise self._missing_frame(data_coordinates) from None
        try:
            return frame["metadata"]
        except _FOREIGN_ERRORS as error:
            raise self._foreign_frame(data_coordinates) from error

    def put(self, data_coordinates: Coordinates, data: np.ndarray[Any, Any], metadata: Any) -> None:
        """Store a frame completely, or nothing if this raises. It replaces a frame with the same coordinates.

        Before anything is written, raises hutch.ValueTypeError for an array of objects or metadata that hutch cannot
        store exactly, TypeError and ValueError for coordinates that are not text or numbers, and
        hutch.StoreNotOpenError if the dataset is finished or open for reading. After `patience_s`, raises what the
        storage raised.
        """
        if not self._is_writable:
            raise hutch.StoreNotOpenError(
                f"dataset {self.name!r} is finished, or was opened for reading; "
                f"open it again with mode='a' to store the frame {_describe(data_coordinates)}"
            )
        axes = _axes(data_coordinates)
        encoded = _encode_axes(axes)
        array = np.asarray(data)
        if isinstance(data, np.ma.MaskedArray):
            raise hutch.ValueTypeError("a masked array would lose its mask; store .filled(), or the mask as a frame")
        pixels = array.tobytes()
        items: dict[str, Any] = {_PIXELS + encoded: pixels}
        if len(pixels) > _PART_BYTES:
            starts = range(0, len(pixels), _PART_BYTES)
            parts = [pixels[start : start + _PART_BYTES] for start in starts]
            items = dict(zip(_pixel_keys(encoded, len(pixels)), parts, strict=True))
        # Last, for engines without atomic batches: a frame that is present has its pixels.
        items[_FRAME + encoded] = {
            "coordinates": axes,
            "dtype": _describe_dtype(array.dtype),
            "shape": array.shape,
            "metadata": _plain_or_raise(metadata),
        }
        self._retry(lambda: self._items.set_many(self._empty_unneeded_parts(encoded, len(pixels)) | items))

    def finish(self) -> None:
        """Mark the dataset as complete, and refuse any later `put` through this object."""
        if self._is_writable:
            self._retry(lambda: self._change(lambda dataset: {**dataset, "finished": datetime.now(UTC)}))
            self._is_writable = False

    def close(self) -> None:
        """Do nothing: every frame is stored already, and the connection belongs to the process."""

    # --- beyond it, under the names that NDStorage has ---

    @property
    def summary_metadata(self) -> Any:
        """Return the metadata of the whole dataset."""
        return self._dataset()["summary_metadata"]

    def is_finished(self) -> bool:
        """Return whether `finish` was called, by any process, and the dataset not opened with mode "a" since."""
        return self._dataset()["finished"] is not None

    def get_image_coordinates_list(self) -> list[dict[str, int | str]]:
        """Return the coordinates of all frames, sorted by value, numbers before text. Reads no pixels."""
        return sorted(self._coordinates(), key=lambda axes: [(axis, _rank(axes[axis])) for axis in sorted(axes)])

    # --- inside ---

    def _coordinates(self) -> Iterator[dict[str, int | str]]:
        for key in self._items.scan_keys(_FRAME):
            text = key.removeprefix(_FRAME)
            if text.startswith("{"):
                yield json.loads(text)
            elif frame := self._items.get(key):
                yield frame["coordinates"]

    def _dataset(self) -> dict[str, Any]:
        dataset: dict[str, Any] | None = self._items.get(_DATASET)
        if dataset is None:
            raise self._no_dataset()
        return dataset

    def _no_dataset(self) -> FileNotFoundError:
        return FileNotFoundError(f"there is no dataset {self.name!r} in this store")

    def _missing_frame(self, coordinates: Coordinates) -> KeyError:
        return KeyError(f"dataset {self.name!r} has no frame {_describe(coordinates)}")

    def _foreign_frame(self, coordinates: Coordinates) -> hutch.CorruptValueError:
        return hutch.CorruptValueError(
            f"the frame {_describe(coordinates)} of dataset {self.name!r} was not written by this bridge"
        )

    def _empty_unneeded_parts(self, encoded: str, size_bytes: int) -> dict[str, bytes]:
        """Return empty values for the parts that a frame of `size_bytes` does not need but its predecessor has.

        Removing the parts instead could not be atomic with writing the frame: another process that puts a large frame
        at that moment would lose its parts.
        """
        try:
            *_, old_bytes = _array_layout(self._items[_FRAME + encoded])
        except (hutch.CorruptValueError, *_FOREIGN_ERRORS):  # or missing
            return {}
        return dict.fromkeys(_pixel_keys(encoded, old_bytes)[len(_pixel_keys(encoded, size_bytes)) :], b"")

    def _create(self, summary_metadata: Any) -> bool:
        """Return whether this call created the dataset. Of several processes that try, one creates it."""
        dataset = {"format": 1, "created": datetime.now(UTC), "finished": None}
        return self._items.compare_and_set(
            _DATASET, hutch.MISSING, {**dataset, "summary_metadata": _plain_or_raise(summary_metadata)}
        )

    def _change(self, change: Callable[[dict[str, Any]], dict[str, Any]], summary_metadata: Any = None) -> None:
        more = {} if summary_metadata is None else {"summary_metadata": _plain_or_raise(summary_metadata)}
        try:
            self._items.modify(_DATASET, lambda dataset: change(dataset) | more)
        except KeyError:  # removed meanwhile
            raise self._no_dataset() from None

    def _retry(self, write: Callable[[], None]) -> None:
        """Call `write`, retrying while the failure may be temporary. Writing twice does no harm."""
        until_s = time.monotonic() + self._patience_s
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                return write()
            except _TEMPORARY as error:
                left_s = until_s - time.monotonic()
                if left_s <= 0:
                    raise
                if pause_s == _FIRST_PAUSE_S:
                    log.warning("dataset %r: %s; trying again for %.0f s", self.name, error, left_s)
            time.sleep(min(pause_s, left_s))
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


def _encode_coordinates(coordinates: Coordinates) -> str:
    """Return a text that is the same for equal coordinates in any order, and different for different ones."""
    return _encode_axes(_axes(coordinates))


def _axes(coordinates: Coordinates) -> dict[str, int | float | str]:
    if not isinstance(coordinates, Mapping):
        raise TypeError(f"coordinates are a mapping from axis to position, not {type(coordinates).__name__}")
    if not all(isinstance(axis, str) for axis in coordinates):
        raise TypeError(f"the name of an axis must be a str; these are {list(coordinates)}")
    return {str(axis): _position(coordinates[axis]) for axis in sorted(coordinates)}


def _encode_axes(axes: dict[str, int | float | str]) -> str:
    text = _as_json(axes)
    if len(text) * 4 > _LONGEST_COORDINATES and len(encoded := text.encode()) > _LONGEST_COORDINATES:
        return hashlib.sha256(encoded).hexdigest()
    return text


def _position(position: Any) -> int | float | str:
    # Equal numbers are one position, as in a dict: 1, numpy's 1, 1.0 and True.
    if isinstance(position, str):
        return str(position)
    if isinstance(position, np.generic):
        position = position.item()
    if isinstance(position, float):
        return int(position) if position.is_integer() else position
    if isinstance(position, int):
        return int(position)
    raise TypeError(f"the position on an axis must be an int or a str, not {type(position).__name__}")


def _rank(position: float | str) -> tuple[bool, float | str]:
    return isinstance(position, str), position


def _pixel_keys(encoded: str, size_bytes: int) -> list[str]:
    more = range(1, -(-size_bytes // _PART_BYTES))
    return [_PIXELS + encoded, *(f"{_PIXELS}{encoded} {part}" for part in more)]


@functools.lru_cache
def _describe_dtype(dtype: np.dtype[Any]) -> Any:
    """Return the description of `dtype` as in numpy's own files. Raises ValueTypeError if it would be incomplete."""
    if not dtype.hasobject:
        descr = np.lib.format.dtype_to_descr(dtype)
        if np.lib.format.descr_to_dtype(descr) == dtype:
            return descr
    raise hutch.ValueTypeError(f"an array of dtype {dtype} has no bytes of its own that could be read back; convert it")


def _array_layout(frame: Any) -> tuple[np.dtype[Any], tuple[int, ...], int]:
    """Return the dtype, shape and size in bytes of a stored frame. Raises _FOREIGN_ERRORS for anything else."""
    dtype = np.lib.format.descr_to_dtype(frame["dtype"])
    shape = tuple(map(operator.index, frame["shape"]))
    # numpy would treat the bytes as addresses of objects, and crash or worse.
    if dtype.hasobject or min(shape, default=0) < 0:
        raise ValueError("its dtype or shape is impossible")
    return dtype, shape, dtype.itemsize * math.prod(shape)


def _plain_or_raise(metadata: Any) -> Any:
    try:
        return _plain(metadata)
    except RecursionError:
        raise hutch.ValueTypeError("the metadata is nested too deep or refers to itself; flatten it") from None


def _plain(value: Any) -> Any:
    """Return `value` with numpy scalars as Python scalars, arrays as lists and mappings as dicts."""
    if type(value) in _PLAIN:
        return value
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(_plain, value))
    if isinstance(value, np.generic | np.ndarray) and value.dtype.kind not in "mM":  # their items lose the unit
        return value.tolist()
    return value


def _describe(coordinates: Coordinates) -> str:
    return str(dict(coordinates))
