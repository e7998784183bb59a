"""Run calls as tasks of a Ray cluster, as a `concurrent.futures.Executor`."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future
from concurrent.futures import wait as wait_for
from functools import partial
from typing import Any

from hutch.fork import ForkSafeLock

try:
    import ray
    from ray.exceptions import RayTaskError, TaskCancelledError
except ImportError as error:
    raise ImportError(f"RayExecutor needs Ray: pip install ray. What went wrong: {error}", name=error.name) from error


class RayExecutor(Executor):
    """One Ray task per call. `ray.init()` is the caller's, as is `ray.shutdown()`.

    `options` are those of `ray.remote`: ``num_gpus=1`` runs one call at a time per GPU, ``num_cpus=0`` as many as are
    submitted. Ray's workers need what the calls use, but not hutch. `Future.cancel` stops a running call too: Ray ends
    its worker process, which frees its CPUs and GPUs, and starts another for the next call.
    """

    #: Pickles as Ray does: lambdas and what a script defines by value.
    dumps = staticmethod(ray.cloudpickle.dumps)

    def __init__(self, **options: Any) -> None:
        self._remote = ray.remote(**options)(_call) if options else ray.remote(_call)
        self._lock = ForkSafeLock()
        self._is_shut_down = False
        self._unfinished: set[Future[Any]] = set()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Start `fn` as a task. Raises TypeError where `fn` or an argument cannot be pickled."""
        with self._lock.current:  # so that `shutdown` sees every submitted call
            if self._is_shut_down:
                raise RuntimeError("this RayExecutor was shut down")
            future = _RayFuture(self._remote.remote(fn, args, kwargs))
            self._unfinished.add(future)
        future.add_done_callback(self._unfinished.discard)
        future.task.future().add_done_callback(partial(_settle, future))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Accept no more calls, and wait for those submitted. The cluster is the caller's and continues.

        `cancel_futures` cancels every call that has not finished, running ones included: Ray does not say which run.
        """
        with self._lock.current:
            self._is_shut_down = True
            unfinished = list(self._unfinished)
        if cancel_futures:
            for future in unfinished:
                future.cancel()
        if wait:
            wait_for(unfinished)


class _RayFuture(Future[Any]):
    def __init__(self, task: Any) -> None:
        super().__init__()
        self.task = task

    def cancel(self) -> bool:
        # Without `force` Ray raises KeyboardInterrupt in the worker, which C code notices only when it returns: a call
        # that waits for a GPU or sleeps would keep its worker.
        cancelled = super().cancel()
        if cancelled:
            ray.cancel(self.task, force=True)
        return cancelled


def _call(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return fn(*args, **kwargs)


# Ray pickles by value what is defined in `__main__`: a worker may have no hutch.
_call.__module__ = "__main__"


def _settle(future: _RayFuture, done: Future[Any]) -> None:
    """Give `future` what Ray's own future `done` holds: a call's error as it was raised, without Ray's wrapper."""
    if not future.set_running_or_notify_cancel():
        return
    error = done.exception()
    if error is None:
        future.set_result(done.result())
    elif isinstance(error, RayTaskError) and not isinstance(error, TaskCancelledError):
        future.set_exception(error.cause)
    else:
        future.set_exception(error)
