"""The command group, its global options, and how a command opens its store."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, TypeVar

import click

from .. import CapabilityError, ConfigError, Finding, Store, StoreMissingError, __version__, connect, verify
from ..config import read_config
from ..discovery.factory import without_creating
from ..errors import nearest
from .output import printable

_Command = TypeVar("_Command", bound=Callable[..., Any])

_EPILOG = """\b
Without -s or -c the storage is that of hutch.connect(): $HUTCH_STORAGE (a URL),
else $HUTCH_CONFIG (a file), else LMDB in the user's data folder.

\b
Exit codes:
    0  done
    1  the key is not there, a check failed, or items were skipped
    2  wrong usage or config
    3  the store or namespace is not there; the storage cannot be reached, is
       locked, busy or full
    4  data that cannot be read, or cannot be written as asked
  130  interrupted (Ctrl-C)

\b
Shell completion, for bash (zsh, fish alike):
    eval "$(_HUTCH_COMPLETE=bash_source hutch)"
"""


@dataclass
class Call:
    """The global options of one run."""

    debug: bool
    storage: str | None = None
    config: str | None = None
    modules: list[str] = field(default_factory=list)

    def config_form(self) -> str | None:
        """Return the argument for `hutch.connect`: URL, path or None. Raises click.UsageError for -s with -c."""
        if self.storage is not None and self.config is not None:
            raise click.UsageError("give -s or -c, not both")
        return self.config if self.config is not None else self.storage

    def connect(self) -> AbstractContextManager[Store]:
        """Return the store that the options name, for a command that may create it. Raises as `hutch.connect` does."""
        return connect(self._prepared_form())

    def connect_existing(self) -> AbstractContextManager[Store]:
        """Return the store that the options name. Raises StoreMissingError if it does not exist; creates nothing."""
        return connect_existing(self._prepared_form())

    def connect_reading(self) -> AbstractContextManager[Store]:
        """Return the store that the options name for reading only, where its engine can. Creates nothing."""
        return connect_existing(self.config_form(), readonly=True)

    def verify(self, repair: bool, salvage: str | None) -> Iterator[Finding]:
        """Read everything in the store and yield each problem, as `hutch.verify` does."""
        form = self.config_form()
        self.import_modules()
        try:
            yield from verify(form, repair=repair, salvage=salvage)
        except StoreMissingError as error:
            raise _advised(error) from None

    def standard_input(self) -> IO[bytes]:
        """Return standard input, for a command that reads a value or a dump."""
        return sys.stdin.buffer

    def _prepared_form(self) -> str | None:
        form = self.config_form()
        self.import_modules()
        if form is None:
            _warn_of_unread_config()
        return form

    def import_modules(self) -> None:
        """Import the --import modules, which register types. Raises ConfigError if one cannot be imported."""
        for name in self.modules:
            try:
                importlib.import_module(name)
            except (Exception, SystemExit) as error:
                raise ConfigError(
                    f"--import {name}: {type(error).__name__}: {error}. Modules are found as Python finds them; "
                    "PYTHONPATH adds a folder"
                ) from error


def _warn_of_unread_config() -> None:
    """Print that a config in the working folder is not used: older versions used it when no config was named."""
    if os.environ.get("HUTCH_STORAGE") or os.environ.get("HUTCH_CONFIG"):
        return
    for name in ("hutch.yaml", "hutch.toml"):
        if Path(name).exists():
            click.echo(f"hutch: this is the default store; to use the config in this folder add: -c {name}", err=True)
            return


def connect_existing(form: str | None, readonly: bool = False) -> Store:
    """Return the store that `form` describes. Raises StoreMissingError if it does not exist; creates nothing."""
    try:
        return connect(without_creating(read_config(form), readonly))
    except StoreMissingError as error:
        raise _advised(error) from None


def _advised(error: StoreMissingError) -> StoreMissingError:
    """Return `error` with advice for the command line, whose user has not typed the options that hutch has set."""
    return StoreMissingError(f"{str(error).partition('; or, ')[0]}; or begin a new store there with `hutch set`")


def missing_namespace(store: Store, name: str) -> StoreMissingError:
    """Return the error for a command that reads the namespace `name`, which does not exist or has no items."""
    try:
        hint = nearest(name, store.namespaces())
    except CapabilityError:
        hint = ""
    return StoreMissingError(
        f"there is no namespace {name!r} with items in the {store.name} store.{hint} `hutch ls` lists the namespaces"
    )


pass_call = click.make_pass_decorator(Call)


def storage_options(command: _Command) -> _Command:
    """Add the options -s and -c to `command`, so that they may stand before or after its name."""

    def remember(context: click.Context, parameter: click.Parameter, value: str | None) -> None:
        if value is not None:
            setattr(context.find_object(Call), str(parameter.name), value)

    for option in (
        click.option(
            *("-c", "--config"),
            metavar="FILE",
            expose_value=False,
            callback=remember,
            help="A YAML or TOML config file; or anything that -s takes.",
        ),
        click.option(
            *("-s", "--storage"),
            metavar="URL",
            expose_value=False,
            callback=remember,
            help="A storage URL such as lmdb:///srv/state, or a path such as ./state or kv.db.",
        ),
    ):
        command = option(command)
    return command


def not_there(message: str) -> int:
    """Print that something is missing or wrong. Returns the exit code, 1."""
    click.echo(f"hutch: {printable(message)}", err=True)
    return 1


json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON line per item; tags keep the types.")


@click.group(
    "hutch",
    epilog=_EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    invoke_without_command=True,
)
@storage_options
@click.option(
    "--import",
    "modules",
    metavar="MODULE",
    multiple=True,
    help="Import MODULE first, to register the application's types. Repeatable.",
)
@click.option("--debug", is_flag=True, help="Show where an error came from (also: HUTCH_DEBUG=1).")
@click.version_option(__version__, prog_name="hutch", message="%(prog)s %(version)s")
@click.pass_context
def hutch(context: click.Context, modules: tuple[str, ...], debug: bool) -> None:
    """Inspect and change hutch stores, and move data between them.

    Safe to use while the application runs, on every engine that several processes may share.
    """
    call = context.ensure_object(Call)
    call.debug = call.debug or debug
    call.modules += modules
    if context.invoked_subcommand is None:
        click.echo(context.get_help())
