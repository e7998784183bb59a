"""Test the bridge to Themis 4 with the real Themis: its experiments, its command line, its workers and its stores."""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import random
import re
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from themis import Experiment, Reporter, quickcheck
from themis.core import bundles
from themis.core.config import EvaluationConfig, GenerationConfig, RuntimeConfig, StorageConfig
from themis.core.events import (
    EvaluationFailedEvent,
    GenerationCompletedEvent,
    GenerationFailedEvent,
    ParseFailedEvent,
    RunCompletedEvent,
    RunEvent,
    RunFailedEvent,
    RunStartedEvent,
    ScoreCompletedEvent,
    ScoreFailedEvent,
    SelectionCompletedEvent,
    SelectionFailedEvent,
    StepStartedEvent,
)
from themis.core.models import Case, Dataset, GenerationResult
from themis.core.projections import STORE_PROJECTION_NAMES
from themis.core.results import ExecutionState, RunStatus
from themis.core.snapshot import RunSnapshot
from themis.core.store import RunStore
from themis.core.stores import InMemoryRunStore, available_store_backends, create_run_store, sqlite_store

import hutch
from hutch import transfer
from hutch.bridges.connections import close_shared, shared_namespace, shared_store
from hutch.bridges.themis import HutchRunStore
from hutch.bridges.themis import sqlite_files as themis_sqlite
from hutch.bridges.themis.layout import BLOBS, RUNS, STAGE_CACHE, event_key, events_prefix
from tests.bridges.processes import run, run_until
from tests.pages import blocks

pytestmark = pytest.mark.timeout(120)

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "bridges" / "themis.md"


class Answers:
    """A generator that counts its requests, and fails for a case called broken."""

    component_id = "generator/answers"
    version = "1"

    def __init__(self) -> None:
        self.asked: list[str] = []

    def fingerprint(self) -> str:
        return "answers"

    async def generate(self, case: Case, ctx: Any) -> GenerationResult:
        self.asked.append(case.case_id)
        if case.case_id == "broken":
            raise ValueError("no answer")
        await asyncio.sleep(0)
        return GenerationResult(candidate_id=f"{case.case_id}-{ctx.seed}", final_output=case.expected_output)


def experiment(
    url: str | None = None, *cases: str, generator: object = "builtin/demo_generator", judged: bool = False, **more: Any
) -> Experiment:
    """Return an experiment on these cases; `judged` also asks a judge model."""
    metrics = ["builtin/exact_match", *(["builtin/llm_rubric"] if judged else [])]
    return Experiment(
        generation=GenerationConfig(
            generator=generator, candidate_policy={"num_samples": 1}, reducer="builtin/majority_vote"
        ),
        evaluation=EvaluationConfig(
            metrics=metrics,
            parsers=["builtin/json_identity"],
            judge_models=["builtin/demo_judge"] if judged else [],
            workflow_overrides={"rubric": "pass if right"} if judged else {},
        ),
        storage=StorageConfig(store="hutch", parameters={} if url is None else {"url": url}),
        datasets=[
            Dataset(
                dataset_id="d",
                cases=[Case(case_id=case, input={"q": case}, expected_output={"answer": case}) for case in cases],
            )
        ],
        seeds=[7],
        git_commit="0",
        **more,
    )


def cases_of(number: int) -> list[str]:
    return [f"case-{index}" for index in range(number)]


def snapshot_of(*cases: str, **more: Any) -> RunSnapshot:
    return experiment(None, *(cases or ("a",)), **more).compile()


def failed(run_id: str, case_id: str) -> RunEvent:
    return GenerationFailedEvent(run_id=run_id, case_id=case_id, candidate_id=f"{case_id}-1", error_message="no")


def as_themis_has_it(store: RunStore, run_id: str) -> InMemoryRunStore:
    """Return the same run in Themis's own store, which makes its projections event by event."""
    theirs = InMemoryRunStore()
    stored = store.resume(run_id)
    assert stored is not None
    theirs.persist_snapshot(stored.snapshot)
    for event in stored.events:
        theirs.persist_event(event)
    return theirs


def assert_same_projections(store: RunStore, run_id: str) -> None:
    theirs = as_themis_has_it(store, run_id)
    for name in STORE_PROJECTION_NAMES:
        assert store.get_projection(run_id, name) == theirs.get_projection(run_id, name), name


# --- runs ---


@pytest.mark.parametrize("judged", [False, True], ids=["scored", "judged"])
def test_a_run_leaves_what_themis_s_own_store_would_have_and_reports_the_same(url: str, judged: bool) -> None:
    one = experiment(url, *cases_of(4), "broken", "Zürich 🧀", generator=Answers(), judged=judged)
    result = one.run()
    assert result.status is RunStatus.PARTIAL_FAILURE
    assert (result.progress.completed_cases, result.progress.failed_cases) == (5, 1)

    store = create_run_store(one.storage)
    assert isinstance(store, RunStore)
    assert_same_projections(store, result.run_id)
    theirs = as_themis_has_it(store, result.run_id)
    for export in ("export_json", "export_markdown", "export_csv", "export_latex", "export_score_table"):
        assert getattr(Reporter(store), export)(result.run_id) == getattr(Reporter(theirs), export)(result.run_id)
    assert quickcheck(store, result.run_id) == quickcheck(theirs, result.run_id)
    for case in result.cases:
        for ref in [*case.generated_candidate_blob_refs.values(), *case.evaluation_execution_blob_refs.values()]:
            kind, payload = store.load_blob(ref)
            assert kind == "application/json"
            assert isinstance(json.loads(payload), dict)


def test_every_kind_of_bundle_goes_from_one_store_to_another(url: str, tmp_path: Path) -> None:
    one = experiment(url, *cases_of(3), judged=True)
    run_id = one.run().run_id
    source, target = create_run_store(one.storage), HutchRunStore(f"lmdb://{(tmp_path / 'target').as_posix()}")
    for kind in ("generation", "reduction", "parse", "score", "evaluation"):
        bundle = getattr(bundles, f"export_{kind}_bundle")(source, run_id)
        assert bundle.records
        getattr(bundles, f"import_{kind}_bundle")(target, bundle)
    assert_same_projections(target, run_id)
    (ours, theirs) = (store.get_projection(run_id, "benchmark_result")["score_rows"] for store in (target, source))
    assert ours == theirs
    assert len(ours) == 6


def test_a_run_that_is_complete_is_not_run_again_and_one_with_failures_repeats_only_those(url: str) -> None:
    answers = Answers()
    whole = experiment(url, *cases_of(3), generator=answers)
    first = whole.run()
    assert whole.run() == first
    assert len(answers.asked) == 3

    answers.asked.clear()
    partly = experiment(url, "a", "broken", generator=answers)
    partly.run()
    partly.run()
    assert sorted(answers.asked) == ["a", "broken", "broken"]


def test_a_finished_stage_can_be_continued_replayed_rejudged_and_rerun(url: str) -> None:
    answers = Answers()
    one = experiment(url, *cases_of(3), generator=answers, judged=True)
    assert one.run(until_stage="parse").completed_through_stage == "parse"
    assert one.run().completed_through_stage == "judge"
    assert one.replay(stage="score").status is RunStatus.COMPLETED
    assert one.rejudge().status is RunStatus.COMPLETED
    assert len(answers.asked) == 3
    store = create_run_store(one.storage)
    assert_same_projections(store, one.compile().run_id)

    again = one.run(runtime=RuntimeConfig(existing_run_policy="rerun"))
    assert again.status is RunStatus.COMPLETED
    events = store.query_events(again.run_id)
    assert [event.event_type for event in events].count("run_started") == 1
    assert all(event.cache_hit for event in events if isinstance(event, GenerationCompletedEvent))
    assert len(answers.asked) == 3, "the stage cache is shared by runs"
    with pytest.raises(ValueError, match="Run already exists"):
        one.run(runtime=RuntimeConfig(existing_run_policy="error"))


def test_the_stage_cache_serves_other_runs_on_the_same_data(url: str) -> None:
    answers = Answers()
    experiment(url, *cases_of(3), generator=answers).run()
    experiment(url, *cases_of(3), generator=answers, judged=True).run()
    assert len(answers.asked) == 3


# --- the store's own promises ---


def test_a_missing_entry_is_none_or_empty(url: str) -> None:
    store = HutchRunStore(url)
    store.initialize()
    store.initialize()
    for name in ("nobody", "", "x" * 5000):
        assert store.resume(name) is None
        assert store.query_events(name) == []
        assert store.get_projection(name, "run_result") is None
        assert store.load_blob(name) is None
        assert store.load_stage_cache(name, name) is None
        store.clear_run(name)
    snapshot = snapshot_of()
    store.persist_snapshot(snapshot)
    assert store.get_projection(snapshot.run_id, "no_such_view") is None
    assert store.get_projection(snapshot.run_id, "snapshot") == snapshot.model_dump(mode="json")
    assert_same_projections(store, snapshot.run_id)


def test_blobs_are_stored_once_under_their_content_and_keep_their_first_media_type(url: str) -> None:
    store = HutchRunStore(url)
    for blob in (b"", b"\x00\xff" * 100_000):
        ref = store.store_blob(blob, "application/x-first")
        assert store.store_blob(blob, "application/x-second") == ref
        assert store.load_blob(ref) == ("application/x-first", blob)
    assert len(shared_namespace(url, BLOBS)) == 2


def test_the_stage_cache_keeps_stages_and_keys_of_any_name_apart_and_the_last_payload(url: str) -> None:
    store = HutchRunStore(url)
    names = ["", "a", "a/b", "b", "é\n🧀", "x" * 2000, "x" * 2001]
    for stage in names:
        for key in names:
            store.store_stage_cache(stage, key, "old")
            store.store_stage_cache(stage, key, {"at": [stage, key, None, 1.5]})
    for stage in names:
        for key in names:
            assert store.load_stage_cache(stage, key) == {"at": [stage, key, None, 1.5]}


def test_clearing_a_run_leaves_other_runs_blobs_and_the_stage_cache(url: str) -> None:
    store = HutchRunStore(url)
    one = experiment(url, "a").run().run_id
    other = experiment(url, "b").run().run_id
    for name in ("", "é", one + "/events", one[:-1], one + "0", "x" * 3000):
        store.persist_event(RunStartedEvent(run_id=name))
    blobs, cached = dict(shared_namespace(url, BLOBS)), dict(shared_namespace(url, STAGE_CACHE))
    store.clear_run(one)
    assert store.resume(one) is None
    assert store.query_events(one) == []
    assert len(store.query_events(other)) == 6
    for name in ("", "é", one + "/events", one[:-1], one + "0", "x" * 3000):
        assert [event.run_id for event in store.query_events(name)] == [name]
    assert dict(shared_namespace(url, BLOBS)) == blobs
    assert dict(shared_namespace(url, STAGE_CACHE)) == cached


def test_events_come_back_as_they_were_in_order_and_types_of_a_later_themis_are_passed_over(url: str) -> None:
    store = HutchRunStore(url)
    events = [RunStartedEvent(run_id="r", extra={"big": 2**70, "a": [None, 1.5, "🧀"]})]
    events += [failed("r", f"case-{number}") for number in range(11)]
    odd = {"value": float("nan"), "details": {"most": float("inf"), "least": -0.0}}
    events += [ScoreCompletedEvent(run_id="r", case_id="c", candidate_id="x", metric_id="m", score=odd)]
    for event in events:
        store.persist_event(event)
        store.persist_event(event)
    later = {"schema_version": "2", "event_type": "of_a_later_themis", "run_id": "r"}
    shared_namespace(url, RUNS)[event_key("r", 14)] = later
    store.persist_event(RunCompletedEvent(run_id="r"))
    *found, scored, _ = store.query_events("r")
    assert found == events[:-1]
    assert repr(scored.score) == repr(odd)  # NaN is not equal to itself
    assert store.query_events("r")[-1].event_type == "run_completed"
    assert store.resume("r") is None, "it has no snapshot yet"
    keys = list(shared_namespace(url, RUNS).scan_keys(events_prefix("r")))
    assert keys == [event_key("r", number) for number in range(1, 16)]


def test_an_event_persisted_again_by_any_process_is_stored_once(url: str) -> None:
    store, other = HutchRunStore(url), HutchRunStore(url)
    events = [
        failed("r", "a"),
        failed("r", "b"),
        RunCompletedEvent(run_id="r"),
        RunFailedEvent(run_id="r", error_message=""),
    ]
    for event in events:
        for writer in (store, other, store):
            writer.persist_event(event)
            writer.persist_event(event.model_copy(deep=True))
    HutchRunStore(url).persist_event(events[0])
    assert store.query_events("r") == events
    # Equal except for their time: two events.
    store.persist_event(failed("r", "a"))
    assert len(store.query_events("r")) == 5


def test_an_event_persisted_again_after_its_run_was_cleared_elsewhere_is_stored_again(url: str) -> None:
    store = HutchRunStore(url)
    events = [failed("r", case) for case in "abc"]
    for event in events:
        store.persist_event(event)
    HutchRunStore(url).clear_run("r")
    store.persist_event(events[1])
    HutchRunStore(url).persist_event(events[2])
    store.persist_event(events[2])
    assert store.query_events("r") == events[1:]


def test_a_run_cleared_and_restarted_elsewhere_appends_to_the_current_events(url: str) -> None:
    store, other = HutchRunStore(url), HutchRunStore(url)
    for number in range(5):
        store.persist_event(failed("r", f"old-{number}"))
    other.clear_run("r")
    events = [failed("r", f"new-{number}") for number in range(8)]
    for number, event in enumerate(events):
        (other if number % 3 < 2 else store).persist_event(event)
    assert store.query_events("r") == events
    keys = list(shared_namespace(url, RUNS).scan_keys(events_prefix("r")))
    assert keys == [event_key("r", number) for number in range(1, 9)]


class FailsOnce(HutchRunStore):
    """Loses its connection once per event and blob, before or after it was stored."""

    def __init__(self, url: str, after: bool) -> None:
        super().__init__(url)
        self._after = after
        self.lost = 0
        self._seen: set[object] = set()

    def persist_event(self, event: RunEvent) -> None:
        self._once(id(event), lambda: super(FailsOnce, self).persist_event(event))

    def store_blob(self, blob: bytes, media_type: str) -> str:
        return str(self._once(blob, lambda: super(FailsOnce, self).store_blob(blob, media_type)))

    def _once(self, what: object, do: Callable[[], object]) -> object:
        if what in self._seen:
            return do()
        self._seen.add(what)
        self.lost += 1
        if self._after:
            do()
        raise hutch.StorageUnavailableError("lost")


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_what_themis_retries_after_a_lost_answer_is_not_doubled(url: str, after: bool) -> None:
    one = experiment(url, *cases_of(3), judged=True, runtime=RuntimeConfig(store_retry_delay=0.0))
    # Themis does not keep its events; a second one must not get the id of a first.
    kept: list[RunEvent] = []
    store = FailsOnce(url, after)
    result = one.run(store=store, subscribers=[Keeper(kept)])
    assert result.status is RunStatus.COMPLETED
    assert store.lost > 20
    assert HutchRunStore(url).query_events(result.run_id) == kept


class Keeper:
    def __init__(self, kept: list[RunEvent]) -> None:
        self._kept = kept

    def on_event(self, event: RunEvent) -> None:
        self._kept.append(event)


def test_projections_follow_the_events_of_others_and_are_not_made_twice(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, other = HutchRunStore(url), HutchRunStore(url)
    snapshot = snapshot_of("a", "b")
    reads: list[str] = []
    read = HutchRunStore.query_events

    def noted(self: HutchRunStore, run_id: str) -> list[RunEvent]:
        reads.append(run_id)
        return read(self, run_id)

    monkeypatch.setattr(HutchRunStore, "query_events", noted)
    store.persist_snapshot(snapshot)
    for case in ("a", "b", "a"):
        other.persist_event(failed(snapshot.run_id, case))
        assert_same_projections(store, snapshot.run_id)
    reads.clear()
    first = store.get_projection(snapshot.run_id, "run_result")
    first["cases"].clear()
    assert len(store.get_projection(snapshot.run_id, "run_result")["cases"]) == 2, "what it gave was changed"
    assert reads == []
    other.clear_run(snapshot.run_id)
    assert store.get_projection(snapshot.run_id, "run_result") is None
    other.persist_snapshot(snapshot)
    for case in ("b", "b", "b"):
        other.persist_event(failed(snapshot.run_id, case))
    assert_same_projections(store, snapshot.run_id)
    other.persist_snapshot(snapshot.model_copy(update={"datasets": []}))
    assert_same_projections(store, snapshot.run_id)


def test_the_state_of_a_run_is_what_themis_makes_of_any_events() -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    rng = random.Random(seed)
    store, snapshot, statuses = HutchRunStore("memory://"), snapshot_of(*"abcd"), set()
    for _ in range(150):
        store.persist_snapshot(snapshot)
        failures, kinds = rng.choice((0.0, 0.1, 0.3)), rng.choice(("all", "healing"))
        for _ in range(rng.randrange(40)):
            store.persist_event(any_event(rng, snapshot.run_id, kinds if rng.random() < failures else ""))
        stored = store.resume(snapshot.run_id)
        assert stored is not None
        expected = ExecutionState.from_events(snapshot.run_id, stored.events)
        assert stored.execution_state == expected
        assert list(stored.execution_state.case_states) == list(expected.case_states)
        statuses.add(expected.status)
        store.clear_run(snapshot.run_id)
    assert statuses == set(RunStatus)


def test_a_failure_that_was_made_good_in_time_does_not_count(url: str) -> None:
    store, snapshot = HutchRunStore(url), snapshot_of("a", "b")
    store.persist_snapshot(snapshot)
    a, b = ({"run_id": snapshot.run_id, "case_id": case} for case in "ab")
    store.persist_event(RunStartedEvent(run_id=snapshot.run_id))
    store.persist_event(SelectionFailedEvent(**a, error_message="e"))
    store.persist_event(SelectionCompletedEvent(**a, candidate_ids=["x"]))
    store.persist_event(SelectionCompletedEvent(**b, candidate_ids=["x"]))
    store.persist_event(RunCompletedEvent(run_id=snapshot.run_id))
    assert store.get_projection(snapshot.run_id, "execution_state")["status"] == "completed"
    assert_same_projections(store, snapshot.run_id)


def any_event(rng: random.Random, run_id: str, failures: str) -> RunEvent:
    """Return an event without a failure, with a failure that a later event may clear, or with any failure."""
    one = {"run_id": run_id, "case_id": rng.choice("abc")}
    candidate = one | {"candidate_id": rng.choice("xy")}
    metric = "m" if failures != "all" else rng.choice("mn")
    scored = candidate | {"metric_id": metric}
    healing: list[Callable[[], RunEvent]] = [
        lambda: ScoreFailedEvent(**scored, error={"metric_id": metric, "reason": "e"}),
        lambda: SelectionFailedEvent(**one, error_message="e"),
    ]
    if failures == "healing":
        return rng.choice(healing)()
    if failures == "all":
        final: list[Callable[[], RunEvent]] = [
            lambda: RunFailedEvent(run_id=run_id, error_message="e"),
            lambda: GenerationFailedEvent(**candidate, error_message="e"),
            lambda: ParseFailedEvent(**candidate, error_message="e"),
            lambda: EvaluationFailedEvent(**scored, error_message="e"),
        ]
        return rng.choice(healing + final)()
    good: list[Callable[[], RunEvent]] = [
        lambda: RunStartedEvent(run_id=run_id),
        lambda: RunCompletedEvent(run_id=run_id),
        lambda: GenerationCompletedEvent(**candidate, result={"candidate_id": "c", "final_output": 1}),
        lambda: GenerationCompletedEvent(**candidate),
        *[lambda: SelectionCompletedEvent(**one, candidate_ids=["x"])] * 3,
        *[lambda: ScoreCompletedEvent(**scored, score={"metric_id": metric, "value": 1.0})] * 3,
        lambda: StepStartedEvent(run_id=run_id, workflow_id="w", step_id="s", step_type="t"),
    ]
    return rng.choice(good)()


# --- threads and processes ---


def test_threads_append_to_one_run_through_one_store_and_through_their_own(url: str) -> None:
    shared, wrong = HutchRunStore(url), []

    def append(thread: int) -> None:
        store = shared if thread % 2 else HutchRunStore(url)
        try:
            for number in range(25):
                event = failed("r", f"{thread}-{number}")
                store.persist_event(event)
                store.persist_event(event)
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=append, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert_all_there(url, threads=4, each=25)


def assert_all_there(url: str, threads: int, each: int) -> None:
    """Assert that each event is there once, numbers have no gap, and each writer's events are in order."""
    keys = list(shared_namespace(url, RUNS).scan_keys(events_prefix("r")))
    assert keys == [event_key("r", number) for number in range(1, threads * each + 1)]
    written = [event.case_id.split("-") for event in HutchRunStore(url).query_events("r")]
    for thread in range(threads):
        assert [int(number) for writer, number in written if int(writer) == thread] == list(range(each))


def test_experiments_run_at_once_in_threads(url: str) -> None:
    results: dict[int, Any] = {}

    def work(number: int) -> None:
        results[number] = experiment(url, *[f"{number}-{case}" for case in cases_of(5)]).run()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [results[number].status for number in range(3)] == [RunStatus.COMPLETED] * 3


APPEND = """
import sys, threading
from themis.core.events import GenerationFailedEvent
from hutch.bridges.themis import HutchRunStore
url, first, each = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
store = HutchRunStore(url)
print("ready", flush=True)
def append(writer):
    for number in range(each):
        case = f"{writer}-{number}"
        store.persist_event(GenerationFailedEvent(run_id="r", case_id=case, candidate_id="c", error_message="no"))
threads = [threading.Thread(target=append, args=(first + number,)) for number in range(2)]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""


def test_processes_append_to_one_run_at_once_and_no_event_is_lost_or_doubled(lasting_url: str, tmp_path: Path) -> None:
    wrong: list[BaseException] = []

    def work(first: int) -> None:
        try:
            run(APPEND, lasting_url, str(first), "40", folder=tmp_path)
        except BaseException as error:
            wrong.append(error)

    others = [threading.Thread(target=work, args=(first,)) for first in (0, 2, 4)]
    for thread in others:
        thread.start()
    for thread in others:
        thread.join()
    assert wrong == []
    assert_all_there(lasting_url, threads=6, each=40)


KILLED = """
import asyncio, sys
from themis import Experiment
from themis.core.config import EvaluationConfig, GenerationConfig, RuntimeConfig, StorageConfig
from themis.core.models import Case, Dataset, GenerationResult
import hutch.bridges.themis

class Answers:
    component_id, version = "generator/named", "1"
    def fingerprint(self): return "named"
    async def generate(self, case, ctx):
        print("asked", case.case_id, flush=True)
        await asyncio.sleep(0.002)
        return GenerationResult(candidate_id=case.case_id, final_output=case.expected_output)

class Told:
    def on_event(self, event):
        print("stored", event.event_type, getattr(event, "case_id", ""), flush=True)

cases = [Case(case_id=f"case-{n}", input=n, expected_output={"answer": n}) for n in range(30)]
result = Experiment(
    generation=GenerationConfig(generator=Answers(), reducer="builtin/majority_vote"),
    evaluation=EvaluationConfig(metrics=["builtin/exact_match"], parsers=["builtin/json_identity"]),
    storage=StorageConfig(store="hutch", parameters={"url": sys.argv[1]}),
    runtime=RuntimeConfig(max_concurrent_tasks=3),
    datasets=[Dataset(dataset_id="d", cases=cases)],
).run(subscribers=[Told()])
print("result", result.run_id, result.status.value, result.progress.completed_cases)
"""


def test_a_killed_run_resumes_and_repeats_no_finished_case(lasting_url: str, tmp_path: Path) -> None:
    when = (
        random.choice(["stored reduction_completed", "stored score_completed", "asked"])
        + f" case-{random.randrange(8, 20)}"
    )
    print("killed when it says", when)
    first = run_until(when, KILLED, lasting_url, folder=tmp_path)
    second = run(KILLED, lasting_url, folder=tmp_path)

    *_, (_, run_id, status, completed) = (line.split() for line in second)
    assert (status, completed) == ("completed", "30")
    acknowledged = [line for line in first if line.startswith("stored")]
    generated = {line.split()[2] for line in acknowledged if "generation_completed" in line}
    # Of eight or more: three run at a time, and Themis starts the next before it stores an answer.
    assert len(generated) >= 4
    asked_again = {line.split()[1] for line in second if line.startswith("asked")}
    assert not asked_again & generated

    store = HutchRunStore(lasting_url)
    events = store.query_events(run_id)
    stored = Counter(f"stored {event.event_type} {getattr(event, 'case_id', '')}" for event in events)
    assert all(stored[line] == 1 for line in acknowledged)
    assert [stored[f"stored score_completed {case}"] for case in cases_of(30)] == [1] * 30
    assert stored["stored run_started "] == 1
    assert_same_projections(store, run_id)


# --- Themis's own commands, in processes of their own ---

CONFIG = """
generation: {generator: builtin/demo_generator, candidate_policy: {num_samples: 1}, reducer: builtin/majority_vote}
evaluation: {metrics: [builtin/exact_match, builtin/llm_rubric], parsers: [builtin/json_identity],
             judge_models: [builtin/demo_judge], workflow_overrides: {rubric: pass if right}}
storage: {store: hutch, parameters: {url: "URL"}}
datasets:
  - {dataset_id: d, cases: [{case_id: case-1, input: {q: 1}, expected_output: {answer: "4"}}]}
seeds: [SEED]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for seed in (7, 8):
        text = CONFIG.replace("SEED", str(seed)).replace("URL", "env:THE_URL")
        (tmp_path / f"experiment-{seed}.yaml").write_text(text, encoding="utf-8")
    return tmp_path


def command(
    folder: Path, *arguments: str, module: str = "hutch.bridges.themis", fails: bool = False, url: str = ""
) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HUTCH_")}
    environment |= {"THE_URL": url or f"sqlite://{(folder / 'state.db').as_posix()}", "PYTHONUTF8": "1"}
    if url:
        environment["HUTCH_STORAGE"] = url
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=folder,
        env=environment,
        check=False,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=100,
    )
    assert (done.returncode != 0) == fails, done.stdout + done.stderr
    return done.stderr if fails else done.stdout


def test_the_command_line_of_themis_does_all_it_does_on_its_own_stores(folder: Path) -> None:
    config = ("--config", "experiment-7.yaml")
    ran = json.loads(command(folder, "run", *config))
    assert ran["status"] == "completed"
    assert ran["metric_means"] == {"builtin/exact_match": 1.0, "builtin/llm_rubric": 1.0}
    assert json.loads(command(folder, "resume", *config))["completed_cases"] == 1
    assert "status: completed" in command(folder, "report", *config, "--format", "markdown")
    assert json.loads(command(folder, "quickcheck", *config))["completed_cases"] == 1
    assert json.loads(command(folder, "inspect", "state", *config))["status"] == "completed"
    judged = ("--case-id", "case-1", "--metric-id", "builtin/llm_rubric")
    assert json.loads(command(folder, "inspect", "evaluation", *config, *judged))["status"] == "completed"
    assert len(json.loads(command(folder, "export", "evaluation", *config))["records"]) == 1
    assert json.loads(command(folder, "replay", *config, "--stage", "judge"))["status"] == "completed"
    compared = json.loads(
        command(folder, "compare", "--baseline-config", "experiment-7.yaml", "--candidate-config", "experiment-7.yaml")
    )
    assert compared["metrics"]["builtin/exact_match"]["ties"] == 1


def test_workers_and_batches_in_processes_of_their_own_work_on_what_was_submitted(folder: Path) -> None:
    command(folder, "submit", "--config", "experiment-7.yaml", "--mode", "worker-pool")
    message = json.loads(command(folder, "submit", "--config", "experiment-8.yaml", "--mode", "batch"))
    assert message["status"] == "pending"
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    url = f"sqlite://{(folder / 'state.db').as_posix()}"
    worked = json.loads(command(elsewhere, "worker", "run", "--queue-root", str(folder / "runs" / "queue"), url=url))
    assert worked["status"] == "completed"
    assert json.loads(command(elsewhere, "batch", "run", "--request", message["manifest_path"], url=url)) == {
        "run_id": message["run_id"],
        "status": "completed",
    }
    for seed in (7, 8):
        assert json.loads(command(folder, "resume", "--config", f"experiment-{seed}.yaml"))["status"] == "completed"


def test_themis_s_own_command_has_the_store_when_a_component_s_module_imports_the_bridge(folder: Path) -> None:
    unknown = command(folder, "run", "--config", "experiment-7.yaml", module="themis.cli", fails=True)
    assert "Unsupported store backend: hutch" in unknown
    (folder / "mine.py").write_text(
        "import hutch.bridges.themis\nfrom themis.catalog import load\n\ngenerator = load('builtin/demo_generator')\n"
    )
    config = folder / "experiment-7.yaml"
    config.write_text(config.read_text().replace("generator: builtin/demo_generator", "generator: mine:generator"))
    ran = json.loads(command(folder, "run", "--config", "experiment-7.yaml", module="themis.cli"))
    assert ran["status"] == "completed"


def test_a_password_is_in_no_record_of_a_run_and_workers_take_it_from_the_environment(
    folder: Path, redis_server: Any
) -> None:
    # Redis takes any password for a user without one.
    url = redis_server.url.replace("redis://", "redis://default:pa55word@") + f"?prefix={folder.name}"
    one = experiment(url, "a")
    run_id = one.run().run_id
    with hutch.connect(url) as store:
        for name in store.namespaces():
            with store.open(name) as namespace:
                assert "pa55word" not in repr(dict(namespace))
    stored = create_run_store(one.storage).resume(run_id)
    assert stored is not None
    assert "<redacted>" in stored.snapshot.provenance.storage.parameters["url"]
    with pytest.raises(hutch.ConfigError, match=r"password redacted.*\$HUTCH_STORAGE") as message:
        create_run_store(stored.snapshot.provenance.storage)
    assert "pa55word" not in str(message.value)

    config = folder / "experiment-7.yaml"
    config.write_text(config.read_text().replace(', parameters: {url: "env:THE_URL"}', ""))
    command(folder, "submit", "--config", "experiment-7.yaml", "--mode", "worker-pool", url=url)
    worked = command(folder, "worker", "run", "--queue-root", str(folder / "runs" / "queue"), url=url)
    assert json.loads(worked)["status"] == "completed"
    assert HutchRunStore(url).resume(json.loads(worked)["run_id"]) is not None
    for file in (folder / "runs").rglob("*.json"):
        assert "pa55word" not in file.read_text()


# --- in and out ---


def test_runs_of_themis_s_sqlite_store_come_in_go_on_and_go_out_again(lasting_url: str, tmp_path: Path) -> None:
    old, new = tmp_path / "old.sqlite3", tmp_path / "new.sqlite3"
    answers = Answers()
    one = experiment(lasting_url, *cases_of(3), generator=answers, judged=True)
    one.run(store=sqlite_store(old), until_stage="parse")
    assert_hutch("import", "themis-sqlite", str(old), "-s", lasting_url)
    run_id, ours = one.compile().run_id, create_run_store(one.storage)
    assert Reporter(ours).export_json(run_id) == Reporter(sqlite_store(old)).export_json(run_id)

    assert one.run().status is RunStatus.COMPLETED
    assert len(answers.asked) == 3, "it went on where the other store was"
    assert [event.event_type for event in ours.query_events(run_id)].count("run_completed") == 2

    assert_hutch("export", "themis-sqlite", str(new), "-s", lasting_url)
    theirs = sqlite_store(new)
    theirs.initialize()
    assert Reporter(theirs).export_json(run_id) == Reporter(ours).export_json(run_id)
    assert experiment(None, *cases_of(3), generator=answers, judged=True).run(store=theirs) == one.run()
    theirs.persist_event(RunStartedEvent(run_id=run_id))
    with closing(sqlite3.connect(new)) as file:
        assert file.execute("SELECT COUNT(*) FROM run_blobs").fetchone() == (6,)


def assert_hutch(*arguments: str) -> None:
    done = subprocess.run([sys.executable, "-m", "hutch", *arguments], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_verified_import_reads_what_the_bridge_reads(tmp_path: Path) -> None:
    sample = Path(shutil.copy(ROOT / "tests" / "bridges" / "data" / "themis" / "runs.sqlite3", tmp_path))
    with closing(sqlite3.connect(sample)) as file, file:
        file.execute("DELETE FROM run_projections")  # another Themis may compute others from the same events
    transfer.copy_items(themis_sqlite.read(sample), shared_store("memory://"))
    ours = HutchRunStore("memory://")
    (run_id,) = {key.partition("/")[0] for name, key, _ in themis_sqlite.read(sample) if name == RUNS}
    assert Reporter(ours).export_json(run_id) == Reporter(sqlite_store(sample)).export_json(run_id)


# --- URLs, and no Themis ---


def test_urls_have_hutch_before_them_are_named_in_the_environment_or_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"sqlite://{(tmp_path / 'x.db').as_posix()}"
    monkeypatch.setenv("HUTCH_STORAGE", url)
    monkeypatch.setenv("MY_STORE", url)
    monkeypatch.setenv("MY_FOLDER", tmp_path.as_posix())
    HutchRunStore(url).persist_event(RunStartedEvent(run_id="r"))
    for text in (None, "hutch://", f"hutch://{url}", "env:MY_STORE", "${MY_STORE}", "sqlite://${MY_FOLDER}/x.db"):
        config = StorageConfig(store="hutch", parameters={} if text is None else {"url": text})
        assert len(create_run_store(config).query_events("r")) == 1
        snapshot = experiment(text, "a").compile()
        assert snapshot.provenance.storage.parameters == config.parameters, "a reference is stored as it is"


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ({"path": "x"}, hutch.ConfigError, "has 'path'; it takes 'url'"),
        ({"url": 7}, hutch.ConfigError, "is a URL, not int"),
        ({"url": "env:NOT_SET"}, hutch.ConfigError, "the environment variable NOT_SET is not set"),
        ({"url": "lmbd://x"}, hutch.PluginNotFoundError, "Did you mean 'lmdb'"),
        ({"url": "memory://?no=1"}, hutch.ConfigError, "'no'"),
        ({"url": "redis://:pa55word@127.0.0.1:1"}, hutch.StorageUnavailableError, "127.0.0.1"),
    ],
)
def test_what_cannot_be_a_storage_says_so_before_anything_is_run(
    parameters: dict[str, Any], error: type[Exception], message: str
) -> None:
    answers = Answers()
    one = experiment(None, "a", generator=answers)
    one = one.model_copy(update={"storage": StorageConfig(store="hutch", parameters=parameters)})
    with pytest.raises(error) as raised:
        one.run()
    assert message in str(raised.value)
    assert "pa55word" not in str(raised.value)
    assert answers.asked == []


def test_a_damaged_event_is_an_error_that_names_its_key_and_not_a_shorter_run(tmp_path: Path) -> None:
    url = f"sqlite://{(tmp_path / 'x.db').as_posix()}"
    run_id = experiment(url, "a").run().run_id
    close_shared()
    with hutch.connect(f"{url}?codec=pickle") as store, store.open(RUNS) as runs:
        runs[event_key(run_id, 3)] = {Answers: 1}
    damaged = HutchRunStore(url)
    for read in (damaged.query_events, damaged.resume, lambda run: damaged.get_projection(run, "run_result")):
        with pytest.raises(hutch.CorruptValueError, match=event_key(run_id, 3)):
            read(run_id)


def test_a_store_can_be_sent_to_another_process(tmp_path: Path) -> None:
    store = HutchRunStore(f"sqlite://{(tmp_path / 'x.db').as_posix()}")
    store.persist_event(RunStartedEvent(run_id="r"))
    assert len(pickle.loads(pickle.dumps(store)).query_events("r")) == 1


def test_hutch_is_among_themis_s_backends_and_imports_no_framework_by_itself(tmp_path: Path) -> None:
    assert "hutch" in available_store_backends()
    message = run(
        "import sys\nsys.modules['themis'] = None\nimport hutch.bridges.themis.sqlite_files\nprint('read')",
        folder=tmp_path,
    )
    assert message == ["read"]


@pytest.mark.parametrize("missing", ["themis", "themis.core.stores"])
def test_without_themis_4_the_import_says_what_to_install(missing: str, tmp_path: Path) -> None:
    script = f"""
import sys
sys.modules[{missing!r}] = None
try:
    from hutch.bridges.themis import HutchRunStore
except ImportError as error:
    print(error)
    print(type(error.__cause__).__name__)
"""
    message, cause = run(script, folder=tmp_path)
    assert "needs Themis 4" in message
    assert 'pip install "themis-eval>=4,<5"' in message
    assert cause == "ModuleNotFoundError"


# --- the page ---


def test_the_page_s_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    monkeypatch.setenv("HUTCH_STORAGE", f"lmdb://{tmp_path.as_posix()}/unnamed")
    names: dict[str, object] = {"__name__": "__main__"}
    for block in blocks(PAGE):
        if block.file:
            block.write(tmp_path)
        elif block.language == "python":
            exec(compile("\n" * (block.line - 1) + block.text, str(PAGE), "exec"), names)
        elif block.language == "console":
            for line in re.findall(r"^\$ (.*)$", block.text, re.MULTILINE):
                done = subprocess.run(line, check=False, shell=True, capture_output=True, text=True, timeout=100)
                assert done.returncode == 0, f"$ {line}\n{done.stdout}{done.stderr}"


@pytest.fixture(autouse=True)
def no_storage_of_whoever_runs_the_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HUTCH_STORAGE", raising=False)
    monkeypatch.delenv("HUTCH_CONFIG", raising=False)
