"""TransactionNamespace: one namespace inside a transaction, and what it has read, written and scanned."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final, NoReturn, Protocol

from ..codec.frame import set_deadline
from ..contract import StorageBase
from ..contract.commit import Commit, KeyRange
from ..deadlines import DEADLINE, deadline_of, is_expired
from ..encoded import EncodedStorage
from ..encoded.storage import key_bounds
from ..errors import CapabilityError, ConflictError
from ..limits import validate_key, validate_range

# A time at which nothing has expired.
_BEFORE_ALL: Final = -1


def refuse_name(owner: object, name: str) -> NoReturn:
    """Raise the AttributeError for a name that a transaction or its namespace lacks, with what to write instead."""
    from ..hints import TRANSACTION_SPELLINGS, spelling_of

    message = f"{type(owner).__name__!r} object has no attribute {name!r}{spelling_of(name, TRANSACTION_SPELLINGS)}"
    raise AttributeError(message, name=name, obj=owner)


class TypedValues(Protocol):
    """The values of one type, in a namespace that was opened with `type`."""

    def dump(self, key: str, value: Any) -> Any:
        """Return what is stored of `value`. Raises ValueTypeError if it is not of the type."""

    def load(self, key: str, plain: Any) -> Any:
        """Return the value of which `plain` is stored. Raises CorruptValueError if it is not of the type."""


class TransactionNamespace:
    """One namespace inside a transaction: reads and writes of its keys, with the transaction's own writes visible."""

    __slots__ = (
        "_engine",
        "_expired",
        "_must_be_usable",
        "_ranges",
        "_reads",
        "_storage",
        "_typed",
        "_writes",
        "namespace",
    )

    def __init__(
        self, must_be_usable: Callable[[], None], namespace: str, storage: StorageBase, typed: TypedValues | None
    ) -> None:
        engine = storage.unlayered
        assert isinstance(engine, EncodedStorage), "only a storage of bytes has `apply`"
        self._must_be_usable, self._storage, self._engine = must_be_usable, storage, engine
        self._typed = typed
        self.namespace = namespace
        # The frame of each key when it was first read; None: it was missing.
        self._reads: dict[str, bytes | None] = {}
        # The keys whose frame had expired when it was read: to the block they are missing.
        self._expired: set[str] = set()
        # The new frame of each key; None: it is to be removed.
        self._writes: dict[str, bytes | None] = {}
        self._ranges: list[_Scanned] = []

    def __repr__(self) -> str:
        return f"<namespace {self.namespace!r} in a transaction>"

    def __getitem__(self, key: str) -> Any:
        """Return the value of `key`. Raises KeyError if it is missing."""
        key, frame = self._read(key)
        if frame is None:
            raise KeyError(key)
        return self._decode(key, frame)

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value of `key`, or `default` if it is missing."""
        key, frame = self._read(key)
        return default if frame is None else self._decode(key, frame)

    def __contains__(self, key: str) -> bool:
        return self._read(key)[1] is not None

    def set(self, key: str, value: Any, *, ttl_s: float | None = None) -> None:
        """Set `key` to `value` when the transaction commits; it expires `ttl_s` seconds after this call.

        Key and value are validated and encoded now. `ttl_s` is as in `hutch.Namespace.set`.
        """
        self._must_be_writable()
        key = validate_key(key)
        if ttl_s is None:
            ttl_s = self._storage.default_ttl_s
        deadline_ms = None if ttl_s is None else self._engine.deadline_after(ttl_s)
        if self._typed is not None:
            value = self._typed.dump(key, value)
        self._writes[key] = self._engine.encode_value(key, value, deadline_ms)

    __setitem__ = set

    def touch(self, key: str, ttl_s: float) -> bool:
        """Give `key` another deadline when the transaction commits; return whether it exists. A read and a write."""
        self._must_be_writable()
        deadline_ms = self._engine.deadline_after(ttl_s)
        key, frame = self._read(key)
        if frame is not None:
            self._decode(key, frame)  # raises CorruptValueError for a damaged frame
            self._writes[key] = set_deadline(frame, deadline_ms, self._engine.key_crc_of(key))
        return frame is not None

    def __delitem__(self, key: str) -> None:
        self._must_be_writable()
        key, frame = self._read(key)
        if frame is None:
            raise KeyError(key)
        self._writes[key] = None

    def scan(
        self, prefix: str = "", start: str | None = None, stop: str | None = None, reverse: bool = False
    ) -> Iterator[tuple[str, Any]]:
        """Yield the items of `hutch.Namespace.scan`, with the changes of this transaction; see there.

        What was scanned must still be the same at the commit: a key that others add to it is a conflict. A scan that is
        ended early covers the keys up to where it ended. Raises CapabilityError if the engine lacks `snapshot`.
        """
        scanned = self._scan("scan", prefix, start, stop, reverse)
        return ((key, self._decode(key, frame)) for key, frame in scanned)

    def scan_keys(
        self, prefix: str = "", start: str | None = None, stop: str | None = None, reverse: bool = False
    ) -> Iterator[str]:
        """Yield the keys that `scan` would yield. Their values count as read."""
        return (key for key, _ in self._scan("scan_keys", prefix, start, stop, reverse))

    def _refuse(self, *_: object) -> NoReturn:
        raise TypeError(
            "a namespace in a transaction has no len() and no iteration, which would read all of it: use scan() or "
            "scan_keys()"
        )

    __len__ = __iter__ = __reversed__ = _refuse

    def __bool__(self) -> bool:
        return True

    if not TYPE_CHECKING:  # type checkers report an unknown name themselves

        def __getattr__(self, name: str) -> NoReturn:
            refuse_name(self, name)

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError(
            "a namespace of a transaction cannot be pickled or copied: a copy would change the same transaction. "
            "dict(tx[name].scan()) is a copy of its items"
        )

    # --- inside ---

    def _must_be_writable(self) -> None:
        self._must_be_usable()
        if (refusal := self._storage.write_refusal) is not None:
            raise refusal

    def _decode(self, key: str, frame: bytes) -> Any:
        # Whether it has expired was judged when it was read.
        value = self._engine.decode_live(key, frame, _BEFORE_ALL)
        return value if self._typed is None else self._typed.load(key, value)

    def _read(self, key: str) -> tuple[str, bytes | None]:
        """Return `key` validated, and its frame: this transaction's, else the one first read, else the stored one."""
        self._must_be_usable()
        key = validate_key(key)
        if key in self._writes:
            return key, self._own_frame(key)
        if key in self._reads:
            return key, None if key in self._expired else self._reads[key]
        return key, self._remember(key, self._engine.read(key))

    def _own_frame(self, key: str) -> bytes | None:
        frame = self._writes.get(key)
        return None if frame is not None and self._has_expired(key, frame) else frame

    def _has_expired(self, key: str, frame: bytes) -> bool:
        return frame[0] == DEADLINE and is_expired(frame, self._engine.now_ms(), self._engine.key_crc_of(key))

    def _remember(self, key: str, frame: bytes | None) -> bytes | None:
        """Record that `key` was read as `frame`; return it, or None if it has expired.

        Raises ConflictError if the key was read differently before.
        """
        if key not in self._reads and frame is not None and self._has_expired(key, frame):
            self._expired.add(key)
        if self._reads.setdefault(key, frame) != frame:
            raise self._changed(key)
        return None if key in self._expired else frame

    def _scan(
        self, verb: str, prefix: str, start: str | None, stop: str | None, reverse: bool
    ) -> Iterator[tuple[str, bytes]]:
        self._must_be_usable()
        validate_range(verb, prefix, start, stop)
        if "snapshot" not in self._engine.capabilities:
            raise CapabilityError(
                f"the engine of namespace {self.namespace!r} cannot check at a commit what was scanned (it lacks the "
                f"capability `snapshot`), so {verb}() does not work in a transaction. Read single keys, or scan outside"
            )
        scanned = _Scanned(*key_bounds(prefix, start, stop), reverse)
        return self._merged(scanned, self._stored(scanned))

    def _stored(self, scanned: _Scanned) -> Iterator[tuple[str, bytes]]:
        """Yield the stored items of a scan, and record each one before it is yielded."""
        self._must_be_usable()
        self._ranges.append(scanned)
        for keys, frames in self._engine.read_chunks(scanned.start, scanned.stop, scanned.reverse):
            for key, frame in zip(keys, frames, strict=True):
                scanned.keys.append(key)
                if (live := self._remember(key, frame)) is not None:
                    yield key, live
                    self._must_be_usable()
        scanned.is_complete = True

    def _merged(self, scanned: _Scanned, stored: Iterator[tuple[str, bytes]]) -> Iterator[tuple[str, bytes]]:
        """Yield the items of `stored` with this transaction's changes, in order."""
        added = [key for key in self._writes if scanned.covers(key)]
        # The next one last.
        added.sort(reverse=not scanned.reverse)
        for key, frame in stored:
            while added and (added[-1] > key if scanned.reverse else added[-1] < key):
                yield from self._own(added.pop())
            if added and added[-1] == key:
                added.pop()
            if key not in self._writes:
                yield key, frame
            else:
                yield from self._own(key)
        while added:
            yield from self._own(added.pop())

    def _own(self, key: str) -> Iterator[tuple[str, bytes]]:
        frame = self._own_frame(key)
        if frame is not None:
            yield key, frame
            self._must_be_usable()

    # --- the commit ---

    def _commit(self) -> Commit | None:
        """Return what a commit must do to this namespace; None if nothing was read or written."""
        ranges = [range_ for scanned in self._ranges if (range_ := scanned.range()) is not None]
        if not (self._writes or self._reads or ranges):
            return None
        return Commit(self._writes, self._reads, ranges)

    def _expired_since(self) -> ConflictError | None:
        """Return the error for a key that was read and has expired since; None if no key has."""
        now_ms: int | None = None
        for key, frame in self._reads.items():
            if frame is not None and frame[0] == DEADLINE and key not in self._expired:
                now_ms = self._engine.now_ms() if now_ms is None else now_ms
                if (deadline_of(frame) or 0) <= now_ms:
                    return self._changed(key, "has expired")
        return None

    def _conflict(self) -> ConflictError | None:
        """Return the error for something that was read and has changed since; None if everything still holds.

        The frames of keys that had expired may have been removed meanwhile: that changes nothing for the caller.
        """
        frames = self._engine.read_many(list(self._reads))
        for key, frame in list(self._reads.items()):
            if frames.get(key) != frame and not self._adopt(key, frames.get(key)):
                return self._changed(key)
        for scanned in self._ranges:
            if (range_ := scanned.range()) is not None and (conflict := self._conflict_in(scanned, range_)) is not None:
                return conflict
        return self._expired_since()

    def _adopt(self, key: str, frame: bytes | None) -> bool:
        """Treat `frame` as what was read of `key` if both are missing to the caller; return whether they are."""
        was_missing = self._reads.get(key) is None or key in self._expired
        if not was_missing or not (frame is None or self._has_expired(key, frame)):
            return False
        self._reads[key] = frame
        self._expired.add(key)
        return True

    def _conflict_in(self, scanned: _Scanned, range_: KeyRange) -> ConflictError | None:
        now: dict[str, bytes] = {}
        for keys, frames in self._engine.read_chunks(range_.start, range_.stop, False):
            now.update(zip(keys, frames, strict=True))
        for key in sorted(now.keys() ^ set(range_.keys)):
            if not self._adopt(key, now.get(key)):
                return self._changed(key)
        scanned.adopt(now)
        return None

    def _changed(self, key: str, what: str = "was changed by someone else") -> ConflictError:
        return ConflictError(
            f"key {key!r} of namespace {self.namespace!r} {what} since this transaction read or scanned it; nothing "
            "was written. Run the block again, or pass it as a function to store.transact()"
        )


class _Scanned:
    """The part of a namespace that one scan has read so far."""

    __slots__ = ("is_complete", "keys", "reverse", "start", "stop")

    def __init__(self, start: str | None, stop: str | None, reverse: bool) -> None:
        self.start, self.stop, self.reverse = start, stop, reverse
        self.keys: list[str] = []
        self.is_complete = False

    def covers(self, key: str) -> bool:
        return (self.start is None or key >= self.start) and (self.stop is None or key < self.stop)

    def range(self) -> KeyRange | None:
        """Return the range that was read; None if nothing was."""
        if not self.is_complete:
            if not self.keys:
                return None
            if self.reverse:
                self.start = self.keys[-1]
            else:
                self.stop = self.keys[-1] + "\0"  # the next possible key
        return KeyRange(self.start, self.stop, tuple(self.keys))

    def adopt(self, keys: Iterable[str]) -> None:
        """Replace the keys of the range that was read by `keys`."""
        self.keys, self.is_complete = list(keys), True
