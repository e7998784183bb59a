"""Read and write the folder of dotevals' JSON storage, ``.dotevals``."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import hutch

from ...filesystem import atomic_file, open_existing, validate_regular_file
from ...handlers import raised_by_handler
from .layout import (
    EVALUATION_FIELDS,
    EXPERIMENT_FIELDS,
    EXPERIMENTS,
    NAMESPACE,
    evaluation_key,
    evaluations_prefix,
    experiment_key,
    foreign_error,
    metric_name,
    result_suffix,
    results_prefix,
    validate_record,
)

#: What `write` exports.
NAMESPACES = (NAMESPACE,)
_NOT_IN_A_FILE_NAME = re.compile('[\x00-\x1f\\\\:*?"<>|\ud800-\udfff]' if os.name == "nt" else "[\x00\ud800-\udfff]")


# --- from the framework's files ---


def read(path: Path) -> Iterator[tuple[str, str, Any]]:
    """Yield every item of a JSON storage's folder as (namespace, key, value), reading one line at a time.

    The same files give the same keys each time. Raises ConfigError if `path` is not a folder, CorruptValueError, which
    names file and line, for a line that dotevals did not write or that is truncated.
    """
    for name, folder in _experiments(path):
        record = _imported_record(name)
        yield NAMESPACE, experiment_key(name), record
        seen: dict[str, Path] = {}
        for file in sorted(folder.glob("*.jsonl")):
            yield from _evaluation(file, record["id"], seen)


def validate_names(store: hutch.Store, path: Path) -> None:
    """Raise ConfigError if importing `path` would mix its experiments with others of the same names in the store."""
    with store.open(NAMESPACE) as data:
        names = {record["id"]: record["name"] for record in _records(data)}
        for name, _ in _experiments(path):
            new, old = _imported_record(name), data.get(experiment_key(name))
            if old is None and new["id"] not in names:
                continue
            if old is None:
                raise hutch.ConfigError(
                    f"experiment {name!r} was imported before and is called {names[new['id']]!r} now; delete that one "
                    "to import it again"
                )
            if old["id"] != new["id"] or old.keys() != new.keys():
                raise hutch.ConfigError(
                    f"the store has an experiment {name!r} that did not come from these files; rename or delete it "
                    "with the dotevals command, then import"
                )


def _experiments(path: Path) -> Iterator[tuple[str, Path]]:
    """Yield each folder that is an experiment: it has evaluations, or is empty. "a/b" is a folder in "a"."""
    if not path.is_dir():
        raise hutch.ConfigError(f"{path} is not a folder; expected the folder of dotevals' JSON storage, .dotevals")
    for folder in sorted([path, *(folder_or_file for folder_or_file in path.rglob("*") if folder_or_file.is_dir())]):
        empty = folder != path and not any(folder.iterdir())
        if empty or next(folder.glob("*.jsonl"), None) is not None:
            yield "/".join(folder.relative_to(path).parts), folder


def _records(data: hutch.Namespace) -> Iterator[dict[str, Any]]:
    return (validate_record(key, record, EXPERIMENT_FIELDS) for key, record in data.scan(EXPERIMENTS))


def _imported_record(name: str) -> dict[str, Any]:
    # An id derived from the name makes the import repeatable; the bridge's own ids are random.
    experiment_id = "json-" + hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return {"id": experiment_id, "name": name, "moves": 0}


def _evaluation(file: Path, experiment_id: str, seen: dict[str, Path]) -> Iterator[tuple[str, str, Any]]:
    prefix = None
    with file.open("rb") as lines:
        # The line number gives the order. It is less than any time, so results added later come after it.
        for number, line in enumerate(lines, 1):
            if prefix is not None and not line.strip():
                continue
            try:
                record = json.loads(line)
                if prefix is None:
                    name, evaluation = _read_evaluation(record)
                    if name in seen:
                        raise ValueError(f"evaluation {name!r} is in {seen[name].name!r} too")
                    seen[name] = file
                    prefix = results_prefix(experiment_id, name)
                    yield NAMESPACE, evaluation_key(experiment_id, name), evaluation
                else:
                    result = _read_result(record)
                    suffix = result_suffix(number, 0, "00000000", result["item_id"], result["error"])
                    yield NAMESPACE, prefix + suffix, result
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                # The JSON error shows nothing of the line; a KeyError shows the missing name.
                message = f"{error} is missing" if isinstance(error, KeyError) else error
                raise hutch.CorruptValueError(f"{file}, line {number}: not what dotevals writes: {message}") from error
    if prefix is None:
        raise hutch.CorruptValueError(f"{file}, line 1: not what dotevals writes: the file is empty")


def _read_evaluation(record: Any) -> tuple[str, dict[str, Any]]:
    name: str = _require_type(record["evaluation_name"], str, "evaluation_name")
    return name, {
        "name": name,
        "status": _require_type(record["status"], str, "status"),
        "started_at": record["started_at"],
        "completed_at": record.get("completed_at"),
        "metadata": record["metadata"],
    }


def _read_result(record: Any) -> dict[str, Any]:
    return {
        "item_id": _require_type(record["item_id"], int, "item_id"),
        "dataset_row": record.get("dataset_row", {}),
        "prompt": record.get("prompt"),
        "model_response": record.get("model_response"),
        "scores": [
            {
                "name": score["name"],
                "value": score["value"],
                # The file does not say which module a metric is from.
                "metrics": [f":{_require_type(name, str, 'metrics')}" for name in score["metrics"]],
                "metadata": score.get("metadata", {}),
            }
            for score in record.get("scores", [])
        ],
        "error": record.get("error"),
        "timestamp": record.get("timestamp", 0),
        "dataset_name": record.get("dataset_name"),
        "dataset_class": record.get("dataset_class"),
    }


def _require_type(value: Any, kind: type, name: str) -> Any:
    if type(value) is not kind:
        raise ValueError(f"{name} must be {kind.__name__}, not {type(value).__name__}")
    return value


# --- to the framework's files ---


def write(store: hutch.Store, path: Path) -> int:
    """Write all experiments below `path` as dotevals' JSON storage does; return the number of evaluations and results.

    Each file appears whole or not at all. A file that exists must be identical. Raises ConfigError for a name that no
    file can have, or a file that exists and differs, ValueTypeError for a value that JSON would change.
    """
    written = 0
    with store.open(NAMESPACE) as data:
        # Hide what a killed rename or deletion left behind; the bridge itself clears it up.
        names = {
            record["id"]: record.get("to", record["name"])
            for record in _records(data)
            if "from" not in record and "deleted" not in record
        }
        for experiment_id, name in names.items():
            folder = path / _folder_name(name)
            folder.mkdir(parents=True, exist_ok=True)
            files: dict[str, str] = {}
            for key, stored in data.scan(evaluations_prefix(experiment_id)):
                evaluation = validate_record(key, stored, EVALUATION_FIELDS)
                file = _file_name(evaluation["name"])
                other = files.setdefault(file.casefold(), evaluation["name"])
                if other != evaluation["name"]:
                    raise hutch.ConfigError(
                        f"evaluations {other!r} and {evaluation['name']!r} of experiment {name!r} would be the same "
                        "file; delete or leave out one of them"
                    )
                written += _write_evaluation(data, experiment_id, evaluation, folder / file)
    return written


def _folder_name(experiment: str) -> PurePosixPath:
    parts = experiment.split("/")
    if {"", ".", ".."} & set(parts) or _NOT_IN_A_FILE_NAME.search(experiment):
        raise hutch.ConfigError(f"experiment {experiment!r} cannot be the name of a folder; rename it")
    return PurePosixPath(*parts)


def _file_name(evaluation: str) -> str:
    name = evaluation.replace("/", "@") + ".jsonl"
    if _NOT_IN_A_FILE_NAME.search(name):
        raise hutch.ConfigError(f"evaluation {evaluation!r} cannot be the name of a file")
    return name


def _write_evaluation(data: hutch.Namespace, experiment_id: str, evaluation: dict[str, Any], file: Path) -> int:
    try:
        exists = validate_regular_file(file) is not None
    except OSError as error:
        if isinstance(error, hutch.StoreError) or raised_by_handler(error):
            raise
        raise hutch.ConfigError(f"evaluation {evaluation['name']!r} cannot be a file: {error.strerror}") from error
    count = 0
    if exists:
        with io.BufferedReader(open_existing(file)) as source:
            for line in _lines(data, experiment_id, evaluation):
                if source.read(len(line)) != line:
                    raise _differs(file)
                count += 1
            if source.read(1):
                raise _differs(file)
    else:
        with atomic_file(file, 0o600) as out:
            for line in _lines(data, experiment_id, evaluation):
                out.write(line)
                count += 1
    return count


def _differs(file: Path) -> hutch.ConfigError:
    return hutch.ConfigError(f"{file} exists and differs; export to an empty folder")


def _lines(data: hutch.Namespace, experiment_id: str, evaluation: dict[str, Any]) -> Iterator[bytes]:
    """Yield the lines of an evaluation's file: the evaluation, then each result, after a line feed."""
    head = {"evaluation_name": evaluation["name"], **{key: evaluation[key] for key in evaluation if key != "name"}}
    yield _json(head, evaluation_key(experiment_id, evaluation["name"])).encode()
    for key, result in data.scan(results_prefix(experiment_id, evaluation["name"])):
        try:
            scores = [
                {**score, "metrics": [metric_name(metric) for metric in score["metrics"]]} for score in result["scores"]
            ]
        except (KeyError, TypeError, AttributeError) as error:
            raise foreign_error(key) from error
        yield ("\n" + _json({**result, "scores": scores}, key)).encode()


def _json(value: dict[str, Any], key: str) -> str:
    _validate_json(value, key, "")
    return json.dumps(value)


def _validate_json(value: Any, key: str, where: str) -> None:
    if type(value) is dict:
        for name, item in value.items():
            if type(name) is not str:
                raise hutch.ValueTypeError(
                    f"the value of key {key!r} cannot be JSON: a name{where} is of type {type(name).__name__}, not str"
                )
            _validate_json(item, key, f"{where}[{name!r}]")
    elif type(value) is list:
        for number, item in enumerate(value):
            _validate_json(item, key, f"{where}[{number}]")
    elif value is not None and type(value) not in (bool, int, float, str):
        raise hutch.ValueTypeError(
            f"the value of key {key!r} cannot be JSON: {where.lstrip()} is of type {type(value).__name__}, which JSON "
            "does not give back"
        )
