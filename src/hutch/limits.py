"""The portable limits on keys, namespaces and values: data that one engine can store, every engine can store.

Engines and handles call these functions before they write anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final, NoReturn

from .errors import KeyLimitError, KeyTypeError, NamespaceError, ValueLimitError, ValueTypeError, a_or_an
from .handlers import passes_through, raised_by_handler

#: Longest key, in UTF-8 bytes.
MAX_KEY_BYTES = 1024
#: Longest namespace name, in UTF-8 bytes.
MAX_NAMESPACE_BYTES = 255
#: Largest value, in encoded bytes (512 MiB: the largest string a Redis server takes).
MAX_VALUE_BYTES = 512 * 1024 * 1024

# inspect.CO_COROUTINE, a flag of a code object; importing inspect takes longer than importing hutch.
_CO_COROUTINE: Final = 0x80

#: The most common result types of a function given to `modify`: none is awaitable, so they need no further test.
PLAIN_TYPES: Final = frozenset({int, str, dict, list, float, bool, bytes, tuple, set})

# A code point takes at most four bytes, so a key up to this length needs no counting.
_SHORT = MAX_KEY_BYTES // 4
# The longest key of bytes that an error shows.
_SHOWN_BYTES = 40


def validate_key(key: object) -> str:
    """Return `key` as an exact `str` if every engine can store it.

    Raises KeyTypeError if it is not a `str`, KeyLimitError if it is empty, longer than 1,024 UTF-8 bytes,
    or contains a lone surrogate.
    """
    if type(key) is str and 0 < len(key) <= _SHORT and key.isascii():
        return key
    if not isinstance(key, str):
        raise KeyTypeError(f"a key must be a str, not {_describe(key)}; {_conversion_of(key)}")
    if not key:
        raise KeyLimitError("a key must have at least one character; this one is empty")
    try:
        encoded = str.encode(key)
    except UnicodeEncodeError as error:
        raise KeyLimitError(
            f"a key must be valid Unicode; character {error.start} of {key[:60]!a} is a lone surrogate"
        ) from None
    if len(encoded) > MAX_KEY_BYTES:
        raise KeyLimitError(
            f"a key may have at most {MAX_KEY_BYTES:,} bytes of UTF-8; the key that starts with {key[:40]!r} has "
            f"{len(encoded):,}. Hash the tail of long keys"
        )
    return encoded.decode()


def _describe(key: object) -> str:
    """Return the type of `key`, which is not text, and `key` itself if it is short and plain."""
    kind = type(key)
    if kind in (int, bool, float) and -(10**20) < key < 10**20:  # type: ignore[operator]  # a number
        return f"{kind.__name__} ({key!r})"
    if kind is bytes and len(key) <= _SHOWN_BYTES:  # type: ignore[arg-type]
        return f"bytes ({key!r})"
    return kind.__name__


def _conversion_of(key: object) -> str:
    """Return the advice for `key`, which is not text."""
    if isinstance(key, bytes):
        return "decode it first, for example with key.decode()"
    if isinstance(key, slice):
        return "for a range of keys use scan(start=..., stop=...)"
    return "convert it first, for example with str() or json.dumps()"


def explain_failure(key: object, error: Exception) -> None:
    """Raise the error of `validate_key` if a read failed with `error` because `key` is invalid; else return.

    Reads validate a key only after a miss or an error. An error that a signal handler raised is never due to the key.
    """
    try:
        validate_key(key)
    except (KeyTypeError, KeyLimitError) as invalid:
        if not passes_through(error):
            # The failure that the key caused says nothing more: without `from None` it would be a second traceback.
            raise invalid from None


def validate_keys(keys: Iterable[object]) -> list[str]:
    """Return `keys` in order, each as `validate_key` returns it. Raises its error for the first invalid key."""
    if isinstance(keys, str | bytes):
        raise KeyTypeError(
            f"the keys must be given as a list, not as {a_or_an(type(keys).__name__)}: each of its characters would be "
            "a key. For one key write [key]"
        )
    if not isinstance(keys, Iterable):
        raise KeyTypeError(
            f"the keys must be given as a list, not as {a_or_an(type(keys).__name__)}; for one key write [key]"
        )
    names: list[Any] = list(keys)
    # Short ASCII keys are validated all at once: a call per key costs more than storing it in a batch.
    if (
        set(map(type, names)) == {str}
        and all(names)
        and max(map(len, names)) <= MAX_KEY_BYTES
        and all(map(str.isascii, names))
    ):
        return names
    return [validate_key(name) for name in names]


def legible(name: bytes) -> str:
    """Return the printable ASCII start of a `name` that is not valid text, for messages and listings.

    The rest is hidden: after damage it may contain part of a value, and values are never shown.
    """
    shown = name[:40].decode("latin-1")
    end = next((at for at, char in enumerate(shown) if not " " <= char <= "~"), len(shown))
    return shown[:end] + "..."


def validate_namespace(namespace: object) -> str:
    """Return `namespace` as an exact `str` if every engine can store it.

    Raises NamespaceError unless it is a `str` of 1 to 255 UTF-8 bytes without NUL or a lone surrogate.
    """
    if not isinstance(namespace, str):
        raise NamespaceError(f"a namespace must be a str, not {_describe(namespace)}; convert its name with str()")
    if not namespace:
        raise NamespaceError("a namespace must have at least one character; this one is empty")
    if "\0" in namespace:
        raise NamespaceError(f"a namespace may not hold NUL; {namespace[:60]!a} does")
    try:
        encoded = str.encode(namespace)
    except UnicodeEncodeError as error:
        raise NamespaceError(
            f"a namespace must be valid Unicode; character {error.start} of {namespace[:60]!a} is a lone surrogate"
        ) from None
    if len(encoded) > MAX_NAMESPACE_BYTES:
        raise NamespaceError(
            f"a namespace may have at most {MAX_NAMESPACE_BYTES} bytes of UTF-8; the namespace that starts with "
            f"{namespace[:40]!r} has {len(encoded):,}"
        )
    return encoded.decode()


def name_key(error: ValueTypeError, key: str) -> ValueTypeError:
    """Return the error to raise for `key` whose value a codec refused with `error`; `error` if a handler raised it."""
    return error if raised_by_handler(error) else ValueTypeError(f"key {key!r}: {error}")


def validate_value_size(key: str, size_bytes: int) -> None:
    """Raise ValueLimitError if `size_bytes`, the size of an encoded value, exceeds `MAX_VALUE_BYTES`."""
    if size_bytes > MAX_VALUE_BYTES:
        raise ValueLimitError(
            f"the value for key {key!r} takes {size_bytes:,} bytes encoded; at most {MAX_VALUE_BYTES:,} "
            "(512 MiB) fit. Split it over several keys"
        )


def validate_function(fn: Callable[[Any], Any], key: str) -> None:
    """Raise TypeError if `fn`, passed to `modify` of `key`, is an ``async def`` function."""
    try:
        is_async = fn.__code__.co_flags & _CO_COROUTINE
    except AttributeError:  # not a Python function
        if not callable(fn):
            raise TypeError(
                f"modify() of key {key!r} takes a function that returns the new value, not "
                f"{a_or_an(type(fn).__name__)}. Write modify(key, lambda value: ...), or namespace[key] = value"
            ) from None
        return
    if is_async:
        _refuse_async(fn, key)


def validate_transaction_function(fn: Callable[[Any], Any]) -> None:
    """Raise TypeError unless `fn`, passed to `transact`, is a plain function."""
    if not callable(fn):
        raise TypeError(
            f"transact() takes a function of the transaction, not {a_or_an(type(fn).__name__)}: write "
            "`store.transact(lambda tx: ...)`, or `with store.transaction() as tx:`"
        )
    if is_async(fn):
        raise TypeError(
            f"transact() was given {getattr(fn, '__qualname__', type(fn).__name__)}, which is an async function; "
            "nothing was written. Give it a plain function, or await transact() of hutch.aio"
        )


def is_async(fn: object) -> bool:
    """Return whether `fn` is an ``async def`` function."""
    return bool(getattr(getattr(fn, "__code__", None), "co_flags", 0) & _CO_COROUTINE)


def refuse_none(fn: Callable[[Any], Any], key: str) -> Callable[[Any], Any]:
    """Return a function that calls `fn`, passed to `modify` of `key`, and refuses None as the result.

    It raises TypeError if `fn` returns None for a value that is not None: nearly always a forgotten `return`, which
    would replace the value.
    """

    def call(value: Any) -> Any:
        result = fn(value)
        if result is None and value is not None:
            raise TypeError(
                f"the function given to modify() of key {key!r} returned None, which would replace the value; nothing "
                "was written. End it with `return` and the new value, or return hutch.MISSING to remove the key, or "
                "pass allow_none=True to store None"
            )
        return result

    call.__qualname__ = getattr(fn, "__qualname__", type(fn).__name__)
    return call


def validate_limit(verb: str, limit: object) -> int:
    """Return `limit`, a number of keys. Raises TypeError unless it is an int, ValueError if it is negative."""
    if isinstance(limit, bool) or not isinstance(limit, int):
        raise TypeError(f"{verb}(limit=...) takes an int or None, not {_describe(limit)}: pass a number of keys")
    if limit < 0:
        raise ValueError(f"{verb}(limit=...) takes 0 or more, not {limit}: pass None for all keys")
    return limit


def validate_number(key: str, name: str, number: object) -> None:
    """Raise TypeError unless `number`, the argument `name` of an increment of `key`, is exactly an int or a float."""
    if type(number) is not int and type(number) is not float:
        raise TypeError(
            f"increment() of key {key!r} takes an int or float, and {name} is {a_or_an(type(number).__name__)}; "
            "nothing was written. Convert it with int() or float(), or use modify()"
        )


def add_number(key: str, by: float, value: Any) -> Any:
    """Return the sum of `value`, the value of `key`, and `by`. Raises TypeError if it is not exactly an int or a float.

    Raises OverflowError if one is a float and the other an int that no float can hold.
    """
    if type(value) is not int and type(value) is not float:
        raise TypeError(
            f"key {key!r} holds {a_or_an(type(value).__name__)}: increment() takes an int or float there; nothing was "
            "written. Set a number first, or use modify()"
        )
    try:
        return value + by
    except OverflowError as error:
        if raised_by_handler(error):
            raise
        raise OverflowError(
            f"increment() of key {key!r} adds a float and an int that no float can hold; nothing was written. Use ints "
            "alone, or floats alone"
        ) from None


def validate_range(verb: str, prefix: object, start: object, stop: object) -> None:
    """Raise TypeError unless the bounds of a scan are text; `start` and `stop` may be None."""
    for name, bound, others in (("prefix", prefix, ""), ("start", start, " or None"), ("stop", stop, " or None")):
        if not (isinstance(bound, str) or (bound is None and others)):
            raise TypeError(
                f"{verb}({name}=...) takes a str{others}, not {_describe(bound)}: keys are text. "
                + (
                    f"Decode {name} first"
                    if isinstance(bound, bytes)
                    else f"Leave {name} out to scan all keys"
                    if bound is None
                    else f"Convert {name} with str()"
                )
            )


def check_result(result: object, fn: Callable[[Any], Any], key: str) -> None:
    """Close `result` and raise TypeError if `fn`, passed to `modify` of `key`, returned an awaitable."""
    if type(result) in PLAIN_TYPES or not hasattr(type(result), "__await__"):
        return
    # An unclosed coroutine would cause the warning "was never awaited".
    close = getattr(result, "close", None)
    if callable(close):
        close()
    _refuse_async(fn, key)


def _refuse_async(fn: object, key: str) -> NoReturn:
    raise TypeError(
        f"modify() of key {key!r} was given {getattr(fn, '__qualname__', type(fn).__name__)}, which is an async "
        "function or returns an awaitable; nothing was written. Give it a plain function, or await inside "
        "`async with namespace.mutable(key)` of hutch.aio"
    )
