"""Convert Themis 1.4's dataclasses to plain values, and back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, fields
from datetime import UTC, datetime
from functools import cache
from typing import Any

from themis.core import entities
from themis.evaluation.reports import EvaluationFailure, EvaluationReport, MetricAggregate
from themis.storage import RunMetadata, RunStatus

from ..builtin_types import to_builtin_types


@cache
def _names(kind: Any) -> tuple[str, ...]:
    return tuple(field.name for field in fields(kind))


# The schema types that a reference may name: stored data must not import anything.
_SCHEMAS: dict[str, type] = {
    kind.__name__: kind for kind in (bool, bytes, dict, float, frozenset, int, list, set, str, tuple)
}


def _fields_of(entity: Any, kind: type) -> dict[str, Any]:
    return {name: getattr(entity, name) for name in _names(kind)}


def _differing_fields(entity: Any, kind: type, parent: Any) -> dict[str, Any]:
    """Return the fields of `entity` that are not the same objects as in `parent`: an attempt shares most of them."""
    if parent is None:
        return _fields_of(entity, kind)
    return {name: value for name in _names(kind) if (value := getattr(entity, name)) is not getattr(parent, name)}


def record_to_plain(record: entities.GenerationRecord, raw: bool, parent: Any = None) -> dict[str, Any]:
    """Return a record as a dict, without the provider's raw response unless `raw`.

    An attempt, which has a `parent`, contains only the fields that differ from it.
    """
    out = _differing_fields(record, entities.GenerationRecord, parent)
    if "task" in out:
        out["task"] = _task_to_plain(record.task, parent and parent.task)
    if out.get("output") is not None:
        out["output"] = _fields_of(record.output, entities.ModelOutput)
        if not raw:
            out["output"]["raw"] = None
    if out.get("error") is not None:
        out["error"] = _fields_of(record.error, entities.ModelError)
    out["attempts"] = [record_to_plain(attempt, raw, record) for attempt in record.attempts]
    return out


def record_from_plain(stored: dict[str, Any], parent: Any = None) -> entities.GenerationRecord:
    """Return the record from which `record_to_plain` made `stored`."""
    known = dict(stored) if parent is None else {**_fields_of(parent, entities.GenerationRecord), **stored}
    if "task" in stored:
        known["task"] = _task_from_plain(stored["task"], parent and parent.task)
    if stored.get("output") is not None:
        known["output"] = entities.ModelOutput(**stored["output"])
    if stored.get("error") is not None:
        known["error"] = entities.ModelError(**stored["error"])
    known["attempts"] = []
    record = entities.GenerationRecord(**known)
    record.attempts = [record_from_plain(attempt, record) for attempt in stored["attempts"]]
    return record


def _task_to_plain(task: entities.GenerationTask, parent: Any) -> dict[str, Any]:
    out = _differing_fields(task, entities.GenerationTask, parent)
    if "prompt" in out:
        out["prompt"] = {
            **_fields_of(task.prompt, entities.PromptRender),
            "spec": _fields_of(task.prompt.spec, entities.PromptSpec),
        }
    if "model" in out:
        default = task.model.default_sampling
        out["model"] = {
            **_fields_of(task.model, entities.ModelSpec),
            "default_sampling": default and _fields_of(default, entities.SamplingConfig),
        }
    if "sampling" in out:
        out["sampling"] = _fields_of(task.sampling, entities.SamplingConfig)
    if out.get("reference") is not None:
        out["reference"] = _fields_of(task.reference, entities.Reference)
        schema = out["reference"]["schema"]
        if isinstance(schema, type) and _SCHEMAS.get(schema.__name__) is schema:
            out["reference"]["schema"] = schema.__name__
    return out


def _task_from_plain(stored: dict[str, Any], parent: Any) -> entities.GenerationTask:
    known = dict(stored) if parent is None else {**_fields_of(parent, entities.GenerationTask), **stored}
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


def evaluation_to_plain(evaluation: entities.EvaluationRecord, raw: bool = True) -> dict[str, Any]:
    """Return an evaluation as a dict. `raw` makes no difference; it is there for the signature of `record_to_plain`."""
    out = _fields_of(evaluation, entities.EvaluationRecord)
    return {**out, "scores": [_fields_of(score, entities.MetricScore) for score in evaluation.scores]}


def evaluation_from_plain(stored: dict[str, Any]) -> entities.EvaluationRecord:
    """Return the evaluation from which `evaluation_to_plain` made `stored`."""
    scores = [entities.MetricScore(**score) for score in stored["scores"]]
    return entities.EvaluationRecord(**{**stored, "scores": scores})


def report_to_plain(report: entities.ExperimentReport) -> tuple[dict[str, Any], Callable[[bool], list[Any]]]:
    """Return the report's head, and its rows: generations, evaluations, and the scores of each aggregate in turn."""
    evaluation, scores = report.evaluation_report, []

    def aggregates(metrics: dict[str, MetricAggregate]) -> dict[str, Any]:
        out = {}
        for name, aggregate in metrics.items():
            scores.extend(aggregate.per_sample)
            out[name] = {**_fields_of(aggregate, MetricAggregate), "per_sample": len(aggregate.per_sample)}
        return out

    head: dict[str, Any] = {
        "metadata": _without_secrets(report.metadata),
        "failures": [_fields_of(failure, EvaluationFailure) for failure in report.failures],
        "generations": len(report.generation_results),
        "evaluation": evaluation
        and {
            "metrics": aggregates(evaluation.metrics),
            "failures": [_fields_of(failure, EvaluationFailure) for failure in evaluation.failures],
            "records": len(evaluation.records),
            "slices": {name: aggregates(metrics) for name, metrics in evaluation.slices.items()},
            "metadata": evaluation.metadata,
        },
    }
    return head, lambda raw: [
        *(record_to_plain(record, raw) for record in report.generation_results),
        *(evaluation_to_plain(record) for record in (evaluation.records if evaluation else ())),
        *(_fields_of(score, entities.MetricScore) for score in scores),
    ]


def report_from_plain(head: dict[str, Any], rows: list[Any]) -> entities.ExperimentReport:
    """Return the report from which `report_to_plain` made `head` and `rows`."""
    remaining = iter(rows)

    def aggregates(metrics: dict[str, Any]) -> dict[str, MetricAggregate]:
        return {
            name: MetricAggregate(**{**stored, "per_sample": scores(stored["per_sample"])})
            for name, stored in metrics.items()
        }

    def scores(count: int) -> list[entities.MetricScore]:
        return [entities.MetricScore(**next(remaining)) for _ in range(count)]

    generations = [record_from_plain(next(remaining)) for _ in range(head["generations"])]
    evaluation = head["evaluation"]
    if evaluation is not None:
        records = [evaluation_from_plain(next(remaining)) for _ in range(evaluation["records"])]
        evaluation = EvaluationReport(
            metrics=aggregates(evaluation["metrics"]),
            failures=[EvaluationFailure(**failure) for failure in evaluation["failures"]],
            records=records,
            slices={name: aggregates(metrics) for name, metrics in evaluation["slices"].items()},
            metadata=evaluation["metadata"],
        )
    return entities.ExperimentReport(
        generation_results=generations,
        evaluation_report=evaluation,
        failures=[entities.ExperimentFailure(**failure) for failure in head["failures"]],
        metadata=head["metadata"],
    )


def run_metadata(run_id: str, known: dict[str, Any]) -> dict[str, Any]:
    """Return `known` completed by the defaults of Themis's RunMetadata, without secrets."""
    moment = now()
    fresh = RunMetadata(
        run_id=run_id, experiment_id="default", status=RunStatus.IN_PROGRESS, created_at=moment, updated_at=moment
    )
    metadata: dict[str, Any] = to_builtin_types({**asdict(fresh), **known, "run_id": run_id}, dataclasses=True)
    metadata["status"] = RunStatus(metadata["status"]).value
    without_secrets: dict[str, Any] = _without_secrets(metadata)
    return without_secrets


def run_from_plain(stored: dict[str, Any]) -> RunMetadata:
    """Return the metadata that `run_metadata` made `stored` from, without fields that Themis does not know."""
    known = {name: stored[name] for name in _names(RunMetadata)}
    return RunMetadata(**{**known, "status": RunStatus(stored["status"])})


def now() -> str:
    """Return the current time in UTC as ISO 8601."""
    return datetime.now(UTC).isoformat()


def _without_secrets(value: Any) -> Any:
    """Return `value` without the API key, which Themis copies from `evaluate` into its manifest."""
    if not isinstance(value, dict):
        return value
    return {key: "***" if key == "api_key" and item else _without_secrets(item) for key, item in value.items()}
