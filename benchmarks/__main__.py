"""Run hutch's benchmark: python -m benchmarks [--check | --update-baseline] [NAME ...]. See docs/benchmarks.md."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from . import report
from .comparison import Row, compare
from .peers import STORES
from .runs import Result, measure, show
from .targets import TARGETS

_BASELINE = Path(__file__).with_name("baseline.json")
_REGRESSION = 1.15
_ATTEMPTS = 4


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="only these targets and stores; the docs stay as they are"
    )
    parser.add_argument("--check", action="store_true", help="short: the targets only, against limits and baseline")
    parser.add_argument("--update-baseline", action="store_true", help="keep this run's ratios as the baseline")
    parser.add_argument("--folder", type=Path, help="where the stores are made: a folder on the disk that is meant")
    parser.add_argument("--processes", type=int, default=5, help="how many processes measure each target")
    parser.add_argument("--rounds", type=int, default=21, help="how often each peer has its turn")
    parser.add_argument("--keys", type=int, default=10_000, help="how many keys each peer holds")
    asked = parser.parse_args()
    unknown = [name for name in asked.names if name not in TARGETS and name not in STORES]
    if unknown:
        parser.error(f"no target or store is called {unknown[0]!r}; there are {', '.join([*TARGETS, *STORES])}")
    targets = [name for name in asked.names if name in TARGETS] if asked.names else list(TARGETS)
    peers = [name for name in asked.names if name in STORES] if asked.names else list(STORES)
    with tempfile.TemporaryDirectory(dir=asked.folder) as place:
        folder = Path(place)
        if asked.check:
            return check(targets, folder)
        machine = report.machine(folder)
        print(f"Targets, {asked.processes} processes each: time divided by that of the yardstick", flush=True)
        results = measure(targets, folder, asked.processes, _say)
        rows: dict[str, Row] = {}
        if peers:
            print(f"Peers, {asked.rounds} rounds", flush=True)
            rows = compare(peers, folder, asked.keys, asked.rounds, _say)
    if asked.names:
        print(report.targets_table(results), report.peers_table(rows), report.flushes_table(rows), sep="\n\n")
        return 0
    report.write(machine, results, rows)
    if asked.update_baseline:
        ratios = {name: round(result.ratio, 4) for name, result in results.items() if not result.error}
        _BASELINE.write_text(json.dumps(ratios, indent=2) + "\n")
    return 0


def check(names: list[str], folder: Path) -> int:
    """Measure, and repeat failures up to three times: noise disappears, regressions stay.

    Return 1 if any target failed.
    """
    baseline = json.loads(_BASELINE.read_text()) if _BASELINE.exists() else {}
    began = time.monotonic()
    failing = names
    wrong: dict[str, str] = {}
    for attempt in range(_ATTEMPTS):
        print("Measuring" if not attempt else f"Once more, to see what was noise: {', '.join(failing)}", flush=True)
        results = measure(failing, folder, 1 if not attempt else 2, _say)
        wrong = {name: reason for name in failing if (reason := _wrong(results[name], baseline.get(name)))}
        failing = list(wrong)
        if not failing:
            break
    for reason in wrong.values():
        print(f"FAILED: {reason}")
    print(
        f"{len(names) - len(wrong)} of {len(names)} ratios are within their limits ({time.monotonic() - began:.0f} s)"
    )
    return 1 if wrong else 0


def _wrong(result: Result, baseline: float | None) -> str:
    target = result.target
    if result.error:
        return f"{target.operation}: {result.error}"
    limit = target.allowed * target.slack
    if result.ratio > limit:
        return (
            f"{target.operation}: {result.shown()} of the yardstick ({target.yardstick}), above {show(target, limit)}, "
            "which is its limit with a slack for noise"
        )
    if baseline is not None and target.steady and result.ratio > baseline * _REGRESSION:
        return (
            f"{target.operation}: {result.shown()} of the yardstick ({target.yardstick}), more than 15% above the "
            f"{show(target, baseline)} of benchmarks/baseline.json"
        )
    return ""


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
