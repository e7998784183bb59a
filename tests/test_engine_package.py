"""Test the complete engine package of examples/engine_package, installed as its author would."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

import pytest

from tests.test_packaging import ROOT, UV, run

# What it takes of the machine is what tests/test_packaging.py takes.
pytestmark = [
    pytest.mark.xdist_group("packaging"),
    pytest.mark.timeout(300),
    pytest.mark.skipif(os.name == "nt", reason="the example locks with flock, which Windows has not"),
]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package, beside an environment ``venv`` in which hutch and it are installed and nothing else is."""
    folder = tmp_path_factory.mktemp("engine") / "package"
    shutil.copytree(ROOT / "examples" / "engine_package", folder, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    run(*UV, "venv", "--quiet", "--python", sys.executable, folder.parent / "venv")
    # Its author has hutch from an index; here it is this checkout's.
    wanted = (f"hutch[cli,testing] @ {ROOT.as_uri()}", f"hutch-journal[test] @ {folder.as_uri()}", "pytest-xdist")
    run(*UV, "pip", "install", "--quiet", "--python", folder.parent / "venv", *wanted)
    return folder


def program(package: Path, name: str) -> Path:
    return package.parent / "venv" / "bin" / name


def test_its_own_tests_pass_the_conformance_kit_first_of_all(package: Path, few_signals: None) -> None:
    done = run(program(package, "python"), "-m", "pytest", "-q", "-n", "2", "-p", "no:cacheprovider", cwd=package)
    assert done.returncode == 0, done.stdout
    passed, skipped = (re.search(rf"(\d+) {word}", done.stdout) for word in ("passed", "skipped"))
    assert passed
    assert int(passed[1]) > 110
    # It declares all but an order of its own, an index of deadlines, transactions over several namespaces, snapshots,
    # and the options create and readonly.
    assert skipped is None or int(skipped[1]) <= 31, done.stdout


def test_its_engine_is_listed_and_opened_by_its_name_alone(package: Path, tmp_path: Path) -> None:
    hutch = program(package, "hutch")
    listed = run(hutch, "plugins", cwd=tmp_path)
    assert re.search(r"(?m)^journal\b.*hutch_journal.journal\.plug", listed.stdout), listed.stdout
    assert run(hutch, "-s", "journal://data", "set", "core", "answer", "42", cwd=tmp_path).returncode == 0
    assert run(hutch, "-s", "journal://data", "get", "core", "answer", cwd=tmp_path).stdout == "42\n"
    assert [file.suffix for file in (tmp_path / "data").iterdir()] == [".journal"]
    script = "import hutch\nwith hutch.connect('journal://data') as s, s.open('core') as c: print(dict(c))"
    assert run(program(package, "python"), "-W", "error", "-c", script, cwd=tmp_path).stdout == "{'answer': 42}\n"
