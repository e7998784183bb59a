"""Themis 1.4 on hutch: a storage backend on any engine, and an execution backend over any executor.

``themis.evaluate(..., storage_backend=HutchStorageBackend("lmdb:///srv/evals"), run_id="...")``. What lies where in
the store is in docs/bridges/themis1.md. Themis 4 has another design, and a bridge of its own.
"""

from __future__ import annotations

import itertools
import logging
import os
import pickle
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures import wait as wait_for
from contextlib import suppress
from dataclasses import asdict, fields, is_dataclass
from datetime import UTC, datetime
from functools import cache, partial
from types import FunctionType, MethodType, ModuleType
from typing import Any, TypeVar

import hutch
from hutch.bridges.shared import shared_namespace
from hutch.formats.names import in_key

try:
    from themis.backends.execution import ExecutionBackend, SequentialExecutionBackend
    from themis.backends.storage import StorageBackend
    from themis.core import entities
    from themis.evaluation.reports import EvaluationFailure, EvaluationReport, MetricAggregate
    from themis.exceptions import ConfigurationError, StorageError
    from themis.storage import RunMetadata, RunStatus, evaluation_cache_key, task_cache_key
except ImportError as error:
    raise ImportError(
        'hutch.bridges.themis1 needs Themis 1.4: pip install "themis-eval>=1.4,<2" "sympy>=1.12" (Themis 1.4 imports '
        f"sympy without asking for it). What went wrong: {error}. For Themis 4 see hutch.bridges.themis",
        name=error.name,
    ) from error

log = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")

# Rows of a dataset or a report that are one value.
_CHUNK_ROWS = 256
# Longer names of runs are hashed: a key takes 1,024 bytes.
_LONGEST_RUN_BYTES = 512
# Calls given at once to an executor that does not tell how many workers it has.
_AHEAD = 64
_counter = itertools.count()
_newest_ns = 0


class HutchStorageBackend(StorageBackend):  # type: ignore[misc]  # Themis is not installed where mypy runs
    """Runs, records, datasets and reports of Themis in one namespace of a hutch store.

    `url` is that of a storage, or the path of a config file, with or without ``hutch://`` before it; None stands
    for the default of `hutch.connect`. `namespace` tells apart what shares a store, as a folder does for Themis's own.
    With `save_raw_responses`, which Themis's own storage leaves off, a provider's whole answer (`ModelOutput.raw`) is
    kept; one that cannot be stored is left out, with a warning in the log.

    Every call is one atomic step, and stored as durably as the engine is configured when it returns; a dataset or a
    report appears as a whole. Any thread may use it, and any process may have one of its own; it can be pickled. Raises
    what `hutch.connect` raises; each method raises `hutch.StoreError` where the storage fails, ValueTypeError for a
    value that cannot be stored exactly. `close` does nothing: the connection is shared.
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

        Raises themis StorageError if there is such a run already, unless it is in progress with the same config: then
        another process has just started it, and they share it.
        """
        started = _run_metadata(run_id, {"experiment_id": experiment_id, "config_snapshot": config or {}})
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
        """Replace what is recorded of `run_id`; what `metadata` lacks gets the defaults of Themis's RunMetadata."""
        self._data[_run_key(run_id)] = _run_metadata(run_id, metadata)

    def load_run_metadata(self, run_id: str) -> dict[str, Any]:
        """What is recorded of `run_id`. Raises FileNotFoundError if nothing is."""
        try:
            found: dict[str, Any] = self._data[_run_key(run_id)]
        except KeyError as error:
            raise _no_run(run_id) from error
        return found

    def complete_run(self, run_id: str) -> None:
        """Record that `run_id` is completed. Raises FileNotFoundError if it was never started."""
        self._change(run_id, status=RunStatus.COMPLETED.value, completed_at=_now())

    def fail_run(self, run_id: str, error_message: str) -> None:
        """Record that `run_id` failed, and why. Raises FileNotFoundError if it was never started."""
        self._change(run_id, status=RunStatus.FAILED.value, error_message=str(error_message))

    def list_run_ids(self) -> list[str]:
        """The runs that were started and not deleted, the newest first."""
        runs = [metadata for _, metadata in self._data.scan(prefix="run/")]
        runs.sort(key=lambda metadata: str(metadata["created_at"]), reverse=True)
        return [metadata["run_id"] for metadata in runs]

    def run_exists(self, run_id: str) -> bool:
        """Whether `run_id` was started and not deleted."""
        return _run_key(run_id) in self._data

    run_metadata_exists = run_exists  # as Themis's own storage calls it, too

    def delete_run(self, run_id: str) -> None:
        """Remove all that is stored of `run_id`, in one step. Raises FileNotFoundError if there is nothing."""
        run = _name_of(run_id)
        keys = [key for kind in ("gen", "eval", "data", "report") for key in self._data.scan_keys(f"{kind}/{run}/")]
        # The run itself last, for engines on which a batch can be cut off: then it can be deleted again.
        keys += [f"data/{run}", f"report/{run}", f"run/{run}"]
        if not self._data.remove_many(keys):
            raise _no_run(run_id)

    def get_run_path(self, run_id: str) -> None:
        """None: there is no folder, and Themis writes no files beside the store."""

    # --- generations and evaluations ---

    def save_generation_record(self, run_id: str, record: entities.GenerationRecord) -> None:
        """`append_generation_record` under the record's own cache key."""
        self.append_generation_record(run_id, record)

    def append_generation_record(
        self, run_id: str, record: entities.GenerationRecord, *, cache_key: str | None = None
    ) -> None:
        """Append `record`, with all its attempts; when it is resumed, the last one of a cache key counts."""
        key, cached_as = _next_key("gen", run_id), cache_key or task_cache_key(record.task)
        self._store(lambda raw: {key: {"cache_key": cached_as, "record": _record_out(record, raw)}})

    def load_generation_records(self, run_id: str) -> list[entities.GenerationRecord]:
        """Every record of `run_id` in the order they were appended; none if there is no such run."""
        return [record for _, record in self._cached("gen", run_id, "record", _record_in)]

    def load_cached_records(self, run_id: str) -> dict[str, entities.GenerationRecord]:
        """The last record of each cache key; none if there is no such run."""
        return dict(self._cached("gen", run_id, "record", _record_in))

    def save_evaluation_record(
        self, run_id: str, generation_record: entities.GenerationRecord, record: entities.EvaluationRecord
    ) -> None:
        """`append_evaluation_record` without a config."""
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
        key, cached_as = _next_key("eval", run_id), evaluation_cache_key(generation_record.task, evaluation_config)
        self._store(lambda raw: {key: {"cache_key": cached_as, "evaluation": _evaluation_out(evaluation_record)}})

    def load_evaluation_records(self, run_id: str) -> dict[str, entities.EvaluationRecord]:
        """The last evaluation of each cache key."""
        return dict(self._cached("eval", run_id, "evaluation", _evaluation_in))

    def load_cached_evaluations(
        self, run_id: str, evaluation_config: dict[str, Any] | None = None
    ) -> dict[str, entities.EvaluationRecord]:
        """`load_evaluation_records`: the cache key tells one config from another, as with Themis's own storage."""
        return self.load_evaluation_records(run_id)

    # --- datasets and reports ---

    def cache_dataset(self, run_id: str, dataset: Iterable[dict[str, Any]]) -> None:
        """Replace the dataset of `run_id`."""
        samples = list(dataset)
        self._store_rows("data", run_id, {}, lambda raw: samples)

    def load_dataset(self, run_id: str) -> list[dict[str, Any]] | None:
        """The dataset of `run_id`; None if none was stored."""
        found = self._load_rows("data", run_id)
        return found and found[1]

    def save_report(self, run_id: str, report: entities.ExperimentReport) -> None:
        """Replace the report of `run_id`. `evaluate` itself never stores one."""
        head, rows = _report_out(report)
        self._store_rows("report", run_id, head, rows)

    def load_report(self, run_id: str) -> entities.ExperimentReport | None:
        """The report of `run_id`; None if none was stored."""
        found = self._load_rows("report", run_id)
        return found and self._built(f"report/{_name_of(run_id)}", lambda: _report_in(*found))

    # --- inside ---

    def _change(self, run_id: str, **changes: Any) -> None:
        changes["updated_at"] = _now()
        try:
            self._data.modify(_run_key(run_id), lambda metadata: {**metadata, **changes})
        except KeyError as error:
            raise _no_run(run_id) from error

    def _store(self, items: Callable[[bool], dict[str, Any]]) -> None:
        """Store what `items` gives when told whether to keep raw responses, as one batch."""
        try:
            self._data.set_many(items(self._save_raw))
            return
        except hutch.ValueTypeError:
            pass  # what Themis's JSON takes must not fail here
        try:
            self._data.set_many(_reduced(items(self._save_raw)))
        except hutch.ValueTypeError as error:
            if not self._save_raw:
                raise
            self._data.set_many(_reduced(items(False)))
            log.warning("A raw response was left out, for it cannot be stored: %s", error)

    def _cached(self, kind: str, run_id: str, name: str, build: Callable[[Any], T]) -> Iterator[tuple[str, T]]:
        for key, value in self._data.scan(prefix=f"{kind}/{_name_of(run_id)}/"):
            yield self._built(key, lambda: (value["cache_key"], build(value[name])))  # noqa: B023 - called at once

    def _copy_in(
        self, kind: str, run_id: str, name: str, entries: dict[str, T], out: Callable[[T, bool], dict[str, Any]]
    ) -> None:
        """Store `entries` before all that is appended, under keys that are the same the next time."""
        place, them = f"{kind}/{_name_of(run_id)}", list(enumerate(entries.items()))
        for start in range(0, len(them), _CHUNK_ROWS):
            batch = them[start : start + _CHUNK_ROWS]
            self._store(
                lambda raw: {
                    f"{place}/{at:016x}": {"cache_key": cached_as, name: out(entry, raw)}
                    for at, (cached_as, entry) in batch  # noqa: B023 - called at once
                }
            )

    def _built(self, key: str, build: Callable[[], T]) -> T:
        try:
            return build()
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise hutch.CorruptValueError(
                f"key {key!r} of namespace {self._data.namespace!r} does not hold what the bridge to Themis 1.4 stores"
            ) from error

    def _store_rows(self, kind: str, run_id: str, head: dict[str, Any], rows: Callable[[bool], list[Any]]) -> None:
        """A table in chunks under new keys, and then its head, which names them: there is always a whole table."""
        place = f"{kind}/{_name_of(run_id)}"
        part = os.urandom(8).hex()

        def chunks(raw: bool) -> dict[str, Any]:
            them = rows(raw)
            starts = range(0, len(them), _CHUNK_ROWS)
            return {f"{place}/{part}/{at:012}": them[at : at + _CHUNK_ROWS] for at in starts} | {
                place: {**head, "part": part, "rows": len(them)}
            }

        self._store(chunks)
        # What the head does not name is of no use. Listed before the head is read, so that nothing later is among it.
        found, head = list(self._data.scan_keys(f"{place}/")), self._data.get(place)
        self._data.remove_many(key for key in found if not head or not key.startswith(f"{place}/{head['part']}/"))

    def _load_rows(self, kind: str, run_id: str) -> tuple[dict[str, Any], list[Any]] | None:
        place = f"{kind}/{_name_of(run_id)}"
        head = self._data.get(place)
        while head is not None:
            keys = self._built(place, partial(_chunk_keys, place, head))
            found = self._data.get_many(keys)
            if len(found) == len(keys):
                return head, [row for chunk in found.values() for row in chunk]
            before, head = head, self._data.get(place)
            if head == before:
                raise hutch.CorruptValueError(f"{place!r} of namespace {self._data.namespace!r} has lost a part")
        return None  # there is none, or it was deleted meanwhile


def copy_runs(source: StorageBackend, target: HutchStorageBackend) -> int:
    """Copy every run of Themis's own `ExperimentStorage` into `target`; how many those were.

    Copies metadata, dataset, generations and evaluations, so that `evaluate` resumes as it would have done before. A
    copy that was cut off can be run again: it writes the same keys, and a run is listed when all of it is there. What
    was appended to a run in `target` meanwhile stays, and counts as later.
    """
    copied = 0
    for run_id in source.list_run_ids():
        with suppress(FileNotFoundError):  # raised where none was stored
            target.cache_dataset(run_id, source.load_dataset(run_id) or ())
        target._copy_in("gen", run_id, "record", source.load_cached_records(run_id), _record_out)
        target._copy_in("eval", run_id, "evaluation", source.load_cached_evaluations(run_id), _evaluation_out)
        target.save_run_metadata(run_id, source.load_run_metadata(run_id))
        copied += 1
    return copied


class ExecutorBackend(ExecutionBackend):  # type: ignore[misc]
    """Themis's calls on any `concurrent.futures.Executor`: threads, processes, a Dask cluster.

    `executor` may also be a Dask `Client`. Whoever made the executor shuts it down, unless `owned`: then `shutdown`, or
    the end of the with block, does. Any thread may use it, several may at once.
    """

    def __init__(self, executor: Any, *, owned: bool = False) -> None:
        if not isinstance(executor, Executor) and callable(getattr(executor, "get_executor", None)):
            executor = executor.get_executor()
        if not callable(getattr(executor, "submit", None)):
            raise ConfigurationError(
                f"ExecutorBackend takes a concurrent.futures.Executor or a Dask client, not {type(executor).__name__}"
            )
        self._executor = executor
        self._owned = owned
        self._is_shut_down = False
        self._lock = threading.RLock()  # an executor may call at once, and that call use this again
        self._submitted: set[Future[Any]] = set()
        # Dask takes calls with equal arguments for one, and would ask a model once where it was asked twice.
        self._options = {"pure": False} if type(executor).__module__.partition(".")[0] == "distributed" else {}

    def __reduce__(self) -> tuple[Any, ...]:
        # It goes along where a method of the runner that has it is sent to a worker, and is not used there. What
        # arrives is of Themis itself, for a worker may have no hutch.
        return SequentialExecutionBackend, ()

    def map(
        self,
        func: Callable[[T], R],
        items: Iterable[T],
        *,
        max_workers: int | None = None,
        timeout: float | None = None,
        **kwargs: Any,
    ) -> Iterator[R]:
        """Yield ``func(item)`` of all `items`, as they are done, in any order. Nothing happens before it is iterated.

        At most `max_workers` calls run at once, where the executor has not fewer workers anyway; None leaves it to the
        executor. `items` is taken from as calls are done, never far ahead. `timeout` is in seconds for each call, from
        when it was given to a free worker; a call that runs longer raises TimeoutError, and goes on where it runs, for
        an executor cannot stop it. Other options are ignored, as by Themis's own backends.

        Raises what `func` raises, at once; calls that have not started are cancelled then, and when the iteration is
        given up. If `items` raises, the results of what was begun come first. Raises ConfigurationError where `func`,
        or an item, cannot be sent to the executor's workers, and says what of it; RuntimeError after `shutdown`.
        """
        if max_workers is not None and max_workers < 1:
            raise ConfigurationError(f"max_workers must be at least 1, not {max_workers}")
        if self._is_shut_down:
            raise RuntimeError("this ExecutorBackend was shut down")
        if isinstance(self._executor, ProcessPoolExecutor):
            # One that cannot be pickled would break the call only after the pool has started all its processes.
            try:
                pickle.dumps(func)
            except Exception as error:
                raise _not_shippable(func, pickle.dumps) from error
        return self._results(func, iter(items), self._ahead(max_workers, timeout), timeout)

    def shutdown(self) -> None:
        """Cancel the calls that have not started, and wait for the others; shut the executor down too if `owned`.

        Whoever still iterates over results meets CancelledError.
        """
        with self._lock:
            self._is_shut_down = True
            submitted = list(self._submitted)
        for future in submitted:
            future.cancel()
        wait_for(submitted)
        if self._owned:
            self._executor.shutdown(wait=True)

    def _ahead(self, max_workers: int | None, timeout: float | None) -> int:
        """How many calls are given to the executor at once."""
        size = getattr(self._executor, "_max_workers", None)
        if not isinstance(size, int):
            return max_workers or _AHEAD
        if timeout is not None or (max_workers is not None and max_workers < size):
            return min(size, max_workers or size)
        return 2 * size  # the executor itself keeps the rest waiting, so that no worker waits for the next item

    def _results(self, func: Callable[[T], R], items: Iterator[T], ahead: int, timeout: float | None) -> Iterator[R]:
        running: dict[Future[R], tuple[T, float]] = {}
        done: queue.SimpleQueue[Future[R]] = queue.SimpleQueue()
        failed: Exception | None = None
        exhausted = False
        try:
            while True:
                while len(running) < ahead and not exhausted:
                    try:
                        item = next(items)
                    except StopIteration:
                        exhausted = True
                    except Exception as error:
                        exhausted, failed = True, error  # what was begun may have cost money: it is yielded first
                    else:
                        future = self._submit(func, item)
                        running[future] = item, time.monotonic()
                        future.add_done_callback(done.put)
                if not running:
                    break
                future = _next_done(done, running, timeout)
                item, _ = running.pop(future)
                yield self._result_of(future, item)
        finally:
            for future in running:
                future.cancel()
        if failed is not None:
            raise failed

    def _submit(self, func: Callable[[T], R], item: T) -> Future[R]:
        try:
            with self._lock:  # so that `shutdown` sees all that was submitted
                if self._is_shut_down:
                    raise RuntimeError("this ExecutorBackend was shut down")
                future: Future[R] = self._executor.submit(func, item, **self._options)
                self._submitted.add(future)
        except (AttributeError, TypeError, pickle.PicklingError) as error:
            # What Dask ships is cloudpickle's, which takes more than pickle does.
            dumps = getattr(sys.modules.get("cloudpickle"), "dumps", pickle.dumps)
            for thing in (func, item):
                if not _is_shippable(thing, dumps):
                    raise _not_shippable(thing, dumps) from error
            raise
        future.add_done_callback(self._submitted.discard)
        return future

    def _result_of(self, future: Future[R], item: T) -> R:
        try:
            return future.result()
        except (AttributeError, TypeError, pickle.PicklingError) as error:
            # A process pool pickles an item when it sends it. `func` itself may have raised the same.
            if isinstance(self._executor, ProcessPoolExecutor) and not _is_shippable(item, pickle.dumps):
                raise _not_shippable(item, pickle.dumps) from error
            raise


def _next_done(
    done: queue.SimpleQueue[Future[R]], running: dict[Future[R], tuple[T, float]], timeout: float | None
) -> Future[R]:
    if timeout is None:
        return done.get()
    _, oldest = next(iter(running.values()))
    try:
        return done.get(timeout=max(0.0, oldest + timeout - time.monotonic()))
    except queue.Empty:
        raise TimeoutError(f"a call has not ended after {timeout:g} s; it may still run") from None


# --- what can be sent to a worker ---

_Dumps = Callable[[Any], bytes]


def _is_shippable(thing: object, dumps: _Dumps) -> bool:
    try:
        dumps(thing)
    except Exception:
        return False
    return True


def _not_shippable(thing: object, dumps: _Dumps) -> ConfigurationError:
    """Says where in `thing` sits what cannot be sent, by names and types; values are never shown."""
    told = [_shown(thing)]
    while len(told) < 20:
        for label, part in _parts(thing, dumps):
            if not _is_shippable(part, dumps):
                told.append(f"{label}: {_shown(part)}")
                thing = part
                break
        else:
            break
    return ConfigurationError(
        f"{told[0]} cannot be sent to a worker in another process: {', '.join(told[1:]) or 'it'} cannot be pickled. "
        "Use a ThreadPoolExecutor, for which nothing is pickled, or an executor that ships functions by value (that of "
        "a Dask client); or define functions at the top of a module, and leave locks and connections out of what is "
        "sent (__getstate__). The functions that themis.evaluate() makes for itself go only to threads and to Dask"
    )


def _parts(thing: Any, dumps: _Dumps) -> Iterator[tuple[str, Any]]:
    if isinstance(thing, MethodType):
        yield "its object", thing.__self__
    elif isinstance(thing, partial):
        yield from (("its function", thing.func), ("an argument", thing.args), ("an argument", thing.keywords))
    elif isinstance(thing, FunctionType):
        if dumps is not pickle.dumps:  # which finds a function by its name, and never looks inside
            used = {name: thing.__globals__[name] for name in thing.__code__.co_names if name in thing.__globals__}
            inside = zip(thing.__code__.co_freevars, thing.__closure__ or (), strict=False)
            used |= {name: cell.cell_contents for name, cell in inside}
            yield from ((f"variable {name}", value) for name, value in used.items())
    elif isinstance(thing, dict):
        yield from (("an item", value) for value in thing.values())
    elif isinstance(thing, (list, tuple, set, frozenset)):
        yield from (("an item", value) for value in thing)
    elif not isinstance(thing, (type, ModuleType)):
        yield from ((f"attribute {name}", value) for name, value in getattr(thing, "__dict__", {}).items())


def _shown(thing: Any) -> str:
    if isinstance(thing, (FunctionType, MethodType, type)):
        return f"{thing.__module__}.{thing.__qualname__}"
    return f"a {type(thing).__module__}.{type(thing).__qualname__}".replace("a builtins.", "a ")


# --- names and keys ---


def _name_of(run_id: str) -> str:
    """`run_id` as a part of a key; the id itself is in the metadata."""
    return in_key(run_id, _LONGEST_RUN_BYTES)


def _run_key(run_id: str) -> str:
    return f"run/{_name_of(run_id)}"


def _next_key(kind: str, run_id: str) -> str:
    """Keys in the order they were made: by the clock, within its tick by a counter; never one twice."""
    global _newest_ns  # noqa: PLW0603
    _newest_ns = now_ns = max(time.time_ns(), _newest_ns)  # for a clock may be set back
    return f"{kind}/{_name_of(run_id)}/{now_ns:016x}-{next(_counter):08x}-{os.urandom(4).hex()}"


def _chunk_keys(place: str, head: dict[str, Any]) -> list[str]:
    return [f"{place}/{head['part']}/{at:012}" for at in range(0, head["rows"], _CHUNK_ROWS)]


def _no_run(run_id: str) -> FileNotFoundError:
    return FileNotFoundError(f"Run not found: {run_id!r}")


def _now() -> str:
    return datetime.now(UTC).isoformat()


# --- Themis's dataclasses as plain values, and back ---


@cache
def _names(kind: Any) -> tuple[str, ...]:
    return tuple(field.name for field in fields(kind))


# The types that a reference may name as its schema: nothing is imported because of what is stored.
_SCHEMAS: dict[str, type] = {
    kind.__name__: kind for kind in (bool, bytes, dict, float, frozenset, int, list, set, str, tuple)
}


def _taken(entity: Any, kind: type) -> dict[str, Any]:
    return {name: getattr(entity, name) for name in _names(kind)}


def _differing(entity: Any, kind: type, parent: Any) -> dict[str, Any]:
    """The fields of `entity` that are not the very objects of `parent`: an attempt shares most of its record's."""
    if parent is None:
        return _taken(entity, kind)
    return {name: value for name in _names(kind) if (value := getattr(entity, name)) is not getattr(parent, name)}


def _record_out(record: entities.GenerationRecord, raw: bool, parent: Any = None) -> dict[str, Any]:
    out = _differing(record, entities.GenerationRecord, parent)
    if "task" in out:
        out["task"] = _task_out(record.task, parent and parent.task)
    if out.get("output") is not None:
        out["output"] = _taken(record.output, entities.ModelOutput)
        if not raw:
            out["output"]["raw"] = None
    if out.get("error") is not None:
        out["error"] = _taken(record.error, entities.ModelError)
    out["attempts"] = [_record_out(attempt, raw, record) for attempt in record.attempts]
    return out


def _record_in(stored: dict[str, Any], parent: Any = None) -> entities.GenerationRecord:
    known = dict(stored) if parent is None else {**_taken(parent, entities.GenerationRecord), **stored}
    if "task" in stored:
        known["task"] = _task_in(stored["task"], parent and parent.task)
    if stored.get("output") is not None:
        known["output"] = entities.ModelOutput(**stored["output"])
    if stored.get("error") is not None:
        known["error"] = entities.ModelError(**stored["error"])
    known["attempts"] = []
    record = entities.GenerationRecord(**known)
    record.attempts = [_record_in(attempt, record) for attempt in stored["attempts"]]
    return record


def _task_out(task: entities.GenerationTask, parent: Any) -> dict[str, Any]:
    out = _differing(task, entities.GenerationTask, parent)
    if "prompt" in out:
        out["prompt"] = {
            **_taken(task.prompt, entities.PromptRender),
            "spec": _taken(task.prompt.spec, entities.PromptSpec),
        }
    if "model" in out:
        default = task.model.default_sampling
        out["model"] = {
            **_taken(task.model, entities.ModelSpec),
            "default_sampling": default and _taken(default, entities.SamplingConfig),
        }
    if "sampling" in out:
        out["sampling"] = _taken(task.sampling, entities.SamplingConfig)
    if out.get("reference") is not None:
        out["reference"] = _taken(task.reference, entities.Reference)
        schema = out["reference"]["schema"]
        if isinstance(schema, type) and _SCHEMAS.get(schema.__name__) is schema:
            out["reference"]["schema"] = schema.__name__
    return out


def _task_in(stored: dict[str, Any], parent: Any) -> entities.GenerationTask:
    known = dict(stored) if parent is None else {**_taken(parent, entities.GenerationTask), **stored}
    if prompt := stored.get("prompt"):
        known["prompt"] = entities.PromptRender(**{**prompt, "spec": entities.PromptSpec(**prompt["spec"])})
    if model := stored.get("model"):
        default = model["default_sampling"]
        default = default and entities.SamplingConfig(**default)
        known["model"] = entities.ModelSpec(**{**model, "default_sampling": default})
    if "sampling" in stored:
        known["sampling"] = entities.SamplingConfig(**stored["sampling"])
    if reference := stored.get("reference"):
        schema = reference["schema"]
        known["reference"] = entities.Reference(**{**reference, "schema": schema and _SCHEMAS[schema]})
    return entities.GenerationTask(**known)


def _evaluation_out(evaluation: entities.EvaluationRecord, raw: bool = True) -> dict[str, Any]:
    out = _taken(evaluation, entities.EvaluationRecord)
    return {**out, "scores": [_taken(score, entities.MetricScore) for score in evaluation.scores]}


def _evaluation_in(stored: dict[str, Any]) -> entities.EvaluationRecord:
    scores = [entities.MetricScore(**score) for score in stored["scores"]]
    return entities.EvaluationRecord(**{**stored, "scores": scores})


def _report_out(report: entities.ExperimentReport) -> tuple[dict[str, Any], Callable[[bool], list[Any]]]:
    """What is one of a kind, and the rows: generations, evaluations, and the scores of each aggregate in turn."""
    evaluation, scores = report.evaluation_report, []

    def aggregates(them: dict[str, MetricAggregate]) -> dict[str, Any]:
        out = {}
        for name, aggregate in them.items():
            scores.extend(aggregate.per_sample)
            out[name] = {**_taken(aggregate, MetricAggregate), "per_sample": len(aggregate.per_sample)}
        return out

    head: dict[str, Any] = {
        "metadata": _without_secrets(report.metadata),
        "failures": [_taken(failure, EvaluationFailure) for failure in report.failures],
        "generations": len(report.generation_results),
        "evaluation": evaluation
        and {
            "metrics": aggregates(evaluation.metrics),
            "failures": [_taken(failure, EvaluationFailure) for failure in evaluation.failures],
            "records": len(evaluation.records),
            "slices": {name: aggregates(them) for name, them in evaluation.slices.items()},
            "metadata": evaluation.metadata,
        },
    }
    return head, lambda raw: [
        *(_record_out(record, raw) for record in report.generation_results),
        *(_evaluation_out(record) for record in (evaluation.records if evaluation else ())),
        *(_taken(score, entities.MetricScore) for score in scores),
    ]


def _report_in(head: dict[str, Any], rows: list[Any]) -> entities.ExperimentReport:
    left = iter(rows)

    def aggregates(them: dict[str, Any]) -> dict[str, MetricAggregate]:
        return {name: MetricAggregate(**{**one, "per_sample": scores(one["per_sample"])}) for name, one in them.items()}

    def scores(count: int) -> list[entities.MetricScore]:
        return [entities.MetricScore(**next(left)) for _ in range(count)]

    generations = [_record_in(next(left)) for _ in range(head["generations"])]
    evaluation = head["evaluation"]
    if evaluation is not None:
        records = [_evaluation_in(next(left)) for _ in range(evaluation["records"])]
        evaluation = EvaluationReport(
            metrics=aggregates(evaluation["metrics"]),
            failures=[EvaluationFailure(**failure) for failure in evaluation["failures"]],
            records=records,
            slices={name: aggregates(them) for name, them in evaluation["slices"].items()},
            metadata=evaluation["metadata"],
        )
    return entities.ExperimentReport(
        generation_results=generations,
        evaluation_report=evaluation,
        failures=[entities.ExperimentFailure(**failure) for failure in head["failures"]],
        metadata=head["metadata"],
    )


def _run_metadata(run_id: str, known: dict[str, Any]) -> dict[str, Any]:
    now = _now()
    fresh = RunMetadata(
        run_id=run_id, experiment_id="default", status=RunStatus.IN_PROGRESS, created_at=now, updated_at=now
    )
    metadata: dict[str, Any] = _reduced({**asdict(fresh), **known, "run_id": run_id})
    metadata["status"] = RunStatus(metadata["status"]).value
    kept: dict[str, Any] = _without_secrets(metadata)
    return kept


def _without_secrets(value: Any) -> Any:
    """Themis puts the API key that `evaluate` was given into its manifest; there it stops."""
    if not isinstance(value, dict):
        return value
    return {key: "***" if key == "api_key" and item else _without_secrets(item) for key, item in value.items()}


def _reduced(value: Any) -> Any:
    """`value` with subclasses as the types that JSON, and so Themis's own storage, takes them for."""
    kind = type(value)
    if value is None or kind in (str, int, float, bool, bytes):
        return value
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _reduced(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, dict):
        return {_reduced(key): _reduced(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(map(_reduced, value))
    if isinstance(value, list):
        return list(map(_reduced, value))
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    return value
