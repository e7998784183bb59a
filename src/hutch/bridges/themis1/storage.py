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
from themis.exceptions import StorageError
from themis.storage import RunStatus, evaluation_cache_key, task_cache_key

import hutch

from ..builtin_types import to_builtin_types
from ..connections import shared_namespace
from ..names import in_key
from .records import (
    evaluation_from_plain,
    evaluation_to_plain,
    now,
    record_from_plain,
    record_to_plain,
    report_from_plain,
    report_to_plain,
    run_metadata,
)

T = TypeVar("T")

log = logging.getLogger(__name__)

# The number of rows of a dataset or a report per value.
_CHUNK_ROWS = 256

# Longer names of runs are hashed: a key takes 1,024 bytes.
_LONGEST_RUN_BYTES = 512

_counter = itertools.count()

_newest_ns = 0


class HutchStorageBackend(StorageBackend):  # type: ignore[misc]  # Themis is not installed where mypy runs
    """Runs, records, datasets and reports of Themis in one namespace of a hutch store.

    `url` is a storage URL, or the path of a config file, optionally prefixed with ``hutch://``; None selects the
    default of `hutch.connect`. `namespace` separates users of one store, as a folder does for Themis's own. With
    `save_raw_responses`, a provider's whole response (`ModelOutput.raw`) is stored too, unlike in Themis's own storage;
    a response that cannot be stored is omitted, with a warning in the log.

    Every call is atomic. When it returns, its data is stored as durably as the engine is configured; a dataset or a
    report appears as a whole. Any thread may use it, and each process may have its own; it can be pickled. Raises what
    `hutch.connect` raises; each method raises `hutch.StoreError` where the storage fails, ValueTypeError for a value
    that cannot be stored exactly. `close` does nothing: the connection is shared.
    """

    def __init__(self, url: str | None = None, *, namespace: str = "themis1", save_raw_responses: bool = True) -> None:
        self._named = url, namespace
        self._data = shared_namespace(url, namespace)
        self._save_raw = save_raw_responses

    def __repr__(self) -> str:
        return f"<HutchStorageBackend in {self._data!r}>"

    def __reduce__(self) -> tuple[Any, ...]:
        url, namespace = self._named
        return partial(type(self), url, namespace=namespace, save_raw_responses=self._save_raw), ()

    # --- runs ---

    def start_run(self, run_id: str, experiment_id: str = "default", config: dict[str, Any] | None = None) -> None:
        """Record that `run_id` is in progress.

        Raises themis StorageError if the run exists, unless it is in progress with the same config: then another
        process has just started it, and they share it.
        """
        started = run_metadata(run_id, {"experiment_id": experiment_id, "config_snapshot": config or {}})
        key = _run_key(run_id)
        while not self._data.compare_and_set(key, hutch.MISSING, started):
            found = self._data.get(key)
            if found is None:  # deleted meanwhile
                continue
            same = ("status", "experiment_id", "config_snapshot")
            if any(found.get(name) != started[name] for name in same):
                raise StorageError(f"Run {run_id!r} already exists")
            return

    def save_run_metadata(self, run_id: str, metadata: dict[str, Any]) -> None:
        """Replace the metadata of `run_id`; missing fields get the defaults of Themis's RunMetadata."""
        self._data[_run_key(run_id)] = run_metadata(run_id, metadata)

    def load_run_metadata(self, run_id: str) -> dict[str, Any]:
        """Return the metadata of `run_id`. Raises FileNotFoundError if it is missing."""
        try:
            found: dict[str, Any] = self._data[_run_key(run_id)]
        except KeyError as error:
            raise _no_run(run_id) from error
        return found

    def complete_run(self, run_id: str) -> None:
        """Record that `run_id` is completed. Raises FileNotFoundError if it was never started."""
        self._change(run_id, status=RunStatus.COMPLETED.value, completed_at=now())

    def fail_run(self, run_id: str, error_message: str) -> None:
        """Record that `run_id` failed, and why. Raises FileNotFoundError if it was never started."""
        self._change(run_id, status=RunStatus.FAILED.value, error_message=str(error_message))

    def list_run_ids(self) -> list[str]:
        """Return the runs that were started and not deleted, the newest first."""
        runs = [metadata for _, metadata in self._data.scan(prefix="run/")]
        runs.sort(key=lambda metadata: str(metadata["created_at"]), reverse=True)
        return [metadata["run_id"] for metadata in runs]

    def run_exists(self, run_id: str) -> bool:
        """Return whether `run_id` was started and not deleted."""
        return _run_key(run_id) in self._data

    run_metadata_exists = run_exists  # Themis's own storage has both names

    def delete_run(self, run_id: str) -> None:
        """Remove everything stored for `run_id`, atomically. Raises FileNotFoundError if there is nothing."""
        run = _name_of(run_id)
        keys = [key for kind in ("gen", "eval", "data", "report") for key in self._data.scan_keys(f"{kind}/{run}/")]
        # The run's own key last, for engines without atomic batches: an interrupted deletion can be repeated.
        keys += [f"data/{run}", f"report/{run}", f"run/{run}"]
        if not self._data.remove_many(keys):
            raise _no_run(run_id)

    def get_run_path(self, run_id: str) -> None:
        """Return None: there is no folder, and Themis writes no files beside the store."""

    # --- generations and evaluations ---

    def save_generation_record(self, run_id: str, record: entities.GenerationRecord) -> None:
        """Call `append_generation_record` with the record's own cache key."""
        self.append_generation_record(run_id, record)

    def append_generation_record(
        self, run_id: str, record: entities.GenerationRecord, *, cache_key: str | None = None
    ) -> None:
        """Append `record` with all its attempts; on resuming, the last record of a cache key counts."""
        key, cache_key = _next_key("gen", run_id), cache_key or task_cache_key(record.task)
        self._store(lambda raw: {key: {"cache_key": cache_key, "record": record_to_plain(record, raw)}})

    def load_generation_records(self, run_id: str) -> list[entities.GenerationRecord]:
        """Return every record of `run_id` in the order they were appended; an empty list if there is no such run."""
        return [record for _, record in self._load_records("gen", run_id, "record", record_from_plain)]

    def load_cached_records(self, run_id: str) -> dict[str, entities.GenerationRecord]:
        """Return the last record of each cache key; an empty dict if there is no such run."""
        return dict(self._load_records("gen", run_id, "record", record_from_plain))

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
        """Append the evaluation of `generation_record` under `evaluation_config`; the last one of its key counts."""
        key, cache_key = _next_key("eval", run_id), evaluation_cache_key(generation_record.task, evaluation_config)
        self._store(lambda raw: {key: {"cache_key": cache_key, "evaluation": evaluation_to_plain(evaluation_record)}})

    def load_evaluation_records(self, run_id: str) -> dict[str, entities.EvaluationRecord]:
        """Return the last evaluation of each cache key."""
        return dict(self._load_records("eval", run_id, "evaluation", evaluation_from_plain))

    def load_cached_evaluations(
        self, run_id: str, evaluation_config: dict[str, Any] | None = None
    ) -> dict[str, entities.EvaluationRecord]:
        """Return `load_evaluation_records(run_id)`: cache keys distinguish configs, as in Themis's own storage."""
        return self.load_evaluation_records(run_id)

    # --- datasets and reports ---

    def cache_dataset(self, run_id: str, dataset: Iterable[dict[str, Any]]) -> None:
        """Replace the dataset of `run_id`."""
        samples = list(dataset)
        self._store_rows("data", run_id, {}, lambda raw: samples)

    def load_dataset(self, run_id: str) -> list[dict[str, Any]] | None:
        """Return the dataset of `run_id`; None if none was stored."""
        found = self._load_rows("data", run_id)
        return found and found[1]

    def save_report(self, run_id: str, report: entities.ExperimentReport) -> None:
        """Replace the report of `run_id`. `evaluate` itself never stores one."""
        head, rows = report_to_plain(report)
        self._store_rows("report", run_id, head, rows)

    def load_report(self, run_id: str) -> entities.ExperimentReport | None:
        """Return the report of `run_id`; None if none was stored."""
        found = self._load_rows("report", run_id)
        return found and self._build(f"report/{_name_of(run_id)}", lambda: report_from_plain(*found))

    # --- inside ---

    def _change(self, run_id: str, **changes: Any) -> None:
        changes["updated_at"] = now()
        try:
            self._data.modify(_run_key(run_id), lambda metadata: {**metadata, **changes})
        except KeyError as error:
            raise _no_run(run_id) from error

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

    def _load_records(self, kind: str, run_id: str, name: str, build: Callable[[Any], T]) -> Iterator[tuple[str, T]]:
        for key, value in self._data.scan(prefix=f"{kind}/{_name_of(run_id)}/"):
            yield self._build(key, lambda: (value["cache_key"], build(value[name])))  # noqa: B023 - called at once

    def _copy_in(
        self, kind: str, run_id: str, name: str, entries: dict[str, T], out: Callable[[T, bool], dict[str, Any]]
    ) -> None:
        """Store `entries` before everything appended, under keys that are the same each time."""
        place, numbered = f"{kind}/{_name_of(run_id)}", list(enumerate(entries.items()))
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
        place = f"{kind}/{_name_of(run_id)}"
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
        found, now = list(self._data.scan_keys(f"{place}/")), self._data.get(place)
        self._data.remove_many(key for key in found if not now or not key.startswith(f"{place}/{now['part']}/"))

    def _load_rows(self, kind: str, run_id: str) -> tuple[dict[str, Any], list[Any]] | None:
        place = f"{kind}/{_name_of(run_id)}"
        head = self._data.get(place)
        while head is not None:
            keys = self._build(place, partial(_chunk_keys, place, head))
            found = self._data.get_many(keys)
            if len(found) == len(keys):
                return head, [row for chunk in found.values() for row in chunk]
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


def _name_of(run_id: str) -> str:
    """Return `run_id` as a part of a key; the metadata holds the id itself."""
    return in_key(run_id, _LONGEST_RUN_BYTES)


def _run_key(run_id: str) -> str:
    return f"run/{_name_of(run_id)}"


def _next_key(kind: str, run_id: str) -> str:
    """Return a unique key; keys sort in the order they were made, by clock and then by counter."""
    global _newest_ns  # noqa: PLW0603
    _newest_ns = now_ns = max(time.time_ns(), _newest_ns)  # the clock may be set back
    return f"{kind}/{_name_of(run_id)}/{now_ns:016x}-{next(_counter):08x}-{os.urandom(4).hex()}"


def _chunk_keys(place: str, head: dict[str, Any]) -> list[str]:
    return [f"{place}/{head['part']}/{at:012}" for at in range(0, head["rows"], _CHUNK_ROWS)]


def _no_run(run_id: str) -> FileNotFoundError:
    return FileNotFoundError(f"Run not found: {run_id!r}")
