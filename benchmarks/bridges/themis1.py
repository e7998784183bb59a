"""Measure Themis 1.4 on its own file storage and on hutch, with an evaluation's and a resumption's calls.

The file storage flushes every record to the disk, so lmdb runs with ``durability=strict``, which does too. Its files
are left uncompressed, the faster of its two modes.
"""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable
from pathlib import Path

import themis
from themis.backends.storage import StorageBackend
from themis.core import entities
from themis.interfaces import StatelessTaskExecutor
from themis.storage import ExperimentStorage, StorageConfig, task_cache_key

from hutch.bridges.connections import close_shared
from hutch.bridges.themis1 import HutchStorageBackend

from .side_by_side import Work, compare

_Open = Callable[[Path], StorageBackend]

_YARDSTICK = "ExperimentStorage (files)"
_CONFIG = {"metrics": ["exact_match"], "extractor": "identity"}
_TEMPLATE = "Answer with one word.\n" + "An example, and what is to be answered. " * 20 + "{question}"


class Echo(StatelessTaskExecutor):  # type: ignore[misc]  # Themis is not installed where mypy runs
    """A model that takes no time."""

    def execute(self, task: entities.GenerationTask) -> entities.GenerationRecord:
        return _answered(task)


def _answered(task: entities.GenerationTask) -> entities.GenerationRecord:
    output = entities.ModelOutput(text=f"{task.metadata['dataset_id']} " * 50, usage={"total_tokens": 70})
    return entities.GenerationRecord(task=task, output=output, error=None, metrics={"latency_ms": 1.5})


def _record(number: int) -> entities.GenerationRecord:
    question = f"What is {number}?"
    spec = entities.PromptSpec(name="plain", template=_TEMPLATE)
    prompt = entities.PromptRender(spec, _TEMPLATE.format(question=question), {"question": question})
    sampling, model = entities.SamplingConfig(), entities.ModelSpec("m", "echo")
    reference = entities.Reference("answer", str(number))
    record = _answered(entities.GenerationTask(prompt, model, sampling, {"dataset_id": str(number)}, reference))
    record.attempts = [entities.GenerationRecord(record.task, record.output, None, dict(record.metrics))]
    return record


def _evaluation(number: int) -> entities.EvaluationRecord:
    scores = [entities.MetricScore(name, 0.5, metadata={"evaluation_time_ms": 0.01}) for name in ("a", "b")]
    return entities.EvaluationRecord(str(number), scores)


def _theirs(folder: Path) -> StorageBackend:
    return ExperimentStorage(folder / "theirs", StorageConfig(compression="none"))


def _ours(engine: str, options: str = "") -> _Open:
    return lambda folder: HutchStorageBackend(f"{engine}://{(folder / 'ours').as_posix()}{options}")


def _append(storage: StorageBackend, count: int) -> None:
    storage.start_run("run", experiment_id="default", config={})
    for number in range(count):
        record = _record(number)
        storage.append_generation_record("run", record, cache_key=task_cache_key(record.task))
        storage.append_evaluation_record("run", record, _evaluation(number), evaluation_config=_CONFIG)


def appending(open_storage: _Open, count: int) -> Work:
    """Return work that appends `count` records and their evaluations one by one, as `evaluate` stores them."""

    def work(folder: Path) -> float:
        storage = open_storage(folder)
        gc.collect()
        before = time.perf_counter()
        _append(storage, count)
        seconds = time.perf_counter() - before
        assert len(storage.load_cached_records("run")) == count
        assert list(storage.load_cached_evaluations("run").values())[-1] == _evaluation(count - 1)
        close_shared()
        return seconds

    return work


def loading(open_storage: _Open, count: int) -> Work:
    """Return work that loads what `evaluate` loads to resume a run of `count` records."""

    def work(folder: Path) -> float:
        storage = open_storage(folder)
        _append(storage, count)
        gc.collect()
        before = time.perf_counter()
        for _ in range(5):
            records = storage.load_cached_records("run")
            evaluations = storage.load_cached_evaluations("run")
        seconds = (time.perf_counter() - before) / 5
        assert len(records) == len(evaluations) == count
        assert records[task_cache_key(_record(7).task)].task == _record(7).task
        close_shared()
        return seconds

    return work


def evaluating(open_storage: _Open, count: int) -> Work:
    """Return work that does a whole run of `themis.evaluate`, with a model that takes no time."""
    themis.register_provider("echo", Echo)
    data = [{"id": str(number), "question": str(number), "answer": str(number)} for number in range(count)]

    def work(folder: Path) -> float:
        storage = open_storage(folder)
        gc.collect()
        before = time.perf_counter()
        themis.evaluate(data, model="echo:m", prompt=_TEMPLATE, run_id="run", workers=1, storage_backend=storage)
        seconds = time.perf_counter() - before
        assert len(storage.load_cached_records("run")) == count
        close_shared()
        return seconds

    return work


def main() -> None:
    """Measure everything, in about half a minute."""
    logging.disable(logging.CRITICAL)
    strict = _ours("lmdb", "?durability=strict")
    compare(
        "Themis 1.4", "append 200 records and their evaluations, lmdb (strict)", _YARDSTICK,
        appending(strict, 200), appending(_theirs, 200), limit=1.0,
    )  # fmt: skip
    compare(
        "Themis 1.4", "append 200 records and their evaluations, sqlite (strict)", _YARDSTICK,
        appending(_ours("sqlite", "?durability=strict"), 200), appending(_theirs, 200), limit=0.75,
    )  # fmt: skip
    compare(
        "Themis 1.4", "resume: load 200 records and evaluations, lmdb", _YARDSTICK,
        loading(strict, 200), loading(_theirs, 200), limit=0.2,
    )  # fmt: skip
    compare(
        "Themis 1.4", "evaluate 100 cases, lmdb (strict)", _YARDSTICK,
        evaluating(strict, 100), evaluating(_theirs, 100), limit=1.0, rounds=5,
    )  # fmt: skip


if __name__ == "__main__":
    main()
