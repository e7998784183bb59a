"""Run Themis 1.4's calls on any `concurrent.futures.Executor`."""

from __future__ import annotations

import pickle
import queue
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures import wait as wait_for
from functools import partial
from types import FunctionType, MethodType, ModuleType
from typing import Any, TypeVar

from themis.backends.execution import ExecutionBackend, SequentialExecutionBackend
from themis.exceptions import ConfigurationError

from hutch.fork import ForkSafeLock

R = TypeVar("R")
T = TypeVar("T")

# The number of calls submitted at once to an executor of unknown size.
_DEFAULT_SUBMIT_COUNT = 64


class ExecutorBackend(ExecutionBackend):  # type: ignore[misc]
    """Themis's calls on any `concurrent.futures.Executor`: threads, processes, a Dask or Ray cluster.

    `executor` may also be a Dask `Client`. Its creator shuts it down, unless `owned`: then `shutdown`, or the end of
    the with block, does. Any thread may use it, several may at once.
    """

    def __init__(self, executor: Any, *, owned: bool = False) -> None:
        if not isinstance(executor, Executor) and callable(getattr(executor, "get_executor", None)):
            executor = executor.get_executor()
        if not callable(getattr(executor, "submit", None)):
            raise ConfigurationError(
                f"ExecutorBackend takes a concurrent.futures.Executor or a Dask client, not {type(executor).__name__}"
            )
        self._executor = executor
        self._owned = owned
        self._is_shut_down = False
        self._lock = ForkSafeLock()  # reentrant: an executor may run a call at once, which may use this backend
        self._submitted: set[Future[Any]] = set()
        # Dask would merge calls with equal arguments, and ask a model once instead of twice.
        self._options = {"pure": False} if type(executor).__module__.partition(".")[0] == "distributed" else {}

    def __reduce__(self) -> tuple[Any, ...]:
        # Pickled along with a method of the runner that holds it, but not used by the worker. The unpickled object is
        # Themis's own, because a worker may have no hutch.
        return SequentialExecutionBackend, ()

    def map(
        self,
        func: Callable[[T], R],
        items: Iterable[T],
        *,
        max_workers: int | None = None,
        timeout: float | None = None,
        **kwargs: Any,
    ) -> Iterator[R]:
        """Yield ``func(item)`` for all `items` as they finish, in any order. Nothing happens before iteration.

        At most `max_workers` calls run at once, or fewer if the executor has fewer workers; None leaves it to the
        executor. `items` is consumed as calls finish, never far ahead. `timeout` is in seconds per call, from when a
        free worker gets it; a call that runs longer raises TimeoutError, and continues to run, because an executor
        cannot stop it. Other options are ignored, as by Themis's own backends.

        Raises what `func` raises, at once; calls that have not started are then cancelled, as they are when the
        iteration is abandoned. If `items` raises, the results of the calls already begun come first. Raises
        ConfigurationError where `func` or an item cannot be sent to the executor's workers, and says which part;
        RuntimeError after `shutdown`.
        """
        if max_workers is not None and max_workers < 1:
            raise ConfigurationError(f"max_workers must be at least 1, not {max_workers}")
        if self._is_shut_down:
            raise RuntimeError("this ExecutorBackend was shut down")
        if isinstance(self._executor, ProcessPoolExecutor):
            # An unpicklable `func` would otherwise fail only after the pool has started all its processes.
            try:
                pickle.dumps(func)
            except Exception as error:
                raise _not_shippable(func, pickle.dumps) from error
        return self._results(func, iter(items), self._submit_count(max_workers, timeout), timeout)

    def shutdown(self) -> None:
        """Cancel the calls that have not started, and wait for the others; shut the executor down too if `owned`.

        Any iteration over results still in progress raises CancelledError.
        """
        with self._lock.current:
            self._is_shut_down = True
            submitted = list(self._submitted)
        for future in submitted:
            future.cancel()
        wait_for(submitted)
        if self._owned:
            self._executor.shutdown(wait=True)

    def _submit_count(self, max_workers: int | None, timeout: float | None) -> int:
        """Return the number of calls to submit at once."""
        size = getattr(self._executor, "_max_workers", None)
        if not isinstance(size, int):
            return max_workers or _DEFAULT_SUBMIT_COUNT
        if timeout is not None or (max_workers is not None and max_workers < size):
            return min(size, max_workers or size)
        return 2 * size  # the executor queues the extra calls, so that no worker waits for the next item

    def _results(self, func: Callable[[T], R], items: Iterator[T], ahead: int, timeout: float | None) -> Iterator[R]:
        running: dict[Future[R], tuple[T, float]] = {}
        done: queue.SimpleQueue[Future[R]] = queue.SimpleQueue()
        failed: Exception | None = None
        exhausted = False
        try:
            while True:
                while len(running) < ahead and not exhausted:
                    try:
                        item = next(items)
                    except StopIteration:
                        exhausted = True
                    except Exception as error:
                        exhausted, failed = True, error  # calls already begun may have cost money: yield them first
                    else:
                        future = self._submit(func, item)
                        running[future] = item, time.monotonic()
                        future.add_done_callback(done.put)
                if not running:
                    break
                future = _next_done(done, running, timeout)
                item, _ = running.pop(future)
                yield self._wait_for_result(future, item)
        finally:
            for future in running:
                future.cancel()
        if failed is not None:
            raise failed

    def _submit(self, func: Callable[[T], R], item: T) -> Future[R]:
        try:
            with self._lock.current:  # so that `shutdown` sees every submitted call
                if self._is_shut_down:
                    raise RuntimeError("this ExecutorBackend was shut down")
                future: Future[R] = self._executor.submit(func, item, **self._options)
                self._submitted.add(future)
        except (AttributeError, TypeError, pickle.PicklingError) as error:
            # Dask and Ray use cloudpickle, which takes more than pickle does.
            dumps = getattr(sys.modules.get("cloudpickle"), "dumps", pickle.dumps)
            dumps = getattr(self._executor, "dumps", dumps)
            for thing in (func, item):
                if not _is_shippable(thing, dumps):
                    raise _not_shippable(thing, dumps) from error
            raise
        future.add_done_callback(self._submitted.discard)
        return future

    def _wait_for_result(self, future: Future[R], item: T) -> R:
        try:
            return future.result()
        except (AttributeError, TypeError, pickle.PicklingError) as error:
            # A process pool pickles an item when sending it. `func` itself may have raised the same error.
            if isinstance(self._executor, ProcessPoolExecutor) and not _is_shippable(item, pickle.dumps):
                raise _not_shippable(item, pickle.dumps) from error
            raise


def _next_done(
    done: queue.SimpleQueue[Future[R]], running: dict[Future[R], tuple[T, float]], timeout: float | None
) -> Future[R]:
    if timeout is None:
        return done.get()
    _, oldest = next(iter(running.values()))
    try:
        return done.get(timeout=max(0.0, oldest + timeout - time.monotonic()))
    except queue.Empty:
        raise TimeoutError(f"a call has not ended after {timeout:g} s; it may still run") from None


_Dumps = Callable[[Any], bytes]


def _is_shippable(thing: object, dumps: _Dumps) -> bool:
    try:
        dumps(thing)
    except Exception:
        return False
    return True


def _not_shippable(thing: object, dumps: _Dumps) -> ConfigurationError:
    """Return the error that says where in `thing` the unpicklable part is, by names and types, never values."""
    parts = [_describe(thing)]
    while len(parts) < 20:
        for label, part in _parts(thing, dumps):
            if not _is_shippable(part, dumps):
                parts.append(f"{label}: {_describe(part)}")
                thing = part
                break
        else:
            break
    return ConfigurationError(
        f"{parts[0]} cannot be sent to a worker in another process: {', '.join(parts[1:]) or 'it'} cannot be "
        "pickled. Use a ThreadPoolExecutor, for which nothing is pickled, or an executor that ships functions by value "
        "(RayExecutor, or that of a Dask client); or define functions at the top of a module, and leave locks and "
        "connections out of what is sent (__getstate__). The functions that themis.evaluate() makes for itself go only "
        "to threads, Dask and Ray"
    )


def _parts(thing: Any, dumps: _Dumps) -> Iterator[tuple[str, Any]]:
    if isinstance(thing, MethodType):
        yield "its object", thing.__self__
    elif isinstance(thing, partial):
        yield from (("its function", thing.func), ("an argument", thing.args), ("an argument", thing.keywords))
    elif isinstance(thing, FunctionType):
        if dumps is not pickle.dumps:  # pickle looks a function up by name, and never inside
            used = {name: thing.__globals__[name] for name in thing.__code__.co_names if name in thing.__globals__}
            inside = zip(thing.__code__.co_freevars, thing.__closure__ or (), strict=False)
            used |= {name: cell.cell_contents for name, cell in inside}
            yield from ((f"variable {name}", value) for name, value in used.items())
    elif isinstance(thing, dict):
        yield from (("an item", value) for value in thing.values())
    elif isinstance(thing, (list, tuple, set, frozenset)):
        yield from (("an item", value) for value in thing)
    elif not isinstance(thing, (type, ModuleType)):
        yield from ((f"attribute {name}", value) for name, value in getattr(thing, "__dict__", {}).items())


def _describe(thing: Any) -> str:
    if isinstance(thing, (FunctionType, MethodType, type)):
        return f"{thing.__module__}.{thing.__qualname__}"
    return f"a {type(thing).__module__}.{type(thing).__qualname__}".replace("a builtins.", "a ")
