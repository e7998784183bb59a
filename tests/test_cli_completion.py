"""Test the completion of namespaces and keys in real shells: bash, zsh and fish."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import hutch
from tests.cli_calls import POSIX_ONLY, TIMEOUT_S, a_place_of_its_own, fill, url
from tests.servers import RedisServer, need_program

if os.name == "posix":
    from tests.terminal import Terminal

__all__ = ["a_place_of_its_own", "url"]
pytestmark = POSIX_ONLY

ITEMS = {"user:ada": 1, "user:bob": 2, "two words": 3, "x,$y": 4, "it's": 5}


@pytest.fixture
def path(tmp_path: Path) -> str:
    """Return a PATH where `hutch` is this checkout's command."""
    program = tmp_path / "bin" / "hutch"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m hutch "$@"\n')
    program.chmod(0o755)
    return f"{program.parent}{os.pathsep}{os.environ['PATH']}"


def complete(line: str, **environment: str) -> list[str]:
    """Return what bash is offered for the last word of `line`."""
    done = subprocess.run(
        [sys.executable, "-m", "hutch"],
        env={**os.environ, "_HUTCH_COMPLETE": "bash_complete", "COMP_LINE": line, **environment},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.stderr == ""
    return [offered.removeprefix("plain,") for offered in done.stdout.splitlines() if offered]


def test_namespaces_and_keys_are_offered(url: str) -> None:
    fill(url, core=ITEMS, coral={"a": 1}, weather={"a": 1})
    assert complete(f"hutch -s {url} keys co") == ["coral", "core"]
    assert complete(f"hutch get -s {url} core user:b") == ["bob"]
    assert complete(f"hutch -s {url} rm core user:ada user:") == ["ada", "bob"]
    assert complete(f"hutch -s {url} get core 'two ") == ["two words"]
    assert complete("hutch get co", HUTCH_STORAGE=url) == ["coral", "core"]


def test_a_completion_is_silent_and_creates_nothing(tmp_path: Path, url: str) -> None:
    fill(url, core={"a": 1})
    for line in [
        f"hutch -s {url}x get co",
        "hutch -s lmbd://x get co",
        "hutch -c missing.yaml get core ",
        f"hutch -s {url} get cor a",
        "hutch -s redis://127.0.0.1:1 get co",
    ]:
        assert complete(line) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["store"]


def test_of_many_keys_some_are_offered_whose_common_prefix_is_right(url: str) -> None:
    fill(url, core={f"k{number:04}": 0 for number in range(1500)})
    offered = complete(f"hutch -s {url} get core k")
    assert len(offered) < 500
    assert {offered[0], offered[-1]} == {"k0000", "k1499"}


def test_a_name_that_controls_a_terminal_is_not_offered(url: str) -> None:
    fill(url, core={"\x1b]0;title\x07": 1, "a\nplain,b": 2, "fine": 3})
    assert complete(f"hutch -s {url} get core ") == ["fine"]


def test_a_server_that_does_not_answer_gives_no_completion() -> None:
    with RedisServer() as server:
        fill(server.url, core={"a": 1})
        assert complete(f"hutch -s {server.url} get co") == ["core"]
        server.stall()
        began = time.monotonic()
        assert complete(f"hutch -s {server.url}?timeout=30 get co") == []
        assert time.monotonic() - began < 25
        server.resume()


def test_a_completion_reads_while_another_process_has_the_store_open(url: str) -> None:
    with hutch.connect(url) as store, store.open("core") as core:
        core["written"] = 1
        assert complete(f"hutch -s {url} get core ") == ["written"]


def _bash(folder: Path) -> list[str]:
    (folder / "rc").write_text("PS1='ready> '\neval \"$(_HUTCH_COMPLETE=bash_source hutch)\"\n")
    return ["bash", "--noprofile", "--rcfile", str(folder / "rc"), "-i"]


def _zsh(folder: Path) -> list[str]:
    (folder / ".zshrc").write_text(
        "unsetopt zle_bracketed_paste\nPS1='ready> '\nautoload -Uz compinit; compinit -u -D\n"
        'eval "$(_HUTCH_COMPLETE=zsh_source hutch)"\n'
    )
    return ["zsh", "-o", "no_global_rcs", "-i"]


@pytest.mark.parametrize(("shell", "start"), [("bash", _bash), ("zsh", _zsh)])
def test_tab_completes_in_an_interactive_shell(
    shell: str, start: Callable[[Path], list[str]], url: str, tmp_path: Path, path: str
) -> None:
    need_program(shell)
    fill(url, core=ITEMS)
    environment = {"PATH": path, "ZDOTDIR": str(tmp_path), "TERM": "xterm", "HISTFILE": ""}
    with Terminal(*start(tmp_path), environment=environment, folder=tmp_path) as terminal:
        terminal.expect("ready> ")
        for typed, value in [
            (f"hutch -s {url} get cor\tuser:a\t", "1"),
            (f"hutch -s {url} get core tw\t", "3"),
            (f"hutch -s {url} get core x\t", "4"),
            (f"hutch -s {url} get core it\t", "5"),
        ]:
            terminal.type(f"{typed}; echo +done\n")
            shown = terminal.expect("\n+done")
            assert shown.split("\n")[-2] == value, shown
            terminal.expect("ready> ")
        terminal.type("exit\n")
        assert terminal.wait() == 0


def test_fish_completes(url: str, tmp_path: Path, path: str) -> None:
    need_program("fish")
    fill(url, core=ITEMS)
    script = "_HUTCH_COMPLETE=fish_source hutch | source\n" + "".join(
        f'complete --do-complete "hutch -s {url} get {words}"\n' for words in ("co", "core user:", "core x", "core tw")
    )
    done = subprocess.run(
        ["fish", "--private", "--no-config", "-c", script],
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.stdout.splitlines() == ["core", "user:ada", "user:bob", "x,$y", "two words"], done.stderr
