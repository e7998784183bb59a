"""Layout of dotevals' results in hutch.

All keys are in the namespace `NAMESPACE`. docs/bridges/dotevals.md describes the keys and values.
"""

from __future__ import annotations

from collections.abc import Set
from typing import Any

import hutch

from ..names import in_key

NAMESPACE = "dotevals"
EXPERIMENTS = "experiment/"
EXPERIMENT_FIELDS = frozenset({"id", "name", "moves"})
EVALUATION_FIELDS = frozenset({"name", "status", "started_at", "completed_at", "metadata"})

_LONGEST_NAME_BYTES = 240


def _in_key(name: str) -> str:
    """Return `name` as a part of a key; the value holds the name itself."""
    return in_key(name, _LONGEST_NAME_BYTES)


def experiment_key(name: str) -> str:
    """Return the key of an experiment's record."""
    return EXPERIMENTS + _in_key(name)


def evaluations_prefix(experiment_id: str) -> str:
    """Return the prefix of the keys of an experiment's evaluations."""
    return f"evaluation/{experiment_id}/"


def evaluation_key(experiment_id: str, name: str) -> str:
    """Return the key of an evaluation's metadata."""
    return f"evaluation/{experiment_id}/{_in_key(name)}"


def results_prefix(experiment_id: str, evaluation: str | None = None) -> str:
    """Return the key prefix of an evaluation's results; without `evaluation`, of all the experiment's results."""
    of_experiment = f"result/{experiment_id}/"
    return of_experiment if evaluation is None else f"{of_experiment}{_in_key(evaluation)}/"


def result_suffix(sequence: int, count: int, salt: str, item_id: int, error: str | None) -> str:
    """Return the rest of a result's key: its order, a part unique to the process, the item and whether it failed."""
    return f"{sequence:016x}-{count & 0xFFFF:04x}{salt}/{item_id}/{'ok' if error is None else 'error'}"


def item_of(key: str) -> tuple[int, bool]:
    """Return the item of a result's key, and whether it has no error. Reads no value. Raises CorruptValueError."""
    try:
        _, item, state = key.rsplit("/", 2)
        return int(item), state == "ok"
    except ValueError as error:
        raise foreign_error(key) from error


def validate_record(key: str, value: Any, fields: Set[str]) -> dict[str, Any]:
    """Return `value`, stored at `key`, if it is a dict with these `fields`; raise CorruptValueError otherwise."""
    if type(value) is not dict or not fields <= value.keys():
        raise foreign_error(key)
    return value


def foreign_error(key: str) -> hutch.CorruptValueError:
    """Return the error for a value at `key` that was not written by this bridge."""
    return hutch.CorruptValueError(
        f"key {key!r} of {NAMESPACE!r} is not what hutch writes for dotevals; remove it with hutch rm"
    )


def metric_name(metric: str) -> str:
    """Return the name in a metric's description: ``module:name``, followed by "(...)" if it was made with arguments."""
    return metric.partition(":")[2].removesuffix("(...)")
