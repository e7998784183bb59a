"""Run the code blocks of a docs page as a reader would.

They run in order, in one empty folder. A block whose first line is a comment with a file's name is written to that
file; ``python`` blocks run, all of a page in one namespace; so does every line of ``console`` that starts with ``$
hutch`` or sets PYTHONPATH for it. A ``py`` block is a fragment and does not run.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

_FENCE = re.compile(r"^( *)```(\w+)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_FILE_NAME = re.compile(r"[#;] ([\w./]+\.\w+)\n")


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
    return [
        line[2:] for line in lines if line.startswith("$ ") and line[2:].startswith(("hutch ", "PYTHONPATH=. hutch "))
    ]


def run(page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run the blocks of `page` in `folder`; return the names that its Python defines."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    monkeypatch.delenv("HUTCH_PLUGIN_PATH", raising=False)
    # An example that names no store must not reach the developer's own.
    monkeypatch.setenv("HUTCH_STORAGE", f"lmdb://{folder}/unnamed")
    # As ``python -m app`` would run it: classes of the page are stored under that name.
    program = ModuleType("__main__")
    program.__spec__ = ModuleSpec("app", None)
    monkeypatch.setitem(sys.modules, "__main__", program)
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks(page):
        if block.file:
            block.write(folder)
        elif block.language == "python":
            code = compile("\n" * (block.line - 1) + block.text, str(page), "exec")
            exec(code, names)
        for command in commands(block):
            done = subprocess.run(command, check=False, shell=True, capture_output=True, text=True, timeout=120)
            assert done.returncode == 0, f"{page.name}: $ {command}\n{done.stdout}{done.stderr}"
    return names
