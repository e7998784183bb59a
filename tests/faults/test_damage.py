"""Test damaged files: check reports the damage and never crashes, and reads every key right that it calls sound.

Stores of lmdb and sqlite are built, closed, damaged at random (bits, page heads, sectors, pages, truncation), and then
verified, repaired and used in a child process: HUTCH_DAMAGE_VARIANTS (default 8) variants per kind of damage and
engine, from HUTCH_DAMAGE_SEED on.

The outcomes of ordinary use of a damaged file are counted and shown (pytest -rP). SQLite never crashes the interpreter.
LMDB can, because it trusts the pages, but only with files that check reports. Neither a wrong value nor a lost key
is possible where check reports nothing, with one exception: a flipped bit in a key makes another key of it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import SystemRandom
from typing import Any

import lmdb.verify
import pytest

import hutch
from tests.faults import damage

VARIANTS = int(os.environ.get("HUTCH_DAMAGE_VARIANTS", "8"))
SEED = int(os.environ.get("HUTCH_DAMAGE_SEED") or SystemRandom().randrange(10**9))


class Child:
    """The process that damages and uses stores; replaced when it dies."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._started = 0
        self._process = self._start()

    def _start(self) -> subprocess.Popen[str]:
        self._started += 1
        folder = self._folder / str(self._started)
        folder.mkdir()
        with (self._folder / "said").open("a") as said:
            process = subprocess.Popen(
                [sys.executable, damage.__file__, folder],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                text=True,
                encoding="utf-8",
            )
        assert process.stdout is not None
        assert process.stdout.readline(), (self._folder / "said").read_text()
        return process

    def answers(self, *order: object) -> Iterator[tuple[str, Any]]:
        """Yield each step and its result; ``("died", code)`` as the last if the process died."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        for _ in damage.STEPS:
            line = self._process.stdout.readline()
            if not line:
                code = self.close()
                self._process = self._start()
                yield "died", code
                return
            step, answer = json.loads(line)
            yield step, answer

    def close(self) -> int:
        with self._process as process:
            assert process.stdin is not None
            process.stdin.close()
            return process.wait(damage.PATIENCE_S)

    def said(self) -> str:
        return (self._folder / "said").read_text()[-2000:]


@contextmanager
def child(folder: Path) -> Iterator[Child]:
    made = Child(folder)
    try:
        yield made
    finally:
        made.close()


@pytest.mark.parametrize("way", damage.WAYS)
@pytest.mark.parametrize("engine", damage.FILES)
def test_verify_sees_damage_and_what_it_calls_sound_is_right(engine: str, way: str, tmp_path: Path) -> None:
    came = Counter[str]()
    with child(tmp_path) as process:
        for seed in range(SEED, SEED + VARIANTS):
            where = f"{engine}, {way}, HUTCH_DAMAGE_SEED={seed} HUTCH_DAMAGE_VARIANTS=1"
            answers = dict(process.answers(engine, way, seed))
            died = answers.pop("died", None)
            # Whatever happens to ordinary use: check came to its end three times.
            assert died is None or "again" in answers, f"{where}: check died ({died}): {process.said()}"
            for step, answer in answers.items():
                assert "leaked" not in answer or step == "use", f"{where}: {step}: {answer}"
            found = judge_findings(answers, where)
            came["damage found" if found else "nothing found"] += 1
            if died is not None:
                assert engine == "lmdb", f"{where}: ordinary use ended the process ({died}): {process.said()}"
                assert found, f"{where}: check found nothing, and ordinary use ended the process ({died})"
                assert "Timeout" not in process.said(), f"{where}: ordinary use hangs: {process.said()}"
                came["use ended the process"] += 1
                continue
            used = answers["use"]
            assert "leaked" not in used, f"{where}: {used}"
            assert not used.pop("showed a secret", 0), where
            for what in used:
                if what.split(": ")[1] not in damage.GOOD:
                    came[what] += 1
                    assert found or what == "items: keys changed", f"{where}: check found nothing, but {used}"
    print(f"{engine}, {way}: {VARIANTS} variants from seed {SEED}:", dict(sorted(came.items())))


def judge_findings(answers: dict[str, Any], where: str) -> bool:
    """Return whether check found something; findings must be clear, and `repair` must repair all that it can."""
    for step in ("check", "fix", "again"):
        assert damage.SECRET not in json.dumps(answers[step]), where
        for kind, namespace, key, message in answers[step]["findings"]:
            assert message, where
            assert kind != "value" or (namespace and key), where
    left = set(answers["again"]["kinds"])
    # Where a flipped bit made the key of a row that of another, no index can hold both.
    if "structure" not in left:
        assert left <= {"value", "index"}, f"{where}: {answers['again']}"
    return bool(answers["check"]["findings"] or answers["check"]["error"])


def test_an_index_of_sqlite_that_does_not_fit_is_made_anew_and_no_value_is_lost(tmp_path: Path) -> None:
    """A row that a search does not find, or finds under another key, is not lost."""
    whole = damage.build("sqlite", tmp_path / "whole")
    url = damage.url("sqlite", tmp_path)
    file = tmp_path / damage.FILES["sqlite"]
    values = sorted(repr(value) for items in damage.model().values() for value in items.values())
    for seed in range(SEED, SEED + 3000):
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(damage.damaged(whole, "bit", seed))
        if {finding.kind for finding in hutch.verify(url)} != {"index"}:
            continue
        if not all(finding.repaired for finding in hutch.verify(url, repair=True)):
            # The flipped key is that of another row, so no index can hold both: it is reported and stays.
            assert {finding.kind for finding in hutch.verify(url)} <= {"index", "value"}, f"seed {seed}"
            continue
        if left := {finding.kind for finding in hutch.verify(url)}:
            # The bit was flipped in the row: the index has the row's key now, to which the value does not belong.
            assert left == {"value"}, f"seed {seed}"
            continue
        with hutch.connect(url) as store:
            found = []
            for name in store.namespaces():
                with store.open(name) as handle:
                    found += [repr(handle[key]) for key in handle]
        assert sorted(found) == values, f"seed {seed}"
        return
    pytest.fail(f"from seed {SEED} on, no flipped bit struck nothing but an index")


@pytest.mark.parametrize("way", damage.WAYS)
def test_what_py_lmdb_finds_wrong_with_a_file_check_data_finds_too(way: str, tmp_path: Path) -> None:
    """py-lmdb's module lmdb.verify walks the same pages with different code."""
    whole = damage.build("lmdb", tmp_path / "whole")
    verify: Callable[[str], list[str]] = lmdb.verify.verify
    assert verify(str(tmp_path / "whole" / "store")) == []
    file = tmp_path / "damaged" / damage.FILES["lmdb"]
    file.parent.mkdir(parents=True)
    theirs = ours = 0
    for seed in range(SEED, SEED + 4 * VARIANTS):
        data = damage.damaged(whole, way, seed)
        file.write_bytes(data)
        try:
            faults = verify(str(file.parent))
        except lmdb.verify.VerifyError as error:
            faults = [str(error)]
        found = [finding.message for finding in hutch.verify(damage.url("lmdb", tmp_path / "damaged"))]
        assert found or not faults, f"{way}, seed {seed}: {faults}"
        theirs += bool(faults)
        ours += bool(found)
    print(f"{way}: of {4 * VARIANTS} variants lmdb.verify found damage in {theirs}, verify in {ours}")
    assert ours
