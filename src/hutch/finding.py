"""Finding: one problem that an integrity check reports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .options import ByFields


@dataclass(frozen=True, repr=False, eq=False)
class Finding(ByFields):
    """A problem in stored data, reported by `hutch.verify`. It never contains a value."""

    #: `structure`: the engine's own files are damaged. `value`: unreadable. `key`: not written by hutch. `count`: `len`
    #: is wrong. `orphan`: data of no namespace. `index`: what the engine stores beside the data contradicts it.
    kind: Literal["structure", "value", "key", "count", "orphan", "index"]
    #: A description of the problem, for people.
    message: str
    namespace: str | None = None
    key: str | None = None
    #: Whether it was repaired, or salvaged and removed.
    repaired: bool = False
