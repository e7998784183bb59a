"""Hints: how a namespace spells what other mappings and caches call by another name, for the errors of hutch.

Imported when a name was not found.
"""

from __future__ import annotations

from typing import Final

_REMOVE: Final = "use `del namespace[key]`, or `namespace.pop(key, None)` if it may be missing"
_STORED: Final = "leave the call out: every write is stored when it returns"
_SCAN: Final = "use `namespace.scan(prefix=...)`, which reads page by page"

#: What to do instead, by the name that a user of dict, shelve, diskcache, sqlitedict or redis may try.
SPELLINGS: Final[dict[str, str]] = {
    "put": "use `namespace[key] = value`",
    "remove": _REMOVE,
    "delete": _REMOVE,
    "discard": _REMOVE,
    "add": "use `namespace.setdefault(key, value)`, which returns the value that is stored",
    "incr": "use `namespace.increment(key)`",
    "decr": "use `namespace.increment(key, by=-1)`",
    "append": "use `namespace.modify(key, lambda items: [*items, item], default=[])`",
    "copy": "use `dict(namespace)`",
    "fromkeys": "use `namespace.update(dict.fromkeys(keys, value))`",
    "has_key": "use `key in namespace`",
    "exists": "use `key in namespace`",
    "contains": "use `key in namespace`",
    "iterkeys": "use `namespace.scan_keys(prefix=...)`, which reads page by page",
    "iteritems": _SCAN,
    "itervalues": _SCAN,
    "mget": "use `namespace.get_many(keys)`",
    "mset": "use `namespace.update(mapping)`",
    "ttl": "use `namespace.ttl_s(key)`",
    "setex": "use `namespace.set(key, value, ttl_s=seconds)`",
    "persist": "use `namespace.touch(key, math.inf)`",
    "cull": "use `namespace.expire()`",
    "sync": _STORED,
    "commit": _STORED,
    "flush": _STORED,
    "writeback": "use `with namespace.mutable(key) as value:`, which writes the change back",
}


def spelling_of(name: str) -> str:
    """Return ``; use ...`` for a method that other mappings have and hutch spells otherwise, or the empty string."""
    spelling = SPELLINGS.get(name)
    return "" if spelling is None else f"; {spelling}"
