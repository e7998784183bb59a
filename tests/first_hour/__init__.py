"""The mistakes that a new user makes, one module per subject. `tests/test_first_hour.py` makes each of them.

A module lists them in `MISTAKES`. A mistake is written as its user would write it: as code, which is run. The advice is
code too: the test runs it, and what it promises must then be true.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import shlex
import subprocess
import sys
import textwrap
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hutch

_SECOND_TRACEBACK = "During handling of the above exception, another exception occurred"


@dataclass(frozen=True)
class Mistake:
    """One mistake, the error that it gives, and the advice in that error, which is run."""

    #: The code with the mistake. It runs in an empty folder and may use `hutch`, `folder` (its path), `cli` (see
    #: `Hour.cli`), `store`, and the open namespace `ns`, with the items of `Hour`. It may await.
    made: str
    #: The error: the name of a built-in class, of a class of hutch, or `CommandError` for a command that fails.
    error: str
    #: Each of these words is in the message: what was wrong, where, and the advice as the message words it.
    says: tuple[str, ...]
    #: Code that follows the advice. It may use whatever `made` and `before` defined.
    advice: str
    #: What is true afterwards.
    then: str
    #: Code that runs before the mistake.
    before: str = ""
    #: Whether the items of `ns` must be the same after the mistake as before it.
    writes_nothing: bool = True
    #: The store, as a URL.
    url: str = "lmdb://first-hour"


class CommandError(Exception):
    """A `hutch` command failed; the message is what it printed, and `code` its exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class Hour:
    """A store with two items in an open namespace, in the folder where the code of a mistake runs."""

    def __init__(self, folder: Path, url: str) -> None:
        self.store = hutch.connect(url)
        ns = self.store.open("core")
        ns.update({"settings": {"theme": "dark"}, "visits": [1]})
        self.names: dict[str, Any] = {
            "hutch": hutch,
            "store": self.store,
            "ns": ns,
            "folder": folder,
            "cli": self.cli,
            "__name__": "first_hour",
        }

    def __enter__(self) -> Hour:
        return self

    def __exit__(self, *_: object) -> None:
        if isinstance(self.names["ns"], hutch.Namespace):
            self.names["ns"].close()
        self.store.close()

    def items(self) -> dict[str, Any]:
        """Return the items of `ns`, or nothing if the mistake closed it."""
        ns = self.names["ns"]
        return dict(ns) if isinstance(ns, hutch.Namespace) and ns.is_open_storage() else {}

    def run(self, code: str) -> None:
        """Run `code`, which may await."""
        compiled = compile(textwrap.dedent(code), "<first hour>", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        if compiled.co_flags & inspect.CO_COROUTINE:
            asyncio.run(eval(compiled, self.names))
        else:
            exec(compiled, self.names)

    def holds(self, expression: str) -> bool:
        """Return whether `expression` is true."""
        return bool(eval(expression, self.names))

    @staticmethod
    def cli(line: str) -> str:
        """Run ``hutch LINE`` as a process, and return what it printed. Raises CommandError if it fails."""
        command = [sys.executable, "-m", "hutch", *shlex.split(line)]
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL
        )
        if done.returncode:
            raise CommandError(done.stdout + done.stderr, done.returncode)
        return done.stdout


def check(mistake: Mistake, folder: Path) -> None:
    """Make `mistake` in `folder`: assert its error, that nothing was written, and that the advice works."""
    with Hour(folder, mistake.url) as hour:
        hour.run(mistake.before)
        items = hour.items()
        error = _error_of(hour, mistake.made)
        assert error is not None, f"no error for: {mistake.made}"
        assert mistake.error in {kind.__name__ for kind in type(error).__mro__}, repr(error)
        for words in mistake.says:
            assert words in str(error), f"{words!r} is not in: {error}"
        shown = "".join(traceback.format_exception(error))
        assert _SECOND_TRACEBACK not in shown, shown
        assert not mistake.writes_nothing or not hour.items() or hour.items() == items, "the mistake changed the items"
        hour.run(mistake.advice)
        assert hour.holds(mistake.then), f"after {mistake.advice}: {mistake.then} is false; {hour.items()}"


def _error_of(hour: Hour, code: str) -> Exception | None:
    try:
        hour.run(code)
    except Exception as error:
        return error
    return None
