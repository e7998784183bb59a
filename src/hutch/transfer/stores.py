"""Into a store, and what is there compared: `copy` and `verify` from another store, and the same for any items."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from .. import Namespace, Store
from .batches import OnProgress, Transferred, Writer, batches, chosen, read_all, report, same

_EXAMPLES = 5


@dataclass(frozen=True, slots=True)
class Difference:
    """One item that `verify` found to differ."""

    #: "missing" in the target, "different" there, or "extra" there.
    kind: str
    namespace: str
    key: str


@dataclass(frozen=True, slots=True)
class Verified:
    """What `verify` found, in numbers of items."""

    namespaces: int
    equal: int
    missing: int
    different: int
    #: In the target alone. That is no fault: nothing here removes what else a target holds.
    extra: int
    #: The first few of each kind.
    examples: tuple[Difference, ...]

    @property
    def ok(self) -> bool:
        """Whether the target holds every item of the source, equal in value and type."""
        return not self.missing and not self.different


def copy(
    source: Store, target: Store, namespaces: Iterable[str] | None = None, *, progress: OnProgress | None = None
) -> Transferred:
    """Copy every item of `source` to `target`, or those of the namespaces that fit one of the globs `namespaces`.

    What `target` holds under the same key is replaced, everything else there stays. Items it holds already,
    equal in value and type, are read but not written again: a copy that was interrupted goes on where it
    stopped when it is run again. Each batch is written as `set_many` writes: all or none where the engine
    declares `atomic-batch`. `progress` is called after each batch.

    Raises CorruptValueError for a value that cannot be read, ValueTypeError for one that the target's codec does
    not take (both name namespace and key), CapabilityError if the source cannot list its namespaces and
    `namespaces` is not given, and what the engines raise. What was copied before stays copied.
    """
    totals = Writer(progress)
    for name in chosen(source, namespaces):
        with source.open(name) as origin, target.open(name) as handle:
            totals.add(handle, origin.items(), len(origin))
    return totals.result()


def copy_items(
    items: Iterable[tuple[str, str, Any]], target: Store, *, progress: OnProgress | None = None
) -> Transferred:
    """Set every one of `items`, which are (namespace, key, value), in `target`, as `copy` does.

    They are taken as they come, and no more of them is held than one batch. Those of one namespace come together.
    """
    totals = Writer(progress)
    for name, group in _by_namespace(items):
        with target.open(name) as handle:
            totals.add(handle, group, None)
    return totals.result()


def verify(
    source: Store, target: Store, namespaces: Iterable[str] | None = None, *, progress: OnProgress | None = None
) -> Verified:
    """Read back every item of `source` from `target` and compare value and type, NaN and -0.0 included.

    `namespaces` are globs, as in `copy`. A value of the target that cannot be read counts as different; one of
    the source raises CorruptValueError. Types that only pickle can store are compared by their pickles, or by
    their own ``==`` if those differ.
    """
    patterns = None if namespaces is None else list(namespaces)
    found = _Comparison(progress)
    for name in sorted({*chosen(source, patterns), *chosen(target, patterns)}):
        with source.open(name) as origin, target.open(name) as handle:
            present = found.compare(handle, origin.items(), len(origin))
            if len(handle) > present:
                for key in handle:
                    if key not in origin:
                        found.note("extra", name, key)
    return found.result()


def verify_items(
    items: Iterable[tuple[str, str, Any]], target: Store, *, progress: OnProgress | None = None
) -> Verified:
    """Read back every one of `items` from `target`, as `verify` does. What else is there is not looked for."""
    found = _Comparison(progress)
    for name, group in _by_namespace(items):
        with target.open(name) as handle:
            found.compare(handle, group, None)
    return found.result()


def _by_namespace(items: Iterable[tuple[str, str, Any]]) -> Iterator[tuple[str, Iterator[tuple[str, Any]]]]:
    for name, group in itertools.groupby(items, key=lambda item: item[0]):
        yield name, ((key, value) for _, key, value in group)


class _Comparison:
    """Compares in batches, and counts."""

    def __init__(self, progress: OnProgress | None) -> None:
        self._progress = progress
        self._namespaces: set[str] = set()
        self._counts = {"equal": 0, "missing": 0, "different": 0, "extra": 0}
        self._examples: list[Difference] = []

    def compare(self, handle: Namespace, items: Iterable[tuple[str, Any]], total: int | None) -> int:
        """Compare `items` with what `handle` holds; how many of them it has."""
        name, done, present = str(handle.namespace), 0, 0
        self._namespaces.add(name)
        for batch in batches(items):
            found = read_all(handle, batch)
            for key, item in batch.items():
                kind = "missing" if key not in found else "equal" if same(item, found[key]) else "different"
                self.note(kind, name, key)
            done += len(batch)
            present += len(found)
            report(self._progress, name, done, total)
        return present

    def note(self, kind: str, namespace: str, key: str) -> None:
        self._counts[kind] += 1
        if kind != "equal" and sum(example.kind == kind for example in self._examples) < _EXAMPLES:
            self._examples.append(Difference(kind, namespace, key))

    def result(self) -> Verified:
        return Verified(len(self._namespaces), **self._counts, examples=tuple(self._examples))
