"""Measure the dotevals bridge beside dotevals' JSON storage: ``python -m benchmarks.bridges.dotevals``.

Results are added one by one, as dotevals' executors do. Its JSON storage never flushes: its data survives a killed
process, but not a power cut. lmdb with ``durability=relaxed`` and sqlite by default guarantee at least that, and are
measured beside the unchanged JSON storage. Where hutch flushes every result, the JSON storage must too.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from dotevals.metrics import registry as metrics
from dotevals.results import EvaluationMetadata, EvaluationStatus, Record, Score
from dotevals.storage import Storage, get_storage
from dotevals.storage.json import JSONStorage

from hutch.bridges.connections import close_shared

from .side_by_side import compare

_EXPERIMENT, _EVALUATION = "bench", "eval_math[None-None]"
_METRIC = metrics["accuracy"]


def _record(item: int, shots: int = 0) -> Record:
    """Return a question and its answer; each shot before it adds 400 characters."""
    total = item + item % 7
    question = f"A farmer has {item} sheep and buys {item % 7} more. How many sheep does the farmer have in the end?"
    shot = f"Q: {question}\nA: The farmer had {item} sheep. ".ljust(400, ".")
    scores = [Score("exact_match", item % 3 > 0, [_METRIC], {"result": str(item), "expected": str(total)})]
    row = {"question": question, "answer": str(total)}
    return Record(item, row, shot * shots + question, f"The farmer has {total} sheep.", scores)


def _hutch(scheme: str, options: str, folder: Path) -> Storage:
    return get_storage(f"hutch://{scheme}://{(folder / 'store').as_posix()}{options}")


def _json(folder: Path) -> Storage:
    return get_storage(f"json://{folder / 'store'}")


class _Flushed(JSONStorage):  # type: ignore[misc]  # dotevals has no types for mypy
    """The JSON storage, with every result flushed to the disk when `add_results` returns."""

    def add_results(self, experiment_name: str, evaluation_name: str, results: list[Record]) -> None:
        super().add_results(experiment_name, evaluation_name, results)
        file = os.open(self.root_dir / experiment_name / f"{evaluation_name}.jsonl", os.O_WRONLY)
        try:
            os.fsync(file)
        finally:
            os.close(file)


def _flushed(folder: Path) -> Storage:
    return _Flushed(str(folder / "store"))


def _filled(storage: Storage, records: list[Record]) -> float:
    """Add `records` and return the seconds taken."""
    storage.create_experiment(_EXPERIMENT)
    evaluation = EvaluationMetadata(_EVALUATION, EvaluationStatus.RUNNING, started_at=time.time())
    storage.create_evaluation(_EXPERIMENT, evaluation)
    start = time.perf_counter()
    for record in records:
        storage.add_results(_EXPERIMENT, _EVALUATION, [record])
    return time.perf_counter() - start


def _adding(made: Callable[[Path], Storage], count: int, folder: Path, shots: int = 0) -> float:
    records = [_record(item, shots) for item in range(count)]
    storage = made(folder)
    taken_s = _filled(storage, records)
    assert storage.get_results(_EXPERIMENT, _EVALUATION) == records
    assert storage.completed_items(_EXPERIMENT, _EVALUATION) == list(range(count))
    close_shared()
    return taken_s


def _reading(made: Callable[[Path], Storage], count: int, method: str, folder: Path) -> float:
    records = [_record(item) for item in range(count)]
    _filled(made(folder), records)
    close_shared()
    storage = made(folder)
    start = time.perf_counter()
    found = getattr(storage, method)(_EXPERIMENT, _EVALUATION)
    taken_s = time.perf_counter() - start
    assert len(found) == count
    close_shared()
    return taken_s


def main() -> None:
    relaxed = partial(_hutch, "lmdb", "?durability=relaxed")
    sqlite = partial(_hutch, "sqlite", "")

    def adding(message: str, ours: Callable[[Path], Storage], count: int, limit: float, shots: int = 0) -> None:
        operation = f"add_results of {count:,} results one by one, {message}"
        both = (partial(_adding, made, count, shots=shots) for made in (ours, _json))
        compare("dotevals", operation, "JSON storage", *both, limit=limit)

    adding("lmdb relaxed", relaxed, 500, 0.5)
    adding("lmdb relaxed", relaxed, 2_000, 0.5)
    adding("1.5 KB each, lmdb relaxed", relaxed, 500, 0.75, shots=3)
    adding("sqlite", sqlite, 500, 2.0)
    # One flush per result on both sides.
    for message, scheme, options in (("lmdb", "lmdb", ""), ("sqlite strict", "sqlite", "?durability=strict")):
        ours = partial(_adding, partial(_hutch, scheme, options), 200)
        operation = f"add_results of 200 results one by one, {message}"
        compare("dotevals", operation, "JSON storage, flushed", ours, partial(_adding, _flushed, 200), limit=2.0)
    for method, message, limit in (("get_results", "load", 1.0), ("completed_items", "find the completed of", 0.5)):
        both = (partial(_reading, made, 2_000, method) for made in (relaxed, _json))
        compare("dotevals", f"{message} 2,000 results, lmdb", "JSON storage", *both, limit=limit)


if __name__ == "__main__":
    main()
