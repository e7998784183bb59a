"""Test which lines the conformance kit takes for one call alone in its `try`."""

from __future__ import annotations

import sys
from pathlib import Path

from hutch.testing.conformance.try_bodies import is_alone_in_try, line_of

CODE = """\
import os
from contextlib import suppress
try:
    os.stat(
        "a")  # alone
except OSError:
    os.stat("b")
try:
    os.stat("c")
    os.stat("d")
except OSError:
    pass
try:
    os.stat("e")
finally:
    pass
with suppress(OSError):
    os.stat("f")  # alone
with suppress(OSError), open("g") as file:
    file.read()
    file.read()
try:
    with open("h") as file:
        file.read()
except OSError:
    pass
try:
    try:
        os.stat("i")  # alone
    except FileNotFoundError:
        pass
    os.stat("j")
except OSError:
    pass
"""


def test_only_one_simple_statement_counts_as_alone(tmp_path: Path) -> None:
    file = tmp_path / "code.py"
    file.write_text(CODE)
    lines = CODE.splitlines()
    alone = {number for number in range(1, len(lines) + 1) if is_alone_in_try(str(file), number)}
    assert alone == {4} | {number for number, line in enumerate(lines, 1) if "# alone" in line}


def test_code_without_source_is_not_judged() -> None:
    assert is_alone_in_try("<frozen abc>", 1)


def test_a_frame_has_a_line_also_at_an_instruction_without_one() -> None:
    assert line_of(sys._getframe()) == sys._getframe().f_lineno
