"""Hold a write transaction of LMDB in a slot, so that no local variable keeps it alive."""

from __future__ import annotations

from itertools import islice
from operator import methodcaller
from typing import TYPE_CHECKING, Any
from weakref import ref

import lmdb

from hutch.handlers import raised_by_handler

if TYPE_CHECKING:
    Txn = lmdb.Transaction[bytes]

#: Holds the open write transaction and, second, its current cursor. Code that writes calls ``slot[0].put(...)`` and
#: keeps neither in a variable: a traceback keeps local variables alive, and a live transaction blocks all writers.
#: ``slot.clear()`` ends the transaction (py-lmdb's ``Transaction.abort()`` would first wait for all readers). A signal
#: handler that writes also clears the slot; then ``slot[0]`` raises IndexError and the work starts again.
Slot = list[Any]

# Of a transaction of LMDB, or of a snapshot of page_reader.py.
_open_cursor = methodcaller("cursor")


def end_transaction(slot: Slot) -> None:
    """Abort the transaction in `slot`; the code that uses it gets an IndexError at its next use."""
    if not slot:
        return
    try:
        transaction = ref(slot[0])
    except IndexError as error:  # a handler's write has ended it
        if raised_by_handler(error):
            raise
        return
    slot.clear()
    if (left := transaction()) is not None:
        # A call of C code that the garbage collector interrupted still holds it.
        left.abort()


def add_cursor(slot: Slot) -> None:
    """Open a cursor of the transaction as ``slot[1]``; ``del slot[1]`` closes it."""
    slot += map(_open_cursor, islice(slot, 1))
