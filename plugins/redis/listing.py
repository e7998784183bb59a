"""List a namespace of the redis engine in key order, page by page; rebuild a listing that the server evicted.

Under a `maxmemory-policy` of ``allkeys-*`` the server may evict the sorted set of keys without the hash of values, or
the reverse. Writes keep the two in step, so their sizes differ only after an eviction. Each page reports both sizes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final, cast

from hutch import CorruptValueError, StorageUnavailableError
from hutch.handlers import raised_by_handler

from .protocol import Argument
from .scripts import PAGE, REBUILD
from .server import Server

# Start small: a caller may need only the first key.
_FIRST_KEYS: Final = 32
_FIRST_WAITING_KEYS: Final = 160
# The server is blocked while it serves a page, and this process holds the page in memory.
_PAGE_KEYS: Final = 500
_PAGE_BYTES: Final = 1024 * 1024
_GROWTH: Final = 4
# More are needed only if the server evicts the listing again during each rebuild.
_REBUILDS: Final = 5


class Listing:
    """The keys and values of one namespace, in key order. The server keeps no state between two pages."""

    def __init__(self, server: Server, reader: Server, keys: Sequence[bytes], namespace: str, engine: str) -> None:
        """Set up the listing, which `reader` reads and `server` rebuilds.

        `keys` are the KEYS of the scripts: values, order, index, deadlines.
        """
        self._server = server
        self._reader = reader
        self._keys = keys
        self._name = namespace.encode()
        self._where = f"namespace {namespace!r} of the {engine} storage"

    def keys(self, start: str | None, stop: str | None, reverse: bool) -> Iterator[str]:
        """Yield each key in the range that has not expired, once."""
        bounds = _Bounds(start, stop, reverse)
        max_keys = _FIRST_KEYS
        while True:
            keys, expired = self._page(bounds, max_keys, b"expired")
            gone = set(expired)
            yield from self._decoded([key for key in keys if key not in gone] if gone else keys)
            if len(keys) < max_keys:
                return
            bounds.continue_after(keys[-1])
            max_keys = min(max_keys * _GROWTH, _PAGE_KEYS)

    def pages(
        self, start: str | None, stop: str | None, reverse: bool
    ) -> Iterator[tuple[Sequence[str], Sequence[bytes]]]:
        """Yield pages of keys in the range with their values.

        Each page takes one round trip: the values of a page are requested together with the keys of the next.
        """
        bounds, size = _Bounds(start, stop, reverse), _PageSize()
        waiting, values = self._page(bounds, _FIRST_WAITING_KEYS, _FIRST_KEYS)
        is_last = len(waiting) < _FIRST_WAITING_KEYS
        while waiting:
            if values:
                page, page_values = waiting[: len(values)], values
                bounds.continue_after(waiting[-1])
                waiting, values = waiting[len(values) :], []
                size.record(page_values)
                yield self._with_values(page, page_values)
            if not waiting:
                return
            count = size.next()
            values, following, is_last = self._values(waiting, count, bounds, is_last)
            waiting += following

    def _values(
        self, keys: list[bytes], count: int, bounds: _Bounds, is_last: bool
    ) -> tuple[list[bytes | None], list[bytes], bool]:
        """Return the values of the first `count` keys, the keys of the next page, and whether that page is the last."""
        command = (b"HMGET", self._keys[0], *keys[:count])
        if len(keys) > count:
            return self._reader.exchange([command])[0], [], is_last
        # After the last page, request no keys but still the sizes: the values may have been evicted meanwhile.
        max_keys = 0 if is_last else max(count, _FIRST_KEYS)
        arguments = self._page_arguments(bounds, max_keys)
        values, (*page, _) = self._reader.run_after([command], PAGE, self._keys, arguments)
        following = self._listed(page)
        if following is None:
            self._rebuild()
            following, _ = self._page(bounds, max_keys, server=self._server)
        return values, following, is_last or len(following) < max_keys

    def _page(
        self, bounds: _Bounds, max_keys: int, max_values: int | bytes = 0, server: Server | None = None
    ) -> tuple[list[bytes], list[bytes | None]]:
        """Return a page of keys, and the values of its first `max_values` keys; for b"expired", its expired keys."""
        # A script, because a server whose memory is full refuses MULTI.
        server = server or self._reader
        for _ in range(_REBUILDS):
            *page, values = server.run(PAGE, self._keys, self._page_arguments(bounds, max_keys, max_values))
            keys = self._listed(page)
            if keys is not None:
                return keys, values
            self._rebuild()
            server = self._server  # a replica may not have the new listing yet
        raise StorageUnavailableError(
            f"{self._where}: the server evicts the listing of its keys faster than it can be rebuilt. Set the server's "
            "maxmemory-policy to noeviction"
        )

    def _page_arguments(self, bounds: _Bounds, max_keys: int, max_values: int | bytes = 0) -> tuple[Argument, ...]:
        return (*bounds.command(), max_keys, max_values, _PAGE_BYTES)

    def _listed(self, page: list[Any]) -> list[bytes] | None:
        """Return the keys of a page, or None if some keys with a value are not listed.

        `page` holds the keys, the total of listed keys and the total of values. Raises CorruptValueError if values
        are missing.
        """
        keys: list[bytes]
        keys, listed, values = page
        if listed > values:
            raise CorruptValueError(
                f"{self._where} lists {listed} keys and has {values} values: the server evicted values under a "
                "maxmemory-policy of allkeys-*, or something other than hutch removed them. Set the server's "
                "maxmemory-policy to noeviction, then restore the namespace from a copy, or run 'hutch check "
                "--repair' to forget the keys whose values are gone"
            )
        return keys if listed == values else None

    def _rebuild(self) -> None:
        """List every key that has a value. Each step is atomic, so concurrent writes between steps do no harm."""
        cursor: bytes | int = 0
        try:
            while True:
                cursor = self._server.run(REBUILD, self._keys, (self._name, cursor), changes=True)
                if int(cursor) == 0:
                    return
        except StorageUnavailableError as error:
            if raised_by_handler(error):
                raise
            raise StorageUnavailableError(
                f"{self._where}: the server evicted the listing of its keys, as a maxmemory-policy of allkeys-* lets "
                f"it, and it cannot be rebuilt here: {error}"
            ) from error

    def _with_values(self, keys: list[bytes], values: list[bytes | None]) -> tuple[Sequence[str], Sequence[bytes]]:
        if None in values:  # removed since they were listed
            existing = [(key, value) for key, value in zip(keys, values, strict=True) if value is not None]
            return self._decoded([key for key, _ in existing]), [value for _, value in existing]
        return self._decoded(keys), cast("list[bytes]", values)

    def _decoded(self, keys: list[bytes]) -> list[str]:
        try:
            return list(map(bytes.decode, keys))
        except UnicodeDecodeError as error:
            if raised_by_handler(error):
                raise
            raise CorruptValueError(
                f"{self._where} holds a key that is not UTF-8; something other than hutch wrote it"
            ) from error


class _PageSize:
    """The number of values to request: about `_PAGE_BYTES` at the size of the values seen, growing step by step."""

    def __init__(self) -> None:
        self._count = _FIRST_KEYS
        self._values = self._bytes = 0

    def record(self, values: list[bytes | None]) -> None:
        self._values += len(values)
        self._bytes += sum(len(value) for value in values if value is not None)

    def next(self) -> int:
        fitting = _PAGE_BYTES * self._values // max(self._bytes, 1)
        self._count = max(1, min(fitting, self._count * _GROWTH, _PAGE_KEYS))
        return self._count


class _Bounds:
    """A range of keys in ZRANGEBYLEX syntax: ``[`` includes the bound, ``(`` excludes it."""

    def __init__(self, start: str | None, stop: str | None, reverse: bool) -> None:
        # A bound need not be a valid key: it may hold a lone surrogate, which sorts by its code point.
        self._low = b"-" if start is None else b"[" + start.encode(errors="surrogatepass")
        self._high = b"+" if stop is None else b"(" + stop.encode(errors="surrogatepass")
        self._reverse = reverse

    def command(self) -> tuple[bytes, bytes, bytes]:
        if self._reverse:
            return b"ZREVRANGEBYLEX", self._high, self._low
        return b"ZRANGEBYLEX", self._low, self._high

    def continue_after(self, key: bytes) -> None:
        if self._reverse:
            self._high = b"(" + key
        else:
            self._low = b"(" + key
