"""`dump` and `load`: write a store as JSON lines and read them back. docs/dump-format.md specifies the lines."""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Iterable, Iterator
from typing import IO, Any

from .. import MISSING, CorruptValueError, EncodedStorage, Namespace, Store, StoreError, ValueTypeError
from ..codec.frame import MAX_DEADLINE_MS
from ..codec.tagged_json import from_json, json_text, to_tagged
from ..deadlines import Expiring, deadline_of, with_deadline
from ..limits import validate_key, validate_namespace
from ..snapshots import Snapshot
from .batches import BATCH_ITEMS, OnProgress, Transferred, chosen, fits, report
from .frames import Frame, OnError, bytes_below, frame_of_dump, frame_to_dump, read_values
from .sources import moment_of, source_of
from .stores import copy_items

#: The version of the dump format that `dump` writes and `load` reads.
DUMP_VERSION = 1
_LONGEST_HEADER = 4096
_ITEMS = (
    {"namespace", "key", "value"},
    {"namespace", "key", "value", "deadline"},
    {"namespace", "key", "frame"},
)


def dump(
    store: Store,
    out: IO[bytes],
    namespaces: Iterable[str] | None = None,
    *,
    progress: OnProgress | None = None,
    on_error: OnError | None = None,
) -> Transferred:
    """Write every item of `store` to `out` as JSON lines that keep types; `namespaces` are globs, as in `copy`.

    Reads one snapshot, all namespaces at one moment, where the engine declares `snapshot`. Elsewhere each batch is read
    at its own moment, and `snapshot` of the result is False.

    A value that is intact but cannot be decoded here, because its type is not registered, is written as its stored
    bytes. With `on_error`, an item that cannot be dumped is skipped and its error passed to it. Otherwise raises
    ValueTypeError, which names namespace and key, for a value that only pickle can store: a dump contains no pickles,
    because loading one would run code; `copy` moves such values. Raises CorruptValueError for a value that cannot be
    read. `out` is not closed or flushed.
    """
    with moment_of(store) as snapshot:
        names = chosen(store, namespaces, snapshot)
        out.write(_line({"hutch_dump": DUMP_VERSION}))
        written, skipped = _dump_all(store, snapshot, names, out, progress, on_error)
        # So that `load` notices a truncated dump.
        out.write(_line({"count": written}))
    return Transferred(len(names), written, 0, skipped, snapshot is not None)


def _dump_all(
    store: Store,
    snapshot: Snapshot | None,
    names: Iterable[str],
    out: IO[bytes],
    progress: OnProgress | None,
    on_error: OnError | None,
) -> tuple[int, int]:
    written = skipped = 0
    for name in names:
        with source_of(store, snapshot, name) as handle:
            done, refused = _dump_namespace(handle, name, out, progress, on_error)
        written += done
        skipped += refused
    return written, skipped


def _dump_namespace(
    handle: Namespace, name: str, out: IO[bytes], progress: OnProgress | None, on_error: OnError | None
) -> tuple[int, int]:
    total, done, skipped = len(handle), 0, 0
    for line in _lines(handle):
        if not isinstance(line, bytes):
            if on_error is None:
                raise line
            on_error(line)
            skipped += 1
            continue
        out.write(line)
        done += 1
        if done % BATCH_ITEMS == 0:
            report(progress, name, done, total)
    report(progress, name, done, total)
    return done, skipped


def load(
    store: Store, lines: Iterable[bytes], namespaces: Iterable[str] | None = None, *, progress: OnProgress | None = None
) -> Transferred:
    """Set in `store` every item of the dump `lines`, such as a binary file; `namespaces` are globs, as in `copy`.

    Writes as `copy` does: values of existing keys are replaced, nothing is removed, and it can be run again after an
    interruption. Several dumps may follow one another in `lines`.

    Raises CorruptValueError, which names the line, for text that is not a dump, for a damaged line, and for a
    truncated dump; the items before that line are loaded.
    """
    patterns = None if namespaces is None else list(namespaces)
    items = (item for item in _read_dump(lines) if fits(item[0], patterns))
    return copy_items(items, store, progress=progress)


# --- the lines of a dump ---


def _lines(handle: Namespace) -> Iterator[bytes | StoreError]:
    """Yield the line of every item of `handle`, or the error that says why it has none."""
    storage = bytes_below(handle)
    if storage is None:
        errors: list[StoreError] = []
        for key, value in read_values(handle, errors.append):
            yield _line_of(handle, key, value)
            yield from errors
            errors.clear()
        yield from errors
        return
    for keys, frames in storage.read_chunks(None, None, False):
        for key, data in zip(keys, frames, strict=True):
            line = _line_of_frame(handle, storage, key, data)
            if line is not None:
                yield line


def _line_of_frame(handle: Namespace, storage: EncodedStorage, key: str, data: bytes) -> bytes | StoreError | None:
    """Return the line of a frame, or the error that says why it has none; None if it has expired."""
    try:
        value = storage.decode_live(key, data)
    except CorruptValueError as error:
        frame = frame_to_dump(storage, key, data)
        if frame is None:
            return error
        return _line({"namespace": str(handle.namespace), "key": key, "frame": b64encode(frame).decode()})
    return None if value is MISSING else _line_of(handle, key, with_deadline(value, deadline_of(data)))


def _line_of(handle: Namespace, key: str, value: Any) -> bytes | StoreError:
    name = str(handle.namespace)
    deadline = {}
    if type(value) is Expiring:
        value, deadline["deadline"] = value
    try:
        return _line({"namespace": name, "key": key, "value": to_tagged(value), **deadline})
    except (ValueTypeError, RecursionError) as error:
        message = "it is nested too deep" if isinstance(error, RecursionError) else error
        refusal = ValueTypeError(f"the value of key {key!r} in namespace {name!r} cannot be dumped: {message}")
        refusal.__cause__ = error
        return refusal


def _line(record: dict[str, Any]) -> bytes:
    return json_text(record).encode() + b"\n"


def _read_dump(lines: Iterable[bytes]) -> Iterator[tuple[str, str, Any]]:
    count: int | None = None
    number, before = 0, 0
    for number, line in enumerate(lines, 1):
        try:
            if count is None:
                _check_header(line)
                count = 0
                continue
            record = from_json(line)
            if type(record) is not dict:
                raise CorruptValueError('expected an object, {"namespace": ..., "key": ..., "value": ...}')
            if record.keys() in _ITEMS:
                value = _frame(record["frame"]) if "frame" in record else _value(record)
                item = validate_namespace(record["namespace"]), validate_key(record["key"]), value
            elif record.keys() == {"count"}:
                if record["count"] != count:
                    raise CorruptValueError("its count of items does not match; lines are missing, or were added")
                count = None
                continue
            else:
                raise CorruptValueError(
                    "expected the names namespace, key and value (or frame), and perhaps deadline, or on the last line "
                    "count"
                )
        except StoreError as error:
            raise CorruptValueError(f"line {number:,} of the dump: {error}. {_loaded(before)}") from error
        count += 1
        before += 1
        yield item
    if count is not None:
        raise CorruptValueError(
            f"the dump ends after line {number:,} without its last line: it was truncated. {_loaded(before)}"
        )
    if number == 0:
        raise CorruptValueError("this is not a dump of hutch: it is empty")


def _value(record: dict[str, Any]) -> Any:
    if "deadline" not in record:
        return record["value"]
    deadline_ms = record["deadline"]
    if type(deadline_ms) is not int or not 0 <= deadline_ms <= MAX_DEADLINE_MS:
        raise CorruptValueError("its deadline is not a number of milliseconds from 1970 to the year 9999")
    return Expiring(record["value"], deadline_ms)


def _frame(text: object) -> Frame:
    try:
        data = b64decode(text, validate=True) if isinstance(text, str) else b""
    except ValueError as error:
        raise CorruptValueError("its frame is not base64") from error
    return frame_of_dump(data)


def _check_header(line: bytes) -> None:
    try:
        header = from_json(line[:_LONGEST_HEADER])
        version = header["hutch_dump"]
    except (CorruptValueError, TypeError, KeyError) as error:
        raise CorruptValueError('this is not a dump of hutch: expected {"hutch_dump": 1}') from error
    if version != DUMP_VERSION:
        raise CorruptValueError("the dump has a format that this hutch does not know; a newer one wrote it")


def _loaded(before: int) -> str:
    return f"The {before:,} items before it were read and are loaded"
