"""Measure Themis 4 on hutch beside its own SQLite store: ``python -m benchmarks.bridges.themis``.

Each runs an experiment of 160 cases, from compiling to its result and its report. Themis's store takes a minute or two
for it and so runs only once. Growth with the number of cases is measured by the time that Themis spends in the store:
its own work at the end of a run grows with their square.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from themis import Experiment
from themis.core.config import EvaluationConfig, GenerationConfig, StorageConfig
from themis.core.models import Case, Dataset
from themis.core.store import RunStore
from themis.core.stores import sqlite_store

from hutch.bridges.connections import close_shared
from hutch.bridges.themis import HutchRunStore

from .side_by_side import compare

CASES = 160
MANY = 8


def main() -> None:
    yardstick = _once(theirs)
    # The first flushes the disk 1,443 times, which dominates where a flush is slow or the processor fast.
    for engine in ("lmdb", "lmdb relaxed", "sqlite"):
        compare(
            "Themis 4",
            f"a run of {CASES} cases on {engine}",
            "its SQLite store",
            on_hutch(engine, CASES, whole),
            yardstick,
            limit=0.02,
            rounds=3,
        )
    for engine in ("lmdb", "sqlite"):
        compare(
            "Themis 4",
            f"the store's part of a run of {MANY * CASES:,} cases on {engine}",
            f"{MANY} times its own {CASES} cases",
            on_hutch(engine, MANY * CASES, within),
            lambda folder, engine=engine: MANY * on_hutch(engine, CASES, within)(folder),  # type: ignore[misc]
            limit=1.3,
            rounds=5,
        )


def on_hutch(engine: str, cases: int, measured: Callable[[RunStore, int], float]) -> Callable[[Path], float]:
    def work(folder: Path) -> float:
        try:
            return measured(HutchRunStore(_url(engine, folder)), cases)
        finally:
            close_shared()

    return work


def _url(engine: str, folder: Path) -> str:
    scheme, _, durability = engine.partition(" ")
    return f"{scheme}://{(folder / 'store').as_posix()}" + (f"?durability={durability}" if durability else "")


def theirs(folder: Path) -> float:
    return whole(sqlite_store(folder / "store.sqlite3"), CASES)


def whole(store: RunStore, cases: int) -> float:
    """Return the seconds of the whole run, and of reading its result."""
    begun = time.perf_counter()
    run(store, cases)
    return time.perf_counter() - begun


def within(store: RunStore, cases: int) -> float:
    """Return the seconds of the run that were spent in the store."""
    timed = Timed(store)
    run(timed, cases)
    return timed.seconds


def run(store: RunStore, cases: int) -> None:
    experiment = Experiment(
        generation=GenerationConfig(generator="builtin/demo_generator", reducer="builtin/majority_vote"),
        evaluation=EvaluationConfig(metrics=["builtin/exact_match"], parsers=["builtin/json_identity"]),
        storage=StorageConfig(store="memory"),
        datasets=[
            Dataset(
                dataset_id="sums",
                cases=[
                    Case(case_id=f"case-{n}", input={"question": f"{n}+{n}"}, expected_output={"answer": str(2 * n)})
                    for n in range(cases)
                ],
            )
        ],
        seeds=[7],
    )
    store.initialize()
    result = experiment.run(store=store)
    report = store.get_projection(result.run_id, "benchmark_result")
    assert result.progress.completed_cases == len(report["score_rows"]) == cases
    assert len(store.query_events(result.run_id)) == 4 * cases + 2
    assert store.load_blob(next(iter(result.cases[-1].generated_candidate_blob_refs.values()))) is not None


class Timed:
    """A store, and the seconds spent in it."""

    def __init__(self, store: RunStore) -> None:
        self.seconds = 0.0
        for name in RunStore.__dict__:
            if name.startswith("_"):
                continue
            setattr(self, name, self._timed(getattr(store, name)))

    def _timed(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            begun = time.perf_counter()
            try:
                return method(*arguments)
            finally:
                self.seconds += time.perf_counter() - begun

        return call


def _once(work: Callable[[Path], float]) -> Callable[[Path], float]:
    """Return `work` that runs only the first time, and then returns the same seconds again."""
    seconds: list[float] = []

    def first(folder: Path) -> float:
        if not seconds:
            seconds.append(work(folder))
        return seconds[0]

    return first


if __name__ == "__main__":
    main()
