"""The layer `metrics`: count the calls and errors of each verb, and measure its time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Any, NamedTuple, TypeVar

from ..contract import StorageBase
from ..errors import StoreError
from ..fork import ForkSafeLock, run_in_child
from ..options import Option
from ..verbs import Kind
from .layer import Layer, compile_verb

T = TypeVar("T")

OPTIONS = {"label": Option(str, default="", help="the store's name in the metrics; default: the engine's name")}


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


_TIMED = """\
began_s, errors = perf_counter(), 0
try:
    return self._inner.{name}({arguments})
except StoreError:
    errors = 1
    raise
finally:
    _count(self._counts, "{name}", errors, perf_counter() - began_s)
"""
_TIMED_ITERATION = """\
began_s = perf_counter()
try:
    iterator = iter(self._inner.{name}({arguments}))
except StoreError:
    _count(self._counts, "{name}", 1, perf_counter() - began_s)
    raise
return _iterate(self._counts, "{name}", iterator, perf_counter() - began_s)
"""


def _iterate(counts: _Counts, name: str, iterator: Iterator[T], seconds: float) -> Iterator[T]:
    errors = 0
    try:
        while True:
            began_s = perf_counter()
            try:
                item = next(iterator)
            except StopIteration:
                return
            except StoreError:
                errors = 1
                raise
            finally:
                seconds += perf_counter() - began_s
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

    keeps_values = True

    def __init__(self, inner: StorageBase, label: str, namespace: str) -> None:
        super().__init__(inner)
        with _lock.current:
            self._counts = _stores.setdefault((label, namespace), {})

    @classmethod
    def generate(cls, name: str, verb: Callable[..., Any], kind: Kind) -> Callable[..., Any]:
        return compile_verb(name, verb, _TIMED_ITERATION if kind is Kind.ITERATES else _TIMED, globals())


def _after_fork_in_child() -> None:
    # The calls so far are counted in the parent.
    for counts in _stores.values():
        counts.clear()


run_in_child(_after_fork_in_child)
