"""dotevals' results on any engine: ``pytest --storage hutch://lmdb:///srv/evals``. See docs/bridges/dotevals.md."""

from __future__ import annotations

import itertools
import operator
import os
import secrets
import time
from collections.abc import Iterable
from typing import Any

import hutch
from hutch.fork import run_in_child

from ..builtin_types import to_builtin_types
from ..connections import shared_namespace
from .layout import (
    EVALUATION_FIELDS,
    EXPERIMENT_FIELDS,
    EXPERIMENTS,
    NAMESPACE,
    evaluation_key,
    evaluations_prefix,
    experiment_key,
    foreign_error,
    item_of,
    result_suffix,
    results_prefix,
    validate_record,
)

try:
    from dotevals.exceptions import EvaluationNotFoundError, ExperimentExistsError, ExperimentNotFoundError
    from dotevals.results import EvaluationMetadata, EvaluationStatus, Record, Score
    from dotevals.storage import Storage

    from .metrics import MetricsByDescription, describe_metric
except ImportError as error:
    raise ImportError(
        "hutch's storage for dotevals needs dotevals 0.28; install it with: pip install 'dotevals>=0.28,<0.29'"
    ) from error

# Results are ordered by a clock that is never set back, and within one reading by a counter.
_CLOCK_OFFSET_NS = time.time_ns() - time.monotonic_ns()
_counter = itertools.count()
# Distinguishes this process from others that add a result at the same moment.
_salt = os.urandom(4).hex()


def _renew_salt_after_fork() -> None:
    global _salt  # noqa: PLW0603
    _salt = os.urandom(4).hex()


run_in_child(_renew_salt_after_fork)


class HutchStorage(Storage):  # type: ignore[misc]  # dotevals has no types for mypy
    """dotevals' storage in the hutch store of a URL. Any number of threads and processes may use it.

    `storage_path` is what follows ``hutch://``: a storage URL, the path of a config file, or nothing for the default of
    `hutch.connect`. Raises what that raises. When a method returns, its changes are stored as durably as the engine is
    configured; failures to store or read are a `hutch.StoreError`. Nothing has to be closed.
    """

    def __init__(self, storage_path: str | None = None) -> None:
        self._data = shared_namespace(storage_path, NAMESPACE)

    # --- experiments ---

    def create_experiment(self, experiment_name: str) -> None:
        """Create an experiment; do nothing if one has that name."""
        self._create(experiment_name)

    def list_experiments(self) -> list[str]:
        """Return the names of all experiments."""
        names = []
        for key, experiment in self._data.scan(EXPERIMENTS):
            record = validate_record(key, experiment, EXPERIMENT_FIELDS)
            # Finish what a killed rename or deletion left behind.
            if len(record) == 3 or self._load_experiment(record["name"]) is not None:
                names.append(record["name"])
        return names

    def delete_experiment(self, experiment_name: str) -> None:
        """Remove an experiment and everything in it. Raises ExperimentNotFoundError.

        The experiment disappears atomically; then its results are removed. After an interruption, the next call that
        lists the experiments or uses the name continues.
        """
        key = experiment_key(experiment_name)
        while True:
            record = self._require(experiment_name)
            if self._data.compare_and_set(key, record, record | {"deleted": True}):
                break
        self._load_experiment(experiment_name)

    def rename_experiment(self, old_name: str, new_name: str) -> None:
        """Rename an experiment atomically; its results stay where they are.

        Raises ExperimentNotFoundError, and ExperimentExistsError if the new name is taken. After an interruption, the
        next call that lists the experiments or uses the new name finishes the rename.
        """
        record = self._require(old_name)
        claim = record | {"name": new_name, "from": old_name}
        if self._load_experiment(new_name) is not None or not self._data.compare_and_set(
            experiment_key(new_name), hutch.MISSING, claim
        ):
            raise ExperimentExistsError(new_name)
        renamed = self._load_experiment(new_name)
        if renamed is None or renamed["id"] != record["id"]:
            raise ExperimentNotFoundError(old_name)  # renamed or deleted by a concurrent call

    def _require(self, name: str) -> dict[str, Any]:
        record = self._load_experiment(name)
        if record is None:
            raise ExperimentNotFoundError(name) from KeyError(experiment_key(name))
        return record

    def _create(self, name: str) -> dict[str, Any]:
        while True:
            record = self._load_experiment(name)
            if record is not None:
                return record
            record = {"id": secrets.token_hex(8), "name": name, "moves": 0}
            if self._data.compare_and_set(experiment_key(name), hutch.MISSING, record):
                return record

    def _load_experiment(self, name: str) -> dict[str, Any] | None:
        """Finish any change under way, and return the record of an experiment, or None."""
        key, data = experiment_key(name), self._data
        while (experiment := data.get(key, hutch.MISSING)) is not hutch.MISSING:
            record = validate_record(key, experiment, EXPERIMENT_FIELDS)
            if len(record) == 3:  # no change under way
                return record
            if "deleted" in record:
                for prefix in (evaluations_prefix(record["id"]), results_prefix(record["id"])):
                    data.remove_many(list(data.scan_keys(prefix)))
                data.compare_and_set(key, record, hutch.MISSING)
            elif "from" in record:
                self._finish_rename(key, record)
            elif "to" in record:
                self._load_experiment(record["to"])
                data.compare_and_set(key, record, hutch.MISSING)
            else:
                raise foreign_error(key)
        return None

    def _finish_rename(self, key: str, claim: dict[str, Any]) -> None:
        """Finish the rename that `claim`, the record at `key`, announces. Safe to run concurrently and after a crash.

        The first change decides: it makes the old record say where it went. `moves` grows with each rename, so no
        record ever returns to an earlier value: a late caller finds a different record and changes nothing.
        """
        old_key = experiment_key(claim["from"])
        old = {"id": claim["id"], "name": claim["from"], "moves": claim["moves"]}
        gone = old | {"to": claim["name"]}
        self._data.compare_and_set(old_key, old, gone)
        if self._data.get(old_key) == gone:
            new = {"id": claim["id"], "name": claim["name"], "moves": claim["moves"] + 1}
            self._data.compare_and_set(key, claim, new)
            self._data.compare_and_set(old_key, gone, hutch.MISSING)
        else:
            self._data.compare_and_set(key, claim, hutch.MISSING)

    # --- evaluations ---

    def create_evaluation(self, experiment_name: str, evaluation: EvaluationMetadata) -> None:
        """Add an evaluation, creating the experiment if needed; do nothing if the evaluation exists."""
        experiment = self._create(experiment_name)
        name = evaluation.evaluation_name
        value = {
            "name": name,
            "status": evaluation.status.value,
            "started_at": evaluation.started_at,
            "completed_at": evaluation.completed_at,
            "metadata": evaluation.metadata,
        }
        key = evaluation_key(experiment["id"], name)
        try:
            self._data.compare_and_set(key, hutch.MISSING, value)
        except hutch.ValueTypeError as error:
            self._data.compare_and_set(key, hutch.MISSING, _reduced_or_raise(error, value))

    def list_evaluations(self, experiment_name: str) -> list[str]:
        """Return the names of an experiment's evaluations, as given; an empty list if there is no such experiment."""
        experiment = self._load_experiment(experiment_name)
        if experiment is None:
            return []
        records = self._data.scan(evaluations_prefix(experiment["id"]))
        return [validate_record(key, value, EVALUATION_FIELDS)["name"] for key, value in records]

    def load_evaluation(self, experiment_name: str, evaluation_name: str) -> EvaluationMetadata | None:
        """Return the metadata of an evaluation; None if it is missing."""
        experiment = self._load_experiment(experiment_name)
        if experiment is None:
            return None
        key = evaluation_key(experiment["id"], evaluation_name)
        record = self._data.get(key, hutch.MISSING)
        if record is hutch.MISSING:
            return None
        value = validate_record(key, record, EVALUATION_FIELDS)
        return EvaluationMetadata(
            evaluation_name=value["name"],
            status=EvaluationStatus(value["status"]),
            started_at=value["started_at"],
            metadata=value["metadata"],
            completed_at=value["completed_at"],
        )

    def update_evaluation_status(self, experiment_name: str, evaluation_name: str, status: EvaluationStatus) -> None:
        """Set the status and the time of completion, atomically. Raises EvaluationNotFoundError."""
        key = evaluation_key(self._experiment_id_of(experiment_name, evaluation_name), evaluation_name)
        change = {"status": status.value, "completed_at": time.time() if status == EvaluationStatus.COMPLETED else None}
        try:
            self._data.modify(key, lambda value: validate_record(key, value, EVALUATION_FIELDS) | change)
        except KeyError as error:  # deleted meanwhile
            raise EvaluationNotFoundError(experiment_name, evaluation_name) from error

    def _experiment_id_of(self, experiment_name: str, evaluation_name: str) -> str:
        """Return the id of the experiment that has this evaluation. Raises EvaluationNotFoundError."""
        experiment = self._load_experiment(experiment_name)
        missing = experiment_key(experiment_name)
        if experiment is not None:
            missing = evaluation_key(experiment["id"], evaluation_name)
            if missing in self._data:
                experiment_id: str = experiment["id"]
                return experiment_id
        raise EvaluationNotFoundError(experiment_name, evaluation_name) from KeyError(missing)

    # --- results ---

    def add_results(self, experiment_name: str, evaluation_name: str, results: list[Record]) -> None:
        """Append `results`: all of them or none. Raises EvaluationNotFoundError.

        Values keep their types. A subclass of str, int, float, list, tuple or dict is stored as its base type. Raises
        hutch.ValueTypeError, which says where the value is, for a type that hutch does not store.
        """
        prefix = results_prefix(self._experiment_id_of(experiment_name, evaluation_name), evaluation_name)
        items = {}
        for record in results:
            now_ns = time.monotonic_ns() + _CLOCK_OFFSET_NS
            value = _to_plain(record, evaluation_name)
            items[prefix + result_suffix(now_ns, next(_counter), _salt, value["item_id"], record.error)] = value
        try:
            self._set(items)
        except hutch.ValueTypeError as error:
            self._set(_reduced_or_raise(error, items))

    def _set(self, items: dict[str, Any]) -> None:
        if len(items) == 1:  # dotevals adds one at a time, and a batch of one takes a third longer
            [(key, value)] = items.items()
            self._data[key] = value
        else:
            self._data.set_many(items)

    def get_results(self, experiment_name: str, evaluation_name: str) -> list[Record]:
        """Return all results in the order they were added; an empty list if there is no such evaluation.

        Each score gets the metrics that the evaluation gave it, where this process knows them. The value of an unknown
        metric is NaN, with a warning that says how to make it known.
        """
        experiment = self._load_experiment(experiment_name)
        if experiment is None:
            return []
        metrics = MetricsByDescription(evaluation_name)
        records = []
        for key, value in self._data.scan(results_prefix(experiment["id"], evaluation_name)):
            try:
                # Positional arguments: keywords take a quarter longer.
                scores = [
                    Score(
                        score["name"],
                        score["value"],
                        [metrics[score["name"], metric] for metric in score["metrics"]],
                        score["metadata"],
                    )
                    for score in value["scores"]
                ]
                record = Record(
                    value["item_id"],
                    value["dataset_row"],
                    value["prompt"],
                    value["model_response"],
                    scores,
                    value["error"],
                    value["timestamp"],
                    value["dataset_name"],
                    value["dataset_class"],
                )
            except (KeyError, TypeError, AttributeError) as error:
                raise foreign_error(key) from error
            records.append(record)
        return records

    def completed_items(self, experiment_name: str, evaluation_name: str) -> list[int]:
        """Return the ids of the items that have a result without an error. Reads keys only."""
        return [item for item, is_ok in map(item_of, self._keys(experiment_name, evaluation_name)) if is_ok]

    def remove_error_result(self, experiment_name: str, evaluation_name: str, item_id: int) -> None:
        """Remove the results with an error of one item."""
        self.remove_error_results_batch(experiment_name, evaluation_name, [item_id])

    def remove_error_results_batch(self, experiment_name: str, evaluation_name: str, item_ids: Iterable[int]) -> None:
        """Remove the results with an error of these items, atomically. Reads keys only."""
        failed = {(item_id, False) for item_id in item_ids}
        self._data.remove_many([key for key in self._keys(experiment_name, evaluation_name) if item_of(key) in failed])

    def _keys(self, experiment_name: str, evaluation_name: str) -> Iterable[str]:
        experiment = self._load_experiment(experiment_name)
        return () if experiment is None else self._data.scan_keys(results_prefix(experiment["id"], evaluation_name))


# --- values ---


def _to_plain(record: Record, evaluation: str) -> dict[str, Any]:
    return {
        "item_id": int(operator.index(record.item_id)),
        "dataset_row": record.dataset_row,
        "prompt": record.prompt,
        "model_response": record.model_response,
        "scores": [
            {
                "name": score.name,
                "value": score.value,
                "metrics": [describe_metric(metric, evaluation, score.name) for metric in score.metrics],
                "metadata": score.metadata,
            }
            for score in record.scores
        ],
        "error": record.error,
        "timestamp": record.timestamp,
        "dataset_name": record.dataset_name,
        "dataset_class": record.dataset_class,
    }


def _reduced_or_raise(error: hutch.ValueTypeError, value: Any) -> Any:
    """Return `to_builtin_types(value)`; raise `error` if `value` refers to itself or is nested too deep."""
    try:
        return to_builtin_types(value)
    except RecursionError:
        raise error from None
