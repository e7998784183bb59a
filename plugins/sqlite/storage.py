"""SqliteStorage: the verbs of one namespace.

Keys are stored as UTF-8, so that SQLite's byte order is code point order.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, NoReturn

from hutch import Commit, CorruptValueError, EncodedStorage, KeyRange, StoreNotOpenError
from hutch.limits import legible, validate_key

from . import deadlines
from .commits import apply
from .database import Database, change
from .deadlines import COUNT, EXISTS, KEYS, LIVE_COUNT, LIVE_KEYS, time_bytes
from .errors import is_from_sqlite
from .statements import (
    ADD,
    AFTER_ALL_KEYS,
    COPIED_BYTES,
    GET,
    RANGE,
    REMOVE_ALL,
    REMOVE_EQUAL,
    REPLACE,
    SET,
    read_all,
    replace,
    write_all,
)

if TYPE_CHECKING:
    from .plugin import SqlitePlugin

# The id of a namespace, the lowest key and the key after the last; and rows with whether they are the last.
_Bounds = tuple[int, bytes, bytes]
_Chunk = tuple[list[Any], bool]

# The errors of decoding a damaged key: invalid bytes, or no bytes, because one flipped bit makes them text or NULL.
_NOT_A_KEY = (UnicodeDecodeError, AttributeError)
# Start small: a caller may need only one item (popitem).
_FIRST_CHUNK = 16
# Larger chunks trigger the garbage collector, which costs more than fetching smaller chunks.
_LARGEST_CHUNK = 256


class SqliteStorage(EncodedStorage):
    """One namespace. Each write, batches included, is one transaction; readers never wait for it."""

    # Here for __del__, should __init__ fail.
    _database: Database | None = None

    def __init__(self, plugin: SqlitePlugin, namespace: str, database: Database) -> None:
        super().__init__(plugin, namespace)
        self._path = database.path
        self._number: int | None = None
        self._user = object()
        # Of `Database`: the namespaces that are known to have deadlines.
        self._expiring = database.expiring
        # Attributes of `Database`, for the fast path of `_row`, which does not validate what a read-only file needs.
        self._idle, self._trim = [] if database.is_read_only else database.readers.idle, database.readers.trim
        # The fast path for writes; replaced when the storage is closed.
        self._run_write: Callable[..., int] = database.write
        # In this order, so that `close` knows what to leave even if a signal handler raises.
        self._database = database
        database.add_user(self, self._user)

    # --- the six verbs ---

    def read(self, key: str) -> bytes | None:
        number = self._number or self._find()
        if number is None:
            return None
        # SQLite would take 5 for "5".
        row = self._row(GET, (number, key if type(key) is str else validate_key(key)))
        return None if row is None else row[0]

    def write(self, key: str, data: bytes) -> None:
        number = self._number or self._find_or_make()
        row = number, key, bytearray(data) if len(data) < COPIED_BYTES else data
        if number in self._expiring:
            self._run_write(deadlines.change, number, self.now_ms(), False, SET, row)
        else:
            self._run_write(change, SET, row)

    def delete(self, key: str) -> bool:
        number = self._find()
        return number is not None and self._remove(number, deadlines.remove, key) > 0

    def len(self) -> int:
        number = self._find()
        if number is None:
            return 0
        row = None if number in self._expiring else self._row(COUNT, (number,))
        if number in self._expiring or (row is not None and row[1] is not None):
            self._expiring.add(number)
            row = self._shared.row(LIVE_COUNT, (time_bytes(self.now_ms()), number))
        if row is None or type(row[0]) is not int:
            raise CorruptValueError(f"{self._path} is damaged: it has no count for namespace {self.namespace!r}")
        return int(row[0])

    def keys(self) -> Iterator[str]:
        return self.key_range(None, None, False)

    def close(self) -> None:
        self._close(None)

    def __del__(self) -> None:
        self._close(0)

    def _close(self, wait_s: float | None) -> None:
        database = self._database
        if database is not None:
            self._idle = []
            self._run_write = partial(_refuse, self.namespace)
            database.leave(self._user, wait_s)
            self._database = None

    # --- overrides of the defaults, faster in SQLite ---

    def exists(self, key: str) -> bool:
        number = self._number or self._find()
        if number is None:
            return False
        row = self._row(EXISTS, (number, key if type(key) is str else validate_key(key)))
        return row is not None and (row[0] is None or super().exists(key))

    def read_many(self, keys: list[str]) -> dict[str, bytes]:
        number = self._find()
        if number is None:
            return {}
        frames = self._shared.read(read_all, number, keys)
        return {key: frames[name] for key in keys if (name := key.encode()) in frames}

    def write_many(self, items: Mapping[str, bytes]) -> None:
        number = self._find_or_make()
        if number in self._expiring:
            self._shared.write(deadlines.write_all, number, self.now_ms(), False, items)
        else:
            self._shared.write(write_all, number, items)

    def delete_many(self, keys: list[str]) -> int:
        number = self._find()
        if number is None:
            return 0
        return self._remove(number, deadlines.remove_all, keys)

    def clear(self) -> None:
        number = self._find()
        if number is not None:
            self._shared.change(REMOVE_ALL, (number,))

    def compare_and_write(self, key: str, old: bytes | None, new: bytes | None) -> bool:
        # Each branch is one statement, which takes the write lock before it reads the old value.
        if old is None:
            if new is None:
                return not self.exists(key)
            number = self._find_or_make()
            return self._change(number, new, ADD, (number, key, new)) > 0
        existing = self._find()
        if existing is None:
            return False
        number = existing
        if new is None:
            return self._change(number, old, REMOVE_EQUAL, (number, key, old)) > 0
        return self._change(number, new, REPLACE, (new, number, key, old)) > 0

    def write_until(self, key: str, data: bytes, deadline_ms: int) -> None:
        number = self._find_or_make()
        self._change(number, data, SET, (number, key, data))

    def write_many_until(self, items: Mapping[str, bytes], deadlines_ms: Mapping[str, int]) -> None:
        number = self._find_or_make()
        self._shared.write(deadlines.write_all, number, self.now_ms(), number not in self._expiring, items)
        self._expiring.add(number)

    def reclaim(self, limit: int) -> int:
        number = self._find()
        if number is None:
            return 0
        if number not in self._expiring:
            self.len()  # reads whether it has deadlines
        if number not in self._expiring:
            return 0
        return self._shared.write(deadlines.take, number, self.now_ms(), limit)

    def apply(
        self,
        changes: Mapping[str, bytes | None],
        expected: Mapping[str, bytes | None],
        ranges: Sequence[KeyRange] = (),
    ) -> bool:
        return apply(self._shared, {self.namespace: Commit(changes, expected, ranges)})

    def increment(self, key: str, by: float = 1, default: float = 0, ttl_s: float | None = None) -> int | float:
        increment = validate_key(key), self.increment_frame, by, default, ttl_s
        number = self._shared.write(replace, self._find_or_make(), *increment)
        return super().increment(key, by, default, ttl_s) if number is None else number

    def read_range(self, start: str | None, stop: str | None, reverse: bool) -> Iterator[tuple[str, bytes]]:
        for keys, frames in self.read_chunks(start, stop, reverse):
            yield from zip(keys, frames, strict=True)

    def read_chunks(
        self, start: str | None, stop: str | None, reverse: bool
    ) -> Iterator[tuple[Sequence[str], Sequence[bytes]]]:
        for rows in self._range(self._rows, start, stop, reverse):
            try:
                keys = [name.decode() for name, _ in rows]
            except _NOT_A_KEY:
                # Yield the items before the damaged key.
                for name, data in rows:
                    yield [self._text(name)], [data]
            else:
                yield keys, [data for _, data in rows]

    def key_range(self, start: str | None, stop: str | None, reverse: bool) -> Iterator[str]:
        return chain.from_iterable(map(self._keys, self._range(self._live_keys, start, stop, reverse)))

    @property
    def lock_scope(self) -> Hashable:
        return ("sqlite", self._path, self.namespace)

    # --- inside ---

    def _keys(self, rows: list[Any]) -> Iterable[str]:
        try:
            return [name.decode() for name, _ in rows]
        except _NOT_A_KEY:
            return (self._text(name) for name, _ in rows)

    def _row(self, sql: str, parameters: tuple[object, ...]) -> Any:
        """Return the first row, or None: a faster `Database.row`."""
        idle = self._idle
        try:
            reader = idle.pop()
        except IndexError:
            return self._shared.row(sql, parameters)
        try:
            row = reader.execute(sql, parameters).fetchone()
        except BaseException as error:
            reader.close()  # as in `Readers.run`
            if not is_from_sqlite(error):
                raise
        else:
            idle += (reader,)  # as in `Readers.run`
            del reader
            if self._idle is not idle:
                self._trim()  # closed meanwhile
            return row
        # The file may only be busy: `Database.row` waits, or raises what is wrong.
        return self._shared.row(sql, parameters)

    def _range(
        self, read: Callable[..., _Chunk], start: str | None, stop: str | None, reverse: bool
    ) -> Iterator[list[Any]]:
        """Yield chunks of rows of two columns, each chunk read in one transaction by `read` and never empty."""
        number = self._find()
        if number is None:
            return
        order = "DESC" if reverse else "ASC"
        # A bound need not be a valid key: lone surrogates too have their place in code point order.
        low = b"" if start is None else start.encode("utf-8", "surrogatepass")
        high = AFTER_ALL_KEYS if stop is None else stop.encode("utf-8", "surrogatepass")
        limit = _FIRST_CHUNK
        while True:
            rows, complete = read(order, (number, low, high), limit)
            if rows:
                yield rows
            if complete:
                return
            last: bytes = rows[-1][0]
            low, high = (low, last) if reverse else (last + b"\0", high)
            limit = min(limit * 4, _LARGEST_CHUNK)

    def _rows(self, order: str, bounds: _Bounds, limit: int) -> _Chunk:
        return self._shared.chunk(RANGE.format(order), bounds, limit)

    def _live_keys(self, order: str, bounds: _Bounds, limit: int) -> _Chunk:
        number = bounds[0]
        if number not in self._expiring:
            rows = self._shared.rows(KEYS.format(order), (number, *bounds, limit))
            if not rows or rows[0][1] is None:
                return rows, len(rows) < limit
            self._expiring.add(number)
        rows = self._shared.rows(LIVE_KEYS.format(order), (*bounds, time_bytes(self.now_ms()), limit))
        return rows, len(rows) < limit

    def _change(self, number: int, frame: bytes, sql: str, row: tuple[object, ...]) -> int:
        """Run one writing statement, which writes or removes `frame`; return how many rows it changed."""
        is_known = number in self._expiring
        if not is_known and frame[:1] != b"T":
            return self._shared.change(sql, row)
        changed = self._shared.write(deadlines.change, number, self.now_ms(), not is_known, sql, row)
        if changed:
            self._expiring.add(number)
        return changed

    def _remove(self, number: int, remove: Callable[..., int | None], keys: str | list[str]) -> int:
        """Return how many of `keys`, which are or is removed, had not expired."""
        if number not in self._expiring:
            removed = self._shared.write(remove, number, keys)
            if removed is not None:
                return removed
            self._expiring.add(number)
        some = [keys] if isinstance(keys, str) else keys
        return self._shared.write(deadlines.remove_all_live, number, self.now_ms(), some)

    def _text(self, name: bytes) -> str:
        try:
            return name.decode()
        except _NOT_A_KEY as error:
            shown = legible(name) if isinstance(name, bytes) else name
            raise CorruptValueError(
                f"{self._path} holds a key in namespace {self.namespace!r} that is not bytes of UTF-8, {shown!r}: "
                "another program wrote it, or it is damaged"
            ) from error

    # --- the namespace in the file ---

    @property
    def _shared(self) -> Database:
        if self._database is None:
            _refuse(self.namespace)
        return self._database

    def _find(self) -> int | None:
        """Return the id of the namespace, or None if it was never written to."""
        if self._number is None:
            self._number = self._shared.number_of(self.namespace)
        return self._number

    def _find_or_make(self) -> int:
        number = self._find()
        if number is None:
            # A separate transaction does no harm: a namespace without entries counts as missing.
            self._shared.change("INSERT INTO namespaces (name) VALUES (?) ON CONFLICT DO NOTHING", (self.namespace,))
            number = self._find()
            assert number is not None, "no row of namespaces is ever deleted"
        return number


def _refuse(namespace: str, *_: object) -> NoReturn:
    raise StoreNotOpenError(f"namespace {namespace!r} is closed; open it again to use it")
