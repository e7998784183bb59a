"""Opening: a call of ``lmdb.open`` that no signal handler can interrupt.

py-lmdb runs Python code before and after LMDB opens the files. A handler that used the store there would open them a
second time, which LMDB forbids. Handlers run only in the main thread, so a separate thread makes the call while the
main thread waits; a handler that interrupts the wait, and needs the files, waits for the same call.

The thread takes as long as the call. Where the application has set no handler, none can use the store, and the main
thread makes the call itself. The only handler then is Python's own for Ctrl-C, which raises: py-lmdb closes what it has
opened.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # `signal` makes enums of numbers
import threading
from _thread import start_new_thread
from collections.abc import Callable
from typing import NoReturn

import lmdb

from hutch import StorageUnavailableError
from hutch.handlers import raised_by_handler

# The types of what `getsignal` returns where no handler is set that uses a store: a number, None, a function in C.
_HARMLESS = {int, type(None), type(_signal.default_int_handler)}
# How long a thread may take to start.
_PATIENCE_S = 0.5


class Opening:
    """One call of ``open_(map_size_bytes)``, whose result is appended to `opened`.

    If address space `is_tight`, the call is made without a thread, which would take 72 MiB of it.
    """

    def __init__(
        self,
        open_: Callable[[int], lmdb.Environment],
        map_size_bytes: int,
        opened: list[lmdb.Environment],
        is_tight: bool,
    ) -> None:
        #: Whether the call has returned or raised.
        self.is_over = False
        self._is_tight = is_tight
        self._open, self._map_size_bytes, self._opened = open_, map_size_bytes, opened
        self._started: list[int] = []
        # Not empty while this thread makes the call itself.
        self._is_calling: list[int] = []
        # Popped by the thread that makes the call.
        self._lease = [0]
        self._thread = 0
        self._error: BaseException | None = None
        self._is_done = threading.Lock()
        # No other thread knows the lock yet.
        self._is_done.acquire()

    def wait(self) -> None:
        """Return once the files are open, or raise what `open_` raised. Thread-safe; may be called repeatedly."""
        if not self._started and not _handlers_may_run():
            self._call()
            return
        if self._is_tight or threading.current_thread() is not threading.main_thread():
            self._refuse_finalizer()
            if not self._started:
                self._started.append(0)
                self._run()
        elif not self._started:
            self._start()
        self.finish()
        if self._error is not None:
            raise self._error

    def _call(self) -> None:
        """Make the call in this thread; Ctrl-C may raise at any point, and nothing stays open then."""
        if self._is_calling:
            self._refuse()
        try:
            self._is_calling.append(0)
            if not self._opened:
                self._opened += map(self._open, (self._map_size_bytes,))
        finally:
            self._is_calling.clear()
            self.is_over = True

    def _start(self) -> None:
        nothing: tuple[()] = ()
        try:
            self._started += map(start_new_thread, (self._run,), (nothing,))
        except RuntimeError as error:  # usually because no thread can be started
            if raised_by_handler(error):
                raise
            self._started.append(0)
            self._run()

    def finish(self) -> None:
        """Wait for the call if it has started."""
        while self._started and not self.is_over:
            if self._is_done.acquire(timeout=_PATIENCE_S):
                self._is_done.release()
            elif not self._thread:
                self._run()  # the thread lacked even the memory to start

    def _run(self) -> None:
        try:
            self._lease.pop()
        except IndexError:
            return
        try:
            self._thread = threading.get_ident()
            if not self._opened:  # otherwise a handler has opened them before this call
                self._opened += map(self._open, (self._map_size_bytes,))
        except BaseException as error:
            self._error = error
        finally:
            self.is_over = True
            self._is_done.release()

    def _refuse_finalizer(self) -> None:
        if self._thread == threading.get_ident() and not self.is_over:
            self._refuse()

    @staticmethod
    def _refuse() -> NoReturn:
        raise StorageUnavailableError("lmdb: a finalizer uses a store in the middle of its being opened")


def _handlers_may_run() -> bool:
    """Return whether a signal handler could run that uses a store: one that the application has set."""
    return not {*map(type, map(_signal.getsignal, range(1, _signal.NSIG)))} <= _HARMLESS
