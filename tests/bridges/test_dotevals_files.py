"""Test import and export of dotevals' JSON folders without dotevals. dotevals 0.28.3 wrote the sample."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import hutch
from hutch import transfer
from hutch.bridges.dotevals import layout
from hutch.bridges.dotevals.json_files import read, validate_names, write
from hutch.bridges.dotevals.layout import NAMESPACE, evaluation_key, experiment_key, results_prefix

SAMPLE = Path(__file__).parent / "data" / "dotevals"
SMALL = "eval_sums[None-None-org/small]"


def made(folder: Path, *lines: Any, experiment: str = "x", file: str = "e.jsonl") -> Path:
    """Make a folder of results as dotevals writes it: one line for the evaluation, then one per result."""
    path = folder / experiment / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), encoding="utf-8")
    return folder


def head(name: str = "e") -> dict[str, Any]:
    return {"evaluation_name": name, "metadata": {}, "started_at": 1.5, "status": "running", "completed_at": None}


def result(item_id: Any = 0, **more: Any) -> dict[str, Any]:
    return {"item_id": item_id, "scores": [], "dataset_row": {}, "error": None, "timestamp": 2.5, **more}


def imported(store: hutch.Store, path: Path) -> dict[str, Any]:
    transfer.copy_items(read(path), store)
    return items(store)


def items(store: hutch.Store) -> dict[str, Any]:
    with store.open(NAMESPACE) as data:
        return dict(data.items())


def test_what_dotevals_wrote_lies_where_the_bridge_looks_for_it() -> None:
    found = {key: value for _, key, value in read(SAMPLE)}
    names = sorted(value["name"] for key, value in found.items() if key.startswith("experiment/"))
    assert names == ["nightly", "team/sums"]
    nightly = found[experiment_key("nightly")]["id"]
    assert found[evaluation_key(nightly, SMALL)]["name"] == SMALL
    results = [value for key, value in found.items() if key.startswith(results_prefix(nightly, SMALL))]
    assert [value["item_id"] for value in results] == [0, 1, 2, 3]
    assert results[2]["scores"][1] == {
        "name": "distance",
        "value": 1,
        "metrics": [":spread"],
        "metadata": {"result": "7", "expected": "6"},
    }
    assert results[3]["error"] == "ValueError: cannot read\nthat"
    keys = [layout.item_of(key) for key in found if key.startswith(results_prefix(nightly, SMALL))]
    assert keys == [(0, True), (1, True), (2, True), (3, False)]


def test_reading_twice_gives_the_same_keys_in_the_same_order() -> None:
    assert list(read(SAMPLE)) == list(read(SAMPLE))
    assert {namespace for namespace, _, _ in read(SAMPLE)} == {NAMESPACE}


def test_nothing_is_lost_on_the_way_in_and_out(tmp_path: Path) -> None:
    source, tmp_path = tmp_path / "in", tmp_path / "out"
    shutil.copytree(SAMPLE, source)
    (source / "empty").mkdir()  # an experiment without evaluations
    with hutch.connect("memory://") as store:
        before = imported(store, source)
        files = {file.relative_to(SAMPLE): file.read_text("utf-8") for file in SAMPLE.rglob("*.jsonl")}
        assert write(store, tmp_path) == sum(len(text.splitlines()) for text in files.values())
        for name, text in files.items():
            written = (tmp_path / name).read_text("utf-8")
            lines, other = text.splitlines(), written.splitlines()
            assert [json.loads(line) for line in lines if line] == [json.loads(line) for line in other]
        assert (tmp_path / "empty").is_dir()
        assert not list(tmp_path.rglob("*.tmp"))
        again = {key: value for _, key, value in read(tmp_path)}
        assert again == before
        # Existing identical files stay unchanged.
        assert write(store, tmp_path) == len(before) - 3


def test_the_command_needs_no_dotevals(tmp_path: Path) -> None:
    def hutch_command(*arguments: str) -> str:
        code = "import sys; sys.modules['dotevals'] = None; from hutch.cli import main; sys.exit(main())"
        command = [sys.executable, "-c", code, "-s", f"sqlite://{(tmp_path / 'x.db').as_posix()}", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    count = len(list(read(SAMPLE)))
    assert f"imported {count} items, 0 were there already" in hutch_command("import", "dotevals-json", str(SAMPLE))
    message = hutch_command("import", "dotevals-json", str(SAMPLE))
    assert f"imported 0 items, {count} were there already" in message
    assert f"verified {count} items: all equal" in message
    hutch_command("export", "dotevals-json", str(tmp_path / "out"))
    assert list(read(tmp_path / "out")) == list(read(SAMPLE))


def test_an_import_that_was_interrupted_can_be_run_again(tmp_path: Path) -> None:
    made(tmp_path, head(), *(result(number) for number in range(10)), '{"item_id": 10, "pro')
    with hutch.connect("memory://") as store:
        with pytest.raises(hutch.CorruptValueError, match=r"e\.jsonl, line 12: not what dotevals writes"):
            imported(store, tmp_path)
        assert len(items(store)) == 12
        made(tmp_path, head(), *(result(number) for number in range(12)))
        validate_names(store, tmp_path)
        assert [layout.item_of(key)[0] for key in imported(store, tmp_path) if key.startswith("result/")] == list(
            range(12)
        )


@pytest.mark.parametrize(
    ("lines", "line", "message"),
    [
        ([""], 1, "empty"),
        (["", head()], 1, "Expecting value"),
        (["[1]"], 1, ""),
        ([{"status": "running"}], 1, "'evaluation_name' is missing"),
        ([head() | {"evaluation_name": 3}], 1, "evaluation_name must be str, not int"),
        ([head(), result("0")], 2, "item_id must be int, not str"),
        ([head(), result(True)], 2, "item_id must be int, not bool"),
        ([head(), result(), {"item": 1}], 3, "'item_id' is missing"),
        ([head(), "", result(scores=[{"name": "secret"}])], 3, "'value' is missing"),
        ([head(), result(scores=3)], 2, ""),
        ([head(), "nonsense secret"], 2, "Expecting value"),
        ([head(), "[" * 100_000], 2, ""),
    ],
)
def test_a_line_that_dotevals_did_not_write_is_named_and_not_shown(
    tmp_path: Path, lines: list[Any], line: int, message: str
) -> None:
    with pytest.raises(hutch.CorruptValueError) as caught:
        list(read(made(tmp_path, *lines)))
    assert f"{Path('x') / 'e.jsonl'}, line {line}: not what dotevals writes" in str(caught.value)
    assert message in str(caught.value)
    assert "secret" not in str(caught.value)


def test_bytes_that_are_no_text_are_named_by_file_and_line(tmp_path: Path) -> None:
    made(tmp_path, head())
    with (tmp_path / "x" / "e.jsonl").open("ab") as file:
        file.write(b'\n{"item_id": "\xff"}')
    with pytest.raises(hutch.CorruptValueError, match="line 2: not what dotevals writes"):
        list(read(tmp_path))


def test_one_evaluation_in_two_files_is_refused(tmp_path: Path) -> None:
    made(tmp_path, head("same"), file="a.jsonl")
    made(tmp_path, head("same"), file="b.jsonl")
    with pytest.raises(hutch.CorruptValueError, match=r"b\.jsonl, line 1: .*evaluation 'same' is in 'a\.jsonl' too"):
        list(read(tmp_path))


def test_a_path_that_is_not_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(hutch.ConfigError, match="is not a folder"):
        list(read(tmp_path / "file"))
    assert list(read(tmp_path)) == []


def test_reading_holds_one_line_at_a_time(tmp_path: Path) -> None:
    made(tmp_path, head(), *(result(number) for number in range(3)), "broken")
    reading = read(tmp_path)
    assert [next(reading)[1].partition("/")[0] for _ in range(5)] == ["experiment", "evaluation", *["result"] * 3]
    with pytest.raises(hutch.CorruptValueError):
        next(reading)


def test_an_import_does_not_mix_with_an_experiment_of_another_origin(tmp_path: Path) -> None:
    made(tmp_path, head(), result())
    with hutch.connect("memory://") as store:
        with store.open(NAMESPACE) as data:
            data[experiment_key("x")] = {"id": "0123", "name": "x", "moves": 0}
        with pytest.raises(hutch.ConfigError, match="has an experiment 'x' that did not come from these files"):
            validate_names(store, tmp_path)
        with store.open(NAMESPACE) as data:
            data.clear()
        validate_names(store, tmp_path)
        record = imported(store, tmp_path)[experiment_key("x")]
        validate_names(store, tmp_path)
        with store.open(NAMESPACE) as data:
            data[experiment_key("y")] = record | {"name": "y", "moves": 1}
            del data[experiment_key("x")]
        with pytest.raises(hutch.ConfigError, match="'x' was imported before and is called 'y' now"):
            validate_names(store, tmp_path)


def test_the_command_refuses_to_mix_before_it_writes(tmp_path: Path) -> None:
    made(tmp_path / "files", head(), result())
    url = f"lmdb://{(tmp_path / 'store').as_posix()}"
    with hutch.connect(url) as store, store.open(NAMESPACE) as data:
        data[experiment_key("x")] = {"id": "0123", "name": "x", "moves": 0}
    command = [sys.executable, "-m", "hutch", "-s", url, "import", "dotevals-json", str(tmp_path / "files")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode != 0
    assert "rename or delete it" in done.stderr
    with hutch.connect(url) as store:
        assert list(items(store)) == [experiment_key("x")]


def stored(store: hutch.Store, *, experiment: str = "x", evaluations: tuple[str, ...] = ("e",), **more: Any) -> None:
    with store.open(NAMESPACE) as data:
        data[experiment_key(experiment)] = {"id": "01", "name": experiment, "moves": 0}
        for name in evaluations:
            evaluation = {"name": name, "status": "running", "started_at": 1.0, "completed_at": None, "metadata": {}}
            data[evaluation_key("01", name)] = evaluation
            suffix = layout.result_suffix(7, 0, "00000000", 3, None)
            data[results_prefix("01", name) + suffix] = result(3, **more)


@pytest.mark.parametrize("experiment", ["", ".", "..", "a/../b", "/a", "a/", "a\0b", "\ud800"])
def test_an_experiment_that_can_be_no_folder_is_refused_by_name(tmp_path: Path, experiment: str) -> None:
    with hutch.connect("memory://") as store:
        stored(store, experiment=experiment)
        with pytest.raises(hutch.ConfigError, match="cannot be the name of a folder") as caught:
            write(store, tmp_path / "out")
        assert repr(experiment) in str(caught.value)
    assert not list(tmp_path.rglob("*.jsonl"))


@pytest.mark.parametrize("evaluation", ["a\0b", "\ud800", "x" * 300])
def test_an_evaluation_that_can_be_no_file_is_refused_by_name(tmp_path: Path, evaluation: str) -> None:
    with hutch.connect("memory://") as store:
        stored(store, evaluations=(evaluation,))
        with pytest.raises(hutch.ConfigError, match="cannot be") as caught:
            write(store, tmp_path)
        assert repr(evaluation) in str(caught.value)
    assert not [file for file in tmp_path.rglob("*") if file.is_file()]


def test_two_evaluations_that_would_be_one_file_are_refused(tmp_path: Path) -> None:
    with hutch.connect("memory://") as store:
        stored(store, evaluations=("a/b", "a@b"))
        with pytest.raises(hutch.ConfigError, match="'a/b' and 'a@b' of experiment 'x' would be the same file"):
            write(store, tmp_path)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ((1, 2), "['dataset_row']['v'] is of type tuple"),
        ([{1: 2}], "a name['dataset_row']['v'][0] is of type int, not str"),
        ({"secret"}, "['dataset_row']['v'] is of type set"),
        (b"secret", "['dataset_row']['v'] is of type bytes"),
    ],
)
def test_a_value_that_json_would_change_is_refused_with_its_key(tmp_path: Path, value: Any, message: str) -> None:
    with hutch.connect("memory://") as store:
        stored(store, dataset_row={"v": value})
        with pytest.raises(hutch.ValueTypeError) as caught:
            write(store, tmp_path)
    assert message in str(caught.value)
    assert "result/01/e/" in str(caught.value)
    assert "secret" not in str(caught.value)
    assert not [file for file in tmp_path.rglob("*") if file.is_file()]


def test_a_file_that_is_there_and_differs_is_not_touched(tmp_path: Path) -> None:
    shutil.copytree(SAMPLE, tmp_path / "out")
    with hutch.connect("memory://") as store:
        stored(store, experiment="nightly", evaluations=(SMALL,))
        with pytest.raises(hutch.ConfigError, match="exists and differs"):
            write(store, tmp_path / "out")
    assert list(read(tmp_path / "out")) == list(read(SAMPLE))


def test_numbers_and_text_that_are_rare_come_back(tmp_path: Path) -> None:
    row: dict[str, Any] = {
        "nan": float("inf"),
        "big": 10**30,
        "float": 0.1,
        "none": None,
        "text": "\ud800 ☃\n\x00",
        "deep": [[{}]],
    }
    with hutch.connect("memory://") as store:
        stored(store, dataset_row=row)
        write(store, tmp_path)
    found = [value for _, key, value in read(tmp_path) if key.startswith("result/")]
    assert found[0]["dataset_row"] == row


def test_no_two_names_have_one_key() -> None:
    names = ["", "a", "a/b", "a%2Fb", "a@b", "a~b", "a%7Eb", "\ud800", "%ED%A0%80", "a\nb", "é", "x" * 240, "x" * 241]
    names += ["é" * 1000, "é" * 1001, "A", "a ", *("x" * 160 + "~" + "0" * 32, "x" * 160 + "%7E" + "0" * 32)]
    keys = {experiment_key(name) for name in names}
    assert len(keys) == len(names)
    assert all(len(evaluation_key("0" * 21, name).encode()) < 400 for name in names)
    for name in names:
        for other in names:
            if other != name:
                assert not results_prefix("01", other).startswith(results_prefix("01", name))


@pytest.mark.parametrize("prefix", ["experiment/", "evaluation/{}/", "result/{}/e/"])
def test_what_hutch_did_not_write_is_an_error_with_its_key(prefix: str, tmp_path: Path) -> None:
    with hutch.connect("memory://") as store:
        stored(store)
        with store.open(NAMESPACE) as data:
            experiment = next(value for _, value in data.scan("experiment/"))
            key = prefix.format(experiment["id"]) + "0"
            data[key] = {"mine": 1}
        with pytest.raises(hutch.CorruptValueError, match=f"key '{key}' of 'dotevals' is not what"):
            write(store, tmp_path)
        if prefix == "experiment/":
            with pytest.raises(hutch.CorruptValueError, match=f"key '{key}' of 'dotevals' is not what"):
                validate_names(store, SAMPLE)
