"""Run a script in its own process, and kill it with -9 after a given line of output."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

_PATIENCE_S = 120.0


def run_until(line: str, script: str, *arguments: str, folder: Path, **env: str) -> list[str]:
    """Run `script` until it prints a line that starts with `line`, kill it, and return the complete lines it printed.

    It must not end by itself. A line that the kill truncated is left out.
    """
    process = _started(script, arguments, folder, env)
    lines = []
    watchdog = threading.Timer(_PATIENCE_S, process.kill)
    watchdog.start()
    assert process.stdout is not None
    try:
        for message in process.stdout:
            lines.append(message.rstrip("\n"))
            if message.startswith(line):
                break
        else:
            raise AssertionError(f"it never said {line!r}:\n" + "\n".join(lines))
    finally:
        watchdog.cancel()
        watchdog.join()
        process.kill()
        lines += (message.rstrip("\n") for message in process.stdout if message.endswith("\n"))
        process.stdout.close()
        process.wait()
    return lines


def run(script: str, *arguments: str, folder: Path, patience_s: float = _PATIENCE_S, **env: str) -> list[str]:
    """Run `script` until it ends successfully, for at most `patience_s`, and return the lines it printed."""
    process = _started(script, arguments, folder, env)
    try:
        message, _ = process.communicate(timeout=patience_s)
    finally:
        process.kill()
    assert process.returncode == 0, message
    return message.splitlines()


def _started(script: str, arguments: tuple[str, ...], folder: Path, env: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1", **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
    )
