"""Test the first hour of a new user: every mistake gives an error whose advice works when followed.

The mistakes stand in `tests/first_hour`, one module per subject; every module there with a list `MISTAKES` takes part.
"""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

import pytest

from tests import first_hour
from tests.first_hour import Mistake, check


def listed() -> list[tuple[str, Mistake]]:
    """Return each mistake with the module that lists it."""
    names = sorted(module.name for module in pkgutil.iter_modules(first_hour.__path__))
    modules = [(name, importlib.import_module(f"tests.first_hour.{name}")) for name in names]
    return [(name, mistake) for name, module in modules for mistake in getattr(module, "MISTAKES", [])]


@pytest.mark.parametrize(
    "mistake", [mistake for _, mistake in listed()], ids=[f"{name}: {mistake.made}" for name, mistake in listed()]
)
def test_a_mistake_gives_an_error_whose_advice_works(
    mistake: Mistake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HUTCH_STORAGE", "HUTCH_CONFIG", "HUTCH_PLUGIN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    check(mistake, tmp_path)


def test_sixty_mistakes_are_listed_and_none_twice() -> None:
    assert len(listed()) >= 60
    made = [(mistake.before, mistake.made, mistake.url) for _, mistake in listed()]
    assert len(made) == len(set(made))
