"""Write a file under a temporary name and rename it when it is complete."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def unfinished(folder: Path) -> Iterator[IO[str]]:
    """Open a new text file in `folder`, readable by its owner alone. It is removed at the end unless renamed."""
    # The temporary name does not contain the final one, which may have the maximum length already.
    descriptor, temporary = tempfile.mkstemp(dir=folder, prefix=".export-", suffix=".tmp")
    os.close(descriptor)
    try:
        with open(temporary, "w", encoding="utf-8", newline="\n") as out:  # noqa: PTH123 - opened so, it has a name
            yield out
    finally:
        Path(temporary).unlink(missing_ok=True)


def close_flushed(out: IO[str]) -> None:
    """Flush `out` to the disk and close it."""
    out.flush()
    os.fsync(out.fileno())
    out.close()
