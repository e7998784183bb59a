"""Shared parts of `copy`, `verify`, `dump` and `load`: batches of items, comparison of values, progress."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from io import BytesIO
from typing import Any

from .. import CapabilityError, CorruptValueError, Namespace, Store, StoreError, ValueTypeError
from ..codec.pickled import Pickled
from ..codec.select import frame_codec_of
from ..codec.tagged_json import to_json
from ..deadlines import Expiring
from ..limits import validate_key
from ..snapshots import Snapshot
from .frames import Frame, OnError, find_frames, find_values, read_each, write_frames

BATCH_ITEMS = 1000
_BATCH_BYTES = 8 * 1024 * 1024
_DEADLINE_BYTES = 8
_codec = frame_codec_of(None)

#: A value and its mark, which is equal for equal values; None if the value cannot be compared.
Item = tuple[Any, bytes | None]
Batch = dict[str, Item]


@dataclass(frozen=True, slots=True)
class Progress:
    """The state of a transfer, passed to the `progress` callback after each batch."""

    namespace: str
    #: Items of this namespace that are done.
    done: int
    #: Items that the namespace had at the start; None if unknown.
    total: int | None


@dataclass(frozen=True, slots=True)
class Transferred:
    """The result of `copy`, `dump` or `load`, in numbers."""

    namespaces: int
    #: Items written.
    written: int
    #: Items that the target already held, equal in value and type.
    unchanged: int
    #: Items that could not be read or written, each passed to `on_error`.
    skipped: int = 0
    #: Whether all was read at one moment, from a snapshot of the source.
    snapshot: bool = field(default=False, compare=False)


OnProgress = Callable[[Progress], object]


class Writer:
    """A writer of items in batches that skips equal ones and counts.

    Errors about single items are passed to `on_error`, if given, and counted, instead of being raised.
    """

    def __init__(self, progress: OnProgress | None, on_error: OnError | None = None) -> None:
        self._progress = progress
        self._report_error = on_error
        self._skipped = 0
        #: For the source; None if its errors are to be raised.
        self.on_error: OnError | None = None if on_error is None else self._skip
        self._namespaces: set[str] = set()
        self._written = self._unchanged = 0

    def add(self, handle: Namespace, items: Iterable[tuple[str, Any]], total: int | None) -> None:
        name, done = str(handle.namespace), 0
        self._namespaces.add(name)
        # An empty namespace has no equal items to skip, so it is not read.
        compare = len(handle) > 0
        for batch in batches(items):
            stored = read_all(handle, batch) if compare else {}
            changed = {key: item[0] for key, item in batch.items() if key not in stored or not same(item, stored[key])}
            refused = _write(handle, changed, self.on_error) if changed else 0
            done += len(batch)
            self._written += len(changed) - refused
            self._unchanged += len(batch) - len(changed)
            report(self._progress, name, done, total)

    def result(self) -> Transferred:
        return Transferred(len(self._namespaces), self._written, self._unchanged, self._skipped)

    def _skip(self, error: StoreError) -> None:
        self._skipped += 1
        if self._report_error is not None:
            self._report_error(error)


def report(progress: OnProgress | None, namespace: str, done: int, total: int | None) -> None:
    if progress is not None:
        progress(Progress(namespace, done, total))


# --- which namespaces ---


def chosen(store: Store, patterns: Iterable[str] | None, snapshot: Snapshot | None = None) -> list[str]:
    """Return the sorted names of the namespaces of `store` that match one of the globs `patterns`; None means all.

    Raises CapabilityError if the engine cannot list its namespaces, unless every pattern is a plain name.
    """
    held = store if snapshot is None else snapshot
    if patterns is None:
        return held.namespaces()
    patterns = list(patterns)
    try:
        return [name for name in held.namespaces() if fits(name, patterns)]
    except CapabilityError:
        # Plain names need no list to match against; globs do.
        if any(set(pattern) & set("*?[") for pattern in patterns):
            raise
        return sorted(set(patterns))


def fits(name: str, patterns: list[str] | None) -> bool:
    # A namespace may be called "a[1]", so its exact name matches too.
    return patterns is None or any(name == pattern or fnmatchcase(name, pattern) for pattern in patterns)


# --- batches ---


def batches(items: Iterable[tuple[str, Any]]) -> Iterator[Batch]:
    """Yield `items` in batches of bounded count and size; items before an unreadable one come before its error."""
    batch: Batch = {}
    size = 0
    try:
        for key, value in items:
            mark = mark_of(value)
            batch[key] = (value, mark)
            size += len(mark) if mark is not None else 0
            if len(batch) >= BATCH_ITEMS or size >= _BATCH_BYTES:
                yield batch
                batch, size = {}, 0
    except CorruptValueError:
        if batch:
            yield batch
        raise
    if batch:
        yield batch


def read_all(handle: Namespace, batch: Batch) -> dict[str, Item]:
    """Return the items of `handle` for the keys of `batch`, undecoded where those are.

    An unreadable value gets no mark and equals nothing.
    """
    undecoded = [key for key, (value, _) in batch.items() if type(value) is Frame]
    if len(undecoded) == len(batch):
        return _find_frames(handle, undecoded)
    stored = _find_values(handle, [key for key, (value, _) in batch.items() if type(value) is not Frame])
    return {**stored, **_find_frames(handle, undecoded)} if undecoded else stored


def _find_frames(handle: Namespace, keys: list[str]) -> dict[str, Item]:
    frames = find_frames(handle, keys)
    return {key: (frame, None if frame is None else frame.content) for key, frame in frames.items()}


def _find_values(handle: Namespace, keys: list[str]) -> dict[str, Item]:
    try:
        return {key: (value, mark_of(value)) for key, value in find_values(handle, keys).items()}
    except CorruptValueError:
        return {
            key: (value, None if error is not None else mark_of(value)) for key, value, error in read_each(handle, keys)
        }


def _write(handle: Namespace, items: dict[str, Any], on_error: OnError | None) -> int:
    """Write `items`, and return how many were refused and passed to `on_error`."""
    frames = {key: value for key, value in items.items() if type(value) is Frame}
    values = {key: value for key, value in items.items() if type(value) is not Frame} if frames else items
    refused = 0
    for batch, write in ((values, _set_many), (frames, write_frames)):
        try:
            if batch:
                write(handle, batch)
        except ValueTypeError:
            # Nothing of the batch was written. Write one by one, so that the error can name the key.
            refused += _write_each(handle, batch, write, on_error)
    return refused


def _set_many(handle: Namespace, items: dict[str, Any]) -> None:
    """Set `items`, each with its deadline or none, whatever default the namespace has."""
    deadlines_ms = {key: value.deadline_ms for key, value in items.items() if type(value) is Expiring}
    if not deadlines_ms and handle._store.default_ttl_s is None:
        handle.set_many(items)
        return
    values = {validate_key(key): value.value if type(value) is Expiring else value for key, value in items.items()}
    handle._store.set_many_until(values, deadlines_ms)


def _write_each(handle: Namespace, items: dict[str, Any], write: Callable[..., None], on_error: OnError | None) -> int:
    refused = 0
    for key, value in items.items():
        try:
            write(handle, {key: value})
        except ValueTypeError as error:
            named = error
            if type(value) is not Frame:
                named = ValueTypeError(
                    f"the value of key {key!r} in namespace {handle.namespace!r} cannot be written: {error}"
                )
            if on_error is None:
                raise named from error
            on_error(named)
            refused += 1
    return refused


# --- equal in value and type ---


def mark_of(value: Any) -> bytes | None:
    """Return bytes that differ for different values or types and, with few exceptions, match for equal ones.

    None for a value that neither the default codec nor pickle takes.
    """
    if type(value) is Frame:
        return value.content
    if type(value) is Expiring:
        mark = mark_of(value.value)
        return None if mark is None else value.deadline_ms.to_bytes(_DEADLINE_BYTES, "big") + mark
    if type(value) is Pickled:
        return value.body
    try:
        return _codec.encode(value)
    except ValueTypeError:
        pass
    # First without pickle's memo, so that shared parts of a value do not matter. A value that refers to itself can be
    # pickled only with it.
    for fast in (True, False):
        try:
            pickled = BytesIO()
            pickler = pickle.Pickler(pickled, 5)
            pickler.fast = fast
            pickler.dump(value)
            return pickled.getvalue()
        except Exception:  # noqa: S112 - whatever a class does when it is pickled
            continue
    return None


def same(a: Item, b: Item) -> bool:
    (value, mark), (other, other_mark) = a, b
    if mark is None or other_mark is None:
        return False
    if mark == other_mark:
        return True
    if type(value) is Frame:
        return type(other) is Frame and value.deadline_ms == other.deadline_ms and _same_values(value, other)
    if type(value) is Expiring or type(other) is Expiring:
        return type(value) is type(other) and value.deadline_ms == other.deadline_ms and _same_inside(a, b)
    if len(mark) != len(other_mark):
        return False
    try:
        # Equal sets may iterate in different orders; tagged JSON sorts them.
        return to_json(value) == to_json(other)
    except ValueTypeError:
        pass
    try:
        return type(value) is type(other) and bool(value == other)
    except Exception:
        return False


def _same_inside(a: Item, b: Item) -> bool:
    return same((a[0].value, (a[1] or b"")[_DEADLINE_BYTES:]), (b[0].value, (b[1] or b"")[_DEADLINE_BYTES:]))


def _same_values(a: Frame, b: Frame) -> bool:
    try:
        value, other = a.value(), b.value()
    except CorruptValueError:
        return False
    return same((value, mark_of(value)), (other, mark_of(other)))
