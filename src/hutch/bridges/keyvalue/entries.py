"""Keys and entries of the store for py-key-value.

All collections share one namespace; an entry has the key ``collection:key``. In the collection ``%`` and ``:`` are
written ``%25`` and ``%3A``, so that a prefix belongs to one collection alone. A leading ``%`` of a key is doubled. A
name too long for hutch is replaced by ``%#`` and its SHA-256, and stored in full in the entry. An entry is a dict:
`value`; `expires_at`, a datetime, if it has a ttl; `collection` and `key` where one of them is hashed.

On an engine that declares `ttl`, such an entry also has hutch's own deadline: the engine hides and removes it. On
others `expires_at` alone decides, and finding expired entries reads them.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final, SupportsFloat

from key_value.aio.errors import DeserializationError, InvalidKeyError, InvalidTTLError, SerializationError

#: The prefix of a hash. No other part of a key starts with it.
HASHED: Final = "%#"
_LONGEST_COLLECTION_BYTES: Final = 255
_LONGEST_KEY_BYTES: Final = 1024

_FOREIGN: Final = "what is stored there was not written by this store"


# --- keys ---


@functools.lru_cache(maxsize=1024)
def collection_prefix(collection: str) -> str:
    """Return the prefix of the keys of a collection's entries."""
    escaped = collection.replace("%", "%25").replace(":", "%3A")
    if len(_utf8(escaped)) > _LONGEST_COLLECTION_BYTES:
        escaped = _hash(collection)
    return f"{escaped}:"


def entry_key(prefix: str, key: str) -> str:
    """Return the key of the entry for `key` in the collection that has this `prefix`."""
    name = f"{prefix}%{key}" if key.startswith("%") else prefix + key
    return name if len(_utf8(name)) <= _LONGEST_KEY_BYTES else prefix + _hash(key)


def unescape_collection(escaped: str) -> str:
    """Return the collection whose prefix starts with `escaped`, which must not be hashed."""
    return escaped.replace("%3A", ":").replace("%25", "%")


def _hash(name: str) -> str:
    return HASHED + hashlib.sha256(_utf8(name)).hexdigest()


def _utf8(name: str) -> bytes:
    try:
        return name.encode()
    except UnicodeEncodeError as error:
        raise InvalidKeyError("a key or collection has half a surrogate pair, which UTF-8 cannot hold") from error


# --- entries ---


def to_json_types(value: Mapping[str, Any], *, exact_types: bool) -> dict[str, Any]:
    """Return `value` as JSON would return it; with `exact_types`, only as a dict.

    Raises TypeError if it is not a mapping from str, SerializationError for what JSON cannot hold.
    """
    if not isinstance(value, Mapping):
        raise TypeError(f"a value is a mapping from str to what JSON can hold, not {type(value).__name__}")
    plain = dict(value)
    if not all(isinstance(field, str) for field in plain):
        raise TypeError("a value is a mapping whose keys are str, and a key of this value is not")
    if exact_types:
        return plain
    try:
        text = json.dumps(plain)
        stored: dict[str, Any] = json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise SerializationError(f"the value is not what JSON can hold: {error}") from error
    if stored != plain and json.dumps(stored) != text:
        raise SerializationError("two keys of a dict in the value, such as 1 and '1', would be the same in JSON")
    return stored


def expiry(ttl: SupportsFloat | None) -> datetime | None:
    """Return the moment `ttl` seconds from now, None for None. Raises InvalidTTLError unless it is a number above 0."""
    if ttl is None:
        return None
    if isinstance(ttl, bool | str):
        raise InvalidTTLError(ttl)
    try:
        ttl_s = float(ttl)
        if ttl_s <= 0:
            raise InvalidTTLError(ttl)
        return datetime.now(UTC) + timedelta(seconds=ttl_s)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidTTLError(ttl) from error


def value_and_ttl(entry: Any) -> tuple[dict[str, Any] | None, float | None]:
    """Return the value of `entry` and its seconds left, None if it never expires; (None, None) if expired or missing.

    Raises DeserializationError if it is not an entry.
    """
    if entry is None:
        return None, None
    try:
        value, expires_at = entry["value"], entry.get("expires_at")
        if expires_at is None:
            return value, None
        left_s = (expires_at - datetime.now(UTC)).total_seconds()
    except (TypeError, LookupError, AttributeError) as error:
        raise DeserializationError(_FOREIGN) from error
    return (value, left_s) if left_s > 0 else (None, None)


def has_expired(entry: Any) -> bool:
    """Return whether `entry` has expired. Foreign data has not."""
    try:
        return value_and_ttl(entry)[0] is None
    except DeserializationError:
        return False


def full_name(entry: Any, field: str) -> str:
    """Return the collection or key, by `field`, of an entry that has its hash in its key."""
    try:
        name: str = entry[field]
    except (TypeError, LookupError) as error:
        raise DeserializationError(_FOREIGN) from error
    return name
