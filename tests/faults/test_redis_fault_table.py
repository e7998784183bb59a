"""Test that the table of faults has every cell, and no loss that the topology does not allow."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.faults import redis_fault_table
from tests.faults.redis_fault_table import HEADER, PAGE, split, table
from tests.faults.test_redis_faults import TOPOLOGIES, lines, may_lose, promise

FIGURES = re.compile(r"([\d,]+) / ([\d,]+) / ([\d,]+) / (?:no error|[\d.]+ s)")


def problems(page: str) -> list[str]:
    """Return what is wrong with the table on a page."""
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in split(page)[1].splitlines()]
    found = [] if rows[:1] == [HEADER] else ["the header"]
    cells = {row[0]: row[1:] for row in rows[2:]}
    found += [f"the lines are not those of the tests: {cells.keys() ^ lines().keys()}"] * (
        cells.keys() != lines().keys()
    )
    for line, fault in lines().items():
        *figures, promised = cells.get(line, [""] * len(HEADER))
        found += [f"{line}: the promise"] * (promised != promise(line))
        for topology, cell in zip(TOPOLOGIES, figures, strict=False):
            counts = FIGURES.fullmatch(cell)
            if counts is None:
                found += [f"{line}, {topology}: neither figures nor a reason"] * (cell != fault.reasons.get(topology))
                continue
            acknowledged, lost, doubled = (int(text.replace(",", "")) for text in counts.groups())
            found += [f"{line}, {topology}: nothing was acknowledged"] * (not acknowledged)
            found += [f"{line}, {topology}: {lost} lost"] * (lost > 0 and not may_lose(line, topology))
            found += [f"{line}, {topology}: {doubled} doubled"] * (doubled > 0)
    return found


def test_the_page_has_figures_or_a_reason_for_every_fault_and_topology() -> None:
    assert problems(PAGE.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        (r"(\| network cut \|)[^|]*", r"\1 ", "neither figures"),
        (r"\| network cut \|.*\n", "", "not those of the tests"),
        (r"(\| network cut \| [\d,]+) / 0", r"\1 / 1", "network cut, standalone: 1 lost"),
        (r"(\| primary killed \| [^|]* \| [\d,]+ / [\d,]+) / 0", r"\1 / 2", "primary killed, sentinel: 2 doubled"),
        (r"(\| network cut \| )[\d,]+", r"\1 0", "nothing was acknowledged"),
    ],
)
def test_a_cell_that_is_empty_or_worse_than_promised_is_named(old: str, new: str, problem: str) -> None:
    page, changes = re.subn(old, new, PAGE.read_text(encoding="utf-8"))
    assert changes == 1
    assert any(problem in one for one in problems(page))


def test_the_table_is_made_from_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = {"acknowledged": 1200, "lost": 0, "doubled": 0, "unsure": 1, "error_s": 0.52}
    cells = [
        {"fault": line, "topology": topology, **figures}
        for line, fault in lines().items()
        for topology in TOPOLOGIES
        if topology not in fault.reasons
    ]
    with pytest.raises(ValueError, match="no record of"):
        table(cells[1:])
    records, page = tmp_path / "records", tmp_path / "page.md"
    records.write_text("".join(json.dumps(cell) + "\n" for cell in cells + cells))
    page.write_text(PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setattr(redis_fault_table, "PAGE", page)
    monkeypatch.setattr("sys.argv", ["redis_fault_table", str(records)])
    redis_fault_table.main()
    assert problems(page.read_text(encoding="utf-8")) == []
    assert "| network cut | 2,400 / 0 / 0 / 0.52 s |" in page.read_text(encoding="utf-8")
