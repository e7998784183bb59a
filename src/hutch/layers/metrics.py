"""The layer `metrics`: count the calls and errors of each verb, and measure its time."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar

from ..contract import StorageBase
from ..errors import StoreError
from ..fork import ForkSafeLock, run_in_child
from ..options import Option
from .layer import Layer

P = ParamSpec("P")
T = TypeVar("T")

OPTIONS = {
    "label": Option(str, default="", help="the store's name in the metrics; default: the engine's name"),
}


class Figures(NamedTuple):
    """The figures of one verb since the process started or was forked."""

    #: The number of calls; for an iteration, the number that ended, were abandoned or failed.
    calls: int = 0
    #: The number of calls that raised a StoreError. A missing key is not an error.
    errors: int = 0
    #: The total time of the calls, retries included; for an iteration, the time spent in the engine.
    seconds: float = 0.0


# The fields of `Figures` by verb, as lists that are changed in place.
_Counts = dict[str, list[Any]]
_stores: dict[tuple[str, str], _Counts] = {}
_lock = ForkSafeLock()


def snapshot() -> dict[tuple[str, str], dict[str, Figures]]:
    """Return the `Figures` by verb of every namespace with this layer in the process, by (label, namespace).

    The figures only grow, and outlive the handles. Namespaces with the same name and label are counted together.
    """
    with _lock.current:
        return {
            place: {verb: Figures(*figures) for verb, figures in list(counts.items())}
            for place, counts in list(_stores.items())
            if counts
        }


def _timed(verb: Callable[Concatenate[Layer, P], T]) -> Callable[Concatenate[MetricsLayer, P], T]:
    name = verb.__name__

    @functools.wraps(verb)
    def timed(self: MetricsLayer, /, *args: P.args, **kwargs: P.kwargs) -> T:
        began_s, errors = time.perf_counter(), 0
        try:
            return verb(self, *args, **kwargs)
        except StoreError:
            errors = 1
            raise
        finally:
            _count(self._counts, name, errors, time.perf_counter() - began_s)

    return timed


def _timed_iteration(
    verb: Callable[Concatenate[Layer, P], Iterable[T]],
) -> Callable[Concatenate[MetricsLayer, P], Iterator[T]]:
    name = verb.__name__

    @functools.wraps(verb)
    def timed(self: MetricsLayer, /, *args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
        began_s = time.perf_counter()
        try:
            iterator = iter(verb(self, *args, **kwargs))
        except StoreError:
            _count(self._counts, name, 1, time.perf_counter() - began_s)
            raise
        return _iterate(self._counts, name, iterator, time.perf_counter() - began_s)

    return timed


def _iterate(counts: _Counts, name: str, iterator: Iterator[T], seconds: float) -> Iterator[T]:
    errors = 0
    try:
        while True:
            began_s = time.perf_counter()
            try:
                item = next(iterator)
            except StopIteration:
                return
            except StoreError:
                errors = 1
                raise
            finally:
                seconds += time.perf_counter() - began_s
            yield item
    finally:
        _count(counts, name, errors, seconds)


def _count(counts: _Counts, verb: str, errors: int, seconds: float) -> None:
    with _lock.current:
        figures = counts.setdefault(verb, [0, 0, 0.0])
        # In place and without a call, so that no count of an interrupting signal handler is lost.
        figures[0] += 1
        figures[1] += errors
        figures[2] += seconds


class MetricsLayer(Layer):
    """A layer that counts and times every verb; `snapshot` returns the figures."""

    def __init__(self, inner: StorageBase, label: str, namespace: str) -> None:
        super().__init__(inner)
        with _lock.current:
            self._counts = _stores.setdefault((label, namespace), {})

    set = _timed(Layer.set)
    get = _timed(Layer.get)
    remove = _timed(Layer.remove)
    len = _timed(Layer.len)
    keys = _timed_iteration(Layer.keys)
    close = _timed(Layer.close)
    contains = _timed(Layer.contains)
    get_many = _timed(Layer.get_many)
    set_many = _timed(Layer.set_many)
    remove_many = _timed(Layer.remove_many)
    items = _timed_iteration(Layer.items)
    scan = _timed_iteration(Layer.scan)
    scan_keys = _timed_iteration(Layer.scan_keys)
    clear = _timed(Layer.clear)
    get_for_update = _timed(Layer.get_for_update)
    compare_and_swap = _timed(Layer.compare_and_swap)
    compare_and_set = _timed(Layer.compare_and_set)
    modify = _timed(Layer.modify)


def _after_fork_in_child() -> None:
    # The calls so far are counted in the parent.
    for counts in _stores.values():
        counts.clear()


run_in_child(_after_fork_in_child)
