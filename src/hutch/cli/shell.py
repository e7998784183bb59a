"""shell: run commands one after another on one open store, with history and completion."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import IO

import click

from .. import ConfigError, Finding, Store, StoreError, StoreMissingError
from ..errors import nearest, redact
from ..filesystem import make_private_folder, write_atomically
from ..handlers import raised_by_handler
from .app import Call, hutch, pass_call, storage_options
from .complete import complete_line, parse_line
from .failures import LineError, print_failure
from .output import print_table, printable

_PROMPT = "hutch> "
_HISTORY_LINES = 1000
# These name their stores themselves, or use none.
_NOT_HERE = frozenset({"shell", "copy", "plugins", "test-plugin"})
# How other shells spell the verbs.
_ELSEWHERE = {
    **dict.fromkeys(("quit", "q", "bye"), "exit"),
    **dict.fromkeys(("?", "h", "commands"), "help"),
    **dict.fromkeys(("del", "delete", "remove", "drop", "unset"), "rm"),
    **dict.fromkeys(("list", "dir", "namespaces"), "ls"),
    **dict.fromkeys(("scan", "find"), "keys"),
    **dict.fromkeys(("cat", "show", "read", "print"), "get"),
    **dict.fromkeys(("put", "write", "add"), "set"),
    **dict.fromkeys(("info", "status"), "stats"),
}
_OWN = {"exit": "End the shell, as Ctrl-D does.", "help": "List the verbs; with the name of a verb, explain it."}


class _ShellCall(Call):
    """The call of every line: it uses the store of the shell, which stays open."""

    def __init__(self, outer: Call) -> None:
        super().__init__(debug=outer.debug)
        self._outer = outer
        self._store: Store | None = None

    def config_form(self) -> str | None:
        if self.storage is not None or self.config is not None:
            raise click.UsageError("the shell works on one store: leave out -s and -c, or start another shell")
        return self._outer.config_form()

    def connect(self) -> AbstractContextManager[Store]:
        return nullcontext(self._opened(create=True))

    def connect_existing(self) -> AbstractContextManager[Store]:
        return nullcontext(self._opened(create=False))

    connect_reading = connect_existing

    def verify(self, repair: bool, salvage: str | None) -> Iterator[Finding]:
        return self._opened(create=False).verify(repair=repair, salvage=salvage)

    def import_modules(self) -> None:
        self._outer.import_modules()

    def standard_input(self) -> IO[bytes]:
        raise click.UsageError("standard input holds the lines of the shell: give the value on the line, or a file")

    def close(self) -> None:
        if self._store is not None:
            self._store.close()

    def _opened(self, create: bool) -> Store:
        self.config_form()
        if self._store is None:
            # Entering a store returns it; `close` above leaves it.
            opened = self._outer.connect() if create else self._outer.connect_existing()
            self._store = opened.__enter__()
        return self._store


@hutch.command()
@storage_options
@pass_call
def shell(call: Call) -> int:
    """Run commands line by line on one open store.

    The verbs are the commands without "hutch", as in `get core retries`. On a terminal Tab
    completes verbs, namespaces and keys, and lines are kept in a history that only you can read.
    Else every line of standard input runs, and the exit code is that of the first line that failed.
    """
    inner = _ShellCall(call)
    try:
        with contextlib.suppress(StoreMissingError), inner.connect_existing():
            pass
        verbs = click.Group("hutch", {name: verb for name, verb in hutch.commands.items() if name not in _NOT_HERE})
        return _interactive(verbs, inner) if sys.stdin.isatty() else _script(verbs, inner)
    finally:
        inner.close()


def _script(verbs: click.Group, call: _ShellCall) -> int:
    first = 0
    for number, line in enumerate(sys.stdin, 1):
        code = _run_line(verbs, call, line, f"line {number}: ")
        if code is None:
            break
        first = first or code
    return first


def _interactive(verbs: click.Group, call: _ShellCall) -> int:
    source = "no store yet: `set` creates it"
    if call._store is not None:
        source = f"{call._store.name}, {redact(call._store.config.source)}"
    click.echo(f"hutch shell: {printable(source)}. `help` lists the verbs, Ctrl-D ends.")
    with _line_editing(verbs, call) as remember:
        while True:
            try:
                line = input(_PROMPT)
                remember(line)
                if _run_line(verbs, call, line, "") is None:
                    return 0
            except EOFError:
                click.echo()
                return 0
            except KeyboardInterrupt:
                click.echo()


def _run_line(verbs: click.Group, call: _ShellCall, line: str, where: str) -> int | None:
    """Run one line and return its exit code; None if it ends the shell."""
    try:
        try:
            words = shlex.split(line)
        except ValueError as error:
            raise LineError(
                f"the line cannot be split into words: {error}. Close the quote, or write \\ before a quote that "
                "belongs to the text"
            ) from error
        if words and words[0] == "hutch":
            del words[0]  # as in the advice of errors
        if not words or words[0].startswith("#"):
            return 0
        if words[0] == "exit":
            return None
        call.storage = call.config = None
        code = _run_words(verbs, call, words)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        if where:
            raise
        return print_failure(KeyboardInterrupt(), False)
    except BrokenPipeError:
        raise
    except (Exception, SystemExit) as error:
        sys.stdout.flush()
        return print_failure(error, call.debug, where)


def _run_words(verbs: click.Group, call: _ShellCall, words: list[str]) -> int:
    verb, *rest = words
    if verb == "help":
        if not rest:
            rows = [(name, command.get_short_help_str(100)) for name, command in verbs.commands.items()]
            print_table(("verb", "what it does"), sorted([*rows, *_OWN.items()]))
            return 0
        if rest[0] in _OWN:
            click.echo(_OWN[rest[0]])
            return 0
        verb, rest = rest[0], ["--help"]
    if verb in _NOT_HERE:
        raise LineError(f"{verb} does not work on the open store: run `hutch {verb}` outside the shell")
    if verb not in verbs.commands:
        meant = _ELSEWHERE.get(verb.removesuffix("()").lower())
        hint = f" Did you mean {meant!r}?" if meant else nearest(verb, [*verbs.commands, *_OWN])
        raise LineError(f"there is no verb {verb!r}.{hint} `help` lists the verbs, Ctrl-D ends the shell")
    command = verbs.commands[verb]
    settings = hutch.context_settings
    try:
        with command.make_context(verb, rest, obj=call, **settings) as context:
            return command.invoke(context) or 0
    except click.exceptions.Exit as end:
        return end.exit_code


@contextlib.contextmanager
def _line_editing(verbs: click.Group, call: _ShellCall) -> Iterator[Callable[[str], None]]:
    """Complete with Tab and keep a history while the block runs. The block calls what it gets with each line."""
    try:
        import readline
    except ModuleNotFoundError:  # Windows
        yield lambda line: None
        return
    entered: list[str] = []

    def remember(line: str) -> None:
        # As in other shells, a line that begins with a space is not kept.
        if line.strip() and not line.startswith(" "):
            entered.append(line)
            readline.add_history(line)

    for line in _read_history():
        readline.add_history(line)
    readline.set_auto_history(False)
    readline.set_completer_delims(" \t\n")
    readline.set_completer(_Completer(verbs, call, lambda: readline.get_line_buffer()[: readline.get_endidx()]))
    readline.parse_and_bind("bind ^I rl_complete" if "libedit" in (readline.__doc__ or "") else "tab: complete")
    try:
        yield remember
    finally:
        readline.set_completer(None)
        readline.clear_history()
        _write_history(entered)


class _Completer:
    """The function that readline calls with a word and 0, 1, 2, ... until it returns None."""

    def __init__(self, verbs: click.Group, call: _ShellCall, before_cursor: Callable[[], str]) -> None:
        self._verbs, self._call, self._before_cursor = verbs, call, before_cursor
        self._completed: list[str] = []

    def __call__(self, text: str, state: int) -> str | None:
        if state == 0:
            self._completed = self._completions(text)
        return self._completed[state] if state < len(self._completed) else None

    def _completions(self, text: str) -> list[str]:
        line = parse_line(self._before_cursor())
        self._call.storage = self._call.config = None
        items = complete_line(self._verbs, self._call, line)
        if not line.words:
            items += [name for name in _OWN if name.startswith(line.incomplete)]
        elif line.words == ["help"]:
            items = [name for name in self._verbs.commands if name.startswith(line.incomplete)]
        # readline replaces what follows the last space, which may stand inside the word.
        before = len(line.typed) - len(text)
        if len(items) == 1:
            items = [f"{items[0]}{line.quote} "]
        return [word[before:] for word in items]


def history_path() -> Path:
    """Return the file of the history, in the user's state directory."""
    if os.name == "nt":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData/Local") / "hutch" / "history"
    home = Path(os.environ.get("XDG_STATE_HOME", ""))
    # The XDG specification says to ignore a relative path.
    return (home if home.is_absolute() else Path.home() / ".local/state") / "hutch" / "history"


def _read_history() -> list[str]:
    with contextlib.suppress(OSError, ConfigError):
        return history_path().read_text("utf-8", "replace").splitlines()
    return []


def _write_history(entered: list[str]) -> None:
    """Append `entered` to the history, of which only the last lines are kept. What prevents it is printed."""
    if not entered:
        return
    try:
        path = history_path()
        make_private_folder(path.parent, parents=2)
        lines = [*_read_history(), *entered][-_HISTORY_LINES:]
        write_atomically(path, "".join(f"{line}\n" for line in lines).encode("utf-8", "replace"), 0o600)
    except (OSError, StoreError) as error:
        if raised_by_handler(error):
            raise
        click.echo(f"hutch: the history was not kept: {printable(str(error))}", err=True)
