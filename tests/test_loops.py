"""No `while` loop stands directly inside a `with` or a `try`.

CPython 3.13 leaves the jump back of such a loop out of the exception table: an exception that a signal handler raises
there skips the `with` and the `finally`, and a lock stays taken. A loop in a function of its own is safe.
"""

from __future__ import annotations

import dis
import sys
from collections.abc import Iterator
from pathlib import Path
from types import CodeType
from typing import Any

import pytest

_ROOT = Path(__file__).parent.parent
# The programs of `hutch.testing` hold nothing that must be given back.
_SOURCES = sorted(
    path
    for folder in ("src/hutch", "plugins")
    for path in (_ROOT / folder).rglob("*.py")
    if "testing" not in path.parts
)

pytestmark = pytest.mark.skipif(sys.version_info[:2] != (3, 13), reason="only CPython 3.13 compiles loops so")


def codes_of(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from codes_of(constant)


def uncovered_jumps(source: str) -> list[str]:
    """Return function and line of each jump back that a block around its loop does not cover."""
    return [
        f"{code.co_qualname}, line {jump.positions.lineno if jump.positions else '?'}"
        for code in codes_of(compile(source, "<source>", "exec"))
        for jump in _uncovered_jumps_of(code)
    ]


def _uncovered_jumps_of(code: CodeType) -> Iterator[dis.Instruction]:
    bytecode: Any = dis.Bytecode(code)
    instructions: list[dis.Instruction] = list(bytecode)
    # The handler around the whole of a generator or coroutine holds nothing.
    harmless = {one.offset for one in instructions if one.argrepr == "INTRINSIC_STOPITERATION_ERROR"}
    blocks = [entry for entry in bytecode.exception_entries if entry.target not in harmless]
    for jump in instructions:
        if "JUMP_BACKWARD" in jump.opname and "NO_INTERRUPT" not in jump.opname:
            before = {block.target for block in blocks if block.end == jump.offset}
            around_loop = {block.target for block in blocks if block.start <= jump.argval < block.end}
            is_covered = any(block.start <= jump.offset < block.end for block in blocks)
            if not is_covered and before & around_loop:
                yield jump


def test_a_while_loop_inside_a_with_or_a_try_is_noticed() -> None:
    loop = "    with lock:\n        {0} wait():\n            work()\n"
    assert uncovered_jumps("def f():\n" + loop.format("while")) == ["f, line 3"]
    assert uncovered_jumps("def f():\n" + loop.format("for _ in")) == []


@pytest.mark.parametrize("path", _SOURCES, ids=lambda path: str(path.relative_to(_ROOT)))
def test_what_a_handler_raises_at_the_end_of_a_loop_meets_the_block_around_it(path: Path) -> None:
    assert uncovered_jumps(path.read_text(encoding="utf-8")) == []
