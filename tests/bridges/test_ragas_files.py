"""Test import and export of folders of ragas's local/jsonl backend, without ragas.

ragas 0.4.3 wrote `data/ragas/`: ``LocalJSONLBackend("tests/bridges/data/ragas")``, `save_dataset`, `save_experiment`.
"""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

import hutch
from hutch import transfer
from hutch.bridges.ragas import csv_files, jsonl_files, layout

FOLDER = Path(__file__).parent / "data" / "ragas"
NAMES = {"datasets": ["capitals", "empty", "six hundred, 100%"], "experiments": ["capitals"]}
NAMESPACES = {"datasets": layout.DATASETS, "experiments": layout.EXPERIMENTS}


@pytest.fixture
def store() -> Iterator[hutch.Store]:
    with hutch.connect("memory://") as store:
        yield store


def rows_of(store: hutch.Store, namespace: str, name: str) -> list[layout.Row]:
    with store.open(namespace) as tables:
        return [row for rows in layout.read_rows(tables, layout.read_table(tables, name)) for row in rows]


def lines_of(file: Path) -> list[Any]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]


def save(store: hutch.Store, name: str, rows: list[layout.Row], namespace: str = layout.DATASETS) -> None:
    """Save a small table as the bridge does."""
    with store.open(namespace) as tables:
        tables[layout.chunk_key(name, "0-0", 0)] = rows
        tables[layout.table_key(name)] = layout.table_of(name, "0-0", len(rows), 1)


def a_folder(root: Path, lines: bytes, name: str = "table.jsonl") -> Path:
    (root / "datasets").mkdir(exist_ok=True)
    (root / "datasets" / name).write_bytes(lines)
    return root


# --- in ---


def test_what_ragas_wrote_is_read_as_json_has_it(store: hutch.Store) -> None:
    transfer.copy_items(jsonl_files.read(FOLDER), store)
    for folder, names in NAMES.items():
        with store.open(NAMESPACES[folder]) as tables:
            assert layout.table_names(tables) == names
        for name in names:
            expected = lines_of(FOLDER / folder / f"{name}.jsonl")
            assert repr(rows_of(store, NAMESPACES[folder], name)) == repr(expected)  # NaN is in it
    row = rows_of(store, layout.DATASETS, "capitals")[0]
    assert row["looks_like"] == "2024-01-01"
    assert row["asked"] == "2024-02-29"
    assert row["n"] == 12345678901234567890
    assert math.isnan(row["nan"])
    assert row["text"] == "line\nbreak \u2028 🐇 ü"


def test_a_file_gives_the_same_keys_again_and_other_ones_when_it_has_changed(tmp_path: Path) -> None:
    assert [item[:2] for item in jsonl_files.read(FOLDER)] == [item[:2] for item in jsonl_files.read(FOLDER)]
    before = [key for _, key, _ in jsonl_files.read(a_folder(tmp_path, b'{"a": 1}\n'))]
    after = [key for _, key, _ in jsonl_files.read(a_folder(tmp_path, b'{"a": 2}\n'))]
    assert before[-1:] == after[-1:] == ["table:table"]
    assert not set(before[:-1]) & set(after[:-1])


def test_a_table_appears_when_all_its_rows_are_there() -> None:
    seen: dict[str, int] = {}
    for _, key, value in jsonl_files.read(FOLDER):
        if key.startswith("table:"):
            assert seen.pop(key.removeprefix("table:"), 0) == value["rows"]
        else:
            assert len(value) <= layout.CHUNK_ROWS
            seen[key.split(":")[1]] = seen.get(key.split(":")[1], 0) + len(value)
    assert not seen


def test_an_interrupted_import_can_be_continued(store: hutch.Store) -> None:
    items = list(jsonl_files.read(FOLDER))
    transfer.copy_items(items[:3], store)
    done = transfer.copy_items(jsonl_files.read(FOLDER), store)
    assert (done.unchanged, done.written) == (3, len(items) - 3)
    found = transfer.verify_items(jsonl_files.read(FOLDER), store)
    assert found.ok
    assert found.equal == len(items)


def test_one_large_file_is_read_in_little_memory(tmp_path: Path) -> None:
    line = json.dumps({"text": "x" * 10_000}).encode() + b"\n"
    folder = a_folder(tmp_path, line * 3_000)
    tracemalloc.start()
    try:
        assert sum(len(value) for _, key, value in jsonl_files.read(folder) if key.startswith("rows:")) == 3_000
        assert tracemalloc.get_traced_memory()[1] < 12_000_000  # of 30
    finally:
        tracemalloc.stop()


def test_large_rows_make_small_chunks(tmp_path: Path) -> None:
    line = json.dumps({"text": "x" * 3_000_000}).encode() + b"\n"
    chunks = [value for _, key, value in jsonl_files.read(a_folder(tmp_path, line * 3)) if key.startswith("rows:")]
    assert [len(rows) for rows in chunks] == [1, 1, 1]


def test_blank_lines_and_every_kind_of_line_end_are_passed_over_as_in_ragas(tmp_path: Path) -> None:
    [_, (_, _, table)] = jsonl_files.read(a_folder(tmp_path, b'\n{"a": 1}\r\n  \n{"a": 2}'))
    assert table["rows"] == 2


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"secret": 1', "not JSON"),
        (b'["secret"]', "a row is an object, and this is a list"),
        (b'{"secret": "\xff"}', "not UTF-8: byte 12"),
        (b'{"secret": ' + b"9" * 5000 + b"}", "not JSON that Python can read"),
        (b'{"secret": ' + b"[" * 100_000 + b"}", "nested too deep"),
    ],
)
def test_an_invalid_row_is_named_by_file_and_line_and_not_shown(tmp_path: Path, line: bytes, message: str) -> None:
    folder = a_folder(tmp_path, b'{"a": 1}\n\n' + line + b"\n")
    with pytest.raises(hutch.CorruptValueError, match=message) as refused:
        list(jsonl_files.read(folder))
    assert "table.jsonl" in str(refused.value)
    assert "line 3" in str(refused.value)
    assert "secret" not in str(refused.value)


def test_a_folder_not_written_by_ragas_is_refused(tmp_path: Path) -> None:
    with pytest.raises(hutch.ConfigError, match="has neither a folder 'datasets'"):
        list(jsonl_files.read(tmp_path))


def test_the_command_imports_verifies_and_exports(tmp_path: Path) -> None:
    def run(*arguments: str) -> str:
        command = [sys.executable, "-m", "hutch", "-s", f"sqlite://{(tmp_path / 'x.db').as_posix()}", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "imported 9 items" in run("import", "ragas-jsonl", str(FOLDER))
    assert "exported 4 items" in run("export", "ragas-jsonl", str(tmp_path / "out"))
    for folder, names in NAMES.items():
        for name in names:
            file = f"{folder}/{name}.jsonl"
            assert (tmp_path / "out" / file).read_bytes() == (FOLDER / file).read_bytes()


# --- out ---


def test_dates_are_written_as_ragas_writes_them(store: hutch.Store, tmp_path: Path) -> None:
    east = datetime(2024, 2, 29, 1, 2, 3, 4, timezone(timedelta(hours=2)))
    save(
        store,
        "when",
        [{"d": date(2024, 2, 29), "n": datetime(2024, 2, 29), "z": datetime(2024, 1, 1, tzinfo=UTC), "e": east}],
    )
    assert jsonl_files.write(store, tmp_path) == 1
    assert lines_of(tmp_path / "datasets" / "when.jsonl") == [
        {
            "d": "2024-02-29",
            "n": "2024-02-29T00:00:00",
            "z": "2024-01-01T00:00:00+00:00",
            "e": "2024-02-29T01:02:03.000004+02:00",
        }
    ]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ((1, 2), "a tuple"),
        ({1}, "a set"),
        ([{"x": b"secret"}], "a bytes"),
        ({1: "secret"}, "a key that is a int"),
        (1 << 14_001, "an int of more than 4,000 digits"),
        ("\ud800", "a lone surrogate"),
        (timedelta(1), "a datetime.timedelta"),
        (datetime(2024, 1, 1, tzinfo=ZoneInfo("Europe/Paris")), "a fixed offset"),
        (datetime(2024, 10, 27, 2, fold=1), "a fixed offset"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_json_cannot_hold_is_refused_with_its_place_and_no_file(
    store: hutch.Store, tmp_path: Path, value: Any, message: str
) -> None:
    save(store, "fine", [{"a": 1}])
    save(store, "not fine", [{"a": 1}, {"a": 1, "b": value}])
    with pytest.raises(hutch.ValueTypeError, match=message) as refused:
        jsonl_files.write(store, tmp_path)
    assert "table 'not fine' of 'ragas.datasets', row 1, column 'b'" in str(refused.value)
    assert "secret" not in str(refused.value)
    assert [file.name for file in (tmp_path / "datasets").iterdir()] == ["fine.jsonl"]


@pytest.mark.parametrize("name", ["", "a/b", "..\\x", "line\nbreak", "\ud800", "x" * 250, "a\0b"])
def test_a_name_that_no_file_can_have_is_refused(store: hutch.Store, tmp_path: Path, name: str) -> None:
    save(store, name, [{"a": 1}])
    with pytest.raises(hutch.ConfigError, match="cannot become a file"):
        jsonl_files.write(store, tmp_path)
    assert not list(tmp_path.rglob("*.*"))


def test_names_with_dots_and_of_any_alphabet_come_back(store: hutch.Store, tmp_path: Path) -> None:
    names = ["..", ".hidden", "a.jsonl", "v1.2", "Ünï 🐇", "table%3A1"]
    for name in names:
        save(store, name, [{"name": name}])
    jsonl_files.write(store, tmp_path)
    found = {key: value for _, key, value in jsonl_files.read(tmp_path)}
    assert sorted(value["name"] for key, value in found.items() if key.startswith("table:")) == sorted(names)


def test_two_tables_that_would_be_one_file_are_refused(
    store: hutch.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a case-insensitive file system."""
    save(store, "A", [{"a": 1}])
    save(store, "a", [{"a": 2}])
    replace = Path.replace
    monkeypatch.setattr(Path, "replace", lambda self, target: replace(self, target.with_name(target.name.lower())))
    stat = Path.stat
    monkeypatch.setattr(
        Path,
        "stat",
        lambda self, **more: stat(self.with_name(self.name.lower()) if "datasets" in self.parts else self, **more),
    )
    with pytest.raises(hutch.ConfigError, match="this file system takes it for the name of another table"):
        jsonl_files.write(store, tmp_path)


def test_an_export_replaces_a_file_whole_and_leaves_no_other(store: hutch.Store, tmp_path: Path) -> None:
    shutil.copytree(FOLDER, tmp_path, dirs_exist_ok=True)
    save(store, "capitals", [{"a": 1}])
    assert jsonl_files.write(store, tmp_path) == 1
    assert (tmp_path / "datasets" / "capitals.jsonl").read_bytes() == b'{"a":1}\n'
    assert len(list((tmp_path / "datasets").iterdir())) == 3


def test_a_table_that_is_replaced_while_it_is_exported_is_exported_anew(
    store: hutch.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(store, "t", [{"a": "old"}])
    read_table = layout.read_table
    replaced: list[str] = []

    def replaced_after(tables: hutch.Namespace, name: str) -> layout.Table:
        table = read_table(tables, name)
        if not replaced:
            replaced.append(name)
            tables[layout.chunk_key(name, "1-1", 0)] = [{"a": "new"}]
            tables[layout.table_key(name)] = layout.table_of(name, "1-1", 1, 1)
            del tables[layout.chunk_key(name, "0-0", 0)]
        return table

    monkeypatch.setattr(jsonl_files, "read_table", replaced_after)
    jsonl_files.write(store, tmp_path)
    assert (tmp_path / "datasets" / "t.jsonl").read_bytes() == b'{"a":"new"}\n'


# --- the layout ---


def test_no_two_names_have_one_key_and_no_name_has_a_key_within_another_s(store: hutch.Store) -> None:
    names = [
        "a",
        "a:b",
        "a%3Ab",
        "a:",
        "",
        "%",
        "%%",
        "x" * 900,
        "x" * 901,
        "x" * 5000,
        "é" * 451,
        "\ud800",
        "\udfff",
        "a\nb",
    ]
    names.append(layout.label("x" * 901))  # the hash of another
    assert len({layout.label(name) for name in names}) == len(names)
    assert all(":" not in layout.label(name) for name in names)
    for name in names:
        save(store, name, [{"name": name}])
    with store.open(layout.DATASETS) as tables:
        assert layout.table_names(tables) == sorted(names)
    for name in names:
        assert rows_of(store, layout.DATASETS, name) == [{"name": name}]


def test_rows_that_are_missing_are_an_error(store: hutch.Store) -> None:
    save(store, "t", [{"a": 1}])
    with store.open(layout.DATASETS) as tables:
        tables[layout.table_key("t")] = layout.table_of("t", "0-0", 2, 1)
    with pytest.raises(hutch.CorruptValueError, match="should have 2 rows and has 1"):
        rows_of(store, layout.DATASETS, "t")
    with store.open(layout.DATASETS) as tables:
        del tables[layout.chunk_key("t", "0-0", 0)]
    with pytest.raises(hutch.CorruptValueError, match="has lost its rows at 'rows:t:0-0:00000000'"):
        rows_of(store, layout.DATASETS, "t")


def test_an_invalid_table_is_an_error(store: hutch.Store) -> None:
    with store.open(layout.DATASETS) as tables:
        tables["table:t"] = "mine"
    with pytest.raises(hutch.CorruptValueError, match="not a table of ragas"):
        rows_of(store, layout.DATASETS, "t")


def test_an_invalid_row_is_refused_with_its_position(store: hutch.Store, tmp_path: Path) -> None:
    rows: Any = [{"a": 1}, "text"]
    save(store, "t", rows)
    with pytest.raises(hutch.ValueTypeError, match=r"table 't' of 'ragas.datasets', row 1: .* a row of type str"):
        jsonl_files.write(store, tmp_path)
    assert not list((tmp_path / "datasets").iterdir())


# --- local/csv ---


def csv_folder(root: Path, text: str) -> Path:
    (root / "experiments").mkdir()
    (root / "experiments" / "nightly run.csv").write_text(text, encoding="utf-8", newline="")
    return root


def test_a_folder_of_local_csv_is_read_as_ragas_reads_it(store: hutch.Store, tmp_path: Path) -> None:
    folder = csv_folder(tmp_path, 'question,score\r\n"a, ""b""\nü",0.5\r\nc,\r\n')
    items = list(csv_files.read(folder))
    assert items == list(csv_files.read(folder))
    transfer.copy_items(items, store)
    rows = rows_of(store, layout.EXPERIMENTS, "nightly run")
    assert rows == [{"question": 'a, "b"\nü', "score": "0.5"}, {"question": "c", "score": ""}]


def test_the_command_imports_local_csv(tmp_path: Path) -> None:
    csv_folder(tmp_path, "a,b\n1,2\n")
    command = [sys.executable, "-m", "hutch", "-s", f"lmdb://{tmp_path / 'store'}", "import", "ragas-csv"]
    for written, present in ((2, 0), (0, 2)):
        done = subprocess.run([*command, str(tmp_path)], check=True, capture_output=True, text=True).stdout
        assert f"imported {written} items, {present} were there already" in done
        assert "verified 2 items: all equal" in done


def test_an_invalid_line_of_local_csv_is_named_and_not_shown(tmp_path: Path) -> None:
    with pytest.raises(hutch.CorruptValueError, match=r"nightly run\.csv', line 3: it has 1 fields") as raised:
        list(csv_files.read(csv_folder(tmp_path, "a,b\n1,2\nsecret\n")))
    assert "secret" not in str(raised.value)
    assert not next(iter(csv_files.read(csv_folder_empty(tmp_path))))[2]["rows"]


def csv_folder_empty(root: Path) -> Path:
    """Return a folder with the file that ragas writes for a table without rows."""
    (root / "experiments" / "nightly run.csv").write_bytes(b"")
    return root
