"""Test `hutch shell`: lines on one open store, in a real terminal and from a script."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

import pytest

from tests.cli_calls import POSIX_ONLY, Result, a_place_of_its_own, fill, held, hutch_, hutch_process, url, wait_until

if os.name == "posix":
    from tests.terminal import Terminal

__all__ = ["a_place_of_its_own", "url"]

PROMPT = "hutch> "


def test_a_script_of_lines_runs_on_one_store(url: str) -> None:
    lines = b"set core retries 3\n\n# a comment\nset core greeting --text 'good morning'\nget core retries\nls\n"
    assert hutch_("-s", url, "shell", stdin=lines) == Result(0, "3\ncore\t2\n", "")
    assert held(url, "core") == {"retries": 3, "greeting": "good morning"}


def test_the_store_in_memory_is_the_same_in_every_line() -> None:
    assert hutch_("-s", "memory://", "shell", stdin=b"set core a 1\nget core a\ncheck\n").out == (
        "1\nnothing wrong was found\n"
    )


def test_a_script_goes_on_after_a_failing_line_and_exits_with_the_code_of_the_first(url: str) -> None:
    fill(url, core={"a": 1})
    result = hutch_("-s", url, "shell", stdin=b"keys cor\nget core b\nget core a\nexit\nget core a\n")
    assert (result.code, result.out) == (3, "1\n")
    first, second = result.err.splitlines()
    assert first.startswith("hutch: line 1: there is no namespace 'cor'")
    assert second == "hutch: namespace 'core' has no key 'b'; `hutch keys core` lists the keys"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("gte core a", "there is no verb 'gte'. Did you mean 'get'? `help` lists the verbs"),
        ("delete core a", "there is no verb 'delete'. Did you mean 'rm'?"),
        ("get core a --jsn", "No such option '--jsn'. Did you mean '--json'? See get --help"),
        ("get core", "Missing argument 'KEY'. See get --help"),
        ("get core 'a", "the line cannot be split into words: No closing quotation"),
        ("copy a b", "copy does not work on the open store: run `hutch copy` outside the shell"),
        ("shell", "shell does not work on the open store"),
        ("ls -s memory://", "the shell works on one store: leave out -s and -c"),
        ("set core a -", "standard input holds the lines of the shell"),
        ("load", "standard input holds the lines of the shell"),
        ("rm core --all", "add --yes"),
    ],
)
def test_a_wrong_line_is_one_line_of_error_and_changes_nothing(url: str, line: str, says: str) -> None:
    fill(url, core={"a": 1})
    result = hutch_("-s", url, "shell", stdin=f"{line}\nget core a\n".encode())
    assert (result.code, result.out) == (2, "1\n")
    assert result.err.count("\n") == 1
    assert says in result.err
    assert result.err.startswith("hutch: line 1: ")


def test_help_lists_the_verbs_and_explains_one(url: str) -> None:
    result = hutch_("-s", url, "shell", stdin=b"help\nhelp get\n")
    assert result.code == 0
    listed = [line.split("\t")[0] for line in result.out.split("Usage:")[0].splitlines()]
    assert {"ls", "keys", "get", "set", "rm", "dump", "load", "stats", "check", "help", "exit"} <= set(listed)
    assert not {"shell", "copy"} & set(listed)
    assert "Print the value of KEY." in result.out


def test_a_store_that_is_not_there_is_created_by_set_alone(url: str, tmp_path: Path) -> None:
    result = hutch_("-s", url, "shell", stdin=b"ls\n")
    assert result.code == 3
    assert "line 1" in result.err
    assert not (tmp_path / "store").exists()
    assert hutch_("-s", url, "shell", stdin=b"set core a 1\nget core a\n") == Result(0, "1\n", "")


def test_a_config_that_is_wrong_ends_the_shell_at_its_start() -> None:
    result = hutch_("-s", "lmbd://x", "shell", stdin=b"ls\n")
    assert result.code == 2
    assert "lmbd" in result.err


def test_it_runs_as_a_process_with_a_pipe(url: str) -> None:
    done = hutch_process("-s", url, "shell", input="set core a 1\nget core a\n")
    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n", "")


@POSIX_ONLY
def test_a_session_in_a_terminal(url: str, tmp_path: Path) -> None:
    fill(url, core={"user:ada": 1, "user:bob": 2, "two words": 3, "x,$y": 4}, weather={"town": "Ghent"})
    state = tmp_path / "state"
    with Terminal(
        sys.executable, "-m", "hutch", "-s", url, "shell", environment={"XDG_STATE_HOME": str(state)}
    ) as terminal:
        assert "lmdb" in terminal.expect(PROMPT)
        for typed, shown in [
            ("get core user:a\t\n", "1\n"),  # a key with a colon
            ("ge\tcor\tuser:b\t\n", "2\n"),  # verb, namespace and key
            ("get core two\t\n", "3\n"),  # escaped
            ("get core 'two w\t\n", "3\n"),  # quoted
            ("get core x\t\n", "4\n"),
            ("get core nobody\n", "has no key 'nobody'"),
            ("get core\n", "Missing argument 'KEY'"),
            (" set core secret 5\n", PROMPT),
        ]:
            terminal.type(typed)
            terminal.expect(typed.strip("\n\x03").split("\t")[0])
            terminal.expect(shown)
            if shown != PROMPT:
                terminal.expect(PROMPT)
        terminal.type("half a line")
        terminal.expect("half a line")
        terminal.interrupt(PROMPT)
        terminal.type("get weather town\n")
        terminal.expect('"Ghent"\n')
        terminal.expect(PROMPT)
        terminal.type("\x04")
        assert terminal.wait() == 0
    assert held(url, "core")["secret"] == 5
    history = state / "hutch" / "history"
    assert history.stat().st_mode & 0o777 == 0o600
    assert "get core nobody" in history.read_text().splitlines()
    assert "secret" not in history.read_text()


#: What a newcomer types, a part of the error, what the error says to type, and what that shows.
MISTAKES = [
    ("quit", "Did you mean 'exit'? `help` lists the verbs, Ctrl-D ends", "help exit", "End the shell"),
    ("?", "Did you mean 'help'?", "help", "what it does"),
    ("gett core a", "Did you mean 'get'?", "get core a", "\n1\n"),
    ("remove core b", "Did you mean 'rm'?", "rm core b", PROMPT),
    ("core['a']", "`help` lists the verbs", "help", "what it does"),
    ("get core", "Missing argument 'KEY'. See get --help", "get --help", "Print the value of KEY."),
    ("set core a", "Missing argument 'VALUE'. See set --help", "set --help", "Set KEY to VALUE"),
    ("help gett", "Did you mean 'get'?", "help get", "Print the value of KEY."),
    ("get core a --jsn", "Did you mean '--json'? See get --help", "get --help", "--json"),
    ("set core t it's", "or write \\ before a quote", "set core t --text it\\'s", PROMPT),
    ('get "core a', "No closing quotation. Close the quote", 'get "core" a', "\n1\n"),
    ("get nope a", "`hutch ls` lists the namespaces", "hutch ls", "core"),
    ("get core nope", "`hutch keys core` lists the keys", "hutch keys core", "a"),
    ("set core n None", "In JSON None is null", "set core n null", PROMPT),
    ("set core t hello", "For plain text add --text", "set core t --text hello", PROMPT),
    ("set core d {'x': 1}", "See set --help", "set --help", "VALUE"),
    ("set core d {x}", "Write JSON in single quotes: '\"text\"'", "set core d '\"text\"'", PROMPT),
    ("keys core --limit x", "See keys --help", "keys --help", "--limit N"),
    ("rm core --al", "Did you mean one of: '--all', '--help'?) See rm --help", "rm core --all --yes", PROMPT),
]


@POSIX_ONLY
def test_each_first_mistake_in_a_terminal_says_what_to_type_and_that_works(url: str) -> None:
    fill(url, core={"a": 1, "b": 2})
    with Terminal(sys.executable, "-m", "hutch", "-s", url, "shell") as terminal:
        terminal.expect(PROMPT)
        for typed, says, advice, shown in MISTAKES:
            terminal.type(f"{typed}\n")
            error = terminal.expect(PROMPT).removeprefix(typed)
            assert says in error, (typed, error)
            assert error.count("hutch: ") == 1
            terminal.type(f"{advice}\n")
            answer = terminal.expect(PROMPT).removeprefix(advice)
            assert shown in answer, (advice, answer)
            assert "hutch: " not in answer, (advice, answer)
        terminal.interrupt(PROMPT)
        terminal.type("\x04")
        assert terminal.wait() == 0
    assert held(url, "core") == {}


@POSIX_ONLY
def test_ctrl_c_ends_the_running_verb_and_not_the_shell_and_the_history_lasts(url: str, tmp_path: Path) -> None:
    fill(url, core={"a": 1})
    os.mkfifo(tmp_path / "pipe")
    command = [sys.executable, "-m", "hutch", "-s", url, "shell"]
    with Terminal(*command) as terminal:
        terminal.expect(PROMPT)
        terminal.type("load pipe\n")
        writer: list[int] = []

        def is_read() -> bool:
            with contextlib.suppress(OSError):  # nobody reads it yet
                writer.append(os.open(tmp_path / "pipe", os.O_WRONLY | os.O_NONBLOCK))
            return bool(writer)

        wait_until(is_read)
        terminal.type("\x03")
        terminal.expect("hutch: interrupted\n")
        os.close(writer[0])
        terminal.expect(PROMPT)
        terminal.type("get core a\n")
        terminal.expect("\n1\n")
        terminal.type("exit\n")
        assert terminal.wait() == 0
    with Terminal(*command) as terminal:
        terminal.expect(PROMPT)
        terminal.type("\x10\x10")  # Ctrl-P, the line before
        terminal.expect("get core a")
        terminal.type("\n")
        terminal.expect("\n1\n")
        terminal.expect(PROMPT)
        terminal.type("\x04")
        assert terminal.wait() == 0


@POSIX_ONLY
def test_a_history_that_cannot_be_kept_is_one_line(url: str, tmp_path: Path) -> None:
    fill(url, core={"a": 1})
    (tmp_path / "file").write_text("")
    with Terminal(
        sys.executable, "-m", "hutch", "-s", url, "shell", environment={"XDG_STATE_HOME": str(tmp_path / "file")}
    ) as terminal:
        terminal.expect(PROMPT)
        terminal.type("get core a\n")
        terminal.expect("\n1\n")
        terminal.type("exit\n")
        terminal.expect("hutch: the history was not kept:")
        assert terminal.wait() == 0
