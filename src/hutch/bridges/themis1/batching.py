"""Gather Themis's concurrent calls into batches, for a model that generates several answers at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from themis.core.entities import GenerationRecord, GenerationTask
from themis.exceptions import ConfigurationError
from themis.interfaces import StatelessTaskExecutor


class _Batch:
    def __init__(self) -> None:
        self.calls: list[tuple[GenerationTask, Future[GenerationRecord]]] = []
        self.full = threading.Event()


class BatchExecutor(StatelessTaskExecutor):  # type: ignore[misc]
    """A provider that passes the tasks of concurrent `execute` calls to `execute_batch` together.

    `execute_batch` receives 1 to `max_batch_size` tasks and returns one record per task, in their order; it is never
    called twice at once. A batch starts when it is full or `max_wait_s` has passed, and fills further while the batch
    before it runs. Give `evaluate` at least ``workers=max_batch_size``, because a worker waits for its answer.
    """

    def __init__(
        self,
        execute_batch: Callable[[Sequence[GenerationTask]], Sequence[GenerationRecord]],
        *,
        max_batch_size: int = 16,
        max_wait_s: float = 0.05,
    ) -> None:
        if max_batch_size < 1:
            raise ConfigurationError(f"max_batch_size must be at least 1, not {max_batch_size}")
        if not max_wait_s >= 0:
            raise ConfigurationError(f"max_wait_s must be 0 or more, not {max_wait_s}")
        self._execute_batch = execute_batch
        self._max_batch_size = max_batch_size
        self._max_wait_s = max_wait_s
        self._lock = threading.Lock()
        self._model = threading.Lock()
        self._filling: _Batch | None = None

    def execute(self, task: GenerationTask) -> GenerationRecord:
        """Return the record of `task` from its batch. Raises what `execute_batch` raises, for each of its tasks."""
        call: Future[GenerationRecord] = Future()
        with self._lock:
            batch = self._filling
            is_first = batch is None
            if batch is None:
                batch = self._filling = _Batch()
            batch.calls.append((task, call))
            if len(batch.calls) == self._max_batch_size:
                self._filling = None
                batch.full.set()
        if is_first:
            self._run(batch)
        return call.result()

    def _run(self, batch: _Batch) -> None:
        try:
            batch.full.wait(self._max_wait_s)
            with self._model:
                self._end_filling(batch)
                tasks = [task for task, _ in batch.calls]
                records = list(self._execute_batch(tasks))
            if len(records) != len(tasks):
                raise ConfigurationError(
                    f"execute_batch returned {len(records)} records for {len(tasks)} tasks: expected one per task"
                )
        except BaseException as error:
            self._end_filling(batch)
            for _, call in batch.calls:
                call.set_exception(error)
        else:
            for (_, call), record in zip(batch.calls, records, strict=True):
                call.set_result(record)

    def _end_filling(self, batch: _Batch) -> None:
        with self._lock:
            if self._filling is batch:
                self._filling = None
