"""Test that `hutch export` refuses a link in place of one of its files, and never follows it."""

from __future__ import annotations

import shutil
import sys
from importlib import import_module
from pathlib import Path

import pytest

import hutch
from hutch import transfer

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="on Windows a link takes a right of its own")

SAMPLES = Path(__file__).parent / "data"
MODULES = {
    "dotevals_json": "dotevals.json_files",
    "ragas_jsonl": "ragas.jsonl_files",
    "themis_sqlite": "themis.sqlite_files",
}
FORMATS = {"dotevals_json": "dotevals", "ragas_jsonl": "ragas", "themis_sqlite": "themis/runs.sqlite3"}


@pytest.mark.parametrize("dangling", [False, True])
@pytest.mark.parametrize("name", FORMATS)
def test_an_export_follows_no_link(tmp_path: Path, name: str, dangling: bool) -> None:
    module = import_module(f"hutch.bridges.{MODULES[name]}")
    target = tmp_path / "out" / "file.db" if name == "themis_sqlite" else tmp_path / "out"
    (tmp_path / "out").mkdir()
    with hutch.connect("memory://") as store:
        transfer.copy_items(module.read(SAMPLES / FORMATS[name]), store)
        assert module.write(store, target)
        files = [file for file in (tmp_path / "out").rglob("*") if file.is_file()]
        assert files
        for file in files:
            victim = tmp_path / "victim"
            shutil.move(file, victim)
            content = victim.read_bytes()
            file.symlink_to(tmp_path / "nowhere" if dangling else victim)
            others = [one for one in files if one != file and name == "ragas_jsonl"]
            with pytest.raises(hutch.StoreError) as raised:
                module.write(store, target)
            assert str(file) in str(raised.value)
            assert file.is_symlink()
            assert victim.read_bytes() == content
            assert not (tmp_path / "nowhere").exists()
            assert all(one.exists() for one in others)
            file.unlink()
            shutil.move(victim, file)
