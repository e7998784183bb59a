"""ShelfStorage: the verbs of one namespace, whose values are pickled as Errbot pickles them."""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from datetime import datetime, time
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from hutch import MISSING, CorruptValueError, StorageBase, ValueTypeError, deadlines
from hutch.deadlines import Expiring
from hutch.handlers import raised_by_handler
from hutch.limits import validate_key, validate_value_size

from .database import Database
from .deadlines import has_trailer, set_deadline, split, take_expired, with_trailer
from .shared import SharedShelf, clear_all, compare_and_write, remove_keys, write_changes

if TYPE_CHECKING:
    from .plugin import ShelfPlugin

T = TypeVar("T")

# Errbot's protocol, which a bot on any Python 3 can read.
_PROTOCOL = 2
# The number of values that an iterator reads at once.
_CHUNK_KEYS = 16
# `expire` reclaims so many keys per step.
_EXPIRED_AT_ONCE = 1000


class ShelfStorage(StorageBase):
    """One namespace. Thread-safe: one call at a time. Not a `hutch.EncodedStorage`, because it uses no codec."""

    def __init__(self, plugin: ShelfPlugin, namespace: str, shelf: SharedShelf) -> None:
        self.capabilities = plugin.capabilities
        self._plugin, self._namespace = plugin, namespace
        self._where = f"namespace {namespace!r} of the {plugin.name} storage"
        self._shelf = shelf
        self._wait_s = plugin.wait_s

    def __repr__(self) -> str:
        return f"<ShelfStorage {self._namespace!r} of {self._plugin!r}>"

    def set(self, key: str, value: Any) -> None:
        self._shelf.write(self._wait_s, write_changes, {validate_key(key).encode(): self._pickle(key, value)})

    def get(self, key: str) -> Any:
        data = self._read(key)
        if data is None:
            raise KeyError(key)
        return self._unpickle(key, data)

    def remove(self, key: str) -> None:
        if not self.remove_many([key]):
            raise KeyError(key)

    def len(self) -> int:
        return self._shelf.read(self._wait_s, len) or 0

    def keys(self) -> Iterable[str]:
        keys = self._shelf.read(self._wait_s, lambda database: database.keys())
        return [decode_key(key, self._where) for key in keys or ()]

    def close(self) -> None:
        self._shelf.leave(self, self._wait_s)

    def contains(self, key: str) -> bool:
        encoded = validate_key(key).encode()
        return bool(self._shelf.read(self._wait_s, lambda database: database.contains(encoded)))

    def set_many(self, items: Mapping[str, Any]) -> None:
        # Pickle everything before writing anything: a bad value refuses the whole batch.
        pickled = {validate_key(key).encode(): self._pickle(key, value) for key, value in items.items()}
        if pickled:
            self._shelf.write(self._wait_s, write_changes, pickled)

    def remove_many(self, keys: Iterable[str]) -> int:
        encoded = [validate_key(key).encode() for key in dict.fromkeys(keys)]
        return self._shelf.write_if_there(self._wait_s, remove_keys, encoded) or 0

    def items(self) -> Iterator[tuple[str, Any]]:
        return self._items(self.keys())

    def scan(
        self, prefix: str = "", start: str | None = None, stop: str | None = None, reverse: bool = False
    ) -> Iterator[tuple[str, Any]]:
        return self._items(self.scan_keys(prefix, start, stop, reverse))

    def _items(self, keys: Iterable[str]) -> Iterator[tuple[str, Any]]:
        rest = iter(keys)
        while chunk := list(islice(rest, _CHUNK_KEYS)):
            for key, data in self._read_all(chunk).items():
                if data is not None:
                    yield key, self._unpickle(key, data)

    def _read_all(self, keys: list[str]) -> dict[str, bytes | None]:
        return self._look(lambda database: {key: database.get(key.encode()) for key in keys}, _have_trailers) or {}

    def clear(self) -> None:
        self._shelf.write_if_there(self._wait_s, clear_all)

    def get_for_update(self, key: str) -> tuple[Any, object]:
        data = self._read(key)
        return (MISSING, None) if data is None else (self._unpickle(key, data), data)

    def compare_and_swap(self, key: str, token: Any, value: Any, ttl_s: float | None = None) -> bool:
        if value is not MISSING:
            deadline_ms = self._deadline_of(key, token) if ttl_s is None else _deadline_after(ttl_s)
            change = self._stored({validate_key(key): value}, {key: deadline_ms})
            write = self._shelf.write if deadline_ms is None else self._shelf.write_with_deadlines
            return write(self._wait_s, compare_and_write, key, token, change)
        if token is None:
            return self._read(key) is None
        removal = {validate_key(key).encode(): None}
        return bool(self._shelf.write_if_there(self._wait_s, compare_and_write, key, token, removal))

    # --- time to live ---

    def set_with_ttl(self, key: str, value: Any, ttl_s: float) -> None:
        self.set_many_with_ttl({key: value}, ttl_s)

    def set_many_with_ttl(self, items: Mapping[str, Any], ttl_s: float) -> None:
        deadline_ms = _deadline_after(ttl_s)
        self.set_many_until(items, {} if deadline_ms is None else dict.fromkeys(items, deadline_ms))

    def set_many_until(self, items: Mapping[str, Any], deadlines_ms: Mapping[str, int]) -> None:
        if deadlines_ms:
            self._shelf.write_with_deadlines(self._wait_s, write_changes, self._stored(items, deadlines_ms))
        else:
            self.set_many(items)

    def deadline(self, key: str) -> int | None:
        data = self._read(key)
        if data is None:
            raise KeyError(key)
        return self._deadline_of(key, data)

    def ttl_s(self, key: str) -> float | None:
        deadline_ms = self.deadline(key)
        return None if deadline_ms is None else deadlines.seconds_left(key, deadline_ms, deadlines.now_ms())

    def touch(self, key: str, ttl_s: float) -> bool:
        deadline_ms = _deadline_after(ttl_s)
        if self._read(key) is None:
            return False
        write = self._shelf.write if deadline_ms is None else self._shelf.write_with_deadlines
        return write(self._wait_s, set_deadline, key.encode(), deadline_ms, self._value_of(key))

    def expire(self, limit: int | None = None) -> int:
        expired = 0
        while (step := _EXPIRED_AT_ONCE if limit is None else min(limit - expired, _EXPIRED_AT_ONCE)) > 0:
            taken = self._shelf.write_if_there(self._wait_s, take_expired, step) or 0
            expired += taken
            if taken < step:
                break
        return expired

    @property
    def lock_scope(self) -> Hashable:
        return ("shelf", self._shelf.place)

    def join(self) -> None:
        """Open the files, if they exist, and keep them open until `close`."""
        self._shelf.join(self)
        self._shelf.validate_in_place(self._wait_s)

    def empty(self) -> None:
        """Remove every key atomically, and the files unless another handle of this process uses them."""
        self._shelf.empty(self._wait_s)

    def set_pickles(self, pickles: Mapping[str, bytes | Expiring]) -> None:
        """Set each key to the value of its pickle, unloaded, with the deadline of an `Expiring`; all or none."""
        stored: dict[str, bytes] = {}
        for key, pickled in pickles.items():
            encoded = validate_key(key).encode()
            stored[key] = with_trailer(encoded, *pickled) if isinstance(pickled, Expiring) else pickled
            validate_value_size(key, len(stored[key]))
        self.restore_pickles(stored)

    def restore_pickles(self, pickles: Mapping[str, bytes]) -> None:
        """Set each key to what was stored for it, with its deadline, also keys that Errbot alone accepts."""
        write = self._shelf.write_with_deadlines if _have_trailers(pickles) else self._shelf.write
        write(self._wait_s, write_changes, {key.encode(): data for key, data in pickles.items()})

    def compact(self) -> tuple[int, int]:
        """Rewrite the files without free space; return their bytes before and after."""
        return self._shelf.compact(self._wait_s)

    def _read(self, key: str) -> bytes | None:
        # Errbot may have stored a key beyond hutch's limits, so the limits are validated only for a missing key.
        data = None
        if isinstance(key, str):
            encoded = key.encode(errors="replace")
            data = self._look(lambda database: database.get(encoded), has_trailer)
        if data is None:
            validate_key(key)
        return data

    def _look(self, read: Callable[[Database], T | None], has_deadline: Callable[[T], bool]) -> T | None:
        """Return ``read(database)``, or None if there is no data."""
        stored = self._shelf.read(self._wait_s, read)
        if stored is None or self._shelf.expires or not has_deadline(stored):
            return stored
        # The marker file is missing, as in a copy of the other files.
        self._shelf.expires = True
        return self._shelf.read(self._wait_s, read)

    def _stored(self, items: Mapping[str, Any], deadlines_ms: Mapping[str, int | None]) -> dict[bytes, bytes]:
        """Return what is stored for each of `items`. Raises ValueTypeError and ValueLimitError."""
        stored: dict[bytes, bytes] = {}
        for key, value in items.items():
            encoded = validate_key(key).encode()
            stored[encoded] = with_trailer(encoded, self._pickle(key, value), deadlines_ms.get(key))
            validate_value_size(key, len(stored[encoded]))
        return stored

    def _deadline_of(self, key: str, data: bytes | None) -> int | None:
        return None if data is None else split(key.encode(), data, self._value_of(key))[1]

    def _value_of(self, key: str) -> str:
        return f"the value of key {key!r} in {self._where}"

    def _pickle(self, key: str, value: object) -> bytes:
        """Return the pickle of `value` as Errbot would write it. Raises ValueTypeError."""
        buffer = io.BytesIO()
        try:
            _Pickler(buffer, _PROTOCOL).dump(value)
        except MemoryError:
            raise
        except Exception as error:
            if raised_by_handler(error):
                raise
            raise ValueTypeError(
                f"key {key!r}: a {type(value).__qualname__} cannot be pickled, as this engine must "
                f"({type(error).__name__}); store what it is made of instead"
            ) from error
        data = buffer.getvalue()
        validate_value_size(key, len(data))
        return data

    def _unpickle(self, key: str, data: bytes) -> Any:
        if has_trailer(data):
            split(key.encode(), data, self._value_of(key))
        # Without the lock: unpickling runs code, which may use this storage.
        try:
            return pickle.loads(data)
        except MemoryError:
            raise
        except Exception as error:
            if raised_by_handler(error):
                raise
            if isinstance(error, ImportError | AttributeError):
                raise CorruptValueError(
                    f"the value of key {key!r} in {self._where} is an object of a class that cannot be found here: "
                    f"{error}. Read it in the application that wrote it"
                ) from error
            # Do not quote the error: its text may contain the value.
            raise CorruptValueError(
                f"the value of key {key!r} in {self._where} cannot be unpickled ({type(error).__name__}); it was "
                "damaged, or not written by shelve"
            ) from error


def _deadline_after(ttl_s: float) -> int | None:
    if deadlines.validate_ttl(ttl_s) == math.inf:
        return None
    return deadlines.deadline_after(ttl_s, deadlines.now_ms())


def _have_trailers(stored: Mapping[str, bytes | None]) -> bool:
    return any(data is not None and has_trailer(data) for data in stored.values())


def decode_key(key: bytes, where: str) -> str:
    """Return the text of `key`; `where` begins the message of an error. Raises CorruptValueError."""
    try:
        return key.decode()
    except UnicodeDecodeError:
        raise CorruptValueError(
            f"{where} has a key that is not UTF-8, {key[:60]!a}: neither Errbot nor hutch wrote it. "
            "Remove it with dbm.open"
        ) from None


class _Pickler(pickle.Pickler):
    """The pickler of `shelve`, except that it keeps `fold`, which marks the second 2:30 when clocks go back.

    Protocol 2 omits `fold`; any Python 3 can still read pickles that include it.
    """

    def reducer_override(self, value: object) -> Any:
        if isinstance(value, datetime | time) and value.fold:
            return value.__reduce_ex__(4)
        return NotImplemented
