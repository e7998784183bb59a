"""Measure all bridges beside the frameworks' own storages: python -m benchmarks.bridges [NAME ...].

Each runs in the environment of its framework, `.venvs/NAME` or the Python in `HUTCH_NAME_PYTHON`. Without NAMEs the
table of docs/bridges/index.md is rewritten.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from ..report import machine

_ROOT = Path(__file__).parents[2]
_PAGE = _ROOT / "docs" / "bridges" / "index.md"
_NAMES = ("errbot", "dotevals", "exengine", "ragas", "themis", "themis1", "keyvalue")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bridges", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of {', '.join(_NAMES)}")
    asked = parser.parse_args()
    if unknown := [name for name in asked.names if name not in _NAMES]:
        parser.error(f"there is no bridge to {unknown[0]!r}; there are {', '.join(_NAMES)}")
    with tempfile.TemporaryDirectory() as folder:
        message = machine(Path(folder))
    lines = [line for name in asked.names or _NAMES for line in _measure(name)]
    table = _table(lines)
    print(table)
    if not asked.names:
        _write(f"{message}\n\n{table}")
    return 0


def _measure(name: str) -> list[dict[str, Any]]:
    python = os.environ.get(f"HUTCH_{name.upper()}_PYTHON") or str(_ROOT / ".venvs" / name / "bin" / "python")
    done = subprocess.run(
        [python, "-m", f"benchmarks.bridges.{name}"], cwd=_ROOT, stdout=subprocess.PIPE, text=True, check=True
    )
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    for line in lines:
        print(f"{line['framework']}: {line['operation']}: {line['ratio']:.3g}", file=sys.stderr, flush=True)
    return lines


def _table(lines: list[dict[str, Any]]) -> str:
    rows = [
        "| framework | what is done | beside | hutch | theirs | ratio (quartiles) | target |",
        "|---|---|---|---|---|---|---|",
    ]
    for line in lines:
        low, high = line["quartiles"]
        spread = f" ({low:.2g} to {high:.2g})" if low != high else ""
        missed = "" if line["ratio"] <= line["limit"] else ", missed"
        rows.append(
            f"| {line['framework']} | {line['operation']} | {line['yardstick']} | {_shown(line['hutch_s'])} | "
            f"{_shown(line['theirs_s'])} | **{line['ratio']:.2g}**{spread} | at most {line['limit']:g}{missed} |"
        )
    return "\n".join(rows)


def _shown(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"


def _write(text: str) -> None:
    marked = re.compile(r"(<!-- ratios: written by the benchmark -->\n).*?(<!-- ratios: end -->)", re.DOTALL)
    page, found = marked.subn(lambda match: f"{match[1]}\n{text}\n\n{match[2]}", _PAGE.read_text(encoding="utf-8"))
    if found != 1:
        raise SystemExit(f"{_PAGE} has no place for the table: a pair of comments 'ratios'")
    _PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
