"""TypedLayer: check each value that is set against one type, and make values of that type of what is read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from ..codec.frame import MSGPACK, RESIDUE, crc32
from ..contract import MISSING, StorageBase
from ..encoded import EncodedStorage
from ..errors import CorruptValueError, ValueTypeError
from ..handlers import raised_by_handler
from ..layers.layer import Layer
from .shape import MismatchError, Shape

# After so many values that had to be decoded twice, a handle decodes in two steps at once.
_FAILURES = 100


class TypedLayer(Layer):
    """The layer behind `Store.open(name, type=...)`; the outermost."""

    def __init__(self, inner: StorageBase, shape: Shape, namespace: str) -> None:
        super().__init__(inner)
        self._shape, self._namespace = shape, namespace
        self._failures = 0
        # A decoder that makes a value of packed bytes at once, without a dict in between.
        self._decode: Callable[[bytes], Any] | None = None
        if isinstance(inner, EncodedStorage) and inner.frame_codec.codec.headers[0] == MSGPACK:
            self._decode = getattr(shape, "decode", None)

    def dump(self, key: str, value: Any) -> Any:
        """Return what is stored of `value`. Raises ValueTypeError if it is not of the type."""
        try:
            return self._shape.dump(value)
        except MismatchError as error:
            wrong = error
        raise ValueTypeError(
            f"key {key!r} of namespace {self._namespace!r}: the value{_place(wrong)} is {wrong.actual}, and its type "
            f"is {wrong.expected}; nothing was written. Set a value of the type, or open the namespace without type="
        )

    def load(self, key: str, plain: Any) -> Any:
        """Return the value of which `plain` is stored. Raises CorruptValueError if it is not of the type."""
        try:
            return self._shape.load(plain)
        except MismatchError as error:
            wrong = error
        raise CorruptValueError(
            f"key {key!r} of namespace {self._namespace!r}: the stored value{_place(wrong)} is {wrong.actual}, and its "
            f"type is {wrong.expected}; another version of the type wrote it, or a namespace without a type. Open the "
            "namespace without type= to read and replace it"
        )

    def _dump_all(self, items: Mapping[str, Any]) -> dict[str, Any]:
        return {key: self.dump(key, value) for key, value in items.items()}

    def _load_all(self, items: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
        for key, plain in items:
            yield key, self.load(key, plain)

    @property
    def has_apply(self) -> bool:
        # Transactions of the store read and write the plain values, those of the namespace values of the type.
        return self._inner.has_apply

    # --- reads ---

    def get(self, key: str) -> Any:
        decode = self._decode
        if decode is None:
            return self.load(key, self._inner.get(key))
        engine: Any = self._inner
        try:
            data = engine.read(key)
            if data[0] == MSGPACK and crc32(data, crc32(key.encode()) if engine.checksum_covers_key else 0) == RESIDUE:
                return decode(data[1:-5])
        except Exception as error:
            # A missing or invalid key, or a value that is stored in another way: the longer way tells them apart.
            if raised_by_handler(error):
                raise
        value = self.load(key, engine.get(key))
        self._decode_less()
        return value

    def _decode_less(self) -> None:
        """Give up decoding at once if most values cannot be decoded so, such as structs that hold a datetime."""
        self._failures += 1
        if self._failures >= _FAILURES:
            self._decode = None

    def get_many(self, keys: Iterable[str]) -> dict[str, Any]:
        return dict(self._load_all(self._inner.get_many(keys).items()))

    def items(self) -> Iterator[tuple[str, Any]]:
        return self._load_all(self._inner.items())

    def scan(
        self, prefix: str = "", start: str | None = None, stop: str | None = None, reverse: bool = False
    ) -> Iterator[tuple[str, Any]]:
        return self._load_all(self._inner.scan(prefix, start, stop, reverse))

    # --- writes ---

    def set(self, key: str, value: Any) -> None:
        self._inner.set(key, self.dump(key, value))

    def set_many(self, items: Mapping[str, Any]) -> None:
        self._inner.set_many(self._dump_all(items))

    def set_with_ttl(self, key: str, value: Any, ttl_s: float) -> None:
        self._inner.set_with_ttl(key, self.dump(key, value), ttl_s)

    def set_many_with_ttl(self, items: Mapping[str, Any], ttl_s: float) -> None:
        self._inner.set_many_with_ttl(self._dump_all(items), ttl_s)

    def set_many_until(self, items: Mapping[str, Any], deadlines_ms: Mapping[str, int]) -> None:
        self._inner.set_many_until(self._dump_all(items), deadlines_ms)

    def get_for_update(self, key: str) -> tuple[Any, object]:
        plain, token = self._inner.get_for_update(key)
        return (plain if plain is MISSING else self.load(key, plain)), token

    def compare_and_swap(self, key: str, token: object, value: Any, ttl_s: float | None = None) -> bool:
        plain = value if value is MISSING else self.dump(key, value)
        return self._inner.compare_and_swap(key, token, plain, *(() if ttl_s is None else (ttl_s,)))

    def compare_and_set(self, key: str, expected: Any, value: Any, ttl_s: float | None = None) -> bool:
        before, after = (one if one is MISSING else self.dump(key, one) for one in (expected, value))
        return self._inner.compare_and_set(key, before, after, *(() if ttl_s is None else (ttl_s,)))

    def modify(self, key: str, fn: Callable[[Any], Any], default: Any = MISSING, ttl_s: float | None = None) -> Any:
        # The default of StorageBase, which calls the two primitives above.
        return StorageBase.modify(self, key, fn, default, ttl_s)

    def increment(self, key: str, by: float = 1, default: float = 0, ttl_s: float | None = None) -> int | float:
        for number in (by, default):
            self.dump(key, number)
        return self._inner.increment(key, by, default, *(() if ttl_s is None else (ttl_s,)))


def _place(wrong: MismatchError) -> str:
    return f" at {wrong.path}" if wrong.path else ""
