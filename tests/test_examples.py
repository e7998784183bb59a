"""Test the example application, run as a user would run it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import hutch

EXAMPLES = Path(__file__).parents[1] / "examples"


def run_host(folder: Path, name: str = "plugin_host.py") -> list[str]:
    result = subprocess.run(
        [sys.executable, "-W", "error", str(folder / name)],
        check=False,
        cwd=folder,
        env={**os.environ, "USER": "ada"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout.splitlines()


def test_the_plugin_host_remembers_what_its_plugins_counted_in_earlier_runs(tmp_path: Path) -> None:
    for name in ("plugin_host.py", "hutch.yaml"):
        shutil.copy(EXAMPLES / name, tmp_path)
    first, second = run_host(tmp_path), run_host(tmp_path)
    assert first[0] == "Greeter: hello ada, visit 1 of 1 user(s)"
    assert second[0] == "Greeter: hello ada, visit 2 of 1 user(s)"
    assert first[1].startswith("Journal: 1 entries")
    assert second[1].startswith("Journal: 2 entries")
    assert first[2] == "Settings: 3 new settings, 3 in all"
    assert second[2] == "Settings: 0 new settings, 3 in all"
    assert second[3] == "host: run 2, namespaces Greeter, Journal, Settings, host"


def test_what_the_plugin_host_stored_is_open_to_others_with_its_types(tmp_path: Path) -> None:
    for name in ("plugin_host.py", "hutch.yaml"):
        shutil.copy(EXAMPLES / name, tmp_path)
    run_host(tmp_path)
    with hutch.connect(tmp_path / "hutch.yaml") as store:
        with store.open("Settings") as settings:
            assert settings["limits"] == (10, 100)
            assert settings["admins"] == frozenset({"root"})
        with store.open("Greeter") as greeter:
            assert greeter["users"] == {"ada": 1}


def test_the_thirty_lines_are_thirty_and_continue_counting(tmp_path: Path) -> None:
    shutil.copy(EXAMPLES / "thirty_lines.py", tmp_path)
    code = (EXAMPLES / "thirty_lines.py").read_text(encoding="utf-8")
    assert len(code.splitlines()) <= 30
    outputs = [run_host(tmp_path, "thirty_lines.py") for _ in range(2)]
    assert outputs[0] == ["Greeter: hello ada, message 1", "Words: 2 words so far"]
    assert outputs[1] == ["Greeter: hello ada, message 2", "Words: 2 words so far"]
    assert f"```python\n{code}```" in (EXAMPLES.parent / "docs" / "howto" / "host.md").read_text(encoding="utf-8")
