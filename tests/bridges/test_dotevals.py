"""Test dotevals on hutch through its pytest plugin, its command, its registry, and its Storage."""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import itertools
import math
import multiprocessing
import os
import random
import subprocess
import sys
import threading
import types
from collections import OrderedDict
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from click.testing import CliRunner
from dotevals.cli import cli
from dotevals.exceptions import EvaluationNotFoundError, ExperimentExistsError, ExperimentNotFoundError
from dotevals.metrics import accuracy, metric
from dotevals.metrics import registry as known_metrics
from dotevals.results import EvaluationMetadata, EvaluationStatus, Record, Score
from dotevals.storage import Storage, get_storage, list_backends
from dotevals.storage.json import JSONStorage
from dotevals.summary import EvaluationSummary

import hutch
from hutch import transfer
from hutch.bridges.connections import close_shared, shared_namespace
from hutch.bridges.dotevals import HutchStorage, bare_names, metrics, schemes
from hutch.bridges.dotevals import json_files as dotevals_json
from hutch.bridges.dotevals.layout import EXPERIMENTS, NAMESPACE, evaluation_key, experiment_key, results_prefix
from tests import pages
from tests.bridges.processes import run, run_until

ROOT = Path(__file__).parents[2]
NAMES = [
    "plain",
    "org/model",
    "org@model",
    "org%2Fmodel",
    "",
    ".",
    "..",
    "a~b",
    "line\nbreak",
    "☃ é 🎉",
    "\ud800",
    "x" * 3000,
    "x" * 3001,
    "experiment/plain",
]


@pytest.fixture
def storage(url: str) -> Storage:
    return get_storage(f"hutch://{url}")


def evaluation(name: str = "e", **more: Any) -> EvaluationMetadata:
    return EvaluationMetadata(name, EvaluationStatus.RUNNING, started_at=12.5, **more)


def record(item_id: int, error: str | None = None, **more: Any) -> Record:
    scores = [] if error else [Score("exact", item_id % 2 == 0, [known_metrics["accuracy"]], {"got": item_id})]
    row = {"question": f"what is {item_id}?"}
    fields = {"dataset_row": row, "prompt": None, "model_response": "4", "scores": scores} | more
    return Record(item_id, error=error, **fields)


def begun(storage: Storage, experiment: str = "x", name: str = "e") -> Storage:
    storage.create_experiment(experiment)
    storage.create_evaluation(experiment, evaluation(name))
    return storage


def keys(storage: Storage) -> list[str]:
    return sorted(storage._data)


# --- what dotevals asks of a storage ---


def test_the_registry_knows_it_by_its_name_and_by_those_of_the_engines() -> None:
    assert {"json", "hutch", "lmdb", "sqlite", "redis", "rediss", "valkey", "valkeys"} <= set(list_backends())


def test_an_experiment_is_made_once_and_listed(storage: Storage) -> None:
    assert storage.list_experiments() == []
    for name in ("b", "a", "b"):
        storage.create_experiment(name)
    assert sorted(storage.list_experiments()) == ["a", "b"]
    assert storage.list_evaluations("a") == []


def test_an_experiment_is_renamed_with_all_that_is_in_it(storage: Storage) -> None:
    begun(storage, "old").add_results("old", "e", [record(1)])
    storage.rename_experiment("old", "new")
    assert storage.list_experiments() == ["new"]
    assert [found.item_id for found in storage.get_results("new", "e")] == [1]
    assert storage.get_results("old", "e") == []
    begun(storage, "old").add_results("old", "e", [record(2)])
    assert storage.completed_items("new", "e") == [1]
    assert storage.completed_items("old", "e") == [2]
    with pytest.raises(ExperimentExistsError):
        storage.rename_experiment("old", "new")
    storage.delete_experiment("new")
    storage.rename_experiment("old", "new")
    storage.rename_experiment("new", "old")
    assert storage.list_experiments() == ["old"]
    assert storage.completed_items("old", "e") == [2]


def test_renaming_moves_no_result(storage: Storage) -> None:
    begun(storage, "old").add_results("old", "e", [record(number) for number in range(20)])
    before = keys(storage)
    storage.rename_experiment("old", "new")
    assert set(keys(storage)) ^ set(before) == {"experiment/old", "experiment/new"}


def test_deleting_an_experiment_leaves_nothing_of_it_and_all_of_the_others(storage: Storage) -> None:
    names = ["a", "a/b", "a%", "", "ab"]
    for name in names:
        begun(storage, name).add_results(name, "e", [record(1), record(2, "E: no")])
    for name in names:
        before = len(keys(storage))
        storage.delete_experiment(name)
        assert len(keys(storage)) == before - 4
        assert storage.load_evaluation(name, "e") is None
        begun(storage, name)
        assert storage.get_results(name, "e") == []
        storage.delete_experiment(name)
    assert keys(storage) == []


def test_what_is_missing_is_dotevals_own_error_with_the_key_as_its_cause(storage: Storage) -> None:
    with pytest.raises(ExperimentNotFoundError) as caught:
        storage.delete_experiment("no")
    assert isinstance(caught.value.__cause__, KeyError)
    with pytest.raises(ExperimentNotFoundError):
        storage.rename_experiment("no", "new")
    with pytest.raises(ExperimentExistsError):
        begun(storage).rename_experiment("x", "x")
    for experiment, name in (("no", "e"), ("x", "no")):
        with pytest.raises(EvaluationNotFoundError) as not_found:
            storage.add_results(experiment, name, [record(1)])
        assert isinstance(not_found.value.__cause__, KeyError)
        with pytest.raises(EvaluationNotFoundError):
            storage.update_evaluation_status(experiment, name, EvaluationStatus.FAILED)
        assert storage.load_evaluation(experiment, name) is None
        assert storage.get_results(experiment, name) == []
        assert storage.completed_items(experiment, name) == []
        storage.remove_error_result(experiment, name, 1)
        storage.remove_error_results_batch(experiment, name, [1, 2])
    assert storage.list_evaluations("no") == []


def test_an_evaluation_is_created_once_and_its_status_stays(storage: Storage) -> None:
    made = evaluation(metadata={"git_commit": "abc"})
    storage.create_evaluation("made with it", made)
    storage.create_evaluation("made with it", evaluation(metadata={"git_commit": "other"}))
    assert storage.list_experiments() == ["made with it"]
    assert storage.load_evaluation("made with it", "e") == made
    storage.update_evaluation_status("made with it", "e", EvaluationStatus.COMPLETED)
    found = storage.load_evaluation("made with it", "e")
    assert found is not None
    assert (found.status, found.metadata, found.started_at) == (EvaluationStatus.COMPLETED, made.metadata, 12.5)
    assert found.completed_at is not None
    storage.update_evaluation_status("made with it", "e", EvaluationStatus.FAILED)
    found = storage.load_evaluation("made with it", "e")
    assert found is not None
    assert (found.status, found.completed_at) == (EvaluationStatus.FAILED, None)


def test_experiments_and_evaluations_may_have_any_name(storage: Storage) -> None:
    for number, name in enumerate(NAMES):
        begun(storage, name, name).add_results(name, name, [record(number)])
        begun(storage, "all", name).add_results("all", name, [record(number)])
    assert sorted(storage.list_experiments()) == sorted([*NAMES, "all"])
    assert sorted(storage.list_evaluations("all")) == sorted(NAMES)
    for number, name in enumerate(NAMES):
        assert storage.list_evaluations(name) == [name]
        for experiment in (name, "all"):
            found = storage.load_evaluation(experiment, name)
            assert found is not None
            assert found.evaluation_name == name
            assert storage.completed_items(experiment, name) == [number]
            assert [result.item_id for result in storage.get_results(experiment, name)] == [number]


def test_results_come_back_whole_and_in_their_order(storage: Storage) -> None:
    begun(storage)
    added = [record(5), record(3, "ValueError: no", prompt="p"), record(-1), record(10**15), record(4)]
    added[0].dataset_name, added[0].dataset_class = "gsm8k", "datasets.GSM8K"
    storage.add_results("x", "e", added[:1])
    storage.add_results("x", "e", added[1:4])
    storage.add_results("x", "e", [])
    storage.add_results("x", "e", added[4:])
    assert storage.get_results("x", "e") == added
    assert storage.completed_items("x", "e") == [5, -1, 10**15, 4]


def test_values_keep_their_types(storage: Storage) -> None:
    row = {
        "when": datetime(2024, 2, 29, tzinfo=UTC),
        "tuple": (1, {2}, b"3"),
        "number": Decimal("0.10"),
        "keys": {1: "a", None: "b"},
        "looks like a date": "2024-02-29",
        "text": "\ud800\x00\n",
        "nan": math.inf,
    }
    begun(storage).add_results("x", "e", [record(1, dataset_row=row)])
    found = storage.get_results("x", "e")[0].dataset_row
    assert found == row
    assert [type(value) for value in found.values()] == [type(value) for value in row.values()]


class Grade(enum.StrEnum):
    GOOD = "good"


class Point(NamedTuple):
    x: int


class Half(float):
    """A subclass of float, like numpy's float64."""


def test_what_json_takes_for_what_it_is_based_on_is_stored_as_that(storage: Storage) -> None:
    begun(storage)
    scores = [Score("s", Half(0.5), [known_metrics["accuracy"]], OrderedDict(grade=Grade.GOOD, point=Point(1)))]
    storage.add_results("x", "e", [record(1, scores=scores), record(2)])
    storage.create_evaluation("x", evaluation("other", metadata={"grade": Grade.GOOD}))
    found = storage.get_results("x", "e")[0].scores[0]
    assert (found.value, type(found.value)) == (0.5, float)
    assert (found.metadata, type(found.metadata)) == ({"grade": "good", "point": (1,)}, dict)
    assert [type(value) for value in found.metadata.values()] == [str, tuple]
    other = storage.load_evaluation("x", "other")
    assert other is not None
    assert type(other.metadata["grade"]) is str


def test_a_value_of_no_known_type_is_refused_and_nothing_of_the_batch_is_stored(storage: Storage) -> None:
    begun(storage)
    with pytest.raises(hutch.ValueTypeError, match="object"):
        storage.add_results("x", "e", [record(1), record(2, dataset_row={"secret": object()})])
    assert storage.get_results("x", "e") == []


@pytest.mark.parametrize("depth", [300, 100_000, None])
def test_a_value_that_is_too_deep_or_holds_itself_is_refused(depth: int | None, storage: Storage) -> None:
    value: list[Any] = []
    for _ in range(depth or 0):
        value = [value]
    if depth is None:
        value.append(value)
    begun(storage)
    with pytest.raises(hutch.ValueTypeError, match="nested more than 200 levels deep or refers to itself"):
        storage.add_results("x", "e", [record(1, dataset_row={"deep": value})])
    assert storage.get_results("x", "e") == []


@pytest.mark.parametrize("value", [None, 5, "abc", [1, 2, 3], {}, {"id": "i", "name": "x", "moves": 0, "more": 1}])
def test_what_hutch_did_not_write_is_an_error_with_its_key(value: Any, storage: Storage) -> None:
    begun(storage).add_results("x", "e", [record(1)])
    data, experiment = storage._data, storage._load_experiment("x")
    assert experiment is not None
    experiment_id = experiment["id"]
    ways: dict[str, list[Callable[[], object]]] = {
        results_prefix(experiment_id, "e") + "0": [
            lambda: storage.get_results("x", "e"),
            lambda: storage.completed_items("x", "e"),
        ],
        evaluation_key(experiment_id, "e"): [
            lambda: storage.load_evaluation("x", "e"),
            lambda: storage.list_evaluations("x"),
            lambda: storage.update_evaluation_status("x", "e", EvaluationStatus.COMPLETED),
        ],
        experiment_key("x"): [
            storage.list_experiments,
            lambda: storage.create_experiment("x"),
            lambda: storage.add_results("x", "e", [record(2)]),
            lambda: storage.delete_experiment("x"),
        ],
    }
    for key, calls in ways.items():
        good = data.get(key, hutch.MISSING)
        data[key] = value
        for call in calls:
            with pytest.raises(hutch.CorruptValueError, match=f"{key!r} of 'dotevals' is not what hutch writes"):
                call()
        assert data[key] == value
        if good is hutch.MISSING:
            del data[key]
        else:
            data[key] = good
    assert storage.completed_items("x", "e") == [1]


def test_an_item_is_a_number(storage: Storage) -> None:
    begun(storage)
    for item_id in ("1", 1.0, None):
        with pytest.raises(TypeError):
            storage.add_results("x", "e", [dataclasses.replace(record(1), item_id=item_id)])
    assert storage.get_results("x", "e") == []


def test_errors_are_removed_for_those_items_alone(storage: Storage) -> None:
    for experiment in ("x", "y"):
        begun(storage, experiment)
        storage.add_results(
            experiment, "e", [record(1, "E: a"), record(11, "E: b"), record(2), record(1), record(1, "E: c")]
        )
    storage.remove_error_result("x", "e", 2)
    storage.remove_error_result("x", "e", 1)
    assert [(found.item_id, found.error) for found in storage.get_results("x", "e")] == [
        (11, "E: b"),
        (2, None),
        (1, None),
    ]
    storage.remove_error_results_batch("x", "e", [11, 12, 2])
    assert storage.completed_items("x", "e") == [2, 1]
    assert len(storage.get_results("x", "e")) == 2
    assert len(storage.get_results("y", "e")) == 5


def test_resuming_reads_no_value(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    begun(storage).add_results("x", "e", [record(1), record(2, "E: a")])
    monkeypatch.setattr(hutch.Namespace, "scan", None)
    assert storage.completed_items("x", "e") == [1]
    storage.remove_error_result("x", "e", 2)
    monkeypatch.undo()
    assert len(storage.get_results("x", "e")) == 1


def test_results_are_in_their_order_though_the_clock_is_set_back(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun(storage)
    for number, seconds in enumerate([5e9, 1e9, 3e9]):
        monkeypatch.setattr("time.time", lambda seconds=seconds: seconds)
        storage.add_results("x", "e", [record(number, timestamp=seconds)])
    # As with a coarse clock.
    monkeypatch.setattr("time.monotonic_ns", lambda: 10**18)
    for number in range(3, 40):
        storage.add_results("x", "e", [record(number)])
    assert storage.completed_items("x", "e") == list(range(40))


# --- metrics ---


@metric  # type: ignore[untyped-decorator]  # dotevals has no types for mypy
def worst() -> Any:
    def value(scores: list[bool]) -> float:
        return float(min(scores))

    return value


@metric  # type: ignore[untyped-decorator]
def above(limit: float) -> Any:
    return lambda scores: float(sum(score > limit for score in scores))


def harmless(scores: list[bool]) -> float:
    raise AssertionError("what is stored must not call this")


@pytest.fixture
def forgotten() -> Iterator[Any]:
    """Make this process like one that added no results."""
    yield metrics._used.clear
    metrics._used.clear()


def scored(*metrics: Any, value: Any = 3) -> Record:
    return record(1, scores=[Score("exact", value, list(metrics))])


def metrics_of(storage: Storage, name: str = "e") -> list[Any]:
    return [found for result in storage.get_results("x", name) for score in result.scores for found in score.metrics]


def test_a_metric_of_the_evaluation_is_read_back(storage: Storage, forgotten: Any) -> None:
    made = [accuracy(), worst(), above(2), harmless]
    begun(storage).add_results("x", "e", [scored(*made)])
    assert metrics_of(storage) == made
    forgotten()
    found = metrics_of(storage)
    assert [one.__name__ for one in found] == ["accuracy", "worst", "above", "harmless"]
    assert found[0] is known_metrics["accuracy"]
    assert found[1]([3, 2]) == 2.0


def test_a_metric_that_is_not_known_here_is_nan_and_says_what_to_do(storage: Storage, forgotten: Any) -> None:
    begun(storage).add_results("x", "e", [scored(above(2), harmless)])
    forgotten()
    with pytest.warns(RuntimeWarning, match="is not known here, so its value is nan; set dotevals") as caught:
        summary = EvaluationSummary(storage.get_results("x", "e")).summary
    assert len(caught) == 2
    assert math.isnan(summary["exact"]["above"])
    assert math.isnan(summary["exact"]["harmless"])


def test_a_metric_becomes_known_with_the_first_score_that_has_it(storage: Storage, forgotten: Any) -> None:
    begun(storage).add_results("x", "e", [scored(above(2))])
    forgotten()
    before = storage.get_results("x", "e")
    storage.add_results("x", "e", [scored(above(2), value=1)])
    assert EvaluationSummary(before).summary == {"exact": {"above": 1.0}}
    assert EvaluationSummary(storage.get_results("x", "e")).summary == {"exact": {"above": 1.0}}


def test_what_dotevals_knows_as_a_metric_is_one(
    storage: Storage, forgotten: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun(storage).add_results("x", "e", [scored(harmless, above(2))])
    forgotten()
    monkeypatch.setitem(known_metrics, "harmless", harmless)
    monkeypatch.setitem(known_metrics, "above", above(2))
    assert metrics_of(storage) == [harmless, known_metrics["above"]]


def test_a_metric_by_the_name_of_another_is_not_taken_for_it(storage: Storage, forgotten: Any) -> None:
    @metric  # type: ignore[untyped-decorator]
    def accuracy() -> Any:
        return lambda scores: 42.0

    begun(storage).add_results("x", "e", [scored(accuracy())])
    forgotten()
    [found] = metrics_of(storage)
    assert found is not known_metrics["accuracy"]
    with pytest.warns(RuntimeWarning, match="metric 'accuracy' is not known here"):
        assert math.isnan(found([True]))


@pytest.mark.parametrize(
    "stored", ["os:abort", "os:getpid", "builtins:exec", "antigravity:x", ":exec", "no such:x", ""]
)
def test_what_is_stored_calls_and_imports_nothing_but_metrics(stored: str, forgotten: Any) -> None:
    storage = begun(get_storage("hutch://memory://"))
    storage.add_results("x", "e", [scored(accuracy())])
    [key] = [key for key in storage._data if key.startswith("result/")]
    value = storage._data[key]
    value["scores"][0]["metrics"] = [stored]
    storage._data[key] = value
    forgotten()
    [found] = metrics_of(storage)
    with pytest.warns(RuntimeWarning, match="is not known here"):
        assert math.isnan(found(["import antigravity"]))
    assert "antigravity" not in sys.modules


def test_results_read_here_can_be_added_there(storage: Storage, forgotten: Any, tmp_path: Path) -> None:
    begun(storage).add_results("x", "e", [scored(above(2), worst(), harmless)])
    forgotten()
    storage.create_evaluation("x", evaluation("copy"))
    storage.add_results("x", "copy", storage.get_results("x", "e"))
    stored = [value["scores"][0]["metrics"] for _, value in storage._data.scan("result/")]
    module = __name__
    assert stored == [[f"{module}:above(...)", f"{module}:worst", f"{module}:harmless"]] * 2
    other = begun(JSONStorage(str(tmp_path)))
    other.add_results("x", "e", storage.get_results("x", "e"))


# --- interrupted, and at the same time ---


class Killed(BaseException):
    pass


class Mortal:
    """A namespace whose process dies before the n-th change."""

    def __init__(self, data: hutch.Namespace, changes: int) -> None:
        self._data, self._left = data, changes

    def __getattr__(self, name: str) -> Any:
        if name in ("compare_and_set", "remove_many", "set_many", "modify", "__setitem__"):
            if self._left == 0:
                raise Killed
            self._left -= 1
        return getattr(self._data, name)


def settled(storage: Storage) -> dict[str, list[int]]:
    """Return the experiments and results, after any interrupted change was finished."""
    names = storage.list_experiments()
    assert len(set(names)) == len(names)
    found = {name: storage.completed_items(name, "e") for name in names}
    records = [record for _, record in storage._data.scan(EXPERIMENTS)]
    assert sorted(record["name"] for record in records) == sorted(names)
    assert all(record.keys() == {"id", "name", "moves"} for record in records), records
    ids = {record["id"] for record in records}
    assert len(ids) == len(records)
    assert {key.split("/")[1] for key in storage._data if not key.startswith(EXPERIMENTS)} <= ids
    return found


@pytest.mark.parametrize("looker", ["list", "old", "new", "again"])
def test_a_rename_that_was_killed_has_happened_or_has_not(looker: str) -> None:
    outcomes = []
    for steps in itertools.count():
        close_shared()
        storage = begun(get_storage("hutch://memory://"), "old")
        storage.add_results("old", "e", [record(7)])
        data = storage._data
        storage._data = Mortal(data, steps)
        try:
            storage.rename_experiment("old", "new")
            is_done = True
        except Killed:
            is_done = False
        storage._data = data
        if looker == "old":
            storage.create_experiment("old")
        elif looker == "new":
            storage.create_experiment("new")
        elif looker == "again":
            try:
                storage.rename_experiment("old", "new")
            except (ExperimentNotFoundError, ExperimentExistsError):
                assert storage.list_experiments() == ["new"]
        found = settled(storage)
        assert [7] in found.values()
        assert sorted(items for items in found.values() if items) == [[7]]
        outcomes.append(found["new"] == [7] if "new" in found else False)
        if is_done:
            break
    assert steps == 4
    assert outcomes == sorted(outcomes)
    assert outcomes[-1]


def announced(storage: Storage, old: str, new: str) -> None:
    """Leave a rename whose process was killed right after its announcement."""
    data = storage._data
    storage._data = Mortal(data, 1)
    with pytest.raises(Killed):
        storage.rename_experiment(old, new)
    storage._data = data


def test_of_two_renames_that_were_killed_one_happens() -> None:
    storage = begun(get_storage("hutch://memory://"), "old")
    storage.add_results("old", "e", [record(7)])
    announced(storage, "old", "a")
    announced(storage, "old", "b")
    assert list(settled(storage).values()) == [[7]]


def test_what_was_deleted_does_not_come_back_by_a_rename_that_was_killed() -> None:
    storage = begun(get_storage("hutch://memory://"), "old")
    announced(storage, "old", "new")
    storage.delete_experiment("old")
    assert settled(storage) == {}
    assert keys(storage) == []


class Late:
    """A namespace whose thread is delayed before its n-th change, while others act."""

    def __init__(self, data: hutch.Namespace, changes: int, meanwhile: Callable[[], object]) -> None:
        self._data, self._left, self._meanwhile = data, changes, meanwhile

    def __getattr__(self, name: str) -> Any:
        if name == "compare_and_set":
            if self._left == 0:
                self._meanwhile()
            self._left -= 1
        return getattr(self._data, name)


@pytest.mark.parametrize("steps", range(3))
@pytest.mark.parametrize("others", ["end it", "end it and rename back", "end it and begin anew", "delete"])
def test_who_is_late_to_end_a_rename_changes_nothing(steps: int, others: str) -> None:
    storage = begun(get_storage("hutch://memory://"), "old")
    storage.add_results("old", "e", [record(7)])
    announced(storage, "old", "new")
    fast, late = get_storage("hutch://memory://"), get_storage("hutch://memory://")
    expected: dict[str, list[int]] = {}

    def meanwhile() -> None:
        fast.list_experiments()
        if others == "end it and rename back":
            fast.rename_experiment("new", "old")
        elif others == "end it and begin anew":
            begun(fast, "old").add_results("old", "e", [record(8)])
        elif others == "delete":
            fast.delete_experiment("new")
        expected.update(settled(fast))

    late._data = Late(late._data, steps, meanwhile)
    late.list_experiments()
    assert expected or others == "delete"
    assert settled(fast) == expected


@pytest.mark.parametrize("looker", ["list", "create", "again"])
def test_a_deletion_that_was_killed_is_brought_to_its_end(looker: str) -> None:
    for steps in itertools.count():
        close_shared()
        storage = begun(begun(get_storage("hutch://memory://"), "other"), "gone")
        for name in ("gone", "other"):
            storage.add_results(name, "e", [record(7)])
        data = storage._data
        storage._data = Mortal(data, steps)
        try:
            storage.delete_experiment("gone")
            is_done = True
        except Killed:
            is_done = False
        storage._data = data
        if looker == "create":
            storage.create_experiment("gone")
        elif looker == "again":
            try:
                storage.delete_experiment("gone")
            except ExperimentNotFoundError:
                assert steps > 0
        expected: dict[str, list[int]] = {"other": [7]}
        if looker == "create":
            expected["gone"] = []
        if steps == 0 and looker != "again":
            expected["gone"] = [7]
        assert settled(storage) == expected
        if is_done:
            break
    assert steps == 4


def test_threads_that_rename_and_delete_leave_everything_in_order(url: str) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    names = ["a", "b", "c", "d"]
    failures: list[BaseException] = []

    def work(number: int) -> None:
        choose = random.Random(seed + number)
        mine = get_storage(f"hutch://{url}")
        try:
            for turn in range(25):
                what, name, other = choose.randrange(6), choose.choice(names), choose.choice(names)
                try:
                    if what < 3:
                        mine.rename_experiment(name, other)
                    elif what == 3:
                        mine.delete_experiment(name)
                    elif what == 4:
                        mine.list_experiments()
                    else:
                        begun(mine, name).add_results(name, "e", [record(number * 1000 + turn)])
                except (ExperimentNotFoundError, ExperimentExistsError, EvaluationNotFoundError):
                    pass
        except BaseException as error:
            failures.append(error)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not failures, failures
    storage = get_storage(f"hutch://{url}")
    listed = storage.list_experiments()
    records = [record for _, record in storage._data.scan(EXPERIMENTS)]
    assert sorted(listed) == sorted({record["name"] for record in records})
    assert len({record["id"] for record in records}) == len(records)
    assert all(len(record) == 3 for record in records), records


def test_threads_add_results_at_once(storage: Storage) -> None:
    begun(storage)

    def work(thread: int) -> None:
        for number in range(20):
            storage.add_results("x", "e", [record(thread * 100 + number)])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(5)]
    for worker in threads:
        worker.start()
    for worker in threads:
        worker.join()
    found = storage.completed_items("x", "e")
    assert sorted(found) == [thread * 100 + number for thread in range(5) for number in range(20)]
    for thread in range(5):
        mine = [item for item in found if item // 100 == thread]
        assert mine == sorted(mine)


ADDING = """
import sys
from dotevals.results import Record
from dotevals.storage import get_storage
url, first = sys.argv[1], int(sys.argv[2])
storage = get_storage(f"hutch://{url}")
for number in range(first, first + 25):
    storage.add_results("x", "e", [Record(number, {}, None, None, [])])
"""


def test_processes_add_results_at_once(lasting_url: str, tmp_path: Path) -> None:
    storage = begun(get_storage(f"hutch://{lasting_url}"))
    threads = [
        threading.Thread(target=run, args=(ADDING, lasting_url, str(first)), kwargs={"folder": tmp_path})
        for first in (0, 100)
    ]
    for thread in threads:
        thread.start()
    for number in range(200, 225):
        storage.add_results("x", "e", [record(number)])
    for thread in threads:
        thread.join()
    expected = [*range(25), *range(100, 125), *range(200, 225)]
    assert sorted(storage.completed_items("x", "e")) == expected


def _add(url: str, number: int) -> None:
    get_storage(f"hutch://{url}").add_results("x", "e", [record(number)])
    os._exit(0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_can_add_results(lasting_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # So that only what a fork renews distinguishes their keys.
    monkeypatch.setattr("time.monotonic_ns", lambda: 10**18)
    storage = begun(get_storage(f"hutch://{lasting_url}"))
    storage.add_results("x", "e", [record(0)])
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=_add, args=(lasting_url, 1)) for _ in range(3)]
    for child in children:
        child.start()
    for child in children:
        child.join()
        assert child.exitcode == 0
        child.close()
    storage.add_results("x", "e", [record(1)])
    assert storage.completed_items("x", "e") == [0, 1, 1, 1, 1]


# --- from dotevals' own doors ---

EVALUATIONS = """
import asyncio, os, pytest
from dotevals import Result, batch, foreach
from dotevals.evaluators import evaluator, exact_match
from dotevals.metrics import metric

@metric
def worst():
    def value(scores):
        return float(min(scores))
    return value

@evaluator(metrics=[worst()])
def distance(result, expected):
    return abs(result - expected)

SUMS = [(f"{number} + 1", number + 1) for number in range(12)]
asked = []

@pytest.fixture
def answer():
    return lambda text: eval(text)

@pytest.mark.parametrize("model", ["org/small", "org/large"])
@foreach("text,expected", SUMS)
def eval_sums(text, expected, model, answer):
    asked.append(text)
    print(f"\\nasked {len(asked)}: {text}", flush=True)
    if text == os.environ.get("FAILS"):
        raise ValueError("no answer")
    return Result(exact_match(answer(text), expected), distance(answer(text), expected), prompt=text)

@foreach("text,expected", SUMS)
async def eval_later(text, expected):
    await asyncio.sleep(0)
    return exact_match(eval(text), expected)

@batch("text,expected", SUMS, batch_size=5)
def eval_batches(text, expected):
    return [exact_match(eval(one), other) for one, other in zip(text, expected)]
"""
SMALL, LARGE = "eval_sums[None-None-org/small]", "eval_sums[None-None-org/large]"
PYTEST = """
import sys
import pytest
sys.exit(pytest.main(["-p", "no:cacheprovider", "-q", "-s", *sys.argv[1:]]))
"""


@pytest.fixture
def evaluations(tmp_path: Path) -> Path:
    folder = tmp_path / "evaluations"
    folder.mkdir()
    (folder / "eval_sums.py").write_text(EVALUATIONS, encoding="utf-8")
    return folder


def test_pytest_stores_all_and_a_run_that_was_killed_is_resumed(lasting_url: str, evaluations: Path) -> None:
    named = ["--storage", f"hutch://{lasting_url}", "--experiment", "nightly", "eval_sums.py", "-k", "small or large"]
    # Twelve of the first evaluation, and seven of the second.
    run_until("asked 19: 6 + 1", PYTEST, *named, folder=evaluations, FAILS="3 + 1")
    storage = get_storage(f"hutch://{lasting_url}")
    assert storage.completed_items("nightly", SMALL) == [0, 1, 2, *range(4, 12)]
    # All results before the seventh were stored when the seventh was asked for.
    done = storage.completed_items("nightly", LARGE)
    assert done[:5] == [0, 1, 2, 4, 5]
    assert any(found.error == "ValueError: no answer" for found in storage.get_results("nightly", LARGE))
    close_shared()

    message = run(PYTEST, *named, folder=evaluations)
    assert any(line.endswith(f"{SMALL}: Resuming from 11 completed samples") for line in message), message
    assert any(line.endswith(f"{LARGE}: Resuming from {len(done)} completed samples") for line in message), message
    asked = [line.partition(": ")[2] for line in message if line.startswith("asked")]
    assert asked == ["3 + 1", *(f"{number} + 1" for number in range(12) if number not in done)]
    storage = get_storage(f"hutch://{lasting_url}")
    for name in (SMALL, LARGE):
        results = storage.get_results("nightly", name)
        assert sorted(found.item_id for found in results) == list(range(12))
        assert not any(found.error for found in results)
        loaded = storage.load_evaluation("nightly", name)
        assert loaded is not None
        assert loaded.status == EvaluationStatus.COMPLETED


@pytest.mark.parametrize("url", ["lmdb", "sqlite"], indirect=True)
def test_workers_of_xdist_share_one_storage(url: str, evaluations: Path) -> None:
    scheme, rest = url.split("://")
    message = run(
        PYTEST, "--storage", f"{scheme}://{rest}", "--experiment", "many", "eval_sums.py", "-n", "2", folder=evaluations
    )
    assert any("4 passed" in line for line in message), message
    storage = get_storage(f"hutch://{url}")
    names = [SMALL, LARGE, "eval_later[None-None]", "eval_batches[None-None]"]
    assert sorted(storage.list_evaluations("many")) == sorted(names)
    for name in names:
        assert sorted(storage.completed_items("many", name)) == list(range(12))


def output_of(*arguments: str) -> str:
    done = CliRunner().invoke(cli, arguments, env={"COLUMNS": "200"}, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_the_command_lists_shows_renames_and_deletes(url: str, forgotten: Any) -> None:
    named = ("--storage", f"hutch://{url}")
    assert "No experiments found" in output_of("list", *named)
    storage = begun(get_storage(f"hutch://{url}"), "nightly", "eval[org/a]")
    storage.add_results("nightly", "eval[org/a]", [record(0), record(1, "ValueError: no"), scored(worst())])
    begun(storage, "20240229_120000_abcdef01")
    forgotten()
    message = output_of("list", *named)
    assert "nightly" in message
    assert "20240229_120000_abcdef01" in message
    message = output_of("show", "nightly", "--evaluation", "eval[org/a]", "--errors", *named)
    assert "accuracy" in message
    assert "worst" in message
    assert "ValueError: 1 occurrence" in message
    full = output_of("show", "nightly", "--full", *named)
    assert '"question": "what is 1?"' in full
    assert "renamed to 'weekly'" in output_of("rename", "nightly", "weekly", *named)
    assert "not found" in output_of("rename", "nightly", "other", *named)
    assert "already exists" in output_of("rename", "weekly", "20240229_120000_abcdef01", *named)
    assert "Deleted" in output_of("delete", "weekly", *named)
    assert "not found" in output_of("delete", "weekly", *named)
    assert storage.list_experiments() == ["20240229_120000_abcdef01"]


def test_the_command_shows_what_a_metric_of_another_module_made(url: str) -> None:
    storage = begun(get_storage(f"hutch://{url}"))
    module = types.ModuleType("elsewhere")
    exec(
        "from dotevals.metrics import metric\n@metric\ndef best():\n    def value(s): return max(s)\n    return value",
        vars(module),
    )
    storage.add_results("x", "e", [scored(module.best())])
    metrics._used.clear()
    with pytest.warns(RuntimeWarning, match="import elsewhere, or set"):
        assert "nan" in output_of("show", "x", "--storage", f"hutch://{url}")
    sys.modules["elsewhere"] = module
    try:
        assert "3.00" in output_of("show", "x", "--storage", f"hutch://{url}")
    finally:
        del sys.modules["elsewhere"]


# --- in and out ---


def test_dotevals_own_files_come_in_and_go_out_as_they_were(url: str, tmp_path: Path) -> None:
    theirs = begun(begun(JSONStorage(str(tmp_path / "in")), "a", "e[org/b]"), "team/c")
    theirs.add_results("a", "e[org/b]", [record(2), record(0, "E: a"), record(1)])
    theirs.update_evaluation_status("a", "e[org/b]", EvaluationStatus.COMPLETED)
    theirs.add_results("team/c", "e", [record(5)])
    close_shared()
    ours = get_storage(f"hutch://{url}")
    for _, key, value in dotevals_json.read(tmp_path / "in"):
        ours._data[key] = value
    out = JSONStorage(str(tmp_path / "out"))
    assert sorted(ours.list_experiments()) == ["a", "team/c"]
    with hutch.connect("memory://") as copied:
        transfer.copy_items(dotevals_json.read(tmp_path / "in"), copied)
        dotevals_json.write(copied, tmp_path / "out")
    for experiment, name in (("a", "e[org/b]"), ("team/c", "e")):
        for storage in (ours, out):
            assert storage.get_results(experiment, name) == theirs.get_results(experiment, name)
            assert storage.load_evaluation(experiment, name) == theirs.load_evaluation(experiment, name)
    assert ours.completed_items("a", "e[org/b]") == [2, 1]
    # Results added now come after the existing ones.
    ours.remove_error_result("a", "e[org/b]", 0)
    ours.add_results("a", "e[org/b]", [record(0)])
    assert ours.completed_items("a", "e[org/b]") == [2, 1, 0]


def test_a_rename_under_way_is_exported_by_the_name_that_holds(tmp_path: Path) -> None:
    for steps in range(5):
        close_shared()
        storage = begun(get_storage("hutch://memory://"), "old")
        storage.add_results("old", "e", [record(7)])
        data = storage._data
        storage._data = Mortal(data, steps)
        with contextlib.suppress(Killed):
            storage.rename_experiment("old", "new")
        with hutch.connect("memory://") as copied:
            transfer.copy_items(((NAMESPACE, key, value) for key, value in data.items()), copied)
            dotevals_json.write(copied, tmp_path / str(steps))
        exported = JSONStorage(str(tmp_path / str(steps)))
        assert exported.list_experiments() == (["old"] if steps < 2 else ["new"])
        assert exported.completed_items(exported.list_experiments()[0], "e") == [7]


# --- urls, names, and what is missing ---


def test_storages_of_one_url_share_a_connection_and_nothing_has_to_be_closed(url: str) -> None:
    one, other = HutchStorage(url), get_storage(f"hutch://{url}")
    begun(one)
    assert other.list_evaluations("x") == ["e"]
    assert one._data is other._data is shared_namespace(url, NAMESPACE)


def test_an_engines_own_scheme_leads_to_the_same_store(lasting_url: str) -> None:
    begun(get_storage(f"hutch://{lasting_url}"), "here")
    assert get_storage(lasting_url).list_experiments() == ["here"]


def test_the_schemes_are_entry_points_and_come_from_the_descriptors() -> None:
    found = {one.name: one for one in entry_points(group="dotevals.storage") if one.value.startswith("hutch.")}
    assert found.pop("hutch").load() is HutchStorage
    assert found.pop("json").load() is bare_names.json_storage
    assert set(found) == {"lmdb", "sqlite", "redis", "rediss", "valkey", "valkeys"}
    described = {scheme for plugin in hutch.find_plugins().plugins for scheme in plugin.schemes}
    for name, entry_point in found.items():
        assert name in described
        storage = entry_point.load()
        assert storage is entry_point.load()
        assert issubclass(storage, Storage)
        assert storage.scheme == name
    with pytest.raises(AttributeError, match="no plugin has this URL scheme"):
        EntryPoint("lmbd", f"{schemes.__name__}:lmbd", "dotevals.storage").load()


def test_without_a_url_it_is_the_default_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUTCH_STORAGE", f"lmdb://{tmp_path.as_posix()}/default")
    begun(get_storage("hutch://"), "here")
    assert HutchStorage().list_experiments() == ["here"]
    assert HutchStorage(f"lmdb://{tmp_path.as_posix()}/default").list_experiments() == ["here"]


def test_a_url_that_leads_nowhere_is_hutchs_error(tmp_path: Path) -> None:
    with pytest.raises(hutch.PluginNotFoundError, match="Did you mean 'lmdb'"):
        get_storage("hutch://lmbd:///x")
    with pytest.raises(hutch.ConfigError, match="durabilty"):
        get_storage(f"lmdb://{tmp_path.as_posix()}/x?durabilty=strict")


OTHERS = """
class TheirStorage:
    def __init__(self, path): self.path = path
"""
ASKING = """
import sys
sys.path.insert(0 if sys.argv[2] == "before" else len(sys.path), sys.argv[1])
from dotevals.storage import get_storage
for scheme in ("sqlite", "lmdb"):
    found = get_storage(scheme + "://results.db")
    print(type(found).__module__, getattr(found, "path", ""))
"""


@pytest.mark.parametrize("place", ["before", "behind"])
def test_a_scheme_that_another_package_has_is_left_to_it(tmp_path: Path, place: str) -> None:
    installed = tmp_path / "site"
    (installed / "their_storage-1.0.dist-info").mkdir(parents=True)
    (installed / "their_storage.py").write_text(OTHERS)
    (installed / "their_storage-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: their-storage\n")
    (installed / "their_storage-1.0.dist-info" / "entry_points.txt").write_text(
        "[dotevals.storage]\nsqlite = their_storage:TheirStorage\n"
    )
    message = run(ASKING, str(installed), place, folder=tmp_path)
    assert message == ["their_storage results.db", "hutch.bridges.dotevals.schemes "]


def test_without_dotevals_the_error_says_what_to_install(tmp_path: Path) -> None:
    code = """
import sys
sys.modules["dotevals"] = None
import hutch, hutch.bridges, hutch.bridges.dotevals.json_files
try:
    from hutch.bridges.dotevals import HutchStorage
except ImportError as error:
    print(error)
    print(type(error.__cause__).__name__)
"""
    message, cause = run(code, folder=tmp_path)
    assert "pip install 'dotevals>=0.28,<0.29'" in message
    assert cause == "ModuleNotFoundError"


def test_who_uses_another_storage_loads_no_engine(tmp_path: Path) -> None:
    code = """
import sys
from dotevals.storage import get_storage
get_storage()
print([name for name in ("lmdb", "sqlite3", "redis", "ormsgpack", "hutch.store") if name in sys.modules])
"""
    assert run(code, folder=tmp_path) == ["[]"]


def test_the_page_about_it_can_be_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pages.run(ROOT / "docs" / "bridges" / "dotevals.md", tmp_path, monkeypatch)


@pytest.mark.parametrize("name", ["hutch", "lmdb", "sqlite"])
def test_a_name_without_a_url_is_an_error_with_both_spellings_and_no_folder_of_json(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"write hutch:// .*json://./{name}"):
        get_storage(name)
    assert not list(tmp_path.iterdir())
    begun(get_storage(f"json://./{name}"))
    assert (tmp_path / name).is_dir()
    assert get_storage(name).list_experiments() == ["x"]  # its results go on
    assert get_storage(".other").list_experiments() == []


def test_pytest_with_a_name_in_place_of_a_url_says_what_to_write(tmp_path: Path) -> None:
    (tmp_path / "eval_one.py").write_text(
        "from dotevals import Result, foreach\nfrom dotevals.evaluators import exact_match\n\n\n"
        "@foreach('a', [('1',)])\ndef eval_one(a):\n    return Result(exact_match(a, a), prompt=a)\n"
    )
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--experiment", "e", "eval_one.py"]
    wrong = subprocess.run([*command, "--storage", "hutch"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert wrong.returncode != 0
    assert "write hutch:// (its default store)" in wrong.stdout + wrong.stderr
    assert not (tmp_path / "hutch").exists()
    environment = {**os.environ, "HUTCH_STORAGE": f"lmdb://{tmp_path}/evals"}
    right = [*command, "--storage", "hutch://"]
    done = subprocess.run(right, cwd=tmp_path, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout
    assert get_storage(f"lmdb://{tmp_path}/evals").list_experiments() == ["e"]
