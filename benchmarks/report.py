"""Format the measurements as the tables of docs/benchmarks.md; plot.py draws the page."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import sqlite3
import subprocess
from datetime import UTC, datetime
from pathlib import Path

from . import plot
from .comparison import Row
from .peers import PEERS
from .runs import Result, show
from .worker import OPERATIONS

_DOCS = Path(__file__).parent.parent / "docs"
#: A smaller difference is a draw.
_AHEAD = 1.05
_LIBRARIES = ("hutch", "lmdb", "ormsgpack", "msgspec")


def write(machine: str, results: dict[str, Result], rows: dict[str, Row]) -> None:
    """Replace the tables between the markers of docs/benchmarks.md, and the plots beside it."""
    page = _DOCS / "benchmarks.md"
    text = page.read_text()
    for name, table in {
        "machine": machine,
        "targets": targets_table(results),
        "hutch": hutch_table(rows),
        "peers": peers_table(rows),
        "ahead": ahead_list(rows),
        "flushes": flushes_table(rows),
    }.items():
        marked = re.compile(rf"(<!-- {name}: written by the benchmark -->\n).*?(<!-- {name}: end -->)", re.DOTALL)
        text, found = marked.subn(lambda match, table=table: f"{match[1]}\n{table}\n\n{match[2]}", text)  # type: ignore[misc]
        if found != 1:
            raise SystemExit(f"{page} has no place for {name!r}: a pair of comments as the others have")
    page.write_text(text)
    plot.redraw(_DOCS)


def machine(folder: Path) -> str:
    """Return one paragraph that says when, where and with which versions the benchmark ran."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists() and (model := re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE)):
        cpu = model[1]
    libraries = ", ".join(f"{name} {_version(name)}" for name in _LIBRARIES)
    return (
        f"Measured on {datetime.now(UTC):%Y-%m-%d}, commit {_commit()}: {os.cpu_count()} cores ({cpu}), "
        f"{platform.system()} {platform.release().split('-')[0]}, {_file_system(folder)}, "
        f"{platform.python_implementation()} {platform.python_version()}, SQLite {sqlite3.sqlite_version}, "
        f"{libraries}. {_load()}"
    )


def _load() -> str:
    """Return the load of the machine. Other work slows both sides of a ratio, but not always alike."""
    if not hasattr(os, "getloadavg"):
        return "The load of the machine is unknown."
    return f"Load of the machine when it began: {os.getloadavg()[0]:.1f}."


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


def _commit() -> str:
    ran = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=_DOCS, check=False, capture_output=True, text=True
    )
    return ran.stdout.strip() or "unknown"


def _file_system(folder: Path) -> str:
    """Return the type of the file system that holds `folder`, which determines the cost of a flush."""
    mounts = Path("/proc/mounts")
    if not mounts.exists():
        return "a file system of unknown type"
    place, kind = Path("/"), "unknown"
    for line in mounts.read_text().splitlines():
        _, mounted, type_, *_ = line.split()
        if folder.resolve().is_relative_to(mounted) and len(Path(mounted).parts) >= len(place.parts):
            place, kind = Path(mounted), type_
    return f"a file system of type {kind}"


def targets_table(results: dict[str, Result]) -> str:
    lines = ["| operation | yardstick | target | measured | middle half of the rounds | |", "|---|---|---|---|---|---|"]
    for result in results.values():
        target = result.target
        if target.limit < 0.5 and target.unit == "x" and not result.error:
            # For throughput, "more" reads better than "less time".
            aim, got = f">= {1 / target.limit:.1f}x the speed", f"{1 / result.ratio:.1f}x the speed"
            low, high = (f"{1 / ratio:.1f}" for ratio in reversed(result.spread))
        else:
            aim, got = f"<= {show(target, target.limit)}", result.shown()
            got = "failed" if result.error else got
            low, high = ("", "") if result.error else (show(target, ratio) for ratio in result.spread)
        spread = f"{low} to {high}" if low != high else ""
        lines.append(f"| {target.operation} | {target.yardstick} | {aim} | {got} | {spread} | {_verdict(result)} |")
    return "\n".join(lines)


def _verdict(result: Result) -> str:
    target = result.target
    if result.error:
        return result.error.replace("|", "/")
    if result.ratio <= target.limit:
        return "met"
    if target.floor is not None:
        return f"**floor {show(target, target.floor)}**: {target.why}"
    return "**missed**"


def _operations(rows: dict[str, Row]) -> list[str]:
    return [operation for operation in OPERATIONS if any(operation in row.seconds for row in rows.values())]


def _here(rows: dict[str, Row], *, peers: bool) -> list[Row]:
    return [row for name, row in rows.items() if not row.missing and (name in PEERS) == peers]


def hutch_table(rows: dict[str, Row]) -> str:
    """Return the table of microseconds per call."""
    operations = _operations(rows)
    lines = [
        f"| us per call | {' | '.join(OPERATIONS[name] for name in operations)} |",
        "|---" * (len(operations) + 1) + "|",
    ]
    for row in _here(rows, peers=False):
        cells = (_microseconds(row.seconds[name]) if name in row.seconds else "" for name in operations)
        lines.append(f"| {row.store.name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _microseconds(seconds: float) -> str:
    return f"{seconds * 1e6:.2g}" if seconds < 1e-5 else f"{seconds * 1e6:,.0f}"


def peers_table(rows: dict[str, Row]) -> str:
    """Return the table of hutch's time divided by the peer's: below 1, hutch is faster."""
    operations = _operations(rows)
    heads = ["peer", "beside", *(OPERATIONS[name] for name in operations)]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in _here(rows, peers=True):
        cells = (_ratio(row.ratios[name]) if name in row.ratios else "" for name in operations)
        about = ", ".join(text for text in (row.versions, f"Python {row.python}", row.note) if text)
        lines.append(f"| {row.store.name} ({about}) | {row.store.beside} | {' | '.join(cells)} |")
    lines += [f"\n{name} is left out: {row.missing}." for name, row in rows.items() if row.missing]
    return "\n".join(lines)


def _ratio(ratio: float) -> str:
    text = f"{ratio:.2g}" if ratio < 1 else f"{ratio:.2f}"
    return f"**{text}**" if ratio > _AHEAD else text


def ahead_list(rows: dict[str, Row]) -> str:
    """Return the list of operations where a peer is faster, and what that peer does not guarantee."""
    lines = []
    for row in _here(rows, peers=True):
        faster = [f"{OPERATIONS[name]} ({ratio:.2f})" for name, ratio in row.ratios.items() if ratio > _AHEAD]
        if faster:
            lines.append(f"- **{row.store.name}**: {', '.join(faster)}. It gives up: {row.store.gives_up}.")
    return "\n".join(lines) or "None is ahead of hutch in anything."


def flushes_table(rows: dict[str, Row]) -> str:
    """Return the table of counted flushes per call."""
    operations = [name for name in OPERATIONS if any(name in row.flushes for row in rows.values())]
    heads = ["store", "a write that returned survives", *(OPERATIONS[name] for name in operations)]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in (*_here(rows, peers=False), *_here(rows, peers=True)):
        cells = (f"{row.flushes[name]:.3g}" if name in row.flushes else "" for name in operations)
        lines.append(f"| {row.store.name} | {row.store.survives} | {' | '.join(cells)} |")
    return "\n".join(lines)
