"""Run jobs in another process on the same storage: `Child` sends them as pickles over a pipe to `jobs.main`."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any, Self

from .kit import PATIENCE_S


def same_imports() -> dict[str, str]:
    """Return environment variables with which another Python imports modules from the same places as this one."""
    path = [entry or str(Path.cwd()) for entry in sys.path]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path), "PYTHONSAFEPATH": "1"}


class ChildError(AssertionError):
    """The other process died, hung, or raised."""


class Child:
    """A process that has run ``hutch.connect(config)`` and runs the jobs it is sent; `.jobs` lists them."""

    def __init__(self, config: Any, *, measured: bool = True) -> None:
        """Start the process. `measured=False` turns coverage off: a fork beside threads may leave its lock locked."""
        try:
            pickled = pickle.dumps(config)
        except Exception as error:
            raise ChildError(f"`config` cannot be pickled, which other processes need: {error}") from error
        environ = same_imports()
        if not measured:
            environ = {name: value for name, value in environ.items() if not name.startswith("COVERAGE_PROCESS")}
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed by kill
        self._process = subprocess.Popen(
            [sys.executable, "-m", "hutch.testing.conformance.jobs"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=environ,
        )
        self.pid = self._process.pid
        self._ready = self._killed = False
        self._write(pickled)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None and not self._killed:
                self._finish()
        finally:
            self.kill()

    def start(self, job: str, *arguments: Any) -> None:
        """Send a job; `result` waits for its end."""
        self._write(pickle.dumps((job, arguments)))

    def result(self, patience_s: float = PATIENCE_S) -> Any:
        """Return the result of the started job. Raises ChildError if it raised, died or took too long."""
        if not self._ready:
            self._receive(patience_s)
            self._ready = True
        return self._receive(patience_s)

    def call(self, job: str, *arguments: Any) -> Any:
        """Run a job and return its result."""
        self.start(job, *arguments)
        return self.result()

    def read(self, patience_s: float = PATIENCE_S) -> Any:
        """Return the next object that the process sends. Raises EOFError once it is dead."""
        assert self._process.stdout is not None
        watchdog = threading.Timer(patience_s, self._process.kill)
        watchdog.start()
        try:
            return pickle.load(self._process.stdout)
        except pickle.UnpicklingError:
            raise EOFError("truncated answer") from None
        finally:
            watchdog.cancel()
            watchdog.join()

    def kill(self) -> None:
        """Kill the process (SIGKILL) and close its pipes."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._stderr):
            if pipe is not None:
                try:
                    pipe.close()
                except OSError:  # unread input
                    continue

    def kill_only(self) -> None:
        """Kill the process; what it sent before can still be read."""
        self._killed = True
        self._process.kill()

    def _receive(self, patience_s: float) -> Any:
        try:
            outcome, message = self.read(patience_s)
        except EOFError:
            code = self._process.wait()
            raise ChildError(f"the other process died or hung, exit code {code}: {self.errors()}") from None
        if outcome == "raised":
            raise ChildError(f"the other process raised {message}")
        return message

    def _finish(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            code = self._process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            raise ChildError(f"the other process does not end: {self.errors()}") from None
        if code:
            raise ChildError(f"the other process ended with exit code {code}: {self.errors()}")

    def _write(self, data: bytes) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(data)
            self._process.stdin.flush()
        except OSError as error:
            raise ChildError(f"the other process is gone: {self.errors()}") from error

    def errors(self) -> str:
        """Return the end of what the process wrote to stderr."""
        self._stderr.seek(0)
        return self._stderr.read().decode(errors="replace")[-3000:] or "it wrote nothing to stderr"
