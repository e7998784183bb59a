"""Test an engine's options: declared once, read from a URL's text and from Python values alike, refused by name."""

from __future__ import annotations

import math
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import hutch
from hutch.options import Option, read_options

DECLARED = {
    "flag": Option(bool, default=False),
    "count": Option(int, default=3, minimum=1, maximum=10),
    "wait_s": Option(float, default=1.5, minimum=0),
    "mode": Option(str, default="soft", choices=("soft", "hard")),
    "path": Option(Path),
    "password": Option(str, secret=True),
    "pin": Option(int, secret=True, minimum=1000, maximum=9999),
    "word": Option(str, secret=True, choices=("open", "sesame")),
}


def read(**given_options: Any) -> dict[str, Any]:
    return read_options(given_options, DECLARED, "test")


def refusal(**given_options: Any) -> str:
    with pytest.raises(hutch.ConfigError) as raised:
        read(**given_options)
    return str(raised.value)


def test_defaults_fill_what_is_not_given_or_none() -> None:
    expected = {name: option.default for name, option in DECLARED.items()}
    assert read() == read(flag=None, path=None) == expected
    assert read_options(None, DECLARED, "test") == expected


@pytest.mark.parametrize(
    ("name", "given_value", "value"),
    [
        *(("flag", text, True) for text in (True, "true", "Yes", "ON", "1")),
        *(("flag", text, False) for text in (False, "false", "no", "Off", "0")),
        *(("count", 5, 5), ("count", "5", 5), ("count", " 7 ", 7), ("count", 5.0, 5)),
        *(("wait_s", 2, 2.0), ("wait_s", "0.25", 0.25), ("wait_s", 0, 0.0), ("wait_s", "1e3", 1000.0)),
        *(("mode", "hard", "hard"), ("password", "a b", "a b"), ("pin", "1234", 1234)),
    ],
)
def test_text_and_values_are_read_alike(name: str, given_value: Any, value: Any) -> None:
    got = read(**{name: given_value})[name]
    assert (got, type(got)) == (value, type(value))


@pytest.mark.parametrize(
    ("name", "bad", "message"),
    [
        ("flag", "maybe", "option 'flag' of the test engine must be true or false, not 'maybe'"),
        ("flag", 2, "must be true or false, not 2"),
        ("count", 1.5, "must be a whole number, not 1.5"),
        ("count", "many", "must be a whole number, not 'many'"),
        ("count", True, "must be a whole number, not True"),
        ("count", [1], "must be a whole number, not [1]"),
        ("count", Decimal(1), "must be a whole number"),
        ("count", math.inf, "must be a whole number, not inf"),
        ("count", "9" * 5000, "must be a whole number"),
        ("count", 11, "must be from 1 to 10, not 11"),
        ("wait_s", -1, "must be at least 0, not -1"),
        ("wait_s", math.nan, "must be a number, not nan"),
        ("wait_s", "nan", "must be a number, not 'nan'"),
        ("wait_s", "", "must be a number, not ''"),
        ("mode", "sotf", "must be one of soft, hard, not 'sotf'. Did you mean 'soft'?"),
        ("mode", 5, "must be text, not 5"),
        ("path", "", "must be a path, not ''"),
        ("path", "a\0b", "must be a path"),
        ("path", "a\ud800b", "option 'path' of the test engine must be a path, not 'a\\ud800b'"),
        ("path", 5, "must be a path, not 5"),
    ],
)
def test_what_does_not_fit_is_refused_by_name_with_what_was_expected(name: str, bad: Any, message: str) -> None:
    assert message in refusal(**{name: bad})


def test_a_secret_is_in_no_refusal() -> None:
    for options in ({"password": ["hunter2"]}, {"pin": "hunter2"}, {"pin": 77}, {"pin": 7777777}, {"word": "hunter2"}):
        message = refusal(**options)
        assert next(iter(options)) in message
        assert "hunter2" not in message
        assert "777" not in message
        assert "77," not in message


def test_the_error_for_an_unknown_option_names_the_nearest_and_lists_all() -> None:
    assert "the test engine has no option 'cuont'. Did you mean 'count'? It takes: count, flag, mode" in refusal(
        cuont=1
    )
    with pytest.raises(hutch.ConfigError, match="It takes: none"):
        read_options({"x": 1}, {}, "test")
    with pytest.raises(hutch.ConfigError, match="has no option 5"):
        read_options({5: 1}, DECLARED, "test")


def test_a_required_option_says_what_it_is_for() -> None:
    with pytest.raises(hutch.ConfigError, match="the test engine needs the option 'path': where the data lies"):
        read_options({}, {"path": Option(Path, required=True, help="where the data lies")}, "test")


def test_a_path_is_relative_to_the_folder_of_the_config_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = SimpleNamespace(STORAGE_CONFIG={"path": "a/../b"}, base_dir=tmp_path / "conf")
    assert read_options(config, DECLARED, "test")["path"] == tmp_path / "conf" / "b"
    config.STORAGE_CONFIG = {"path": tmp_path / "abs"}
    assert read_options(config, DECLARED, "test")["path"] == tmp_path / "abs"
    monkeypatch.chdir(tmp_path)
    assert read(path="here")["path"] == tmp_path / "here"
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    assert read(path="~/x")["path"] == tmp_path / "home" / "x"


def test_without_a_declaration_options_pass_as_they_are() -> None:
    given_options = {"anything": [object()]}
    got = read_options(given_options, None, "test")
    assert got == given_options
    assert got is not given_options


@given(
    st.dictionaries(
        st.sampled_from([*DECLARED, "other"]),
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.text()) | st.binary(),
        max_size=4,
    )
)
def test_any_value_is_taken_or_a_config_error(options: dict[str, Any]) -> None:
    try:
        got = read(**options)
    except hutch.ConfigError as error:
        message = str(error)
    else:
        message = ""
        assert set(got) == set(DECLARED)
        for name, value in got.items():
            assert value is None or isinstance(value, DECLARED[name].kind)
    assert len(message) < 2000 or any(len(repr(value)) > 1000 for value in options.values())
