"""Read one YAML or TOML file as plain values.

A config file may be malicious (part of a folder just unpacked), so reading it is bounded in time and memory, runs no
code, and no message quotes its content.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..handlers import passes_through
from .bounds import MAX_DEPTH, SUFFIXES, unquoted

#: Largest config file, in bytes.
MAX_FILE_BYTES = 1024 * 1024

# tomllib takes quadratic time in the number of dots in a key; no real config nests that deep.
_MOST_DOTS = 1_000


def read_file(path: Path, shown: str) -> Mapping[Any, Any]:
    """Return the mapping in the YAML or TOML file at `path`; messages call the file `shown`.

    Raises ConfigError, with the line if known, for a file that is missing, unreadable, not a regular file (a FIFO
    does not block), over 1 MiB, not UTF-8, not well-formed, or not a mapping, that has a duplicate key, has more than
    10,000 values, or nests deeper than 32 levels.
    """
    suffix = path.suffix.casefold()
    if suffix == ".py":
        module = path.stem if path.stem.isidentifier() else "config"
        raise ConfigError(
            f"{shown} is Python, and hutch does not run config files; import it and pass the module: "
            f"import {module}; hutch.connect({module})"
        )
    if suffix not in SUFFIXES:
        raise ConfigError(f"{shown}: the name of a config file ends in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}")
    data = _read_bytes(path, shown)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{shown}, line {line}: the file is not UTF-8; save it as UTF-8") from None
    document = _read_toml(text, shown) if suffix == ".toml" else _read_yaml(text, shown)
    if document is None:
        raise ConfigError(f"{shown}: the file is empty; it needs at least STORAGE, as in 'STORAGE: lmdb:///srv/state'")
    if not isinstance(document, Mapping):
        raise ConfigError(f"{shown}: the file must hold a mapping of keys such as 'STORAGE: lmdb:///srv/state'")
    return document


def _read_bytes(path: Path, shown: str) -> bytes:
    # O_NONBLOCK because opening a FIFO for reading otherwise waits for a writer.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        if path.is_dir():  # Windows reports an attempt to open a folder as a lack of permission
            raise ConfigError(f"{shown} is a folder; name the file in it")
        data = _read_regular(path, flags, shown)
    except ConfigError:  # itself a ValueError
        raise
    except FileNotFoundError as error:
        if passes_through(error):
            raise
        raise ConfigError(f"{shown}: there is no such file ({str(path)!r})") from None
    except OSError as error:
        if passes_through(error):
            raise
        raise ConfigError(f"{shown}: the file cannot be read: {error.strerror} ({str(path)!r})") from None
    except ValueError as error:  # NUL or a lone surrogate
        if passes_through(error):
            raise
        raise ConfigError(f"{shown}: no file can have that name") from None
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError(f"{shown}: the file is larger than {MAX_FILE_BYTES:,} bytes; it does not look like a config")
    return data


def _read_regular(path: Path, flags: int, shown: str) -> bytes:
    opened: list[int] = []
    try:
        # `extend` and `map` run no Python code, so no signal handler can run between opening and the list.
        opened.extend(map(os.open, [path], [flags]))
        if not stat.S_ISREG(os.fstat(opened[0]).st_mode):
            raise ConfigError(f"{shown} is not a regular file; a config is read from a file on disk")
        with open(opened[0], "rb", closefd=False) as file:
            return file.read(MAX_FILE_BYTES + 1)
    finally:
        for descriptor in opened:
            os.close(descriptor)


def _read_yaml(text: str, shown: str) -> Any:
    from .yaml_file import read_yaml  # here, because importing yaml costs more than reading a config

    return read_yaml(text, shown)


def _read_toml(text: str, shown: str) -> dict[str, Any]:
    import tomllib

    for number, line in enumerate(text.split("\n"), 1):
        if line.count(".") > _MOST_DOTS and not line.lstrip().startswith("#"):
            raise ConfigError(f"{shown}, line {number}: a line with more than {_MOST_DOTS:,} dots; it is not a config")
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        if passes_through(error):
            raise
        raise ConfigError(f"{shown}: values nest deeper than {MAX_DEPTH}") from None
    except ValueError as error:  # TOMLDecodeError, or int() given too many digits
        if passes_through(error):
            raise
        raise ConfigError(f"{shown}: not well-formed TOML: {unquoted(error)}") from None
