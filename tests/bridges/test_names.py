"""Test a framework's names within keys: no two names share a key, whatever characters they have."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hutch.bridges.names import HASHED, in_key, named

# Including surrogates, alone or in pairs: a Python str may hold them.
NAMES = st.text(st.characters(codec=None), max_size=80) | st.text("/:%2Fa\x00\ud83d\ude00", max_size=12)


@given(NAMES)
def test_a_name_is_encoded_reversibly_in_a_key(name: str) -> None:
    part = in_key(name, 100)
    assert 0 < len(part.encode()) <= 100
    assert not {"/", ":"} & set(part)
    assert part.isprintable() or not name.isprintable()
    if part.startswith(HASHED):
        assert name == "" or len(name.encode("utf-8", "surrogatepass")) * 3 > 100
    else:
        assert named(part) == name


@given(NAMES, NAMES)
def test_two_names_are_two_parts(name: str, other: str) -> None:
    assert (in_key(name, 100) == in_key(other, 100)) == (name == other)


def test_a_name_that_is_the_hash_of_another_is_not_taken_for_it() -> None:
    hashed = in_key("x" * 101, 100)
    assert hashed.startswith(HASHED)
    assert in_key(hashed, 100) != hashed
    assert in_key("", 100) != in_key(HASHED, 100)


def test_what_can_be_read_stays_readable() -> None:
    assert in_key("eval[gpt-4]: über", 100) == "eval[gpt-4]%3A über"
    assert in_key("a/b%\n", 100) == "a%2Fb%25%0A"
