"""LmdbReads: the reading verbs of one namespace. layout.py describes the table that they read."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeVar

import lmdb

from hutch import CorruptValueError, EncodedStorage
from hutch.codec.frame import crc32
from hutch.deadlines import DEADLINE, is_expired
from hutch.handlers import raised_by_handler
from hutch.limits import validate_key

from .deadline_index import count_live, has_deadlines, live_keys
from .layout import HAS_DEADLINES, ID_BYTES, NAME, Chunk, decode_text, read_chunks
from .read_cache import ReadCache

if TYPE_CHECKING:
    from .environment import Environment
    from .page_reader import PageEnvironment
    from .plugin import LmdbPlugin
    from .slot import Txn

T = TypeVar("T")
# A key of so many characters has at most 1,024 bytes.
_SURELY_VALID_CHARACTERS = 256
# The look-up of the method would cost a twentieth of `len`.
_from_bytes = int.from_bytes
# Values beyond this size are not copied to know that they are there.
_LARGE_BYTES = 4096
# The errors for a key that LMDB refuses or that is not text; TypeError also while the namespace has no id.
_READ_ERRORS = (lmdb.Error, TypeError, AttributeError, UnicodeError)
#: In place of the id of a transaction. The transaction that follows it does not exist either.
NO_TXN = -2


class LmdbReads(EncodedStorage):
    """The reading half of `LmdbStorage`. Each verb is one transaction; iteration uses one per chunk."""

    def __init__(self, plugin: LmdbPlugin, namespace: str, environment: Environment | PageEnvironment) -> None:
        super().__init__(plugin, namespace)
        self._environment = environment
        # Whether the next key is probably new and may sort last.
        self._appends = True
        self._read_cache = ReadCache(plugin.cache_bytes)
        # Kept here for the speed of `get`. Only frames of the default codec have a body that can be cached.
        self._body = self.frame_codec.body
        self._decode_body = self.frame_codec.decode_body
        # None until the namespace exists, because opening writes nothing; then constant.
        self._name = NAME + namespace.encode()
        self._id: bytes | None = environment.read(lambda txn: txn.get(self._name), None)
        # A transaction at whose end the namespace had no deadlines unless `_expiring` has it: the next need not look.
        self._plain_id = NO_TXN
        self._expiring = environment.expiring
        # Learnt by `contains`.
        self._has_large_values = False

    # --- reading ---

    def read(self, key: str) -> bytes | None:
        try:
            # A dropped transaction is reused by the next reader; `with` would cost as much as the read.
            return self._environment.begin().get(self._id + key.encode())  # type: ignore[operator]  # see below
        except (lmdb.Error, TypeError) as error:
            if raised_by_handler(error):
                raise
        return self._with_id(lambda txn, id_: txn.get(id_ + key.encode()), None)

    def get(self, key: str) -> Any:
        # `read` and the decoding of EncodedStorage, inlined: a call costs a tenth of a read. No variable holds the
        # transaction, because a stored traceback would keep its pages from being reused.
        read_cache = self._read_cache
        current = read_cache.current
        try:
            if current is not None:
                if self._environment.begin().id() == current.id:
                    body = current.bodies.get(key)
                    if body is not None:
                        current.hits += 1
                        return self._decode_body(body)
                else:
                    read_cache.end()
                    current = None
            name = key.encode()
            data = self._environment.begin().get(self._id + name)  # type: ignore[operator]
            if current is None:
                read_cache.reads_left -= 1
                if read_cache.reads_left <= 0:
                    read_cache.begin(self._environment.begin().id())
        except _READ_ERRORS as error:
            if raised_by_handler(error):
                raise
        else:
            if data is None:
                validate_key(key)
                raise KeyError(key)
            if data[:1] == b"T":  # it has a deadline
                return self.decode_value(key, data)
            try:
                value = self.decode_frame(data, crc32(name))
            except CorruptValueError as error:
                if raised_by_handler(error):
                    raise
                return self.decode_value(key, data)  # its error names the key
            # This may cache a newer value that another process committed meanwhile; no later read uses it.
            if current is not None and not current.add(key, data, self._body):
                read_cache.end(too_few_hits=True)
            return value
        return super().get(key)  # not inside `except`: its error would be shown with the driver's

    def contains(self, key: str) -> bool:
        # `exists` and the key's validation by EncodedStorage, inlined. A small value is copied at once, which costs
        # less than to ask a cursor and then the transaction's id.
        if not self._has_large_values:
            try:
                data = self._environment.begin().get(self._id + key.encode())  # type: ignore[operator]
            except _READ_ERRORS as error:
                if raised_by_handler(error):
                    raise
            else:
                if data and key and data[0] != DEADLINE:
                    if len(data) > _LARGE_BYTES:
                        self._has_large_values = True
                    return True
                if data is None and type(key) is str and 0 < len(key) <= _SURELY_VALID_CHARACTERS:
                    return False
        return super().contains(key)

    def exists(self, key: str) -> bool:
        name = key.encode()

        def reading(txn: Txn, id_: bytes) -> bool:
            cursor = txn.cursor()
            if not cursor.set_key(id_ + name):
                return False
            # The value is copied only if it may have a deadline.
            return self._is_plain(txn, id_) or not is_expired(cursor.value(), self.now_ms(), crc32(name))

        return self._with_id(reading, False)

    def len(self) -> int:
        try:
            count = _from_bytes(self._environment.begin().get(self._id), "big")  # type: ignore[arg-type]
            if count < HAS_DEADLINES:
                return count
        except (lmdb.Error, TypeError) as error:
            if raised_by_handler(error):
                raise
        return self._with_id(lambda txn, id_: count_live(txn, id_, self.now_ms()), 0)

    def keys(self) -> Iterator[str]:
        return self.key_range(None, None, False)

    def read_many(self, keys: list[str]) -> dict[str, bytes]:
        def reading(txn: Txn, id_: bytes) -> dict[str, bytes]:
            get = txn.get
            return {key: data for key in keys if (data := get(id_ + key.encode())) is not None}

        return self._with_id(reading, {})

    def read_range(self, start: str | None, stop: str | None, reverse: bool) -> Iterator[tuple[str, bytes]]:
        return chain.from_iterable(zip(*chunk, strict=True) for chunk in self.read_chunks(start, stop, reverse))

    def read_chunks(
        self, start: str | None, stop: str | None, reverse: bool
    ) -> Iterator[tuple[list[str], list[bytes]]]:
        return ((keys, frames) for keys, frames, _ in self.read_crc_chunks(start, stop, reverse))

    def read_crc_chunks(
        self, start: str | None, stop: str | None, reverse: bool
    ) -> Iterator[tuple[list[str], list[bytes], list[int]]]:
        for keys, values in self._chunks(start, stop, reverse):
            encoded = [key[ID_BYTES:] for key in keys]
            crcs = list(map(crc32, encoded))
            try:
                names = list(map(bytes.decode, encoded))
            except UnicodeDecodeError:
                # Yield the items before the damaged key.
                for key, data, key_crc in zip(keys, values, crcs, strict=True):
                    yield [self._key(key)], [data], [key_crc]
            else:
                yield names, values, crcs

    def key_range(self, start: str | None, stop: str | None, reverse: bool) -> Iterator[str]:
        chunks = self._chunks(start, stop, reverse, live=self._live_keys)
        return chain.from_iterable(self._keys(keys) for _, keys in chunks)

    def _keys(self, keys: list[bytes]) -> Iterable[str]:
        try:
            return [key[4:].decode() for key in keys]
        except UnicodeDecodeError:
            return map(self._key, keys)

    def close(self) -> None:
        # Every write is already committed and flushed as configured; the plugin owns the environment.
        pass

    @property
    def lock_scope(self) -> Hashable:
        return ("lmdb", str(self._environment.path), self.namespace)

    # --- inside ---

    def _with_id(self, fn: Callable[[Txn, bytes], T], missing: T) -> T:
        """Return ``fn(txn, id)`` in a read transaction, or `missing` if the namespace was never written to."""

        def reading(txn: Txn) -> tuple[bytes | None, T]:
            id_ = self._id or txn.get(self._name)
            return id_, missing if id_ is None else fn(txn, id_)

        # Assigned after the read, because a reader without a lock reads again if the pages changed.
        unwritten: tuple[bytes | None, T] = (None, missing)
        id_, result = self._environment.read(reading, unwritten)
        self._id = id_ or self._id
        return result

    def _learn_id(self) -> None:
        """Read the namespace's id after its first write was committed: a process that only writes saves a search."""
        self._with_id(lambda _, id_: id_, None)

    def _is_plain(self, txn: Txn, id_: bytes) -> bool:
        """Return whether the namespace has never had a deadline; look only if others may have written since."""
        if txn.id() != self._plain_id or id_ in self._expiring:
            if has_deadlines(txn, id_):
                return False
            self._plain_id = txn.id()
        return True

    def _live_keys(self, txn: Txn, keys: list[bytes]) -> list[bytes]:
        is_plain = not keys or self._is_plain(txn, keys[0][:ID_BYTES])
        return keys if is_plain else live_keys(txn, keys[0][:ID_BYTES], keys, self.now_ms())

    def _key(self, key: bytes) -> str:
        return decode_text(key, 4, f"a key in namespace {self.namespace!r} of the lmdb storage")

    def _chunks(
        self,
        start: str | None,
        stop: str | None,
        reverse: bool,
        live: Callable[[Txn, list[bytes]], list[bytes]] | None = None,
    ) -> Iterator[Chunk]:
        id_ = self._with_id(lambda _, id_: id_, None)
        if id_ is None:
            return iter(())
        return read_chunks(self._environment, self.namespace, id_, (start, stop, reverse), live)
