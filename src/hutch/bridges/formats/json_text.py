"""Parse a JSON file piece by piece: Python's `json` reads only a whole text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn, TextIO

import hutch

_CHUNK = 1 << 16
# One value: the most that hutch stores.
_LONGEST = 1 << 29
# An error further than this from the end of the text cannot be due to the text's end; "-Infinity" has 9 characters.
_LONGEST_WORD = 16
_SPACE = re.compile(r"[ \t\n\r]*")
_decoder = json.JSONDecoder()


class JsonText:
    """The text of a JSON file, of which at most one value and one chunk are in memory."""

    def __init__(self, file: TextIO, path: Path) -> None:
        self._file, self._path = file, path
        self._text, self._at, self._line = "", 0, 1
        self._ended = False

    def next_character(self) -> str:
        """Skip white space; return the next character without consuming it, or "" at the end."""
        while True:
            space = _SPACE.match(self._text, self._at)
            self._consume(space.end() if space else self._at)
            if self._at < len(self._text) or not self._more():
                return self._text[self._at : self._at + 1]

    def value(self) -> Any:
        """Parse and return the next value. Raises CorruptValueError."""
        self.next_character()
        while True:
            try:
                value, end = _decoder.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                may_be_truncated = error.msg.startswith("Unterminated") or error.pos > len(self._text) - _LONGEST_WORD
                if may_be_truncated and self._more():
                    continue
                self.refuse(f"it is not JSON: {error.msg}")
            except RecursionError:
                self.refuse("a value is nested too deep")
            except ValueError:  # a number of more digits than Python reads
                self.refuse("it is not JSON that Python can read")
            # A number near the end of the text may go on, for example with "e+".
            if end < len(self._text) - 2 or not self._more():
                self._consume(end)
                return value

    def members(self) -> Iterator[tuple[str, Any]]:
        """Parse an object and yield its members, one at a time. Raises CorruptValueError."""
        self._expect("{")
        if self.next_character() == "}":
            self._consume(self._at + 1)
            return
        while True:
            if self.next_character() != '"':
                self.refuse("expected a key in double quotes")
            key = self.value()
            self.next_character()
            self._expect(":")
            yield key, self.value()
            if self.next_character() == "}":
                self._consume(self._at + 1)
                return
            self._expect(",")

    def refuse(self, reason: str) -> NoReturn:
        """Raise CorruptValueError that names the file and the line."""
        raise hutch.CorruptValueError(f"{str(self._path)!r}, line {self._line}: {reason}. Nothing was written")

    def _expect(self, character: str) -> None:
        if self._text[self._at : self._at + 1] != character:
            self.refuse(f"expected {character!r}" if self._text[self._at :] else f"the file ends before {character!r}")
        self._consume(self._at + 1)

    def _consume(self, end: int) -> None:
        self._line += self._text.count("\n", self._at, end)
        self._at = end

    def _more(self) -> bool:
        """Read more text, as much as is waiting already, so that parsing a value again and again stays linear."""
        if self._ended:
            return False
        waiting = len(self._text) - self._at
        if waiting > _LONGEST:
            self.refuse(f"a value has more than {_LONGEST:,} characters")
        try:
            more = self._file.read(max(_CHUNK, waiting))
        except UnicodeDecodeError:
            self.refuse("this line, or one soon after it, is not UTF-8")
        self._ended = not more
        if more:
            self._text, self._at = self._text[self._at :] + more, 0
        return bool(more)
