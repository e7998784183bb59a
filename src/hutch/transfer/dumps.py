"""`dump` and `load`: write a store as JSON lines and read them back. docs/dump-format.md specifies the lines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import IO, Any

from .. import CorruptValueError, Store, StoreError, ValueTypeError
from ..codec.tagged_json import from_json, json_text, to_tagged
from ..limits import validate_key, validate_namespace
from .batches import BATCH_ITEMS, OnProgress, Transferred, chosen, fits, report
from .stores import copy_items

#: The version of the dump format that `dump` writes and `load` reads.
DUMP_VERSION = 1
_LONGEST_HEADER = 4096


def dump(
    store: Store, out: IO[bytes], namespaces: Iterable[str] | None = None, *, progress: OnProgress | None = None
) -> Transferred:
    """Write every item of `store` to `out` as JSON lines that keep types; `namespaces` are globs, as in `copy`.

    Raises ValueTypeError, which names namespace and key, for a value that only pickle can store: a dump contains no
    pickles, because loading one would run code; `copy` moves such values. Raises CorruptValueError for a value that
    cannot be read. `out` is not closed or flushed.
    """
    names = chosen(store, namespaces)
    out.write(_line({"hutch_dump": DUMP_VERSION}))
    written = 0
    for name in names:
        with store.open(name) as handle:
            total, done = len(handle), 0
            for key, value in handle.items():
                try:
                    tagged = to_tagged(value)
                    line = _line({"namespace": name, "key": key, "value": tagged})
                except (ValueTypeError, RecursionError) as error:
                    message = "it is nested too deep" if isinstance(error, RecursionError) else error
                    raise ValueTypeError(
                        f"the value of key {key!r} in namespace {name!r} cannot be dumped: {message}"
                    ) from error
                out.write(line)
                done += 1
                if done % BATCH_ITEMS == 0:
                    report(progress, name, done, total)
            report(progress, name, done, total)
            written += done
    # So that `load` notices a truncated dump.
    out.write(_line({"count": written}))
    return Transferred(len(names), written, 0)


def load(
    store: Store,
    lines: Iterable[bytes],
    namespaces: Iterable[str] | None = None,
    *,
    progress: OnProgress | None = None,
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
            if record.keys() == {"namespace", "key", "value"}:
                item = validate_namespace(record["namespace"]), validate_key(record["key"]), record["value"]
            elif record.keys() == {"count"}:
                if record["count"] != count:
                    raise CorruptValueError("its count of items does not match; lines are missing, or were added")
                count = None
                continue
            else:
                raise CorruptValueError("expected the names namespace, key and value, or on the last line count")
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
