"""Run calls as tasks of a Ray cluster, as a `concurrent.futures.Executor`."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future
from functools import partial
from typing import Any

try:
    import ray
    from ray.exceptions import RayTaskError, TaskCancelledError
except ImportError as error:
    raise ImportError(f"RayExecutor needs Ray: pip install ray. What went wrong: {error}", name=error.name) from error


class RayExecutor(Executor):
    """One Ray task per call. `ray.init()` is the caller's, as is `ray.shutdown()`.

    `options` are those of `ray.remote`: ``num_gpus=1`` runs one call at a time per GPU, ``num_cpus=0`` as many as are
    submitted. Ray's workers need what the calls use, but not hutch. `Future.cancel` asks Ray to stop a running call.
    """

    #: Pickles as Ray does: lambdas and what a script defines by value.
    dumps = staticmethod(ray.cloudpickle.dumps)

    def __init__(self, **options: Any) -> None:
        self._remote = ray.remote(**options)(_call) if options else ray.remote(_call)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Start `fn` as a task. Raises TypeError where `fn` or an argument cannot be pickled."""
        future = _RayFuture(self._remote.remote(fn, args, kwargs))
        future.task.future().add_done_callback(partial(_settle, future))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Do nothing: the cluster is the caller's."""


class _RayFuture(Future[Any]):
    def __init__(self, task: Any) -> None:
        super().__init__()
        self.task = task

    def cancel(self) -> bool:
        cancelled = super().cancel()
        if cancelled:
            ray.cancel(self.task)
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
