"""Test that the front page of the site has what lets a stranger decide, and that it forgets no engine and no bridge."""

from __future__ import annotations

import re
from pathlib import Path

from tests.pages import blocks

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
FRONT = (DOCS / "index.md").read_text(encoding="utf-8")


def test_the_mark_is_in_the_header_the_favicon_the_front_page_and_the_readme() -> None:
    site = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert re.findall(r"^  (?:logo|favicon): (.+)$", site, re.MULTILINE) == ["assets/mark.svg"] * 2
    assert "](assets/mark.svg)" in FRONT
    assert "/docs/assets/mark.svg" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert "<svg" in (DOCS / "assets" / "mark.svg").read_text(encoding="utf-8")


def test_the_first_screen_has_a_sentence_the_install_line_and_code_of_about_ten_lines() -> None:
    install, code, command = blocks(DOCS / "index.md")[:3]
    assert install.text.startswith("pip install")
    lines = [line for line in code.text.splitlines() if line.strip()]
    assert code.language == "python"
    assert 8 <= len(lines) <= 12
    # Without line breaks, also on a telephone.
    assert max(map(len, lines)) <= 52
    assert command.text.startswith("$ hutch ")


def test_the_front_page_shows_the_stages_the_plot_how_it_was_measured_and_when_not_to_use_it() -> None:
    assert "](img/two-stages.svg)" in FRONT
    assert "](img/front-peers.svg)" in FRONT
    assert "](benchmarks.md#peers)" in FRONT
    assert "## When not to use it" in FRONT
    stages = (DOCS / "img" / "two-stages.svg").read_text(encoding="utf-8")
    assert all(word in stages for word in ("config", "descriptor", "factory", "namespaces"))


def test_every_engine_and_every_bridge_has_its_place_on_the_front_page() -> None:
    engines = {descriptor.parent.name for descriptor in (ROOT / "plugins").glob("*/*.plug")}
    assert engines == set(re.findall(r"^\| \[`(\w+)`\]\(engines\.md#\w+\)", FRONT, re.MULTILINE))
    bridges = {page.name for page in (DOCS / "bridges").glob("*.md")} - {"index.md"}
    assert bridges == set(re.findall(r"\(bridges/(\w+\.md)\)", FRONT))


def test_the_plot_beside_peers_counts_the_peers_that_it_leaves_out() -> None:
    page = (DOCS / "benchmarks.md").read_text(encoding="utf-8")
    table = page[page.index("<!-- peers:") : page.index("<!-- peers: end")]
    all_peers = len(re.findall(r"^\| ", table, re.MULTILINE)) - 1
    assert f"and {all_peers - 4} more peers" in FRONT


def test_dark_pages_and_pictures_have_colours_of_their_own() -> None:
    style = (DOCS / "assets" / "hutch.css").read_text(encoding="utf-8")
    for scheme in ("default", "slate"):
        assert f'[data-md-color-scheme="{scheme}"] {{' in style
    for name in ("two-stages", "front-peers", "bench-targets", "bench-peers"):
        assert "prefers-color-scheme: dark" in (DOCS / "img" / f"{name}.svg").read_text(encoding="utf-8")
