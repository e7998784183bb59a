"""Tell from the source whether an `except` stands around one call alone, which may raise what it catches."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path
from types import FrameType

_SIMPLE = (ast.Expr, ast.Assign, ast.AnnAssign, ast.AugAssign, ast.Return, ast.Delete)


def is_alone_in_try(file: str, line: int) -> bool:
    """Return whether the innermost `try` around `line` holds one simple statement, and no more, before its `except`.

    ``with suppress(...)`` counts as a `try`. True if the source is not available.
    """
    bodies = _bodies(file)
    if bodies is None:
        return True
    around = [body for body in bodies if body[0].lineno <= line <= (body[-1].end_lineno or line)]
    if not around:
        return False
    innermost = max(around, key=lambda body: body[0].lineno)
    return len(innermost) == 1 and isinstance(innermost[0], _SIMPLE)


def visited_frame(frame: FrameType | None, *files: str) -> FrameType:
    """Return the first stack frame, from `frame` outwards, whose code is in none of `files`."""
    while frame is not None and frame.f_code.co_filename in files:
        frame = frame.f_back
    assert frame is not None
    return frame


def line_of(frame: FrameType) -> int:
    """Return the line that `frame` is at: for an instruction without a line, that of the instruction before it."""
    lines = [line for start, _, line in frame.f_code.co_lines() if start <= frame.f_lasti and line is not None]
    return lines[-1] if lines else frame.f_code.co_firstlineno


@cache
def _bodies(file: str) -> list[list[ast.stmt]] | None:
    """Return the bodies of every `try` with an `except` in `file`, or None if it cannot be read."""
    try:
        tree = ast.parse(Path(file).read_bytes())
    except (OSError, SyntaxError, ValueError):
        return None
    bodies = []
    for node in ast.walk(tree):
        catches = (isinstance(node, ast.Try | ast.TryStar) and node.handlers) or (
            isinstance(node, ast.With) and any(_is_suppress(item.context_expr) for item in node.items)
        )
        if catches:
            bodies.append(node.body)  # type: ignore[attr-defined]
    return bodies


def _is_suppress(expression: ast.expr) -> bool:
    return isinstance(expression, ast.Call) and ast.unparse(expression.func).rpartition(".")[2] == "suppress"
