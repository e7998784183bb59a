"""dotevals' results: the bridge beside dotevals' own JSON storage. Run as ``python -m benchmarks.bridges.dotevals``.

Results are added one by one, as dotevals' executors do. Its JSON storage never flushes: what it wrote survives a killed
process, not a power cut. lmdb with ``durability=relaxed`` and sqlite with its default promise at least that, and are
measured beside it as it is. Where hutch flushes every result, the JSON storage has to do the same.
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

from hutch.bridges.shared import close_shared

from .side_by_side import compare

_EXPERIMENT, _EVALUATION = "bench", "eval_math[None-None]"
_METRIC = metrics["accuracy"]


def _record(item: int) -> Record:
    """As long as a grade-school problem with its reasoning, one shot, and two scores."""
    total = item + item % 7
    question = f"A farmer has {item} sheep and buys {item % 7} more. " + "The barn is far from the house. " * 4
    reasoning = f"The farmer had {item} sheep. After buying {item % 7}, the sum of both is {total}. " * 3
    scores = [
        Score(name, item % 3 > 0, [_METRIC], {"result": str(total), "expected": str(total)})
        for name in ("exact_match", "numeric_match")
    ]
    row = {"question": question, "reasoning": reasoning, "answer": str(total)}
    prompt = f"Q: {question}\nA: {reasoning}#### {total}\n\nQ: {question}\nA:"
    return Record(item, row, prompt, f"{reasoning}#### {total}", scores)


def _hutch(scheme: str, options: str, folder: Path) -> Storage:
    return get_storage(f"hutch://{scheme}://{(folder / 'store').as_posix()}{options}")


def _json(folder: Path) -> Storage:
    return get_storage(f"json://{folder / 'store'}")


class _Flushed(JSONStorage):  # type: ignore[misc]  # dotevals has no types for mypy
    """The JSON storage with every result on the disk when `add_results` returns."""

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
    """The seconds that it took to add `records`."""
    storage.create_experiment(_EXPERIMENT)
    evaluation = EvaluationMetadata(_EVALUATION, EvaluationStatus.RUNNING, started_at=time.time())
    storage.create_evaluation(_EXPERIMENT, evaluation)
    start = time.perf_counter()
    for record in records:
        storage.add_results(_EXPERIMENT, _EVALUATION, [record])
    return time.perf_counter() - start


def _adding(made: Callable[[Path], Storage], count: int, folder: Path) -> float:
    records = [_record(item) for item in range(count)]
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
    lmdb = partial(_hutch, "lmdb", "?durability=relaxed")
    sqlite = partial(_hutch, "sqlite", "")
    for count in (500, 2_000):
        for name, made, limit in (("lmdb, relaxed", lmdb, 0.5), ("sqlite", sqlite, 2.0)):
            adding = f"add_results of {count:,} results one by one, {name}"
            compare(
                "dotevals",
                adding,
                "JSON storage",
                partial(_adding, made, count),
                partial(_adding, _json, count),
                limit=limit,
            )
    for name, made in (
        ("lmdb", partial(_hutch, "lmdb", "")),
        ("lmdb, strict", partial(_hutch, "lmdb", "?durability=strict")),
        ("sqlite, strict", partial(_hutch, "sqlite", "?durability=strict")),
    ):
        adding = f"add_results of 500 results one by one, {name}"
        compare(
            "dotevals",
            adding,
            "JSON storage, flushed",
            partial(_adding, made, 500),
            partial(_adding, _flushed, 500),
            limit=2.0,
            rounds=5,
        )
    for method, told in (("get_results", "load"), ("completed_items", "find the completed of")):
        compare(
            "dotevals",
            f"{told} 2,000 results, lmdb",
            "JSON storage",
            partial(_reading, lmdb, 2_000, method),
            partial(_reading, _json, 2_000, method),
            limit=0.5,
        )


if __name__ == "__main__":
    main()
