"""Test the journal engine with hutch's conformance kit, and beyond it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import hutch
from hutch.testing import StorageSuite
from hutch.testing.signal_points import Interrupt, points, raise_interrupt, run_at


class TestJournal(StorageSuite):
    """Every promise of hutch, without an exception for this engine."""

    @pytest.fixture
    def config(self, tmp_path: Path) -> str:
        return url(tmp_path)


def url(folder: Path) -> str:
    return f"journal://{folder.as_posix()}/data"


def journal_of(folder: Path) -> Path:
    (file,) = (folder / "data").glob("*.journal")
    return file


THIRD = "3" * 100


def filled(folder: Path) -> Path:
    """Return the file of a namespace with a batch of two items and a longer third item."""
    with hutch.connect(url(folder)) as store, store.open("core") as core:
        core.update(a=1, b=2)
        core["c"] = THIRD
    return journal_of(folder)


def test_it_is_found_by_the_entry_point_of_this_package() -> None:
    info = hutch.find_plugins().find("journal")
    assert info.path.name == "journal.plug"
    assert info.path.parent.name == "hutch_journal"


def test_a_write_truncated_at_any_byte_loses_no_earlier_write_and_the_file_stays_usable(tmp_path: Path) -> None:
    file = filled(tmp_path)
    whole = file.read_bytes()
    states = [{}, {"a": 1, "b": 2}, {"a": 1, "b": 2, "c": THIRD}]
    seen = []
    for length in range(len(whole) + 1):
        file.write_bytes(whole[:length])
        with hutch.connect(url(tmp_path)) as store, store.open("core") as core:
            stored = dict(core)
            assert stored in states
            core["later"] = 4
        with hutch.connect(url(tmp_path)) as store, store.open("core") as core:
            assert dict(core) == {**stored, "later": 4}
        if stored not in seen:
            seen.append(stored)
    assert seen == states  # a batch is complete or absent


def test_any_damaged_byte_is_noticed(tmp_path: Path) -> None:
    file = filled(tmp_path)
    whole = file.read_bytes()
    for place in [*range(8), *range(24, len(whole))]:  # the bytes between are random
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with hutch.connect(url(tmp_path)) as store, pytest.raises(hutch.CorruptValueError, match=file.name):
            store.open("core")


def test_what_was_replaced_does_not_fill_the_disk(tmp_path: Path) -> None:
    with hutch.connect(url(tmp_path)) as one, hutch.connect(url(tmp_path)) as other:
        core, reader = one.open("core"), other.open("core")
        with core, reader:
            core["kept"] = "kept"
            for number in range(300):
                core["k"] = str(number) * 2000
                assert reader["k"] == core["k"]  # also while compacted files replace longer ones
            assert dict(reader) == {"kept": "kept", "k": "299" * 2000}
            core.clear()
    assert journal_of(tmp_path).stat().st_size < 600_000
    assert {path.suffix for path in (tmp_path / "data").iterdir()} == {".journal"}


# A file that was just opened is closed by its finalizer, which warns.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_exception_at_any_point_of_a_compaction_leaves_the_old_value_or_the_new(tmp_path: Path) -> None:
    with hutch.connect(url(tmp_path)) as store, store.open("core") as core:

        def replace(text: str) -> None:
            core.clear()
            core["k"] = text
            core["k"] = text

        compacting = "x" * 600_000
        for point in points(lambda: replace(compacting), limit=150):
            try:
                run_at(point, raise_interrupt, lambda: replace(compacting))
            except Interrupt:
                assert dict(core) in ({}, {"k": compacting})
            core["later"] = point
            with hutch.connect(url(tmp_path)) as other_store, other_store.open("core") as other:
                assert dict(other) == dict(core)
                assert other["later"] == point
            del core["later"]


def test_a_nested_call_through_another_store_is_done_or_refused_at_once(tmp_path: Path) -> None:
    with hutch.connect(url(tmp_path)) as one, hutch.connect(url(tmp_path)) as another:
        core, nested = one.open("core"), another.open("core")
        outcomes = set()

        def nest() -> None:
            try:
                nested["nested"] = nested.get("nested", 0) + 1
                outcomes.add("done")
            except hutch.ConflictError:
                outcomes.add("refused")

        with core, nested:
            for point in points(lambda: core.set_many({"k": 0})):
                del core["k"]
                run_at(point, nest, lambda: core.set_many({"k": 0}))
                assert core["k"] == 0
                assert core.get("nested") == nested.get("nested")
        assert outcomes == {"done", "refused"}


def test_nothing_is_written_to_a_file_that_a_shorter_one_replaced(tmp_path: Path) -> None:
    def write(name: str) -> None:
        with hutch.connect(url(tmp_path)) as store, store.open("core") as core:
            for number in range(200):
                core[name] = f"{number}{name * 20_000}"
                assert core[name].startswith(f"{number}{name}")

    with ThreadPoolExecutor() as pool:
        assert list(pool.map(write, "abcd")) == [None] * 4


def test_a_journal_under_the_name_of_another_namespace_is_refused(tmp_path: Path) -> None:
    file = filled(tmp_path)
    with hutch.connect(url(tmp_path)) as store:
        with store.open("other") as other:
            other["k"] = 1
        (other_file,) = set((tmp_path / "data").glob("*.journal")) - {file}
        other_file.write_bytes(file.read_bytes())
        with pytest.raises(hutch.CorruptValueError, match="is not the journal of namespace 'other'"):
            store.open("other")
