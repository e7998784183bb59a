"""`copy` and `verify`: write the items of another store, or of any source, into a store and compare them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from .. import Namespace, Store
from ..snapshots import Snapshot
from .batches import OnProgress, Transferred, Writer, batches, chosen, read_all, report, same
from .frames import OnError, moves_frames, read_frames, read_values
from .sources import moment_of, source_of

_EXAMPLES = 5


@dataclass(frozen=True, slots=True)
class Difference:
    """An item that `verify` found to differ."""

    #: "missing", "different" or "extra" in the target.
    kind: str
    namespace: str
    key: str


@dataclass(frozen=True, slots=True)
class Verified:
    """The result of `verify`, in numbers of items."""

    namespaces: int
    equal: int
    missing: int
    different: int
    #: In the target only, which is not an error: `copy` removes nothing.
    extra: int
    #: The first few differences of each kind.
    examples: tuple[Difference, ...]

    @property
    def ok(self) -> bool:
        """Whether the target holds every item of the source, equal in value and type."""
        return not self.missing and not self.different


def copy(
    source: Store,
    target: Store,
    namespaces: Iterable[str] | None = None,
    *,
    progress: OnProgress | None = None,
    on_error: OnError | None = None,
) -> Transferred:
    """Copy every item of `source` to `target`, or only from namespaces that match one of the globs `namespaces`.

    Reads one snapshot of `source`, all namespaces at one moment, where its engine declares `snapshot`. Elsewhere each
    batch is read at its own moment, and `snapshot` of the result is False.

    Values of existing keys are replaced; everything else in `target` stays. Items that it already holds, equal in
    value and type, are read but not written again, so running an interrupted copy again continues where it stopped.
    Each batch is written as by `set_many`: all or none where the engine declares `atomic-batch`. `progress` is called
    after each batch.

    Between engines that hold bytes, where both stores configure the same codec with the same options, the stored bytes
    move: values are not decoded, so their classes need not be there, and only checksums are validated.

    With `on_error`, an item that cannot be read, or that the target refuses, is skipped and its error passed to it.
    Otherwise raises CorruptValueError for a value that cannot be read, ValueTypeError for a value that the target's
    codec refuses (both name namespace and key), CapabilityError if the source cannot list its namespaces and
    `namespaces` does not name them, and what the engines raise. Items copied before an error stay copied.
    """
    totals = Writer(progress, on_error)
    with moment_of(source) as snapshot:
        _copy_all(source, snapshot, target, chosen(source, namespaces, snapshot), totals)
    return replace(totals.result(), snapshot=snapshot is not None)


def _copy_all(source: Store, snapshot: Snapshot | None, target: Store, names: Iterable[str], totals: Writer) -> None:
    for name in names:
        with source_of(source, snapshot, name) as origin, target.open(name) as handle:
            read = read_frames if moves_frames(source, target, origin, handle) else read_values
            totals.add(handle, read(origin, totals.on_error), len(origin))


def copy_items(
    items: Iterable[tuple[str, str, Any]], target: Store, *, progress: OnProgress | None = None
) -> Transferred:
    """Set each of `items`, tuples (namespace, key, value), in `target`, as `copy` does.

    `items` is streamed, at most one batch held in memory. Items of one namespace should be adjacent.
    """
    totals = Writer(progress)
    for name, group in _by_namespace(items):
        with target.open(name) as handle:
            totals.add(handle, group, None)
    return totals.result()


def verify(
    source: Store,
    target: Store,
    namespaces: Iterable[str] | None = None,
    *,
    progress: OnProgress | None = None,
    on_error: OnError | None = None,
) -> Verified:
    """Read back every item of `source` from `target` and compare value and type, NaN and -0.0 included.

    `namespaces` are globs, as in `copy`. An unreadable value counts as different in the target, and raises
    CorruptValueError in the source, or is passed to `on_error`. Where `copy` moves stored bytes, bytes are compared
    first, and values only where those differ. Types that only pickle can store are compared by their pickles and, if
    those differ, by their own ``==``.
    """
    patterns = None if namespaces is None else list(namespaces)
    comparison = _Comparison(progress)
    for name in sorted({*chosen(source, patterns), *chosen(target, patterns)}):
        with source.open(name) as origin, target.open(name) as handle:
            read = read_frames if moves_frames(source, target, origin, handle) else read_values
            present = comparison.compare(handle, read(origin, on_error), len(origin))
            if len(handle) > present:
                for key in handle:
                    if key not in origin:
                        comparison.note("extra", name, key)
    return comparison.result()


def verify_items(
    items: Iterable[tuple[str, str, Any]], target: Store, *, progress: OnProgress | None = None
) -> Verified:
    """Read back each of `items` from `target` and compare as `verify` does. Extra items in `target` are not counted."""
    comparison = _Comparison(progress)
    for name, group in _by_namespace(items):
        with target.open(name) as handle:
            comparison.compare(handle, group, None)
    return comparison.result()


def _by_namespace(items: Iterable[tuple[str, str, Any]]) -> Iterator[tuple[str, Iterator[tuple[str, Any]]]]:
    for name, group in itertools.groupby(items, key=lambda item: item[0]):
        yield name, ((key, value) for _, key, value in group)


class _Comparison:
    """A comparison of items in batches, and its counts."""

    def __init__(self, progress: OnProgress | None) -> None:
        self._progress = progress
        self._namespaces: set[str] = set()
        self._counts = {"equal": 0, "missing": 0, "different": 0, "extra": 0}
        self._examples: list[Difference] = []

    def compare(self, handle: Namespace, items: Iterable[tuple[str, Any]], total: int | None) -> int:
        """Compare `items` with those of `handle`. Returns how many of their keys `handle` has."""
        name, done, present = str(handle.namespace), 0, 0
        self._namespaces.add(name)
        for batch in batches(items):
            stored = read_all(handle, batch)
            for key, item in batch.items():
                kind = "missing" if key not in stored else "equal" if same(item, stored[key]) else "different"
                self.note(kind, name, key)
            done += len(batch)
            present += len(stored)
            report(self._progress, name, done, total)
        return present

    def note(self, kind: str, namespace: str, key: str) -> None:
        self._counts[kind] += 1
        if kind != "equal" and sum(example.kind == kind for example in self._examples) < _EXAMPLES:
            self._examples.append(Difference(kind, namespace, key))

    def result(self) -> Verified:
        return Verified(len(self._namespaces), **self._counts, examples=tuple(self._examples))
