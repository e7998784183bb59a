"""import, export: convert between a framework's or another program's own files and a store."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from .. import Store, StoreError, transfer
from ..deadlines import Expiring
from ..transfer.frames import count_expiring
from .app import Call, hutch, missing_namespace, not_there, pass_call, storage_options
from .output import printable
from .transfer import hint_to_run_again, report, show_progress, show_verified

_Items = Iterable[tuple[str, str, Any]]


@dataclass(frozen=True)
class _Format:
    """One format of files."""

    #: What PATH is.
    path: str
    #: Its module in `hutch.bridges`.
    module: str
    #: The options of import and export that it takes.
    options: frozenset[str] = frozenset()
    #: Whether `hutch export` writes it.
    is_exported: bool = True
    #: Whether its files keep deadlines.
    keeps_deadlines: bool = False


_PICKLES = frozenset({"namespace", "unpickle"})
_FORMATS = {
    "errbot-shelf": _Format("the folder of a bot's shelves (BOT_DATA_DIR)", "errbot.shelf_files", keeps_deadlines=True),
    "dotevals-json": _Format("the folder of its JSON storage (.dotevals)", "dotevals.json_files"),
    "ragas-jsonl": _Format("the root folder of its local/jsonl backend", "ragas.jsonl_files"),
    "ragas-csv": _Format("the root folder of its local/csv backend", "ragas.csv_files", is_exported=False),
    "themis-sqlite": _Format("the file of its SQLite store", "themis.sqlite_files"),
    "shelve": _Format("the name that shelve.open was given", "formats.shelve_files", _PICKLES, False),
    "sqlitedict": _Format("its file; a table is a namespace", "formats.sqlitedict_files", _PICKLES, False),
    "diskcache": _Format("the folder of a Cache or FanoutCache", "formats.diskcache_files", _PICKLES, False),
    "json": _Format("an object of key -> value, or lines", "formats.json_files", frozenset({"namespace"})),
    "csv": _Format("rows under a header", "formats.csv_files", frozenset({"namespace", "key_column"})),
}
_CARRIED = """

What only an application can load, such as a bot's identifiers or instances of your own classes, moves as the pickle it
is where the store's codec is passthrough:

\b
  -s 'lmdb:///srv/bot/state?codec=passthrough'
"""
_namespace = click.option(
    "-n", "--namespace", metavar="NAME", help="The namespace; by default the name of the file or folder."
)
_key = click.option("--key", "key_column", metavar="COLUMN", help="csv: the column of the key; by default 'key'.")


def _help(names: Iterable[str]) -> str:
    return "\n".join(["\b", "FORMAT and what PATH is:", *(f"  {name:14} {_FORMATS[name].path}" for name in names)])


def _format_argument(names: Iterable[str]) -> Callable[[Any], Any]:
    return click.argument("format_name", metavar="FORMAT", type=click.Choice(list(names)))


@hutch.command("import", epilog=_help(_FORMATS) + _CARRIED)
@_format_argument(_FORMATS)
@click.argument("path", type=click.Path(path_type=Path))
@_namespace
@_key
@click.option("--unpickle", is_flag=True, help="Load pickles, which runs their code: only of files that you trust.")
@storage_options
@pass_call
def import_files(call: Call, /, format_name: str, path: Path, **options: Any) -> int:
    """Import the files of a framework or of another program into the store.

    Stop whatever writes to the files first. No file is changed or created, so their folder may be read-only. Values
    of existing keys in the store are replaced, nothing is removed. Then everything is read back and compared. After
    an interruption, run it again: equal items are not written a second time.
    """
    chosen = _FORMATS[format_name]
    files, options = _module(format_name), _chosen_options(format_name, options)
    if not getattr(files, "exists", Path.exists)(path):
        raise click.BadParameter(f"Path {str(path)!r} does not exist.")
    read: Callable[[], _Items] = partial(files.read, path, **options)
    if chosen.options or format_name == "ragas-csv":
        call.import_modules()  # whose classes --unpickle may load
        with _with_a_name(path):
            # Before the store is opened, which may create it.
            import_module("hutch.bridges.formats").validate(read())
    with call.connect() as store, _with_a_name(path):
        if hasattr(files, "validate_names"):
            # Refuses to replace different data of the same name.
            files.validate_names(store, path)
        items = read
        if "ttl" not in store.capabilities:
            expiring = sum(type(value) is Expiring for _, _, value in read())
            if expiring:
                click.echo(
                    f"hutch: {expiring:,} items have an expiry, which the {store.name} engine does not keep: they stay "
                    "until removed",
                    err=True,
                )
            items = partial(_without_deadlines, read)
        with hint_to_run_again(), show_progress() as progress:
            done = transfer.copy_items(items(), store, progress=progress)
        report("imported", done)
        if not done.namespaces:
            return not_there(f"{format_name}: nothing was found in {str(path)!r}")
        with show_progress() as progress:
            verified = transfer.verify_items(items(), store, progress=progress)
    return show_verified(verified, "the store", "the files changed meanwhile")


def _without_deadlines(read: Callable[[], _Items]) -> _Items:
    for namespace, key, value in read():
        yield namespace, key, value.value if type(value) is Expiring else value


_EXPORTED = [name for name, one in _FORMATS.items() if one.is_exported]


@hutch.command("export", epilog=_help(_EXPORTED) + _CARRIED)
@_format_argument(_EXPORTED)
@click.argument("path", type=click.Path(path_type=Path))
@_namespace
@_key
@storage_options
@pass_call
def export_files(call: Call, /, format_name: str, path: Path, **options: Any) -> int:
    """Export a framework's data to its own files, or a namespace to a file of JSON or CSV.

    Each file appears only when complete. A value that the format cannot hold is an error that names its key.
    """
    options = _chosen_options(format_name, options)
    if "namespace" in _FORMATS[format_name].options and "namespace" not in options:
        raise click.UsageError(f"{format_name} holds one namespace: name it with -n NAME")
    with call.connect_existing() as store, _with_a_name(path):
        if "namespace" in options and options["namespace"] not in store.namespaces():
            raise missing_namespace(store, options["namespace"])
        files = _module(format_name)
        written = files.write(store, path, **options)
        expiring = 0
        if not _FORMATS[format_name].keeps_deadlines:
            expiring = _count_expiring(store, [options["namespace"]] if "namespace" in options else files.NAMESPACES)
    if expiring:
        click.echo(
            f"hutch: {expiring:,} of the values have a deadline, which {format_name} cannot hold: the files have them "
            "without it. `hutch dump` keeps it",
            err=True,
        )
    if not written:
        return not_there(f"the store has no data that {format_name} can hold")
    click.echo(printable(f"exported {written:,} items to {str(path)!r}"))
    return 0


def _count_expiring(store: Store, namespaces: Iterable[str]) -> int:
    """Return how many values of `namespaces` have a deadline."""
    if "ttl" not in store.capabilities:
        return 0
    count = 0
    for namespace in namespaces:
        with store.open(namespace) as handle:
            count += count_expiring(handle)
    return count


def _chosen_options(format_name: str, options: dict[str, Any]) -> dict[str, Any]:
    """Return the options that were given. Raises click.UsageError for one that the format does not take."""
    given = {name: value for name, value in options.items() if value not in (None, False)}
    for name in given:
        if name not in _FORMATS[format_name].options:
            option = {"key_column": "--key"}.get(name, f"--{name}")
            takers = ", ".join(other for other, one in _FORMATS.items() if name in one.options)
            raise click.UsageError(f"{option} is an option of the formats {takers}, not of {format_name}")
    return given


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
    return import_module(f"hutch.bridges.{_FORMATS[format_name].module}")
