"""Test that docs/engines.md lists every option of every engine, with its default."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

import hutch
from hutch.discovery.load import load_factory

PAGE = Path(__file__).parents[1] / "docs" / "engines.md"
ENGINES = sorted(plugin.name for plugin in hutch.find_plugins().plugins)


def options_on_the_page(engine: str) -> dict[str, str]:
    section = re.search(rf"^## {engine}\n(.*?)(?=^## |\Z)", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert section, f"docs/engines.md has no section {engine}"
    return dict(re.findall(r"^\| `(\w+)` \| ([^|]*?) \|", section[1], re.MULTILINE))


def shown(option: hutch.Option) -> str:
    if option.required:
        return "required"
    if option.default in (None, ""):
        return "none"
    return f"`{str(option.default).lower() if option.kind is bool else option.default}`"


@pytest.mark.skipif(sys.platform == "win32", reason="the page has the defaults of the other systems")
@pytest.mark.parametrize("engine", ENGINES)
def test_the_page_has_every_option_of_an_engine_with_its_default(engine: str) -> None:
    factory = load_factory(hutch.find_plugins().find(engine))
    assert issubclass(factory, hutch.StoragePluginBase)
    expected = {name: shown(option) for name, option in (factory.OPTIONS or {}).items()}
    assert options_on_the_page(engine) == expected


def test_the_page_has_no_engine_that_does_not_exist() -> None:
    assert re.findall(r"^## ([a-z]+)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE) == [
        name for name in ["lmdb", "sqlite", "redis", "shelf", "memory"] if name in ENGINES
    ]
