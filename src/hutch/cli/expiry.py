"""expire: reclaim the space of expired keys. And the time to live that other commands take and print."""

from __future__ import annotations

import math
from typing import Any

import click

from .. import Namespace, Store
from ..deadlines import validate_ttl
from .app import Call, hutch, json_option, pass_call, storage_options
from .complete import complete_namespace
from .output import print_json, print_table

#: What is printed for a key without a deadline.
NEVER = "never"


class _Seconds(click.ParamType):  # type: ignore[type-arg]  # generic only for type checkers
    name = "seconds"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            return validate_ttl(math.inf if value == NEVER else float(value))
        except ValueError:
            self.fail(f"expected a number of seconds above 0 and up to the year 9999, or {NEVER}", param, ctx)


SECONDS = _Seconds()


def shown_ttl(left_s: float | None) -> str:
    """Return how many seconds a key has left, as text."""
    return NEVER if left_s is None else f"{left_s:.3f}".rstrip("0").rstrip(".")


def ttl_of(handle: Namespace, key: str) -> float | bool | None:
    """Return the seconds that `key` has left, None if it never expires, False if it is missing."""
    try:
        return handle.ttl_s(key)
    except KeyError:
        return False


@hutch.command()
@click.argument("namespaces", nargs=-1, metavar="[NAMESPACE]...", shell_complete=complete_namespace)
@storage_options
@json_option
@pass_call
def expire(call: Call, namespaces: tuple[str, ...], as_json: bool) -> None:
    """Reclaim the space of expired keys.

    Expired keys are missing without it. Each write of a namespace reclaims two; this reclaims the
    rest, in the namespaces named or in all, in small steps while others read and write.
    """
    with call.connect_existing() as store:
        counts = [(name, _expire(store, name)) for name in namespaces or _stored(store)]
    if as_json:
        for name, count in counts:
            print_json({"namespace": name, "reclaimed": count})
    else:
        print_table(("namespace", "reclaimed"), counts)


def _stored(store: Store) -> list[str]:
    """Return the namespaces that hold keys, even if all of them have expired."""
    stored = getattr(store.factory, "stored_namespaces", None)
    return store.namespaces() if stored is None else sorted(stored())


def _expire(store: Store, namespace: str) -> int:
    with store.open(namespace) as handle:
        return handle.expire()
