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

_NAMESPACE_IN: Final = "use `tx[name]`"
_SET_IN: Final = "use `tx[name][key] = value` for each item"
_REMOVE_IN: Final = "use `del tx[name][key]`"
_SCAN_IN: Final = "use `tx[name].scan()`"
_RAISE: Final = "raise an exception inside the block, and nothing is written"
_READ_AND_SET: Final = "read the value, and set the new one: the commit verifies that nobody changed it meanwhile"

#: The same inside a transaction `tx`.
TRANSACTION_SPELLINGS: Final[dict[str, str]] = {
    "begin": "the `with` statement begins it",
    "commit": "leaving the `with` block commits",
    "rollback": _RAISE,
    "abort": _RAISE,
    "cancel": _RAISE,
    "open": _NAMESPACE_IN,
    "namespace": _NAMESPACE_IN,
    "update": _SET_IN,
    "set_many": _SET_IN,
    "get_many": "use `tx[name].get(key)` for each key",
    "setdefault": "use `if key not in tx[name]: tx[name][key] = value`",
    "pop": "use `value = tx[name][key]` and `del tx[name][key]`",
    "remove": _REMOVE_IN,
    "delete": _REMOVE_IN,
    "modify": _READ_AND_SET,
    "increment": _READ_AND_SET,
    "compare_and_set": _READ_AND_SET,
    "mutable": _READ_AND_SET,
    "items": _SCAN_IN,
    "keys": "use `tx[name].scan_keys()`",
    "values": _SCAN_IN,
    "clear": "use `for key in list(tx[name].scan_keys()): del tx[name][key]`",
}


def spelling_of(name: str, spellings: dict[str, str] = SPELLINGS) -> str:
    """Return ``; use ...`` for a method that other mappings have and hutch spells otherwise, or the empty string."""
    spelling = spellings.get(name)
    return "" if spelling is None else f"; {spelling}"
