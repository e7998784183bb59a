"""import, export: convert between a framework's own files and its bridge's data in a store."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from .. import StoreError, transfer
from .app import Call, hutch, not_there, pass_call, storage_options
from .output import printable
from .transfer import hint_to_run_again, report, show_progress, show_verified

#: Each format, and what PATH is for it.
_FORMATS = {
    "errbot-shelf": "the folder of a bot's shelves (BOT_DATA_DIR)",
    "dotevals-json": "the folder of its JSON storage (.dotevals)",
    "ragas-jsonl": "the root folder of its local/jsonl backend",
    "themis-sqlite": "the file of its SQLite store",
}
# Each format's module in `hutch.bridges`.
_MODULES = {
    "errbot-shelf": "errbot.shelf_files",
    "dotevals-json": "dotevals.json_files",
    "ragas-jsonl": "ragas.jsonl_files",
    "themis-sqlite": "themis.sqlite_files",
}
_HELP = "\n".join(["\b", "FORMAT and what PATH is:", *(f"  {name:14} {path}" for name, path in _FORMATS.items())])
_CARRIED = """

What only the bot can load, such as its identifiers, moves as the pickle it is where the store's codec is passthrough:

\b
  -s 'lmdb:///srv/bot/state?codec=passthrough'
"""
_format = click.argument("format_name", metavar="FORMAT", type=click.Choice(list(_FORMATS)))


@hutch.command("import", epilog=_HELP + _CARRIED)
@_format
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@storage_options
@pass_call
def import_files(call: Call, format_name: str, path: Path) -> int:
    """Import a framework's own storage files into the store.

    Stop whatever writes to the files first. No file is changed or created, so their folder may be read-only. Values
    of existing keys in the store are replaced, nothing is removed. Then everything is read back and compared. After
    an interruption, run it again: equal items are not written a second time.
    """
    files = _module(format_name)
    with call.connect() as store, _with_a_name(path):
        if hasattr(files, "validate_names"):
            # Refuses to replace different data of the same name.
            files.validate_names(store, path)
        with hint_to_run_again(), show_progress() as progress:
            done = transfer.copy_items(files.read(path), store, progress=progress)
        report("imported", done)
        if not done.namespaces:
            return not_there(f"{format_name}: nothing was found in {str(path)!r}")
        with show_progress() as progress:
            found = transfer.verify_items(files.read(path), store, progress=progress)
    return show_verified(found, "the store", "the files changed meanwhile")


@hutch.command("export", epilog=_HELP + _CARRIED)
@_format
@click.argument("path", type=click.Path(path_type=Path))
@storage_options
@pass_call
def export_files(call: Call, format_name: str, path: Path) -> int:
    """Export a framework's data to its own files.

    Each file appears only when complete. A value that the format cannot hold is an error that names its key.
    """
    with call.connect_existing() as store, _with_a_name(path):
        written = _module(format_name).write(store, path)
    if not written:
        return not_there(f"the store has no data that {format_name} can hold")
    click.echo(printable(f"exported {written:,} items to {str(path)!r}"))
    return 0


@contextmanager
def _with_a_name(path: Path) -> Iterator[None]:
    """Add `path` to an OSError that names no file, such as the error for a full disk."""
    try:
        yield
    except OSError as error:
        if isinstance(error, StoreError) or error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def _module(format_name: str) -> Any:
    return import_module(f"hutch.bridges.{_MODULES[format_name]}")
