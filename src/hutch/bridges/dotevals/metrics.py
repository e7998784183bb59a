"""Describe dotevals' metrics as text in stored results, and find them again."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from dotevals.metrics import accuracy
from dotevals.metrics import registry as known_metrics
from dotevals.metrics.registry import registry as metric_plugins

from .layout import metric_name

_Metric = Callable[[list[Any]], float]

# The metrics that this process used and their descriptions, by evaluation, score and name; a few per evaluation.
_used: dict[tuple[str, str, str], tuple[_Metric, str]] = {}


def describe_metric(metric: _Metric, evaluation: str, score: str) -> str:
    """Return what is stored for a metric: ``module:name``, with "(...)" appended if it was made with arguments."""
    if isinstance(metric, UnknownMetric):
        return metric.described
    name: str = metric.__name__
    seen = _used.get((evaluation, score, name))
    if seen is not None and seen[0] is metric:
        return seen[1]
    parts = ("__closure__", "__defaults__", "__kwdefaults__")
    made_with = "(...)" if any(getattr(metric, part, None) for part in parts) else ""
    described = f"{getattr(metric, '__module__', None) or ''}:{name}{made_with}"
    _used[evaluation, score, name] = metric, described
    return described


def find_metric(evaluation: str, score: str, described: str) -> _Metric | None:
    """Return the metric if this process has it. Calls only what dotevals' `metric` made, and imports nothing."""
    module, name = described.partition(":")[0], metric_name(described)
    if (seen := _used.get((evaluation, score, name))) is not None:
        return seen[0]
    known: _Metric | None = known_metrics.get(name)
    if known is not None and module in ("", known.__module__):
        return known
    if described.endswith("(...)"):
        return None  # its arguments are unknown
    factories = [getattr(sys.modules.get(module), name, None), metric_plugins.get(name)]
    for factory in factories:
        # All functions made by the decorator share its code. Stored data must not be able to call anything else.
        if getattr(factory, "__code__", None) is accuracy.__code__:
            with suppress(TypeError):  # it needs arguments
                made: _Metric = factory()
                if module in ("", made.__module__):
                    return made
    return None


class UnknownMetric:
    """Placeholder for a metric that was unknown when results were read; a call looks it up again."""

    def __init__(self, evaluation: str, score: str, described: str) -> None:
        self._evaluation, self._score, self.described = evaluation, score, described
        self.__name__ = metric_name(described)

    def __call__(self, scores: list[Any]) -> float:
        metric = find_metric(self._evaluation, self._score, self.described)
        if metric is not None:
            return metric(scores)
        module = self.described.partition(":")[0]
        could_be_made = not self.described.endswith("(...)") and module not in sys.modules
        hint = f"import {module or 'its module'}, or " if could_be_made else ""
        warnings.warn(
            f"metric {self.__name__!r} is not known here, so its value is nan; {hint}set "
            f"dotevals.metrics.registry[{self.__name__!r}]",
            RuntimeWarning,
            stacklevel=2,
        )
        return math.nan


class MetricsByDescription(dict[tuple[str, str], _Metric]):
    """The metrics of one evaluation, by score and description, each looked up once."""

    def __init__(self, evaluation: str) -> None:
        super().__init__()
        self._evaluation = evaluation

    def __missing__(self, key: tuple[str, str]) -> _Metric:
        score, described = key
        metric = find_metric(self._evaluation, score, described) or UnknownMetric(self._evaluation, score, described)
        self[key] = metric
        return metric
