"""Measure saving and loading 10,000 rows beside ragas's local/jsonl: python -m benchmarks.bridges.ragas.

local/jsonl leaves its file to the operating system; hutch by default flushes its writes to the disk. Rows are those of
an evaluation: a question, an answer, the retrieved contexts, some scores and a time.
"""

from __future__ import annotations

import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from ragas.backends import LocalJSONLBackend

from hutch.bridges.connections import close_shared
from hutch.bridges.ragas import HutchBackend

from .side_by_side import compare

_ROWS = 10_000
_METRICS = ("faithfulness", "answer_relevancy", "context_precision", "context_recall")
_SINCE = datetime(2026, 1, 1, tzinfo=UTC)


def _rows() -> list[dict[str, Any]]:
    return [
        {
            "id": number,
            "user_input": f"question {number}: who wrote which book, and when?",
            "retrieved_contexts": [f"context {number}.{part}: " + "a dark and stormy night; " * 3 for part in range(3)],
            "response": f"answer {number}: " + "nobody knows. " * 5,
            "scores": {metric: (number + place) / 7 for place, metric in enumerate(_METRICS)},
            "passed": number % 3 > 0,
            "asked_at": _SINCE + timedelta(seconds=number),
        }
        for number in range(_ROWS)
    ]


def _time(backend: Any, rows: list[dict[str, Any]]) -> float:
    start = time.perf_counter()
    backend.save_dataset("table", rows)
    found = backend.load_dataset("table")
    seconds = time.perf_counter() - start
    assert len(found) == len(rows)
    return seconds


def main() -> None:
    rows = _rows()

    def hutch(folder: Path) -> float:
        backend = HutchBackend(f"lmdb://{(folder / 'store').as_posix()}")
        try:
            return _time(backend, rows)
        finally:
            close_shared()

    def theirs(folder: Path) -> float:
        return _time(LocalJSONLBackend(str(folder)), rows)

    with tempfile.TemporaryDirectory() as folder:
        backend = HutchBackend(f"lmdb://{(Path(folder) / 'store').as_posix()}")
        backend.save_dataset("table", rows)
        found = backend.load_dataset("table")
        assert found == rows
        assert all(list(map(type, a.values())) == list(map(type, b.values())) for a, b in zip(found, rows, strict=True))
        close_shared()
    compare("ragas", "save and load 10,000 rows, lmdb", "local/jsonl", hutch, theirs, limit=0.5)


if __name__ == "__main__":
    main()
