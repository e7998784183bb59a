"""Test that a class of the program itself is stored under the name by which other programs import it, or is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

BOT = """
import sys
from dataclasses import dataclass
import hutch

@hutch.register_type
@dataclass
class User:
    name: str

if __name__ == "__main__":
    with hutch.connect("sqlite://state.db") as store, store.open("core") as core:
        if "write" in sys.argv:
            core["ada"] = User("ada")
        assert core["ada"] == User("ada"), core["ada"]
        print(hutch.codec.registry.find(User).name)
"""
READ = "import hutch, {0}\nwith hutch.connect('sqlite://state.db') as s, s.open('core') as c: print(c['ada'])"


def ran(folder: Path, *arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )


def output(folder: Path, *arguments: str) -> str:
    done = ran(folder, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("writer", [["bot.py"], ["-m", "bot"]], ids=" ".join)
def test_a_program_reads_its_values_however_it_was_started(tmp_path: Path, writer: list[str]) -> None:
    (tmp_path / "bot.py").write_text(BOT)
    assert output(tmp_path, *writer, "write") == "bot.User"
    for reader in (["bot.py"], ["-m", "bot"]):
        assert output(tmp_path, *reader) == "bot.User"
    assert output(tmp_path, "-c", READ.format("bot")) == "User(name='ada')"


@pytest.mark.parametrize("writer", [["app/bot.py"], ["-m", "app.bot"]], ids=" ".join)
def test_a_program_in_a_package_has_the_name_of_the_package(tmp_path: Path, writer: list[str]) -> None:
    package = tmp_path / "app"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "bot.py").write_text(BOT)
    assert output(tmp_path, *writer, "write") == "app.bot.User"
    for reader in (["app/bot.py"], ["-m", "app.bot"]):
        assert output(tmp_path, *reader) == "app.bot.User"
    assert output(tmp_path, "-c", READ.format("app.bot")) == "User(name='ada')"


def test_the_main_module_of_a_package_has_its_name(tmp_path: Path) -> None:
    package = tmp_path / "app"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(BOT)
    assert output(tmp_path, "-m", "app", "write") == "app.__main__.User"
    assert output(tmp_path, "app/__main__.py") == "app.__main__.User"


def test_a_process_that_was_spawned_reads_what_its_parent_wrote(tmp_path: Path) -> None:
    program = BOT.replace('if __name__ == "__main__":', "def main():") + (
        "\ndef read(_):\n    with hutch.connect('sqlite://state.db') as s, s.open('core') as c: return c['ada'].name\n"
        "if __name__ == '__main__':\n    import multiprocessing as m\n    main()\n"
        "    with m.get_context('spawn').Pool(1) as pool: print(pool.map(read, [0]))\n"
    )
    (tmp_path / "bot.py").write_text(program)
    for arguments in (["bot.py"], ["-m", "bot"]):
        assert output(tmp_path, *arguments, "write").splitlines() == ["bot.User", "['ada']"]


def test_a_module_that_is_the_program_and_imported_too_gives_no_value_of_the_other_class(tmp_path: Path) -> None:
    """Its two classes have one name, so an instance of the first would come back as one of the second."""
    program = BOT.replace('if "write" in sys.argv:', "import bot\n        if 1:")
    (tmp_path / "bot.py").write_text(program)
    done = ran(tmp_path, "bot.py", "write")
    assert "is a __main__.User, which would not come back as one. Another class of its name was" in done.stderr
    # The advice: a module of its own.
    head, tail = program.split("if __name__")
    (tmp_path / "models.py").write_text(head)
    (tmp_path / "bot.py").write_text("from models import User\nimport hutch, sys\nif __name__" + tail)
    assert output(tmp_path, "bot.py", "write") == "models.User"


def test_what_the_first_versions_stored_is_read(tmp_path: Path) -> None:
    """They stored a class of the program under the name `__main__`."""
    old = BOT.replace("@hutch.register_type\n", "").replace(
        'if __name__ == "__main__":', 'hutch.register_type(User, name="__main__.User")\nif True:'
    )
    (tmp_path / "old.py").write_text(old)
    assert output(tmp_path, "old.py", "write") == "__main__.User"
    (tmp_path / "bot.py").write_text(BOT)
    for reader in (["bot.py"], ["-m", "bot"]):
        assert output(tmp_path, *reader) == "bot.User"


@pytest.mark.parametrize(
    "arguments",
    [["my-bot.py"], ["-P", "bot.py"], ["-c", BOT], ["-"], ["folder"], ["bot.txt"], ["-i", "-q", "-"]],
    ids=["not an identifier", "not on the path", "a command", "standard input", "a folder", "no module", "a prompt"],
)
def test_a_program_that_cannot_be_imported_needs_a_name(tmp_path: Path, arguments: list[str]) -> None:
    (tmp_path / "folder").mkdir()

    def run(program: str) -> subprocess.CompletedProcess[str]:
        for file in ("my-bot.py", "bot.py", "bot.txt", "folder/__main__.py"):
            (tmp_path / file).write_text(program)
        return ran(tmp_path, *[program if one == BOT else one for one in arguments], "write", stdin=program)

    done = run(BOT)
    assert "hutch.errors.ValueTypeError: register_type(User): the class is defined in a program" in done.stderr
    assert done.stderr.count("errors.ValueTypeError:") == 1
    assert not (tmp_path / "state.db").exists() or "-i" in arguments
    message = done.stderr.strip().splitlines()
    advice = next(line for line in message if "Pass name=: " in line).partition("Pass name=: ")[2]
    assert advice == "@hutch.register_type(name='app.User')"
    # The advice, followed.
    done = run(BOT.replace("@hutch.register_type", advice))
    assert "app.User" in done.stdout, done.stderr


def test_at_a_prompt_a_class_needs_a_name(tmp_path: Path) -> None:
    """`sys.ps1` is what a prompt sets, whether a file was run before it or not."""
    (tmp_path / "bot.py").write_text("import sys\nsys.ps1 = '>>> '\n" + BOT)
    done = ran(tmp_path, "bot.py", "write")
    assert "Pass name=: @hutch.register_type(name='app.User')" in done.stderr
