"""Measure growth with keys, namespaces, value sizes, threads and processes: python -m benchmarks.growth

Each store is measured beside the raw library it is built on, in the same rounds, and the sizes alternate, so that other
load on the machine affects all of them. A number is the better quartile of many short rounds, because in the others
other programs had the processor. The full form (some 15 minutes, 8 GB of disk) rewrites the plots and tables of
docs/growth.md; `--largest 1e5` is a short form that only prints.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import lmdb

from .concurrency import measure_processes, measure_threads
from .keys import measure_iteration, measure_keys
from .namespaces import measure_namespaces
from .page import save, saved, table
from .samples import SEED, Part, in_child
from .surprises import measure_surprises
from .values import measure_pages, measure_values

LARGEST = 10_000_000
DOCS = Path(__file__).resolve().parents[2] / "docs"
PARTS: dict[str, Callable[[Path, int], Part]] = {
    "keys": measure_keys,
    "iteration": measure_iteration,
    "namespaces": measure_namespaces,
    "values": measure_values,
    "pages": measure_pages,
    "threads": measure_threads,
    "processes": measure_processes,
    "surprises": measure_surprises,
}


def machine() -> str:
    load = f"; load average at the start {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    version = lmdb.version(lib_version=1) if hasattr(lmdb, "version") else ()
    return (
        f"One run: {os.cpu_count()} cores, {platform.system()} {platform.release().split('-')[0]}, "
        f"Python {platform.python_version()}, py-lmdb {lmdb.__version__} (LMDB {'.'.join(map(str, version))}), "
        f"SQLite {sqlite3.sqlite_version}; seed {SEED}{load}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--largest", type=float, default=LARGEST, help="most keys; 1e5 is a short form, 1e7 the full")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts to measure")
    parser.add_argument("--folder", type=Path, help="where the stores lie meanwhile; a temporary folder if not given")
    parser.add_argument("--docs", type=Path, help="whose growth.md and img/ to rewrite; the full form writes docs/")
    parser.add_argument("--redraw", action="store_true", help="measure nothing: plots and tables from img/growth.json")
    asked = parser.parse_args()
    largest = int(asked.largest)
    docs: Path | None = asked.docs or (DOCS if largest >= LARGEST or asked.redraw else None)
    found = saved(docs) if docs else {}
    if asked.redraw:
        assert docs is not None
        save(docs, found)
        return
    found["machine"] = machine()
    print(found["machine"])
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        for name in asked.only:
            began = time.perf_counter()
            # Iteration uses the stores that the part before it made.
            place_ = Path(folder) / ("keys" if name == "iteration" else name)
            place_.mkdir(exist_ok=True)
            # Parts that start processes do not need a child process; each of the others would leave its memory behind.
            here = name in ("iteration", "processes")
            found[name] = PARTS[name](place_, largest) if here else in_child(PARTS[name], place_, largest)
            if name != "keys":
                shutil.rmtree(place_)
            print(f"\n{name} ({time.perf_counter() - began:.0f} s)\n\n{table(found[name])}", flush=True)
            if docs:
                save(docs, found)


if __name__ == "__main__":
    main()
