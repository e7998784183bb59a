"""Test hutch.record: a Record does what a frozen dataclass does."""

from __future__ import annotations

import copy
import pickle
from dataclasses import FrozenInstanceError, dataclass
from typing import Any

import pytest

from hutch.record import Record


class Point(Record):
    """Where."""

    x: int
    y: int = 0
    #: Any.
    label: str | None = None

    @property
    def doubled(self) -> Point:
        return Point(self.x * 2, self.y * 2)


class Other(Record):
    x: int
    y: int = 0
    label: str | None = None


@dataclass(frozen=True)
class Model:
    """The same, as `dataclasses` makes it."""

    x: int
    y: int = 0
    label: str | None = None


@pytest.mark.parametrize(
    ("values", "named"),
    [
        *([(1,), {}], [(1, 2), {}], [(1, 2, "a"), {}], [(1,), {"label": "a"}], [(), {"x": 1, "y": 2}]),
        *([(), {}], [(1, 2, "a", 4), {}], [(1,), {"x": 1}], [(1,), {"z": 1}], [(), {"y": 1}], [(), {"doubled": 1}]),
        ((1,), {"replaced": 1}),
    ],
)
def test_a_record_takes_the_values_that_a_dataclass_takes(values: tuple[Any, ...], named: dict[str, Any]) -> None:
    try:
        model = Model(*values, **named)
    except TypeError:
        with pytest.raises(TypeError):
            Point(*values, **named)
    else:
        point = Point(*values, **named)
        assert (point.x, point.y, point.label) == (model.x, model.y, model.label)
        assert repr(point) == repr(model).replace("Model", "Point")
        assert hash(point) == hash(Point(model.x, model.y, model.label))


def test_records_are_equal_if_they_are_of_one_class_and_all_fields_are() -> None:
    assert Point(1) == Point(1, 0, None) == Point(x=1, y=0)
    assert Point(1) != Point(1, 1)
    assert Point(1) != Point(1, label="a")
    assert Point(1) != Other(1)
    assert Point(1) != (1, 0, None)
    assert len({Point(1), Point(1, 0), Point(2)}) == 2
    with pytest.raises(TypeError, match="unhashable"):
        hash(Point(1, label=[]))  # type: ignore[arg-type]


def test_a_record_cannot_be_changed_and_a_copy_can_differ() -> None:
    point = Point(1, label="a")
    for name in ("x", "y", "label", "new"):
        with pytest.raises(FrozenInstanceError):
            setattr(point, name, 5)
        with pytest.raises(FrozenInstanceError):
            delattr(point, name)
    assert point.replaced(y=3) == Point(1, 3, "a")
    assert point == Point(1, 0, "a")
    with pytest.raises(TypeError):
        point.replaced(z=1)
    assert point.doubled == Point(2)


def test_a_record_can_be_copied_and_pickled() -> None:
    point = Point(1, label="a")
    for same in (copy.copy(point), copy.deepcopy(point), pickle.loads(pickle.dumps(point))):
        assert same == point
        assert same is not point
