"""TimeToLive: the methods of a namespace for values that expire."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

from ..contract import StorageBase
from ..deadlines import no_ttl, validate_ttl
from ..keylocks import refuse_nested_write, swapping
from ..limits import validate_key, validate_limit
from ..views import V
from .lifecycle import Lifecycle


class TimeToLive(Lifecycle, MutableMapping[str, V]):
    """The part of `StoreMixin` that is about deadlines."""

    def set(self, key: str, value: V, *, ttl_s: float | None = None) -> None:
        """Set `key` to `value`, as ``namespace[key] = value`` does, which expires after `ttl_s` seconds.

        None takes the namespace's default (`TTL_S` in the config); without one the value never expires, as with
        `math.inf`. An earlier deadline of the key does not stay. An expired key is missing, for every call. Raises
        CapabilityError if the engine does not declare `ttl`, TypeError and ValueError for a wrong number of seconds;
        then nothing is written.
        """
        if ttl_s is None:
            self[key] = value
            return
        store = self._store
        key = validate_key(key)
        if swapping:
            refuse_nested_write(store.lock_scope, [key])
        store.set_with_ttl(key, value, ttl_s)

    def ttl_s(self, key: str) -> float | None:
        """Return how many seconds `key` has left, None if it never expires. Raises KeyError if it is missing."""
        return self._store.ttl_s(validate_key(key))

    def touch(self, key: str, ttl_s: float) -> bool:
        """Change the deadline of `key` alone, to `ttl_s` seconds from now, and return whether the key exists.

        `math.inf` removes the deadline. Raises what `set` raises for a wrong number of seconds.
        """
        key = validate_key(key)
        store = self._store
        if swapping:
            refuse_nested_write(store.lock_scope, [key])
        return store.touch(key, ttl_s)

    def expire(self, limit: int | None = None) -> int:
        """Reclaim the space of expired keys, of at most `limit`, and return of how many.

        Expired keys are missing without it: only their space is still in use. Each write of a namespace reclaims two.
        Runs in steps of at most 1,000 keys, so others read and write in between.
        """
        if limit is not None:
            limit = validate_limit("expire", limit)
        return self._store.expire(limit)


def require_ttl(store: StorageBase, ttl_s: Any) -> tuple[float]:
    """Return `ttl_s` in a tuple, for a call with it. Raises what `set` raises for `ttl_s`, before anything is read."""
    if validate_ttl(ttl_s) != float("inf") and "ttl" not in store.capabilities:
        raise no_ttl()
    return (ttl_s,)
