"""Transactions for asyncio: the blocking ones, whose reads and commits are awaited."""

from __future__ import annotations

import asyncio
import functools
import random
import time
from collections.abc import Awaitable, Callable, Hashable
from types import TracebackType
from typing import Any, NoReturn, TypeVar

import hutch

from ..limits import is_async
from ..transactions import NamespaceTransaction, TransactionNamespace
from ..transactions import Transaction as BlockingTransaction
from ..transactions.retries import FIRST_BACKOFF_S, PATIENCE_S, conflict_behind, next_backoff, transact_until
from ..workers import Calls
from .habits import Iteration, Opened
from .iteration import iterate

T = TypeVar("T")


class TransactionView(Opened):
    """One namespace inside a transaction: ``await tx["core"].get("k")``; its changes wait for the end of the block."""

    _spelling = "await tx[name].get(key)"

    def __init__(self, namespace: TransactionNamespace, calls: Calls) -> None:
        self._namespace, self._calls = namespace, calls

    def __repr__(self) -> str:
        return f"<namespace {self._namespace.namespace!r} in a hutch.aio transaction>"

    async def __getitem__(self, key: str) -> Any:
        """Return the value of `key`: ``await tx["core"]["k"]``. Raises KeyError if it is missing."""
        return await self._calls.read(self._namespace.__getitem__, key)

    async def get(self, key: str, default: Any = None) -> Any:
        """Return the value of `key`, or `default` if it is missing."""
        return await self._calls.read(self._namespace.get, key, default)

    async def contains(self, key: str) -> bool:
        """Return whether `key` has a value."""
        return await self._calls.read(self._namespace.__contains__, key)

    async def set(self, key: str, value: Any, *, ttl_s: float | None = None) -> None:
        """Set `key` to `value` when the transaction commits; it expires `ttl_s` seconds after this call."""
        await self._calls.read(lambda: self._namespace.set(key, value, ttl_s=ttl_s))

    async def remove(self, key: str) -> None:
        """Remove `key` when the transaction commits. Raises KeyError if it is missing."""
        await self._calls.read(self._namespace.__delitem__, key)

    async def touch(self, key: str, ttl_s: float) -> bool:
        """Give `key` another deadline when the transaction commits; return whether it exists."""
        return await self._calls.read(self._namespace.touch, key, ttl_s)

    def scan(
        self, prefix: str = "", start: str | None = None, stop: str | None = None, reverse: bool = False
    ) -> Iteration[tuple[str, Any]]:
        """Iterate over the items of a scan, which is checked at the commit; see `hutch.Transaction`."""
        source = functools.partial(self._namespace.scan, prefix, start, stop, reverse)
        return Iteration(iterate(self._calls, source, self._calls.check_open), "key, value in tx[name].scan()")

    def scan_keys(
        self, prefix: str = "", start: str | None = None, stop: str | None = None, reverse: bool = False
    ) -> Iteration[str]:
        """Iterate over the keys that `scan` would yield."""
        source = functools.partial(self._namespace.scan_keys, prefix, start, stop, reverse)
        return Iteration(iterate(self._calls, source, self._calls.check_open), "key in tx[name].scan_keys()")

    def _refuse(self, *_: object) -> NoReturn:
        raise TypeError(
            "a namespace in a hutch.aio transaction is used with await: `await tx[name][key]`, "
            "`await tx[name].set(key, value)`, `remove(key)`, `contains(key)`, `async for ... in tx[name].scan()`"
        )

    __setitem__ = __delitem__ = __contains__ = __iter__ = __len__ = __aiter__ = _refuse

    def __bool__(self) -> bool:
        return True


class Transaction(Opened):
    """A single-use block: ``async with store.transaction() as tx``. The tasks of the block may share it.

    A block that raises or is cancelled writes nothing. A cancellation during the commit itself leaves all of its
    changes or none.
    """

    _spelling = "async with store.transaction() as tx"

    def __init__(self, begin: Callable[[Hashable], BlockingTransaction], calls: Calls) -> None:
        self._begin, self._calls = begin, calls
        self._inner: BlockingTransaction | None = None

    def __getitem__(self, name: str) -> TransactionView:
        """Return the namespace `name` in this transaction."""
        inner = self._entered()
        # Opening a namespace may wait for the engine; that happens at its first read or write, in a thread.
        return TransactionView(_Later(inner, name), self._calls)  # type: ignore[arg-type]

    def _refuse(self, *_: object) -> NoReturn:
        raise TypeError("a transaction holds namespaces: write `await tx[name].set(key, value)` and so on")

    __setitem__ = __delitem__ = __contains__ = __iter__ = __len__ = _refuse

    def __bool__(self) -> bool:
        return True

    async def __aenter__(self) -> Any:
        if self._inner is not None:
            raise hutch.StoreAlreadyOpenError("this transaction was used before; begin each block with transaction()")
        self._calls.check_open()
        self._calls.loop()
        inner = self._begin(asyncio.current_task())
        inner._begin()
        self._inner = inner
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        inner = self._entered()
        try:
            if kind is None:
                await self._calls.write(None, inner._commit)
        finally:
            inner._end()

    def _entered(self) -> BlockingTransaction:
        if self._inner is None:
            raise hutch.StoreNotOpenError("this transaction has not begun; write `async with store.transaction()`")
        return self._inner


class NamespaceBlock(Transaction):
    """A transaction of one namespace: the block gets the namespace itself, ``await tx.get(key)``."""

    _spelling = "async with namespace.transaction() as tx"

    async def __aenter__(self) -> TransactionView:
        await super().__aenter__()
        inner = self._entered()
        assert isinstance(inner, NamespaceTransaction)
        return TransactionView(inner._namespace(), self._calls)


class _Later:
    """A namespace of a transaction, looked up in the thread that first uses it."""

    def __init__(self, transaction: BlockingTransaction, name: str) -> None:
        self._transaction, self.namespace = transaction, name

    def __getitem__(self, key: str) -> Any:
        return self._transaction[self.namespace][key]

    def __contains__(self, key: str) -> bool:
        return key in self._transaction[self.namespace]

    def __delitem__(self, key: str) -> None:
        del self._transaction[self.namespace][key]

    def __getattr__(self, verb: str) -> Any:
        return getattr(self._transaction[self.namespace], verb)


async def transact(begin: Callable[[], Transaction], calls: Calls, fn: Callable[[Any], Awaitable[T]]) -> T:
    """Return ``await fn(tx)`` of a committed transaction, run again after a conflict; see `hutch.Store.transact`."""
    if not callable(fn) or not is_async(fn):
        raise TypeError(
            "transact() of hutch.aio takes an async function of the transaction: write `async def change(tx): ...` and "
            "`await store.transact(change)`; nothing was written"
        )
    deadline_s = time.monotonic() + PATIENCE_S
    backoff_s = FIRST_BACKOFF_S
    while True:
        transaction = begin()
        try:
            async with transaction as tx:
                result = await fn(tx)
        except Exception as error:
            conflict = await calls.read(conflict_behind, transaction._entered(), error)
        else:
            return result
        transact_until(conflict, deadline_s)
        await asyncio.sleep(backoff_s * random.random())  # noqa: S311 - a pause
        backoff_s = next_backoff(backoff_s)
