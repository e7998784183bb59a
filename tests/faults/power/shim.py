"""The shim (shim.c), built once per process, and a Python process that runs under it."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

from hutch.testing.conformance.child import same_imports

_SOURCE = Path(__file__).with_name("shim.c")
_HEAD = struct.Struct("<cQQQII")
_FLAGS = ["-O1", "-Wall", "-Wextra", "-shared", "-fPIC", "-pthread"]
_PATIENCE_S = 150
_library = ""


class Record(NamedTuple):
    """One thing that happened to the folder. What `a` and `b` are depends on `kind`; see shim.c."""

    kind: str
    inode: int
    a: int
    b: int
    text: str
    data: bytes


def build(folder: Path) -> None:
    """Build it in `folder`, for `start`. Skips the test where it cannot be; in CI a missing compiler is a failure."""
    if sys.platform != "linux":
        pytest.skip("needs LD_PRELOAD as Linux has it")
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(
            "needs a C compiler; scripts/install-servers installs one"
        )
    global _library
    _library = str(folder / "shim.so")
    command = [compiler, *_FLAGS, "-o", _library, str(_SOURCE), "-ldl"]
    built = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE_S, check=False)
    assert built.returncode == 0, built.stderr


def start(
    module: str, *arguments: object, folder: Path, log: Path | None = None, flush_us: int = 0
) -> subprocess.Popen[str]:
    """``python -m module arguments...``, whose changes to files in `folder` are recorded in `log`, if there is one.

    Several may run at once with one folder and one log. A flush takes `flush_us` microseconds and does nothing.
    """
    environ = {
        "LD_PRELOAD": _library,
        "HUTCH_SHIM_FOLDER": os.path.realpath(folder),
        "HUTCH_SHIM_LOG": str(log or os.devnull),
        "HUTCH_SHIM_FLUSH_US": str(flush_us),
    }
    return plain(module, *arguments, environ=environ)


def plain(module: str, *arguments: object, environ: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    """The same without the shim. Coverage stays out of both: it would be most of what they do."""
    same = {name: value for name, value in same_imports().items() if not name.startswith("COVERAGE_PROCESS")}
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-m", module, *map(str, arguments)],
        env=same | dict(environ or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    """What it printed, when it has ended well."""
    try:
        out, errors = process.communicate(timeout=_PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        out, errors = process.communicate()
        pytest.fail(f"{process.args!r} hangs: {errors[-3000:]}")
    assert process.returncode == 0, f"{process.args!r} ended with {process.returncode}: {errors[-4000:]}"
    return out


def read_log(log: Path) -> Iterator[Record]:
    """Yield all records in the order of their events."""
    data = log.read_bytes()
    at = 0
    while at < len(data):
        kind, inode, a, b, first, second = _HEAD.unpack_from(data, at)
        at += _HEAD.size
        yield Record(
            kind.decode(), inode, a, b, os.fsdecode(data[at : at + first]), data[at + first : at + first + second]
        )
        at += first + second
