"""Write the two plots of docs/benchmarks.md as SVG by hand: small, and identical for identical numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape

from .comparison import Row
from .peers import PEERS
from .runs import Result, show
from .worker import OPERATIONS

_LEFT, _RIGHT, _TOP, _LINE, _WIDTH = 390, 30, 56, 22, 960
# For light and dark pages.
_STYLE = """
  svg { background: #fff } text { font: 12px sans-serif; fill: #222 } .small { font-size: 10px; fill: #666 }
  .head { font-size: 14px; font-weight: bold } .grid { stroke: #ddd } .one { stroke: #444 }
  .good { fill: #1f77b4; fill-opacity: .75 } .bad { fill: #d9480f } .limit { stroke: #222; stroke-width: 2 }
"""


class _Scale:
    """A logarithmic axis from `low` to `high`."""

    def __init__(self, values: Iterable[float]) -> None:
        values = list(values)
        self.low = 10 ** math.floor(math.log10(min(values, default=0.1)))
        self.high = max(2.0, max(values, default=1.0) * 1.3)

    def at(self, value: float) -> float:
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    def marks(self) -> list[float]:
        exponents = range(round(math.log10(self.low)), math.ceil(math.log10(self.high)))
        between = {0.2, 0.5, 2.0} if self.high / self.low < 500 else {2.0}
        return sorted({10.0**exponent for exponent in exponents} | between)


def _drawing(title: str, axis: str, scale: _Scale, rows: Sequence[str], body: list[str]) -> str:
    height = _TOP + _LINE * len(rows) + 44
    bottom = _TOP + _LINE * len(rows)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img">',
        f"<title>{escape(title)}</title>",
        f"<style>{_STYLE}</style>",
        f'<rect width="{_WIDTH}" height="{height}" fill="#fff"/>',
        f'<text class="head" x="16" y="24">{escape(title)}</text>',
    ]
    for mark in scale.marks():
        if scale.low <= mark <= scale.high:
            x = scale.at(mark)
            line = "one" if mark == 1 else "grid"
            parts.append(f'<line class="{line}" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP - 8}" y2="{bottom}"/>')
            parts.append(f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{mark:g}</text>')
    for number, row in enumerate(rows):
        parts.append(f'<text x="{_LEFT - 12}" y="{_y(number) + 4}" text-anchor="end">{escape(row)}</text>')
    parts.append(f'<text class="small" x="{_LEFT}" y="{bottom + 34}">{escape(axis)}</text>')
    return "\n".join([*parts, *body, "</svg>"]) + "\n"


def _y(row: int) -> int:
    return _TOP + _LINE * row + _LINE // 2


def _dot(scale: _Scale, row: int, value: float, good: bool, about: str) -> str:
    kind = "good" if good else "bad"
    place = f'cx="{scale.at(value):.1f}" cy="{_y(row)}"'
    return f'<circle class="{kind}" {place} r="5"><title>{escape(about)}</title></circle>'


def targets(results: dict[str, Result]) -> str:
    """Return a plot of each target's ratio as a dot, and its limit as a bar."""
    shown = [result for result in results.values() if not result.error and result.target.unit == "x"]
    scale = _Scale([*(result.ratio for result in shown), *(result.target.limit for result in shown)])
    body = []
    for row, result in enumerate(shown):
        target = result.target
        x = scale.at(target.limit)
        body.append(f'<line class="limit" x1="{x:.1f}" x2="{x:.1f}" y1="{_y(row) - 9}" y2="{_y(row) + 9}"/>')
        about = f"{show(target, result.ratio)}, target {show(target, target.limit)}"
        body.append(_dot(scale, row, result.ratio, result.ratio <= target.limit, about))
    return _drawing(
        "hutch beside its yardsticks",
        "time of hutch / time of the yardstick, logarithmic. Dot: measured (orange: missed). Bar: the target.",
        scale,
        [_short(result.target.operation) for result in shown],
        body,
    )


def _short(text: str) -> str:
    text = text.replace("`", "")
    return text if len(text) <= 52 else text[:51] + "…"


def peers(rows: dict[str, Row]) -> str:
    """Return a plot with one line per peer and one dot per operation, named on hover."""
    shown = [row for name, row in rows.items() if name in PEERS and row.ratios]
    scale = _Scale(ratio for row in shown for ratio in row.ratios.values())
    body = []
    for number, row in enumerate(shown):
        for operation, ratio in row.ratios.items():
            name = OPERATIONS[operation].replace("`", "")
            body.append(_dot(scale, number, ratio, ratio <= 1, f"{name}: {ratio:.2g}"))
    return _drawing(
        "hutch beside its peers, at equal durability",
        "time of hutch / time of the peer, logarithmic; a dot an operation. Left of 1 hutch is ahead.",
        scale,
        [f"{row.store.name}  (beside {row.store.beside.removeprefix('hutch ')})" for row in shown],
        body,
    )
