"""ls, keys, get, set, rm: list namespaces, and read, set and remove the items of one."""

from __future__ import annotations

import itertools
import shlex
import sys

import click

from .. import CorruptValueError, ValueTypeError
from ..errors import a_or_an
from .app import Call, hutch, json_option, missing_namespace, not_there, pass_call, storage_options
from .complete import complete_key, complete_namespace
from .expiry import SECONDS, shown_ttl, ttl_of
from .literals import read_literal
from .output import print_item, print_json, print_line, print_table, print_value, printable

_IN_JSON = {"None": "null", "True": "true", "False": "false"}
_QUOTES = """Write JSON in single quotes: '"text"', '{"a": [1, null]}'"""


@hutch.command()
@storage_options
@json_option
@pass_call
def ls(call: Call, as_json: bool) -> None:
    """List the namespaces and their numbers of items."""
    with call.connect_existing() as store:
        counts = []
        for name in store.namespaces():
            with store.open(name) as handle:
                counts.append((name, len(handle)))
    if as_json:
        for name, count in counts:
            print_json({"namespace": name, "items": count})
    else:
        print_table(("namespace", "items"), counts)


@hutch.command()
@click.argument("namespace", shell_complete=complete_namespace)
@click.option("--prefix", default="", metavar="TEXT", help="Only keys that start with TEXT.")
@click.option("--limit", type=click.IntRange(min=0), metavar="N", help="Print at most N keys.")
@click.option("--values", is_flag=True, help="Print each value beside its key.")
@click.option("--expires", is_flag=True, help="Print how many seconds each key has left, or never.")
@storage_options
@json_option
@pass_call
def keys(call: Call, namespace: str, prefix: str, limit: int | None, values: bool, expires: bool, as_json: bool) -> int:
    """List the keys of NAMESPACE in order.

    Unprintable characters are shown escaped; --json prints every key exactly. With --values there is
    a tab between key and value, and --json prints {"key": ..., "value": ...}. With --expires there is
    a tab between key and seconds, and --json prints {"key": ..., "ttl_s": ...}, null for never.
    """
    if values and expires:
        raise click.UsageError("give --values or --expires, not both")
    with call.connect_existing() as store, store.open(namespace) as handle:
        any_shown = False
        if expires:
            for key in itertools.islice(handle.scan_keys(prefix), limit):
                any_shown = True
                _print_ttl(key, ttl_of(handle, key), as_json)
        elif values:
            for key, value in itertools.islice(handle.scan(prefix), limit):
                any_shown = True
                if as_json:
                    print_json({"key": key, "value": value})
                else:
                    print_item(key, value)
        else:
            for key in itertools.islice(handle.scan_keys(prefix), limit):
                any_shown = True
                (print_json if as_json else print_line)(key)
        if not any_shown and not len(handle):
            raise missing_namespace(store, namespace)
    return 0


def _print_ttl(key: str, left_s: float | bool | None, as_json: bool) -> None:
    if left_s is False:  # expired or removed meanwhile
        return
    if as_json:
        print_json({"key": key, "ttl_s": left_s})
    else:
        sys.stdout.write(f"{printable(key)}\t{shown_ttl(left_s)}\n")


@hutch.command()
@click.argument("namespace", shell_complete=complete_namespace)
@click.argument("key", shell_complete=complete_key)
@click.option("--text", is_flag=True, help="Print a text as it is, without quotes; into a pipe, without a line end.")
@click.option("--ttl", is_flag=True, help="Print how many seconds KEY has left, or never, not its value.")
@storage_options
@json_option
@pass_call
def get(call: Call, namespace: str, key: str, text: bool, ttl: bool, as_json: bool) -> int:
    """Print the value of KEY."""
    if text and as_json:
        raise click.UsageError("give --text or --json, not both")
    if text and ttl:
        raise click.UsageError("give --text or --ttl, not both")
    with call.connect_existing() as store, store.open(namespace) as handle:
        try:
            value = handle.ttl_s(key) if ttl else handle[key]
        except KeyError:
            if not len(handle):
                raise missing_namespace(store, namespace) from None
            return not_there(_no_key(namespace, key))
    if as_json:
        try:
            print_json(value)
        except ValueTypeError as error:
            raise ValueTypeError(
                f"the value of key {key!r} in namespace {namespace!r} cannot be written as JSON: {error}"
            ) from error
    elif ttl:
        print_line(shown_ttl(value))
    elif not text:
        print_value(value)
    elif type(value) is not str:
        raise click.UsageError(f"the value is {a_or_an(type(value).__name__)}, not text; leave out --text")
    elif sys.stdout.isatty():
        for line in value.split("\n"):
            print_line(line)
    else:
        # Exactly the text: `set --text -` stores it again.
        sys.stdout.flush()
        sys.stdout.buffer.write(value.encode("utf-8", "surrogatepass"))
    return 0


# "-5" is a value, not an option.
@hutch.command("set", context_settings={"ignore_unknown_options": True})
@click.argument("namespace", shell_complete=complete_namespace)
@click.argument("key", shell_complete=complete_key)
@click.argument("value")
@click.option("--text", is_flag=True, help="VALUE is the text itself, not JSON.")
@click.option("--ttl", type=SECONDS, help="The value expires after so many seconds; never: not at all.")
@storage_options
@pass_call
def set_(call: Call, namespace: str, key: str, value: str, text: bool, ttl: float | None) -> None:
    """Set KEY to VALUE, which is JSON, or what `get` printed.

    With "-" the value is read from standard input. Types that JSON lacks have tags, as in the
    output of `get --json` and `dump`: '{"$set": ["a", "b"]}', or as in that of `get`: 'set("a", "b")'.
    """
    if value == "-":
        data = call.standard_input().read()
        try:
            value = data.decode()
        except UnicodeDecodeError as error:
            raise click.UsageError(f"standard input is not UTF-8: byte {error.start} cannot be read") from error
    # Before the value is parsed, because the modules may register its type.
    call.import_modules()
    try:
        parsed = value if text else read_literal(value)
    except CorruptValueError as error:
        hint = f"In JSON {value} is {_IN_JSON[value]}" if value in _IN_JSON else _QUOTES
        raise click.UsageError(f"the value cannot be read: {error}. For plain text add --text. {hint}") from error
    with call.connect() as store, store.open(namespace) as handle:
        handle.set(key, parsed, ttl_s=ttl)


@hutch.command()
@click.argument("namespace", shell_complete=complete_namespace)
@click.argument("keys", nargs=-1, metavar="[KEY]...", shell_complete=complete_key)
@click.option("--all", "everything", is_flag=True, help="Remove the namespace with all its keys.")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@storage_options
@pass_call
def rm(call: Call, namespace: str, keys: tuple[str, ...], everything: bool, yes: bool) -> int:
    """Remove keys or, with --all, a whole namespace."""
    if everything == bool(keys):
        raise click.UsageError("give either keys or --all")
    with call.connect_existing() as store:
        if everything:
            with store.open(namespace) as handle:
                count = len(handle)
            if not count:
                return not_there(_no_namespace(namespace))
            if not yes and not _confirmed(f"Remove namespace {namespace!r} with {count:,} items?"):
                return not_there("nothing was removed")
            store.drop(namespace)
            return 0
        missing = []
        with store.open(namespace) as handle:
            for key in dict.fromkeys(keys):
                try:
                    del handle[key]
                except KeyError:
                    missing.append(key)
            if missing:
                if not len(handle) and len(missing) == len(set(keys)):
                    return not_there(_no_namespace(namespace))
                return not_there(_no_key(namespace, *missing))
    return 0


def _no_key(namespace: str, *keys: str) -> str:
    shown = f"namespace {namespace!r} has no key {', '.join(map(repr, keys))}"
    return f"{shown}; `hutch keys {shlex.quote(namespace)}` lists the keys"


def _confirmed(question: str) -> bool:
    if not sys.stdin.isatty():
        raise click.UsageError("no terminal to ask for confirmation; add --yes")
    return click.confirm(printable(question), err=True)


def _no_namespace(namespace: str) -> str:
    return f"namespace {namespace!r} is empty; `hutch ls` lists the namespaces with items"
