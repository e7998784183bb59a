"""The plots and tables of docs/growth.md."""

from __future__ import annotations

import importlib
import io
import json
import math
import re
from pathlib import Path
from typing import Any

from .samples import Part

_DRAWN_OF_KEYS = (
    "get, µs",
    "get of 1,000 hot keys, µs",
    "set, relaxed, µs",
    "set of 1,000 hot keys, relaxed, µs",
    "set, normal, µs",
    "file, bytes per key",
)

# The measurements to draw: file -> the axis, and a panel for each (part, what).
PLOTS = {
    "keys": (
        "keys",
        [("keys", what) for what in _DRAWN_OF_KEYS],
    ),
    "iteration": ("keys", [("iteration", what) for what in ("items(), µs per item", "anonymous memory, MiB more")]),
    "namespaces": ("namespaces", [("namespaces", what) for what in ("get, µs", "open + get + close of one, µs")]),
    "values": (
        "bytes per value",
        [
            ("values", "get, µs"),
            ("values", "set, relaxed, µs"),
            ("values", "file / values"),
            ("pages", "file / values"),
        ],
    ),
    "threads": ("threads", [("threads", what) for what in ("get, per second", "set, normal, per second")]),
    "processes": ("processes", [("processes", what) for what in ("get, per second", "set, normal, per second")]),
}

_COLOURS = {"lmdb": "#2a8fc4", "sqlite": "#dd7f22", "memory": "#3a9d6b", "dict": "#3a9d6b"}

# Readable on white and on slate. Each measurement has a file of its own: the page sets them in one column or two.
_INK = "#80868f"


def draw(found: dict[str, Part], folder: Path) -> None:
    matplotlib: Any = importlib.import_module("matplotlib")
    matplotlib.use("svg")
    plt: Any = importlib.import_module("matplotlib.pyplot")
    matplotlib.rcParams.update(
        {"svg.fonttype": "none", "svg.hashsalt": "hutch", "font.size": 11, "axes.facecolor": "none"}
        | dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), _INK)
    )
    folder.mkdir(parents=True, exist_ok=True)
    for name, (along, wanted) in PLOTS.items():
        panels = [(part, what) for part, what in wanted if what in found.get(part, {})]
        if not panels:
            continue
        for number, (part, what) in enumerate(panels, 1):
            figure, axes = plt.subplots(layout="constrained")
            figure.set_size_inches(4.4, 3.4)
            _draw_one(axes, found[part][what], what, along)
            figure.legend(loc="outside lower center", ncols=2, frameon=False)
            drawn = io.StringIO()
            figure.savefig(drawn, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
            plt.close(figure)
            # A tenth of a point is precise enough.
            text = re.sub(r"\d+\.\d{2,}", lambda number: f"{float(number[0]):.1f}", drawn.getvalue())
            (folder / f"growth-{name}-{number}.svg").write_text(text, encoding="utf-8")


def _draw_one(axes: Any, rows: dict[str, dict[str, float]], title: str, along: str) -> None:
    for kind, row in rows.items():
        raw = kind.startswith(("raw", "dict"))
        if kind.endswith("uncached"):  # shown in the table, beside the default
            continue
        colour = next(colour for part, colour in _COLOURS.items() if part in kind)
        style = {"linestyle": "--", "linewidth": 1.0} if raw else {"linewidth": 1.8, "marker": "o", "markersize": 3}
        axes.plot([float(x) for x in row], list(row.values()), color=colour, label=kind, **style)
    places = sorted({float(x) for row in rows.values() for x in row})
    if places[-1] >= 100 * places[0] or along in ("threads", "processes"):
        axes.set_xscale("log", base=2 if along in ("threads", "processes") else 10)
    axes.set_yscale("log")
    numbers = [number for row in rows.values() for number in row.values()]
    if max(numbers) < 30 * max(min(numbers), 1e-9):
        axes.set_yscale("linear")
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter("{x:,g}")
    else:
        axes.yaxis.set_major_locator(importlib.import_module("matplotlib.ticker").LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(lambda number, _: _tick(number))
    if along in ("threads", "processes"):
        axes.set_xticks(places, [f"{x:.0f}" for x in places])
    else:
        axes.xaxis.set_major_formatter(lambda number, _: _tick(number))
    axes.set_title(title, fontsize=11)
    axes.set_xlabel(along)
    axes.minorticks_off()
    axes.grid(color=_INK, alpha=0.25, linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)


def _tick(number: float) -> str:
    """Return 1000000 as "1M": an exponent would be too small to read on a telephone."""
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= unit:
            return f"{number / unit:g}{name}"
    return f"{number:g}"


def table(part: Part) -> str:
    """Return one row per measurement and store, with a new head where the columns change."""
    lines: list[str] = []
    head: list[str] = []
    for what, rows in part.items():
        columns = list(dict.fromkeys(x for row in rows.values() for x in row))
        if columns != head:
            head = columns
            shown = [f"{int(x):,}" if x.isdigit() else x for x in columns]
            lines += ["", f"| | | {' | '.join(shown)} |", "|---|---|" + "---:|" * len(columns)]
        for kind, row in rows.items():
            lines.append(f"| {what} | {kind} | {' | '.join(_short(row[x]) if x in row else '' for x in columns)} |")
    return "\n".join(lines[1:])


def _short(number: float) -> str:
    """Return the number with three digits."""
    if number == 0:
        return "0"
    return f"{number:,.{max(0, 2 - math.floor(math.log10(abs(number))))}f}" if abs(number) > 0.001 else f"{number:.3g}"


def write_page(page: Path, found: dict[str, Any]) -> None:
    """Replace the text between `<!-- growth: PART -->` and `<!-- end -->`."""
    text = page.read_text(encoding="utf-8")
    sections = {name: part if name == "machine" else table(part) for name, part in found.items()}
    for name, section in sections.items():
        begin = f"<!-- growth: {name} -->\n"
        before, marker, rest = text.partition(begin)
        if marker:
            text = f"{before}{begin}\n{section}\n\n<!-- end -->{rest.partition('<!-- end -->')[2]}"
    page.write_text(text, encoding="utf-8")


def saved(docs: Path) -> dict[str, Any]:
    numbers = docs / "img" / "growth.json"
    return dict(json.loads(numbers.read_text(encoding="utf-8"))) if numbers.exists() else {}


def save(docs: Path, found: dict[str, Any]) -> None:
    """Save the numbers, the plots and the tables; called after each part, so that an interrupted run keeps them."""
    (docs / "img").mkdir(parents=True, exist_ok=True)
    text = json.dumps(found, ensure_ascii=False, separators=(",", ":"))
    (docs / "img" / "growth.json").write_text(text + "\n", encoding="utf-8")
    draw(found, docs / "img")
    write_page(docs / "growth.md", found)
