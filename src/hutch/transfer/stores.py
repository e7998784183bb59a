"""From store to store: `copy` and `verify`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .. import Store
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


def verify(
    source: Store, target: Store, namespaces: Iterable[str] | None = None, *, progress: OnProgress | None = None
) -> Verified:
    """Read back every item of `source` from `target` and compare value and type, NaN and -0.0 included.

    `namespaces` are globs, as in `copy`. A value of the target that cannot be read counts as different; one of
    the source raises CorruptValueError. Types that only pickle can store are compared by their pickles, or by
    their own ``==`` if those differ.
    """
    patterns = None if namespaces is None else list(namespaces)
    names = sorted({*chosen(source, patterns), *chosen(target, patterns)})
    counts = {"equal": 0, "missing": 0, "different": 0, "extra": 0}
    examples: list[Difference] = []

    def note(kind: str, key: str) -> None:
        counts[kind] += 1
        if kind != "equal" and sum(example.kind == kind for example in examples) < _EXAMPLES:
            examples.append(Difference(kind, name, key))

    for name in names:
        with source.open(name) as origin, target.open(name) as handle:
            total, done, present = len(origin), 0, 0
            for batch in batches(origin.items()):
                found = read_all(handle, batch)
                for key, item in batch.items():
                    note("missing" if key not in found else "equal" if same(item, found[key]) else "different", key)
                done += len(batch)
                present += len(found)
                report(progress, name, done, total)
            if len(handle) > present:
                for key in handle:
                    if key not in origin:
                        note("extra", key)
    return Verified(len(names), **counts, examples=tuple(examples))
