"""Type the README, the front page and the tutorial where only hutch's wheel is installed, as their reader does.

On every supported Python that can be had, first without extras, then with the extra that the pages name. Python's
blocks are typed at the interactive prompt, commands in a terminal; what a page shows as output is compared.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.pages import Block, blocks
from tests.test_packaging import ROOT, UV, run

if os.name == "posix":
    from tests.terminal import Terminal
else:
    pytest.skip("the terminal of these tests is POSIX's", allow_module_level=True)

pytestmark = [pytest.mark.xdist_group("fresh"), pytest.mark.timeout(300)]

PAGES = [ROOT / "README.md", ROOT / "docs" / "index.md", ROOT / "docs" / "tutorial.md"]
NAMED = 'pip install "hutch[cli]"'
PATIENCE_S = 120
_END = "--- the block ends here ---"
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(*UV, "build", "--quiet", "--wheel", "--out-dir", folder, ROOT)
    return next(folder.glob("*.whl"))


class Fresh:
    """An environment of one Python that holds only the wheel and what it depends on."""

    def __init__(self, version: str, wheel: Path, folder: Path) -> None:
        self._wheel = wheel
        found = subprocess.run(
            [ROOT / "scripts" / "find-python", version], capture_output=True, text=True, timeout=PATIENCE_S, check=False
        )
        if found.returncode:
            # Python 3.14 is not promised yet, so a machine without Python 3.14 skips its tests, in CI too.
            why = f"there is no Python {version} here, and none could be downloaded"
            pytest.fail(why) if os.environ.get("CI") and version != "3.14" else pytest.skip(why)
        run(*UV, "venv", "--quiet", "--python", found.stdout.strip(), folder / "venv")
        self.bin = folder / "venv" / "bin"
        self.python = str(self.bin / "python")
        self.home = folder / "home"
        self.home.mkdir()
        self.install("")

    def install(self, extras: str) -> None:
        run(*UV, "pip", "install", "--quiet", "--python", self.python, f"{self._wheel}{extras}")

    def environ(self) -> dict[str, str]:
        return {
            "PATH": os.pathsep.join([str(self.bin), "/usr/bin", "/bin"]),
            "HOME": str(self.home),
            "LANG": "C.UTF-8",
            "TERM": "dumb",
            "COLUMNS": "120",
        }

    def call(self, *command: str, folder: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=folder, env=self.environ(), capture_output=True, text=True, timeout=PATIENCE_S, check=False
        )


@pytest.fixture(scope="module", params=["3.11", "3.12", "3.13", "3.14"])
def fresh(request: pytest.FixtureRequest, wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Fresh:
    return Fresh(request.param, wheel, tmp_path_factory.mktemp("fresh"))


@contextmanager
def prompt(fresh: Fresh, folder: Path) -> Iterator[Callable[[str], list[str]]]:
    """Run Python's interactive prompt. Yields a function that types text there and returns the lines it prints."""
    errors = folder / "errors"
    with (
        errors.open("w") as file,
        subprocess.Popen(
            [fresh.python, "-i", "-q", "-u"],
            cwd=folder,
            env=fresh.environ(),
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=file,
        ) as process,
    ):
        assert process.stdin
        assert process.stdout
        output = process.stdout
        watchdog = threading.Timer(PATIENCE_S, process.kill)
        watchdog.start()

        def typed(text: str) -> list[str]:
            assert process.stdin
            # The empty line ends a compound statement, as at any prompt.
            process.stdin.write(f"{text}\n\nprint({_END!r})\n")
            process.stdin.flush()
            lines = []
            for line in output:
                if line.rstrip("\n") == _END:
                    break
                lines.append(line.rstrip("\n"))
            shown = errors.read_text()
            assert "Error" not in shown, f"{text}\n{shown}"
            return lines

        try:
            yield typed
            process.stdin.close()
            assert process.wait(PATIENCE_S) == 0, errors.read_text()
        finally:
            watchdog.cancel()
            process.kill()


def shown_values(block: Block) -> list[str]:
    """Return what the comments beside the bare expressions of `block` say that the prompt shows."""
    lines = block.text.splitlines()
    values = []
    for statement in ast.parse(block.text).body:
        if isinstance(statement, ast.Expr) and not isinstance(statement.value, ast.Call):
            _, _, comment = lines[statement.lineno - 1].partition("  # ")
            assert comment, f"line {block.line}: the page does not say what {ast.unparse(statement)} shows"
            values.append(comment)
    return values


def commands_with_output(block: Block) -> list[tuple[str, list[str]]]:
    """Return each command of a console block with the lines that the page shows as its output."""
    found: list[tuple[str, list[str]]] = []
    for line in block.text.splitlines():
        if line.startswith("$ "):
            found.append((line[2:], []))
        else:
            found[-1][1].append(line)
    return found


def in_terminal(fresh: Fresh, folder: Path, command: str) -> list[str]:
    """Run `command` in a terminal and return the lines that it shows."""
    with Terminal("sh", "-c", f"{command} && echo ={_END}", environment=fresh.environ(), folder=folder) as terminal:
        shown = terminal.expect(f"={_END}\n")
    return [line.rstrip() for line in shown.splitlines()[:-1]]


def type_page(fresh: Fresh, page: Path, folder: Path, with_commands: bool) -> int:
    """Type the blocks of `page` in order; return how many outputs were compared."""
    compared = 0
    with prompt(fresh, folder) as typed:
        for block in blocks(page):
            if block.file:
                block.write(folder)
            elif block.language == "python":
                printed = typed(block.text)
                for value in shown_values(block):
                    assert value in printed
                    compared += 1
            elif block.language == "console":
                if not with_commands:
                    break  # what follows may need what the command did
                for command, output in commands_with_output(block):
                    shown = in_terminal(fresh, folder, command)
                    if output:
                        assert shown == output, command
                        compared += 1
    return compared


# The tests run in this order, and share an environment that gets its extra in between.


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_python_of_a_page_runs_without_extras(fresh: Fresh, page: Path, tmp_path: Path) -> None:
    type_page(fresh, page, tmp_path, with_commands=False)


def test_without_an_extra_it_is_not_installed_and_the_error_has_the_pip_command(fresh: Fresh, tmp_path: Path) -> None:
    for command in (["hutch", "ls"], [fresh.python, "-m", "hutch", "ls"]):
        done = fresh.call(*command, folder=tmp_path)
        assert done.returncode != 0
        assert done.stderr.count("\n") == 1, done.stderr
        assert "not installed" in done.stderr
        assert NAMED in done.stderr
    for code, extra in [("hutch.connect('redis://localhost')", "redis"), ("import hutch.testing", "testing")]:
        done = fresh.call(fresh.python, "-c", f"import hutch; {code}", folder=tmp_path)
        assert "not installed" in done.stderr.splitlines()[-1], done.stderr
        assert f'pip install "hutch[{extra}]"' in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_typed_from_its_first_line_to_its_last_shows_what_it_says(
    fresh: Fresh, page: Path, tmp_path: Path
) -> None:
    assert NAMED in page.read_text(encoding="utf-8")
    fresh.install("[cli]")
    assert type_page(fresh, page, tmp_path, with_commands=True) > 0


def test_with_the_command_alone_the_other_extras_are_not_installed(fresh: Fresh, tmp_path: Path) -> None:
    fresh.install("[cli]")
    done = fresh.call("hutch", "plugins", folder=tmp_path)
    (redis,) = (line for line in done.stdout.splitlines() if line.startswith("redis\t"))
    assert "not installed" in redis
    assert 'pip install "hutch[redis]"' in redis
    assert "broken" not in done.stdout
    for command, extra in [
        (["-s", "redis://localhost", "ls"], "redis"),
        (["test-plugin", "memory"], "testing"),
    ]:
        done = fresh.call("hutch", *command, folder=tmp_path)
        assert done.returncode == 2, done
        assert done.stderr.count("\n") == 1, done.stderr
        assert "not installed" in done.stderr
        assert f'pip install "hutch[{extra}]"' in done.stderr
