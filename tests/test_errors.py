"""Test the tree of errors, as the contract draws it, and the helpers that make messages."""

from __future__ import annotations

import pickle
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

import hutch
from hutch import errors
from hutch.errors import nearest, redact

#: Name -> the names of its bases, as the contract has them.
TREE = {
    "StoreError": "Exception",
    "ConfigError": "StoreError ValueError",
    "PluginError": "StoreError",
    "PluginNotFoundError": "PluginError LookupError",
    "PluginConflictError": "PluginError",
    "PluginLoadError": "PluginError ImportError",
    "StoreAlreadyOpenError": "StoreError",
    "StoreNotOpenError": "StoreError",
    "StoreLockedError": "StoreError",
    "StoreMissingError": "StoreError FileNotFoundError",
    "NamespaceError": "StoreError ValueError",
    "KeyTypeError": "StoreError TypeError",
    "KeyLimitError": "StoreError ValueError",
    "ValueTypeError": "StoreError TypeError",
    "ValueLimitError": "StoreError ValueError",
    "CorruptValueError": "StoreError",
    "ConflictError": "StoreError",
    "StorageUnavailableError": "StoreError ConnectionError",
    "NotReplicatedError": "StorageUnavailableError",
    "StorageTimeoutError": "StoreError TimeoutError",
    "StorageFullError": "StoreError OSError",
    "CapabilityError": "StoreError NotImplementedError",
}


def test_the_tree_is_that_of_the_contract_and_all_of_it_is_public() -> None:
    assert {name: " ".join(base.__name__ for base in getattr(hutch, name).__bases__) for name in TREE} == TREE
    assert set(errors.__all__) == set(TREE) <= set(hutch.__all__)


@pytest.mark.parametrize("name", TREE)
def test_an_error_says_what_it_was_given_also_past_a_process(name: str) -> None:
    error = getattr(hutch, name)("what was wrong")
    assert str(error) == "what was wrong"
    back = pickle.loads(pickle.dumps(error))
    assert (type(back), str(back)) == (type(error), "what was wrong")
    # A missing key is the one error that is not of the tree.
    assert not isinstance(error, KeyError)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("lmbd", " Did you mean 'lmdb'?"),
        ("LMDB", " Did you mean 'lmdb'?"),
        ("sqlit", " Did you mean 'SQLite'?"),
        ("x", ""),
        ("", ""),
    ],
)
def test_the_nearest_name_is_found_whatever_its_case(name: str, hint: str) -> None:
    assert nearest(name, ["lmdb", "SQLite", "memory"]) == hint
    assert nearest(name, []) == ""


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("redis://user:hunter2@host/0", "redis://***@host/0"),
        ("redis://:hun@ter2@host", "redis://***@host"),
        ("redis://:hun/ter2@host", "redis://***@host"),
        ("redis://:hun?ter 2@host", "redis://***@host"),
        ("a redis://u:hunter2@one, b", "a redis://***@one, b"),
        ("x://h/?password=hunter2&prefix=bot", "x://h/?password=***&prefix=bot"),
        ("x://h/?a=1;auth_token=hunter2#part", "x://h/?a=1;auth_token=***#part"),
        ("x://h/?Secret-Key=hunter2 and more", "x://h/?Secret-Key=*** and more"),
        ("lmdb:///srv/state?durability=strict", "lmdb:///srv/state?durability=strict"),
        ("me@example.org", "me@example.org"),
        ("", ""),
    ],
)
def test_credentials_are_taken_out_of_urls_and_nothing_else_is(text: str, shown: str) -> None:
    assert redact(text) == shown


@given(st.text(), st.text(st.characters(exclude_characters="\n", codec="utf-8"), min_size=1), st.text())
def test_no_password_of_a_url_survives(before: str, password: str, after: str) -> None:
    message = redact(f"{before.replace('@', '')} redis://user:<<{password}>>@host/{after.replace('@', '')}")
    assert f"<<{password}>>" not in message


_PIECES = ["://", "@", "?", "&", ";", "=", "#", " ", "\n", "a", "pass", "KEY", "/", "token"]


@given(st.lists(st.sampled_from(_PIECES), max_size=14).map("".join))
def test_redacting_hides_what_its_rule_says(text: str) -> None:
    # The rule, as two expressions that take time in the square of the text's length.
    hidden = re.sub(r"(?<=://)[^\n]*@", "***@", text)
    words = "pass|pwd|secret|token|key|credential|auth"
    assert redact(text) == re.sub(rf"(?i)([?&;][^=&;#\s]*(?:{words})[^=&;#\s]*=)[^&;#\s]*", r"\1***", hidden)


@pytest.mark.parametrize("piece", ["://", "?pass", "?", "?a", "&pass=", "=", "?=", "://@", "a", "?key=a "])
def test_redacting_a_megabyte_takes_less_than_a_second(piece: str) -> None:
    text = (piece * 1_000_000)[:1_000_000]
    start = time.process_time()
    redact(text)
    took = time.process_time() - start
    print(f"redacting 1 MB of {piece!r} took {took:.3f} s")
    assert took < 10
