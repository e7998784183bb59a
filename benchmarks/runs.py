"""Measure each target in its own processes, unaffected by the memory, caches and threads of other targets."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from .flushes import preloaded, why_not
from .targets import TARGETS, Target

_ROOT = Path(__file__).parent.parent
_LIMIT_S = 300


@dataclass
class Result:
    """All rounds of one target, or the reason for their absence."""

    target: Target
    rounds: list[tuple[float, float]] = field(default_factory=list)
    error: str = ""

    @property
    def ratio(self) -> float:
        return statistics.median(ours / theirs for ours, theirs in self.rounds)

    @property
    def spread(self) -> tuple[float, float]:
        """Return the lower and upper quartile of the rounds' ratios."""
        ratios = [ours / theirs for ours, theirs in self.rounds]
        if len(ratios) < 2:
            return ratios[0], ratios[0]
        low, _, high = statistics.quantiles(ratios, n=4)
        return low, high

    def shown(self) -> str:
        return self.error or show(self.target, self.ratio)


def show(target: Target, ratio: float) -> str:
    return f"{ratio:.0f} {target.unit}" if target.unit != "x" else f"{ratio:.3f}" if ratio < 0.2 else f"{ratio:.2f}"


def measure(names: list[str], folder: Path, processes: int, say: Callable[[str], None]) -> dict[str, Result]:
    """Measure each of `names` in this many processes, all targets alternating."""
    results = {name: Result(TARGETS[name]) for name in names}
    for process in range(processes):
        for name, result in results.items():
            if not result.error and not (result.target.exact and result.rounds):
                _measure_once(name, result, folder)
            if process == processes - 1:
                say(f"  {result.shown():>10}  {result.target.operation}")
    return results


def _measure_once(name: str, result: Result, folder: Path) -> None:
    environment = dict(os.environ)
    if result.target.flush_us is not None:
        if reason := why_not():
            result.error = f"not measured: {reason}"
            return
        environment = preloaded(folder, result.target.flush_us)
    with tempfile.TemporaryDirectory(dir=folder) as place:
        ran = subprocess.run(
            [sys.executable, "-m", "benchmarks.measure", name, place, str(result.target.rounds)],
            check=False,
            cwd=_ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=_LIMIT_S,
        )
    if ran.returncode:
        result.error = f"failed: {(ran.stderr.strip().splitlines() or ['no reason given'])[-1][:300]}"
    else:
        result.rounds += [(ours, theirs) for ours, theirs in json.loads(ran.stdout)]
