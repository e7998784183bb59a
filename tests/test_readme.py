"""Test that the README and the docs are right: their Python runs, their commands succeed, their links work.

`tests.pages` says how. Left out are the command line's page, whose stores do not exist here, and the bridges' pages,
which their own tests run where the framework is installed.
"""

from __future__ import annotations

import gc
import re
import shelve
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.pages import blocks, commands, run

ROOT = Path(__file__).parents[1]
COMMAND_LINE = ROOT / "docs" / "cli.md"
# tests/bridges/test_web.py runs its examples under the real servers.
WEB = ROOT / "docs" / "howto" / "web.md"
BRIDGES = ROOT / "docs" / "bridges"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)#\s]+)(?:#[^)]*)?\)")


def project_urls() -> dict[str, str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    urls: dict[str, str] = project["urls"]
    return urls


def file_of(url: str) -> Path | None:
    """Return the file of this project that `url`, a page of the site or a file of the repository, shows; else None."""
    urls, address = project_urls(), url.partition("#")[0]
    for prefix in (
        f"{urls['Source']}/blob/main/",
        f"{urls['Source'].replace('github.com', 'raw.githubusercontent.com')}/main/",
    ):
        if address.startswith(prefix):
            return ROOT / address.removeprefix(prefix)
    if not address.startswith(urls["Documentation"]):
        return None
    page = address.removeprefix(urls["Documentation"]).rstrip("/")
    named, folder = ROOT / "docs" / f"{page}.md", ROOT / "docs" / page / "index.md"
    return named if named.exists() else folder


def runs(page: Path) -> bool:
    if page in (COMMAND_LINE, WEB) or page.parent == BRIDGES:
        return False
    return any(block.language == "python" or commands(block) for block in blocks(page))


def shown(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", [page for page in PAGES if runs(page)], ids=shown)
def test_the_examples_of_a_page_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if page.name == "move.md":
        write_files_to_move(tmp_path)
    run(page, tmp_path, monkeypatch)


def write_files_to_move(folder: Path) -> None:
    """Write what the reader of docs/howto/move.md has already."""
    import diskcache
    import sqlitedict

    with diskcache.Cache(str(folder / "cache")) as cache, shelve.open(str(folder / "settings")) as shelf:
        cache["page"] = shelf["sizes"] = (800, 600)
    with sqlitedict.SqliteDict(str(folder / "my.sqlite"), "users", autocommit=True) as users:
        users["ada"] = {"admin"}
    gc.collect()
    (folder / "data.json").write_text('{"a": 1}')
    (folder / "people.csv").write_text("id,name\n1,Ada\n")


@pytest.mark.parametrize("page", PAGES, ids=shown)
def test_the_links_of_a_page_lead_to_files_that_exist(page: Path) -> None:
    for target in _LINK.findall(page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{shown(page)} links to {target}"


@pytest.mark.timeout(900)  # thousands of files, maybe on a slow disk
def test_the_engine_of_the_plugin_page_passes_the_conformance_kit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, few_signals: None
) -> None:
    monkeypatch.chdir(tmp_path)
    for block in blocks(ROOT / "docs" / "howto" / "plugin.md"):
        if block.file:
            block.write(tmp_path)
    command = [sys.executable, "-m", "hutch", "test-plugin", "engines/files.plug"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=840)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_links_and_pictures_of_the_readme_are_absolute_as_pypi_needs_them() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    targets = re.findall(r"(?:\]\(|^\[[\w.-]+\]: |(?:src|href)=\")([^)\s\"]+)", text, re.MULTILINE)
    assert len(targets) > 15
    assert [target for target in targets if not target.startswith("https://")] == []
    ours = {target: file for target in targets if (file := file_of(target))}
    assert len(ours) > 15
    assert [target for target, file in ours.items() if not file.exists()] == []
    for target, file in ours.items():
        if anchor := target.partition("#")[2]:
            headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in [
                re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings
            ]


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"], ids=shown)
def test_code_has_at_most_80_columns(page: Path) -> None:
    long = [
        f"{shown(page)}:{block.line + number}: {len(line)} columns: {line}"
        for block in blocks(page)
        for number, line in enumerate(block.text.splitlines())
        if len(line) > 80
    ]
    assert not long, "\n".join(long)


def test_the_navigation_has_at_most_seven_groups_whose_pages_say_what_they_are_for() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    nav = text[text.index("\nnav:") :]
    groups = re.findall(r"^  - ([^:\n]+):$", nav, re.MULTILINE)
    assert 1 < len(groups) <= 7, groups
    # Nothing stands beside the groups.
    assert re.findall(r"^  - .*[^:]$", nav, re.MULTILINE) == []
    untitled = re.findall(r"^      - ([^:\n]+)$", nav, re.MULTILINE)
    assert set(untitled) <= {"index.md", "bridges/index.md"}
