"""What `copy`, `verify`, `dump` and `load` share: batches of items, what makes two values the same, progress."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from io import BytesIO
from typing import Any

from .. import CapabilityError, CorruptValueError, Namespace, Store, ValueTypeError
from ..codec.msgpack import TypedCodec
from ..codec.passthrough import Pickled
from ..codec.tagged_json import to_json

BATCH_ITEMS = 1000
_BATCH_BYTES = 8 * 1024 * 1024
_codec = TypedCodec()

#: A value on its way, and what tells it from others (None: nothing does).
Item = tuple[Any, bytes | None]
Batch = dict[str, Item]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a transfer has come; given to the `progress` callback after each batch."""

    namespace: str
    #: Items of this namespace that are done.
    done: int
    #: Items it had at the start; None where that is not known.
    total: int | None


@dataclass(frozen=True, slots=True)
class Transferred:
    """What `copy`, `dump` or `load` did."""

    namespaces: int
    #: Items written.
    written: int
    #: Items that the target held already, equal in value and type.
    unchanged: int


OnProgress = Callable[[Progress], object]


class Writer:
    """Writes batches, and counts."""

    def __init__(self, progress: OnProgress | None) -> None:
        self._progress = progress
        self._namespaces: set[str] = set()
        self._written = self._unchanged = 0

    def add(self, handle: Namespace, items: Iterable[tuple[str, Any]], total: int | None) -> None:
        name, done = str(handle.namespace), 0
        self._namespaces.add(name)
        # What is empty now needs no reading to find what can be left as it is.
        compare = len(handle) > 0
        for batch in batches(items):
            found = read_all(handle, batch) if compare else {}
            changed = {key: item[0] for key, item in batch.items() if key not in found or not same(item, found[key])}
            if changed:
                _write(handle, changed)
            done += len(batch)
            self._written += len(changed)
            self._unchanged += len(batch) - len(changed)
            report(self._progress, name, done, total)

    def result(self) -> Transferred:
        return Transferred(len(self._namespaces), self._written, self._unchanged)


def report(progress: OnProgress | None, namespace: str, done: int, total: int | None) -> None:
    if progress is not None:
        progress(Progress(namespace, done, total))


# --- which namespaces ---


def chosen(store: Store, patterns: Iterable[str] | None) -> list[str]:
    """The names of the namespaces of `store` that fit one of the globs, sorted; None means all."""
    if patterns is None:
        return store.namespaces()
    patterns = list(patterns)
    try:
        return [name for name in store.namespaces() if fits(name, patterns)]
    except CapabilityError:
        # Names need no list to be found in; globs do.
        if any(set(pattern) & set("*?[") for pattern in patterns):
            raise
        return sorted(set(patterns))


def fits(name: str, patterns: list[str] | None) -> bool:
    # A namespace may be called "a[1]": its own name fits it too.
    return patterns is None or any(name == pattern or fnmatchcase(name, pattern) for pattern in patterns)


# --- batches ---


def batches(items: Iterable[tuple[str, Any]]) -> Iterator[Batch]:
    """`items` in batches of bounded count and size. What came before an unreadable item is given before the error."""
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


def read_all(handle: Namespace, keys: Iterable[str]) -> dict[str, Item]:
    """What `handle` holds of `keys`; a value that cannot be read is there, but equal to nothing."""
    try:
        return {key: (value, mark_of(value)) for key, value in handle.get_many(keys).items()}
    except CorruptValueError:
        found: dict[str, Item] = {}
        for key in keys:
            try:
                value = handle[key]
            except KeyError:
                continue
            except CorruptValueError:
                found[key] = (None, None)
            else:
                found[key] = (value, mark_of(value))
        return found


def _write(handle: Namespace, items: dict[str, Any]) -> None:
    try:
        handle.set_many(items)
    except ValueTypeError:
        # Nothing of the batch was written. One by one, so that the message can say which it was.
        for key, value in items.items():
            try:
                handle[key] = value
            except ValueTypeError as error:
                raise ValueTypeError(
                    f"the value of key {key!r} in namespace {handle.namespace!r} cannot be written: {error}"
                ) from error


# --- equal in value and type ---


def mark_of(value: Any) -> bytes | None:
    """Bytes that are equal for equal values of identical types, with few exceptions the other way round."""
    if type(value) is Pickled:
        return value.body
    try:
        return _codec.encode(value)
    except ValueTypeError:
        pass
    # Without the memo first, so that it does not matter which parts of a value are one object. A value that holds
    # itself cannot be pickled that way.
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
    if len(mark) != len(other_mark):
        return False
    try:
        # Two equal sets may give their items in different orders; here they are sorted.
        return to_json(value) == to_json(other)
    except ValueTypeError:
        pass
    try:
        return type(value) is type(other) and bool(value == other)
    except Exception:
        return False
