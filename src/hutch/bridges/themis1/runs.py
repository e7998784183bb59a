"""Store the metadata of Themis 1.4's runs: start, finish, list, count, delete."""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any

from themis.backends.storage import StorageBackend
from themis.core import entities
from themis.exceptions import StorageError
from themis.storage import RetentionPolicy, RunMetadata, RunStatus

import hutch
from hutch.codec.msgpack import MsgpackCodec

from ..names import in_key
from .records import now, run_from_plain, run_metadata

# Longer names are hashed: a key takes 1,024 bytes, and holds a run's and an evaluation's.
_LONGEST_NAME_BYTES = 512
_LONGEST_EVALUATION_BYTES = 256

# What Themis calls the evaluations of a run that are given no name.
_DEFAULT_EVALUATION = "default"


class RunStorage(StorageBackend):  # type: ignore[misc]  # Themis is not installed where mypy runs
    """The methods of Themis's `ExperimentStorage` that concern whole runs, in one hutch namespace."""

    def __init__(
        self, data: hutch.Namespace, checkpoint_interval: int = 100, retention_policy: RetentionPolicy | None = None
    ) -> None:
        self._data = data
        self._checkpoint_interval = checkpoint_interval
        self._retention_policy = retention_policy

    @property
    def root(self) -> None:
        """None: there is no folder."""

    def get_run_path(self, run_id: str) -> None:
        """Return None: there is no folder, and Themis writes no files beside the store."""

    # --- one run ---

    def start_run(
        self, run_id: str, experiment_id: str = "default", config: dict[str, Any] | None = None
    ) -> RunMetadata:
        """Record that `run_id` is in progress; return its metadata.

        Raises themis StorageError if the run exists, unless it is in progress with the same config: then another
        process has just started it, and they share it.
        """
        started = run_metadata(run_id, {"experiment_id": experiment_id, "config_snapshot": config or {}})
        key = _run_key(run_id)
        while not self._data.compare_and_set(key, hutch.MISSING, started):
            stored = self._data.get(key)
            if stored is None:  # deleted meanwhile
                continue
            same = ("status", "experiment_id", "config_snapshot")
            if any(stored.get(name) != started[name] for name in same):
                raise StorageError(f"Run {run_id!r} already exists")
            return run_from_plain(stored)
        return run_from_plain(started)

    def save_run_metadata(self, run_id: str, metadata: dict[str, Any]) -> None:
        """Replace the metadata of `run_id`; missing fields get the defaults of Themis's RunMetadata."""
        self._data[_run_key(run_id)] = run_metadata(run_id, metadata)

    def load_run_metadata(self, run_id: str) -> dict[str, Any]:
        """Return the metadata of `run_id`. Raises FileNotFoundError if it is missing."""
        try:
            metadata: dict[str, Any] = self._data[_run_key(run_id)]
        except KeyError as error:
            raise _no_run(run_id) from error
        return metadata

    def complete_run(self, run_id: str) -> None:
        """Record that `run_id` is completed. Raises FileNotFoundError if it was never started."""
        self._change(run_id, status=RunStatus.COMPLETED.value, completed_at=now())

    def fail_run(self, run_id: str, error_message: str) -> None:
        """Record that `run_id` failed, and why. Raises FileNotFoundError if it was never started."""
        self._change(run_id, status=RunStatus.FAILED.value, error_message=str(error_message))

    def update_run_progress(
        self,
        run_id: str,
        total_samples: int | None = None,
        successful_generations: int | None = None,
        failed_generations: int | None = None,
    ) -> None:
        """Replace those of the counts that are given. Raises FileNotFoundError if the run was never started."""
        counts = {
            "total_samples": total_samples,
            "successful_generations": successful_generations,
            "failed_generations": failed_generations,
        }
        self._change(run_id, **{name: count for name, count in counts.items() if count is not None})

    def run_exists(self, run_id: str) -> bool:
        """Return whether `run_id` was started and not deleted."""
        return _run_key(run_id) in self._data

    run_metadata_exists = run_exists  # Themis's own storage has both names

    def save_checkpoint(self, run_id: str, checkpoint_data: dict[str, Any]) -> None:
        """Replace the checkpoint of `run_id`."""
        self._data[f"checkpoint/{name_of(run_id)}"] = checkpoint_data

    def load_latest_checkpoint(self, run_id: str) -> dict[str, Any] | None:
        """Return the checkpoint of `run_id`; None if none was saved."""
        checkpoint: dict[str, Any] | None = self._data.get(f"checkpoint/{name_of(run_id)}")
        return checkpoint

    def delete_run(self, run_id: str) -> None:
        """Remove everything stored for `run_id`, atomically. Raises FileNotFoundError if there is nothing."""
        # The run's own key last, for engines without atomic batches: an interrupted deletion can be repeated.
        if not self._data.remove_many([*self._part_keys(run_id), _run_key(run_id)]):
            raise _no_run(run_id)

    # --- all runs ---

    def list_run_ids(self) -> list[str]:
        """Return the runs that were started and not deleted, the newest first."""
        return [run.run_id for run in self.list_runs()]

    def list_runs(
        self, experiment_id: str | None = None, status: RunStatus | None = None, limit: int | None = None
    ) -> list[RunMetadata]:
        """Return the metadata of the `limit` newest runs, the newest first; of one experiment or status if given."""
        runs = [run_from_plain(metadata) for _, metadata in self._data.scan(prefix="run/")]
        if experiment_id:
            runs = [run for run in runs if run.experiment_id == experiment_id]
        if status:
            runs = [run for run in runs if run.status == status]
        runs.sort(key=lambda run: str(run.created_at), reverse=True)
        return runs[:limit] if limit else runs

    def apply_retention_policy(self, policy: RetentionPolicy | None = None) -> None:
        """Delete the runs that `policy`, or else the storage's own policy, does not keep; nothing without a policy.

        Each experiment keeps its `keep_latest_n` newest runs. Of the others those are deleted that are not completed
        (with `keep_completed_only`), are older than `max_age_days`, or exceed `max_runs_per_experiment`. As in Themis's
        own storage, `max_storage_gb` deletes nothing.
        """
        policy = policy or self._retention_policy
        if policy is None:
            return
        experiments: dict[str, list[RunMetadata]] = {}
        for run in self.list_runs():
            experiments.setdefault(run.experiment_id, []).append(run)
        for runs in experiments.values():
            for position, run in enumerate(runs):
                if not _is_retained(run, position, policy):
                    with suppress(FileNotFoundError):  # deleted meanwhile
                        self.delete_run(run.run_id)

    def get_storage_size(self, experiment_id: str | None = None) -> int:
        """Return the bytes of all keys and encoded values, of one experiment if given.

        Reads all of them. An engine's files are larger, and an engine that compresses takes less.
        """
        if not experiment_id:
            return sum(_size(key, value) for key, value in self._data.scan())
        total = 0
        for run in self.list_runs(experiment_id):
            for key in (*self._part_keys(run.run_id), _run_key(run.run_id)):
                value = self._data.get(key, hutch.MISSING)
                total += 0 if value is hutch.MISSING else _size(key, value)
        return total

    # --- inside ---

    def _part_keys(self, run_id: str) -> list[str]:
        """Return the keys of everything stored for `run_id`, except its metadata; some may be missing."""
        run = name_of(run_id)
        kinds = ("gen", "eval", "named-eval", "data", "report")
        keys = [key for kind in kinds for key in self._data.scan_keys(f"{kind}/{run}/")]
        return [*keys, f"data/{run}", f"report/{run}", f"checkpoint/{run}"]

    def _start_missing_run(self, run_id: str) -> None:
        if self.run_exists(run_id):
            return
        with suppress(StorageError):  # started meanwhile
            self.start_run(run_id)

    def _count_record(self, run_id: str, record: entities.GenerationRecord) -> None:
        """Count `record` in the metadata of `run_id`, and save a checkpoint if one is due."""

        def counted(metadata: dict[str, Any]) -> dict[str, Any]:
            return {
                **metadata,
                "total_samples": metadata["total_samples"] + 1,
                "successful_generations": metadata["successful_generations"] + bool(record.output),
                "failed_generations": metadata["failed_generations"] + bool(record.error),
                "updated_at": now(),
            }

        try:
            metadata = self._data.modify(_run_key(run_id), counted)
        except KeyError as error:
            raise _no_run(run_id) from error
        successful, failed = metadata["successful_generations"], metadata["failed_generations"]
        if self._checkpoint_interval > 0 and (successful + failed) % self._checkpoint_interval == 0:
            counts = {"total_samples": successful + failed, "successful": successful, "failed": failed}
            self.save_checkpoint(run_id, {**counts, "timestamp": now()})

    def _change(self, run_id: str, **changes: Any) -> None:
        changes["updated_at"] = now()
        try:
            self._data.modify(_run_key(run_id), lambda metadata: {**metadata, **changes})
        except KeyError as error:
            raise _no_run(run_id) from error


def name_of(run_id: str) -> str:
    """Return `run_id` as a part of a key; the metadata holds the id itself."""
    return in_key(run_id, _LONGEST_NAME_BYTES)


def evaluations_key(run_id: str, eval_id: str) -> str:
    """Return what the keys of the evaluations of `run_id` under `eval_id` start with."""
    if eval_id == _DEFAULT_EVALUATION:
        return f"eval/{name_of(run_id)}"
    return f"named-eval/{name_of(run_id)}/{in_key(eval_id, _LONGEST_EVALUATION_BYTES)}"


def _is_retained(run: RunMetadata, position: int, policy: RetentionPolicy) -> bool:
    """Return whether `policy` keeps `run`, with `position` newer runs in its experiment."""
    if position < policy.keep_latest_n:
        return True
    if policy.keep_completed_only and run.status != RunStatus.COMPLETED:
        return False
    # A time without an offset is local: Themis's own storage writes them so.
    age = datetime.fromisoformat(now()) - datetime.fromisoformat(run.created_at).astimezone()
    if policy.max_age_days and age > timedelta(days=policy.max_age_days):
        return False
    return not policy.max_runs_per_experiment or position < policy.max_runs_per_experiment


def _size(key: str, value: object) -> int:
    _, body = MsgpackCodec().encode(value)
    return len(key.encode()) + len(body)


def _run_key(run_id: str) -> str:
    return f"run/{name_of(run_id)}"


def _no_run(run_id: str) -> FileNotFoundError:
    return FileNotFoundError(f"Run not found: {run_id!r}")
