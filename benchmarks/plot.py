"""Draw the plots of docs/benchmarks.md and of the front page from the tables of that page, as SVG by hand.

    python -m benchmarks.plot

Nothing is measured: the same tables give the same files, byte for byte. A plot is 400 units wide, so that its text can
be read on a telephone, and has colours for light and for dark pages.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

DOCS = Path(__file__).parent.parent / "docs"
#: Of the front page: the row of the peers' table, and its name in the plot.
SHOWN_PEERS = {
    "diskcache.Cache": "diskcache",
    "sqlitedict": "sqlitedict",
    "shelve, sqlite3": "shelve (sqlite3, Python 3.13)",
    "shelve, gnu": "shelve (gdbm)",
}
SHOWN_OPERATIONS = {
    "`ns[key]`": "read a key: ns[key]",
    "`ns[key] = v`": "write a key: ns[key] = v",
    "`update`, 1,000": "write 1,000 keys: ns.update(...)",
    "all items": "read all items: ns.items()",
}
_WIDTH, _MARGIN, _TOP = 400, 12, 60
STYLE = """
  text { font: 11px system-ui, sans-serif; fill: #22302d }
  .head { font-size: 14px; font-weight: bold } .soft { fill: #51635f } .strong { font-weight: bold }
  .grid { stroke: #d7e2de } .one { stroke: #51635f } .limit { stroke: #22302d; stroke-width: 2 }
  .good { fill: #0f766e } .bad { fill: #c2410c } circle { fill-opacity: .75 }
  @media (prefers-color-scheme: dark) {
    text { fill: #dbe5e2 } .soft { fill: #9fb3ad } .grid { stroke: #2a3a36 } .one { stroke: #9fb3ad }
    .limit { stroke: #dbe5e2 } .good { fill: #2dd4bf } .bad { fill: #fb923c }
  }
"""


def table(page: str, name: str) -> list[dict[str, str]]:
    """Return the rows of the table that the benchmark has written as `name`: heading to cell, without emphasis."""
    marked = re.search(rf"<!-- {name}: written by the benchmark -->\n\n(.*?)\n\n<!-- {name}: end -->", page, re.DOTALL)
    if marked is None:
        raise ValueError(f"the page has no table {name!r}")
    heading, _, *rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in marked[1].splitlines())
    return [{head: cell.replace("**", "") for head, cell in zip(heading, row, strict=True)} for row in rows]


def redraw(docs: Path = DOCS) -> None:
    """Write the plots of docs/benchmarks.md, as `drawn` returns them."""
    images = docs / "img"
    images.mkdir(exist_ok=True)
    for name, text in drawn((docs / "benchmarks.md").read_text(encoding="utf-8")).items():
        (images / name).write_text(text, encoding="utf-8")


def drawn(page: str) -> dict[str, str]:
    """Return each plot's text by the name of its file."""
    return {
        "bench-targets.svg": targets(table(page, "targets")),
        "bench-peers.svg": peers(table(page, "peers")),
        "front-peers.svg": front(table(page, "peers")),
    }


@dataclass
class _Scale:
    """A logarithmic axis from `low` to `high`, between two places of the plot."""

    low: float
    high: float
    left: float = _MARGIN
    right: float = _WIDTH - _MARGIN

    @classmethod
    def of(cls, values: Iterable[float]) -> _Scale:
        values = list(values)
        return cls(10 ** math.floor(math.log10(min(values, default=0.1))), max(2.0, max(values, default=1.0) * 1.3))

    def at(self, value: float) -> float:
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return self.left + share * (self.right - self.left)

    def marks(self) -> list[float]:
        exponents = range(round(math.log10(self.low)), math.ceil(math.log10(self.high)))
        between = {0.2, 0.5, 2.0} if self.high / self.low < 500 else set()
        return [mark for mark in sorted({10.0**exponent for exponent in exponents} | between) if mark <= self.high]


def _svg(title: str, about: str, height: float, body: Sequence[str]) -> str:
    head = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height:g}" role="img">',
        f"<title>{escape(title)}</title>",
        f"<style>{STYLE}</style>",
        f'<text class="head" x="{_MARGIN}" y="18">{escape(title)}</text>',
        f'<text class="soft" x="{_MARGIN}" y="36">{escape(about)}</text>',
    ]
    return "\n".join([*head, *body, "</svg>"]) + "\n"


_ROW = 30


def _dots(title: str, about: str, scale: _Scale, rows: dict[str, list[str]]) -> str:
    """Return a plot with one row per name: its label, and below it what is drawn on the axis."""
    bottom = _TOP + _ROW * len(rows)
    body = []
    for mark in scale.marks():
        x = scale.at(mark)
        anchor = "start" if x < _MARGIN + 8 else "middle"
        body += [f'<text class="soft" x="{x:.1f}" y="{y}" text-anchor="{anchor}">{mark:g}</text>'
                 for y in (_TOP - 5, bottom + 14)]  # fmt: skip
    # The grid is drawn beside the dots alone: a line through a label makes it hard to read.
    grid = "".join(
        f'<line class="{"one" if mark == 1 else "grid"}" x1="{scale.at(mark):.1f}" x2="{scale.at(mark):.1f}" '
        f'y1="-6" y2="6"/>'
        for mark in scale.marks()
    )
    for number, (name, marks) in enumerate(rows.items()):
        y = _TOP + _ROW * number
        body.append(f'<text x="{_MARGIN}" y="{y + 12}">{escape(name)}</text>')
        body.append(f'<g transform="translate(0 {y + 22})">{grid}{"".join(marks)}</g>')
    return _svg(title, about, bottom + 22, body)


def _dot(scale: _Scale, value: float, good: bool, about: str) -> str:
    kind = "good" if good else "bad"
    return f'<circle class="{kind}" cx="{scale.at(value):.1f}" cy="0" r="5"><title>{escape(about)}</title></circle>'


def _ratio(cell: str) -> float | None:
    """Return the time of hutch divided by the other's: of `1.21`, `<= 0.95` or `6.0x the speed`; None of bytes."""
    number = re.fullmatch(r"(?:[<>]= )?([\d.]+)(x the speed)?", cell)
    if number is None:
        return None
    return 1 / float(number[1]) if number[2] else float(number[1])


def targets(rows: list[dict[str, str]]) -> str:
    """Return a plot of each target's ratio as a dot, and its limit as a bar."""
    shown = {}
    for row in rows:
        ratio, limit = _ratio(row["measured"]), _ratio(row["target"])
        if ratio is not None and limit is not None:
            about = f"{row['measured']}, target {row['target']}"
            shown[row["operation"].replace("`", "")] = (ratio, limit, about)
    scale = _Scale.of(number for ratio, limit, _ in shown.values() for number in (ratio, limit))
    drawn_rows = {
        name: [f'<line class="limit" x1="{scale.at(limit):.1f}" x2="{scale.at(limit):.1f}" y1="-8" y2="8"/>',
               _dot(scale, ratio, ratio <= limit, about)]
        for name, (ratio, limit, about) in shown.items()
    }  # fmt: skip
    return _dots(
        "hutch beside its yardsticks",
        "time of hutch / time of the yardstick; bar: target; orange: missed",
        scale,
        drawn_rows,
    )


def _ratios(row: dict[str, str]) -> dict[str, float]:
    return {name: float(cell) for name, cell in row.items() if name not in ("peer", "beside") and cell}


def peers(rows: list[dict[str, str]]) -> str:
    """Return a plot with one row per peer and one dot per operation, named on hover."""
    scale = _Scale.of(ratio for row in rows for ratio in _ratios(row).values())
    drawn_rows = {
        f"{row['peer'].partition(' (')[0]}, beside {row['beside']}": [
            _dot(scale, ratio, ratio <= 1, f"{name.replace('`', '')}: {ratio:g}")
            for name, ratio in _ratios(row).items()
        ]
        for row in rows
    }
    return _dots(
        "hutch beside its peers, at equal durability",
        "time of hutch / time of the peer; left of 1 hutch is faster",
        scale,
        drawn_rows,
    )


def front(rows: list[dict[str, str]]) -> str:
    """Return the plot of the front page: a few operations beside a few peers, as bars from 1 to either side."""
    found = {row["peer"].partition(" (")[0]: row for row in rows}
    scale = _Scale(0.1, 70, left=_MARGIN + 150, right=_WIDTH - 36)
    one, y, body = scale.at(1), 54, []
    for operation, heading in SHOWN_OPERATIONS.items():
        body.append(f'<text class="strong" x="{_MARGIN}" y="{y + 12}">{escape(heading)}</text>')
        y += 19
        for peer, name in SHOWN_PEERS.items():
            speed = 1 / float(found[peer][operation])
            body += _bar(scale, y, speed, name)
            y += 17
        y += 10
    body.insert(0, f'<line class="one" x1="{one:.1f}" x2="{one:.1f}" y1="48" y2="{y - 8}"/>')
    about = "How many times faster hutch is; orange: the peer is faster"
    return _svg("hutch beside diskcache, sqlitedict, shelve", about, y, body)


def _bar(scale: _Scale, y: float, speed: float, name: str) -> list[str]:
    one, end = scale.at(1), scale.at(speed)
    ahead = speed >= 1
    factor = speed if ahead else 1 / speed
    text = f"{factor:.0f}x" if factor >= 10 else f"{factor:.1f}x"
    # The factor stands to the right of 1 if the bar goes to the left: there is nothing in its way.
    label = end + 5 if ahead else one + 5
    return [
        f'<text class="soft" x="{_MARGIN}" y="{y + 11}">{escape(name)}</text>',
        f'<rect class="{"good" if ahead else "bad"}" x="{min(one, end):.1f}" y="{y + 2}" '
        f'width="{max(1.0, abs(end - one)):.1f}" height="11" rx="2"/>',
        f'<text x="{label:.1f}" y="{y + 11}">{text}{"" if ahead else " slower"}</text>',
    ]


if __name__ == "__main__":
    redraw()
