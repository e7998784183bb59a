"""Make the table in docs/redis-faults.md from the records of tests/faults/test_redis_faults.py: the worst of each cell.

HUTCH_FAULT_RECORDS=records HUTCH_FAULT_ROUNDS=200 python -m pytest tests/faults/test_redis_faults.py
python -m tests.faults.redis_fault_table records
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from tests.faults.test_redis_faults import TOPOLOGIES, lines, promise

PAGE = Path(__file__).parents[2] / "docs" / "redis-faults.md"
BEGIN, END = "<!-- The table is made by tests/faults/redis_fault_table.py. -->\n", "<!-- end of the table -->"
HEADER = ["fault", *TOPOLOGIES, "may be lost"]
#: The format of a cell: acknowledged, lost and doubled writes, and the seconds to the error.
CELL = "{acknowledged:,} / {lost:,} / {doubled:,} / {error}"


def worst(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the figures of several runs as one: all that was acknowledged, lost and doubled, the longest time."""
    figures: dict[str, Any] = {name: sum(one[name] for one in records) for name in ("acknowledged", "lost", "doubled")}
    times = [one["error_s"] for one in records if one["error_s"] is not None]
    return figures | {"error": f"{max(0.01, *times):.2f} s" if times else "no error"}


def table(records: list[dict[str, Any]]) -> str:
    """Return the table. Raises ValueError if a cell has neither a record nor a reason."""
    rows = [HEADER, ["---"] * len(HEADER)]
    for line, fault in lines().items():
        cells = []
        for topology in TOPOLOGIES:
            found = [one for one in records if (one["fault"], one["topology"]) == (line, topology)]
            if not found and topology not in fault.reasons:
                raise ValueError(f"no record of {line!r} on {topology}: run the tests with HUTCH_FAULT_RECORDS")
            cells.append(CELL.format(**worst(found)) if found else fault.reasons[topology])
        rows.append([line, *cells, promise(line)])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def split(page: str) -> tuple[str, str, str]:
    """Return the text before the table, the table, and the text after it."""
    before, _, rest = page.partition(BEGIN)
    made, _, after = rest.partition(END)
    return before + BEGIN, made, END + after


def main() -> None:
    records = [json.loads(line) for line in Path(sys.argv[1]).read_text(encoding="utf-8").splitlines()]
    before, _, after = split(PAGE.read_text(encoding="utf-8"))
    PAGE.write_text(before + table(records) + after, encoding="utf-8")


if __name__ == "__main__":
    main()
