"""Test ExEngine's frames in hutch: with its DataStorage, its DataHandler and its engine, and what hutch adds."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exengine import ExecutionEngine
from exengine.base_classes import DataStorage
from exengine.data import DataCoordinates, DataHandler
from exengine.device_types import Detector
from exengine.events.detector_events import ReadoutData, StartCapture
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import hutch
import hutch.bridges.exengine as bridge
from hutch.bridges.connections import close_shared, shared_namespace
from hutch.bridges.exengine import HutchStorage
from tests import pages
from tests.bridges import processes
from tests.servers import RedisServer

_HERE = {"time": 1, "channel": "DAPI", "z": 0}
_FRAME = np.arange(12, dtype=np.uint16).reshape(3, 4)


@pytest.fixture
def engine() -> Iterator[Any]:
    engine = ExecutionEngine()
    yield engine
    engine.shutdown()


# --- what ExEngine asks of a DataStorage ---


def test_it_is_a_data_storage_that_gives_back_what_was_put(url: str) -> None:
    storage = HutchStorage(url, "cells")
    assert isinstance(storage, DataStorage)
    here = DataCoordinates(_HERE)
    assert here not in storage

    storage.put(here, _FRAME, {"some": "metadata"})

    assert here in storage
    assert _HERE in storage
    assert np.array_equal(storage.get_data(here), _FRAME)
    assert np.array_equal(storage[here], _FRAME)
    assert storage.get_metadata(here) == {"some": "metadata"}
    assert storage.get_image_coordinates_list() == [_HERE]


def test_a_frame_that_is_not_there_is_a_key_error_that_names_it(url: str) -> None:
    storage = HutchStorage(url, "cells")
    storage.put({"time": 1}, _FRAME, {})
    for read in (storage.get_data, storage.get_metadata, storage.__getitem__):
        with pytest.raises(KeyError, match=r"'cells' has no frame \{'time': 2\}"):
            read({"time": 2})
    assert {} not in storage
    assert "time" not in storage


def test_the_last_of_two_frames_with_the_same_coordinates_is_there(url: str) -> None:
    storage = HutchStorage(url, "cells")
    storage.put({"time": 1}, _FRAME, {"try": 1})
    storage.put({"time": 1}, _FRAME.astype(float) / 2, {"try": 2})
    _must_equal(storage.get_data({"time": 1}), _FRAME.astype(float) / 2)
    assert storage.get_metadata({"time": 1}) == {"try": 2}
    assert storage.get_image_coordinates_list() == [{"time": 1}]


def test_a_finished_dataset_refuses_frames_and_can_be_read(url: str) -> None:
    storage = HutchStorage(url, "cells")
    storage.put({"time": 1}, _FRAME, {})
    assert not storage.is_finished()
    storage.finish()
    storage.finish()
    storage.close()
    with pytest.raises(hutch.StoreNotOpenError, match=r"'cells' is finished.*mode='a'.*'time': 2"):
        storage.put({"time": 2}, _FRAME, {})
    assert {"time": 2} not in storage
    assert storage.is_finished()
    _must_equal(storage.get_data({"time": 1}), _FRAME)


# --- its DataHandler ---


def test_the_data_handler_stores_what_it_is_given_and_finishes(url: str, engine: Any) -> None:
    storage = HutchStorage(url, "cells")
    handler = DataHandler(storage)
    frames = {number: _FRAME + number for number in range(20)}
    for number, frame in frames.items():
        handler.put(DataCoordinates({"time": number}), frame, {"number": number}, None)
    handler.finish()
    handler.await_completion()

    assert storage.is_finished()
    assert storage.get_image_coordinates_list() == [{"time": number} for number in frames]
    for number, frame in frames.items():
        data, metadata = handler.get(DataCoordinates({"time": number}))
        _must_equal(data, frame)
        assert metadata == {"number": number}
    with pytest.raises(KeyError):
        handler.get(DataCoordinates({"time": 20}))


def test_what_a_process_function_makes_of_a_frame_is_stored(url: str, engine: Any) -> None:
    def split(coordinates: Any, data: Any, metadata: Any) -> Any:
        half = {**coordinates, "half": "left"}, data[:, :2], metadata
        return (half, ({**coordinates, "half": "right"}, data[:, 2:], metadata))

    storage = HutchStorage(url, "cells")
    handler = DataHandler(storage, process_function=split)
    handler.put(DataCoordinates({"time": 1}), _FRAME, {}, None)
    handler.finish()
    handler.await_completion()
    assert {"time": 1} not in storage
    _must_equal(storage.get_data({"time": 1, "half": "left"}), _FRAME[:, :2])
    _must_equal(storage.get_data({"time": 1, "half": "right"}), _FRAME[:, 2:])


class Camera(Detector):  # type: ignore[misc]  # ExEngine has no types
    """Frame n is full of n, from `first` on."""

    def __init__(self, first: int = 0) -> None:
        self.next, self.left = first, 0
        super().__init__("camera")

    def arm(self, frame_count: int | None = None) -> None:
        self.left = frame_count or sys.maxsize

    def start(self) -> None:
        pass

    def stop(self) -> None:
        self.left = 0

    def is_stopped(self) -> bool:
        return self.left == 0

    def pop_data(self, timeout: float | None = None) -> tuple[Any, Any]:
        if not self.left:
            return None, None
        number = self.next
        self.next, self.left = number + 1, self.left - 1
        return np.full((64, 64), number, np.uint16), {"number": number, "gain": np.float32(1.5)}


def test_an_acquisition_of_the_engine_is_stored(url: str, engine: Any) -> None:
    storage = HutchStorage(url, "cells")
    handler = DataHandler(storage)
    camera = Camera()
    where = [{"time": time, "channel": channel} for time in range(5) for channel in ("DAPI", "GFP")]
    engine.submit(StartCapture(10, camera)).await_execution()
    future = engine.submit(ReadoutData(where, camera, handler, 10))
    future.await_execution()
    handler.finish()
    handler.await_completion()
    assert storage.is_finished()
    assert storage.get_image_coordinates_list() == [
        {"time": time, "channel": channel} for channel in ("DAPI", "GFP") for time in range(5)
    ]
    for number, one in enumerate(where):
        _must_equal(storage.get_data(one), np.full((64, 64), number, np.uint16))
        assert storage.get_metadata(one) == {"number": number, "gain": 1.5}
    engine.check_exceptions()


# --- datasets ---


def test_a_second_dataset_of_one_name_is_refused_before_anything_is_put(url: str) -> None:
    HutchStorage(url, "cells").put({"time": 1}, _FRAME, {})
    with pytest.raises(FileExistsError, match="'cells' exists already; mode='a'"):
        HutchStorage(url, "cells")
    assert {"time": 1} in HutchStorage(url, "cells", mode="r")


def test_a_dataset_can_be_continued(url: str) -> None:
    first = HutchStorage(url, "cells", {"objective": "60x"}, mode="a")
    first.put({"time": 1}, _FRAME, {})
    first.finish()
    again = HutchStorage(url, "cells", mode="a")
    assert not again.is_finished()
    again.put({"time": 2}, _FRAME, {})
    assert again.get_image_coordinates_list() == [{"time": 1}, {"time": 2}]
    assert again.summary_metadata == {"objective": "60x"}
    assert HutchStorage(url, "cells", {"objective": np.int64(20)}, mode="a").summary_metadata == {"objective": 20}


def test_a_dataset_open_for_reading_changes_nothing(url: str) -> None:
    with pytest.raises(FileNotFoundError, match="no dataset 'cells'"):
        HutchStorage(url, "cells", mode="r")
    assert HutchStorage.datasets(url) == []
    HutchStorage(url, "cells").put({"time": 1}, _FRAME, {})
    reader = HutchStorage(url, "cells", mode="r")
    with pytest.raises(hutch.StoreNotOpenError, match="opened for reading"):
        reader.put({"time": 2}, _FRAME, {})
    reader.finish()
    assert not reader.is_finished()
    assert reader.get_image_coordinates_list() == [{"time": 1}]


def test_datasets_are_listed_and_see_nothing_of_each_other(url: str) -> None:
    names = ["b", "b:c", "b/c", "zelle ü\n🔬", "b\\", "x" * 246]
    for name in names:
        HutchStorage(url, name).put({"name": name}, _FRAME, {})
    shared_namespace(url, "exengine:foreign")["k"] = 1
    shared_namespace(url, "exengine:")["dataset"] = 1
    assert HutchStorage.datasets(url) == sorted(names)
    for name in names:
        assert HutchStorage(url, name, mode="r").get_image_coordinates_list() == [{"name": name}]
    shared_namespace(url, "exengine:b").clear()
    assert HutchStorage.datasets(url) == sorted(names[1:])


@pytest.mark.parametrize(
    ("url", "name", "mode", "error"),
    [
        ("memory://", "", "x", ValueError),
        ("memory://", 5, "x", ValueError),
        ("memory://", "a\0b", "x", hutch.NamespaceError),
        ("memory://", "x" * 247, "x", hutch.NamespaceError),
        ("memory://", "a", "w", ValueError),
        ("lmbd://here", "a", "x", hutch.PluginNotFoundError),
        ("lmdb://here?colour=red", "a", "x", hutch.ConfigError),
    ],
)
def test_what_cannot_be_a_dataset_is_refused(url: str, name: Any, mode: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        HutchStorage(url, name, mode=mode)


def test_the_default_store_and_hutch_before_a_url_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUTCH_STORAGE", f"sqlite://{(tmp_path / 'x.db').as_posix()}")
    HutchStorage(None, "cells").put({"time": 1}, _FRAME, {})
    assert {"time": 1} in HutchStorage(f"hutch://sqlite://{(tmp_path / 'x.db').as_posix()}", "cells", mode="r")


# --- coordinates ---


def test_without_arguments_each_storage_is_a_new_dataset_of_the_store_in_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"lmdb://{tmp_path}/scope"
    monkeypatch.setenv("HUTCH_STORAGE", url)
    storages = [HutchStorage(), HutchStorage()]
    for number, storage in enumerate(storages):
        storage.put({"time": 0}, np.full((2, 2), number), {})
    names = [storage.name for storage in storages]
    assert names == HutchStorage.datasets(url)
    assert [int(HutchStorage(url, name, mode="r")[{"time": 0}].max()) for name in names] == [0, 1]
    for mode in ("a", "r"):
        with pytest.raises(ValueError, match="expected its name"):
            HutchStorage(mode=mode)


def test_equal_coordinates_are_one_frame_whatever_their_order_and_kind(url: str) -> None:
    storage = HutchStorage(url, "cells")
    storage.put(DataCoordinates({"z": np.int64(0), "channel": "DAPI", "time": 1}), _FRAME, {})
    for same in (_HERE, {"channel": np.str_("DAPI"), "z": False, "time": 1.0}, DataCoordinates(_HERE)):
        assert same in storage
    assert storage.get_image_coordinates_list() == [_HERE]


def test_text_and_numbers_may_be_mixed_on_an_axis_and_stay_apart(url: str) -> None:
    storage = HutchStorage(url, "cells")
    positions: list[Any] = [-1, 1, 2, 2.5, 10, 10**30, "", '"}', "1", "a", "a/b", "x" * 5000, "日本\n🔬"]
    for number, position in enumerate(positions):
        storage.put({"at": position}, np.array(number), {})
    storage.put({}, np.array(-1), {})
    for number, position in enumerate(positions):
        assert storage.get_data({"at": position}) == number
    found = storage.get_image_coordinates_list()
    assert found == [{}, *({"at": position} for position in positions)]
    assert [type(one["at"]) for one in found[1:]] == list(map(type, positions))


@given(st.lists(st.dictionaries(st.text(max_size=3), st.integers() | st.text(max_size=400)), max_size=6))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_coordinates_can_be_read_back(several: list[dict[str, int | str]]) -> None:
    shared_namespace("memory://", "exengine:any").clear()
    storage = HutchStorage("memory://", "any")
    for number, one in enumerate(several):
        storage.put(one, np.array(number), {})
    last = {frozenset(one.items()): number for number, one in enumerate(several)}
    for one in several:
        assert storage.get_data(one) == last[frozenset(one.items())]
    assert {frozenset(one.items()) for one in storage.get_image_coordinates_list()} == set(last)


@pytest.mark.parametrize(
    "wrong",
    [
        None,
        [("time", 1)],
        "time",
        {"time": None},
        {"time": (1, 2)},
        {1: 1},
        {"time": float("nan")},
        {"time": float("inf")},
        {"a": "\ud800"},
    ],
)
def test_coordinates_that_could_not_be_read_back_are_refused(wrong: Any) -> None:
    storage = HutchStorage("memory://", "cells")
    with pytest.raises((TypeError, ValueError, OverflowError)):
        storage.put(wrong, _FRAME, {})
    assert storage.get_image_coordinates_list() == []


# --- arrays ---

_FIELDS = np.dtype([("x", "<f8"), ("name", "S3"), ("at", ">i2", (2, 2))])
_ARRAYS: dict[str, Any] = {
    **{code: np.arange(6).reshape(2, 3).astype(code) for code in "?bBhHiIlLqQefdgFDG"},
    **{code: np.arange(6).astype(code) for code in (">u2", "<u2", ">f4", "S5", "U5", "M8[ns]", "m8[s]", "V3")},
    "fields": np.zeros(3, _FIELDS),
    "aligned": np.zeros(3, np.dtype([("a", "u1"), ("b", "f8")], align=True)),
    "fields of a few bytes": np.zeros(3, _FIELDS)[["name"]],
    "no dimension": np.array(7, np.uint16),
    "a scalar": np.uint16(7),
    "no items": np.zeros((0, 5), np.uint16),
    "no items at all": np.zeros((3, 0, 2)),
    "items of no size": np.zeros(3, "S0"),
    "every other": np.arange(20, dtype=np.uint16)[::2],
    "backwards": np.arange(20, dtype=np.uint16)[::-1],
    "turned": np.arange(20).reshape(4, 5).T,
    "by columns": np.asfortranarray(np.arange(20).reshape(4, 5)),
    "repeated": np.broadcast_to(np.arange(3), (4, 3)),
    "five dimensions": np.arange(120).reshape(1, 2, 3, 4, 5),
    "a matrix": np.arange(6).reshape(2, 3).view(np.matrix),
    "a list": [[1, 2], [3, 4]],
}


@pytest.mark.parametrize("name", _ARRAYS)
@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
def test_an_array_comes_back_with_its_dtype_and_shape(name: str) -> None:
    storage = HutchStorage("memory://", "arrays")
    storage.put({}, _ARRAYS[name], {})
    _must_equal(storage.get_data({}), np.asarray(_ARRAYS[name]))


def test_what_was_read_is_a_view_that_cannot_be_written(url: str) -> None:
    storage = HutchStorage(url, "cells")
    frame = _FRAME.copy()
    storage.put({"time": 1}, frame, {})
    frame[:] = 0
    found = storage.get_data({"time": 1})
    _must_equal(found, _FRAME)
    assert not found.flags.writeable
    assert not found.flags.owndata
    assert found.flags.aligned
    with pytest.raises(ValueError, match="read-only"):
        found[0, 0] = 1


_REFUSED: dict[str, Any] = {
    "objects": np.array([1, "a", None], object),
    "objects in a field": np.zeros(2, [("a", "O")]),
    "texts of any length": np.array(["a"], np.dtypes.StringDType()) if hasattr(np.dtypes, "StringDType") else None,
    "masked": np.ma.masked_array([1, 2], [True, False]),
    "nothing": None,
}


@pytest.mark.parametrize("name", _REFUSED)
def test_an_array_that_would_not_come_back_is_refused_before_anything_is_written(name: str) -> None:
    storage = HutchStorage("memory://", "cells")
    before = list(shared_namespace("memory://", "exengine:cells"))
    with pytest.raises(hutch.ValueTypeError):
        storage.put({"time": 1}, _REFUSED[name], {})
    assert list(shared_namespace("memory://", "exengine:cells")) == before == ["dataset"]


def test_a_large_frame_lies_in_parts(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bridge, "_PART_BYTES", 100)
    storage = HutchStorage(url, "cells")
    sizes = [0, 99, 100, 101, 200, 1000, 150, 5]
    for number, size in enumerate(sizes):
        frame = np.arange(size, dtype=np.uint8)
        storage.put({"time": 1}, frame, {"number": number})
        _must_equal(storage.get_data({"time": 1}), frame)
        assert storage.get_metadata({"time": 1}) == {"number": number}
    storage.put({"time": 2}, np.arange(1000, dtype=">u2"), {})
    items = shared_namespace(url, "exengine:cells")
    assert [len(items[key]) for key in items.scan_keys('pixels {"time":2}')] == [100] * 20
    # Nothing is left of a larger frame that a smaller one replaced.
    storage.put({"time": 2}, np.arange(150, dtype=np.uint8), {})
    assert [len(items[key]) for key in items.scan_keys('pixels {"time":2}')] == [100, 50, *[0] * 18]
    assert [len(items[key]) for key in items.scan_keys('pixels {"time":1}')] == [5, *[0] * 9]
    assert storage.get_image_coordinates_list() == [{"time": 1}, {"time": 2}]


def test_who_reads_while_a_frame_is_replaced_sees_one_or_the_other(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bridge, "_PART_BYTES", 100)
    storage = HutchStorage(url, "cells")
    versions = [np.full(size, size, np.uint16) for size in (10, 120, 300)]
    storage.put({}, versions[0], {})
    seen = {10}
    reads = 0

    def replace() -> None:
        until = time.monotonic() + 30
        for version in itertools.cycle(versions):
            storage.put({}, version, {})
            if len(seen) > 1 and reads > 50:
                return
            assert time.monotonic() < until

    with ThreadPoolExecutor() as pool:
        writing = pool.submit(replace)
        while not writing.done():
            found = storage.get_data({})
            _must_equal(found, np.full(found.size, found.size, np.uint16))
            seen.add(found.size)
            reads += 1
        writing.result()


# --- metadata ---


def test_metadata_keeps_its_types(url: str) -> None:
    storage = HutchStorage(url, "cells", {"a": (1, b"2")})
    kept: list[Any] = [{}, None, {"a": [1, 2.5, "x", None, True, {"b": []}]}, {"a": (1, b"2"), 3: {4}}, "text", 2**70]
    for number, metadata in enumerate(kept):
        storage.put({"time": number}, _FRAME, metadata)
        found = storage.get_metadata({"time": number})
        assert found == metadata
        assert repr(found) == repr(metadata)
    assert storage.summary_metadata == {"a": (1, b"2")}


def test_metadata_of_numpy_comes_back_as_plain_python() -> None:
    storage = HutchStorage("memory://", "cells")
    given = {
        "gain": np.float32(0.5),
        "count": np.int64(3),
        "on": np.bool_(True),
        "name": np.str_("x"),
        "roi": np.array([[0, 1], [2, 3]]),
        "deep": [({np.int8(1): np.uint8(2)},)],
        "at": DataCoordinates({"z": 1}),
    }
    expected = {
        "gain": 0.5,
        "count": 3,
        "on": True,
        "name": "x",
        "roi": [[0, 1], [2, 3]],
        "deep": [({1: 2},)],
        "at": {"z": 1},
    }
    storage.put({}, _FRAME, given)
    assert repr(storage.get_metadata({})) == repr(expected)


def test_metadata_without_end_is_refused() -> None:
    storage = HutchStorage("memory://", "cells")
    endless: dict[str, Any] = {}
    endless["self"] = endless
    with pytest.raises(hutch.ValueTypeError, match="nested too deep"):
        storage.put({"time": 1}, _FRAME, endless)
    with pytest.raises(hutch.ValueTypeError, match="nested too deep"):
        HutchStorage("memory://", "others", endless)
    assert HutchStorage.datasets("memory://") == ["cells"]


@pytest.mark.parametrize("wrong", [object(), np.datetime64("2024-02-29T12:00:00.000000001"), bytearray(b"x")])
def test_metadata_that_would_not_come_back_is_refused_by_its_place(wrong: Any) -> None:
    storage = HutchStorage("memory://", "cells")
    with pytest.raises(hutch.ValueTypeError, match="'here'"):
        storage.put({"time": 1}, _FRAME, {"a": {"here": wrong}})
    assert {"time": 1} not in storage
    assert list(shared_namespace("memory://", "exengine:cells")) == ["dataset"]


# --- damage, faults ---


def test_a_frame_whose_pixels_are_gone_or_too_few_is_an_error_that_names_it(url: str) -> None:
    storage = HutchStorage(url, "cells")
    storage.put({"time": 1}, _FRAME, {})
    items = shared_namespace(url, "exengine:cells")
    items['pixels {"time":1}'] = b"\0" * 23
    with pytest.raises(hutch.CorruptValueError, match=r"\{'time': 1\} of dataset 'cells' do not fit"):
        storage.get_data({"time": 1})
    del items['pixels {"time":1}']
    with pytest.raises(hutch.CorruptValueError, match=r"\{'time': 1\} of dataset 'cells' do not fit"):
        storage.get_data({"time": 1})
    assert storage.get_metadata({"time": 1}) == {}


@pytest.mark.parametrize(
    "foreign",
    [
        5,
        None,
        {},
        {"dtype": "?!", "shape": (3, 4)},
        {"dtype": "(", "shape": (3, 4)},
        {"dtype": "<u2", "shape": 12},
        {"dtype": "<u2", "shape": (-3, -4)},
        # numpy would treat the pixels as addresses in memory.
        {"dtype": "|O", "shape": (3,)},
        {"dtype": [("a", "|O")], "shape": (3,)},
    ],
)
def test_foreign_data_is_never_taken_for_a_frame_of_the_bridge(foreign: Any) -> None:
    storage = HutchStorage("memory://", "cells")
    storage.put({"time": 1}, _FRAME, {})
    shared_namespace("memory://", "exengine:cells")['frame {"time":1}'] = foreign
    for read in (storage.get_data, storage.get_metadata):
        with pytest.raises(hutch.CorruptValueError, match=r"\{'time': 1\} of dataset 'cells' was not written"):
            read({"time": 1})
    storage.put({"time": 1}, _FRAME, {"again": True})
    _must_equal(storage.get_data({"time": 1}), _FRAME)


@pytest.mark.parametrize("foreign", [5, None, "text of 24 characters...", [0] * 24])
def test_what_are_no_pixels_is_never_taken_for_them(foreign: Any) -> None:
    storage = HutchStorage("memory://", "cells")
    storage.put({"time": 1}, _FRAME, {})
    shared_namespace("memory://", "exengine:cells")['pixels {"time":1}'] = foreign
    with pytest.raises(hutch.CorruptValueError, match="do not fit"):
        storage.get_data({"time": 1})


@contextlib.contextmanager
def _exceptions_of_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[BaseException | None]]:
    errors: list[BaseException | None] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: errors.append(args.exc_value))
    yield errors


def test_a_refused_frame_is_an_error_and_the_dataset_stays_unfinished(
    url: str, engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = HutchStorage(url, "cells")
    with _exceptions_of_threads(monkeypatch) as message:
        handler = DataHandler(storage)
        handler.put(DataCoordinates({"time": 1}), _FRAME, {}, None)
        handler.put(DataCoordinates({"time": 2}), _FRAME.astype(object), {}, None)
        handler.put(DataCoordinates({"time": 3}), _FRAME, {}, None)
        handler.finish()
        handler.await_completion()
    assert [type(error) for error in message] == [hutch.ValueTypeError]
    assert storage.get_image_coordinates_list() == [{"time": 1}]
    assert not storage.is_finished()


_moves_open_files = pytest.mark.skipif(sys.platform == "win32", reason="Windows moves no folder with open files")


@pytest.mark.parametrize("engine_name", [pytest.param("lmdb", marks=_moves_open_files), "redis"])
def test_a_storage_that_is_away_for_a_while_ends_no_acquisition(
    engine_name: str, tmp_path: Path, engine: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with _storage_that_can_go_away(engine_name, tmp_path) as (url, go_away, come_back):
        storage = HutchStorage(url, "cells")
        handler = DataHandler(storage)
        handler.put(DataCoordinates({"time": 0}), _FRAME, {}, None)
        _wait_until(lambda: {"time": 0} in storage)
        go_away()
        for number in range(1, 5):
            handler.put(DataCoordinates({"time": number}), _FRAME, {}, None)
        _wait_until(lambda: "trying again for" in caplog.text)
        come_back()
        handler.finish()
        handler.await_completion()
        assert storage.is_finished()
        assert storage.get_image_coordinates_list() == [{"time": number} for number in range(5)]


@contextlib.contextmanager
def _storage_that_can_go_away(engine_name: str, folder: Path) -> Iterator[tuple[str, Any, Any]]:
    if engine_name == "redis":
        with RedisServer(appendonly=True) as server:
            yield server.url, server.kill, server.start
            close_shared()
    else:
        store, away = folder / "store", folder / "away"
        yield f"lmdb://{store.as_posix()}", lambda: _away(store, away), lambda: away.rename(store)


@_moves_open_files
def test_patience_ends_and_then_the_storages_own_error_is_raised(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    storage = HutchStorage(f"lmdb://{folder.as_posix()}", "cells", patience_s=0)
    patient = HutchStorage(f"lmdb://{folder.as_posix()}", "cells", mode="a", patience_s=0.3)
    _away(folder, tmp_path / "away")
    with pytest.raises(hutch.StorageUnavailableError):
        storage.put({"time": 1}, _FRAME, {})
    start = time.monotonic()
    with pytest.raises(hutch.StorageUnavailableError):
        patient.put({"time": 1}, _FRAME, {})
    assert 0.25 < time.monotonic() - start < 10
    (tmp_path / "away").rename(folder)
    time.sleep(0.01)
    assert {"time": 1} not in storage
    storage.put({"time": 1}, _FRAME, {})


# --- threads and processes ---


def test_many_threads_put_and_read_one_dataset(url: str) -> None:
    storage = HutchStorage(url, "cells")

    def work(thread: int) -> None:
        for number in range(10):
            one = {"thread": thread, "number": number}
            storage.put(one, np.full((20, 20), 10 * thread + number), {"thread": thread})
            _must_equal(storage.get_data(one), np.full((20, 20), 10 * thread + number))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert len(storage.get_image_coordinates_list()) == 80


_APPENDING = """
import sys
import numpy as np
from hutch.bridges.exengine import HutchStorage
url, worker = sys.argv[1], int(sys.argv[2])
storage = HutchStorage(url, "cells", mode="a")
for number in range(20):
    storage.put({"worker": worker, "number": number}, np.full((30, 30), 100 * worker + number), {"worker": worker})
"""


def test_several_processes_put_into_one_dataset(lasting_url: str, tmp_path: Path) -> None:
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda worker: processes.run(_APPENDING, lasting_url, str(worker), folder=tmp_path), range(3)))
    storage = HutchStorage(lasting_url, "cells", mode="r")
    expected = [{"worker": worker, "number": number} for worker in range(3) for number in range(20)]
    assert sorted(map(repr, storage.get_image_coordinates_list())) == sorted(
        repr(dict(sorted(one.items()))) for one in expected
    )
    for one in expected:
        _must_equal(storage.get_data(one), np.full((30, 30), 100 * one["worker"] + one["number"]))


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
def test_a_storage_works_in_a_forked_process(lasting_url: str) -> None:
    storage = HutchStorage(lasting_url, "cells")
    storage.put({"time": 1}, _FRAME, {})
    context: Any = multiprocessing.get_context("fork")
    child = context.Process(target=lambda: storage.put({"time": 2}, storage.get_data({"time": 1}) + 1, {}))
    child.start()
    child.join(60)
    assert child.exitcode == 0
    child.close()
    storage.put({"time": 3}, _FRAME, {})
    _must_equal(storage.get_data({"time": 2}), _FRAME + 1)
    assert len(storage.get_image_coordinates_list()) == 3


_ACQUIRING = """
import sys
from exengine import ExecutionEngine
from exengine.data import DataHandler
from exengine.events.detector_events import ReadoutData, StartContinuousCapture
from exengine.kernel.notification_base import DataStoredNotification
from hutch.bridges.exengine import HutchStorage
from tests.bridges.test_exengine import Camera

engine = ExecutionEngine()
storage = HutchStorage(sys.argv[1], "cells", mode="a")
first = len(storage.get_image_coordinates_list())
print(f"starting at {first}")


def report(notification):
    print(f"stored {notification.payload['time']}")  # in one piece, also when it is killed
    if notification.payload["time"] == first + int(sys.argv[2]):
        print("enough")


engine.subscribe_to_notifications(report, DataStoredNotification)
camera = Camera(first)
handler = DataHandler(storage)
where = ({"time": time, "channel": "DAPI"} for time in range(first, 100_000))
engine.submit(StartContinuousCapture(camera)).await_execution()
engine.submit(ReadoutData(where, camera, handler))
"""


def test_a_killed_acquisition_keeps_every_stored_frame_and_can_be_continued(
    lasting_url: str, tmp_path: Path, record_property: Any
) -> None:
    stored = -1
    for run in range(2):
        many = str(random.randrange(5, 40))
        path = str(Path(__file__).parents[2])
        lines = processes.run_until("enough", _ACQUIRING, lasting_url, many, folder=tmp_path, PYTHONPATH=path)
        assert int(lines[0].removeprefix("starting at ")) > stored
        stored = int([line for line in lines if line.startswith("stored")][-1].removeprefix("stored "))
        storage = HutchStorage(lasting_url, "cells", mode="r")
        found = storage.get_image_coordinates_list()
        record_property("counted", f"run {run}: killed after frame {stored}, found {len(found)}")
        # Without a gap; frames after the last acknowledged one may be there, complete.
        assert found == [{"channel": "DAPI", "time": time} for time in range(len(found))]
        assert len(found) > stored
        for number, one in enumerate(found):
            _must_equal(storage.get_data(one), np.full((64, 64), number, np.uint16))
            assert storage.get_metadata(one) == {"number": number, "gain": 1.5}
        assert not storage.is_finished()


# --- without it, and its page ---


def _python(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60)


def test_without_exengine_the_error_says_what_to_install() -> None:
    done = _python("import sys; sys.modules['exengine'] = None; import hutch.bridges.exengine")
    assert done.returncode == 1
    assert "ImportError: hutch.bridges.exengine needs ExEngine 0.4" in done.stderr
    assert 'pip install "exengine>=0.4,<0.5"' in done.stderr


def test_hutch_alone_imports_neither_exengine_nor_numpy() -> None:
    done = _python(
        "import sys, hutch, hutch.bridges.connections; sys.exit(bool({'exengine', 'numpy'} & set(sys.modules)))"
    )
    assert done.returncode == 0, done.stderr


# NDTiff's writer opens each of its files a second time, and never closes that handle.
@pytest.mark.filterwarnings("ignore:.*cells_NDTiffStack.tif:pytest.PytestUnraisableExceptionWarning")
def test_the_page_about_it_can_be_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pages.run(Path(__file__).parents[2] / "docs" / "bridges" / "exengine.md", tmp_path, monkeypatch)
    assert ExecutionEngine.get_instance() is None


def _must_equal(found: Any, expected: Any) -> None:
    assert isinstance(found, np.ndarray)
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    assert found.tobytes() == expected.tobytes()


def _away(folder: Path, to: Path) -> None:
    folder.rename(to)
    time.sleep(0.01)  # for a millisecond, a writer of lmdb trusts that its files are in place


def _wait_until(is_true: Any) -> None:
    until = time.monotonic() + 30
    while not is_true():
        assert time.monotonic() < until
        time.sleep(0.005)
