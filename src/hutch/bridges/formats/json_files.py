"""Read and write JSON files of any size: an object of key -> value, or lines of items."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import hutch

from ...filesystem import atomic_file
from ..json_types import reason_not_json
from . import open_text
from .json_text import JsonText


def read(path: Path, *, namespace: str | None = None) -> Iterator[tuple[str, str, Any]]:
    """Yield each item of the JSON file `path`, as (namespace, key, value).

    The file is an object of key -> value, or lines of ``[key, value]`` or ``{"key": ..., "value": ...}``. Values are
    as `json.loads` gives them. The namespace is the file's name without its suffix unless given. Holds one value at a
    time. Raises CorruptValueError that names the line.
    """
    with open_text(path) as file:
        for key, value in _items(JsonText(file, path)):
            yield namespace or path.stem, key, value


def _items(text: JsonText) -> Iterator[tuple[str, Any]]:
    if text.next_character() == "{":
        members = text.members()
        first = list(itertools.islice(members, 3))
        if [key for key, _ in first] not in (["key", "value"], ["value", "key"]):
            yield from itertools.chain(first, members)
            if text.next_character():
                text.refuse("more text after the object: expected one object, or lines of [key, value]")
            return
        yield _item(dict(first), text)
    while text.next_character():
        yield _item(text.value(), text)


def _item(line: Any, text: JsonText) -> tuple[str, Any]:
    if type(line) is dict and line.keys() == {"key", "value"}:
        line = [line["key"], line["value"]]
    if type(line) is not list or len(line) != 2:
        text.refuse('expected [key, value] or {"key": ..., "value": ...} in each line, or one object of key -> value')
    key, value = line
    if type(key) is not str:
        text.refuse(f"expected [key, value] with a text as the key in each line, not one of type {type(key).__name__}")
    return key, value


def write(store: hutch.Store, path: Path, *, namespace: str) -> int:
    """Write a namespace of `store` as the JSON file `path`, one object, in key order; return the number of items.

    The file appears when it is complete. Raises ValueTypeError that names the key for a value that JSON would not give
    back as it was, StorageUnavailableError for a link in place of the file.
    """
    count = 0
    with store.open(namespace) as items:
        if not items:
            return 0
        with atomic_file(path, 0o600) as out:
            for key, value in items.scan():
                line = f"{json.dumps(key, ensure_ascii=False)}: {_json(key, value)}"
                out.write((",\n" if count else "{\n").encode() + line.encode())
                count += 1
            out.write(b"\n}\n")
    return count


def _json(key: str, value: Any) -> str:
    if reason := reason_not_json(value):
        _refuse_value(key, reason)
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        text.encode()
    except UnicodeEncodeError:
        _refuse_value(key, "it holds a text with a lone surrogate")
    except ValueError:
        _refuse_value(key, "it holds NaN, an infinity or an int of too many digits")
    return text


def _refuse_value(key: str, reason: str) -> NoReturn:
    raise hutch.ValueTypeError(
        f"the value of key {key!r} cannot be written as plain JSON: {reason}. `hutch dump` writes any value"
    )
