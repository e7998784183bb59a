"""Test the kit itself: it passes sound third-party engines, and names the promise that a broken one breaks."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

import hutch
from hutch.testing import StorageSuite
from hutch.testing.conformance.time_to_live import TimeToLive
from hutch.testing.conformance.transactions import Transactions
from hutch.testing.run import PromiseResult, run_conformance

# The processes of test_cli.py measure how the kit is run.
pytestmark = pytest.mark.usefixtures("unmeasured_processes")

ENGINES = Path(__file__).parents[1] / "kit_engines"
JOURNAL = Path(__file__).parents[2] / "examples" / "engine_package" / "src" / "hutch_journal"
# Slow to repeat what others report: it searches for the shortest failing sequence.
STATE_MACHINE = "test_it_behaves_as_dicts_would"


def broken(fault: str) -> dict[str, Any]:
    """Return a config of the engine with this one fault."""
    return {"STORAGE": "Broken", "STORAGE_CONFIG": {"path": "{fresh}", "fault": fault}}


def check(target: str, config: object = None, *only: str) -> dict[str, PromiseResult]:
    """Return outcomes by promise, of the tests called `only`, or of all."""
    skipped = [name for name in dir(StorageSuite) if name.startswith("test_") and name not in only] if only else []
    return {result.promise: result for result in run_conformance(target, config, skip=skipped)}


def failures(results: dict[str, PromiseResult]) -> list[str]:
    return [f"{result.promise} {result.detail}" for result in results.values() if result.outcome == "failed"]


@pytest.mark.timeout(900)  # thousands of files, on whatever disk there is
@pytest.mark.parametrize(("plug", "passed"), [("files", 90), ("errbots", 85), ("broken", 95)])
def test_sound_engines_of_strangers_pass(plug: str, passed: int, few_signals: None) -> None:
    results = check(str(ENGINES / f"{plug}.plug"))
    assert failures(results) == []
    assert sum(result.outcome == "passed" for result in results.values()) >= passed
    assert all(result.detail for result in results.values() if result.outcome == "skipped")


def test_a_broken_engine_fails_the_promise_that_it_breaks_and_no_unrelated_one() -> None:
    # What interrupts the start of a thread breaks this engine, too.
    related = [
        name for name in dir(StorageSuite) if any(word in name for word in ("_handler_", "_finalizer_", "_point_"))
    ]
    results = {
        one.promise: one for one in run_conformance(str(ENGINES / "broken.plug"), broken("LeavesAThread"), skip=related)
    }
    [failed] = failures(results)
    assert failed.startswith("Opening and closing again and again leaves no thread and no open file behind.")
    assert "(threads, open files) after closing" in failed
    assert len(results) > 100


FAULTS = {
    "LosesAWrite": "A second set replaces the value",
    "JoinsNamespacesWithAColon": "clear of each of many like-named namespaces",
    "TearsBatches": "Where atomic-batch is declared, a reader that saw one key",
    "GivesKeysTwice": "keys gives every live key exactly once",
    "KeepsWhatItWasGiven": "Changing a value after set, or one that get gave",
    "SwallowsTheKeyError": "get and remove of a missing key raise a plain KeyError",
    "CountsWhatIsGone": "len is exact",
    "ForgetsToWriteWhenClosed": "Data is there when the namespace is opened again",
    "SwapsWithoutALock": "The same at stage 2",
    "SwapsWhateverIsThere": "If the key was set, removed or created within the block",
    "IteratesOverTheLiveDict": "Keys set and removed during an iteration",
    "ScansInOrderOfArrival": "scan gives every item in the order of code points",
    "ComparesBytesOfUtf16": "scan gives every item in the order of code points",
    "TakesDamageForNone": "Foreign, cut and empty bytes are a CorruptValueError",
    "FoldsKeys": "Keys of 1 to 1,024 bytes",
    "FoldsNamespaces": "Hostile, long, alike and reserved names",
    "MakesListsOfTuples": "Every value that any engine takes comes back",
    "WritesABatchUpToTheBadValue": "A value that cannot be stored is refused with its key, and with it the batch",
    "RaisesItsOwnErrorsWhenClosed": "A handle or store closed while threads use it",
    "ClaimsToBeShared": "Where shared: what one process set",
    "ClaimsToBeDurable": "Where durable: a writer killed",
    "ClaimsToBeOrdered": "Where ordered is declared, keys, items and values",
    "KeepsItsLockInAForkedChild": "Forks while threads write",
    "HoldsALockWhileItIterates": "In the middle of an iteration another thread can write",
    "CountsTheExpired": "len counts no expired key",
    "ListsTheExpired": "Keys, items, values, scans in both directions and popitem meet no expired key",
    "RemovesTheExpired": "del and pop of an expired key raise KeyError",
    "KeepsADeadlineThroughASet": "A value set without ttl_s never expires",
    "LosesADeadlineInModify": "modify, mutable and increment change the value and leave the deadline",
    "LosesADeadlineInTouch": "touch gives a key another deadline",
    "LosesUpdatesInCommits": "Where atomic-store is declared: transact loses no update",
    "TearsCommits": "Where atomic-store is declared: a reader that saw one change of a commit",
    "DoesNotCheckReaders": "Where atomic-store is declared: reads that do not belong to one moment",
    "SeesNoPhantom": "Where atomic-store and snapshot are declared: what was scanned may not gain",
    "ClaimsTransactions": "snapshot, atomic-store and ttl work where they are declared",
    "ReclaimsTheLiving": "expire(limit) reclaims at most",
}


def the_only_test(fault: str, text: str) -> PromiseResult:
    """Return the result of the promise whose text starts with `text`, on the engine with this fault."""
    [name] = [
        name
        for name in dir(StorageSuite)
        if name.startswith("test_") and str(getattr(StorageSuite, name).__doc__).startswith(text)
    ]
    [result] = check(str(ENGINES / "broken.plug"), broken(fault), name).values()
    assert result.promise.startswith(text)
    return result


def test_a_sound_engine_with_transactions_passes() -> None:
    names = [name for name in dir(Transactions) if name.startswith("test_")]
    results = check(str(ENGINES / "broken.plug"), broken("Commits"), *names)
    assert failures(results) == []
    assert sum(result.outcome == "passed" for result in results.values()) >= 14


def test_an_engine_that_declares_ttl_and_keeps_no_index_passes() -> None:
    names = [name for name in dir(TimeToLive) if name.startswith("test_")]
    results = check(str(ENGINES / "broken.plug"), broken("Expires"), *names)
    assert failures(results) == []
    assert sum(result.outcome == "passed" for result in results.values()) >= len(names) - 3


@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_engine_fails_the_promise_that_it_breaks(fault: str) -> None:
    result = the_only_test(fault, FAULTS[fault])
    assert (result.outcome, bool(result.detail)) == ("failed", True)


@pytest.mark.skipif(os.name == "nt", reason="the example locks with flock, which Windows has not")
@pytest.mark.parametrize(
    ("file", "sound", "broken"),
    [
        # Writers that keep out readers only, and a comparison that is not atomic with the write.
        ("journal_file.py", "fcntl.LOCK_EX if writes else fcntl.LOCK_SH", "fcntl.LOCK_SH"),
        ("journal_storage.py", "swapped = view.value(key) == old", "swapped = before == old"),
    ],
    ids=["a shared lock", "a late write"],
)
def test_processes_that_do_not_keep_each_other_out_are_noticed(
    file: str, sound: str, broken: str, tmp_path: Path
) -> None:
    package = Path(shutil.copytree(JOURNAL, tmp_path / "journal"))
    text = (package / file).read_text()
    assert text.count(sound) == 1
    text = text.replace(sound, broken).replace("swapped = False\n", "swapped, before = False, self.read(key)\n")
    (package / file).write_text(text)
    name = "test_modify_by_many_processes_loses_nothing"
    [result] = check(str(package / "journal.plug"), None, name).values()
    assert result.outcome == "failed"


def test_the_state_machine_finds_a_broken_engine_by_itself_and_shows_how() -> None:
    [result] = check(str(ENGINES / "broken.plug"), broken("SwallowsTheKeyError"), STATE_MACHINE).values()
    assert result.outcome == "failed"
    assert "state = Machine()" in result.detail
    assert "reproduce_failure" in result.detail


def test_an_engine_that_takes_the_interpreter_down_costs_one_promise(few_signals: None) -> None:
    results = check(str(ENGINES / "broken.plug"), broken("DiesOfALongKey"))
    [failed] = failures(results)
    assert failed.startswith("Keys of 1 to 1,024 bytes")
    assert "exit code 3" in failed
    assert len(results) > 100


# --- what run_conformance takes, and what it refuses ---

FIRST = "test_set_then_get_gives_the_value"


def test_a_plugin_is_found_by_name_by_file_and_by_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for file in ("files.plug", "files_storage.py"):
        (tmp_path / file).write_text((ENGINES / file).read_text())
    assert failures(check("memory", None, FIRST)) == []
    for target in (str(tmp_path), str(tmp_path / "files.plug")):
        [result] = check(target, None, FIRST).values()
        assert result == PromiseResult("What was set is what is got, and set returns nothing.", "passed", "")
    monkeypatch.chdir(tmp_path)
    assert [result.outcome for result in check("files.plug", None, FIRST).values()] == ["passed"]
    monkeypatch.setenv("HUTCH_PLUGIN_PATH", str(tmp_path))
    assert [result.outcome for result in check("FILES", None, FIRST).values()] == ["passed"]


@pytest.mark.parametrize(
    ("target", "error", "message"),
    [
        ("no such plugin", hutch.PluginNotFoundError, "no storage plugin"),
        ("missing.plug", hutch.PluginNotFoundError, "no such file"),
        (".", hutch.PluginNotFoundError, "no descriptor"),
        (str(ENGINES), hutch.PluginNotFoundError, "name one: broken.plug"),
        ("broken.plug", hutch.PluginLoadError, r"\[Core\]"),
        ("raises.plug", hutch.PluginLoadError, "ZeroDivisionError"),
        ("redis", hutch.ConfigError, r"a URL, such as redis://...\{fresh\}"),
    ],
)
def test_a_target_that_cannot_be_checked_is_an_error_that_says_why(
    target: str, error: type[Exception], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if target == "broken.plug":
        (tmp_path / target).write_text("not a descriptor")
    if target == "raises.plug":
        (tmp_path / target).write_text("[Core]\nName = Raises\nModule = raises_storage\n")
        (tmp_path / "raises_storage.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        check(target, None, FIRST)


def test_a_config_is_used_and_what_the_tests_leave_is_dropped(tmp_path: Path) -> None:
    config = {"STORAGE": "Files", "STORAGE_CONFIG": {"path": str(tmp_path / "mine")}}
    results = check(
        str(ENGINES / "files.plug"), config, FIRST, "test_remove_removes", "test_any_key_within_the_limits_works"
    )
    assert [result.outcome for result in results.values()] == ["passed"] * 3
    assert (tmp_path / "mine").is_dir()
    assert list(tmp_path.glob("mine/*/*.value")) == []


def test_a_storage_that_holds_data_is_refused_and_left_alone(tmp_path: Path) -> None:
    url = f"lmdb://{tmp_path / 'production'}"
    with hutch.connect(url) as store, store.open("core") as ns:
        ns["k"] = "precious"
    with pytest.raises(hutch.ConfigError, match="holds data"):
        check("lmdb", url, FIRST)
    with hutch.connect(url) as store, store.open("core") as ns:
        assert dict(ns) == {"k": "precious"}


def test_a_config_of_another_engine_is_refused(tmp_path: Path) -> None:
    with pytest.raises(hutch.ConfigError, match="selects the lmdb engine, not sqlite"):
        check("sqlite", f"lmdb://{tmp_path}/{{fresh}}", FIRST)


def test_the_kit_reports_a_config_that_does_not_reopen_the_same_data() -> None:
    [result] = check(
        "memory", "memory://", "test_every_connect_of_a_test_reaches_the_same_data_and_starts_empty"
    ).values()
    assert result.outcome == "failed"
    assert "must lead to the same storage within a test" in result.detail


def test_nothing_of_the_callers_pytest_reaches_the_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = --no-such-option\n")
    (tmp_path / "conftest.py").write_text("raise RuntimeError('read')\n")
    (tmp_path / "hypothesis.py").write_text("raise RuntimeError('read')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTEST_ADDOPTS", "--no-such-option")
    monkeypatch.setenv("PYTEST_PLUGINS", "no_such_plugin")
    before = set(os.listdir(tmp_path))
    assert [result.outcome for result in check("sqlite", None, FIRST).values()] == ["passed"]
    assert set(os.listdir(tmp_path)) == before


def test_an_abandoned_verify_ends() -> None:
    results = run_conformance("memory")
    assert next(results).outcome == "passed"
    results.close()  # the fixture `no_leaks` sees that nothing is left
