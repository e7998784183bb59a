"""Test that the plots of the benchmarks show what the tables of their page say."""

from __future__ import annotations

import html
import re
from pathlib import Path

import pytest
from benchmarks import plot

PAGE = (Path(__file__).parents[1] / "docs" / "benchmarks.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["bench-targets.svg", "bench-peers.svg", "front-peers.svg"])
def test_a_plot_is_drawn_from_the_tables_of_its_page(name: str) -> None:
    committed = (Path(plot.DOCS) / "img" / name).read_text(encoding="utf-8")
    assert plot.drawn(PAGE)[name] == committed, "python -m benchmarks.plot draws it again"
    # 400 units hold about 70 letters.
    assert [text for text in re.findall(r"<text[^>]*>([^<]*)", committed) if len(html.unescape(text)) > 70] == []


def test_the_front_page_shows_each_peer_it_names_and_also_where_hutch_is_slower() -> None:
    rows = plot.table(PAGE, "peers")
    text = plot.front(rows)
    slower = [row for row in rows if row["peer"].partition(" (")[0] in plot.SHOWN_PEERS
              and any(float(row[operation]) > 1 for operation in plot.SHOWN_OPERATIONS)]  # fmt: skip
    assert text.count(" slower</text>") >= len(slower) > 0
    for name in plot.SHOWN_PEERS.values():
        assert text.count(f">{name}</text>") == len(plot.SHOWN_OPERATIONS)
