"""The threads that read and write beside a verb that signals interrupt."""

from __future__ import annotations

import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable

import hutch

#: Longer than another thread needs for one write on a slow machine: after that, a lock was left taken.
OTHERS_PATIENCE_S = 20.0
#: The key that another thread writes, so that the interrupted verb sometimes has to wait.
BUSY = "busy"


class BusyThread:
    """A thread that, between `go_on(True)` and `go_on(False)`, writes one key without pause."""

    def __init__(self, ns: hutch.Namespace) -> None:
        self._ns = ns
        self._may_go, self._stands, self._is_over = threading.Event(), threading.Event(), False
        #: The number of the last write that it began, and of the last that was acknowledged.
        self.begun = self.acknowledged = -1
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, daemon=True, name="busy")
        self._thread.start()

    def go_on(self, on: bool) -> None:
        """Start writing; or stop, and wait until the last write has ended."""
        if on:
            self._stands.clear()
            self._may_go.set()
        else:
            self._may_go.clear()
            stands = self._stands.wait(OTHERS_PATIENCE_S)
            if self._error is not None:
                raise AssertionError("a thread that only writes failed") from self._error
            if not stands:
                where = "".join(traceback.format_stack(sys._current_frames().get(self._thread.ident or 0)))
                raise AssertionError(f"a thread that only writes does not stop:\n{where}")

    def end(self) -> None:
        """End the thread."""
        self._is_over = True
        self._may_go.set()

    def _work(self) -> None:
        while True:
            if not self._may_go.is_set():
                self._stands.set()
                self._may_go.wait()
            if self._is_over:
                return
            self.begun += 1
            try:
                self._ns[BUSY] = self.begun
            except BaseException as error:
                self._error = error
                self._stands.set()
                return
            self.acknowledged = self.begun
            time.sleep(0.0005)


class OtherThread:
    """A thread that runs functions for another thread, which gets their errors."""

    def __init__(self) -> None:
        self._orders: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, daemon=True, name="other")
        self._thread.start()

    def do(self, work: Callable[[], object], what: str) -> None:
        """Call `work` and raise what it raised; AssertionError if it is not done in time."""
        self._orders.put(work)
        try:
            error = self._results.get(timeout=OTHERS_PATIENCE_S)
        except queue.Empty:
            raise AssertionError(f"{what} does not end: a lock was left taken") from None
        if error is not None:
            raise error

    def end(self) -> None:
        """End the thread."""
        self._orders.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (order := self._orders.get()) is not None:
            try:
                order()
            except BaseException as error:
                self._results.put(error)
            else:
                self._results.put(None)
