"""Runs of Themis 4 in hutch: ``StorageConfig(store="hutch", parameters={"url": ...})``. See docs/bridges/themis.md.

Themis looks for no entry points; importing this module registers the storage.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable
from typing import Any

import hutch

from ..connections import shared_namespace
from .layout import BLOBS, RUNS, STAGE_CACHE, event_key, events_prefix, run_prefix, sequence_of, snapshot_key, stage_key

try:
    from themis.core.config import StorageConfig
    from themis.core.events import RunCompletedEvent, RunEvent, RunFailedEvent, event_from_dict
    from themis.core.projections import (
        build_benchmark_result_from_run_result,
        build_run_result_from_state,
        build_timeline_view,
        build_trace_view,
    )
    from themis.core.results import ExecutionState, RunStatus
    from themis.core.snapshot import RunSnapshot, StoredRun, snapshot_from_dict
    from themis.core.stores import register_store_backend
except ImportError as error:
    raise ImportError(
        "hutch.bridges.themis needs Themis 4 (4.0 or later, below 5), and Python 3.12 or later: "
        'pip install "themis-eval>=4,<5". For Themis 1.4 there is hutch.bridges.themis1'
    ) from error

# Themis's syntax for secrets in parameters. It stores such a text unexpanded, and redacts the password of a URL.
_REFERENCE = re.compile(r"env:(?P<name>[A-Z0-9_]+)|\$\{(?P<braced>[A-Z0-9_]+)\}")
_REDACTED = "<redacted>"


class HutchRunStore:
    """A run store of Themis, on any engine. `url` is as in `hutch.bridges.connections.shared_store`.

    It may also be ``env:NAME`` or ``${NAME}``, the environment variable that holds the URL. Any thread may use it, and
    any number of processes may use one run; it can be pickled; nothing has to be closed. Every method that writes is
    atomic, has stored its change when it returns, as durably as the engine is configured, and may be called again with
    the same arguments. Raises hutch.ConfigError for an unusable URL; the methods raise what the engine raises.
    """

    def __init__(self, url: str | None = None) -> None:
        self._url = _resolve_url(url)
        self._handles: dict[str, hutch.Namespace] = {}
        self._known: dict[str, _KnownEvents] = {}
        self._built: tuple[object, StoredRun, ExecutionState] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._url,)

    def initialize(self) -> None:
        """Connect, as every other method does too. Raises what `hutch.connect` raises."""
        self._open(RUNS)

    def persist_snapshot(self, snapshot: RunSnapshot) -> None:
        """Set the snapshot of its run. The run's events stay."""
        self._open(RUNS)[snapshot_key(snapshot.run_id)] = snapshot.model_dump(mode="json")

    def persist_event(self, event: RunEvent) -> None:
        """Append `event` to its run, after all events there, whichever process wrote them.

        An event that is already there, equal in all its fields, its time included, is not appended again.
        """
        run_id, value = event.run_id, event.model_dump(mode="json")
        identity, runs = _identity(value), self._open(RUNS)
        known = self._known.get(run_id)
        if known is None:
            known = self._known[run_id] = _KnownEvents()
            known.catch_up(runs, run_id)
        while True:
            last = known.last  # first, so that `sequences` then contains all events up to it, in any thread
            sequence = known.sequences.get(identity)
            if sequence is None:
                cleared = last > 0 and event_key(run_id, last) not in runs
            else:
                stored = runs.get(event_key(run_id, sequence))
                cleared = stored is None or _identity(stored) != identity
                if not cleared:
                    break
            if cleared:  # by another process: the numbers of the run may restart
                known = self._known[run_id] = _KnownEvents()
                known.catch_up(runs, run_id)
            elif runs.compare_and_set(event_key(run_id, last + 1), hutch.MISSING, value):
                known.add(identity, last + 1)
                break
            else:
                known.catch_up(runs, run_id)
        if isinstance(event, RunCompletedEvent | RunFailedEvent):
            self._known.pop(run_id, None)

    def query_events(self, run_id: str) -> list[RunEvent]:
        """Return the events of a run in the order they were appended, without those of types unknown to Themis."""
        events = []
        for _, value in self._open(RUNS).scan(events_prefix(run_id)):
            try:
                events.append(event_from_dict(value))
            except KeyError:
                continue
        return events

    def get_projection(self, run_id: str, projection_name: str) -> Any:
        """Return the projection of the run's current snapshot and events; None if there is no such run or name.

        While nobody appends to the run, a repeated call reads only the last event and the keys.
        """
        build = _PROJECTIONS.get(projection_name)
        runs = self._open(RUNS)
        snapshot = runs.get(snapshot_key(run_id))
        if build is None or snapshot is None:
            return None
        keys = list(runs.scan_keys(events_prefix(run_id)))
        made_of = (_identity(snapshot), len(keys), _identity(runs.get(keys[-1])) if keys else None)
        built = self._built
        if built is None or built[0] != made_of:
            run = _StoredRun(snapshot=snapshot_from_dict(snapshot), events=self.query_events(run_id))
            built = self._built = (made_of, run, run.execution_state)
        return build(*built[1:]).model_dump(mode="json")

    def store_blob(self, blob: bytes, media_type: str) -> str:
        """Store `blob` under its SHA-256, once; return the reference for `load_blob`. The first media type stays."""
        ref = f"sha256:{hashlib.sha256(blob).hexdigest()}"
        blobs = self._open(BLOBS)
        if ref not in blobs:
            blobs.compare_and_set(ref, hutch.MISSING, {"media_type": media_type, "payload": blob})
        return ref

    def load_blob(self, blob_ref: str) -> tuple[str, bytes] | None:
        """Return the media type and the bytes of a blob; None if it is missing."""
        try:
            value = self._open(BLOBS).get(blob_ref)
        except hutch.KeyLimitError:
            return None
        return None if value is None else (value["media_type"], value["payload"])

    def resume(self, run_id: str) -> StoredRun | None:
        """Return the snapshot and the events of a run; None if it has no snapshot."""
        snapshot = self._open(RUNS).get(snapshot_key(run_id))
        if snapshot is None:
            return None
        return _StoredRun(snapshot=snapshot_from_dict(snapshot), events=self.query_events(run_id))

    def load_stage_cache(self, stage_name: str, cache_key: str) -> Any:
        """Return what was last stored under these two names; None if nothing was."""
        value = self._open(STAGE_CACHE).get(stage_key(stage_name, cache_key))
        return None if value is None else value["payload"]

    def store_stage_cache(self, stage_name: str, cache_key: str, payload: Any) -> None:
        """Replace what is stored under these two names."""
        value = {"stage": stage_name, "key": cache_key, "payload": payload}
        self._open(STAGE_CACHE)[stage_key(stage_name, cache_key)] = value

    def clear_run(self, run_id: str) -> None:
        """Remove the snapshot and the events of a run, atomically. Blobs and the stage cache stay, for other runs."""
        runs = self._open(RUNS)
        runs.remove_many(list(runs.scan_keys(run_prefix(run_id))))
        self._known.pop(run_id, None)

    def _open(self, namespace: str) -> hutch.Namespace:
        handle = self._handles.get(namespace)
        if handle is None or not handle.is_open_storage():
            handle = self._handles[namespace] = shared_namespace(self._url, namespace)
        return handle


class _KnownEvents:
    """The events of a run that this process knows: all up to the sequence number `last`.

    When another process appends, this falls behind: the next key is taken, and `catch_up` reads the new events. An
    event takes about 130 bytes here, until its run has ended.
    """

    def __init__(self) -> None:
        self.sequences: dict[bytes, int] = {}
        self.last = 0

    def add(self, identity: bytes, sequence: int) -> None:
        self.sequences[identity] = sequence
        self.last = max(self.last, sequence)

    def catch_up(self, runs: hutch.Namespace, run_id: str) -> None:
        for key, value in runs.scan(events_prefix(run_id), start=event_key(run_id, self.last + 1)):
            self.add(_identity(value), sequence_of(key))


class _StoredRun(StoredRun):  # type: ignore[misc]  # Themis is not installed where mypy runs
    @property
    def execution_state(self) -> ExecutionState:
        return _state(self.snapshot.run_id, self.events)


def _identity(value: object) -> bytes:
    """Return bytes that are equal for equal JSON values, NaN included."""
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=16).digest()


def _state(run_id: str, events: Iterable[RunEvent]) -> ExecutionState:
    """Return what ``ExecutionState.from_events`` returns, in linear instead of quadratic time.

    Themis searches all cases for a failure at each event. Here Themis applies each event to a state with only the
    event's own case and one failed case, which gives the same result.
    """
    state = ExecutionState(run_id=run_id)
    running = ExecutionState(run_id=run_id, status=RunStatus.RUNNING)
    completed = RunCompletedEvent(run_id=run_id)
    every: dict[str, Any] = {}
    cases: dict[str, dict[str, Any]] = {}
    failed: dict[str, dict[str, Any]] = {}
    for event in events:
        case_id: Any = getattr(event, "case_id", None)
        own, other = cases.get(case_id, {}), next(iter(failed.values()), {})
        state = state.model_copy(update={"case_states": {**other, **own}}).apply_event(event)
        own = {key: case for key, case in state.case_states.items() if key in own or key not in other}
        if not own:
            continue
        cases[case_id] = own
        every.update(own)
        if running.model_copy(update={"case_states": own}).apply_event(completed).status is RunStatus.COMPLETED:
            failed.pop(case_id, None)
        else:
            failed[case_id] = own
    return state.model_copy(update={"case_states": every})


def _benchmark_result(run: StoredRun, state: ExecutionState) -> Any:
    result = build_benchmark_result_from_run_result(build_run_result_from_state(run.snapshot, state))
    return result.model_copy(
        update={
            "dataset_ids": [dataset.dataset_id for dataset in run.snapshot.datasets],
            "metric_ids": [metric.component_id for metric in run.snapshot.component_refs.metrics],
        }
    )


_PROJECTIONS: dict[str, Callable[[StoredRun, ExecutionState], Any]] = {
    "snapshot": lambda run, _: run.snapshot,
    "execution_state": lambda _, state: state,
    "run_result": lambda run, state: build_run_result_from_state(run.snapshot, state),
    "benchmark_result": _benchmark_result,
    "timeline_view": lambda run, _: build_timeline_view(run.snapshot, run.events),
    "trace_view": lambda run, _: build_trace_view(run.snapshot, run.events),
}


def _from_config(config: StorageConfig) -> HutchRunStore:
    parameters = dict(config.parameters)
    url = parameters.pop("url", None)
    if parameters:
        raise hutch.ConfigError(
            f"storage.parameters of the store 'hutch' has {sorted(parameters)[0]!r}; it takes 'url'"
        )
    if url is not None and not isinstance(url, str):
        raise hutch.ConfigError(f"storage.parameters.url of the store 'hutch' is a URL, not {type(url).__name__}")
    return HutchRunStore(url)


def _resolve_url(url: str | None) -> str | None:
    if url is None:
        return None
    if _REDACTED in url:
        raise hutch.ConfigError(
            "the storage URL has its password redacted: it comes from what Themis stored of a run, as it hands it to "
            "workers. Leave url out and set $HUTCH_STORAGE where the run is submitted and where it is worked on, or "
            "write url: env:NAME for a variable of another name"
        )
    reference = _REFERENCE.fullmatch(url.strip())
    if reference is None:
        return url
    name = reference["name"] or reference["braced"]
    value = os.environ.get(name)
    if not value:
        raise hutch.ConfigError(f"storage.parameters.url is {url!r}, and the environment variable {name} is not set")
    return value


register_store_backend("hutch", _from_config)
