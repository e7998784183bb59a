"""Tell the path of a store from other text, and choose the engine that keeps a store there."""

from __future__ import annotations

import re
import stat
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..handlers import passes_through
from .bounds import SUFFIXES

#: The endings of SQLite files.
SQLITE_SUFFIXES = (".db", ".sqlite", ".sqlite3")
# The endings of config files of other programs: no store is meant.
_OTHER_CONFIGS = (".json", ".ini", ".cfg", ".conf", ".env")
# A drive of Windows, and a URL that lacks a slash, such as "redis:/user:password@host".
_DRIVE = r"[A-Za-z]:[/\\]"
_BROKEN_URL = r"[^/\\]*[:@]"
_LONGEST_APP = 100


def is_path(text: str) -> bool:
    """Return whether `text` can only be a path: it has a folder, a drive, a leading dot or the ending of SQLite."""
    if re.match(_DRIVE, text):
        return True
    if re.match(_BROKEN_URL, text):
        return False
    return "/" in text or "\\" in text or text.startswith(".") or _suffix(text) in SQLITE_SUFFIXES


def is_config_file(text: str) -> bool:
    """Return whether the path `text` has the ending of a config file."""
    return _suffix(text) in (*SUFFIXES, ".py")


def store_at(path: str, base_dir: Path) -> tuple[str, dict[str, Any]]:
    """Return the engine of a store at `path` and its options: SQLite by the ending of the path, else LMDB.

    Raises ConfigError for a path that no store can have, or that names another kind of file.
    """
    if not path or "\0" in path:
        raise ConfigError(
            f"argument: the path of a store {'may not hold NUL' if path else 'is empty'}; expected ./state"
        )
    if re.match(r"~[^/\\]*([/\\]|$)", path):
        raise ConfigError(
            "argument: '~' stands for the home folder only in a shell. "
            'Expand it: hutch.connect(Path("~/...").expanduser())'
        )
    suffix = _suffix(path)
    if suffix in SQLITE_SUFFIXES:
        return "sqlite", {"path": path}
    shown = path if path.isprintable() else ascii(path)
    if suffix in _OTHER_CONFIGS or _is_file(base_dir / path):
        endings = f"{', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"
        raise ConfigError(
            f"{shown}: this is neither the path of an LMDB store, which is a folder, nor of a config file: the name of "
            f"a config file ends in {endings}. For a SQLite file of another name write 'sqlite://PATH'"
        )
    return "lmdb", {"path": path}


def validate_app(app: object) -> None:
    """Raise ConfigError unless `app` can name a folder on every system."""
    if not isinstance(app, str):
        raise ConfigError(f"app: expected the name of the application as text, not {type(app).__name__}")
    wrong = not app or len(app) > _LONGEST_APP or not app.isprintable() or app != app.strip() or app.startswith(".")
    if wrong or app.endswith(".") or re.search(r'[/\\:*?"<>|]', app):
        raise ConfigError(
            "app: expected the name of one folder such as 'my-bot', which begins and ends with no dot or blank and "
            "has no / or \\. For a store at a path of your own pass the path: hutch.connect('./state')"
        )


def _suffix(path: str) -> str:
    return Path(path.rstrip("/\\").replace("\\", "/")).suffix.casefold()


def _is_file(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except (OSError, ValueError) as error:  # missing, or a name that no file can have: the engine says so
        if passes_through(error):
            raise
        return False
