"""backup, compact: copy a store while it is in use, and shrink its files."""

from __future__ import annotations

from pathlib import Path

import click

from .. import transfer
from .app import Call, hutch, pass_call, storage_options
from .output import printable
from .transfer import show_progress


@hutch.command()
@click.argument("dest", type=click.Path(path_type=Path))
@storage_options
@pass_call
def backup(call: Call, dest: Path) -> None:
    """Write a copy of the whole store to DEST while the application writes.

    DEST must not exist; it appears when the copy is complete, flushed and was opened once. An lmdb
    or sqlite store is copied as of one moment, a shelf as of one moment per namespace. Any other
    store is scanned into a new lmdb store, and the command says so.
    """
    with call.connect_existing() as store, show_progress() as progress:
        scanned = transfer.backup(store, dest, progress=progress)
        how = f"a copy made by the {store.name} engine"
        if scanned is not None:
            moment = "as of one moment" if scanned.snapshot else "what was written meanwhile may be there or not"
            how = f"an lmdb store, made by a scan of {scanned.written:,} items: {moment}"
    click.echo(printable(f"backed up to {str(dest)!r}, {_bytes(dest):,} bytes: {how}"))


@hutch.command()
@storage_options
@pass_call
def compact(call: Call) -> None:
    """Shrink the files of the store to what its data needs.

    sqlite: while the application runs. lmdb and shelf: while no other process has the store open.
    If the command is killed, the files are whole.
    """
    with call.connect_existing() as store:
        sizes = store.compact()
        name = store.name
    if sizes is None:
        click.echo(f"nothing to do: the {name} engine has no files")
    else:
        click.echo(f"compacted: {sizes[0]:,} bytes before, {sizes[1]:,} after")


def _bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file())
