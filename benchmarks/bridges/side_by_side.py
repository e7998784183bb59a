"""One operation on hutch and on the framework's own storage, in turns within one run."""

from __future__ import annotations

import gc
import json
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

#: Does the whole work in an empty folder of its own, and gives the seconds that the measured part of it took.
Work = Callable[[Path], float]


def compare(
    framework: str, operation: str, yardstick: str, hutch: Work, theirs: Work, *, limit: float, rounds: int = 7
) -> None:
    """Print one line of JSON: the median of hutch's time divided by theirs, round by round, and its quartiles.

    `operation` says what is done and on which engine, `yardstick` what it is measured beside, `limit` is the ratio
    that is allowed.
    """
    ours_s: list[float] = []
    theirs_s: list[float] = []
    for number in range(rounds):
        turns = [(hutch, ours_s), (theirs, theirs_s)]
        for work, seconds in turns if number % 2 else reversed(turns):
            # Or a collection of all that a framework imported, 20 to 180 ms, falls to whose turn it is when it is due.
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
