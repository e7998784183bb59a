"""Count flushes, or make them slow: flushes.c, compiled here and preloaded into a process by its environment."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path


def why_not() -> str | None:
    """Return why flushes cannot be counted here; None if they can."""
    if not sys.platform.startswith("linux"):
        return "flushes are counted on Linux only"
    if shutil.which("cc") is None:
        return "flushes are counted by a little C, and there is no compiler (cc) here"
    return None


def preloaded(folder: Path, flush_us: int | None = None) -> dict[str, str]:
    """Return the environment of a process that counts its flushes; with `flush_us` each is replaced by that delay."""
    library = folder / "flushes.so"
    if not library.exists():
        source = Path(__file__).with_suffix(".c")
        subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"], check=True)
    environment = {**os.environ, "LD_PRELOAD": str(library)}
    if flush_us is not None:
        environment["HUTCH_BENCH_FLUSH_US"] = str(flush_us)
    return environment


def counter() -> Callable[[], int] | None:
    """Return a function that returns this process's flushes so far; None if the process does not count them."""
    if "LD_PRELOAD" not in os.environ:
        return None
    try:
        count = ctypes.CDLL(None).hutch_bench_flushes
    except AttributeError:
        return None
    count.restype = ctypes.c_long
    return lambda: int(count())
