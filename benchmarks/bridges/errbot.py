"""Measure an Errbot bot on lmdb beside the same bot on Errbot's own Shelf: its start, and commands.

Run as ``python -m benchmarks.bridges.errbot`` in an environment that has Errbot and hutch.
"""

from __future__ import annotations

import dbm
import logging
import runpy
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import hutch
from hutch.bridges.errbot import plugin_dir

from .side_by_side import compare

_USERS = 2000
_COMMANDS = 300
_PATIENCE_S = 60.0

_CONFIG = """\
import logging

BACKEND = "Text"
BOT_ADMINS = ("@admin",)
BOT_DATA_DIR = {data!r}
BOT_EXTRA_PLUGIN_DIR = {plugins!r}
BOT_EXTRA_STORAGE_PLUGINS_DIR = {plugin_dir!r}
BOT_LOG_FILE = {log!r}
BOT_LOG_LEVEL = logging.ERROR
AUTOINSTALL_DEPS = False
TEXT_DEMO_MODE = False
"""
_SHELF = "STORAGE = 'Shelf'\n"
# Shelf flushes nothing, so hutch does not wait for the disk either: it still loses nothing when killed, unlike Shelf.
_RELAXED = "STORAGE = 'Hutch'\nSTORAGE_CONFIG = {{'url': 'lmdb://{state}?durability=relaxed'}}\n"
_DEFAULT = "STORAGE = 'Hutch'\nSTORAGE_CONFIG = {{'url': 'lmdb://{state}'}}\n"

_PLUG = """\
[Core]
Name = Karma
Module = karma
[Python]
Version = 3
"""
# One key per user. The first bot of a folder fills it.
_PLUGIN = f"""\
from errbot import BotPlugin, botcmd


class Karma(BotPlugin):
    def activate(self):
        super().activate()
        if "user 0" not in self:
            for number in range({_USERS}):
                self[f"user {{number}}"] = {{"karma": number, "of": ["ada", "bob"]}}
        print("<<ready>>", flush=True)

    @botcmd
    def show(self, msg, args):
        return str(self[f"user {{args}}"]["karma"]) if f"user {{args}}" in self else "nobody"

    @botcmd
    def up(self, msg, args):
        with self.mutable(f"user {{args}}") as user:
            user["karma"] += 1
        return str(user["karma"])
"""


class _Folder:
    """A bot with the state of 2,000 users, in a shelf or in hutch."""

    def __init__(self, folder: Path, storage: str) -> None:
        data, plugin = folder / "data", folder / "plugins" / "karma"
        data.mkdir(parents=True)
        plugin.mkdir(parents=True)
        (plugin / "karma.plug").write_text(_PLUG)
        (plugin / "karma.py").write_text(_PLUGIN)
        names = {"data": str(data), "plugins": str(plugin.parent), "log": str(data / "log"), "plugin_dir": plugin_dir}
        self.state = data / "state"
        self.config = folder / "config.py"
        self.config.write_text(_CONFIG.format(**names) + storage.format(state=self.state.as_posix()))
        self.start()

    def start(self) -> float:
        """Return the seconds from Errbot's own command to the ready plugin."""
        begun = time.perf_counter()
        bot = subprocess.Popen(
            [sys.executable, "-m", "errbot.cli", "-c", str(self.config)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert bot.stdout is not None
        try:
            assert any("<<ready>>" in line for line in bot.stdout)
            took = time.perf_counter() - begun
            bot.communicate(timeout=_PATIENCE_S)  # the end of its input ends the bot
        finally:
            bot.kill()
            bot.wait()
            bot.stdout.close()
        return took

    def command(self, command: str) -> float:
        """Return the seconds from a command to its answer, in a new process."""
        child = [sys.executable, "-m", __spec__.name, str(self.config), command]
        done = subprocess.run(child, check=True, capture_output=True, text=True, timeout=_PATIENCE_S)
        return float(done.stdout.splitlines()[-1])


def _answered(config: Path, command: str) -> float:
    """Return the seconds per command of a bot in this process, on Errbot's backend for tests."""
    from errbot.backends.test import TestBot

    settings = {name: value for name, value in runpy.run_path(str(config)).items() if name.isupper()}
    bot = TestBot(settings["BOT_EXTRA_PLUGIN_DIR"], logging.ERROR, settings)
    bot.start()
    try:
        assert bot.exec_command(f"!{command} 7").isdigit()
        begun = time.perf_counter()
        for number in range(_COMMANDS):
            assert bot.exec_command(f"!{command} {number * 7 % _USERS}").isdigit()
        return (time.perf_counter() - begun) / _COMMANDS
    finally:
        bot.stop()


def main() -> None:
    """Print one line of JSON per operation."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as top:
        shelf, relaxed, default = (
            _Folder(Path(top, name), storage)
            for name, storage in (("shelf", _SHELF), ("relaxed", _RELAXED), ("default", _DEFAULT))
        )
        theirs = f"Errbot's own Shelf, on {dbm.whichdb(str(shelf.state.with_name('Karma.db')))}"

        def beside(operation: str, ours: _Folder, work: Callable[[_Folder], float], rounds: int) -> None:
            compare("Errbot", operation, theirs, lambda _: work(ours), lambda _: work(shelf), limit=1.0, rounds=rounds)

        # Both starts take about as long, except for other load on the machine.
        beside("start of a bot with state, on lmdb", default, _Folder.start, 21)
        beside("a command that reads, on lmdb", default, lambda bot: bot.command("show"), 5)
        beside("a command that writes, on lmdb, not waiting for the disk", relaxed, lambda bot: bot.command("up"), 5)
        for bot in (relaxed, default):
            _check(bot)


def _check(bot: _Folder) -> None:
    """Raise unless other programs find what the commands stored."""
    with hutch.connect(f"lmdb://{bot.state.as_posix()}") as store, store.open("Karma") as karma:
        stored = dict(karma)
    assert len(stored) == _USERS
    assert all(user["of"] == ["ada", "bob"] for user in stored.values())
    assert (stored["user 14"]["karma"] > 14) == (bot.state.parent.parent.name == "relaxed")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(_answered(Path(sys.argv[1]), sys.argv[2]))
    else:
        main()
