"""stats, plugins, check, test-plugin: inspect a store and its plugins, verify integrity, test conformance."""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import click

from .. import ConfigError, Discovery, Finding, PluginLoadError, find_plugins
from ..config import read_config
from ..discovery.load import load_codec, load_factory
from ..errors import redact
from .app import Call, hutch, json_option, not_there, pass_call, storage_options
from .output import print_json, print_line, print_table, print_value, printable


@hutch.command()
@storage_options
@json_option
@pass_call
def stats(call: Call, as_json: bool) -> None:
    """Show the storage, its capabilities and its figures."""
    with call.connect_existing() as store:
        figures: dict[str, Any] = {
            "storage": store.name,
            "location": store.location,
            "capabilities": sorted(store.capabilities),
            "namespaces": {},
        }
        for name in store.namespaces():
            with store.open(name) as handle:
                figures["namespaces"][name] = len(handle)
        figures["items"] = sum(figures["namespaces"].values())
        figures["engine"] = store.stats()
    (print_json if as_json else print_value)(figures)


@dataclass(frozen=True)
class _Listed:
    name: str
    state: str
    location: str
    note: str
    unpickles: bool


@hutch.command()
@storage_options
@json_option
@pass_call
def plugins(call: Call, as_json: bool) -> None:
    """List every plugin, where it was found, and whether it loads.

    Each plugin is imported to find out. One that cannot be used is listed with the reason.
    """
    form = call.config_form()
    call.import_modules()
    try:
        discovery = find_plugins(read_config(form))
    except ConfigError as error:
        # A config named on the command line must be valid; one from the environment must not hide the plugins.
        if form is not None:
            raise
        click.echo(f"hutch: {printable(redact(str(error)))}. Listed without it", err=True)
        discovery = find_plugins()
    listed = list(_judged(discovery))
    if as_json:
        for one in listed:
            print_json(
                {
                    "name": one.name,
                    "state": one.state,
                    "unpickles": one.unpickles,
                    "found": one.location,
                    "note": one.note,
                }
            )
    else:
        rows = [(p.name, p.state + (", unpickles" if p.unpickles else ""), p.location, p.note) for p in listed]
        print_table(("name", "state", "found", "note"), rows)


def _judged(discovery: Discovery) -> Iterator[_Listed]:
    installed = [*discovery.plugins, *discovery.codecs]
    claims = Counter((info.kind, info.name.casefold()) for info in installed)
    for info in sorted(installed, key=lambda info: info.name.casefold()):
        note = info.description
        try:
            # Output of a module during its import is not part of the list.
            with contextlib.redirect_stdout(sys.stderr):
                (load_codec if info.kind == "codec" else load_factory)(info)
            state = "ok"
        except PluginLoadError as error:
            state, note = "not installed" if error.is_not_installed else "broken", redact(str(error))
        if state == "ok" and claims[info.kind, info.name.casefold()] > 1:
            state, note = (
                "conflict",
                "several plugins have this name, so none can be used; rename or remove all but one",
            )
        yield _Listed(info.name, state, str(info.path), note, info.unpickles)
    for broken in discovery.broken:
        yield _Listed(broken.name or "", "broken", str(broken.path), redact(broken.reason), False)


@hutch.command("test-plugin")
@click.argument("target", metavar="PATH_OR_NAME")
@storage_options
@json_option
@pass_call
def run_kit(call: Call, target: str, as_json: bool) -> int:
    """Test a plugin with the conformance kit.

    PATH_OR_NAME is the plugin's name, its .plug file, or the folder of that file. Prints one line
    per promise. -s or -c gives the plugin its options; without them it gets a temporary folder.
    """
    try:
        from ..testing.run import run_conformance
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("pytest", "hypothesis"):
            raise
        raise click.UsageError(
            'the conformance kit is not installed. Install it: pip install "hutch[testing]"'
        ) from error
    outcomes: Counter[str] = Counter()
    for result in run_conformance(target, call.config_form()):
        outcomes[result.outcome] += 1
        if as_json:
            print_json({"promise": result.promise, "outcome": result.outcome, "detail": result.detail})
        else:
            _print_promise(result.outcome, result.promise, result.detail)
        sys.stdout.flush()
    if not as_json:
        click.echo(", ".join(f"{outcomes[outcome]:,} {outcome}" for outcome in ("passed", "failed", "skipped")))
    if outcomes["failed"]:
        return 1
    return 0 if outcomes["passed"] else not_there("no promise was tested")


def _print_promise(outcome: str, promise: str, detail: str) -> None:
    colour = {"passed": "green", "failed": "red"}.get(outcome, "yellow")
    click.secho(f"{outcome:<8}", fg=colour, nl=False)
    click.echo(printable(promise) + (f" ({printable(detail)})" if detail and outcome == "skipped" else ""))
    if outcome == "failed":
        for line in detail.splitlines():
            click.echo(f"        {printable(line)}")


@hutch.command()
@click.option("--repair", is_flag=True, help="Repair what can be repaired without losing anything.")
@click.option("--salvage", metavar="FILE", help="Move values that are damaged out of the store into FILE, a new file.")
@storage_options
@json_option
@pass_call
def check(call: Call, repair: bool, salvage: str | None, as_json: bool) -> int:
    """Verify the integrity of the store.

    Reads everything and prints one line per finding. Nothing is changed without --repair or
    --salvage. The store may be in use.
    """
    counts = Counter[bool]()
    for finding in call.verify(repair, salvage):
        counts[finding.repaired] += 1
        if as_json:
            print_json(
                {
                    "kind": finding.kind,
                    "namespace": finding.namespace,
                    "key": finding.key,
                    "message": finding.message,
                    "repaired": finding.repaired,
                }
            )
        else:
            print_line(_sentence(finding))
        sys.stdout.flush()
    if not as_json:
        click.echo(
            f"{counts.total():,} found, {counts[True]:,} of them repaired" if counts else "nothing wrong was found"
        )
    return 1 if counts[False] else 0


def _sentence(finding: Finding) -> str:
    where = [f"namespace {finding.namespace!r}"] if finding.namespace is not None else []
    where += [f"key {finding.key!r}"] if finding.key is not None else []
    return ": ".join([finding.kind, *([", ".join(where)] if where else []), finding.message]) + (
        " (repaired)" if finding.repaired else ""
    )
