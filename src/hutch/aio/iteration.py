"""Iterate for an event loop over what a blocking iterable yields, chunk by chunk, in a thread."""

from __future__ import annotations

import itertools
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from typing import TypeVar

from ..workers import Calls

T = TypeVar("T")

# Iteration fetches chunks that grow from the first number of items to the second, each within this many seconds.
_FIRST_CHUNK_ITEMS = 16
_CHUNK_ITEMS = 1024
_CHUNK_S = 0.005


async def iterate(
    calls: Calls, source: Callable[[], Iterable[T]], must_be_open: Callable[[], None]
) -> AsyncGenerator[T, None]:
    """Yield the items of ``source()``, read in threads of `calls`; `must_be_open` raises if the iteration must end."""
    iterator = _begun_later(source)
    chunk_items = _FIRST_CHUNK_ITEMS
    error: Exception | None = None
    more = True
    while more:
        items, error, more = await calls.read(_next_chunk, iterator, chunk_items)
        for item in items:
            must_be_open()
            yield item
        chunk_items = min(chunk_items * 4, _CHUNK_ITEMS)
    if error is not None:
        raise error


def _begun_later(source: Callable[[], Iterable[T]]) -> Iterator[T]:
    yield from source()


def _next_chunk(iterator: Iterator[T], most: int) -> tuple[list[T], Exception | None, bool]:
    """Return up to `most` items, the error that ended the iteration, and whether there may be more."""
    items: list[T] = []
    until_s = time.monotonic() + _CHUNK_S
    try:
        for item in itertools.islice(iterator, most):
            items.append(item)
            if time.monotonic() > until_s:
                return items, None, True
    except Exception as error:
        # The items before the error are yielded first, as they would be without chunks.
        return items, error, False
    return items, None, len(items) == most
