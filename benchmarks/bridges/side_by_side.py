"""Measure one operation on hutch and on the framework's own storage, alternately in one run."""

from __future__ import annotations

import gc
import json
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

#: Does the whole work in an empty folder, and returns the seconds of its measured part.
Work = Callable[[Path], float]


def compare(
    framework: str, operation: str, yardstick: str, hutch: Work, theirs: Work, *, limit: float, rounds: int = 7
) -> None:
    """Print one line of JSON: the median and quartiles of hutch's time divided by the yardstick's, per round.

    `operation` names the work and the engine, `yardstick` what it is compared with, `limit` is the allowed ratio.
    """
    ours_s: list[float] = []
    theirs_s: list[float] = []
    for number in range(rounds):
        pair = [(hutch, ours_s), (theirs, theirs_s)]
        for work, seconds in pair if number % 2 else reversed(pair):
            # Otherwise a collection of everything that a framework imported, 20 to 180 ms, would hit either side at
            # random.
            gc.collect()
            with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
                seconds.append(work(Path(folder)))
    ratios = sorted(ours / other for ours, other in zip(ours_s, theirs_s, strict=True))
    low, _, high = statistics.quantiles(ratios, n=4) if rounds > 1 else ratios * 3
    line = {
        "framework": framework,
        "operation": operation,
        "yardstick": yardstick,
        "hutch_s": statistics.median(ours_s),
        "theirs_s": statistics.median(theirs_s),
        "ratio": statistics.median(ratios),
        "quartiles": [low, high],
        "limit": limit,
    }
    print(json.dumps(line), flush=True)
