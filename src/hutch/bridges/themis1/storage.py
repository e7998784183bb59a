"""Store the runs, records, datasets and reports of Themis 1.4 in hutch.

docs/bridges/themis1.md describes the layout.
"""

from __future__ import annotations

import itertools
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from themis.backends.storage import StorageBackend
from themis.core import entities
from themis.storage import RetentionPolicy, evaluation_cache_key, task_cache_key

import hutch

from ..builtin_types import to_builtin_types
from ..connections import shared_namespace
from .records import (
    evaluation_from_plain,
    evaluation_to_plain,
    record_from_plain,
    record_to_plain,
    report_from_plain,
    report_to_plain,
)
from .runs import RunStorage, evaluations_key, name_of

T = TypeVar("T")

log = logging.getLogger(__name__)

# The number of rows of a dataset or a report per value.
_CHUNK_ROWS = 256

_counter = itertools.count()

_newest_ns = 0


class HutchStorageBackend(RunStorage):
    """Runs, records, datasets and reports of Themis in one namespace of a hutch store.

    `url` is a storage URL, or the path of a config file, optionally prefixed with ``hutch://``; None selects the
    default of `hutch.connect`. `namespace` separates users of one store, as a folder does for Themis's own. With
    `save_raw_responses`, a provider's whole response (`ModelOutput.raw`) is stored too, unlike in Themis's own storage;
    a response that cannot be stored is omitted, with a warning in the log. `append_record` saves a checkpoint after
    every `checkpoint_interval` records, never if 0; `retention_policy` is what `apply_retention_policy` applies.

    Every call is atomic. When it returns, its data is stored as durably as the engine is configured; a dataset or a
    report appears as a whole. Any thread may use it, and each process may have its own; it can be pickled. Raises what
    `hutch.connect` raises; each method raises `hutch.StoreError` where the storage fails, ValueTypeError for a value
    that cannot be stored exactly. `close` does nothing: the connection is shared.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        namespace: str = "themis1",
        save_raw_responses: bool = True,
        checkpoint_interval: int = 100,
        retention_policy: RetentionPolicy | None = None,
    ) -> None:
        super().__init__(shared_namespace(url, namespace), checkpoint_interval, retention_policy)
        self._save_raw = save_raw_responses
        options = {"save_raw_responses": save_raw_responses, "checkpoint_interval": checkpoint_interval}
        self._arguments: dict[str, Any] = {
            "url": url,
            "namespace": namespace,
            "retention_policy": retention_policy,
            **options,
        }

    def __repr__(self) -> str:
        return f"<HutchStorageBackend in {self._data!r}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(type(self), **self._arguments), ()

    # --- generations and evaluations ---

    def save_generation_record(self, run_id: str, record: entities.GenerationRecord) -> None:
        """Call `append_generation_record` with the record's own cache key."""
        self.append_generation_record(run_id, record)

    def append_generation_record(
        self, run_id: str, record: entities.GenerationRecord, *, cache_key: str | None = None
    ) -> None:
        """Append `record` with all its attempts; on resuming, the last record of a cache key counts."""
        key, cache_key = _next_key(f"gen/{name_of(run_id)}"), cache_key or task_cache_key(record.task)
        self._store(lambda raw: {key: {"cache_key": cache_key, "record": record_to_plain(record, raw)}})

    def append_record(self, run_id: str, record: entities.GenerationRecord, *, cache_key: str | None = None) -> None:
        """Call `append_generation_record`, then count the record in the run's metadata.

        Saves a checkpoint of the counts after every `checkpoint_interval` records. Raises FileNotFoundError, before
        anything is stored, if the run was never started.
        """
        self.load_run_metadata(run_id)
        self.append_generation_record(run_id, record, cache_key=cache_key)
        self._count_record(run_id, record)

    def load_generation_records(self, run_id: str) -> list[entities.GenerationRecord]:
        """Return every record of `run_id` in the order they were appended; an empty list if there is no such run."""
        return [record for _, record in self._load_records(f"gen/{name_of(run_id)}", "record", record_from_plain)]

    def load_cached_records(self, run_id: str) -> dict[str, entities.GenerationRecord]:
        """Return the last record of each cache key; an empty dict if there is no such run."""
        return dict(self._load_records(f"gen/{name_of(run_id)}", "record", record_from_plain))

    def save_evaluation_record(
        self, run_id: str, generation_record: entities.GenerationRecord, record: entities.EvaluationRecord
    ) -> None:
        """Call `append_evaluation_record` without a config."""
        self.append_evaluation_record(run_id, generation_record, record)

    def append_evaluation_record(
        self,
        run_id: str,
        generation_record: entities.GenerationRecord,
        evaluation_record: entities.EvaluationRecord,
        *,
        evaluation_config: dict[str, Any] | None = None,
    ) -> None:
        """Call `append_evaluation`; a run that does not exist is started first."""
        self._start_missing_run(run_id)
        self.append_evaluation(run_id, generation_record, evaluation_record, evaluation_config=evaluation_config)

    def append_evaluation(
        self,
        run_id: str,
        record: entities.GenerationRecord,
        evaluation: entities.EvaluationRecord,
        *,
        eval_id: str = "default",
        evaluation_config: dict[str, Any] | None = None,
    ) -> None:
        """Append the evaluation of `record` to those of `eval_id`.

        The cache key is made of the record's task and `evaluation_config`; the last evaluation per cache key counts.
        """
        key = _next_key(evaluations_key(run_id, eval_id))
        cache_key = evaluation_cache_key(record.task, evaluation_config)
        self._store(lambda raw: {key: {"cache_key": cache_key, "evaluation": evaluation_to_plain(evaluation)}})

    def load_evaluation_records(self, run_id: str) -> dict[str, entities.EvaluationRecord]:
        """Return the last evaluation of each cache key, of the `eval_id` "default"."""
        return self.load_cached_evaluations(run_id)

    def load_cached_evaluations(
        self, run_id: str, eval_id: str = "default", evaluation_config: dict[str, Any] | None = None
    ) -> dict[str, entities.EvaluationRecord]:
        """Return the last evaluation of each cache key, of `eval_id`.

        `evaluation_config` selects nothing: cache keys distinguish configs, as in Themis's own storage.
        """
        return dict(self._load_records(evaluations_key(run_id, eval_id), "evaluation", evaluation_from_plain))

    # --- datasets and reports ---

    def cache_dataset(self, run_id: str, dataset: Iterable[dict[str, Any]]) -> None:
        """Replace the dataset of `run_id`."""
        samples = list(dataset)
        self._store_rows("data", run_id, {}, lambda raw: samples)

    def load_dataset(self, run_id: str) -> list[dict[str, Any]] | None:
        """Return the dataset of `run_id`; None if none was stored."""
        rows = self._load_rows("data", run_id)
        return rows and rows[1]

    def save_report(self, run_id: str, report: entities.ExperimentReport) -> None:
        """Replace the report of `run_id`. `evaluate` itself never stores one."""
        head, rows = report_to_plain(report)
        self._store_rows("report", run_id, head, rows)

    def load_report(self, run_id: str) -> entities.ExperimentReport | None:
        """Return the report of `run_id`; None if none was stored."""
        rows = self._load_rows("report", run_id)
        return rows and self._build(f"report/{name_of(run_id)}", lambda: report_from_plain(*rows))

    # --- inside ---

    def _store(self, items: Callable[[bool], dict[str, Any]]) -> None:
        """Store `items(save_raw)`, as one batch; without raw responses if they cannot be stored."""
        try:
            self._data.set_many(items(self._save_raw))
            return
        except hutch.ValueTypeError:
            pass  # a value that Themis's JSON takes must not fail here
        try:
            self._data.set_many(to_builtin_types(items(self._save_raw), dataclasses=True))
        except hutch.ValueTypeError as error:
            if not self._save_raw:
                raise
            self._data.set_many(to_builtin_types(items(False), dataclasses=True))
            log.warning("A raw response was left out because it cannot be stored: %s", error)

    def _load_records(self, place: str, name: str, build: Callable[[Any], T]) -> Iterator[tuple[str, T]]:
        for key, value in self._data.scan(prefix=f"{place}/"):
            yield self._build(key, lambda: (value["cache_key"], build(value[name])))  # noqa: B023 - called at once

    def _copy_in(
        self, kind: str, run_id: str, name: str, entries: dict[str, T], out: Callable[[T, bool], dict[str, Any]]
    ) -> None:
        """Store `entries` before everything appended, under keys that are the same each time."""
        place, numbered = f"{kind}/{name_of(run_id)}", list(enumerate(entries.items()))
        for start in range(0, len(numbered), _CHUNK_ROWS):
            batch = numbered[start : start + _CHUNK_ROWS]
            self._store(
                lambda raw: {
                    f"{place}/{at:016x}": {"cache_key": cache_key, name: out(entry, raw)}
                    for at, (cache_key, entry) in batch  # noqa: B023 - called at once
                }
            )

    def _build(self, key: str, build: Callable[[], T]) -> T:
        try:
            return build()
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise hutch.CorruptValueError(
                f"key {key!r} of namespace {self._data.namespace!r} does not hold what the bridge to Themis 1.4 stores"
            ) from error

    def _store_rows(self, kind: str, run_id: str, head: dict[str, Any], rows: Callable[[bool], list[Any]]) -> None:
        """Store a table's chunks under new keys, then its head, which names them: there is always a whole table."""
        place = f"{kind}/{name_of(run_id)}"
        part = os.urandom(8).hex()

        def chunks(raw: bool) -> dict[str, Any]:
            stored = rows(raw)
            starts = range(0, len(stored), _CHUNK_ROWS)
            return {f"{place}/{part}/{at:012}": stored[at : at + _CHUNK_ROWS] for at in starts} | {
                place: {**head, "part": part, "rows": len(stored)}
            }

        self._store(chunks)
        # Chunks that the head does not name are garbage. List them before reading the head, so that no later chunk is
        # included.
        keys, now = list(self._data.scan_keys(f"{place}/")), self._data.get(place)
        self._data.remove_many(key for key in keys if not now or not key.startswith(f"{place}/{now['part']}/"))

    def _load_rows(self, kind: str, run_id: str) -> tuple[dict[str, Any], list[Any]] | None:
        place = f"{kind}/{name_of(run_id)}"
        head = self._data.get(place)
        while head is not None:
            keys = self._build(place, partial(_chunk_keys, place, head))
            rows = self._data.get_many(keys)
            if len(rows) == len(keys):
                return head, [row for chunk in rows.values() for row in chunk]
            before, head = head, self._data.get(place)
            if head == before:
                raise hutch.CorruptValueError(f"{place!r} of namespace {self._data.namespace!r} has lost a part")
        return None  # missing, or deleted meanwhile


def copy_runs(source: StorageBackend, target: HutchStorageBackend) -> int:
    """Copy every run of Themis's own `ExperimentStorage` into `target`; return the number of runs.

    Copies metadata, dataset, generations and evaluations, so that `evaluate` resumes as before. An interrupted copy can
    be repeated: it writes the same keys, and a run is listed when it is complete. Anything appended to a run in
    `target` meanwhile stays, and counts as later.
    """
    copied = 0
    for run_id in source.list_run_ids():
        with suppress(FileNotFoundError):  # raised where none was stored
            target.cache_dataset(run_id, source.load_dataset(run_id) or ())
        target._copy_in("gen", run_id, "record", source.load_cached_records(run_id), record_to_plain)
        target._copy_in("eval", run_id, "evaluation", source.load_cached_evaluations(run_id), evaluation_to_plain)
        target.save_run_metadata(run_id, source.load_run_metadata(run_id))
        copied += 1
    return copied


def _next_key(place: str) -> str:
    """Return a unique key under `place`; keys sort in the order they were made, by clock and then by counter."""
    global _newest_ns  # noqa: PLW0603
    _newest_ns = now_ns = max(time.time_ns(), _newest_ns)  # the clock may be set back
    return f"{place}/{now_ns:016x}-{next(_counter):08x}-{os.urandom(4).hex()}"


def _chunk_keys(place: str, head: dict[str, Any]) -> list[str]:
    return [f"{place}/{head['part']}/{at:012}" for at in range(0, head["rows"], _CHUNK_ROWS)]
