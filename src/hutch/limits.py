"""The portable limits: what one engine stores, every engine stores.

They stand here once. Engines and handles call these checks before they write anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final, NoReturn

from .errors import KeyLimitError, KeyTypeError, NamespaceError, ValueLimitError
from .handlers import passes_through

#: Longest key, in bytes of UTF-8.
MAX_KEY_BYTES = 1024
#: Longest namespace name, in bytes of UTF-8.
MAX_NAMESPACE_BYTES = 255
#: Largest value, in encoded bytes (512 MiB: the largest string a Redis server takes).
MAX_VALUE_BYTES = 512 * 1024 * 1024

# Of a code object, as inspect.CO_COROUTINE; importing inspect takes longer than importing hutch.
_CO_COROUTINE: Final = 0x80

#: Types that most results of a function have, which need no closer look.
PLAIN_TYPES: Final = frozenset({int, str, dict, list, float, bool, bytes, tuple, set})

# A code point takes at most four bytes, so a text of this length needs no counting.
_SHORT = MAX_KEY_BYTES // 4


def check_key(key: object) -> str:
    """Return `key` as an exact `str` if every engine can hold it.

    Raises KeyTypeError if it is not a `str`, KeyLimitError if it is empty, longer than 1,024 bytes of
    UTF-8, or holds a lone surrogate.
    """
    if type(key) is str and 0 < len(key) <= _SHORT and key.isascii():
        return key
    if not isinstance(key, str):
        raise KeyTypeError(
            f"a key must be a str, not {type(key).__name__}; convert it first, for example with str() or json.dumps()"
        )
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
            f"a key may have at most {MAX_KEY_BYTES:,} bytes of UTF-8; the one that starts {key[:40]!r} has "
            f"{len(encoded):,}. Hash the tail of long keys"
        )
    return encoded.decode()


def explain_failure(key: object, error: Exception) -> None:
    """Raise what `check_key` raises for a read of `key` that failed with `error`, unless the key is not to blame.

    For reads, which do not check their key before it is known to be missing. It is never to blame for what a signal
    handler raised.
    """
    try:
        check_key(key)
    except (KeyTypeError, KeyLimitError):
        if not passes_through(error):
            raise


def check_keys(keys: Iterable[object]) -> list[str]:
    """Every one of `keys` as `check_key` returns it, in order; raises what that does for the first bad one."""
    names: list[Any] = list(keys)
    # Plain keys, which most are, are looked at all at once: a call for each costs more than to store it in a batch.
    if (
        set(map(type, names)) == {str}
        and all(names)
        and max(map(len, names)) <= MAX_KEY_BYTES
        and all(map(str.isascii, names))
    ):
        return names
    return [check_key(name) for name in names]


def legible(name: bytes) -> str:
    """The legible beginning of a name that is no text, for messages and listings.

    Damage may have made a piece of a value part of it, and values are not shown.
    """
    shown = name[:40].decode("latin-1")
    end = next((at for at, char in enumerate(shown) if not " " <= char <= "~"), len(shown))
    return shown[:end] + "..."


def check_namespace(namespace: object) -> str:
    """Return `namespace` as an exact `str` if every engine can hold it.

    Raises NamespaceError unless it is a `str` of 1 to 255 bytes of UTF-8 without NUL or a lone surrogate.
    """
    if not isinstance(namespace, str):
        raise NamespaceError(f"a namespace must be a str, not {type(namespace).__name__}")
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
            f"a namespace may have at most {MAX_NAMESPACE_BYTES} bytes of UTF-8; the one that starts "
            f"{namespace[:40]!r} has {len(encoded):,}"
        )
    return encoded.decode()


def check_value_size(key: str, size_bytes: int) -> None:
    """Raise ValueLimitError if an encoded value of `size_bytes` is larger than every engine can hold."""
    if size_bytes > MAX_VALUE_BYTES:
        raise ValueLimitError(
            f"the value for key {key!r} takes {size_bytes:,} bytes encoded; at most {MAX_VALUE_BYTES:,} "
            "(512 MiB) fit. Split it over several keys"
        )


def check_function(fn: Callable[[Any], Any], key: str) -> None:
    """Raise TypeError if `fn`, given to `modify` of `key`, is an ``async def``."""
    try:
        is_async = fn.__code__.co_flags & _CO_COROUTINE
    except AttributeError:  # no Python function
        return
    if is_async:
        _refuse_async(fn, key)


def check_result(result: object, fn: Callable[[Any], Any], key: str) -> None:
    """Raise TypeError if `result`, which `fn` returned to `modify` of `key`, must be awaited; it is closed."""
    if type(result) in PLAIN_TYPES or not hasattr(type(result), "__await__"):
        return
    # A coroutine that is not closed would be warned about: it was never awaited.
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
