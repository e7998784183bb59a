"""A program in a real terminal, for tests: type, press keys, and wait for what it shows."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Self

_PATIENCE_S = 30
# Makes the terminal the one that Ctrl-C goes through.
_IN_TERMINAL = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execvp(sys.argv[1], sys.argv[1:])"
)
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[()=>][A-Z0-9]?|\r|\x07")


class Terminal:
    """Runs `command` in a pseudo-terminal; a context manager that leaves no process behind."""

    def __init__(self, *command: str, environment: dict[str, str] | None = None, folder: Path | None = None) -> None:
        self._master, slave = pty.openpty()
        self._unread = ""
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _IN_TERMINAL, *command],
                stdin=slave,
                stdout=slave,
                stderr=slave,
                start_new_session=True,
                cwd=folder,
                env={**os.environ, "TERM": "dumb", **(environment or {})},
            )
        finally:
            os.close(slave)

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def interrupt(self, then: str) -> str:
        """Type Ctrl-C, and return what is shown up to and with `then`.

        Python forgets to look at a signal that arrives between a prompt and its wait for input, until the next one.
        """
        for _ in range(10):
            self.type("\x03")
            with contextlib.suppress(AssertionError):
                return self.expect(then, _PATIENCE_S / 10)
        raise AssertionError(f"{then!r} was not shown after Ctrl-C, but: {self._unread!r}")

    def expect(self, text: str, patience_s: float = _PATIENCE_S) -> str:
        """Return what is shown up to and with `text`, without control sequences."""
        deadline = time.monotonic() + patience_s
        while text not in self._unread:
            assert time.monotonic() < deadline, f"{text!r} was not shown, but: {self._unread!r}"
            if select.select([self._master], [], [], 0.2)[0]:
                try:
                    shown = os.read(self._master, 65536)
                except OSError as error:  # Linux's way to say that the program has ended
                    raise AssertionError(f"ended before {text!r} was shown, after: {self._unread!r}") from error
                self._unread = _CONTROL.sub("", self._unread + shown.decode("utf-8", "replace"))
        end = self._unread.index(text) + len(text)
        before, self._unread = self._unread[:end], self._unread[end:]
        return before

    def wait(self) -> int:
        """Return the exit code of the program."""
        return self.process.wait(_PATIENCE_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(_PATIENCE_S)
        os.close(self._master)
