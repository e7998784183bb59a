"""Test sentences of the pages that were false once: each is held to what the code does."""

from __future__ import annotations

import base64
import json
import re
import sqlite3
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

import hutch

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def prose(page: str) -> str:
    """Return the text of a page as one line."""
    return " ".join((DOCS / page).read_text(encoding="utf-8").split())


def _entries(file: Path, sql: str, *values: object) -> list[Any]:
    connection = sqlite3.connect(file)
    try:
        with connection:
            return list(connection.execute(sql, values))
    finally:
        connection.close()


def test_the_checksum_covers_the_key_so_an_intact_value_under_another_key_is_salvaged(tmp_path: Path) -> None:
    file = tmp_path / "state.db"
    with hutch.connect(f"sqlite://{file}") as store, store.open("core") as core:
        core.update({"alpha": 1, "beta": 2, "gamma": 3})
    frames = dict(_entries(file, "SELECT key, value FROM entries"))
    _entries(file, "UPDATE entries SET key = ? WHERE key = ?", b"alphb", b"alpha")  # a flipped bit
    _entries(file, "UPDATE entries SET key = ? WHERE key = ?", b"\xff", b"beta")  # not UTF-8: check renames it
    with hutch.connect(f"sqlite://{file}") as store:
        found = list(store.verify(repair=True, salvage=tmp_path / "salvaged"))
        assert sorted(finding.kind for finding in found) == ["key", "value", "value"]
        assert not list(store.verify())
        with store.open("core") as core:
            assert dict(core) == {"gamma": 3}
    lines = [json.loads(line) for line in (tmp_path / "salvaged").read_text().splitlines()]
    assert {line["key"]: base64.b64decode(line["data"]) for line in lines} == {
        "alphb": frames[b"alpha"],
        "recovered-ff": frames[b"beta"],
    }
    page = prose("howto/check.md")
    assert "an intact value under a damaged or renamed key counts as damaged" in page
    assert "the checksum of its value does not match the new key" in page


@pytest.mark.parametrize("engine", ["memory", "lmdb", "sqlite"])
def test_update_names_the_key_and_the_type_that_it_refuses(engine: str, tmp_path: Path) -> None:
    with hutch.connect(f"{engine}://{tmp_path / 'state'}") as store, store.open("core") as core:
        with pytest.raises(hutch.ValueTypeError, match=r"'second'.*bytearray"):
            core.update({"first": 1, "second": bytearray(b"x")})
        assert len(core) == 0


_OPEN_IN_ANOTHER_PROCESS = """
import sys, hutch
with hutch.connect(sys.argv[1]) as store:
    for name in ("core", "other"):
        try:
            with store.open(name):
                print(name, "opened")
        except hutch.StoreError as error:
            print(name, type(error).__name__)
"""


@pytest.mark.parametrize(
    ("engine", "second"), [("lmdb", "opened"), ("sqlite", "opened"), ("shelf", "StoreLockedError")]
)
def test_a_second_open_is_refused_by_the_store_and_in_a_shelf_by_its_namespace(
    engine: str, second: str, tmp_path: Path
) -> None:
    assert "raises `StoreAlreadyOpenError`" in prose("howto/host.md")
    assert "A namespace of a shelf belongs to one process" in prose("howto/choose-an-engine.md")
    url = f"{engine}://{tmp_path / 'state'}"
    with hutch.connect(url) as store:
        with store.open("core") as core:
            core["k"] = 1
            with pytest.raises(hutch.StoreAlreadyOpenError, match="'core'"):
                store.open("core")
            command = [sys.executable, "-c", _OPEN_IN_ANOTHER_PROCESS, url]
            done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
            assert done.stdout.splitlines() == [f"core {second}", "other opened"]
        store.open("core").close()


def test_no_page_says_that_hutch_encrypts_and_it_does_not(tmp_path: Path) -> None:
    file = tmp_path / "state.db"
    with hutch.connect(f"sqlite://{file}?durability=strict") as store, store.open("core") as core:
        core["token"] = "in plain sight"
    assert b"in plain sight" in b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert "hutch encrypts nothing" in prose("bridges/keyvalue.md")
    for page in DOCS.rglob("*.md"):
        assert "encrypt what it stores" not in page.read_text(encoding="utf-8"), page


@pytest.mark.parametrize("page", sorted((DOCS / "bridges").glob("*.md")), ids=lambda page: page.name)
def test_a_page_installs_the_versions_of_a_framework_that_its_bridge_is_tested_with(page: Path) -> None:
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["dependency-groups"]
    tested = {
        re.sub(r"\[.*?\]", "", requirement)
        for requirements in groups.values()
        for requirement in requirements
        if isinstance(requirement, str)
    }
    for line in re.findall(r"^pip install (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE):
        for requirement in re.findall(r"\"([^\"]*<[^\"]*)\"", line):
            assert re.sub(r"\[.*?\]", "", requirement) in tested, f"{page.name} installs {requirement}"
