"""Transactions: reads that are remembered, writes that wait for the end of a block, and one step that commits both.

Optimistic: nothing is locked while the caller's code runs. The commit is one call of the engine, `apply`, which writes
all changes if everything that was read still reads the same, and nothing otherwise.
"""

from .block import NamespaceTransaction, Source, Transaction
from .namespace import TransactionNamespace
from .retries import transact

__all__ = ["NamespaceTransaction", "Source", "Transaction", "TransactionNamespace", "transact"]
