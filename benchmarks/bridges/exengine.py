"""Measure writing and reading frames through ExEngine's DataStorage, beside its NDTiff backend."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from exengine.kernel.data_coords import DataCoordinates
from exengine.storage_backends.ndtiff_and_ndram import NDTiffStorage

from hutch.bridges.connections import close_shared
from hutch.bridges.exengine import HutchStorage

from .side_by_side import compare

_FRAMES = 200
_CAMERA = [np.random.default_rng(seed).integers(0, 4096, (512, 512), dtype=np.uint16) for seed in range(8)]
# The metadata that Micro-Manager's cameras give per frame.
_METADATA = {
    "Camera": "DemoCamera",
    "PixelType": "GRAY16",
    "TimeReceivedByCore": "2024-02-29 12:00:00.123456",
    "Binning": "1",
    "BitDepth": "12",
    "ElapsedTime-ms": "123.45",
    "Height": "512",
    "Width": "512",
    "ROI-X-start": "0",
    "ROI-Y-start": "0",
    "ImageNumber": "0",
    "StartTime-ms": "0.1",
}
_COORDINATES = [DataCoordinates({"time": number, "channel": "DAPI"}) for number in range(_FRAMES)]


def main() -> None:
    _check_once()
    compare(
        "ExEngine",
        f"put {_FRAMES} frames of 512x512 uint16 on lmdb, each flushed to the disk",
        "NDTiff, each frame flushed to the disk",
        lambda folder: _seconds(_put, HutchStorage(_url(folder), "x")),
        lambda folder: _seconds(_put_and_flush, NDTiffStorage(str(folder), "x")),
        limit=1.2,
    )
    # Neither flushes. Here each frame survives a killed process and has a checksum, which takes half as long as all of
    # NDTiff's work: hence the missed limit. NDTiff loses what its index buffers, and has no checksum.
    compare(
        "ExEngine",
        f"put {_FRAMES} frames of 512x512 uint16 on lmdb with durability=relaxed",
        "NDTiff",
        lambda folder: _seconds(_put, HutchStorage(_url(folder, "?durability=relaxed"), "x")),
        lambda folder: _seconds(_put, NDTiffStorage(str(folder), "x")),
        limit=1.2,
    )
    compare(
        "ExEngine",
        f"get_data of {_FRAMES} frames, on lmdb, checksums checked",
        "NDTiff",
        lambda folder: _read(HutchStorage(_url(folder, "?durability=relaxed"), "x"), "get_data"),
        lambda folder: _read(NDTiffStorage(str(folder), "x"), "get_data"),
        limit=5,
    )
    compare(
        "ExEngine",
        f"get_metadata of {_FRAMES} frames, on lmdb",
        "NDTiff",
        lambda folder: _read(HutchStorage(_url(folder, "?durability=relaxed"), "x"), "get_metadata"),
        lambda folder: _read(NDTiffStorage(str(folder), "x"), "get_metadata"),
        limit=1,
    )


def _url(folder: Path, options: str = "") -> str:
    return f"lmdb://{folder.as_posix()}/store{options}"


def _put(storage: Any) -> Any:
    for number, coordinates in enumerate(_COORDINATES):
        storage.put(coordinates, _CAMERA[number % len(_CAMERA)], _METADATA)
    return storage


def _put_and_flush(storage: Any) -> None:
    dataset = storage._storage
    flush = getattr(os, "fdatasync", os.fsync)
    for number, coordinates in enumerate(_COORDINATES):
        storage.put(coordinates, _CAMERA[number % len(_CAMERA)], _METADATA)
        flush(dataset.current_writer.file.fileno())
        dataset._index_file.flush()
        flush(dataset._index_file.fileno())


def _read(storage: Any, verb: str) -> float:
    _put(storage)
    return _seconds(lambda read: deque(map(read, _COORDINATES), maxlen=0), getattr(storage, verb))


def _seconds(work: Callable[[Any], object], what: Any) -> float:
    """Return the seconds of ``work(what)`` alone, without making and closing the storage."""
    start = time.perf_counter()
    work(what)
    took = time.perf_counter() - start
    close_shared()
    return took


def _check_once() -> None:
    """Raise unless the storages return the frames that were put."""
    storage = _put(HutchStorage("memory://", "check"))
    for number, coordinates in enumerate(_COORDINATES):
        assert np.array_equal(storage.get_data(coordinates), _CAMERA[number % len(_CAMERA)])
        assert storage.get_metadata(coordinates) == _METADATA
    close_shared()


if __name__ == "__main__":
    main()
