"""The README and the docs say what is so: their Python runs, their commands succeed, their links lead somewhere.

On each page the blocks run in order, in one empty folder. A block whose first line is a comment with the name of a
file is written there; ``python`` is run, all of a page in one namespace; so is every line of ``console`` that starts
with ``$ hutch``, but for the page of the command line itself, whose stores are anybody's. A ``py`` block is a fragment
and is not run.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
COMMAND_LINE = ROOT / "docs" / "cli.md"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

_FENCE = re.compile(r"^( *)```(\w+)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_FILE_NAME = re.compile(r"[#;] ([\w./]+\.\w+)\n")
_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)#\s]+)(?:#[^)]*)?\)")


@dataclass
class Block:
    language: str
    text: str
    line: int

    @property
    def file(self) -> str | None:
        named = _FILE_NAME.match(self.text)
        return named and named[1]

    def write(self, folder: Path) -> None:
        file = folder / str(self.file)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(self.text, encoding="utf-8")


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(match[2], re.sub(f"(?m)^{match[1]}", "", match[3]), text.count("\n", 0, match.start(3)) + 1)
        for match in _FENCE.finditer(text)
    ]


def commands(block: Block) -> list[str]:
    lines = block.text.splitlines() if block.language == "console" else []
    return [line[2:] for line in lines if line.startswith("$ ") and line[2:].startswith("hutch ")]


def runs(page: Path) -> bool:
    return page != COMMAND_LINE and any(block.language == "python" or commands(block) for block in blocks(page))


def shown(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", [page for page in PAGES if runs(page)], ids=shown)
def test_what_a_page_shows_works(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    monkeypatch.delenv("HUTCH_PLUGIN_PATH", raising=False)
    # What names no store must not reach that of whoever runs the tests.
    monkeypatch.setenv("HUTCH_STORAGE", f"lmdb://{tmp_path}/unnamed")
    names: dict[str, object] = {"__name__": "__main__"}
    for block in blocks(page):
        if block.file:
            block.write(tmp_path)
        elif block.language == "python":
            code = compile("\n" * (block.line - 1) + block.text, str(page), "exec")
            exec(code, names)
        for command in commands(block):
            done = subprocess.run(command, check=False, shell=True, capture_output=True, text=True, timeout=120)
            assert done.returncode == 0, f"{shown(page)}: $ {command}\n{done.stdout}{done.stderr}"


@pytest.mark.parametrize("page", PAGES, ids=shown)
def test_the_links_of_a_page_lead_to_files_that_exist(page: Path) -> None:
    for target in _LINK.findall(page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{shown(page)} links to {target}"


def test_the_engine_of_the_readme_passes_the_conformance_kit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for block in blocks(ROOT / "README.md"):
        if block.file:
            block.write(tmp_path)
    command = [sys.executable, "-m", "hutch", "check", "engines/files.plug"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stdout + done.stderr
