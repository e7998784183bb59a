"""What files need of the folder that names them."""

from __future__ import annotations

import errno
import os
from pathlib import Path


def flush_folder(folder: Path) -> None:
    """Have the names in `folder` on the disk; raises OSError. Windows does that by itself.

    Where the folder may be written to but not read, or the file system has no such thing, nothing is done.
    """
    if os.name != "posix":
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:  # it may be written to, and not read
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system that has no such thing
            raise
    finally:
        os.close(descriptor)
