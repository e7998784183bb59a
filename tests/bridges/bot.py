"""A real Errbot: its Python, a bot's folder, and the bot as a process that tests can talk to and kill."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

ROOT = Path(__file__).parents[2]
_PATIENCE_S = 60.0
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")

CONFIG = """\
import logging

BACKEND = "Text"
BOT_ADMINS = ("@admin",)
BOT_DATA_DIR = {data!r}
BOT_EXTRA_PLUGIN_DIR = {plugins!r}
BOT_LOG_FILE = {log!r}
BOT_LOG_LEVEL = logging.INFO
CORE_PLUGINS = ("Help", "Utils")  # TextCmds stores identifiers of its own
"""

PLUG = """\
[Core]
Name = Test Bench
Module = bench
[Python]
Version = 3
"""

# Evaluates the expressions it receives, and answers past Errbot's rendering of Markdown.
BENCH = """\
from collections import OrderedDict
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import hutch
from errbot import BotPlugin, botcmd


class Thing:
    def __init__(self, size):
        self.size = size


class Bench(BotPlugin):
    @botcmd
    def do(self, msg, args):
        number, expression = args.split(" ", 1)
        try:
            answer = repr(eval(expression, {**globals(), "self": self, "msg": msg}))
        except Exception as error:
            answer = f"{type(error).__name__}: {error}"
        print(f"<<{number}|{answer}>>", flush=True)
"""


def errbot_python() -> str:
    """Return a Python that has Errbot and hutch. Without one skip the test, or fail it where the variable CI is set."""
    named = os.environ.get("HUTCH_ERRBOT_PYTHON")
    if named:
        return named
    if importlib.util.find_spec("errbot"):
        return sys.executable
    message = "no Python with Errbot was found; name one in HUTCH_ERRBOT_PYTHON to run this test (`make test` does)"
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)


def environment(**more: str) -> dict[str, str]:
    """Return a user's environment, without the settings of this test run."""
    private = ("PYTHON", "HUTCH_", "VIRTUAL_ENV", "PYTEST")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(private)}
    return {**kept, "PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1", **more}


class BotFolder:
    """The folder of a bot with one plugin, "Test Bench". `settings` are lines of Python for its config.py."""

    def __init__(self, folder: Path, *settings: str) -> None:
        self.folder, self.data, self.plugins = folder, folder / "data", folder / "plugins"
        for made in (self.data, self.plugins / "bench"):
            made.mkdir(parents=True, exist_ok=True)
        (self.plugins / "bench" / "bench.plug").write_text(PLUG)
        (self.plugins / "bench" / "bench.py").write_text(BENCH)
        self.configure(*settings)

    @property
    def config(self) -> Path:
        return self.folder / "config.py"

    def configure(self, *settings: str) -> None:
        """Rewrite config.py."""
        text = CONFIG.format(data=str(self.data), plugins=str(self.plugins), log=str(self.data / "log"))
        self.config.write_text("\n".join([text, *settings, ""]))


def errbot(config: Path, *arguments: str, stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    """Run ``errbot -c config`` to its end."""
    command = [errbot_python(), "-m", "errbot.cli", "-c", str(config), *arguments]
    return subprocess.run(
        command,
        check=False,
        input=stdin,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=_PATIENCE_S,
        cwd=config.parent,
        env=environment(**env),
    )


def hutch_command(*arguments: str) -> str:
    """Return what the `hutch` command of this Python prints. It must succeed."""
    command = [sys.executable, "-m", "hutch", *arguments]
    done = subprocess.run(
        command,
        check=False,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=_PATIENCE_S,
        env={**os.environ, "PYTHONUTF8": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


class Bot:
    """A running Errbot in text mode. Leaving the `with` block ends its input, which shuts it down cleanly."""

    def __init__(self, config: Path, **env: str) -> None:
        self._output = config.parent / "output"
        self._asked = 0
        with self._output.open("wb") as output:
            self.process = subprocess.Popen(
                [errbot_python(), "-m", "errbot.cli", "-c", str(config)],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=config.parent,
                env=environment(**env),
            )

    @property
    def output(self) -> str:
        return _COLOURS.sub("", self._output.read_text(encoding="utf-8", errors="replace"))

    def say(self, line: str, answer: str) -> str:
        """Type `line`, wait for output that matches the pattern `answer`, and return its first group."""
        seen = len(self.output)
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()
        deadline = time.monotonic() + _PATIENCE_S
        while not (found := re.search(answer, self.output[seen:])):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"no answer to {line!r}:\n{self.output}")
            time.sleep(0.02)
        return str(found[1] if found.groups() else found[0])

    def do(self, expression: str) -> str:
        """Return the repr of `expression`, evaluated in the bench; `self` is the plugin, `msg` the message."""
        self._asked += 1
        return self.say(f"!do {self._asked} {expression}", rf"(?s)<<{self._asked}\|(.*?)>>\n")

    def kill(self) -> None:
        """Kill it at once, as kill -9 does."""
        self.process.kill()
        self._ended()

    def stop(self) -> None:
        """End its input, and wait until it has shut down."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self._ended()

    def _ended(self) -> None:
        self.process.wait(_PATIENCE_S)
        if self.process.stdin is not None:
            self.process.stdin.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is not None:
            self._ended()
        elif error is None:
            self.stop()
        else:
            self.kill()
