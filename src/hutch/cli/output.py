"""Print values, names and tables: styled on a terminal, plain in a pipe, JSON for programs.

Stored data may be an attack on its reader, so no terminal control character reaches the output and nothing stored is
ever interpreted as markup.
"""

from __future__ import annotations

import pprint
import shutil
import sys
from base64 import b64decode
from collections.abc import Iterator, Sequence
from typing import Any

from .. import ValueTypeError
from ..errors import a_or_an
from ..transfer import json_text, to_json, to_tagged
from .literals import is_plain_name

_PIPE_COLUMNS = 100
_INDENT = 2

# A piece of output and its style, which is used only on a terminal.
_Piece = tuple[str, str]
_NO_KEY = object()


def printable(text: str) -> str:
    """Return `text` with every unprintable character (newline, escape, bidi marks) as a Python escape sequence."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def print_json(value: Any) -> None:
    """Print `value` as one line of tagged JSON in UTF-8. Raises ValueTypeError if only pickle can store it."""
    sys.stdout.buffer.write(to_json(value).encode() + b"\n")


def print_line(text: str) -> None:
    """Print one line of text that may come from a store."""
    sys.stdout.write(printable(text) + "\n")


def print_item(key: str, value: Any) -> None:
    """Print a key and its value as one line with a tab between them, as `print_value` writes values."""
    try:
        text = "".join(text for text, _ in _flat(to_tagged(value)))
    except ValueTypeError:
        text = printable(_described(value, sys.maxsize))
    sys.stdout.write(f"{printable(key)}\t{text}\n")


def print_value(value: Any) -> None:
    """Print `value` as readable text: like JSON, with other types written as ``type(...)``."""
    on_terminal = sys.stdout.isatty()
    columns = shutil.get_terminal_size().columns if on_terminal else _PIPE_COLUMNS
    try:
        pieces = list(_layout(to_tagged(value), 0, columns, 0))
    except ValueTypeError:
        pieces = [(_described(value, columns), "")]
    if not on_terminal:
        sys.stdout.write("".join(text for text, _ in pieces) + "\n")
        return
    from rich.console import Console
    from rich.text import Text

    # The terminal wraps long lines; rich would put line breaks into them.
    Console(highlight=False).print(Text.assemble(*pieces), soft_wrap=True)


def print_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print `rows`: as a table on a terminal, else as tab-separated lines without the header."""
    cells = [[printable(str(cell)) for cell in row] for row in rows]
    if not sys.stdout.isatty():
        for row in cells:
            sys.stdout.write("\t".join(row) + "\n")
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, name in enumerate(header):
        numeric = bool(rows) and isinstance(rows[0][index], int)
        table.add_column(name, overflow="fold", justify="right" if numeric else "left")
    for row in cells:
        table.add_row(*map(Text, row))
    Console(highlight=False).print(table)


def _described(value: Any, columns: int) -> str:
    """Return Python's repr of a value that only pickle can store; unpickling it already ran code of its class."""
    try:
        text = pprint.pformat(value, width=columns)
    except Exception as error:  # the class's __repr__ may raise anything
        text = f"<{a_or_an(type(value).__qualname__)} whose repr raised {type(error).__name__}>"
    return "\n".join(map(printable, text.split("\n")))


def _layout(tagged: Any, indent: int, columns: int, used: int) -> Iterator[_Piece]:
    """Yield the pieces of text for `tagged`: on one line if it fits, else on one line per item."""
    opening, children, closing = _parts(tagged)
    if not children or _fits(tagged, columns - used):
        yield from _flat(tagged)
        return
    yield opening
    inner = indent + _INDENT
    for number, (key, child) in enumerate(children, 1):
        start = [("\n" + " " * inner, ""), *_key(key)]
        yield from start
        comma = "," if number < len(children) else ""
        taken = sum(len(text) for text, _ in start) - 1 + len(comma)
        yield from _layout(child, inner, columns, taken)
        yield comma, ""
    yield "\n" + " " * indent + closing, ""


def _flat(tagged: Any) -> Iterator[_Piece]:
    opening, children, closing = _parts(tagged)
    yield opening
    if children is None:
        return
    for number, (key, child) in enumerate(children):
        if number:
            yield ", ", ""
        yield from _key(key)
        yield from _flat(child)
    yield closing, ""


def _key(key: Any) -> Iterator[_Piece]:
    if key is not _NO_KEY:
        yield from ((text, "bold") for text, _ in _flat(key))
        yield ": ", ""


def _fits(tagged: Any, room: int) -> bool:
    for text, _ in _flat(tagged):
        room -= len(text)
        if room < 0:
            return False
    return True


def _parts(tagged: Any) -> tuple[_Piece, list[tuple[Any, Any]] | None, str]:
    """Return the opening piece of `tagged`, its (key, child) pairs (None if it can have none), and the closing text."""
    if type(tagged) is list:
        return ("[", ""), [(_NO_KEY, item) for item in tagged], "]"
    if type(tagged) is not dict:
        style = "green" if type(tagged) is str else "cyan" if type(tagged) in (int, float) else "magenta"
        return (json_text(tagged), style), None, ""
    tag = next(iter(tagged), "")
    if tag[:1] != "$":
        return ("{", ""), list(tagged.items()), "}"
    payload = tagged[tag]
    # `literals` reads all of these. Text keys of which one starts with "$" would look like a tag.
    if tag == "$dict" and not all(type(key) is str for key, _ in payload):
        return ("{", ""), [(key, item) for key, item in payload], "}"
    if tag == "$bytes":
        return (repr(b64decode(payload)), "green"), None, ""
    if tag in ("$int", "$float"):
        return (payload, "cyan"), None, ""
    if tag == "$type":
        if not is_plain_name(payload):
            return ("{", ""), list(tagged.items()), "}"
        return (f"{printable(payload)}(", "yellow"), [(_NO_KEY, tagged["value"])], ")"
    items = payload if type(payload) is list else [payload]
    return (f"{tag[1:]}(", "yellow"), [(_NO_KEY, item) for item in items], ")"
