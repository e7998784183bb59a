"""Test the bridge to Themis 1.4, through `themis.evaluate` with a test provider, and method by method.

The promises of the methods are those of Themis's StorageBackend and ExecutionBackend, and of its ExperimentStorage.
"""

from __future__ import annotations

import contextlib
import enum
import inspect
import itertools
import logging
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import OrderedDict, namedtuple
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
import themis
from themis.backends.execution import SequentialExecutionBackend
from themis.core import entities
from themis.evaluation.reports import EvaluationFailure, EvaluationReport, MetricAggregate
from themis.exceptions import ConfigurationError, StorageError
from themis.experiment.comparison.engine import ComparisonEngine
from themis.generation.runner import GenerationRunner
from themis.generation.strategies import RepeatedSamplingStrategy
from themis.interfaces import StatelessTaskExecutor
from themis.storage import ExperimentStorage, RetentionPolicy, RunMetadata, RunStatus, StorageConfig, task_cache_key

import hutch
from hutch.bridges.connections import close_shared, shared_namespace
from hutch.bridges.themis1 import BatchExecutor, ExecutorBackend, HutchStorageBackend, copy_runs
from hutch.bridges.themis1 import storage as themis1

from ..pages import run as run_page
from .processes import run, run_until

PAGE = Path(__file__).parents[2] / "docs" / "bridges" / "themis1.md"
DATA = [{"id": str(number), "question": f"what is {number} + 1", "answer": str(number + 1)} for number in range(12)]


class Adder(StatelessTaskExecutor):  # type: ignore[misc]  # Themis is not installed where mypy runs
    """A model that counts how often it is asked, and whose answers are right."""

    asked: ClassVar[list[str]] = []

    def execute(self, task: entities.GenerationTask) -> entities.GenerationRecord:
        question = task.prompt.text
        self.asked.append(question)
        answer = str(int(question.split()[2]) + 1)
        output = entities.ModelOutput(text=answer, raw={"said": (answer,)}, usage={"prompt_tokens": 3})
        return entities.GenerationRecord(task=task, output=output, error=None)


@pytest.fixture(autouse=True)
def a_model_and_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Use a folder without git: Themis makes the commit a part of its cache keys."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Adder, "asked", [])
    themis.register_provider("adder", Adder)


def evaluate(storage: object, run_id: str = "run", **options: Any) -> entities.ExperimentReport:
    options = {"dataset": DATA, "metrics": ["exact_match"], "workers": 1, **options}
    dataset = options.pop("dataset")
    return themis.evaluate(
        dataset, model="adder:m", prompt="{question}", storage_backend=storage, run_id=run_id, **options
    )


def make_record(number: int = 0, **more: Any) -> entities.GenerationRecord:
    spec = entities.PromptSpec(name="plain", template="{q}", metadata={"v": (1, 2)})
    task = entities.GenerationTask(
        prompt=entities.PromptRender(spec=spec, text=f"what is {number}", context={"q": number}, metadata={}),
        model=entities.ModelSpec("m", "adder", default_sampling=entities.SamplingConfig(0.5, 1.0, 8)),
        sampling=entities.SamplingConfig(temperature=0.0, top_p=1.0, max_tokens=8),
        metadata={"dataset_id": str(number)},
        reference=entities.Reference(kind="answer", value=number),
    )
    known: dict[str, Any] = {
        "task": task,
        "output": entities.ModelOutput(text=f"it is {number}"),
        "error": None,
        **more,
    }
    return entities.GenerationRecord(**known)


def make_evaluation(number: int = 0, value: float = 1.0) -> entities.EvaluationRecord:
    return entities.EvaluationRecord(sample_id=str(number), scores=[entities.MetricScore("ExactMatch", value)])


def double(number: int) -> int:
    return 2 * number


@pytest.fixture(scope="module")
def processes() -> Iterator[ProcessPoolExecutor]:
    """Yield a spawned process that is ready: its imports take seconds."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert pool.submit(double, 1).result() == 2
        yield pool


def raw_values(url: str) -> hutch.Namespace:
    return shared_namespace(url, "themis1")


# --- from the front door ---


def test_what_was_evaluated_is_not_generated_again(url: str) -> None:
    first = evaluate(HutchStorageBackend(url))
    assert len(Adder.asked) == len(DATA)
    assert first.metric("exact_match").mean == 1.0
    again = evaluate(HutchStorageBackend("hutch://" + url))
    assert len(Adder.asked) == len(DATA)
    assert again.metric("exact_match").mean == 1.0
    assert again.generation_results == first.generation_results
    assert again.evaluation_report.records == first.evaluation_report.records
    assert HutchStorageBackend(url).load_run_metadata("run")["status"] == "completed"


def test_only_what_is_new_is_generated_and_a_new_metric_generates_nothing(url: str) -> None:
    storage = HutchStorageBackend(url)
    evaluate(storage, dataset=DATA[:5], workers=3)
    keys = set(storage.load_cached_records("run"))
    assert len(keys) == 5
    # Every change of a run's manifest changes the keys; the dataset is part of the manifest.
    evaluate(storage, dataset=DATA, workers=3)
    assert len(Adder.asked) == 5 + len(DATA)
    assert len(storage.load_cached_records("run")) == 5 + len(DATA)
    # A run without its dataset takes the one that was stored.
    report = evaluate(storage, dataset=[], workers=3)
    assert len(Adder.asked) == 5 + len(DATA)
    assert len(report.generation_results) == len(DATA)


def test_nothing_is_written_beside_the_store(url: str, tmp_path: Path) -> None:
    before = {path for path in tmp_path.rglob("*") if "-store" not in path.name}
    evaluate(HutchStorageBackend(url))
    assert {path for path in tmp_path.rglob("*") if "-store" not in str(path)} == before


def test_an_error_of_the_model_is_stored_and_a_broken_run_is_recorded_as_failed() -> None:
    class Broken(Adder):
        def execute(self, task: entities.GenerationTask) -> entities.GenerationRecord:
            if task.metadata["dataset_id"] == "3":
                return entities.GenerationRecord(
                    task=task, output=None, error=entities.ModelError("no permission", details={"code": 403})
                )
            return super().execute(task)

    themis.register_provider("adder", Broken)
    storage = HutchStorageBackend("memory://")
    report = evaluate(storage)
    assert [failure.message for failure in report.failures] == ["no permission"]
    failed = [record for record in storage.load_generation_records("run") if record.error]
    assert [(record.output, record.error) for record in failed] == [
        (None, entities.ModelError("no permission", details={"code": 403}))
    ]
    assert [record.error for record in failed[0].attempts] == [failed[0].error]

    def on_result(record: object) -> None:
        raise OSError("full")

    with pytest.raises(OSError, match="full"):
        evaluate(storage, "broken", on_result=on_result)
    metadata = storage.load_run_metadata("broken")
    assert (metadata["status"], metadata["error_message"]) == ("failed", "full")


def test_attempts_come_back_each_with_its_own_task_and_what_they_share_is_stored_once(url: str) -> None:
    storage = HutchStorageBackend(url)
    report = evaluate(storage, num_samples=3)
    assert len(Adder.asked) == 3 * len(DATA)
    assert storage.load_generation_records("run") == report.generation_results
    record = storage.load_generation_records("run")[0]
    assert [attempt.task.metadata["attempts"] for attempt in record.attempts] == [0, 1, 2]
    assert all(attempt.task.prompt is record.task.prompt for attempt in record.attempts)
    _, stored = next(raw_values(url).scan(prefix="gen/"))
    assert [set(attempt["task"]) for attempt in stored["record"]["attempts"]] == [{"metadata"}] * 3
    assert "output" not in stored["record"]["attempts"][0]


def test_themis_compares_runs_that_are_in_hutch(url: str) -> None:
    storage = HutchStorageBackend(url)
    for run_id in ("one", "two"):
        evaluate(storage, run_id)
    compared = ComparisonEngine(storage=storage).compare_runs(["one", "two"])
    assert compared.metrics == ["ExactMatch"]
    assert compared.pairwise_results[0].delta == 0.0


def test_an_api_key_is_not_stored() -> None:
    themis.register_provider("adder", lambda **options: Adder())
    storage = HutchStorageBackend("memory://")
    report = evaluate(storage, api_key="sk-secret")
    storage.save_report("run", report)
    values = raw_values("memory://")
    assert "sk-secret" in str(report)
    assert "sk-secret" not in str(dict(values))
    assert storage.load_run_metadata("run")["config_snapshot"]["manifest_hash"] == report.metadata["manifest_hash"]


SCRIPT = """
import sys
import themis
from themis.core import entities
from themis.interfaces import StatelessTaskExecutor
from hutch.bridges.themis1 import HutchStorageBackend

class Adder(StatelessTaskExecutor):
    def execute(self, task):
        answer = str(int(task.prompt.text.split()[2]) + 1)
        return entities.GenerationRecord(task=task, output=entities.ModelOutput(text=answer), error=None)

themis.register_provider("adder", Adder)
data = [{"id": str(n), "question": f"what is {n} + 1", "answer": str(n + 1)} for n in range(12)]
report = themis.evaluate(
    data, model="adder:m", prompt="{question}", metrics=["exact_match"], workers=1, run_id="run",
    storage_backend=HutchStorageBackend(sys.argv[1]), on_result=lambda record: print("stored", flush=True),
)
print("mean", report.metric("exact_match").mean)
"""


def test_a_killed_run_resumes_where_it_stopped(lasting_url: str, tmp_path: Path) -> None:
    slow = SCRIPT.replace("import sys\n", "import sys, time\n", 1).replace(
        'print("stored"', 'time.sleep(0.2) or print("stored"'
    )
    message = run_until("stored", slow, lasting_url, folder=tmp_path)
    acknowledged = message.count("stored")
    assert 1 <= acknowledged < len(DATA)
    assert len(HutchStorageBackend(lasting_url).load_cached_records("run")) >= acknowledged
    report = evaluate(HutchStorageBackend(lasting_url))
    assert len(Adder.asked) <= len(DATA) - acknowledged
    assert len(report.generation_results) == len(DATA)
    assert report.metric("exact_match").mean == 1.0
    assert len(HutchStorageBackend(lasting_url).load_evaluation_records("run")) == len(DATA)


def test_processes_that_start_one_run_at_once_share_it(tmp_path: Path) -> None:
    url = f"lmdb://{(tmp_path / 'state').as_posix()}"
    outputs: list[list[str]] = []
    workers = [threading.Thread(target=lambda: outputs.append(run(SCRIPT, url, folder=tmp_path))) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [lines[-1] for lines in outputs] == ["mean 1.0"] * 2
    storage = HutchStorageBackend(url)
    assert storage.list_run_ids() == ["run"]
    assert len(storage.load_cached_records("run")) == len(DATA)
    evaluate(storage)
    assert Adder.asked == []


# --- records ---


def test_a_record_comes_back_equal_and_with_identical_types(url: str) -> None:
    details = {"at": datetime(2026, 1, 2, tzinfo=UTC), 3: {"a"}, "pair": (1, b"x"), "exact": 2**70, "none": None}
    record = make_record(
        output=entities.ModelOutput(text="text\n\U0001f430", raw=[details], usage={"total_tokens": 5}),
        error=entities.ModelError("but", kind="odd", details=details),
        metrics={"seconds": 0.1, **details, "n": True},
        # Equal values need not be identical: True is 1.
        attempts=[
            make_record(1, attempts=[make_record(2)]),
            make_record(output=None, metrics={"seconds": 0.1, **details, "n": 1}),
        ],
    )
    record.task.metadata["more"] = details
    record.attempts[0].task.reference = None
    storage = HutchStorageBackend(url)
    storage.save_generation_record("run", record)
    (found,) = storage.load_generation_records("run")
    assert found == record
    assert repr(found) == repr(record)
    assert storage.load_cached_records("run") == {task_cache_key(record.task): record}


@pytest.mark.parametrize("schema", [str, dict, tuple])
def test_a_reference_keeps_its_schema_where_that_is_a_type_of_python(schema: type) -> None:
    record = make_record()
    record.task.reference = entities.Reference("answer", value=("a", "b"), schema=schema)
    storage = HutchStorageBackend("memory://")
    storage.save_generation_record("run", record)
    assert storage.load_generation_records("run")[0].task.reference == record.task.reference


class Level(enum.IntEnum):
    HIGH = 3


class Name(enum.StrEnum):
    ADA = "ada"


class Measured(float):
    """A subclass of float, like numpy's float64."""


@dataclass
class Judge:
    name: str
    seen: list[int]


Pair = namedtuple("Pair", ["a", "b"])


def test_what_json_takes_for_a_plain_value_is_stored_as_one(url: str) -> None:
    record = make_record()
    details = OrderedDict(level=Level.HIGH, name=Name.ADA, judge=Judge("j", [1]), pair=Pair(1, [Measured(2)]), ok=True)
    evaluation = entities.EvaluationRecord("0", [entities.MetricScore("M", Measured(0.5), details=details)])
    storage = HutchStorageBackend(url)
    storage.append_evaluation_record("run", record, evaluation)
    (found,) = storage.load_cached_evaluations("run").values()
    plain = {"level": 3, "name": "ada", "judge": {"name": "j", "seen": [1]}, "pair": (1, [2.0]), "ok": True}
    assert repr(found.scores) == repr([entities.MetricScore("M", 0.5, details=plain)])


def test_a_raw_response_that_cannot_be_stored_is_omitted_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    class Response:
        text = "very private"

    record = make_record(output=entities.ModelOutput(text="it is", raw=Response(), usage={"n": 1}))
    record.attempts = [make_record(output=record.output)]
    storage = HutchStorageBackend("memory://")
    with caplog.at_level(logging.WARNING):
        storage.save_generation_record("run", record)
    assert "Response" in caplog.text
    assert "private" not in caplog.text
    (found,) = storage.load_generation_records("run")
    assert found.output == entities.ModelOutput(text="it is", raw=None, usage={"n": 1})
    assert found.attempts[0].output == found.output


def test_raw_responses_are_left_out_where_that_is_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    storage = HutchStorageBackend("memory://", save_raw_responses=False)
    for raw in ({"a": 1}, object()):
        storage.save_generation_record("run", make_record(output=entities.ModelOutput(text="it is", raw=raw)))
    assert [record.output.raw for record in storage.load_generation_records("run")] == [None, None]
    assert caplog.text == ""


@pytest.mark.parametrize("save_raw_responses", [True, False])
def test_any_other_value_that_cannot_be_stored_is_refused_and_named_by_its_type(save_raw_responses: bool) -> None:
    storage = HutchStorageBackend("memory://", save_raw_responses=save_raw_responses)
    with pytest.raises(hutch.ValueTypeError, match="Thread"):
        storage.save_generation_record("run", make_record(metrics={"private": threading.Thread()}))
    assert storage.load_generation_records("run") == []


def test_records_keep_their_order_and_the_last_of_a_cache_key_counts(url: str) -> None:
    storage = HutchStorageBackend(url)
    numbers = [3, 1, 2, 1]
    for at, number in enumerate(numbers):
        storage.append_generation_record("run", make_record(number, metrics={"at": at}), cache_key=f"key {number}")
        storage.save_evaluation_record("run", make_record(number), make_evaluation(number, float(at)))
    found = storage.load_generation_records("run")
    assert [record.metrics["at"] for record in found] == [0, 1, 2, 3]
    assert {key: record.metrics["at"] for key, record in storage.load_cached_records("run").items()} == {
        "key 3": 0, "key 1": 3, "key 2": 2,
    }  # fmt: skip
    assert [evaluation.scores[0].value for evaluation in storage.load_evaluation_records("run").values()] == [0, 3, 2]


@pytest.mark.parametrize("step", [0, -1])
def test_records_of_one_tick_of_the_clock_or_of_one_set_back_keep_their_order_too(
    step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time_ns", itertools.count(time.time_ns() + 10**9, step).__next__)
    monkeypatch.setattr(themis1, "_newest_ns", 0)
    storage = HutchStorageBackend("memory://")
    append_some(storage, 0)
    assert [record.output.text for record in storage.load_generation_records("run")] == [
        f"it is {n}" for n in range(20)
    ]


def test_evaluations_under_two_configs_are_two() -> None:
    storage, record = HutchStorageBackend("memory://"), make_record()
    for metric in ("a", "b"):
        config = {"metrics": [metric], "extractor": "x"}
        storage.append_evaluation_record("run", record, make_evaluation(), evaluation_config=config)
    assert len(storage.load_cached_evaluations("run", evaluation_config={"metrics": ["a"]})) == 2


def test_a_record_that_is_not_one_is_an_error_that_names_its_key(url: str) -> None:
    HutchStorageBackend(url).save_generation_record("run", make_record())
    values = raw_values(url)
    (key,) = values.scan_keys(prefix="gen/run/")
    values[key] = {"cache_key": "k", "record": {"task": {"private": 1}}}
    with pytest.raises(hutch.CorruptValueError, match=key) as caught:
        HutchStorageBackend(url).load_generation_records("run")
    assert "private" not in str(caught.value)


def append_some(storage: HutchStorageBackend, worker: int) -> None:
    for number in range(20):
        storage.save_generation_record("run", make_record(100 * worker + number))
        storage.save_evaluation_record("run", make_record(100 * worker + number), make_evaluation(number))


def test_threads_lose_nothing_of_each_others_records(url: str) -> None:
    storage = HutchStorageBackend(url)
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(append_some, [storage] * 6, range(6)))
    assert len(storage.load_generation_records("run")) == 120
    assert len(storage.load_cached_evaluations("run")) == 120


@pytest.mark.xdist_group("processes")
def test_processes_that_are_handed_the_backend_lose_nothing_either(
    lasting_url: str, processes: ProcessPoolExecutor
) -> None:
    storage = HutchStorageBackend(lasting_url)
    theirs = processes.map(append_some, [storage] * 3, range(3))
    append_some(storage, 9)
    list(theirs)
    assert len(storage.load_cached_records("run")) == 80


# --- runs, datasets, reports ---

RUN_IDS = ["run", "", "a", "a/b", "a%2Fb", "a/", "line\nbreak", "\U0001f430", "x" * 5000, "x" * 5001, "run/1", "*", "."]


def test_any_text_is_the_name_of_a_run_and_none_sees_anything_of_another(url: str) -> None:
    storage = HutchStorageBackend(url)
    for at, run_id in enumerate(RUN_IDS):
        storage.start_run(run_id, experiment_id="e", config={"at": at})
        storage.save_generation_record(run_id, make_record(at))
        storage.save_evaluation_record(run_id, make_record(at), make_evaluation(at))
        storage.cache_dataset(run_id, [{"at": at}])
    assert sorted(storage.list_run_ids()) == sorted(RUN_IDS)
    for at, run_id in enumerate(RUN_IDS):
        assert storage.load_run_metadata(run_id)["run_id"] == run_id
        assert storage.load_generation_records(run_id) == [make_record(at)]
        assert list(storage.load_evaluation_records(run_id).values()) == [make_evaluation(at)]
        assert storage.load_dataset(run_id) == [{"at": at}]
        storage.delete_run(run_id)
        assert not storage.run_exists(run_id)
        assert storage.load_generation_records(run_id) == []
        assert storage.load_dataset(run_id) is None
    assert len(raw_values(url)) == 0


def test_a_run_is_started_completed_failed_and_listed_with_the_newest_first(url: str) -> None:
    storage = HutchStorageBackend(url)
    assert not storage.run_exists("one")
    storage.start_run("one", "experiment", {"a": (1,)})
    storage.start_run("two")
    assert storage.run_exists("one")
    assert storage.run_metadata_exists("one")
    assert storage.list_run_ids() == ["two", "one"]
    metadata = storage.load_run_metadata("one")
    assert (metadata["status"], metadata["experiment_id"], metadata["completed_at"]) == (
        "in_progress",
        "experiment",
        None,
    )
    assert metadata["config_snapshot"] == {"a": (1,)}
    storage.complete_run("one")
    storage.fail_run("two", "boom")
    done, failed = storage.load_run_metadata("one"), storage.load_run_metadata("two")
    assert done["status"] == RunStatus.COMPLETED
    assert datetime.fromisoformat(done["completed_at"]).tzinfo is not None
    assert done["created_at"] == metadata["created_at"] < done["updated_at"]
    assert (failed["status"], failed["error_message"]) == ("failed", "boom")


def test_metadata_keeps_what_it_is_given_and_gets_what_it_lacks() -> None:
    storage = HutchStorageBackend("memory://")
    storage.save_run_metadata("run", {"status": RunStatus.CANCELLED, "owner": "ada", "run_id": "another"})
    found = storage.load_run_metadata("run")
    assert (found["run_id"], found["status"], found["owner"], found["total_samples"]) == ("run", "cancelled", "ada", 0)
    assert type(found["status"]) is str
    with pytest.raises(ValueError, match="tired"):
        storage.save_run_metadata("run", {"status": "tired"})


def test_a_run_is_not_started_over_another_but_joined_where_it_is_the_same() -> None:
    storage = HutchStorageBackend("memory://")
    storage.start_run("run", config={"a": 1})
    storage.start_run("run", config={"a": 1})
    with pytest.raises(StorageError, match="'run' already exists"):
        storage.start_run("run", config={"a": 2})
    storage.complete_run("run")
    with pytest.raises(StorageError, match="'run' already exists"):
        storage.start_run("run", config={"a": 1})


def test_a_missing_run_is_reported_as_themis_does(url: str) -> None:
    storage = HutchStorageBackend(url)
    for use in (storage.load_run_metadata, storage.complete_run, storage.delete_run):
        with pytest.raises(FileNotFoundError, match="'none'"):
            use("none")
    with pytest.raises(FileNotFoundError, match="'none'") as caught:
        storage.fail_run("none", "boom")
    assert isinstance(caught.value.__cause__, KeyError)
    assert storage.load_generation_records("none") == []
    assert storage.load_cached_records("none") == {}
    assert storage.load_cached_evaluations("none") == {}
    assert storage.load_dataset("none") is None
    assert storage.load_report("none") is None
    assert storage.list_run_ids() == []


@pytest.mark.parametrize("rows", [0, 1, 256, 257, 700])
def test_a_dataset_is_replaced_as_a_whole(url: str, rows: int) -> None:
    storage = HutchStorageBackend(url)
    storage.cache_dataset("run", [{"old": number} for number in range(300)])
    storage.cache_dataset("run", iter([{"id": number, "tags": {"a"}, "at": (number,)} for number in range(rows)]))
    assert storage.load_dataset("run") == [{"id": number, "tags": {"a"}, "at": (number,)} for number in range(rows)]
    assert len(list(raw_values(url).scan_keys(prefix="data/"))) == 1 + -(-rows // 256)


def test_datasets_stored_at_once_leave_one_of_them_and_nothing_of_the_others(url: str) -> None:
    storage = HutchStorageBackend(url)
    together = threading.Barrier(4)

    def store(worker: int) -> None:
        for _ in range(10):
            together.wait(30)
            storage.cache_dataset("run", [{"worker": worker}] * 300)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(store, range(4)))
    found = storage.load_dataset("run")
    assert found is not None
    assert found == [found[0]] * 300
    assert len(list(raw_values(url).scan_keys(prefix="data/"))) == 1 + 2


def test_a_dataset_that_lost_a_part_is_an_error_that_names_it(url: str) -> None:
    storage = HutchStorageBackend(url)
    storage.cache_dataset("run", [{}] * 300)
    values = raw_values(url)
    *_, last = values.scan_keys(prefix="data/run/")
    del values[last]
    with pytest.raises(hutch.CorruptValueError, match="data/run"):
        storage.load_dataset("run")


def test_a_report_comes_back_equal(url: str) -> None:
    storage = HutchStorageBackend(url)
    report = evaluate(storage)
    evaluation = report.evaluation_report
    evaluation.slices = {
        "even": {"ExactMatch": MetricAggregate("ExactMatch", 1, 0.5, [entities.MetricScore("E", 0.5)])}
    }
    evaluation.failures = [EvaluationFailure("1", "no")]
    report.failures = [entities.ExperimentFailure(None, "why")]
    for _ in range(2):
        storage.save_report("run", report)
    found = storage.load_report("run")
    assert found == report
    assert type(found.evaluation_report) is EvaluationReport
    storage.save_report("run", entities.ExperimentReport([], None, [], {"test": True}))
    assert storage.load_report("run") == entities.ExperimentReport([], None, [], {"test": True})
    assert list(raw_values(url).scan_keys(prefix="report/")) == ["report/run"]


def test_runs_of_themis_s_own_storage_are_copied_and_go_on_here(url: str, tmp_path: Path) -> None:
    theirs = ExperimentStorage(tmp_path / "cache")
    evaluate(theirs)
    evaluate(theirs, "other/run".replace("/", "-"), dataset=DATA[:3])
    theirs.start_run("empty", experiment_id="none")
    asked = len(Adder.asked)
    ours = HutchStorageBackend(url)
    for _ in range(2):  # an interrupted import is repeated
        assert copy_runs(theirs, ours) == 3
    assert sorted(ours.list_run_ids()) == ["empty", "other-run", "run"]
    assert ours.load_cached_records("run") == theirs.load_cached_records("run")
    assert len(ours.load_generation_records("run")) == len(DATA)
    assert ours.load_cached_evaluations("run") == theirs.load_cached_evaluations("run")
    assert ours.load_dataset("run") == theirs.load_dataset("run")
    assert ours.load_run_metadata("run") == theirs.load_run_metadata("run")
    evaluate(ours)
    assert len(Adder.asked) == asked


# --- connections ---


class Derived(HutchStorageBackend):
    pass


def test_what_was_stored_is_there_for_the_next_process_and_namespaces_are_apart(lasting_url: str) -> None:
    HutchStorageBackend(lasting_url).save_generation_record("run", make_record())
    HutchStorageBackend(lasting_url, namespace="other").close()
    close_shared()
    again = pickle.loads(pickle.dumps(Derived(lasting_url)))
    assert type(again) is Derived
    assert again.load_generation_records("run") == [make_record()]
    assert HutchStorageBackend(lasting_url, namespace="other").load_generation_records("run") == []


@pytest.mark.parametrize("url", ["nosuch://x", "lmdb://x?wrong=1"])
def test_a_url_that_does_not_fit_is_refused_at_once(url: str) -> None:
    with pytest.raises((hutch.ConfigError, hutch.PluginNotFoundError)):
        HutchStorageBackend(url)


def test_no_url_is_the_default_of_hutch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUTCH_STORAGE", "memory://")
    HutchStorageBackend().start_run("run")
    assert HutchStorageBackend("hutch://").list_run_ids() == ["run"]


@pytest.mark.parametrize("missing", ["themis", "themis.backends.execution", "sympy"])
def test_the_error_for_a_missing_framework_says_what_to_install(missing: str) -> None:
    code = f"import sys; sys.modules[{missing!r}] = None; import hutch.bridges; import hutch.bridges.themis1"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: hutch.bridges.themis1 needs Themis 1.4: pip install")
    assert missing in last


# --- executors ---


def divide_by(number: int) -> float:
    return 1 / number


def test_results_come_as_they_are_done() -> None:
    release = threading.Event()

    def wait_for_the_others(number: int) -> int:
        if number == 0:
            assert release.wait(30)
        return number

    with ThreadPoolExecutor(2) as pool:
        results = ExecutorBackend(pool).map(wait_for_the_others, range(5))
        assert sorted(itertools.islice(results, 4)) == [1, 2, 3, 4]
        release.set()
        assert list(results) == [0]


class Counted(Executor):
    """An executor that counts the concurrent calls; it may or may not say how many workers it has."""

    def __init__(self, workers: int, says: bool) -> None:
        self._pool = ThreadPoolExecutor(workers)
        if says:
            self._max_workers = workers  # as Python's own executors do
        self._lock = threading.Lock()
        self.running = self.most = 0

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        return self._pool.submit(self._run, fn, *args, **kwargs)

    def _run(self, fn: Any, *args: Any, **kwargs: Any) -> Any:
        with self._lock:
            self.running += 1
            self.most = max(self.most, self.running)
        time.sleep(0.01)
        with self._lock:
            self.running -= 1
        return fn(*args, **kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._pool.shutdown(wait=wait, cancel_futures=cancel_futures)


@pytest.mark.parametrize("says", [True, False])
def test_no_more_calls_run_at_once_than_are_allowed(says: bool) -> None:
    for allowed in (1, 3):
        with Counted(8, says) as pool:
            assert sorted(ExecutorBackend(pool).map(double, range(20), max_workers=allowed)) == list(range(0, 40, 2))
        assert pool.most == allowed
    with Counted(8, says) as pool:
        assert len(list(ExecutorBackend(pool).map(double, range(20)))) == 20
    assert pool.most > 3


class AtOnce(Executor):
    """An executor without workers."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


@pytest.mark.timeout(20)
def test_a_call_may_use_the_backend_that_calls_it() -> None:
    for executor in (AtOnce(), ThreadPoolExecutor(8)):
        with ExecutorBackend(executor, owned=True) as backend:
            sums = backend.map(lambda number, backend=backend: sum(backend.map(double, range(number))), range(4))
            assert sorted(sums) == [0, 0, 2, 6]


def test_items_are_taken_as_they_are_needed() -> None:
    taken = itertools.count()
    with ThreadPoolExecutor(2) as pool:
        results = ExecutorBackend(pool).map(double, taken)
        for _ in range(10):
            next(results)
        del results  # abandoned
    assert 10 <= next(taken) <= 10 + 4


@pytest.mark.parametrize("workers", [0, -1])
def test_a_number_of_workers_that_cannot_be_is_refused(workers: int) -> None:
    with ThreadPoolExecutor(1) as pool, pytest.raises(ConfigurationError, match="max_workers"):
        list(ExecutorBackend(pool).map(double, [1], max_workers=workers))


def test_what_a_call_raises_is_raised_and_calls_that_have_not_started_are_cancelled() -> None:
    begun = []

    def fail(number: int) -> None:
        begun.append(number)
        raise ValueError(f"number {number}")

    with ThreadPoolExecutor(1) as pool:
        with pytest.raises(ValueError, match="number 0"):
            list(ExecutorBackend(pool).map(fail, range(100)))
        # The executor belongs to the caller, and continues.
        assert list(ExecutorBackend(pool).map(double, [4])) == [8]
    assert len(begun) <= 2


def test_what_was_begun_is_yielded_before_the_items_error_is_raised() -> None:
    def items() -> Iterator[int]:
        yield from range(3)
        raise OSError("disk")

    with ThreadPoolExecutor(2) as pool:
        results = ExecutorBackend(pool).map(double, items())
        assert sorted(itertools.islice(results, 3)) == [0, 2, 4]
        with pytest.raises(OSError, match="disk"):
            next(results)


def test_a_call_that_takes_too_long_is_reported() -> None:
    release = threading.Event()
    with ThreadPoolExecutor(2) as pool:
        results = ExecutorBackend(pool).map(lambda number: number or release.wait(30), range(4), timeout=0.3)
        with pytest.raises(TimeoutError, match=r"0\.3 s"):
            list(results)
        release.set()
    with ThreadPoolExecutor(1) as pool:
        # The time limit excludes the wait for a worker.
        slow = ExecutorBackend(pool).map(lambda number: time.sleep(0.4), range(3), timeout=0.7)
        assert len(list(slow)) == 3


def test_shutdown_waits_for_what_runs_and_ends_only_what_it_owns() -> None:
    begun, release = threading.Event(), threading.Event()

    def work(number: int) -> int:
        begun.set()
        assert release.wait(30)
        return number

    def consume() -> None:
        with pytest.raises((CancelledError, RuntimeError)):
            list(results)

    pool = ThreadPoolExecutor(1)
    with ExecutorBackend(pool) as backend:
        results = backend.map(work, range(5))
        consumer = threading.Thread(target=consume)
        consumer.start()
        assert begun.wait(30)
        threading.Timer(0.1, release.set).start()
    consumer.join()
    assert release.is_set()
    with pytest.raises(RuntimeError, match="shut down"):
        list(backend.map(double, [1]))
    assert pool.submit(double, 1).result() == 2
    with ExecutorBackend(pool, owned=True) as backend:
        assert list(backend.map(double, [1])) == [2]
    with pytest.raises(RuntimeError):
        pool.submit(double, 1)


def test_an_object_that_is_not_an_executor_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="not int"):
        ExecutorBackend(4)


def test_evaluate_runs_on_threads_of_an_executor_and_resumes(url: str) -> None:
    storage = HutchStorageBackend(url)
    with ThreadPoolExecutor(3) as pool:
        backend = ExecutorBackend(pool)
        report = evaluate(storage, workers=3, num_samples=2, execution_backend=backend)
        assert len(report.generation_results) == len(DATA)
        assert len(Adder.asked) == 2 * len(DATA)
        evaluate(storage, workers=3, num_samples=2, execution_backend=backend)
    assert len(Adder.asked) == 2 * len(DATA)


def twice(task: entities.GenerationTask) -> RepeatedSamplingStrategy:
    return RepeatedSamplingStrategy(attempts=2)


@pytest.mark.xdist_group("processes")
def test_a_runner_whose_functions_have_names_runs_in_processes(processes: ProcessPoolExecutor) -> None:
    backend = ExecutorBackend(processes)
    runner = GenerationRunner(executor=Adder(), strategy_resolver=twice, execution_backend=backend, max_parallel=2)
    tasks = [make_record(number).task for number in range(5)]
    for number, task in enumerate(tasks):
        task.prompt = entities.PromptRender(spec=task.prompt.spec, text=f"what is {number} + 1")
    records = list(runner.run(iter(tasks)))
    assert sorted(record.output.text for record in records) == ["1", "2", "3", "4", "5"]
    assert all(len(record.attempts) == 2 for record in records)
    assert Adder.asked == []
    # It was sent along with the runner as one of Themis's own, because a worker may have no hutch.
    assert type(pickle.loads(pickle.dumps(backend))) is SequentialExecutionBackend


class Locked:
    def __init__(self) -> None:
        self.secret = {"lock": threading.Lock()}

    def work(self, number: int) -> int:
        return number


def test_the_error_for_an_object_that_cannot_be_sent_says_what_to_do() -> None:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        backend = ExecutorBackend(pool)
        cases: list[tuple[Any, str]] = [
            (lambda number: number, r"<lambda>.* cannot be sent to a worker"),
            (Locked().work, r"Locked\.work .*attribute secret: a dict, an item: a _thread\.lock cannot be pickled"),
            (partial(print, threading.Lock()), r"an argument: a tuple, an item: a _thread\.lock cannot be pickled"),
        ]
        for function, message in cases:
            with pytest.raises(ConfigurationError, match=message) as caught:
                list(backend.map(function, [1]))
            assert "ThreadPoolExecutor" in str(caught.value)
            assert caught.value.__cause__ is not None
        with pytest.raises(ConfigurationError, match=r"_strategy_resolver: .*lambda"):
            evaluate(HutchStorageBackend("memory://"), execution_backend=backend)
        assert HutchStorageBackend("memory://").load_run_metadata("run")["status"] == "failed"


@pytest.mark.xdist_group("processes")
def test_an_item_that_cannot_be_sent_to_a_process_is_an_error(processes: ProcessPoolExecutor) -> None:
    backend = ExecutorBackend(processes)
    with pytest.raises(ConfigurationError, match=r"a dict .*an item: a _thread\.lock cannot be pickled"):
        list(backend.map(len, [{"private": threading.Lock()}]))
    with pytest.raises(ZeroDivisionError):
        list(backend.map(divide_by, [0]))


DASK = """
import sys, threading
import themis
from distributed import Client, LocalCluster
from themis.core import entities
from themis.exceptions import ConfigurationError
from themis.interfaces import StatelessTaskExecutor
from hutch.bridges.themis1 import storage as themis1
from hutch.bridges.themis1 import BatchExecutor, ExecutorBackend, HutchStorageBackend

class Adder(StatelessTaskExecutor):
    def execute(self, task):
        answer = str(int(task.prompt.text.split()[2]) + 1)
        return entities.GenerationRecord(task=task, output=entities.ModelOutput(text=answer), error=None)

if __name__ == "__main__":
    themis.register_provider("adder", Adder)
    data = [{"id": str(n), "question": f"what is {n} + 1", "answer": str(n + 1)} for n in range(12)]
    with LocalCluster(n_workers=1, threads_per_worker=2, dashboard_address=None) as cluster, Client(cluster) as client:
        import os
        mine = os.getpid()
        backend = ExecutorBackend(client)
        # Two calls that look the same are two.
        assert len(set(backend.map(lambda _: os.urandom(8), ["same"] * 10, max_workers=2))) == 10
        executor = ExecutorBackend(client.get_executor())
        assert mine not in set(executor.map(lambda _: os.getpid(), range(3)))
        storage = HutchStorageBackend(sys.argv[1])
        for _ in range(2):
            report = themis.evaluate(
                data, model="adder:m", prompt="{question}", metrics=["exact_match"], run_id="run", num_samples=2,
                storage_backend=storage, execution_backend=executor,
            )
            print("mean", report.metric("exact_match").mean, len(storage.load_generation_records("run")))
        # Workers need Themis alone.
        assert list(client.run(lambda: ("themis" in sys.modules, "hutch" in sys.modules)).values()) == [(True, False)]
        lock = threading.Lock()
        try:
            list(executor.map(lambda number: lock, [1]))
        except ConfigurationError as error:
            print("message", error)
        executor.shutdown()
        assert client.submit(len, "abc").result() == 3
"""


def test_evaluate_runs_on_a_dask_cluster_and_reports_what_cannot_be_sent(tmp_path: Path) -> None:
    message = run(DASK, f"lmdb://{(tmp_path / 'state').as_posix()}", folder=tmp_path)
    assert [line for line in message if line.startswith("mean")] == ["mean 1.0 12"] * 2
    (error,) = (line for line in message if line.startswith("message"))
    assert "variable lock: a _thread.lock cannot be pickled" in error


RAY = """
import os, sys, threading, time
import ray
import themis
from themis.core import entities
from themis.exceptions import ConfigurationError
from themis.interfaces import StatelessTaskExecutor
from hutch.bridges.themis1 import BatchExecutor, ExecutorBackend, HutchStorageBackend
from hutch.bridges.themis1.ray import RayExecutor

class Adder(StatelessTaskExecutor):
    def execute(self, task):
        answer = str(int(task.prompt.text.split()[2]) + 1)
        return entities.GenerationRecord(task=task, output=entities.ModelOutput(text=answer), error=None)

class Failed(Exception):
    pass

def fail(number):
    raise Failed("call %d" % number)

ray.init(
    address="local", num_cpus=1, num_gpus=1, include_dashboard=False, log_to_driver=False, _temp_dir=sys.argv[2],
    object_store_memory=100 * 2**20,
)
themis.register_provider("adder", Adder)
data = [{"id": str(n), "question": f"what is {n} + 1", "answer": str(n + 1)} for n in range(12)]
backend = ExecutorBackend(RayExecutor(num_cpus=0.5))
# Two calls that look the same are two.
assert len(set(backend.map(lambda _: os.urandom(8), ["same"] * 10))) == 10
# Workers are other processes, and need no hutch.
workers = set(backend.map(lambda _: (os.getpid(), "hutch" in sys.modules), range(3)))
assert os.getpid() not in {pid for pid, _ in workers} and not any(loaded for _, loaded in workers), workers
storage = HutchStorageBackend(sys.argv[1])
for _ in range(2):
    report = themis.evaluate(
        data, model="adder:m", prompt="{question}", metrics=["exact_match"], run_id="run", num_samples=2,
        storage_backend=storage, execution_backend=backend,
    )
    print("mean", report.metric("exact_match").mean, len(storage.load_generation_records("run")))
try:
    list(backend.map(fail, [7]))
except Failed as error:
    print("raised", type(error) is Failed, error)
lock = threading.Lock()
try:
    list(backend.map(lambda number: lock, [1]))
except ConfigurationError as error:
    print("message", error)
# One call per GPU at a time.
gpu = ExecutorBackend(RayExecutor(num_gpus=1))
spans = sorted(gpu.map(lambda _: (time.time(), time.sleep(0.05), time.time())[::2], range(4), max_workers=4))
assert all(ended <= started for (_, ended), (started, _) in zip(spans, spans[1:])), spans
backend.shutdown()
assert ray.is_initialized()

# A running call that is cancelled frees its GPU, also one that Python cannot interrupt.
def wait_long(path):
    open(path, "w").close()
    time.sleep(3600)

def started(executor, name):
    path = os.path.join(sys.argv[2], name)
    call = executor.submit(wait_long, path)
    while not os.path.exists(path):
        time.sleep(0.02)
    return call

executor = RayExecutor(num_gpus=1)
call, queued = started(executor, "first"), executor.submit(wait_long, "never")
assert queued.cancel() and call.cancel()
print("freed", executor.submit(len, "abc").result())
# shutdown waits for what runs, or cancels it; then no call is accepted.
finished = executor.submit(len, "abc")
executor.shutdown()
assert finished.done() and finished.result() == 3
try:
    executor.submit(len, "abc")
except RuntimeError as error:
    print("refused", error)
executor = RayExecutor(num_gpus=1)
call = started(executor, "second")
executor.shutdown(cancel_futures=True)
assert call.cancelled()
ray.shutdown()
"""


@pytest.fixture
def ray_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A new folder for Ray, whose sockets need a short path. Its processes end with the test, killed or not."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_raylet_start_wait_time_s", "600")  # 30 by default, too few on a busy machine
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as short:
        yield Path(short)
        for command in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):  # it may end meanwhile
                if short.encode() in command.read_bytes():
                    os.kill(int(command.parent.name), signal.SIGKILL)


@pytest.mark.timeout(900)
def test_evaluate_and_cancel_run_on_a_ray_cluster_and_what_cannot_be_sent_is_reported(
    tmp_path: Path, ray_folder: Path
) -> None:
    message = run(RAY, f"lmdb://{(tmp_path / 'state').as_posix()}", str(ray_folder), folder=tmp_path, patience_s=800)
    assert [line for line in message if line.startswith("mean")] == ["mean 1.0 12"] * 2
    assert "raised True call 7" in message
    assert "freed 3" in message
    assert "refused this RayExecutor was shut down" in message
    (error,) = (line for line in message if line.startswith("message"))
    assert "variable lock: a _thread.lock cannot be pickled" in error


# --- the surface of Themis's own storage ---


def public_methods(kind: type) -> dict[str, Any]:
    return {name: value for name, value in inspect.getmembers(kind) if not name.startswith("_")}


def test_every_public_method_of_themis_s_own_storage_is_here_and_takes_the_same_arguments() -> None:
    mine, theirs = public_methods(HutchStorageBackend), public_methods(ExperimentStorage)
    assert sorted(theirs.keys() - mine.keys()) == []
    for name, method in theirs.items():
        if callable(method):
            expected = inspect.signature(method).parameters.values()
            found = inspect.signature(mine[name]).parameters
            assert [(it.name, it.kind) for it in expected] == [(it.name, it.kind) for it in found.values()], name
            for it in expected:
                assert it.default is it.empty or it.default == found[it.name].default, (name, it.name)


def storages(url: str, tmp_path: Path) -> list[Any]:
    return [ExperimentStorage(tmp_path / "theirs"), HutchStorageBackend(url)]


def test_runs_are_listed_as_themis_lists_them(url: str, tmp_path: Path) -> None:
    listed = []
    for storage in storages(url, tmp_path):
        started = [storage.start_run(run_id, experiment) for run_id, experiment in (("1", "a"), ("2", "b"), ("3", "a"))]
        assert started[2] == storage.list_runs()[0]
        assert {type(run) for run in [*started, *storage.list_runs()]} == {RunMetadata}
        storage.complete_run("1")
        storage.update_run_progress("2", total_samples=9, failed_generations=2)
        storage.update_run_progress("2", successful_generations=0)
        selections: list[dict[str, Any]] = [
            {},
            {"experiment_id": "a"},
            {"status": RunStatus.COMPLETED},
            {"experiment_id": "b", "status": RunStatus.COMPLETED},
            {"limit": 2},
            {"limit": 0},
        ]
        listed.append(
            [
                [(run.run_id, run.status, run.total_samples, run.failed_generations) for run in storage.list_runs(**it)]
                for it in selections
            ]
        )
        with pytest.raises(FileNotFoundError):
            storage.update_run_progress("none", total_samples=1)
    assert listed[0] == listed[1]


def test_a_run_that_is_joined_is_returned_as_it_was_started() -> None:
    storage = HutchStorageBackend("memory://")
    started = storage.start_run("run", "e", {"a": 1})
    assert storage.start_run("run", "e", {"a": 1}) == started
    assert (started.run_id, started.status, started.config_snapshot) == ("run", RunStatus.IN_PROGRESS, {"a": 1})


def test_append_record_counts_and_saves_checkpoints_as_themis_does(url: str, tmp_path: Path) -> None:
    found = []
    theirs = ExperimentStorage(tmp_path / "theirs", StorageConfig(checkpoint_interval=4))
    for storage in (theirs, HutchStorageBackend(url, checkpoint_interval=4)):
        with pytest.raises(FileNotFoundError):
            storage.append_record("none", make_record())
        storage.start_run("run", "e")
        assert storage.load_latest_checkpoint("run") is None
        for number in range(3):
            storage.append_record("run", make_record(number), cache_key=str(number))
        assert storage.load_latest_checkpoint("run") is None
        storage.append_record("run", make_record(3, output=None, error=entities.ModelError("no")))
        checkpoint: Any = storage.load_latest_checkpoint("run")
        assert datetime.fromisoformat(checkpoint.pop("timestamp"))
        run = storage.load_run_metadata("run")
        counts = [run["total_samples"], run["successful_generations"], run["failed_generations"]]
        found.append((checkpoint, counts, list(storage.load_cached_records("run"))))
    assert found[0] == found[1]
    assert HutchStorageBackend(url).load_generation_records("none") == [], "nothing is stored before the error"


def count_some(storage: HutchStorageBackend, worker: int) -> None:
    for number in range(10):
        storage.append_record("run", make_record(100 * worker + number))


def test_two_processes_that_append_and_count_lose_no_count(lasting_url: str, processes: ProcessPoolExecutor) -> None:
    storage = HutchStorageBackend(lasting_url, checkpoint_interval=10)
    storage.start_run("run")
    other = processes.submit(count_some, storage, 1)
    count_some(storage, 2)
    other.result(60)
    assert storage.load_run_metadata("run")["total_samples"] == len(storage.load_cached_records("run")) == 20
    checkpoint = storage.load_latest_checkpoint("run")
    assert checkpoint is not None
    assert checkpoint["total_samples"] % 10 == 0


APPENDING = """
import sys
sys.path.insert(0, sys.argv[2])
from tests.bridges.test_themis1 import HutchStorageBackend, make_record

storage = HutchStorageBackend(sys.argv[1], checkpoint_interval=2)
storage.start_run("run")
for number in range(10_000):
    storage.append_record("run", make_record(number))
    storage.append_evaluation("run", make_record(number), __import__("themis").core.entities.EvaluationRecord(
        str(number), []), eval_id="judge")
    print("stored", flush=True)
"""


def test_kill_9_loses_no_record_that_was_appended_and_at_most_one_count(lasting_url: str, tmp_path: Path) -> None:
    message = run_until("stored", APPENDING, lasting_url, str(Path(__file__).parents[2]), folder=tmp_path)
    acknowledged = message.count("stored")
    storage = HutchStorageBackend(lasting_url)
    records = len(storage.load_cached_records("run"))
    assert acknowledged <= len(storage.load_cached_evaluations("run", "judge")) <= records
    assert records - 1 <= storage.load_run_metadata("run")["total_samples"] <= records
    storage.delete_run("run")
    assert len(raw_values(lasting_url)) == 0


def test_checkpoints_of_a_run_are_replaced_and_deleted_with_it(url: str) -> None:
    storage = HutchStorageBackend(url)
    storage.start_run("run")
    for number in range(3):
        storage.save_checkpoint("run", {"at": (number,)})
    assert storage.load_latest_checkpoint("run") == {"at": (2,)}
    assert storage.load_latest_checkpoint("other") is None
    storage.delete_run("run")
    assert storage.load_latest_checkpoint("run") is None


def test_evaluations_are_kept_apart_by_their_id_as_in_themis(url: str, tmp_path: Path) -> None:
    for storage in storages(url, tmp_path):
        storage.start_run("run", "e")
        storage.append_evaluation("run", make_record(), make_evaluation(value=0.25))
        storage.append_evaluation("run", make_record(), make_evaluation(value=0.5), eval_id="judge")
        storage.append_evaluation("run", make_record(), make_evaluation(value=0.75), eval_id="judge2")
        scores = {
            name: [it.scores[0].value for it in storage.load_cached_evaluations("run", name).values()]
            for name in ("default", "judge", "judge2", "none")
        }
        assert scores == {"default": [0.25], "judge": [0.5], "judge2": [0.75], "none": []}
        assert storage.load_cached_evaluations("run") == storage.load_evaluation_records("run")


def test_an_evaluation_of_a_run_that_does_not_exist_starts_it_as_in_themis(url: str, tmp_path: Path) -> None:
    for storage in storages(url, tmp_path):
        storage.save_evaluation_record("saved", make_record(), make_evaluation())
        storage.append_evaluation_record("appended", make_record(), make_evaluation())
        assert storage.list_run_ids() == ["appended", "saved"]


POLICIES = [
    None,
    RetentionPolicy(),
    RetentionPolicy(keep_latest_n=2),
    RetentionPolicy(keep_latest_n=0, keep_completed_only=False, max_runs_per_experiment=3),
    RetentionPolicy(keep_latest_n=1, keep_completed_only=False, max_age_days=3),
]


@pytest.mark.parametrize("policy", POLICIES)
def test_the_runs_that_a_policy_keeps_are_those_that_themis_keeps(
    url: str, tmp_path: Path, policy: RetentionPolicy | None
) -> None:
    kept = []
    for storage in storages(url, tmp_path):
        for number in range(14):
            created = (datetime.now() - timedelta(days=number / 2 + 0.1)).isoformat()
            status = "completed" if number % 3 else "failed"
            run = {"experiment_id": "ab"[number % 2], "status": status, "created_at": created, "updated_at": created}
            storage.start_run(f"run{number}", run["experiment_id"])
            storage.save_run_metadata(f"run{number}", run)
        storage.apply_retention_policy(policy)
        kept.append(storage.list_run_ids())
    assert kept[0] == kept[1]
    assert len(kept[0]) == 14 or policy is not None


def test_the_policy_of_the_storage_is_applied_and_pickled_with_it() -> None:
    policy = RetentionPolicy(keep_latest_n=1)
    storage = pickle.loads(pickle.dumps(HutchStorageBackend("memory://", retention_policy=policy)))
    for run_id in ("old", "new"):
        storage.start_run(run_id)
    storage.apply_retention_policy()
    assert storage.list_run_ids() == ["new"]


def test_the_size_of_the_storage_is_that_of_its_experiments(url: str) -> None:
    storage = HutchStorageBackend(url)
    assert storage.get_storage_size() == storage.get_storage_size("a") == 0
    storage.start_run("1", "a")
    storage.start_run("2", "b")
    before = storage.get_storage_size("a")
    storage.cache_dataset("1", [{"text": "x" * 1000}] * 300)
    storage.save_checkpoint("1", {"text": "x" * 1000})
    sizes = [storage.get_storage_size(it) for it in ("a", "b", "none", None)]
    assert sizes[0] >= before + 301_000
    assert 0 < sizes[1] < 1000
    assert sizes[2] == 0
    assert sizes[3] == sizes[0] + sizes[1]


def test_there_is_no_folder() -> None:
    storage: Any = HutchStorageBackend("memory://")
    assert storage.root is None
    assert storage.get_run_path("run") is None


# --- the page ---


def test_what_the_page_shows_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = run_page(PAGE, tmp_path, monkeypatch)
    asked = len(names["asked"])
    names["storage"] = names["theirs"]
    assert names["evaluate"]().metric("exact_match").mean == 1.0
    assert len(names["asked"]) == asked, "what the page wrote out is resumed by Themis's own storage"


# --- batches ---


def task_of(number: int) -> entities.GenerationTask:
    return entities.GenerationTask(
        prompt=entities.PromptRender(spec=entities.PromptSpec(name="p", template="{n}"), text=str(number)),
        model=entities.ModelSpec(identifier="m", provider="batch"),
        sampling=entities.SamplingConfig(temperature=0.0, top_p=1.0, max_tokens=8),
        metadata={"dataset_id": str(number)},
    )


def answers(tasks: Sequence[entities.GenerationTask]) -> list[entities.GenerationRecord]:
    return [
        entities.GenerationRecord(task=task, output=entities.ModelOutput(text=task.prompt.text), error=None)
        for task in tasks
    ]


def test_concurrent_calls_are_gathered_into_full_batches_and_each_gets_its_own_answer() -> None:
    sizes: list[int] = []

    def generate(tasks: Sequence[entities.GenerationTask]) -> list[entities.GenerationRecord]:
        sizes.append(len(tasks))
        return answers(tasks)

    model = BatchExecutor(generate, max_batch_size=4, max_wait_s=60)
    with ThreadPoolExecutor(8) as pool:
        records = list(pool.map(model.execute, map(task_of, range(16))))
    assert [record.output.text for record in records] == [str(number) for number in range(16)]
    assert sizes == [4, 4, 4, 4]


def test_a_batch_that_does_not_fill_starts_after_its_wait() -> None:
    assert BatchExecutor(answers, max_wait_s=0).execute(task_of(3)).output.text == "3"


def test_what_a_batch_raises_is_raised_for_each_of_its_tasks_and_the_next_batch_runs() -> None:
    outcomes: list[Any] = [OSError("no memory"), None, []]

    def generate(tasks: Sequence[entities.GenerationTask]) -> list[entities.GenerationRecord]:
        outcome = outcomes.pop(0)
        if isinstance(outcome, OSError):
            raise outcome
        return answers(tasks) if outcome is None else outcome

    model = BatchExecutor(generate, max_batch_size=2, max_wait_s=60)
    with ThreadPoolExecutor(2) as pool:
        failed = [pool.submit(model.execute, task_of(number)) for number in range(2)]
        assert [str(call.exception()) for call in failed] == ["no memory"] * 2
        passed = [pool.submit(model.execute, task_of(number)) for number in range(2)]
        assert [call.result().output.text for call in passed] == ["0", "1"]
        short = [pool.submit(model.execute, task_of(number)) for number in range(2)]
        for call in short:
            with pytest.raises(ConfigurationError, match="returned 0 records for 2 tasks"):
                call.result()


def test_limits_of_a_batch_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="max_batch_size must be at least 1, not 0"):
        BatchExecutor(answers, max_batch_size=0)
    with pytest.raises(ConfigurationError, match="max_wait_s must be 0 or more, not nan"):
        BatchExecutor(answers, max_wait_s=float("nan"))


def test_evaluate_runs_on_a_model_that_answers_in_batches() -> None:
    themis.register_provider("batch", lambda **_: BatchExecutor(answers, max_batch_size=4, max_wait_s=0.01))
    data = [{"id": str(n), "question": f"{n}", "answer": str(n)} for n in range(10)]
    report = themis.evaluate(
        data, model="batch:m", prompt="{question}", metrics=["exact_match"], workers=4,
        storage_backend=HutchStorageBackend("memory://"),
    )  # fmt: skip
    assert report.metric("exact_match").mean == 1.0
