"""Test what the command says and does about values that expire."""

from __future__ import annotations

import json
import uuid
from pathlib import Path

import pytest

import hutch
from hutch import deadlines
from tests.cli_calls import Result, fill, hutch_


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The clock of this process, in milliseconds, which a test can set."""
    clock = [1_700_000_000_000]
    monkeypatch.setattr(deadlines, "now_ms", lambda: clock[0])
    return clock


def test_a_value_is_set_with_a_time_to_live_which_get_and_keys_show(now: list[int]) -> None:
    url = f"memory://{uuid.uuid4().hex}"
    assert hutch_("-s", url, "set", "core", "a", "1", "--ttl", "90.5") == Result(0, "", "")
    assert hutch_("-s", url, "set", "core", "b", "[2]", "--ttl", "never") == Result(0, "", "")
    assert hutch_("-s", url, "set", "core", "c", "3") == Result(0, "", "")
    now[0] += 500
    assert hutch_("-s", url, "get", "core", "a", "--ttl").out == "90\n"
    assert hutch_("-s", url, "get", "core", "b", "--ttl").out == "never\n"
    assert hutch_("-s", url, "get", "core", "a", "--ttl", "--json").out == "90.0\n"
    assert hutch_("-s", url, "get", "core", "c", "--ttl", "--json").out == "null\n"
    assert hutch_("-s", url, "keys", "core", "--expires").out == "a\t90\nb\tnever\nc\tnever\n"
    shown = hutch_("-s", url, "keys", "core", "--expires", "--json", "--limit", "2").out.splitlines()
    assert [json.loads(line) for line in shown] == [{"key": "a", "ttl_s": 90.0}, {"key": "b", "ttl_s": None}]
    now[0] += 90_000
    assert hutch_("-s", url, "keys", "core").out == "b\nc\n"
    assert hutch_("-s", url, "ls").out == "core\t2\n"
    for arguments in (["get", "core", "a"], ["get", "core", "a", "--ttl"], ["rm", "core", "a"]):
        assert hutch_("-s", url, *arguments).code == 1
    assert hutch_("-s", url, "get", "core", "b").out == "[2]\n"


def test_expire_reclaims_in_all_namespaces_or_those_named(now: list[int]) -> None:
    url = f"memory://{uuid.uuid4().hex}"
    with hutch.connect(url) as store:
        for name in ("a", "b", "c"):
            with store.open(name) as ns:
                ns.set_many({str(n): n for n in range(20)}, ttl_s=10)
        with store.open("c") as ns:
            ns["stays"] = 1
        now[0] += 10_000
        assert hutch_("-s", url, "expire", "b").out == "b\t20\n"
        shown = hutch_("-s", url, "expire", "--json").out.splitlines()
        assert [json.loads(line) for line in shown] == [
            {"namespace": "a", "reclaimed": 20},
            {"namespace": "c", "reclaimed": 20},
        ]
        assert store.namespaces() == ["c"]
    assert hutch_("-s", url, "expire", "c", "never there").out == "c\t0\nnever there\t0\n"


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "soon", "1e300", ""])
def test_a_wrong_time_to_live_is_wrong_usage(seconds: str) -> None:
    result = hutch_("-s", "memory://", "set", "core", "k", "1", "--ttl", seconds)
    assert (result.code, result.out) == (2, "")
    assert "expected a number of seconds above 0 and up to the year 9999, or never" in result.err


def test_options_that_exclude_each_other_are_wrong_usage(now: list[int]) -> None:
    for arguments in (["keys", "core", "--values", "--expires"], ["get", "core", "k", "--text", "--ttl"]):
        result = hutch_("-s", "memory://", *arguments)
        assert (result.code, "not both" in result.err) == (2, True)


SIX_VERBS = """
from hutch import StorageBase, StoragePluginBase

data = {}


class SixPlugin(StoragePluginBase):
    def open(self, namespace):
        return Six(data.setdefault(namespace, {}))

    def namespaces(self):
        return list(data)


class Six(StorageBase):
    def __init__(self, data):
        self.data = data

    def set(self, key, value):
        self.data[key] = value

    def get(self, key):
        return self.data[key]

    def remove(self, key):
        del self.data[key]

    def len(self):
        return len(self.data)

    def keys(self):
        return list(self.data)

    def close(self):
        pass
"""


def test_an_engine_without_time_to_live_says_so(tmp_path: Path) -> None:
    (tmp_path / "six.plug").write_text("[Core]\nName = Six\nModule = six\nClass = SixPlugin\n")
    (tmp_path / "six.py").write_text(SIX_VERBS)
    config = tmp_path / "config.yaml"
    config.write_text(f"STORAGE: Six\nEXTRA_PLUGIN_DIRS: {tmp_path}\n")
    fill(str(config), core={"a": 1})
    for arguments in (["set", "core", "a", "2", "--ttl", "5"], ["get", "core", "a", "--ttl"], ["expire"]):
        result = hutch_("-c", str(config), *arguments)
        assert (result.code != 0, result.out, "does not declare the capability ttl" in result.err) == (True, "", True)
    assert hutch_("-c", str(config), "get", "core", "a").out == "1\n"


def test_expire_reclaims_in_a_shelf(now: list[int], tmp_path: Path) -> None:
    url = f"shelf://{tmp_path}"
    assert hutch_("-s", url, "set", "core", "a", "1", "--ttl", "5") == Result(0, "", "")
    assert hutch_("-s", url, "set", "core", "b", "1", "--ttl", "5") == Result(0, "", "")
    assert hutch_("-s", url, "keys", "core", "--expires").out == "a\t5\nb\t5\n"
    now[0] += 5000
    assert hutch_("-s", url, "ls").out == ""
    assert hutch_("-s", url, "expire").out == "core\t2\n"
    assert hutch_("-s", url, "expire").out == ""


@pytest.mark.parametrize("format_name", ["json", "csv", "dotevals-json"])
def test_an_export_says_which_deadlines_the_format_cannot_hold(tmp_path: Path, format_name: str) -> None:
    url = f"sqlite://{tmp_path / 'kv.db'}"
    with hutch.connect(url) as store, store.open("core") as core:
        core["plain"] = {"a": "1"}
        core.set_many({"b": {"a": "1"}, "c": {"a": "1"}}, ttl_s=1000)
    if format_name == "dotevals-json":
        assert hutch_("-s", url, "export", format_name, str(tmp_path / "out")).err.count("deadline") == 0
    else:
        done = hutch_("-s", url, "export", format_name, str(tmp_path / "out"), "-n", "core")
        assert done == Result(
            0,
            f"exported 3 items to {str(tmp_path / 'out')!r}\n",
            f"hutch: 2 of the values have a deadline, which {format_name} cannot hold: the files have them without it. "
            "`hutch dump` keeps it\n",
        )
