"""Read what `get` prints: JSON, and for other types ``type(...)``, ``b'...'``, ``nan`` and keys that are not text."""

from __future__ import annotations

import ast
import re
from base64 import b64encode
from collections.abc import Iterator
from typing import Any

from .. import CorruptValueError
from ..transfer import from_json, json_text

#: The tags whose content is an array, however many items it has; every other tag has one text, or an array of several.
LIST_TAGS = frozenset(
    {"tuple", "set", "frozenset", "dict", "timedelta", "fraction", "complex", "range"}
    | {"ordered_dict", "counter", "defaultdict", "deque"}
)
_TEXT_TAGS = frozenset(
    {"surrogates", "bytes", "int", "float", "datetime", "date", "time", "decimal", "uuid"}
    | {"path", "windows_path", "pure_posix_path", "pure_windows_path", "ip_address", "ip_network", "ip_interface"}
)
_NAME = r"[^\W\d]\w*(?:\.[^\W\d]\w*)*"
_LARGEST_PLAIN_INT = 2**53 - 1
_TOKEN = re.compile(
    rf"""\s*(?:
        (?P<text>"(?:[^"\\]|\\.)*")
      | (?P<bytes>b(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"))
      | (?P<float>-?(?:nan|inf)\b(?::[0-9a-f]{{16}})?)
      | (?P<hex>-?0x[0-9a-f]+)
      | (?P<number>-?[0-9][0-9.eE+-]*)
      | (?P<name>{_NAME})
      | (?P<mark>[\[\]{{}}(),:])
    )\s*""",
    re.VERBOSE,
)
_CONSTANTS = ("null", "true", "false")


def is_plain_name(name: str) -> bool:
    """Return whether ``name(...)`` can stand for the registered type `name`: it is no tag and no constant."""
    if name in LIST_TAGS or name in _TEXT_TAGS or name in (*_CONSTANTS, "nan", "inf"):
        return False
    return re.fullmatch(_NAME, name) is not None


def read_literal(text: str) -> Any:
    """Return the value of tagged JSON, or of the text that `get` printed. Raises CorruptValueError."""
    try:
        return from_json(text)
    except CorruptValueError as error:
        try:
            translated = _Reader(text).json()
        except (ValueError, RecursionError):
            raise error from None
    return from_json(translated)


class _Reader:
    """A recursive descent over the tokens of a text that returns tagged JSON."""

    def __init__(self, text: str) -> None:
        self._tokens = _tokens(text)
        self._kind, self._word = next(self._tokens)

    def json(self) -> str:
        """Return the whole text as tagged JSON. Raises ValueError."""
        value = self._value()
        if self._kind != "end":
            raise ValueError
        return value

    def _take(self) -> str:
        word = self._word
        self._kind, self._word = next(self._tokens)
        return word

    def _value(self) -> str:
        kind, word = self._kind, self._take()
        if kind == "text":
            return word
        if kind == "number":
            is_large = word.lstrip("-").isdigit() and abs(int(word)) > _LARGEST_PLAIN_INT
            return _tagged("int", json_text(word)) if is_large else word
        if kind in ("hex", "float"):
            return _tagged("int" if kind == "hex" else "float", json_text(word))
        if kind == "bytes":
            return _tagged("bytes", json_text(b64encode(ast.literal_eval(word)).decode()))
        if kind == "name":
            return word if word in _CONSTANTS else self._call(word)
        if word == "[":
            return f"[{','.join(self._items(']'))}]"
        if word == "{":
            return self._dict()
        raise ValueError

    def _call(self, name: str) -> str:
        if self._take() != "(":
            raise ValueError
        items = self._items(")")
        if name not in LIST_TAGS and name not in _TEXT_TAGS:
            (value,) = items
            return f'{{"$type":{json_text(name)},"value":{value}}}'
        is_one = name in _TEXT_TAGS and len(items) == 1
        return _tagged(name, items[0] if is_one else f"[{','.join(items)}]")

    def _dict(self) -> str:
        pairs: list[tuple[bool, str, str]] = []
        while self._word != "}" or self._kind != "mark":
            is_text, key = self._kind == "text", self._value()
            if self._take() != ":":
                raise ValueError
            pairs.append((is_text, key, self._value()))
            self._separate("}")
        self._take()
        if all(is_text for is_text, _, _ in pairs):
            return "{" + ",".join(f"{key}:{value}" for _, key, value in pairs) + "}"
        return _tagged("dict", "[" + ",".join(f"[{key},{value}]" for _, key, value in pairs) + "]")

    def _items(self, end: str) -> list[str]:
        items = []
        while self._word != end or self._kind != "mark":
            items.append(self._value())
            self._separate(end)
        self._take()
        return items

    def _separate(self, end: str) -> None:
        if self._kind != "mark" or self._word not in (",", end):
            raise ValueError
        if self._word == ",":
            self._take()
            if self._kind == "mark" and self._word == end:
                raise ValueError


def _tagged(name: str, content: str) -> str:
    return f'{{"${name}":{content}}}'


def _tokens(text: str) -> Iterator[tuple[str, str]]:
    at = 0
    while at < len(text):
        word = _TOKEN.match(text, at)
        if word is None:
            raise ValueError
        at = word.end()
        kind = str(word.lastgroup)
        yield kind, word[kind]
    while True:
        yield "end", ""
