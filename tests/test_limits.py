"""Test the portable limits of keys and names, to the byte, and the advice in their errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import hutch
from hutch.limits import (
    MAX_KEY_BYTES,
    MAX_NAMESPACE_BYTES,
    MAX_VALUE_BYTES,
    validate_key,
    validate_namespace,
    validate_value_size,
)


class Text(str):
    __slots__ = ()

    def encode(self, *_: Any, **__: Any) -> bytes:
        return b"lies"

    def __len__(self) -> int:
        return 1


@pytest.mark.parametrize("char", ["k", "é", "€", "\U0001f430", "\0", "\U0010ffff"])
def test_a_key_may_have_1024_bytes_and_no_more(char: str) -> None:
    fits = MAX_KEY_BYTES // len(char.encode())
    assert validate_key(char * fits) == char * fits
    with pytest.raises(
        hutch.KeyLimitError, match=r"at most 1,024 bytes of UTF-8; the key that starts with .* has 1,02"
    ):
        validate_key(char * (fits + 1))
    assert validate_namespace("é" * 127 + "x") == "é" * 127 + "x"
    with pytest.raises(hutch.NamespaceError, match=r"at most 255 bytes of UTF-8; .* has 256"):
        validate_namespace("é" * (MAX_NAMESPACE_BYTES // 2 + 1))


@given(st.text(st.characters(), max_size=600) | st.text(st.characters(), max_size=3).map(lambda text: text * 300))
@example("\ud800")
@example("a" * 256 + "\udfff")
def test_every_text_is_returned_as_it_is_or_refused_with_a_short_reason(text: str) -> None:
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        size = -1
    for check, longest, error in (
        (validate_key, MAX_KEY_BYTES, hutch.KeyLimitError),
        (validate_namespace, MAX_NAMESPACE_BYTES, hutch.NamespaceError),
    ):
        if 0 < size <= longest and not (check is validate_namespace and "\0" in text):
            assert check(text) == text
        else:
            with pytest.raises(error) as raised:
                check(text)
            assert len(str(raised.value)) < 700
            str(raised.value).encode()


@pytest.mark.parametrize(
    "bad", [5, None, b"k", ("k",), bytearray(b"k"), 1.5, object()], ids=lambda bad: type(bad).__name__
)
def test_keys_and_names_must_be_text(bad: object) -> None:
    with pytest.raises(
        hutch.KeyTypeError, match=f"a key must be a str, not {type(bad).__name__}.*; (convert|decode) it"
    ):
        validate_key(bad)
    with pytest.raises(hutch.NamespaceError, match=f"a namespace must be a str, not {type(bad).__name__}"):
        validate_namespace(bad)


def test_a_subclass_of_str_becomes_the_plain_text_it_holds() -> None:
    """Whatever its own methods return: the limit applies to the stored text."""
    assert type(validate_key(Text("key"))) is str
    assert validate_key(Text("key")) == "key"
    assert type(validate_namespace(Text("name"))) is str
    with pytest.raises(hutch.KeyLimitError):
        validate_key(Text("x" * 2000))


def test_a_namespace_has_no_nul_and_a_key_may() -> None:
    assert validate_key("a\0b") == "a\0b"
    with pytest.raises(hutch.NamespaceError, match="may not hold NUL"):
        validate_namespace("a\0b")


def test_a_lone_surrogate_is_named_with_its_place() -> None:
    with pytest.raises(hutch.KeyLimitError, match=r"character 2 of 'ab\\ud800c' is a lone surrogate"):
        validate_key("ab\ud800c")
    with pytest.raises(hutch.NamespaceError, match=r"character 0 of '\\udfff' is a lone surrogate"):
        validate_namespace("\udfff")


def test_a_value_may_have_512_mib() -> None:
    validate_value_size("k", MAX_VALUE_BYTES)
    assert MAX_VALUE_BYTES == 512 << 20
    with pytest.raises(hutch.ValueLimitError, match="key 'k' takes 536,870,913 bytes encoded; at most 536,870,912"):
        validate_value_size("k", MAX_VALUE_BYTES + 1)


def test_a_value_that_is_too_large_is_refused_before_it_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("limits", "encoded.storage", "encoded.values"):
        monkeypatch.setattr(f"hutch.{module}.MAX_VALUE_BYTES", 1000)
    with hutch.connect("memory://") as store, store.open("core") as space:
        space["k"] = b"x" * 900
        writes: list[Callable[[], None]] = [
            lambda: space.__setitem__("k", b"y" * 1000),
            lambda: space.update(a=1, k=b"y" * 1000),
        ]
        for write in writes:
            with pytest.raises(hutch.ValueLimitError, match="Split it over several keys"):
                write()
        assert dict(space) == {"k": b"x" * 900}
