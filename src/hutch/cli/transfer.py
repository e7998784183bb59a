"""dump, load, copy: move data between stores and files."""

from __future__ import annotations

import os
import re
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

import click

from .. import CapabilityError, Store, StoreError, connect, transfer
from ..errors import redact
from ..filesystem import atomic_file
from ..transfer.batches import chosen
from .app import Call, connect_existing, hutch, missing_namespace, not_there, pass_call, storage_options
from .output import printable

_namespaces = click.option(
    "-n", "--namespace", "globs", metavar="GLOB", multiple=True, help="Only namespaces that match GLOB. Repeatable."
)
_skip_errors = click.option(
    "--skip-errors", is_flag=True, help="Leave out what cannot be read, name each item, and exit with 1."
)
_OnProgress = Callable[[transfer.Progress], None]


@hutch.command()
@click.option("-o", "--output", metavar="FILE", help="Write to FILE, which appears when the dump is complete.")
@_namespaces
@_skip_errors
@storage_options
@pass_call
def dump(call: Call, output: str | None, globs: tuple[str, ...], skip_errors: bool) -> int:
    """Write all items as JSON lines that keep types, for `load`.

    A store of memory, lmdb or sqlite is read as of one moment, while the application writes. Any other
    is read batch by batch, so what was written meanwhile may be there or not. A value of a type that
    is not registered is written as its stored bytes.
    """
    on_error = _name_skipped if skip_errors else None
    with call.connect_existing() as store, show_progress() as progress:
        _must_match(store, globs)
        if output is None:
            sys.stdout.flush()
            done = transfer.dump(store, sys.stdout.buffer, globs or None, progress=progress, on_error=on_error)
        else:
            with _whole_file(output) as out:
                done = transfer.dump(store, out, globs or None, progress=progress, on_error=on_error)
    return _count_skipped(done.skipped)


@hutch.command()
@click.argument("file", default="-")
@_namespaces
@storage_options
@pass_call
def load(call: Call, file: str, globs: tuple[str, ...]) -> int:
    """Set every item of a dump.

    FILE is the output of `dump`; by default, or with "-", standard input. Values of existing keys
    are replaced, nothing is removed. After an interruption, run it again.
    """
    with _opened(call, file) as lines, call.connect() as store, hint_to_run_again(), show_progress() as progress:
        done = transfer.load(store, lines, globs or None, progress=progress)
    report("loaded", done)
    return not_there(f"no namespace matches {' or '.join(map(repr, globs))}") if globs and not done.namespaces else 0


@hutch.command()
@click.argument("source", metavar="SRC")
@click.argument("target", metavar="DST")
@_namespaces
@click.option("--verify", is_flag=True, help="Read every item back from DST and compare value and type.")
@_skip_errors
@pass_call
def copy(call: Call, source: str, target: str, globs: tuple[str, ...], verify: bool, skip_errors: bool) -> int:
    """Copy all items of SRC to DST.

    Each is a URL, a path or a config file. SRC is read as of one moment if it is lmdb or sqlite, else
    batch by batch, so what was written meanwhile may be there or not. Values of existing keys in DST
    are replaced, nothing is removed. After an interruption, run it again: equal items are not written
    a second time. Between stores of the same codec the stored bytes move, and no type need be
    registered.
    """
    if call.config_form() is not None:
        raise click.UsageError("copy takes its stores as SRC and DST, not by -s or -c")
    call.import_modules()
    with connect_existing(source) as origin, connect(target) as store:
        _must_match(origin, globs)
        with hint_to_run_again(), show_progress() as progress:
            on_error = _name_skipped if skip_errors else None
            done = transfer.copy(origin, store, globs or None, progress=progress, on_error=on_error)
        report("copied", done)
        code = _count_skipped(done.skipped)
        if not verify:
            return code
        with show_progress() as progress:
            ignored = _ignore if skip_errors else None
            verified = transfer.verify(origin, store, globs or None, progress=progress, on_error=ignored)
    return show_verified(verified, "DST", "SRC is in use it may have changed meanwhile") or code


def _name_skipped(error: StoreError) -> None:
    click.echo(f"hutch: skipped: {printable(redact(str(error)))}", err=True)


def _ignore(error: StoreError) -> None:
    pass


def _count_skipped(count: int) -> int:
    return not_there(f"{count:,} items could not be read or written, and were skipped") if count else 0


def report(verb: str, done: transfer.Transferred) -> None:
    """Print what was done, in numbers."""
    click.echo(f"{verb} {done.written:,} items, {done.unchanged:,} were there already; namespaces: {done.namespaces:,}")


def show_verified(verified: transfer.Verified, target: str, cause: str) -> int:
    """Print the result of a comparison and return its exit code. `cause` completes "if ..." in the advice."""
    extra = f"; {target} holds {verified.extra:,} more" if verified.extra else ""
    if verified.ok:
        click.echo(f"verified {verified.equal:,} items: all equal{extra}")
        return 0
    for one in verified.examples:
        if one.kind != "extra":
            click.echo(printable(f"{one.kind}: key {one.key!r} in namespace {one.namespace!r}"))
    count = verified.equal + verified.missing + verified.different
    return not_there(
        f"of {count:,} items {verified.missing:,} are missing in {target} and "
        f"{verified.different:,} are different{extra}. If {cause}, run it again"
    )


def _must_match(store: Store, globs: tuple[str, ...]) -> None:
    """Raise StoreMissingError for the first glob that matches no namespace of `store`."""
    for glob in globs:
        try:
            if chosen(store, [glob]):
                continue
        except CapabilityError:
            return  # the transfer itself says what to do
        raise missing_namespace(store, glob)


@contextmanager
def hint_to_run_again() -> Iterator[None]:
    """Print, if the user interrupts the block, that running the command again continues it."""
    try:
        yield
    except KeyboardInterrupt:
        click.echo("hutch: what was written so far stays; run the same command again to continue", err=True)
        raise


@contextmanager
def show_progress() -> Iterator[_OnProgress | None]:
    """Show a progress bar during the block if standard error is a terminal; yield its callback, else None."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    # Namespace names must not be interpreted as markup.
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task, current = bar.add_task("", total=None), None

        def show(progress: transfer.Progress) -> None:
            nonlocal task, current
            if progress.namespace != current:
                current = progress.namespace
                bar.remove_task(task)
                task = bar.add_task(printable(current)[:40], total=progress.total)
            bar.update(task, completed=progress.done)

        yield show


@contextmanager
def _opened(call: Call, file: str) -> Iterator[IO[bytes]]:
    if file == "-":
        yield call.standard_input()
        return
    try:
        lines = Path(file).open("rb")  # noqa: SIM115 - only opening it may fail as wrong usage
    except OSError as error:
        raise click.UsageError(f"cannot read {file!r}: {error.strerror or error}") from error
    with lines:
        yield lines


@contextmanager
def _whole_file(name: str) -> Iterator[IO[bytes]]:
    """Open the output `name`: a file appears only when complete, and a new one is readable by its owner only.

    A FIFO or device is written to directly. A link is refused, except the system's names for open files.
    """
    with ExitStack() as stack:
        try:
            out = _output_of_process(name) or _existing_pipe(name)
            out = stack.enter_context(atomic_file(name, 0o600) if out is None else out)
        except OSError as error:
            raise click.UsageError(f"cannot write {name!r}: {error.strerror or error}") from error
        yield out
        out.flush()


def _output_of_process(name: str) -> IO[bytes] | None:
    """Return the open file that `name` refers to: /dev/stdout, /dev/stderr or /dev/fd/N; None for another name."""
    match = re.fullmatch(r"/dev/(?:fd/|std(?=out|err))(\d{1,9}|out|err)", name)
    if match is None:
        return None
    return os.fdopen(os.dup({"out": 1, "err": 2}.get(match[1]) or int(match[1])), "wb")


def _existing_pipe(name: str) -> IO[bytes] | None:
    """Open the FIFO or device `name`, which cannot be replaced; None if it is neither."""
    try:
        mode = os.lstat(name).st_mode
    except FileNotFoundError:
        return None
    if not stat.S_ISFIFO(mode) and not stat.S_ISCHR(mode) and not stat.S_ISBLK(mode):
        return None
    return os.fdopen(os.open(name, os.O_WRONLY | getattr(os, "O_NOFOLLOW", 0)), "wb")
