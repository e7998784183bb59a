"""Test that the README and the docs are right: their Python runs, their commands succeed, their links work.

`tests.pages` says how. Left out are the command line's page, whose stores do not exist here, and the bridges' pages,
which their own tests run where the framework is installed.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pages import blocks, commands, run

ROOT = Path(__file__).parents[1]
COMMAND_LINE = ROOT / "docs" / "cli.md"
BRIDGES = ROOT / "docs" / "bridges"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)#\s]+)(?:#[^)]*)?\)")


def runs(page: Path) -> bool:
    if page == COMMAND_LINE or page.parent == BRIDGES:
        return False
    return any(block.language == "python" or commands(block) for block in blocks(page))


def shown(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", [page for page in PAGES if runs(page)], ids=shown)
def test_the_examples_of_a_page_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(page, tmp_path, monkeypatch)


@pytest.mark.parametrize("page", PAGES, ids=shown)
def test_the_links_of_a_page_lead_to_files_that_exist(page: Path) -> None:
    for target in _LINK.findall(page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{shown(page)} links to {target}"


@pytest.mark.timeout(400)  # thousands of files, maybe on a slow disk
def test_the_engine_of_the_plugin_page_passes_the_conformance_kit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, few_signals: None
) -> None:
    monkeypatch.chdir(tmp_path)
    for block in blocks(ROOT / "docs" / "howto" / "plugin.md"):
        if block.file:
            block.write(tmp_path)
    command = [sys.executable, "-m", "hutch", "test-plugin", "engines/files.plug"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=360)
    assert done.returncode == 0, done.stdout + done.stderr
