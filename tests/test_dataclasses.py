"""Test the frozen dataclasses of hutch's interface: they can be subclassed, replaced and hashed, and show no secret."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from typing import Any

import pytest

from hutch import Finding, Option
from hutch.codec.pickled import Pickled
from hutch.config import CodecConfig, StoreConfig, read_config
from hutch.config.model import LayerConfig, NamespaceRule

SECRET = "hunter2"
EACH = [
    Option(int, [1], "how many"),
    Finding("value", "damaged", "core", "k"),
    StoreConfig("redis", {"password": SECRET}, url=f"redis://me:{SECRET}@host/0", host_config={"token": SECRET}),
    read_config({"STORAGE": "redis", "STORAGE_CONFIG": {"password": SECRET}}),
    Pickled(SECRET.encode()),
]
each = pytest.mark.parametrize("value", EACH, ids=lambda value: type(value).__name__)


@each
def test_it_is_a_frozen_dataclass_whose_copies_are_equal_and_have_its_hash(value: Any) -> None:
    names = [field.name for field in dataclasses.fields(value)]
    same = dataclasses.replace(value)
    assert same == value
    assert same is not value
    assert hash(same) == hash(value)
    assert {value: 1}[same] == 1
    for name in [*names, "new"]:
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, name, 5)
        with pytest.raises(dataclasses.FrozenInstanceError):
            delattr(value, name)
    changed = dataclasses.replace(value, **{names[0]: "other"})
    assert changed != value
    assert type(changed) is type(value)


@pytest.mark.parametrize(
    "value",
    [
        *EACH,
        CodecConfig("pickle", {"key": SECRET}),
        LayerConfig("cache", {"password": SECRET}),
        NamespaceRule("a*", CodecConfig("pickle", {"key": SECRET})),
    ],
    ids=lambda value: type(value).__name__,
)
def test_its_repr_shows_no_secret(value: Any) -> None:
    assert SECRET not in repr(value)


@each
def test_a_subclass_has_the_fields_of_its_base_and_its_own(value: Any) -> None:
    @dataclasses.dataclass(frozen=True, repr=False)
    class More(type(value)):  # type: ignore[misc]
        more: int = 0

    values = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    more: Any = More(**values, more=3)
    assert more.more == 3
    assert all(getattr(more, name) is values[name] for name in values)
    assert more != value
    assert dataclasses.replace(more, more=4) == More(**values, more=4)
    assert hash(more) == hash(More(**values, more=3))
    assert SECRET not in repr(more)


def test_a_finding_can_be_copied_and_pickled() -> None:
    finding = Finding("key", "not written by hutch", repaired=True)
    for same in (copy.copy(finding), copy.deepcopy(finding), pickle.loads(pickle.dumps(finding))):
        assert same == finding


def test_a_config_can_be_converted_to_a_dict_and_copied_and_its_options_cannot_change() -> None:
    config = read_config({"STORAGE": "redis", "STORAGE_CONFIG": {"tags": ["a"]}, "CODEC": {"name": "pickle"}})
    shown = dataclasses.asdict(config)
    assert shown["options"] == {"tags": ["a"]}
    assert shown["codec"] == CodecConfig("pickle")
    assert copy.deepcopy(config) == config
    options: Any = config.options
    for verb, arguments in (("update", {"a": 1}), ("pop", "tags"), ("popitem", None), ("setdefault", "a")):
        with pytest.raises(TypeError, match="cannot be changed"):
            getattr(options, verb)(arguments)
    with pytest.raises(TypeError, match="cannot be changed"):
        options["a"] = 1
