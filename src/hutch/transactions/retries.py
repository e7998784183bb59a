"""Call a function in a transaction, and call it again after each conflict."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any, Final, TypeVar

from ..errors import ConflictError
from ..handlers import passes_through
from ..limits import validate_transaction_function
from .block import Transaction

T = TypeVar("T")

#: For how long `transact` runs its function again after conflicts, in seconds.
PATIENCE_S: Final = 60.0
FIRST_BACKOFF_S: Final = 0.0002
_LONGEST_BACKOFF_S: Final = 0.05


def transact(begin: Callable[[], Transaction], fn: Callable[[Any], T]) -> T:
    """Return ``fn(tx)`` of a committed transaction from `begin`; run again after a conflict.

    Raises what `fn` raises, unless what it read no longer holds: then it runs again. Raises the last ConflictError
    after `PATIENCE_S`.
    """
    validate_transaction_function(fn)
    deadline_s = time.monotonic() + PATIENCE_S
    backoff_s = FIRST_BACKOFF_S
    while True:
        results: list[T] = []
        conflict = _attempt(begin(), fn, results)
        if conflict is None:
            return results[0]
        transact_until(conflict, deadline_s)
        # A random part of the pause keeps two writers from retrying in step.
        time.sleep(backoff_s * os.urandom(1)[0] / 255)
        backoff_s = next_backoff(backoff_s)


def transact_until(conflict: ConflictError, deadline_s: float) -> None:
    """Raise a ConflictError for `conflict` after the deadline."""
    if time.monotonic() > deadline_s:
        raise ConflictError(f"transact() met conflicts for {PATIENCE_S:.0f} s; the last one: {conflict}") from conflict


def next_backoff(backoff_s: float) -> float:
    """Return the longest pause after the one of `backoff_s`."""
    return min(backoff_s * 2, _LONGEST_BACKOFF_S)


def _attempt(transaction: Transaction, fn: Callable[[Any], T], results: list[T]) -> ConflictError | None:
    """Append ``fn(transaction)`` to `results` and commit, or return the conflict."""
    try:
        with transaction as tx:
            results.append(fn(tx))
    except Exception as error:
        return conflict_behind(transaction, error)
    return None


def conflict_behind(transaction: Transaction, error: Exception) -> ConflictError:
    """Return the conflict that explains `error`, raised inside the block or by its commit; raise `error` otherwise."""
    if error is transaction._conflict_raised:
        return transaction._conflict_raised
    if passes_through(error) or transaction._is_committing:
        raise error
    conflict = transaction._conflict()
    if conflict is None:
        raise error
    return conflict
