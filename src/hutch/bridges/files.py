"""A file that is written under a temporary name and takes its own when it is whole."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def unfinished(folder: Path) -> Iterator[IO[str]]:
    """A new text file in `folder`, readable by its owner alone. At the end it is gone, unless it has another name."""
    # The final name may be as long as a file's can be, and a temporary one is longer: it has none of it.
    descriptor, temporary = tempfile.mkstemp(dir=folder, prefix=".export-", suffix=".tmp")
    os.close(descriptor)
    try:
        with open(temporary, "w", encoding="utf-8", newline="\n") as out:  # noqa: PTH123 - opened so, it has a name
            yield out
    finally:
        Path(temporary).unlink(missing_ok=True)


def close_flushed(out: IO[str]) -> None:
    """Close `out` with its bytes on the disk."""
    out.flush()
    os.fsync(out.fileno())
    out.close()
