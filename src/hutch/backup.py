"""Write a backup, which gets its name when it is complete."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from .errors import ConfigError, StorageUnavailableError, StoreError
from .filesystem import flush_folder
from .handlers import raised_by_handler

# What SQLite may leave beside an unfinished file.
_BESIDE = ("", "-journal", "-wal", "-shm")


def write_whole(dest: str | os.PathLike[str], write: Callable[[Path], object]) -> None:
    """Call ``write(path)``, which creates a file or folder, and rename that to `dest` when it is complete.

    If `write` raises, nothing is left. Raises ConfigError if `dest` exists or has no folder.
    """
    # Not `resolve`: a link as the last part counts as existing.
    final = Path(os.path.abspath(dest))  # noqa: PTH100
    _must_be_new(final)
    # The temporary name contains no part of the final one, which may be as long as a name can be.
    unfinished = final.with_name(f".hutch-{os.urandom(8).hex()}.tmp")
    try:
        write(unfinished)
        _give_name(unfinished, final)
        flush_folder(final.parent)
    except OSError as error:
        _remove(unfinished)
        if isinstance(error, StoreError) or raised_by_handler(error):
            raise
        raise StorageUnavailableError(
            f"the backup {str(final)!r} cannot be written: {error.strerror or error}"
        ) from error
    except BaseException:
        _remove(unfinished)
        raise


def _must_be_new(dest: Path) -> None:
    if os.path.lexists(dest):
        raise ConfigError(
            f"backup: {str(dest)!r} exists: expected a path where nothing is, because a backup replaces nothing. "
            "Choose another name, or move it away"
        )
    if not dest.parent.is_dir():
        raise ConfigError(f"backup: the folder {str(dest.parent)!r} does not exist. Create it first")


def _give_name(unfinished: Path, final: Path) -> None:
    if not unfinished.is_dir():
        # Unlike a rename, a link replaces nothing.
        try:
            os.link(unfinished, final)
        except FileExistsError:
            _must_be_new(final)
        except OSError as error:  # a file system without links
            if raised_by_handler(error):
                raise
        else:
            unfinished.unlink()
            return
    _must_be_new(final)
    unfinished.rename(final)


def _remove(unfinished: Path) -> None:
    if unfinished.is_dir():
        import shutil

        shutil.rmtree(unfinished, ignore_errors=True)
    for suffix in _BESIDE:
        with contextlib.suppress(OSError):
            unfinished.with_name(unfinished.name + suffix).unlink()
